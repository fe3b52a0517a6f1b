//! The conformance suite with and without faults of the system calls, and each fault of the storage.

use super::*;
use crate::io::conformance::{Subject, run_all};
use crate::io::{PoolShape, Slot, SlotPool};

fn conforms(faults: &Faults) {
    run_all(|content, _pool, max_ops| {
        let disk = SimDisk::new(content.to_vec(), faults.clone());
        let engine = Sim::new(disk.clone(), max_ops).unwrap();
        Subject { engine, contents: Box::new(move || disk.live()) }
    });
}

#[test]
fn conforms_without_faults() {
    conforms(&Faults::default());
}

#[test]
fn conforms_with_short_interrupted_delayed_and_reordered_calls() {
    for seed in 0..3 {
        let faults = Faults {
            seed,
            interrupt_one_in: 5,
            short_one_in: 3,
            delay_turns: 5,
            volatile_cache: true,
            ..Faults::default()
        };
        conforms(&faults);
    }
}

/// One engine on one disk, one operation at a time.
struct Rig {
    disk: SimDisk,
    engine: Sim,
}

impl Rig {
    fn new(pieces: usize, faults: Faults) -> Self {
        let disk = SimDisk::new(vec![0; pieces * PIECE_BYTES], faults);
        let engine = Sim::new(disk.clone(), 8).unwrap();
        Self { disk, engine }
    }

    fn run(&mut self, op: Op) -> io::Result<()> {
        self.engine.start(Tag(0), op);
        self.engine.submit(Wait::ForEvent).unwrap();
        self.engine.reap().expect("a wait ends with a completion").result
    }

    fn write(&mut self, piece: usize, fill: u8, pieces: usize, durability: Durability) -> io::Result<()> {
        self.run(write(piece, fill, pieces, durability))
    }
}

fn slot(fill: u8) -> Slot {
    let mut slot = SlotPool::new(PoolShape::default()).unwrap().take(16 << 10).unwrap();
    slot.bytes_mut(16 << 10).fill(fill);
    slot
}

fn write(piece: usize, fill: u8, pieces: usize, durability: Durability) -> Op {
    let (offset_bytes, len_bytes) = ((piece * PIECE_BYTES) as u64, (pieces * PIECE_BYTES) as u32);
    Op::Write { slot: slot(fill), offset_bytes, len_bytes, durability }
}

fn first_bytes(image: &[u8]) -> Vec<u8> {
    for piece in image.chunks(PIECE_BYTES) {
        assert!(piece.iter().all(|&byte| byte == piece[0]), "a piece is never torn");
    }
    image.chunks(PIECE_BYTES).map(|piece| piece[0]).collect()
}

fn errno(result: io::Result<()>) -> Option<i32> {
    result.unwrap_err().raw_os_error()
}

#[test]
fn a_crash_keeps_what_was_synced_and_tears_the_rest() {
    let mut outcomes = std::collections::HashSet::new();
    for seed in 0..200 {
        let mut rig = Rig::new(4, Faults { seed, volatile_cache: true, ..Faults::default() });
        rig.write(0, 1, 4, Durability::Volatile).unwrap();
        rig.run(Op::Sync).unwrap();
        rig.write(1, 2, 1, Durability::Durable).unwrap();
        assert_eq!(first_bytes(&rig.disk.durable()), [1, 2, 1, 1]);
        rig.write(2, 3, 2, Durability::Volatile).unwrap();
        rig.write(3, 4, 1, Durability::Volatile).unwrap();
        assert_eq!(first_bytes(&rig.disk.live()), [1, 2, 3, 4]);
        rig.disk.crash();
        let after = first_bytes(&rig.disk.live());
        assert_eq!(after, first_bytes(&rig.disk.durable()));
        assert_eq!(after[..2], [1, 2]);
        assert!([1, 3].contains(&after[2]) && [1, 3, 4].contains(&after[3]), "{after:?}");
        outcomes.insert(after);
    }
    assert_eq!(outcomes.len(), 6, "every combination happens");
}

#[test]
fn a_failed_sync_loses_what_a_later_one_does_not_save() {
    let mut lost = 0;
    for seed in 0..50 {
        let mut rig = Rig::new(8, Faults { seed, volatile_cache: true, ..Faults::default() });
        rig.write(0, 1, 8, Durability::Volatile).unwrap();
        rig.disk.set_faults(Faults { sync_failure_one_in: 1, ..Faults::default() });
        assert_eq!(errno(rig.run(Op::Sync)), Some(libc::EIO));
        rig.disk.set_faults(Faults::default());
        rig.run(Op::Sync).unwrap();
        assert_eq!(first_bytes(&rig.disk.live()), [1; 8]);
        rig.disk.crash();
        lost += first_bytes(&rig.disk.live()).iter().filter(|&&byte| byte == 0).count();
    }
    assert!((100..300).contains(&lost), "{lost} of 400 pieces were lost");
}

#[test]
fn a_power_failure_stops_everything_at_the_chosen_call() {
    for calls in 0..=5 {
        let faults = Faults { volatile_cache: true, power_lasts_calls: Some(calls), ..Faults::default() };
        let mut rig = Rig::new(4, faults);
        for i in 0..2 {
            let result = rig.write(i, 7, 1, Durability::Volatile);
            assert_eq!(result.is_ok(), 2 * (i as u64) < calls);
            assert_eq!(rig.run(Op::Sync).is_ok(), 2 * (i as u64) + 1 < calls);
        }
        let synced = rig.disk.durable();
        assert_eq!(first_bytes(&synced).iter().filter(|&&byte| byte == 7).count() as u64, (calls / 2).min(2));
        rig.disk.crash();
        rig.write(3, 1, 1, Durability::Durable).unwrap();
    }
}

#[test]
fn bad_ranges_and_rates_give_errors() {
    let mut rig = Rig::new(16, Faults { bad_ranges: vec![1024..1025, 4096..4608], ..Faults::default() });
    assert_eq!(errno(rig.write(0, 1, 4, Durability::Volatile)), Some(libc::EIO));
    assert_eq!(
        errno(rig.run(Op::Read { slot: slot(0), offset_bytes: 1024, len_bytes: 512 })),
        Some(libc::EIO)
    );
    assert_eq!(errno(rig.write(8, 1, 1, Durability::Durable)), Some(libc::EIO));
    rig.write(0, 1, 2, Durability::Volatile).unwrap();
    rig.write(3, 1, 4, Durability::Volatile).unwrap();
    for (faults, expected) in [
        (Faults { eio_one_in: 10, ..Faults::default() }, libc::EIO),
        (Faults { enospc_one_in: 10, ..Faults::default() }, libc::ENOSPC),
    ] {
        rig.disk.set_faults(faults);
        let results: Vec<_> = (0..1000).map(|_| rig.write(4, 1, 1, Durability::Volatile)).collect();
        let failures: Vec<_> = results.into_iter().filter_map(Result::err).collect();
        assert!((50..200).contains(&failures.len()), "{} failures of 1000", failures.len());
        assert!(failures.iter().all(|failure| failure.raw_os_error() == Some(expected)));
    }
    assert!(rig.disk.counts().failed > 100);
}

#[test]
fn a_thin_disk_runs_out_of_space_in_the_middle_of_a_write() {
    let mut rig = Rig::new(16, Faults { space_bytes: Some(5 * 512), ..Faults::default() });
    rig.write(0, 1, 3, Durability::Volatile).unwrap();
    assert_eq!(errno(rig.write(2, 2, 4, Durability::Volatile)), Some(libc::ENOSPC));
    assert_eq!(first_bytes(&rig.disk.live())[..7], [1, 1, 2, 2, 2, 0, 0], "what fitted was written");
    rig.write(0, 3, 5, Durability::Volatile).unwrap();
}

#[test]
fn a_truncated_disk_ends_early() {
    for volatile_cache in [false, true] {
        let mut rig = Rig::new(16, Faults { volatile_cache, ..Faults::default() });
        rig.write(0, 1, 16, Durability::Volatile).unwrap();
        rig.disk.truncate(8 * PIECE_BYTES);
        let read = Op::Read { slot: slot(0), offset_bytes: 0, len_bytes: 16 * 512 };
        assert_eq!(rig.run(read).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(errno(rig.write(6, 2, 4, Durability::Volatile)), Some(libc::ENOSPC));
        rig.disk.crash();
        assert_eq!(rig.disk.live().len(), 8 * PIECE_BYTES);
    }
}

#[test]
fn the_order_changes_with_the_seed_and_only_with_it() {
    let order = |seed| {
        let mut rig = Rig::new(8, Faults { seed, delay_turns: 4, ..Faults::default() });
        for tag in 0..8 {
            rig.engine.start(Tag(tag), write(tag as usize, 1, 1, Durability::Volatile));
        }
        let mut tags = Vec::new();
        while tags.len() < 8 {
            rig.engine.submit(Wait::ForEvent).unwrap();
            while let Some(completion) = rig.engine.reap() {
                tags.push(completion.tag.0);
            }
        }
        tags
    };
    let orders: std::collections::HashSet<_> = (0..20).map(order).collect();
    assert!(orders.len() > 15);
    assert_eq!(order(3), order(3));
}
