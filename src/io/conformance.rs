//! What every engine has to do, as a suite that each of them runs.
//!
//! A suite is given a closure that makes a [`Subject`]: an engine over a volume with a given content, and a way
//! to look at that volume from outside. Each function is one promise of the [`Engine`] trait, and panics when
//! it is broken; [`run_all`] checks them all.

mod waking;

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, memfd_create};

pub use waking::*;

use super::{Completion, Durability, Engine, Op, PoolShape, Slot, SlotPool, Tag, Wait, Wake};

/// An engine under test.
pub struct Subject<E> {
    /// The engine, for as many operations as the suite asked for.
    pub engine: E,
    /// What its volume contains, read by other means than the engine.
    pub contents: Box<dyn Fn() -> Vec<u8>>,
}

/// Runs every check. `make` is called once for each with the volume's first content (a multiple of 4096
/// bytes), the pool that the slots will come from, and the number of operations.
///
/// # Panics
/// When the engine breaks a promise.
pub fn run_all<E: Engine>(make: impl Fn(&[u8], &SlotPool, u32) -> Subject<E>) {
    moves_every_size_to_the_right_place(&make);
    uses_every_slot_at_once(&make);
    answers_every_tag_once(&make);
    takes_more_operations_than_a_queue_holds(&make);
    reports_the_end_of_the_volume(&make);
    syncs_and_writes_durably(&make);
    discards_nothing_but_the_range(&make);
    refuses_tags_and_lengths_that_are_wrong(&make);
    is_woken_while_it_sleeps(&make);
    is_woken_by_each_of_many_signals(&make);
    is_woken_by_a_signal_from_before(&make);
    changes_what_it_watches(&make);
    refuses_to_watch_what_is_never_signalled(&make);
    waits_for_operations_and_signals_together(&make);
    sleeps_no_longer_than_it_is_told(&make);
    can_be_dropped_with_operations_in_flight(&make);
}

/// Reads and writes of 512 bytes to 128 KiB at several offsets; the bytes around a write stay.
pub fn moves_every_size_to_the_right_place<E: Engine>(make: &impl Fn(&[u8], &SlotPool, u32) -> Subject<E>) {
    let mut expected = noise(1 << 20, 1);
    let mut rig = Rig::new(make, &expected, PoolShape::default(), 1);
    let sizes = [512, 1024, 4096, 12 << 10, 16 << 10, (16 << 10) + 4096, 64 << 10, 128 << 10];
    // On O_DIRECT a buffered look at the file needs no alignment; the transfers keep to 4096 where they can.
    for (round, len) in sizes.into_iter().enumerate() {
        for offset in [0, len, 4096 * (round + 3), expected.len() - len] {
            let offset = offset - offset % len.min(4096);
            rig.start_read(0, offset, len);
            let slot = rig.one_whole().slot.expect("a read brings its slot back");
            assert!(slot.bytes(len) == &expected[offset..offset + len], "read of {len} bytes at {offset}");
            rig.pool.put(slot);

            let new = noise(len, (offset + len) as u64);
            rig.start_write(0, offset, &new, Durability::Volatile);
            let slot = rig.one_whole().slot.expect("a write brings its slot back");
            rig.pool.put(slot);
            expected[offset..offset + len].copy_from_slice(&new);
        }
        assert!((rig.contents)() == expected, "after the writes of {len} bytes");
    }
}

/// Every slot of the pool is in flight at the same time, and comes back with its own bytes.
pub fn uses_every_slot_at_once<E: Engine>(make: &impl Fn(&[u8], &SlotPool, u32) -> Subject<E>) {
    let shape = PoolShape { small_count: 24, large_count: 8 };
    let count = shape.small_count + shape.large_count;
    let piece = 16 << 10;
    let mut rig = Rig::new(make, &vec![0; count * piece], shape, count as u32);
    let content = noise(count * piece, 2);
    for (tag, bytes) in content.chunks(piece).enumerate() {
        rig.start_write(tag as u32, tag * piece, bytes, Durability::Volatile);
    }
    assert!(rig.pool.take(1).is_none(), "every slot is with the engine");
    for completion in rig.all(count) {
        rig.pool.put(whole(completion).slot.expect("a write brings its slot back"));
    }
    assert!((rig.contents)() == content);
    for tag in 0..count {
        rig.start_read(tag as u32, tag * piece, piece);
    }
    for completion in rig.all(count) {
        let start = completion.tag.0 as usize * piece;
        let slot = whole(completion).slot.expect("a read brings its slot back");
        assert!(slot.bytes(piece) == &content[start..start + piece], "the read at {start}");
        rig.pool.put(slot);
    }
    let slots: Vec<Slot> = std::iter::from_fn(|| rig.pool.take(1)).collect();
    assert_eq!(slots.len(), count, "no slot was lost");
}

/// Tags are used again and again, in batches of changing size, and each use is answered once.
pub fn answers_every_tag_once<E: Engine>(make: &impl Fn(&[u8], &SlotPool, u32) -> Subject<E>) {
    let (max_ops, piece) = (64_usize, 4096);
    let content = noise(max_ops * piece, 3);
    let mut rig = Rig::new(make, &content, PoolShape::default(), max_ops as u32);
    for round in 1..=100 {
        let batch = 1 + round * 7 % max_ops;
        for i in 0..batch {
            // Each round starts at another tag, and gives each tag another place.
            let tag = (i + round) % max_ops;
            rig.start_read(tag as u32, (i + 5 * round) % max_ops * piece, piece);
        }
        let mut answered = HashSet::new();
        for completion in rig.all(batch) {
            assert!(answered.insert(completion.tag.0), "{:?} was answered twice", completion.tag);
            let i = (completion.tag.0 as usize + max_ops - round % max_ops) % max_ops;
            assert!(i < batch, "{:?} was not started", completion.tag);
            let start = (i + 5 * round) % max_ops * piece;
            let slot = whole(completion).slot.expect("a read brings its slot back");
            assert!(
                slot.bytes(piece) == &content[start..start + piece],
                "round {round}, the read at {start}"
            );
            rig.pool.put(slot);
        }
        rig.engine.submit(Wait::No).expect("a submit of nothing");
        assert!(rig.engine.reap().is_none(), "nothing was left to answer");
    }
}

/// Hundreds of operations are started before anything is submitted or reaped.
pub fn takes_more_operations_than_a_queue_holds<E: Engine>(
    make: &impl Fn(&[u8], &SlotPool, u32) -> Subject<E>,
) {
    let count = 600_usize;
    let shape = PoolShape { small_count: count, large_count: 0 };
    let mut rig = Rig::new(make, &vec![0; count * 4096], shape, count as u32);
    let content = noise(count * 4096, 4);
    for (tag, bytes) in content.chunks(4096).enumerate() {
        rig.start_write(tag as u32, tag * 4096, bytes, Durability::Volatile);
    }
    let tags: HashSet<u32> = rig.all(count).into_iter().map(|completion| whole(completion).tag.0).collect();
    assert_eq!(tags.len(), count);
    assert!((rig.contents)() == content);
}

/// A read that reaches beyond the end is an error, its slot comes back, and the engine goes on.
pub fn reports_the_end_of_the_volume<E: Engine>(make: &impl Fn(&[u8], &SlotPool, u32) -> Subject<E>) {
    let content = noise(64 << 10, 5);
    let mut rig = Rig::new(make, &content, PoolShape::default(), 4);
    for offset in [content.len() - 4096, content.len(), content.len() + (1 << 20)] {
        rig.start_read(0, offset, 8192);
        let completion = rig.all(1).remove(0);
        let error = completion.result.expect_err("a read beyond the end");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "a read at {offset}: {error}");
        rig.pool.put(completion.slot.expect("a failed read brings its slot back"));
        rig.start_read(0, content.len() - 4096, 4096);
        let slot = rig.one_whole().slot.expect("a read brings its slot back");
        assert!(slot.bytes(4096) == &content[content.len() - 4096..]);
        rig.pool.put(slot);
    }
}

/// A sync and a durable write end well, and carry what they have to.
pub fn syncs_and_writes_durably<E: Engine>(make: &impl Fn(&[u8], &SlotPool, u32) -> Subject<E>) {
    let mut expected = vec![0; 256 << 10];
    let mut rig = Rig::new(make, &expected, PoolShape::default(), 16);
    for (tag, durability) in [(0, Durability::Durable), (1, Durability::Volatile), (2, Durability::Durable)] {
        let (offset, bytes) = (tag as usize * 65536, noise(65536, u64::from(tag)));
        rig.start_write(tag, offset, &bytes, durability);
        expected[offset..offset + bytes.len()].copy_from_slice(&bytes);
    }
    for completion in rig.all(3) {
        rig.pool.put(whole(completion).slot.expect("a write brings its slot back"));
    }
    rig.engine.start(Tag(7), Op::Sync);
    let completion = rig.one_whole();
    assert_eq!(completion.tag, Tag(7));
    assert!(completion.slot.is_none(), "a sync has no slot");
    assert!((rig.contents)() == expected);
}

/// The blocks on both sides of a discarded range stay, and so does the size.
pub fn discards_nothing_but_the_range<E: Engine>(make: &impl Fn(&[u8], &SlotPool, u32) -> Subject<E>) {
    let content = noise(256 << 10, 6);
    let mut rig = Rig::new(make, &content, PoolShape::default(), 4);
    let (start, len) = (64 << 10, 96 << 10);
    rig.engine.start(Tag(3), Op::Discard { offset_bytes: start as u64, len_bytes: len as u64 });
    assert_eq!(rig.one_whole().tag, Tag(3));
    let after = (rig.contents)();
    assert_eq!(after.len(), content.len());
    assert!(after[..start] == content[..start] && after[start + len..] == content[start + len..]);
    // The range can be written again.
    rig.start_write(0, start, &content[start..start + 4096], Durability::Volatile);
    let _ = rig.one_whole();
    assert!((rig.contents)()[..start + 4096] == content[..start + 4096]);
}

/// Misuse panics instead of moving the wrong bytes.
pub fn refuses_tags_and_lengths_that_are_wrong<E: Engine>(
    make: &impl Fn(&[u8], &SlotPool, u32) -> Subject<E>,
) {
    let misuses: [fn(&mut Rig<E>); 4] = [
        |rig| rig.engine.start(Tag(2), Op::Sync),
        |rig| {
            rig.engine.start(Tag(1), Op::Sync);
            rig.engine.start(Tag(1), Op::Sync);
        },
        |rig| rig.start_read(0, 0, 0),
        |rig| {
            let slot = rig.pool.take(512).expect("a free slot");
            let len_bytes = slot.capacity_bytes() as u32 + 512;
            rig.engine.start(Tag(0), Op::Read { slot, offset_bytes: 0, len_bytes });
        },
    ];
    for misuse in misuses {
        let mut rig = Rig::new(make, &[0; 4096], PoolShape { small_count: 1, large_count: 0 }, 2);
        assert!(catch_unwind(AssertUnwindSafe(|| misuse(&mut rig))).is_err(), "a misuse went unnoticed");
    }
}

/// A drop in the middle of reads and writes: the volume holds old or new blocks, and nothing writes to the
/// memory of slots that are taken afterwards.
pub fn can_be_dropped_with_operations_in_flight<E: Engine>(
    make: &impl Fn(&[u8], &SlotPool, u32) -> Subject<E>,
) {
    let blocks = 128;
    for submitted in [false, true] {
        let old = noise(blocks * 4096, 8);
        let new = noise(blocks * 4096, 9);
        let mut rig =
            Rig::new(make, &old, PoolShape { small_count: 2 * blocks, large_count: 0 }, 2 * blocks as u32);
        for block in 0..blocks {
            let bytes = &new[block * 4096..][..4096];
            rig.start_write(block as u32, block * 4096, bytes, Durability::Volatile);
        }
        for block in 0..blocks {
            rig.start_read((blocks + block) as u32, block * 4096, 4096);
        }
        if submitted {
            rig.engine.submit(Wait::No).expect("a submit");
        }
        let Rig { engine, contents, pool } = rig;
        drop(engine);
        let after = contents();
        for (piece, bytes) in after.chunks(512).enumerate() {
            let range = piece * 512..(piece + 1) * 512;
            assert!(
                bytes == &old[range.clone()] || bytes == &new[range],
                "piece {piece} is neither old nor new"
            );
        }
        drop(pool);
        assert!(contents() == after, "something is still written after the drop");
    }
}

/// A sleep with an end ends without a signal, and not at once again and again.
pub fn sleeps_no_longer_than_it_is_told<E: Engine>(make: &impl Fn(&[u8], &SlotPool, u32) -> Subject<E>) {
    let mut rig = Rig::new(make, &[0; 4096], PoolShape { small_count: 1, large_count: 0 }, 1);
    let signal = Signal::new(0);
    for watched in [None, Some(&signal)] {
        rig.watch(Wake::Kick, watched);
        rig.settle();
        let end = Instant::now() + Duration::from_millis(20);
        let mut returns = 0;
        while Instant::now() < end {
            rig.engine.submit(Wait::Until(end)).expect("a wait");
            assert!(rig.engine.reap().is_none(), "there was no operation");
            returns += 1;
        }
        assert!(returns <= SHORT_SLEEPS, "it did not sleep: {returns} returns");
        // The time is over.
        rig.engine.submit(Wait::Until(end)).expect("a wait");
    }
}

/// How many returns a sleep of 20 ms may come in, where the kernel knows none that end: a millisecond each.
const SHORT_SLEEPS: usize = 20 + EARLY_RETURNS;

/// How many returns from a wait may come without a cause: left over from set-up or from a signal long gone.
const EARLY_RETURNS: usize = 8;

/// A subject with its pool.
struct Rig<E> {
    engine: E,
    contents: Box<dyn Fn() -> Vec<u8>>,
    pool: SlotPool,
}

impl<E: Engine> Rig<E> {
    fn new(
        make: &impl Fn(&[u8], &SlotPool, u32) -> Subject<E>,
        content: &[u8],
        shape: PoolShape,
        max_ops: u32,
    ) -> Self {
        let pool = SlotPool::new(shape).expect("memory for slots");
        let Subject { engine, contents } = make(content, &pool, max_ops);
        Self { engine, contents, pool }
    }

    fn start_read(&mut self, tag: u32, offset: usize, len: usize) {
        let mut slot = self.pool.take(len).expect("a free slot");
        // So that a read that moves nothing does not go unnoticed.
        slot.bytes_mut(len).fill(0xEE);
        self.engine.start(Tag(tag), Op::Read { slot, offset_bytes: offset as u64, len_bytes: len as u32 });
    }

    fn start_write(&mut self, tag: u32, offset: usize, bytes: &[u8], durability: Durability) {
        let mut slot = self.pool.take(bytes.len()).expect("a free slot");
        slot.bytes_mut(bytes.len()).copy_from_slice(bytes);
        let (offset_bytes, len_bytes) = (offset as u64, bytes.len() as u32);
        self.engine.start(Tag(tag), Op::Write { slot, offset_bytes, len_bytes, durability });
    }

    /// The next `count` completions.
    fn all(&mut self, count: usize) -> Vec<Completion> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut completions = Vec::new();
        self.engine.submit(Wait::No).expect("a submit");
        loop {
            while let Some(completion) = self.engine.reap() {
                completions.push(completion);
            }
            if completions.len() >= count {
                break;
            }
            assert!(Instant::now() < deadline, "{} of {count} operations ended", completions.len());
            self.engine.submit(Wait::ForEvent).expect("a wait");
        }
        assert_eq!(completions.len(), count, "more completions than operations");
        completions
    }

    fn one_whole(&mut self) -> Completion {
        whole(self.all(1).remove(0))
    }

    fn watch(&mut self, wake: Wake, signal: Option<&Signal>) {
        self.engine.watch(wake, signal.map(Signal::duplicate)).expect("a watch");
    }

    /// Lets an engine digest what it was told.
    fn settle(&mut self) {
        for _ in 0..3 {
            self.engine.submit(Wait::No).expect("a submit");
            assert!(self.engine.reap().is_none());
        }
    }

    /// Waits until another thread has run `before` and then raised `signal`. Returns the number of waits. An
    /// engine that is not woken within a minute ends the test process.
    fn sleep_until_raised(&mut self, signal: &Signal, before: impl FnOnce() + Send) -> usize {
        let raising = AtomicBool::new(false);
        let (awake, is_awake) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let raising = &raising;
            scope.spawn(move || {
                before();
                raising.store(true, Ordering::Release);
                signal.raise();
                if is_awake.recv_timeout(Duration::from_secs(60)) == Err(RecvTimeoutError::Timeout) {
                    tracing::error!("the engine was not woken");
                    std::process::abort();
                }
            });
            let mut returns = 0;
            loop {
                self.engine.submit(Wait::ForEvent).expect("a wait");
                assert!(self.engine.reap().is_none(), "there was no operation");
                returns += 1;
                if raising.load(Ordering::Acquire) {
                    drop(awake);
                    return returns;
                }
            }
        })
    }
}

/// An eventfd as the other side holds it.
struct Signal {
    fd: OwnedFd,
}

impl Signal {
    fn new(count: u32) -> Self {
        Self { fd: eventfd(count, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd") }
    }

    /// The same file description, as one gets it over a socket.
    fn duplicate(&self) -> OwnedFd {
        self.fd.as_fd().try_clone_to_owned().expect("a duplicate")
    }

    fn raise(&self) {
        rustix::io::write(&self.fd, &1_u64.to_ne_bytes()).expect("a signal");
    }

    fn read(&self) -> u64 {
        let mut count = [0; 8];
        rustix::io::read(&self.fd, &mut count).expect("a count");
        u64::from_ne_bytes(count)
    }
}

fn whole(completion: Completion) -> Completion {
    if let Err(error) = &completion.result {
        panic!("{:?} failed: {error}", completion.tag);
    }
    completion
}

/// Bytes without a pattern (xorshift64).
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
