//! Starting, stopping and resetting in every wrong order.

use std::sync::atomic::{AtomicBool, Ordering};

use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

use super::serve;
use crate::harness::case::*;
use crate::harness::frontend::*;
use crate::harness::request::*;
use crate::harness::ring::*;
use crate::harness::wire::*;
use crate::harness::*;

#[test]
fn double_feature_negotiation() {
    let case = Case::start(serve());
    for _ in 0..5 {
        let offered = case.frontend.messages.get_features().expect("GET_FEATURES");
        assert_eq!(offered, case.frontend.offered);
        case.frontend.messages.set_features(case.frontend.features).expect("SET_FEATURES again");
    }
    case.finish();
}

#[test]
fn accept_unoffered_feature() {
    let case = Case::start(serve());
    for bit in [0, 3, 7, 16, 27, 33, 34, 35, 40, 63] {
        // A refusal is as good as ignoring it: the queue must serve either way.
        let _ = case.frontend.messages.set_features(case.frontend.features | 1 << bit);
    }
    case.frontend.messages.set_features(case.frontend.features).expect("SET_FEATURES with what was offered");
    case.finish();
}

#[test]
fn change_features_after_ok() {
    let mut case = Case::start(serve());
    let fewer = case.frontend.features & !(F_INDIRECT | F_MQ | F_WRITE_ZEROES);
    // Whether it is taken or refused while rings run, the rings go on.
    let _ = case.frontend.messages.set_features(fewer);
    case.run(&Request::read(0, 512)).ok();
    let _ = case.frontend.messages.set_features(case.frontend.features);
    case.finish();
}

#[test]
fn enable_queue_twice() {
    let mut case = Case::start(serve());
    for _ in 0..10 {
        case.frontend.messages.set_vring_enable(0, true).expect("enable again");
    }
    case.run(&Request::read(0, 512)).ok();
    case.finish();
}

#[test]
fn queue_toggle() {
    let mut case = Case::start(serve());
    let read = case.frontend.prepare(0, &Request::read(0, 512));
    read.granted().into_iter().for_each(|range| case.grant_memory(range));
    for _ in 0..20 {
        case.frontend.messages.set_vring_enable(0, false).expect("disable");
        case.fire(&[read.head]);
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert_eq!(case.ring().pending(), 0, "a disabled ring is not processed");
        case.frontend.messages.set_vring_enable(0, true).expect("enable");
        read.answer(case.ring().collect(1)[0]).ok();
    }
    case.finish();
}

#[test]
fn kick_before_enable() {
    let mut case = Case::start(serve());
    let read = case.frontend.prepare(0, &Request::read(0, 512));
    read.granted().into_iter().for_each(|range| case.grant_memory(range));
    case.frontend.stop_ring(0);
    case.ring().publish(&[read.head]);
    case.ring().kick();
    case.ring().expect_silence();
    case.frontend.start_ring(0, 0);
    read.answer(case.ring().collect(1)[0]).ok();
    case.finish();
}

#[test]
fn kick_after_reset() {
    let mut case = Case::start(serve());
    let read = case.frontend.prepare(0, &Request::read(0, 512));
    read.granted().into_iter().for_each(|range| case.grant_memory(range));
    case.frontend.messages.reset_device().expect("RESET_DEVICE");
    case.fire(&[read.head]);
    case.ring().expect_silence();
    case.frontend.share_memory();
    for index in 0..2 {
        case.frontend.start_ring(index, 0);
    }
    read.answer(case.ring().collect(1)[0]).ok();
    case.finish();
}

#[test]
fn device_reset_during_io() {
    let mut case = Case::with(serve(), Setup { data_bytes: 2 << 20, ..Setup::queues(2) });
    let mut reads = Vec::new();
    for i in 0..16 {
        let read = case.frontend.prepare(0, &Request::read(i * 128, 65536).indirect());
        read.granted().into_iter().for_each(|range| case.grant_memory(range));
        reads.push(read);
    }
    let heads: Vec<u16> = reads.iter().map(|read| read.head).collect();
    for round in 0..20 {
        case.fire(&heads);
        case.frontend.messages.reset_device().expect("RESET_DEVICE");
        let answered = case.ring().used_idx();
        case.ring().expect_silence_from(answered, round);
        case.ring().reset_indices();
        case.ring().drain_calls();
        case.frontend.rings[1].reset_indices();
        case.frontend.share_memory();
        for index in 0..2 {
            case.frontend.start_ring(index, 0);
        }
    }
    case.finish();
}

#[test]
fn queue_drain_race() {
    let mut case = Case::with(serve(), Setup { data_bytes: 2 << 20, ..Setup::queues(2) });
    let mut reads = Vec::new();
    for i in 0..16 {
        let read = case.frontend.prepare(0, &Request::read(i * 128, 65536).indirect());
        read.granted().into_iter().for_each(|range| case.grant_memory(range));
        reads.push(read);
    }
    let heads: Vec<u16> = reads.iter().map(|read| read.head).collect();
    for round in 0..50 {
        case.fire(&heads);
        let base = case.frontend.stop_ring(0);
        let used = case.ring().used_idx();
        assert_eq!(base, used, "round {round}: everything taken from the ring was answered before the reply");
        case.ring().expect_silence_from(used, round);
        case.frontend.start_ring(0, base);
        case.ring().kick();
        assert_eq!(case.ring().collect_by_polling(16).len(), 16, "round {round}");
        case.ring().drain_calls();
    }
    case.finish();
}

#[test]
fn back_to_back_resets() {
    let mut case = Case::start(serve());
    for _ in 0..20 {
        case.frontend.messages.reset_device().expect("RESET_DEVICE");
    }
    restart(&mut case);
    case.finish();
}

fn restart(case: &mut Case) {
    for ring in &case.frontend.rings {
        ring.reset_indices();
        ring.drain_calls();
    }
    case.frontend.share_memory();
    for index in 0..case.frontend.rings.len() {
        case.frontend.start_ring(index, 0);
    }
}

#[test]
fn many_reinit_cycles() {
    let mut case = Case::start(serve());
    for _ in 0..40 {
        case.frontend.messages.reset_device().expect("RESET_DEVICE");
        case.frontend.messages.set_features(case.frontend.features).expect("SET_FEATURES");
        restart(&mut case);
        case.run(&Request::read(0, 4096)).ok();
    }
    case.finish();
}

#[test]
fn reinit_reduced_features() {
    let mut case = Case::with(serve(), Setup { refuse: 0, ..Setup::queues(2) });
    case.run(&Request::read(0, 4096)).ok();
    case.frontend.messages.reset_device().expect("RESET_DEVICE");
    let fewer = F_VERSION_1 | F_PROTOCOL;
    case.frontend.messages.set_features(case.frontend.features & fewer).expect("SET_FEATURES");
    case.frontend.rings.iter().for_each(|ring| ring.event_idx.set(false));
    restart(&mut case);
    // EVENT_IDX is gone: a used_event far away must not silence the device.
    case.ring().set_used_event(0x7000);
    case.run(&Request::read(0, 4096)).ok();
    case.finish();
}

#[test]
fn queue_reenable_without_config() {
    let mut case = Case::start(serve());
    case.run(&Request::read(0, 512)).ok();
    let base = case.frontend.stop_ring(0);
    assert_eq!(base, 1);
    // Only the kick descriptor comes again: size, base and addresses are still known.
    let ring = &case.frontend.rings[0];
    case.frontend.messages.set_vring_base(0, base).expect("SET_VRING_BASE");
    case.frontend.messages.set_vring_kick(0, &ring.kick.borrow()).expect("SET_VRING_KICK");
    case.frontend.messages.set_vring_call(0, &ring.call).expect("SET_VRING_CALL");
    case.frontend.messages.set_vring_enable(0, true).expect("SET_VRING_ENABLE");
    case.run(&Request::read(0, 512)).ok();
    case.finish();
}

#[test]
fn queue_setup_after_driver_ok() {
    let mut case = Case::start(serve());
    // A running ring's geometry does not change under it: refused, and the ring goes on.
    let ring = case.ring().addresses();
    let mut wire = case.frontend.wire();
    for size in [32, 128, 1024] {
        assert_ne!(
            wire.ack(SET_VRING_NUM, &vring_state(0, size), &[]),
            0,
            "SET_VRING_NUM {size} on a running ring"
        );
    }
    let _ = case.frontend.messages.set_vring_addr(0, &ring);
    case.run(&Request::read(0, 512)).ok();
    case.finish();
}

#[test]
fn queue_size_change_after_reset() {
    let mut case = Case::start(serve());
    for size in [16u16, 128, 256, 2, 64] {
        let used: Vec<_> = case.frontend.rings.iter().map(Ring::used_area).collect();
        used.into_iter().for_each(|range| case.grant_memory(range));
        for index in 0..2 {
            case.frontend.stop_ring(index);
        }
        let ram = case.frontend.ram.clone();
        case.frontend.rings = (0..2).map(|index| Ring::new(&ram, index, size)).collect();
        for index in 0..2 {
            case.frontend.start_ring(index, 0);
        }
        case.run(&Request::read(0, 512).indirect()).ok();
    }
    case.finish();
}

#[test]
fn enable_without_addrs() {
    let backend = Serve::encrypted().queues(2).start();
    let ram = memory::GuestRam::new(1 << 20);
    let rings = (0..2).map(|index| Ring::new(&ram, index, 64)).collect();
    let stream = dial(backend.socket());
    let mut frontend = Frontend::begin(stream, Setup::queues(2), ram, rings);
    frontend.share_memory();
    // Enabled and kicked, with nothing said about where the ring is.
    let ring = &frontend.rings[0];
    let _ = frontend.messages.set_vring_enable(0, true);
    let _ = frontend.messages.set_vring_kick(0, &ring.kick.borrow());
    ring.kick();
    ring.expect_silence();
    assert_eq!(frontend.stop_ring(0), 0);
    for index in 0..2 {
        frontend.start_ring(index, 0);
    }
    frontend.assert_serves(0, 0, 1);
    frontend.assert_serves(1, 8, 2);
}

#[test]
fn kick_during_init() {
    let backend = Serve::encrypted().queues(2).start();
    let ram = memory::GuestRam::new(1 << 20);
    let rings: Vec<Ring> = (0..2).map(|index| Ring::new(&ram, index, 64)).collect();
    let kick = rings[0].kick.borrow().try_clone().expect("duplicate the eventfd");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                // The counter may be full: kicks are what it is full of.
                let _ = kick.write(1);
                std::thread::yield_now();
            }
        });
        let mut frontend = Frontend::begin(dial(backend.socket()), Setup::queues(2), ram, rings);
        frontend.share_memory();
        for _ in 0..20 {
            frontend.start_ring(0, 0);
            frontend.assert_serves(0, 0, 1);
            assert_eq!(frontend.stop_ring(0), frontend.rings[0].avail_idx());
            frontend.rings[0].reset();
        }
        over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn kick_and_reset_race() {
    let mut case = Case::start(serve());
    let read = case.frontend.prepare(0, &Request::read(0, 4096));
    read.granted().into_iter().for_each(|range| case.grant_memory(range));
    for _ in 0..50 {
        case.fire(&[read.head]);
        case.frontend.messages.set_vring_enable(0, false).expect("disable");
        case.ring().kick();
        let base = case.frontend.stop_ring(0);
        assert_eq!(base, case.ring().used_idx(), "stopped with everything taken answered");
        case.frontend.start_ring(0, base);
        case.ring().kick();
        assert_eq!(case.ring().collect_by_polling(1).len(), 1);
        case.ring().drain_calls();
    }
    case.finish();
}

#[test]
fn forward_large_config() {
    let mut case = Case::start(serve());
    for (offset, len) in [(0, 4000), (32, 1024), (0x800, 2000)] {
        let bytes = case.frontend.config(offset, len).expect("GET_CONFIG");
        assert_eq!(bytes.len(), len);
    }
    case.finish();
}

#[test]
fn config_wce_toggle() {
    let mut case = Case::start(serve());
    for i in 0..50 {
        case.frontend.set_config(32, &[i & 1]).expect("SET_CONFIG");
        assert_eq!(case.frontend.config(32, 1).expect("GET_CONFIG"), [i & 1]);
        case.run(&Request::read(0, 512)).ok();
    }
    case.finish();
}

#[test]
fn mq_oob_queue() {
    let mut case = Case::start(serve());
    let mut wire = case.frontend.wire();
    for queue in [2, 3, 15, 255, 256, u32::MAX] {
        for (code, value) in [(SET_VRING_NUM, 64), (SET_VRING_BASE, 0), (SET_VRING_ENABLE, 1)] {
            assert_ne!(
                wire.ack(code, &vring_state(queue, value), &[]),
                0,
                "message {code} for queue {queue}"
            );
        }
    }
    case.run(&Request::read(0, 512)).ok();
    case.finish();
}
