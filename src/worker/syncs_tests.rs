//! What a worker may believe of its syncs, beside those of others.

use std::os::fd::OwnedFd;

use rustix::event::{EventfdFlags, eventfd};

use super::*;
use crate::guest::inflight::tests::region;

struct Hand {
    syncs: OwnSyncs,
    wake: OwnedFd,
}

impl Hand {
    fn new(syncs: &Arc<Syncs>) -> Self {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let worker = syncs.peers.join();
        syncs.peers.set_wake(worker, wake.try_clone().unwrap());
        Self { syncs: OwnSyncs::new(Arc::clone(syncs), worker, 8), wake }
    }

    fn was_woken(&self) -> bool {
        rustix::io::read(&self.wake, &mut [0; 8]).is_ok()
    }
}

fn syncs() -> Arc<Syncs> {
    Arc::new(Syncs::new(Arc::new(Peers::new())))
}

#[test]
fn a_sync_alone_is_believed_at_once() {
    let mut hand = Hand::new(&syncs());
    let number = hand.syncs.begin();
    assert!(!hand.syncs.have_ended(hand.syncs.now()));
    hand.syncs.end(number, false);
    assert!(hand.syncs.have_ended(hand.syncs.now()));
}

#[test]
fn syncs_wait_for_those_beside_them_and_no_others() {
    let all = syncs();
    let (mut one, mut two) = (Hand::new(&all), Hand::new(&all));
    let slow = one.syncs.begin();
    let quick = two.syncs.begin();
    two.syncs.end(quick, false);
    let until = two.syncs.now();
    assert!(!two.syncs.have_ended(until));
    // Begins later: it is none of those.
    let later = one.syncs.begin();
    assert!(!two.was_woken());
    one.syncs.end(slow, true);
    assert!(two.was_woken(), "or it would sleep for ever");
    assert!(two.syncs.have_ended(until));
    assert_eq!(two.syncs.failures(), 1);
    assert!(!one.was_woken(), "it does not wait");
    one.syncs.end(later, false);
    assert!(!two.was_woken(), "nobody waits any more");
}

#[test]
fn syncs_of_one_worker_end_in_any_order() {
    let all = syncs();
    let (mut one, two) = (Hand::new(&all), Hand::new(&all));
    let numbers: Vec<_> = (0..4).map(|_| one.syncs.begin()).collect();
    let until = |count: usize| SyncNumber(numbers[0].0 + count as u64);
    for (ended, then_before) in [(2, 0), (0, 1), (3, 1), (1, 4)] {
        one.syncs.end(numbers[ended], false);
        let before = (0..=4).rev().find(|count| two.syncs.have_ended(until(*count))).unwrap();
        assert_eq!(before, then_before, "after {ended}");
    }
}

#[test]
fn a_worker_that_broke_down_has_failed_its_syncs() {
    let all = syncs();
    let (mut one, two) = (Hand::new(&all), Hand::new(&all));
    one.syncs.begin();
    let until = two.syncs.now();
    assert!(!two.syncs.have_ended(until));
    drop(one);
    assert!(two.was_woken() && two.syncs.have_ended(until));
    assert_eq!((two.syncs.failures(), all.is_latched()), (1, true));
}

#[test]
fn the_control_thread_waits_for_the_workers_and_they_for_it() {
    let all = syncs();
    let mut hand = Hand::new(&all);
    let number = hand.syncs.begin();
    let until = std::thread::scope(|scope| {
        let (began, begins) = std::sync::mpsc::channel();
        let (end, ends) = std::sync::mpsc::channel();
        let control = scope.spawn({
            let all = &all;
            move || {
                all.run(|| {
                    began.send(()).unwrap();
                    ends.recv().map_err(drop)
                })
            }
        });
        begins.recv().unwrap();
        let until = hand.syncs.now();
        hand.syncs.end(number, false);
        assert!(!hand.syncs.have_ended(until), "the control thread's is under way");
        let slow = hand.syncs.begin();
        end.send(()).unwrap();
        while !hand.was_woken() {
            std::thread::yield_now();
        }
        assert!(!control.is_finished(), "it waits for the worker's");
        hand.syncs.end(slow, false);
        assert_eq!(control.join().unwrap(), Ok(()));
        until
    });
    assert!(hand.syncs.have_ended(until));
    assert_eq!(all.run(|| Err(7)), Err(7));
    assert_eq!((hand.syncs.failures(), all.is_latched()), (1, true));
}

#[test]
fn threads_that_are_no_workers_sync_one_at_a_time() {
    let (all, under_way) = (syncs(), AtomicU32::new(0));
    let one_sync = || {
        assert_eq!(
            under_way.fetch_add(1, SeqCst),
            0,
            "two have one place: the end of one would hide the other"
        );
        std::thread::yield_now();
        under_way.fetch_sub(1, SeqCst);
        Ok::<(), ()>(())
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..100).for_each(|_| all.run(one_sync).unwrap()));
        }
    });
    assert!(all.have_ended(all.now()));
}

#[test]
fn the_word_of_a_failure_outlives_a_crash_and_ends_once_the_guest_knows() {
    let region = region(1, 8);
    let life = || {
        let syncs = syncs();
        syncs.keep_note_in(Arc::clone(&region));
        syncs
    };
    let first = life();
    assert!(!first.is_latched());
    first.latch();
    assert!(life().is_latched(), "it died");
    first.end_life();
    assert!(life().is_latched(), "the guest was not told");
    first.tell();
    assert!(life().is_latched(), "it died after telling");
    first.end_life();
    assert!(!life().is_latched(), "it ended, and the guest knows");
}

#[test]
fn a_region_that_comes_after_the_failure_has_word_of_it() {
    let (all, region) = (syncs(), region(1, 8));
    all.latch();
    all.keep_note_in(Arc::clone(&region));
    assert!(region.has_sync_failed());
}
