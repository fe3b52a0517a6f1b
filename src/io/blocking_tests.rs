//! The conformance suite on files, and the faults that a real kernel can be made to show.

use super::*;
use crate::io::conformance::{Subject, run_all};
use crate::io::test_volumes::{self, KINDS, Kind};
use crate::io::{PoolShape, Slot, SlotPool};

fn conforms(kind: Kind) {
    run_all(|content, _pool, max_ops| {
        let (volume, file) = test_volumes::volume(kind, content);
        let engine = Blocking::new(volume, max_ops).unwrap();
        Subject { engine, contents: Box::new(move || test_volumes::contents(&file)) }
    });
}

#[test]
fn conforms_on_memory() {
    conforms(Kind::Memory);
}

#[test]
fn conforms_on_disk() {
    conforms(Kind::Disk);
}

#[test]
fn conforms_on_disk_direct() {
    conforms(Kind::DiskDirect);
}

fn slot(fill: u8) -> Slot {
    let mut slot = SlotPool::new(PoolShape::default()).unwrap().take(8192).unwrap();
    slot.bytes_mut(8192).fill(fill);
    slot
}

fn run(volume: &Arc<OwnedFd>, op: Op) -> Completion {
    let mut engine = Blocking::new(Arc::clone(volume), 1).unwrap();
    engine.start(Tag(0), op);
    engine.submit(Wait::ForEvent).unwrap();
    engine.reap().expect("the operation ends in start")
}

fn write(offset_bytes: u64) -> Op {
    Op::Write { slot: slot(9), offset_bytes, len_bytes: 8192, durability: Durability::Volatile }
}

fn errno_of(completion: Completion) -> Option<i32> {
    completion.result.unwrap_err().raw_os_error()
}

#[test]
fn goes_on_with_another_open_file_of_the_volume() {
    let (first, first_file) = test_volumes::volume(Kind::Memory, &[5; 8192]);
    let (second, second_file) = test_volumes::volume(Kind::Memory, &[6; 8192]);
    let mut engine = Blocking::new(first, 1).unwrap();
    engine.set_volume(second).unwrap();
    engine.start(Tag(0), write(0));
    engine.reap().expect("the operation ends in start").result.unwrap();
    assert_eq!(test_volumes::contents(&first_file), [5; 8192]);
    assert_eq!(test_volumes::contents(&second_file), [9; 8192]);
}

#[test]
fn a_truncated_file_is_an_error_never_zeroes() {
    for kind in KINDS {
        let (volume, file) = test_volumes::volume(kind, &[5; 8192]);
        // In the middle of a block, on one, and down to nothing.
        for len_bytes in [4096 + 300, 4096, 0] {
            file.set_len(len_bytes).unwrap();
            let completion = run(&volume, Op::Read { slot: slot(1), offset_bytes: 0, len_bytes: 8192 });
            assert_eq!(completion.result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "{kind:?}");
            assert!(completion.slot.is_some());
        }
    }
}

#[test]
fn errors_of_the_kernel_come_through() {
    let (_, file) = test_volumes::volume(Kind::Disk, &[5; 8192]);
    let read_only = test_volumes::read_only(&file);
    assert_eq!(errno_of(run(&read_only, write(0))), Some(libc::EBADF));
    let discard = Op::Discard { offset_bytes: 0, len_bytes: 4096 };
    assert_eq!(errno_of(run(&read_only, discard)), Some(libc::EBADF));
    assert_eq!(errno_of(run(&test_volumes::always_full(), write(0))), Some(libc::ENOSPC));
    assert_eq!(errno_of(run(&test_volumes::always_full(), Op::Sync)), Some(libc::EINVAL));
    let fixed = test_volumes::fixed_size(16 << 10);
    run(&fixed, write(8192)).result.unwrap();
    assert!(run(&fixed, write(12 << 10)).result.is_err());
    assert!(run(&fixed, write(16 << 10)).result.is_err());
}

#[test]
fn a_write_that_is_cut_short_goes_on_and_then_fails() {
    test_volumes::with_file_size_limit(|volume, limit_bytes| {
        assert_eq!(errno_of(run(&volume, write(limit_bytes - 4096))), Some(libc::EFBIG));
        let mut end = [0; 8192];
        assert_eq!(
            rustix::io::pread(&volume, &mut end, limit_bytes - 4096),
            Ok(4096),
            "the first half is there"
        );
        assert_eq!(end[..4096], [9; 4096]);
        run(&volume, write(limit_bytes - 8192)).result.unwrap();
    });
}
