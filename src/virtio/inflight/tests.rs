//! A ring that dies between any two stores, and what its successor makes of it.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;

use crate::guest::inflight::crash;
use crate::guest::inflight::tests::region;
use crate::guest::{InflightRegion, LocalMemory};
use crate::virtio::virtq::tests::Driver;
use crate::virtio::{Chain, Head, Recovery, RingError, Tracking, Virtq};

const SIZE: u16 = 8;

/// A driver, its ring, and the region that outlives back ends.
struct Rig {
    driver: Driver,
    region: Arc<InflightRegion>,
    /// Offered and not answered.
    outstanding: BTreeSet<u16>,
    /// Those of them that were taken, in this order.
    taken: Vec<u16>,
    seen: u16,
}

impl Rig {
    /// A ring that has run up to index `begin`, with a fresh region.
    fn new(begin: u16) -> Self {
        let region = region(2, SIZE);
        let mut driver = Driver::new(SIZE);
        driver.begin_at(begin);
        Self { driver, region, outstanding: BTreeSet::new(), taken: Vec::new(), seen: begin }
    }

    fn track(&self, ring: &mut Virtq, recover: bool) -> Recovery {
        ring.track(Tracking { region: self.region.queue(1).unwrap(), recover }).unwrap()
    }

    /// A back end that takes over. Where it is told to begin is wrong.
    fn successor(&self) -> Virtq {
        let mut setup = self.driver.setup(false);
        setup.next_available = 0x4321;
        let mut ring = Virtq::new(&setup, LocalMemory::new(Arc::clone(&self.driver.device_memory))).unwrap();
        self.track(&mut ring, true);
        ring
    }

    fn offer(&mut self, heads: impl IntoIterator<Item = u16>) {
        for head in heads {
            self.driver.offer([head]);
            assert!(self.outstanding.insert(head));
        }
    }

    /// Takes the answers that are there.
    fn collect(&mut self) {
        while self.seen != self.driver.used_index() {
            let head = self.driver.used(self.seen).0 as u16;
            assert!(self.outstanding.remove(&head), "head {head} was answered twice");
            self.taken.retain(|taken| *taken != head);
            self.seen = self.seen.wrapping_add(1);
        }
    }

    /// Checks that a successor takes exactly what is unanswered, and answers it.
    fn assert_nothing_is_lost(&mut self) {
        self.collect();
        let mut ring = self.successor();
        let mut chain = Chain::new();
        let mut taken: Vec<Head> = std::iter::from_fn(|| ring.pop_repeat(&mut chain)).collect();
        let repeated: Vec<u16> = taken.iter().map(|head| head.0).collect();
        // One more may have been marked before its taker died.
        assert!(repeated.starts_with(&self.taken), "{repeated:?} were taken as {:?}", self.taken);
        taken.extend(std::iter::from_fn(|| ring.pop(&mut chain).unwrap()));
        let heads: Vec<u16> = taken.iter().map(|head| head.0).collect();
        let distinct: BTreeSet<u16> = heads.iter().copied().collect();
        assert_eq!(distinct.len(), heads.len(), "taken twice: {heads:?}");
        assert_eq!(distinct, self.outstanding);
        answer(&mut ring, taken);
        self.collect();
        assert!(self.outstanding.is_empty());
    }

    fn flagged(&self) -> Vec<u16> {
        let queue = self.region.queue(1).unwrap();
        (0..SIZE).filter(|head| queue.is_in_flight(*head)).collect()
    }
}

/// The next request, one of a predecessor's first.
fn take(ring: &mut Virtq) -> Option<Head> {
    let mut chain = Chain::new();
    let head = ring.pop_repeat(&mut chain).or_else(|| ring.pop(&mut chain).unwrap())?;
    assert_eq!(chain.descriptors().len(), 1);
    Some(head)
}

fn answer(ring: &mut Virtq, heads: impl IntoIterator<Item = Head>) {
    heads.into_iter().for_each(|head| ring.complete(head, 0));
    let _ = ring.publish();
}

/// The process ends as it is, with these requests under way.
fn die(heads: impl IntoIterator<Item = Head>) {
    heads.into_iter().for_each(std::mem::forget);
}

#[test]
fn the_first_request_of_a_ring_that_has_run_before_is_not_lost() {
    // Whoever begins with a used index of 0 takes five requests for answered, head 0 among them.
    let mut rig = Rig::new(5);
    let mut ring = rig.successor();
    rig.offer([0, 1]);
    die((0..2).map(|_| take(&mut ring).unwrap()));
    assert_eq!(rig.flagged(), [0, 1]);
    rig.assert_nothing_is_lost();
}

#[test]
fn a_batch_that_was_not_published_is_repeated_whole() {
    // Whoever publishes one by one and clears later clears the wrong heads.
    let mut rig = Rig::new(0);
    let mut ring = rig.successor();
    rig.offer([4, 2, 6, 1]);
    let mut taken: Vec<Head> = (0..4).map(|_| take(&mut ring).unwrap()).collect();
    answer(&mut ring, taken.drain(..1));
    taken.drain(1..).for_each(|head| ring.complete(head, 0));
    die(taken);
    assert_eq!(rig.flagged(), [1, 2, 6]);
    rig.assert_nothing_is_lost();
}

#[test]
fn repeats_come_in_the_order_in_which_they_were_taken() {
    let mut rig = Rig::new(65_530);
    let mut ring = rig.successor();
    rig.offer([5, 1, 7, 3]);
    die((0..4).map(|_| take(&mut ring).unwrap()));
    for _ in 0..3 {
        let mut ring = rig.successor();
        rig.offer(if rig.outstanding.contains(&2) { None } else { Some(2) });
        let taken: Vec<Head> = std::iter::from_fn(|| take(&mut ring)).collect();
        assert_eq!(taken.iter().map(|head| head.0).collect::<Vec<_>>(), [5, 1, 7, 3, 2]);
        die(taken);
    }
    rig.assert_nothing_is_lost();
}

/// SplitMix64, enough to choose what happens next.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((mixed ^ (mixed >> 27)) % bound as u64) as usize
    }
}

/// Some turns of a back end, with a driver that goes on meanwhile.
fn live(rig: &mut Rig, seed: u64) {
    let mut random = Random(seed);
    let mut ring = rig.successor();
    let mut taken: Vec<Head> = Vec::new();
    for _ in 0..24 {
        match random.below(4) {
            0 => {
                let free = (0..SIZE).rev().find(|head| !rig.outstanding.contains(head));
                rig.offer(free);
            }
            1 => {
                let head = take(&mut ring);
                if let Some(Head(head)) = &head
                    && !rig.taken.contains(head)
                {
                    rig.taken.push(*head);
                }
                taken.extend(head);
            }
            2 if !taken.is_empty() => {
                let head = taken.swap_remove(random.below(taken.len()));
                ring.complete(head, 0);
            }
            _ => {
                let _ = ring.publish();
                rig.collect();
            }
        }
    }
    die(taken);
}

#[test]
fn nothing_is_lost_or_done_twice_wherever_it_dies() {
    let mut deaths = 0;
    let seeds = if cfg!(miri) { 1 } else { 60 };
    for seed in 0..seeds {
        for stores in 0.. {
            let mut rig = Rig::new(65_533);
            // A life that leaves something behind, one that is cut short, and one that dies while it recovers.
            live(&mut rig, seed + 1000);
            let lived = crash::after_stores(stores, || live(&mut rig, seed));
            rig.collect();
            crash::after_stores(stores % 11, || drop(rig.successor()));
            rig.assert_nothing_is_lost();
            deaths += 1;
            if lived {
                break;
            }
        }
    }
    assert!(deaths > 16 * seeds, "only {deaths} deaths");
}

#[test]
fn a_drained_region_suits_any_ring() {
    let mut rig = Rig::new(0);
    let mut ring = rig.successor();
    rig.offer([3, 4]);
    let taken = [take(&mut ring).unwrap(), take(&mut ring).unwrap()];
    answer(&mut ring, taken);
    assert_eq!(rig.flagged(), [0; 0]);
    // The guest has reset its ring meanwhile.
    for begin in [0, 1, 40_000] {
        rig.collect();
        rig.driver.begin_at(begin);
        rig.seen = begin;
        let mut ring = rig.successor();
        rig.offer([0]);
        die(take(&mut ring));
        rig.assert_nothing_is_lost();
    }
}

#[test]
fn a_ring_that_we_stopped_goes_on_where_it_was() {
    let mut rig = Rig::new(7);
    rig.offer([1]);
    // Forged by the front end while the ring was stopped.
    let queue = rig.region.queue(1).unwrap();
    (0..SIZE).for_each(|head| queue.set_in_flight(head, true));
    let mut setup = rig.driver.setup(false);
    setup.next_available = 7;
    let mut ring = Virtq::new(&setup, LocalMemory::new(Arc::clone(&rig.driver.device_memory))).unwrap();
    assert_eq!(rig.track(&mut ring, false), Recovery::default());
    assert_eq!(rig.flagged(), [0; 0]);
    die(take(&mut ring));
    rig.assert_nothing_is_lost();
}

#[test]
fn what_cannot_be_about_this_ring_is_not_followed() {
    let stale = |change: fn(&Rig)| {
        let mut rig = Rig::new(100);
        let mut ring = rig.successor();
        rig.offer([0, 1, 2]);
        die((0..2).map(|_| take(&mut ring).unwrap()));
        change(&rig);
        let mut setup = rig.driver.setup(false);
        setup.next_available = 0x4321;
        let mut ring = Virtq::new(&setup, LocalMemory::new(Arc::clone(&rig.driver.device_memory))).unwrap();
        let recovery = rig.track(&mut ring, true);
        (recovery, ring.state().next_available, rig.flagged())
    };
    let followed = (Recovery { repeats: 2, foreign: false }, 102, vec![0, 1]);
    let foreign = (Recovery { repeats: 0, foreign: true }, 100, vec![]);
    assert_eq!(stale(|_| {}), followed);
    assert_eq!(stale(|rig| rig.region.queue(1).unwrap().set_version(2)), foreign);
    assert_eq!(stale(|rig| rig.region.queue(1).unwrap().set_used_index(101)), foreign);
    assert_eq!(stale(|rig| rig.region.queue(1).unwrap().set_used_index(100 - SIZE - 1)), foreign);
    assert_eq!(
        stale(|rig| (3..5).for_each(|head| rig.region.queue(1).unwrap().set_in_flight(head, true))),
        foreign
    );
}

#[test]
fn a_ring_needs_room_in_the_region() {
    let driver = Driver::new(16);
    let mut ring = driver.ring(false);
    let region = region(1, 8);
    let refused = ring.track(Tracking { region: region.queue(0).unwrap(), recover: true });
    assert_eq!(refused, Err(RingError::Untracked { size: 16, room: 8 }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 30 } else { 3000 }))]

    #[test]
    fn any_content_is_survived(
        bytes in prop::collection::vec(any::<u8>(), 192),
        plausible in any::<bool>(),
        offered in 0..SIZE,
        begin in any::<u16>(),
    ) {
        let mut rig = Rig::new(begin);
        rig.offer(0..offered);
        // The part of queue 1, behind that of queue 0.
        rig.region.poke::<192>(192, bytes[..].try_into().unwrap());
        if plausible {
            let queue = rig.region.queue(1).unwrap();
            queue.set_version(1);
            queue.set_used_index(begin.wrapping_sub(u16::from(bytes[0] % 4)));
            queue.set_last_batch_head(u16::from(bytes[1]) % (SIZE + 1));
            for head in 0..SIZE {
                queue.set_next(head, u16::from(bytes[2 + usize::from(head)]) % (SIZE + 1));
                queue.set_in_flight(head, bytes[12 + usize::from(head)] & 1 != 0);
            }
        }
        let mut ring = rig.successor();
        let mut chain = Chain::new();
        let repeats: Vec<Head> = std::iter::from_fn(|| ring.pop_repeat(&mut chain)).collect();
        prop_assert!(repeats.len() <= usize::from(offered));
        let distinct: BTreeSet<u16> = repeats.iter().map(|head| head.0).collect();
        prop_assert_eq!(distinct.len(), repeats.len());
        let kept = rig.flagged();
        prop_assert_eq!(kept, distinct.into_iter().collect::<Vec<_>>());
        let new: Vec<Head> = std::iter::from_fn(|| ring.pop(&mut chain).unwrap()).collect();
        answer(&mut ring, repeats.into_iter().chain(new));
        prop_assert_eq!(rig.region.peek::<192>(0), [0; 192]);
    }
}
