//! The conformance suite on every set-up and kind of file, the faults that a real kernel can be made to show,
//! and what happens where io_uring or parts of it are refused.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::pipe::{PipeFlags, pipe_with};

use super::*;
use crate::io::conformance::{Subject, run_all};
use crate::io::test_volumes::{self, KINDS, Kind};
use crate::io::{PoolShape, Slot};

#[path = "denied.rs"]
#[expect(unsafe_code, reason = "takes rights away from the calling thread")]
mod denied;

fn conforms(kind: Kind, setup: &Setup) {
    run_all(|content, pool, max_ops| {
        let (volume, file) = test_volumes::volume(kind, content);
        let engine = Uring::with_setup(volume, pool, max_ops, setup).unwrap();
        Subject { engine, contents: Box::new(move || test_volumes::contents(&file)) }
    });
}

#[test]
fn conforms_on_memory() {
    conforms(Kind::Memory, &Setup::default());
}

#[test]
fn conforms_on_disk() {
    conforms(Kind::Disk, &Setup::default());
}

#[test]
fn conforms_on_disk_direct() {
    conforms(Kind::DiskDirect, &Setup::default());
}

#[test]
fn conforms_with_cooperative_task_work() {
    let setup = Setup { task_work: &[TaskWork::Cooperative], ..Setup::default() };
    conforms(Kind::DiskDirect, &setup);
}

#[test]
fn conforms_with_interrupting_task_work() {
    let setup = Setup { task_work: &[TaskWork::Interrupting], ..Setup::default() };
    conforms(Kind::DiskDirect, &setup);
}

#[test]
fn conforms_without_registration() {
    let setup = Setup { register_volume: false, register_slots: false, ..Setup::default() };
    conforms(Kind::DiskDirect, &setup);
}

#[test]
fn conforms_without_multishot_polls() {
    for task_work in [&[TaskWork::Deferred], &[TaskWork::Interrupting]] {
        conforms(Kind::Memory, &Setup { task_work, multishot_poll: false, ..Setup::default() });
    }
}

#[test]
fn conforms_with_a_tiny_submission_queue() {
    for kind in KINDS {
        conforms(kind, &Setup { submission_entries: Some(2), ..Setup::default() });
    }
}

#[test]
fn takes_the_best_set_up_that_the_kernel_has() {
    let (volume, _) = test_volumes::volume(Kind::Memory, &[]);
    let pool = SlotPool::new(PoolShape::default()).unwrap();
    let best = Uring::new(Arc::clone(&volume), &pool, 8).unwrap();
    let setup = Setup { task_work: &[TaskWork::Interrupting], ..Setup::default() };
    let plain = Uring::with_setup(volume, &pool, 8, &setup).unwrap();
    assert_eq!(plain.parts.task_work, TaskWork::Interrupting);
    let release = rustix::system::uname();
    let release = release.release().to_str().unwrap();
    let (major, minor) = release.split_once('.').unwrap();
    let minor = minor.split(|c: char| !c.is_ascii_digit()).next().unwrap();
    let expected = match (major.parse::<u32>().unwrap(), minor.parse::<u32>().unwrap()) {
        version if version >= (6, 1) => TaskWork::Deferred,
        version if version >= (5, 19) => TaskWork::Cooperative,
        _ => TaskWork::Interrupting,
    };
    assert_eq!(best.parts.task_work, expected, "on {release}");
    assert!(best.parts.multishot_poll && best.parts.registered.is_some());
    assert_eq!(best.parts.volume_flags, squeue::Flags::FIXED_FILE);
}

/// One engine with one slot's worth of operations at a time.
struct Rig {
    engine: Uring,
    pool: SlotPool,
}

impl Rig {
    fn new(volume: Arc<OwnedFd>, setup: &Setup) -> Self {
        let pool = SlotPool::new(PoolShape::default()).unwrap();
        Self { engine: Uring::with_setup(volume, &pool, 8, setup).unwrap(), pool }
    }

    fn slot(&mut self, fill: u8) -> Slot {
        let mut slot = self.pool.take(8192).unwrap();
        slot.bytes_mut(8192).fill(fill);
        slot
    }

    fn read(&mut self) -> Op {
        Op::Read { slot: self.slot(1), offset_bytes: 0, len_bytes: 8192 }
    }

    fn write(&mut self, offset_bytes: u64) -> Op {
        Op::Write { slot: self.slot(9), offset_bytes, len_bytes: 8192, durability: Durability::Volatile }
    }

    fn run(&mut self, op: Op) -> Completion {
        self.engine.start(Tag(0), op);
        loop {
            self.engine.submit(Wait::ForEvent).unwrap();
            if let Some(completion) = self.engine.reap() {
                return completion;
            }
        }
    }
}

#[test]
fn files_in_memory_are_left_to_others_and_devices_are_not() {
    let file = rustix::fs::memfd_create("volume", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    assert!(!works_by_itself_on(&file));
    // Its node lies on a tmpfs.
    let device: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    assert!(works_by_itself_on(&device));
}

fn errno_of(completion: Completion) -> Option<i32> {
    completion.result.unwrap_err().raw_os_error()
}

#[test]
fn a_truncated_file_is_an_error_never_zeroes() {
    for kind in KINDS {
        let (volume, file) = test_volumes::volume(kind, &[5; 8192]);
        let mut rig = Rig::new(volume, &Setup::default());
        // In the middle of a block, on one, and down to nothing.
        for len_bytes in [4096 + 300, 4096, 0] {
            file.set_len(len_bytes).unwrap();
            let read = rig.read();
            let completion = rig.run(read);
            assert_eq!(completion.result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "{kind:?}");
            assert!(completion.slot.is_some());
        }
    }
}

#[test]
fn goes_on_with_another_open_file_of_the_volume() {
    for register_volume in [true, false] {
        let (first, first_file) = test_volumes::volume(Kind::Memory, &[5; 16 << 10]);
        let (second, second_file) = test_volumes::volume(Kind::Memory, &[6; 16 << 10]);
        let mut rig = Rig::new(first, &Setup { register_volume, ..Setup::default() });
        rig.engine.set_volume(Arc::clone(&second)).unwrap();
        let write = rig.write(4096);
        rig.run(write).result.unwrap();
        assert_eq!(test_volumes::contents(&first_file), [5; 16 << 10]);
        assert_eq!(test_volumes::contents(&second_file)[4096..12 << 10], [9; 8192]);
        rig.engine.set_volume(test_volumes::read_only(&second_file)).unwrap();
        let write = rig.write(0);
        assert_eq!(errno_of(rig.run(write)), Some(libc::EBADF));
    }
}

#[test]
fn errors_of_the_kernel_come_through() {
    let (_, file) = test_volumes::volume(Kind::Disk, &[5; 8192]);
    let mut read_only = Rig::new(test_volumes::read_only(&file), &Setup::default());
    let write = read_only.write(0);
    assert_eq!(errno_of(read_only.run(write)), Some(libc::EBADF));
    assert_eq!(errno_of(read_only.run(Op::Discard { offset_bytes: 0, len_bytes: 4096 })), Some(libc::EBADF));
    let mut full = Rig::new(test_volumes::always_full(), &Setup::default());
    let write = full.write(0);
    assert_eq!(errno_of(full.run(write)), Some(libc::ENOSPC));
    assert_eq!(errno_of(full.run(Op::Sync)), Some(libc::EINVAL));
    let mut fixed = Rig::new(test_volumes::fixed_size(16 << 10), &Setup::default());
    for (offset_bytes, fits) in [(8192, true), (12 << 10, false), (16 << 10, false)] {
        let write = fixed.write(offset_bytes);
        assert_eq!(fixed.run(write).result.is_ok(), fits, "at {offset_bytes}");
    }
}

#[test]
fn a_write_that_is_cut_short_goes_on_and_then_fails() {
    test_volumes::with_file_size_limit(|volume, limit_bytes| {
        let mut rig = Rig::new(Arc::clone(&volume), &Setup::default());
        let write = rig.write(limit_bytes - 4096);
        assert_eq!(errno_of(rig.run(write)), Some(libc::EFBIG));
        let mut end = [0; 8192];
        assert_eq!(
            rustix::io::pread(&volume, &mut end, limit_bytes - 4096),
            Ok(4096),
            "the first half is there"
        );
        assert_eq!(end[..4096], [9; 4096]);
        let write = rig.write(limit_bytes - 8192);
        rig.run(write).result.unwrap();
    });
}

/// A pipe: storage that takes its time and moves as little as it likes.
fn pipe() -> (OwnedFd, OwnedFd) {
    pipe_with(PipeFlags::CLOEXEC).unwrap()
}

const SETUPS: [fn() -> Setup; 3] = [
    Setup::default,
    || Setup { task_work: &[TaskWork::Interrupting], submission_entries: Some(1), ..Setup::default() },
    || Setup { register_slots: false, register_volume: false, ..Setup::default() },
];

#[test]
fn short_reads_are_put_together() {
    for setup in SETUPS {
        let (reader, writer) = pipe();
        let mut rig = Rig::new(Arc::new(reader), &setup());
        let content: Vec<u8> = (0..8192).map(|i| (i / 32) as u8).collect();
        let read = rig.read();
        let completion = std::thread::scope(|scope| {
            scope.spawn(|| {
                for piece in content.chunks(1024) {
                    std::thread::sleep(Duration::from_millis(3));
                    assert_eq!(rustix::io::write(&writer, piece), Ok(1024));
                }
            });
            rig.run(read)
        });
        completion.result.unwrap();
        assert!(completion.slot.unwrap().bytes(8192) == content);
    }
}

#[test]
fn short_writes_are_put_together() {
    for setup in SETUPS {
        let (reader, writer) = pipe();
        rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
        let mut rig = Rig::new(Arc::new(writer), &setup());
        let mut slot = rig.slot(0);
        let content: Vec<u8> = (0..8192).map(|i| (i / 32) as u8).collect();
        slot.bytes_mut(8192).copy_from_slice(&content);
        let op = Op::Write { slot, offset_bytes: 0, len_bytes: 8192, durability: Durability::Volatile };
        let (completion, arrived) = std::thread::scope(|scope| {
            let drain = scope.spawn(|| {
                let (mut arrived, mut piece) = (Vec::new(), [0; 4096]);
                while arrived.len() < 8192 {
                    std::thread::sleep(Duration::from_millis(5));
                    if let Ok(moved) = rustix::io::read(&reader, &mut piece) {
                        arrived.extend_from_slice(&piece[..moved]);
                    }
                }
                arrived
            });
            (rig.run(op), drain.join().unwrap())
        });
        completion.result.unwrap();
        assert!(arrived == content);
    }
}

#[test]
fn a_refusal_without_end_ends_after_the_last_pause() {
    for setup in SETUPS {
        let (volume, _) = test_volumes::volume(Kind::Memory, &[3; 8192]);
        let mut rig = Rig::new(volume, &setup());
        rig.engine.injected = [Errno::AGAIN; PAUSES.len() + 1].into();
        let (read, started) = (rig.read(), Instant::now());
        assert_eq!(errno_of(rig.run(read)), Some(libc::EAGAIN));
        let pauses: Duration = PAUSES.iter().sum();
        assert!(started.elapsed() >= pauses, "{:?} is less than the pauses", started.elapsed());
    }
}

#[test]
fn a_refusal_that_ends_is_not_seen() {
    for setup in SETUPS {
        let (volume, file) = test_volumes::volume(Kind::Disk, &[3; 8192]);
        let mut rig = Rig::new(volume, &setup());
        rig.engine.injected = [Errno::INTR, Errno::AGAIN, Errno::NOMEM, Errno::BUSY].into();
        let read = rig.read();
        let completion = rig.run(read);
        completion.result.unwrap();
        assert!(completion.slot.unwrap().bytes(8192) == [3; 8192]);
        // Many at once, more than a small submission queue has room for.
        rig.engine.injected = [Errno::AGAIN; 20].into();
        for tag in 0..8 {
            let write = rig.write(0);
            rig.engine.start(Tag(tag), write);
        }
        let mut ended = 0;
        while ended < 8 {
            rig.engine.submit(Wait::ForEvent).unwrap();
            while let Some(completion) = rig.engine.reap() {
                completion.result.unwrap();
                ended += 1;
            }
        }
        assert!(rig.engine.injected.is_empty() && test_volumes::contents(&file) == [9; 8192]);
        rig.engine.injected = [Errno::NOMEM].into();
        assert_eq!(errno_of(rig.run(Op::Sync)), Some(libc::ENOMEM), "it may report a lost write");
    }
}

#[test]
fn a_drop_gives_up_on_storage_that_hangs_and_leaks_the_slot() {
    let (reader, writer) = pipe();
    let setup = Setup { drain_patience_seconds: 1, ..Setup::default() };
    let mut rig = Rig::new(Arc::new(reader), &setup);
    let read = rig.read();
    rig.engine.start(Tag(0), read);
    rig.engine.submit(Wait::No).unwrap();
    let (Rig { engine, pool }, started) = (rig, Instant::now());
    let mapping = Arc::downgrade(&pool.mapping());
    drop(engine);
    assert!((1..10).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
    drop(pool);
    assert!(mapping.upgrade().is_some(), "the kernel may still write there");
    drop(writer);
}

#[test]
fn a_drop_waits_for_storage_that_is_slow() {
    let (reader, writer) = pipe();
    let mut rig = Rig::new(Arc::new(reader), &Setup { submission_entries: Some(1), ..Setup::default() });
    for tag in 0..4 {
        let slot = rig.slot(1);
        rig.engine.start(Tag(tag), Op::Read { slot, offset_bytes: 0, len_bytes: 512 });
    }
    rig.engine.submit(Wait::No).unwrap();
    let Rig { engine, pool } = rig;
    let mapping = Arc::downgrade(&pool.mapping());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..4 {
                std::thread::sleep(Duration::from_millis(400));
                rustix::io::write(&writer, &[7; 512]).unwrap();
            }
        });
        drop(engine);
    });
    drop(pool);
    assert!(mapping.upgrade().is_none(), "nothing was in flight any more");
}

#[test]
fn pending_pauses_do_not_hold_up_a_drop() {
    let (volume, _) = test_volumes::volume(Kind::Memory, &[3; 8192]);
    let mut rig = Rig::new(volume, &Setup::default());
    rig.engine.injected = [Errno::AGAIN; PAUSES.len() + 1].into();
    let read = rig.read();
    rig.engine.start(Tag(0), read);
    // Until the longest pause is under way.
    while rig.engine.injected.len() > 1 {
        rig.engine.submit(Wait::ForEvent).unwrap();
        assert!(rig.engine.reap().is_none());
    }
    rig.engine.submit(Wait::No).unwrap();
    assert!(rig.engine.backlog.is_empty() && rig.engine.in_flight_count == 1);
    let Rig { engine, pool } = rig;
    let mapping = Arc::downgrade(&pool.mapping());
    drop(engine);
    drop(pool);
    assert!(mapping.upgrade().is_none());
}

#[test]
fn a_flood_of_signals_between_two_turns_overflows_nothing() {
    for setup in SETUPS {
        let (volume, _) = test_volumes::volume(Kind::Memory, &[3; 8192]);
        let mut rig = Rig::new(volume, &setup());
        let signal = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        rig.engine.watch(Wake::Kick, Some(signal.as_fd().try_clone_to_owned().unwrap())).unwrap();
        for _ in 0..3 {
            for _ in 0..5000 {
                rustix::io::write(&signal, &1_u64.to_ne_bytes()).unwrap();
            }
            let read = rig.read();
            let completion = rig.run(read);
            completion.result.unwrap();
            rig.pool.put(completion.slot.unwrap());
        }
        // Still watched: one more signal ends a wait that has nothing else to end it.
        for _ in 0..3 {
            rig.engine.submit(Wait::No).unwrap();
            assert!(rig.engine.reap().is_none());
        }
        rustix::io::write(&signal, &1_u64.to_ne_bytes()).unwrap();
        rig.engine.submit(Wait::ForEvent).unwrap();
    }
}

#[test]
fn an_idle_turn_makes_no_system_call() {
    denied::on_a_thread(|| {
        let (volume, _) = test_volumes::volume(Kind::Memory, &[3; 8192]);
        let mut rig = Rig::new(volume, &Setup::default());
        let signal = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        rig.engine.watch(Wake::Kick, Some(signal)).unwrap();
        let read = rig.read();
        rig.run(read).result.unwrap();
        denied::deny_system_call(libc::SYS_io_uring_enter, libc::EOWNERDEAD);
        for _ in 0..3 {
            rig.engine.submit(Wait::No).unwrap();
            assert!(rig.engine.reap().is_none());
        }
        let error = rig.engine.submit(Wait::ForEvent).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EOWNERDEAD), "the denial works");
    });
}

#[test]
fn an_absent_or_forbidden_ring_is_told_apart_and_names_the_way_out() {
    for (errno, expected) in [
        (libc::ENOSYS, "no io_uring"),
        (libc::EPERM, "kernel.io_uring_disabled"),
        (libc::EACCES, "forbidden"),
        (libc::EMFILE, "for 8 operations"),
    ] {
        denied::on_a_thread(move || {
            let (volume, _) = test_volumes::volume(Kind::Memory, &[]);
            let pool = SlotPool::new(PoolShape::default()).unwrap();
            denied::deny_system_call(libc::SYS_io_uring_setup, errno);
            let error = Uring::new(volume, &pool, 8).err().expect("the ring is denied");
            let message = error.to_string();
            assert!(message.contains(expected) && message.contains("--engine blocking"), "{message}");
            let source = std::error::Error::source(&error).expect("the kernel's error");
            let source = source.downcast_ref::<io::Error>().expect("an I/O error");
            assert_eq!(source.raw_os_error(), Some(errno));
        });
    }
}

#[test]
fn refused_registrations_leave_a_working_engine() {
    denied::on_a_thread(|| {
        let (volume, _) = test_volumes::volume(Kind::DiskDirect, &[3; 8192]);
        denied::deny_system_call(libc::SYS_io_uring_register, libc::ENOMEM);
        let mut rig = Rig::new(volume, &Setup::default());
        assert!(rig.engine.parts.registered.is_none() && rig.engine.parts.volume_flags.is_empty());
        let read = rig.read();
        assert!(rig.run(read).slot.unwrap().bytes(8192) == [3; 8192]);
    });
}

#[test]
fn more_slots_than_the_locked_memory_limit_allows_are_not_registered() {
    denied::on_a_thread(|| {
        denied::drop_lock_capability();
        let (volume, _) = test_volumes::volume(Kind::DiskDirect, &[3; 8192]);
        let limit_bytes = denied::locked_memory_limit_bytes();
        let large_count = limit_bytes / super::super::slots::LARGE_SLOT_BYTES + 1;
        let mut pool = SlotPool::new(PoolShape { small_count: 0, large_count }).unwrap();
        let mut engine = Uring::new(volume, &pool, 8).unwrap();
        assert!(engine.parts.registered.is_none());
        let slot = pool.take(8192).unwrap();
        engine.start(Tag(0), Op::Read { slot, offset_bytes: 0, len_bytes: 8192 });
        engine.submit(Wait::ForEvent).unwrap();
        let completion = engine.reap().expect("a completion");
        completion.result.unwrap();
        assert!(completion.slot.unwrap().bytes(8192) == [3; 8192]);
    });
}

#[test]
fn events_survive_their_packing() {
    for event in [
        Event::Attempt(Tag(0)),
        Event::Attempt(Tag(u32::MAX)),
        Event::PauseOver(Tag(7)),
        Event::Poll { index: 1, generation: u32::MAX },
        Event::DrainTimer,
        Event::Ignored,
    ] {
        assert_eq!(Event::decode(event.encode()), event);
    }
}

#[test]
fn a_restricted_ring_refuses_what_the_engine_never_asks_for() {
    let (volume, _) = test_volumes::volume(Kind::Memory, &[]);
    let pool = SlotPool::new(PoolShape::default()).unwrap();
    for (restrict, answer) in [(false, 0), (true, -libc::EACCES)] {
        let setup = Setup { restrict, ..Setup::default() };
        let mut engine = Uring::with_setup(Arc::clone(&volume), &pool, 8, &setup).unwrap();
        assert_eq!(engine.is_restricted(), restrict, "Linux 5.10 is needed for these tests");
        // SAFETY: it points to nothing.
        assert!(unsafe { push(&mut engine.parts.ring, opcode::Nop::new().build(), Event::Ignored) });
        engine.enter(1, None).unwrap();
        assert_eq!(engine.next_completion().unwrap().result(), answer);
        let registered = engine.parts.ring.submitter().unregister_files();
        assert_eq!(registered.is_err(), restrict);
    }
}
