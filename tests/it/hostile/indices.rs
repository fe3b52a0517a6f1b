//! Ring indices, available entries, flags and notifications beyond what a driver would write.

use super::serve;
use crate::harness::case::*;
use crate::harness::frontend::*;
use crate::harness::request::*;
use crate::harness::ring::*;

/// After an impossible available index: this queue is silent, the other serves, and a restart heals it.
fn stopped_until_restarted(mut case: Case) {
    case.ring().kick();
    case.ring().expect_silence();
    let (ram, mark) = (case.frontend.ram.clone(), case.frontend.ram.mark());
    let read = case.frontend.prepare(1, &Request::read(0, 512));
    case.frontend.run_prepared(1, &read).ok();
    case.grant_memory(read.granted()[0].clone());
    case.grant_memory(read.granted()[1].clone());
    ram.release(mark);
    case.frontend.stop_ring(0);
    case.ring().reset();
    case.ring().drain_calls();
    case.frontend.start_ring(0, 0);
    case.finish();
}

#[test]
fn avail_idx_jump_forward() {
    for jump in [65u16, 66, 1000, 0x8000] {
        let case = Case::start(serve());
        let head = case.ring().set_chain(0, &[case.header(T_FLUSH, 0)]);
        (0..64).for_each(|at| case.ring().set_avail_entry(at, head));
        case.ring().set_avail_idx(jump);
        stopped_until_restarted(case);
    }
}

#[test]
fn avail_idx_backwards() {
    let mut case = Case::start(serve());
    for _ in 0..5 {
        case.run(&Request::read(0, 512)).ok();
    }
    case.ring().set_avail_idx(2);
    stopped_until_restarted(case);
}

#[test]
fn avail_idx_decrement_by_one() {
    let mut case = Case::start(serve());
    case.run(&Request::read(0, 512)).ok();
    case.ring().set_avail_idx(0);
    stopped_until_restarted(case);
}

#[test]
fn avail_ring_entry_oob() {
    let mut case = Case::start(serve());
    let chain = [case.header(T_FLUSH, 0), case.status()];
    let good = case.ring().set_chain(3, &chain);
    for bad in [64, 65, 0x7fff, 0xffff] {
        case.fire(&[bad, good, bad]);
        assert_eq!(case.answered(good), 1, "the valid entry between two of {bad}");
    }
    case.ring().expect_silence();
    case.finish();
}

#[test]
fn avail_all_invalid_idx() {
    let case = Case::start(serve());
    case.fire(&[0xffff; 64]);
    case.ring().expect_silence();
    case.fire(&[64; 64]);
    case.ring().expect_silence();
    case.finish();
}

#[test]
fn duplicate_head() {
    let mut case = Case::start(serve());
    let chain = [case.header(T_IN, TARGET_SECTOR), case.room(65536), case.status()];
    let head = case.ring().set_chain(0, &chain);
    case.fire(&[head, head]);
    assert_eq!(case.answered(head), 65537);
    case.ring().expect_silence();
    case.finish();
}

#[test]
fn avail_all_same_desc() {
    let mut case = Case::start(serve());
    let chain = [case.header(T_IN, TARGET_SECTOR), case.room(65536), case.status()];
    let head = case.ring().set_chain(0, &chain);
    case.fire(&[head; 64]);
    assert_eq!(case.answered(head), 65537);
    case.ring().expect_silence();
    case.finish();
}

#[test]
fn avail_flags_invalid() {
    let mut case = Case::start(serve());
    let flush = case.frontend.prepare(0, &Request::flush());
    case.grant_memory(flush.granted()[0].clone());
    for flags in [0xfffeu16, 0xffff, 0x8000, 1] {
        case.ring().drain_calls();
        case.ring().set_avail_flags(flags);
        case.fire(&[flush.head]);
        assert_eq!(case.ring().collect_by_polling(1)[0].len, 1);
        std::thread::sleep(SILENCE);
        assert_eq!(case.ring().drain_calls() > 0, flags & 1 == 0, "only bit 0 of {flags:#x} counts");
    }
    case.ring().set_avail_flags(0);
    case.finish();
}

#[test]
fn avail_used_event_poison() {
    // Without EVENT_IDX the field behind the available ring means nothing.
    let mut case = Case::start(serve());
    let flush = case.frontend.prepare(0, &Request::flush());
    case.grant_memory(flush.granted()[0].clone());
    for poison in [0u16, 1, 0x8000, 0xffff] {
        case.ring().set_used_event(poison);
        case.fire(&[flush.head]);
        assert_eq!(case.answered(flush.head), 1, "notified with used_event {poison:#x}");
    }
    case.finish();
}

#[test]
fn event_idx_far_used_event() {
    let mut case = Case::with(serve(), Setup { refuse: 0, ..Setup::queues(2) });
    assert_ne!(case.frontend.features & F_EVENT_IDX, 0);
    let flush = case.frontend.prepare(0, &Request::flush());
    case.grant_memory(flush.granted()[0].clone());
    for far in [0x4000u16, 0x7fff, 0x8000, 0xffff] {
        case.ring().drain_calls();
        case.ring().set_used_event(case.ring().used_seen().wrapping_add(far));
        case.fire(&[flush.head]);
        assert_eq!(case.ring().collect_by_polling(1)[0].len, 1);
        std::thread::sleep(SILENCE);
        assert_eq!(case.ring().drain_calls(), 0, "used_event is {far:#x} away: no notification");
    }
    case.finish();
}

#[test]
fn used_ring_guest_write() {
    let mut case = Case::start(serve());
    let flush = case.frontend.prepare(0, &Request::flush());
    case.grant_memory(flush.granted()[0].clone());
    let (ram, used) = (case.frontend.ram.clone(), case.ring().used);
    for round in 1..=5u16 {
        ram.write(used + 4, &[0xff; 8 * 64]);
        ram.store_u16(used + 2, 0x7777);
        case.fire(&[flush.head]);
        assert!(case.ring().wait_call(PATIENCE), "an answer");
        assert_eq!(case.ring().used_idx(), round, "the device counts for itself");
        assert_eq!(case.answered(flush.head), 1);
    }
    case.finish();
}

#[test]
fn used_flags_guest_write() {
    let mut case = Case::start(serve());
    let ram = case.frontend.ram.clone();
    for flags in [1u16, 0xffff] {
        ram.store_u16(case.ring().used, flags);
        case.run(&Request::read(0, 512)).ok();
    }
    case.finish();
}

#[test]
fn spurious_kick_empty_ring() {
    let case = Case::start(serve());
    for _ in 0..100 {
        case.ring().kick();
    }
    case.ring().expect_silence();
    case.finish();
}

#[test]
fn double_kick_no_new_desc() {
    let mut case = Case::start(serve());
    for _ in 0..20 {
        case.run(&Request::read(0, 512)).ok();
        case.ring().kick();
        case.ring().kick();
    }
    case.ring().expect_silence();
    case.finish();
}

#[test]
fn kick_avail_eq_used() {
    let mut case = Case::start(serve());
    case.run(&Request::read(0, 512)).ok();
    case.ring().kick();
    case.ring().expect_silence();
    assert_eq!(case.ring().used_idx(), 1);
    case.finish();
}

/// Runs single requests across the 16-bit wrap of both indices.
fn across_the_wrap(refuse: u64) {
    let mut case = Case::with(serve(), Setup { refuse, ..Setup::queues(2) });
    let base = 0xffff - 3;
    case.frontend.stop_ring(0);
    case.ring().reset();
    case.ring().begin_at(base);
    case.frontend.start_ring(0, base);
    for _ in 0..10 {
        case.run(&Request::read(0, 512)).ok();
    }
    assert_eq!(case.ring().used_idx(), base.wrapping_add(10));
    case.finish();
}

#[test]
fn avail_idx_near_wrap() {
    across_the_wrap(F_EVENT_IDX);
}

#[test]
fn avail_wrap_event_idx() {
    across_the_wrap(0);
}

#[test]
fn avail_event_uint16_max() {
    let mut case = Case::with(serve(), Setup { refuse: 0, ..Setup::queues(2) });
    case.frontend.stop_ring(0);
    case.ring().reset();
    case.ring().begin_at(0xfffe);
    case.frontend.start_ring(0, 0xfffe);
    let ram = case.frontend.ram.clone();
    for _ in 0..6 {
        // The guest scribbles over the field that belongs to the device, then obeys no hint: it always kicks.
        ram.store_u16(case.ring().used + 4 + 8 * 64, 0xffff);
        case.run(&Request::read(0, 512)).ok();
    }
    case.finish();
}

#[test]
fn avail_event_exact_transition() {
    let case = Case::with(serve(), Setup { refuse: 0, ..Setup::queues(2) });
    let mut case = case;
    let flush = case.frontend.prepare(0, &Request::flush());
    case.grant_memory(flush.granted()[0].clone());
    for _ in 0..100 {
        let ring = case.ring();
        let before = ring.avail_idx();
        ring.publish(&[flush.head]);
        // The driver's rule: kick exactly when the index passes avail_event.
        if ring.avail_idx().wrapping_sub(ring.avail_event()).wrapping_sub(1)
            < ring.avail_idx().wrapping_sub(before)
        {
            ring.kick();
        }
        assert_eq!(case.answered(flush.head), 1);
    }
    case.finish();
}

#[test]
fn notif_suppression_overflow() {
    // Every answer arrives with a driver that sets used_event just behind a whole batch.
    let mut case = Case::with(serve(), Setup { refuse: 0, ..Setup::queues(2) });
    let flushes: Vec<Prepared> = (0..16).map(|_| case.frontend.prepare(0, &Request::flush())).collect();
    flushes.iter().for_each(|flush| case.grant_memory(flush.granted()[0].clone()));
    let heads: Vec<u16> = flushes.iter().map(|flush| flush.head).collect();
    for _ in 0..100 {
        let ring = case.ring();
        ring.set_used_event(ring.used_seen().wrapping_add(15));
        ring.publish(&heads);
        ring.kick();
        assert!(ring.wait_call(PATIENCE), "a notification with the sixteenth answer");
        assert_eq!(ring.pending(), 16, "and not before it");
        (0..16).for_each(|_| assert_eq!(ring.pop_used().map(|used| used.len), Some(1)));
    }
    case.finish();
}

#[test]
fn fill_ring_completely() {
    let mut case = Case::start(serve());
    let header = case.header(T_IN, TARGET_SECTOR);
    for i in 0..64 {
        let table = chained(&[header, case.room(512), case.status()], 0);
        case.ring().set_desc(i, case.table(&table));
    }
    let heads: Vec<u16> = (0..64).rev().collect();
    for _ in 0..20 {
        case.fire(&heads);
        let mut answered: Vec<u32> = case.ring().collect(64).iter().map(|used| used.head).collect();
        answered.sort_unstable();
        assert_eq!(answered, (0..64).collect::<Vec<u32>>());
    }
    case.finish();
}

#[test]
fn head_reused_as_soon_as_answered() {
    let mut case = Case::start(serve());
    let chain = [case.header(T_FLUSH, 0), case.status()];
    let head = case.ring().set_chain(0, &chain);
    for _ in 0..200 {
        case.fire(&[head]);
        case.ring().collect_by_polling(1);
    }
    case.finish();
}

#[test]
fn concurrent_kicks_two_queues() {
    let mut case = Case::start(serve());
    let reads: Vec<Prepared> =
        (0..2).map(|i| case.frontend.prepare(i, &Request::read(TARGET_SECTOR, 4096))).collect();
    reads.iter().for_each(|read| read.granted().into_iter().for_each(|range| case.grant_memory(range)));
    for _ in 0..200 {
        for (ring, read) in case.frontend.rings.iter().zip(&reads) {
            ring.publish(&[read.head]);
        }
        case.frontend.rings.iter().for_each(Ring::kick);
        for (ring, read) in case.frontend.rings.iter().zip(&reads) {
            read.answer(ring.collect(1)[0]).ok();
        }
    }
    case.finish();
}

#[test]
fn interleaved_multi_kick() {
    let mut case = Case::start(serve());
    let flushes: Vec<Prepared> = (0..8).map(|_| case.frontend.prepare(0, &Request::flush())).collect();
    flushes.iter().for_each(|flush| case.grant_memory(flush.granted()[0].clone()));
    for _ in 0..50 {
        for flush in &flushes {
            case.ring().kick();
            case.fire(&[flush.head]);
            case.ring().kick();
        }
        assert_eq!(case.ring().collect(8).len(), 8);
    }
    case.finish();
}

#[test]
fn two_batches() {
    let mut case = Case::start(serve());
    let flushes: Vec<Prepared> = (0..8).map(|_| case.frontend.prepare(0, &Request::flush())).collect();
    flushes.iter().for_each(|flush| case.grant_memory(flush.granted()[0].clone()));
    let heads: Vec<u16> = flushes.iter().map(|flush| flush.head).collect();
    case.fire(&heads[..4]);
    case.fire(&heads[4..]);
    assert_eq!(case.ring().collect(8).len(), 8);
    case.finish();
}

#[test]
fn no_interrupt_then_clear() {
    let mut case = Case::start(serve());
    let flush = case.frontend.prepare(0, &Request::flush());
    case.grant_memory(flush.granted()[0].clone());
    case.ring().suppress_interrupts(true);
    case.fire(&[flush.head]);
    case.ring().collect_by_polling(1);
    std::thread::sleep(SILENCE);
    assert_eq!(case.ring().drain_calls(), 0, "the driver asked for quiet");
    case.ring().suppress_interrupts(false);
    case.fire(&[flush.head]);
    assert_eq!(case.answered(flush.head), 1, "and is notified again");
    case.finish();
}

#[test]
fn used_ring_len_mismatch() {
    let mut case = Case::start(serve());
    for len in [512, 1024, 65536] {
        assert_eq!(case.run(&Request::read(0, len)).ok().len(), len);
        case.run(&Request::write(TARGET_SECTOR, &vec![0; 512]).indirect()).ok();
    }
    case.grant_sectors(TARGET_SECTOR..TARGET_SECTOR + 1);
    case.finish();
}
