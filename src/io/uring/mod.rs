//! The engine for service: one io_uring for each queue thread.
//!
//! Storage, the guest's kicks and the control thread's commands all end the same wait. What is started between
//! two submits goes to the kernel in one system call, the same one that sleeps; when nothing is to be handed
//! over, none is made. After the set-up nothing here allocates or locks.
#![expect(unsafe_code, reason = "the kernel is given pointers into slots")]

mod setup;
mod watches;

use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use rustix::io::Errno;

use self::setup::{Setup, TaskWork};
use self::watches::Watches;
use super::dsync::keeps_dsync;
use super::slots::{Mapping, SlotPool};
use super::transfer::{Next, PAUSES, Progress, settle};
use super::{Completion, Durability, Engine, Op, Tag, Wait, Wake};

pub use self::setup::{UringError, works_by_itself_on};

/// Moves bytes with io_uring. It belongs to the thread that made it.
///
/// Dropping it waits for the operations that the kernel still works on, for as long as they make progress. The
/// slots of those that do not end within 30 seconds are leaked, with the memory of their pool.
pub struct Uring {
    parts: Parts,
    /// What the kernel and this engine know each operation by: its tag is the index.
    in_flight: Vec<Option<InFlight>>,
    in_flight_count: usize,
    /// Operations whose next step found no room in the submission queue, or came up while reaping.
    backlog: VecDeque<Tag>,
    watches: Watches,
    /// Refusals by the kernel in a row to take what was handed over.
    refusals: usize,
    drain_patience_seconds: u32,
    /// Durable writes are followed by a sync of their own, since the storage may lose their `RWF_DSYNC`.
    syncs_apart: bool,
    /// What the next attempts end with, whatever the kernel says: it hardly ever asks to be asked again.
    #[cfg(test)]
    injected: VecDeque<Errno>,
    /// Keeps the volume open, for the case that it is not registered.
    volume: Arc<OwnedFd>,
    /// The kernel lets only the thread that made the ring use it.
    _not_send: PhantomData<*const ()>,
}

/// The ring and what it was found able to do. The order matters: `ring` is dropped before `registered`.
struct Parts {
    ring: IoUring,
    /// For the tests: which set-up it is.
    #[cfg_attr(not(test), expect(dead_code))]
    task_work: TaskWork,
    multishot_poll: bool,
    /// The kernel refuses what the engine never asks for.
    restricted: bool,
    volume: types::Fd,
    volume_flags: squeue::Flags,
    /// The memory whose slots may be used by `READ_FIXED` and `WRITE_FIXED`.
    registered: Option<Arc<Mapping>>,
}

impl Parts {
    /// One system call: submits, and waits for `want` completions, no longer than `limit`.
    fn wait(&self, want: usize, limit: Option<Duration>) -> io::Result<usize> {
        let Some(limit) = limit else { return self.ring.submit_and_wait(want) };
        if self.ring.params().is_feature_ext_arg() {
            let limit = types::Timespec::from(limit);
            return self.ring.submitter().submit_with_args(want, &types::SubmitArgs::new().timespec(&limit));
        }
        // Before Linux 5.11 a wait has no limit.
        let submitted = self.ring.submit()?;
        thread::sleep(limit.min(SHORT_SLEEP));
        Ok(submitted)
    }
}

/// An operation between start and completion. The slot inside is the kernel's.
struct InFlight {
    op: Op,
    progress: Progress,
    /// The write is done, and is made durable now.
    syncing: bool,
    /// Index into [`PAUSES`] of the pause to make before the next attempt.
    pause: usize,
}

/// [`PAUSES`] in the kernel's terms. Static, because the kernel reads them at an unknown time.
static TIMEOUTS: [types::Timespec; PAUSES.len()] = {
    let mut timeouts = [types::Timespec::new(); PAUSES.len()];
    let mut i = 0;
    while i < PAUSES.len() {
        timeouts[i] = types::Timespec::new().sec(PAUSES[i].as_secs()).nsec(PAUSES[i].subsec_nanos());
        i += 1;
    }
    timeouts
};
/// How long to sleep where nothing but the time can end it.
const SHORT_SLEEP: Duration = Duration::from_millis(1);
static ONE_SECOND: types::Timespec = types::Timespec::new().sec(1);

impl Uring {
    /// An engine on `volume` for up to `max_ops` operations between start and reaping. To be called on the
    /// thread that will use it. The slots of `pool` are registered with the kernel, as is the volume; where
    /// the kernel refuses either, the engine works without (and logs it).
    ///
    /// # Errors
    /// When the kernel has no io_uring, or forbids it.
    pub fn new(volume: Arc<OwnedFd>, pool: &SlotPool, max_ops: u32) -> Result<Self, UringError> {
        Self::with_setup(volume, pool, max_ops, &Setup::default())
    }

    /// Whether the kernel refuses every operation but those of this engine, should somebody else get at the ring.
    pub fn is_restricted(&self) -> bool {
        self.parts.restricted
    }

    fn with_setup(
        volume: Arc<OwnedFd>,
        pool: &SlotPool,
        max_ops: u32,
        setup: &Setup,
    ) -> Result<Self, UringError> {
        let parts = setup.build(&volume, pool, max_ops)?;
        let watches = Watches::new(parts.multishot_poll);
        Ok(Self {
            parts,
            in_flight: (0..max_ops).map(|_| None).collect(),
            in_flight_count: 0,
            backlog: VecDeque::with_capacity(max_ops as usize),
            watches: watches.map_err(|source| UringError::Failed { max_ops, source })?,
            refusals: 0,
            drain_patience_seconds: setup.drain_patience_seconds,
            syncs_apart: !keeps_dsync(&volume),
            #[cfg(test)]
            injected: VecDeque::new(),
            volume,
            _not_send: PhantomData,
        })
    }
}

impl Engine for Uring {
    fn start(&mut self, tag: Tag, op: Op) {
        op.assert_fits();
        let max_ops = self.in_flight.len();
        let entry = self.in_flight.get_mut(tag.0 as usize);
        let entry = entry.unwrap_or_else(|| panic!("{tag:?} is not below the {max_ops} operations agreed"));
        assert!(entry.is_none(), "{tag:?} is in use");
        *entry = Some(InFlight { op, progress: Progress::default(), syncing: false, pause: 0 });
        self.in_flight_count += 1;
        if self.push_step(tag) {
            return;
        }
        // The queue is full: hand over what it holds. A refusal will be met again, and reported, by `submit`.
        let _ = self.parts.ring.submit();
        if !self.push_step(tag) {
            self.backlog.push_back(tag);
        }
    }

    fn submit(&mut self, wait: Wait) -> io::Result<()> {
        while !self.push_waiting()? {
            let before = self.parts.ring.submission().len();
            self.enter(0, None)?;
            if self.parts.ring.submission().len() == before {
                // No room until completions are reaped.
                return Ok(());
            }
        }
        let queue = self.parts.ring.submission();
        let (queued, kernel_calls) = (!queue.is_empty(), queue.taskrun() || queue.cq_overflow());
        drop(queue);
        let sleep = wait
            .sleeps()
            .filter(|_| self.parts.ring.completion().is_empty() && !self.watches.take_signalled());
        let Some(limit) = sleep else {
            return if queued || kernel_calls { self.enter(0, None) } else { Ok(()) };
        };
        let has_end = limit.is_some() || self.watches.armed() || self.in_flight_count > 0;
        assert!(has_end, "nothing could ever end this wait");
        self.enter(1, limit)
    }

    fn reap(&mut self) -> Option<Completion> {
        loop {
            let cqe = self.next_completion()?;
            match Event::decode(cqe.user_data()) {
                Event::Attempt(tag) => {
                    if let Some(completion) = self.attempt_ended(tag, cqe.result()) {
                        return Some(completion);
                    }
                }
                Event::PauseOver(tag) => self.backlog.push_back(tag),
                Event::Poll { index, generation } => self.watches.reported(index, generation, &cqe),
                Event::DrainTimer | Event::Ignored => {}
            }
        }
    }

    fn watch(&mut self, wake: Wake, fd: Option<OwnedFd>) -> io::Result<()> {
        self.watches.set(wake, fd)?;
        self.submit(Wait::No)
    }

    fn set_volume(&mut self, volume: Arc<OwnedFd>) -> io::Result<()> {
        assert_eq!(self.in_flight_count, 0, "the kernel still works on the old file");
        if self.parts.volume_flags.is_empty() {
            self.parts.volume = types::Fd(volume.as_raw_fd());
        } else {
            self.parts.ring.submitter().register_files_update(0, &[volume.as_raw_fd()])?;
        }
        self.syncs_apart = !keeps_dsync(&volume);
        self.volume = volume;
        Ok(())
    }
}

/// Operations, step by step.
impl Uring {
    /// Puts the next step of an operation into the submission queue, if there is room: the pause that it has
    /// to make, or else its next attempt.
    fn push_step(&mut self, tag: Tag) -> bool {
        let Parts { ring, volume, volume_flags, registered, .. } = &mut self.parts;
        let in_flight =
            self.in_flight[tag.0 as usize].as_mut().expect("only operations in flight have steps");
        let (entry, event) = if PAUSES[in_flight.pause].is_zero() {
            let entry =
                in_flight.attempt(*volume, registered.as_deref(), self.syncs_apart).flags(*volume_flags);
            (entry, Event::Attempt(tag))
        } else {
            (opcode::Timeout::new(&TIMEOUTS[in_flight.pause]).build(), Event::PauseOver(tag))
        };
        // SAFETY: the entry points to nothing, to a static, or into a slot that `in_flight` owns until the
        // completion of this entry was seen; when the engine is dropped before, the slot is leaked. The length
        // was checked against the slot in `start`.
        let pushed = unsafe { push(ring, entry, event) };
        if pushed {
            in_flight.pause = 0;
        }
        pushed
    }

    fn next_completion(&mut self) -> Option<cqueue::Entry> {
        self.parts.ring.completion().next()
    }

    /// An attempt at an operation has ended. Says whether the operation has.
    fn attempt_ended(&mut self, tag: Tag, result: i32) -> Option<Completion> {
        let result = match usize::try_from(result) {
            Ok(moved_bytes) => Ok(moved_bytes),
            Err(_) => Err(Errno::from_raw_os_error(-result)),
        };
        #[cfg(test)]
        let result = self.injected.pop_front().map_or(result, Err);
        let entry = &mut self.in_flight[tag.0 as usize];
        let in_flight = entry.as_mut().expect("the kernel completes only what it was given, once");
        let step = if in_flight.syncing { &Op::Sync } else { &in_flight.op };
        match settle(step, &mut in_flight.progress, result) {
            Next::Finish(Ok(())) if self.syncs_apart && in_flight.begins_sync() => {
                self.backlog.push_back(tag);
                None
            }
            Next::Retry { pause } => {
                in_flight.pause = pause;
                self.backlog.push_back(tag);
                None
            }
            Next::Finish(result) => {
                let InFlight { op, syncing, .. } = entry.take().expect("looked at just now");
                self.in_flight_count -= 1;
                let unsynced = syncing && result.is_err();
                Some(Completion { tag, slot: op.into_slot(), result, unsynced })
            }
        }
    }

    /// Puts everything that waits for room into the submission queue. Says whether there was room for all.
    fn push_waiting(&mut self) -> io::Result<bool> {
        if !self.watches.push(&mut self.parts.ring)? {
            return Ok(false);
        }
        while let Some(&tag) = self.backlog.front() {
            if !self.push_step(tag) {
                return Ok(false);
            }
            self.backlog.pop_front();
        }
        Ok(true)
    }

    /// Enters the kernel: hands over the submission queue, lets completions be posted, and waits until at least
    /// `want` of them are there, no longer than `limit`. May return early.
    fn enter(&mut self, want: usize, limit: Option<Duration>) -> io::Result<()> {
        let error = loop {
            let before = self.parts.ring.submission().len();
            if let Err(error) = self.parts.wait(want, limit) {
                break error;
            }
            let after = self.parts.ring.submission().len();
            // The kernel may stop, without waiting, after an entry that it finds invalid.
            if after == 0 || after == before {
                self.refusals = 0;
                return Ok(());
            }
        };
        match Errno::from_io_error(&error) {
            Some(Errno::INTR | Errno::TIME) => Ok(()),
            // Out of memory for requests, or the completion queue has overflowed: what was handed over is
            // still in the submission queue. Completions make room; without any, give the kernel some time.
            Some(Errno::AGAIN | Errno::BUSY) if !self.parts.ring.completion().is_empty() => Ok(()),
            Some(Errno::AGAIN | Errno::BUSY) if self.refusals < PAUSES.len() => {
                thread::sleep(PAUSES[self.refusals]);
                self.refusals += 1;
                Ok(())
            }
            _ => Err(error),
        }
    }
}

impl InFlight {
    /// Goes on to the sync of a durable write, if this is one that has just been done.
    fn begins_sync(&mut self) -> bool {
        let begins = !self.syncing && matches!(self.op, Op::Write { durability: Durability::Durable, .. });
        if begins {
            (self.syncing, self.progress) = (true, Progress::default());
        }
        begins
    }

    /// The kernel's form of what is left of the operation.
    fn attempt(
        &mut self,
        volume: types::Fd,
        registered: Option<&Mapping>,
        syncs_apart: bool,
    ) -> squeue::Entry {
        if self.syncing {
            return opcode::Fsync::new(volume).flags(types::FsyncFlags::DATASYNC).build();
        }
        let moved_bytes = self.progress.moved_bytes;
        match &mut self.op {
            Op::Read { slot, offset_bytes, len_bytes } => {
                let (len_bytes, offset_bytes) =
                    (*len_bytes - moved_bytes, *offset_bytes + u64::from(moved_bytes));
                let start = slot.as_mut_ptr().wrapping_add(moved_bytes as usize);
                if registered.is_some_and(|mapping| mapping.contains(start, len_bytes as usize)) {
                    opcode::ReadFixed::new(volume, start, len_bytes, 0).offset(offset_bytes).build()
                } else {
                    opcode::Read::new(volume, start, len_bytes).offset(offset_bytes).build()
                }
            }
            Op::Write { slot, offset_bytes, len_bytes, durability } => {
                let (len_bytes, offset_bytes) =
                    (*len_bytes - moved_bytes, *offset_bytes + u64::from(moved_bytes));
                let start = slot.as_ptr().wrapping_add(moved_bytes as usize);
                let flags = match durability {
                    Durability::Durable if !syncs_apart => libc::RWF_DSYNC,
                    Durability::Durable | Durability::Volatile => 0,
                };
                if registered.is_some_and(|mapping| mapping.contains(start, len_bytes as usize)) {
                    let write = opcode::WriteFixed::new(volume, start, len_bytes, 0);
                    write.offset(offset_bytes).rw_flags(flags).build()
                } else {
                    opcode::Write::new(volume, start, len_bytes).offset(offset_bytes).rw_flags(flags).build()
                }
            }
            Op::Sync => opcode::Fsync::new(volume).flags(types::FsyncFlags::DATASYNC).build(),
            Op::Discard { offset_bytes, len_bytes } => opcode::Fallocate::new(volume, *len_bytes)
                .offset(*offset_bytes)
                .mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
                .build(),
        }
    }
}

/// Puts an entry into the submission queue, if there is room.
///
/// # Safety
/// What the entry points to must stay as the kernel needs it until the completion named `event`.
unsafe fn push(ring: &mut IoUring, entry: squeue::Entry, event: Event) -> bool {
    let entry = entry.user_data(event.encode());
    // SAFETY: promised by the caller.
    unsafe { ring.submission().push(&entry) }.is_ok()
}

/// What a completion is about, packed into the 64 bits that the kernel hands back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Attempt(Tag),
    PauseOver(Tag),
    Poll { index: usize, generation: u32 },
    DrainTimer,
    Ignored,
}

impl Event {
    fn encode(self) -> u64 {
        let pack = |kind: u64, detail: u64, number: u32| kind << 56 | detail << 32 | u64::from(number);
        match self {
            Self::Attempt(tag) => pack(0, 0, tag.0),
            Self::PauseOver(tag) => pack(1, 0, tag.0),
            Self::Poll { index, generation } => pack(2, index as u64, generation),
            Self::DrainTimer => pack(3, 0, 0),
            Self::Ignored => pack(4, 0, 0),
        }
    }

    fn decode(user_data: u64) -> Self {
        let number = user_data as u32;
        match user_data >> 56 {
            0 => Self::Attempt(Tag(number)),
            1 => Self::PauseOver(Tag(number)),
            2 => Self::Poll { index: (user_data >> 32 & 0xff) as usize, generation: number },
            3 => Self::DrainTimer,
            _ => Self::Ignored,
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // What waits in the backlog is not with the kernel.
        while let Some(tag) = self.backlog.pop_front() {
            self.forget_operation(tag);
        }
        self.drain();
        if self.in_flight_count > 0 {
            tracing::error!(
                operations = self.in_flight_count,
                "the storage does not finish its operations: their buffers are abandoned"
            );
        }
        for in_flight in self.in_flight.drain(..).flatten() {
            // The kernel may write to this slot at any time, even after the ring is closed.
            std::mem::forget(in_flight.op);
        }
    }
}

/// The end.
impl Uring {
    /// Waits until the kernel has let go of every operation, or until too many seconds in a row went by
    /// without any completion.
    fn drain(&mut self) {
        let (mut timer_set, mut idle_seconds) = (false, 0);
        let mut left_at_last_tick = self.in_flight_count;
        while self.in_flight_count > 0 && idle_seconds < self.drain_patience_seconds {
            timer_set = timer_set || self.push_timer();
            // Without a timer this could sleep for ever.
            if self.enter(usize::from(timer_set), None).is_err() || (!timer_set && !self.push_timer()) {
                return;
            }
            timer_set = true;
            while let Some(cqe) = self.next_completion() {
                match Event::decode(cqe.user_data()) {
                    Event::Attempt(tag) | Event::PauseOver(tag) => self.forget_operation(tag),
                    Event::DrainTimer => {
                        timer_set = false;
                        let idle = self.in_flight_count == left_at_last_tick;
                        idle_seconds = if idle { idle_seconds + 1 } else { 0 };
                        left_at_last_tick = self.in_flight_count;
                    }
                    Event::Poll { .. } | Event::Ignored => {}
                }
            }
        }
    }

    fn forget_operation(&mut self, tag: Tag) {
        self.in_flight[tag.0 as usize] = None;
        self.in_flight_count -= 1;
    }

    fn push_timer(&mut self) -> bool {
        // SAFETY: the entry points to a static.
        unsafe { push(&mut self.parts.ring, opcode::Timeout::new(&ONE_SECOND).build(), Event::DrainTimer) }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
