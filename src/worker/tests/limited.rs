//! A guest that asks for more than its limits.

use std::num::NonZeroU64;

use super::*;
use crate::worker::rate_limits::{Limits, Rate};

/// So slow that hardly anything follows the burst, however slow the machine.
pub(super) fn one_a_second(burst: u64) -> Limits {
    let rate = Rate { per_second: NonZeroU64::MIN, burst: NonZeroU64::new(burst) };
    Limits { requests: Some(rate), bytes: None }
}

#[test]
fn what_exceeds_the_limit_stays_in_the_ring() {
    let mut rig = Rig::new(Faults::default());
    rig.volume.limits().set(one_a_second(5));
    let statuses: Vec<u64> = (0..15).map(|_| rig.offer(4, 0, (BUFFERS, 0), true)).collect();
    while rig.worker.turn().unwrap() {}
    let answered = usize::from(rig.driver.used_index());
    assert!((5..15).contains(&answered), "{answered} answered");
    assert_eq!(rig.worker.requests.count(), 0, "none was taken to wait here");
    rig.worker.wait().unwrap();
    assert!(rig.driver.used_index() < 15);
    rig.volume.limits().set(Limits::default());
    rig.run();
    assert!(statuses.iter().all(|&status| rig.status(status) == 0));
}

#[test]
fn a_queue_at_its_limit_stops_at_once() {
    let mut rig = Rig::new(Faults::default());
    rig.volume.limits().set(one_a_second(3));
    for _ in 0..15 {
        rig.offer(4, 0, (BUFFERS, 0), true);
    }
    while rig.worker.turn().unwrap() {}
    let answered = rig.driver.used_index();
    let state = rig.worker.stop_queue().unwrap().unwrap();
    assert_eq!(state.next_available, answered, "the rest is the next one's");
}

#[test]
fn requests_that_are_refused_count() {
    let mut rig = Rig::new(Faults::default());
    rig.volume.limits().set(one_a_second(5));
    for _ in 0..15 {
        rig.offer(77, 0, (BUFFERS, 0), true);
    }
    while rig.worker.turn().unwrap() {}
    assert!((5..15).contains(&rig.driver.used_index()));
}
