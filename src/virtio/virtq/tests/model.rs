//! The ring beside a model of it: whatever a driver offers, and in whatever order it is answered, both say the same.

use std::collections::{BTreeSet, VecDeque};

use super::*;

const SIZE: u16 = 4;

/// What happens next on one side of the ring.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The driver makes a head available that may be none, or under way already.
    Offer(u16),
    Pop,
    /// One of those under way is answered.
    Complete(usize),
    Publish,
    /// The ring is stopped with everything answered, and started where it was.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..SIZE + 2).prop_map(Step::Offer),
        4 => Just(Step::Pop),
        4 => any::<usize>().prop_map(Step::Complete),
        2 => Just(Step::Publish),
        1 => Just(Step::Restart),
    ]
}

/// What the ring has to do, told in another way.
struct Model {
    offered: VecDeque<u16>,
    under_way: BTreeSet<u16>,
    /// What each element of the used ring holds, whether published or not.
    elements: [(u32, u32); SIZE as usize],
    answered: u16,
    published: u16,
}

impl Model {
    fn pop(&mut self) -> Option<u16> {
        while let Some(head) = self.offered.pop_front() {
            if head < SIZE && self.under_way.insert(head) {
                return Some(head);
            }
        }
        None
    }

    fn complete(&mut self, head: u16, written_bytes: u32) {
        assert!(self.under_way.remove(&head));
        self.elements[usize::from(self.answered % SIZE)] = (u32::from(head), written_bytes);
        self.answered = self.answered.wrapping_add(1);
    }
}

struct Pair {
    driver: Driver,
    ring: Virtq,
    heads: Vec<Head>,
    model: Model,
    event_idx: bool,
}

impl Pair {
    /// Both having run up to index `begin`.
    fn new(begin: u16, event_idx: bool) -> Self {
        let mut driver = Driver::new(SIZE);
        driver.begin_at(begin);
        let ring = Self::start(&driver, begin, event_idx);
        let model = Model {
            offered: VecDeque::new(),
            under_way: BTreeSet::new(),
            elements: Default::default(),
            answered: begin,
            published: begin,
        };
        Self { driver, ring, heads: Vec::new(), model, event_idx }
    }

    fn start(driver: &Driver, next_available: u16, event_idx: bool) -> Virtq {
        let setup = RingSetup { next_available, ..driver.setup(event_idx) };
        Virtq::new(&setup, LocalMemory::new(Arc::clone(&driver.device_memory))).unwrap()
    }

    fn take(&mut self, step: Step, number: u32) {
        match step {
            // A driver that offers more than fits breaks its ring: another test's matter.
            Step::Offer(_) if self.model.offered.len() == usize::from(SIZE) => {}
            Step::Offer(head) => {
                self.driver.offer_entry(head);
                self.model.offered.push_back(head);
            }
            Step::Pop => {
                let popped = pop(&mut self.ring).map(|(head, _)| head);
                assert_eq!(popped.as_ref().map(|head| head.0), self.model.pop());
                self.heads.extend(popped);
            }
            Step::Complete(_) if self.heads.is_empty() => {}
            Step::Complete(choice) => {
                let head = self.heads.swap_remove(choice % self.heads.len());
                self.model.complete(head.0, number);
                self.ring.complete(head, number);
            }
            Step::Publish => self.publish(),
            Step::Restart => {
                while !self.heads.is_empty() {
                    self.take(Step::Complete(0), number);
                }
                self.publish();
                let RingState { next_available } = self.ring.state();
                self.ring = Self::start(&self.driver, next_available, self.event_idx);
            }
        }
        self.compare();
    }

    fn publish(&mut self) {
        let news = self.model.answered.wrapping_sub(self.model.published);
        let event = self.driver.used_event();
        let wanted = self.ring.publish();
        // With an event index: whether the index has passed it, counted one by one.
        let passed = (0..news).any(|i| self.model.published.wrapping_add(i) == event);
        assert_eq!(wanted, if self.event_idx { passed } else { news > 0 });
        self.model.published = self.model.answered;
        for at in 0..SIZE {
            assert_eq!(self.driver.used(at), self.model.elements[usize::from(at)], "element {at}");
        }
        // Any index that the driver may wait for next.
        self.driver.set_used_event(self.model.published.wrapping_add(event % 3));
    }

    fn compare(&self) {
        assert_eq!(self.driver.used_index(), self.model.published);
        assert_eq!(usize::from(self.ring.in_flight_count()), self.model.under_way.len());
        assert_eq!(self.ring.has_unpublished(), self.model.answered != self.model.published);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 10 } else { 3000 }))]

    #[test]
    fn the_ring_does_what_its_model_does(
        steps in prop::collection::vec(step(), 1..60),
        begin in prop_oneof![Just(0), Just(u16::MAX - 3), any::<u16>()],
        event_idx in any::<bool>(),
    ) {
        let mut pair = Pair::new(begin, event_idx);
        for (number, step) in (0..).zip(steps) {
            pair.take(step, number);
        }
        pair.heads.drain(..).for_each(Head::leave);
    }

    /// As long as there is anything to take, the driver's claim is at most the ring's size; any other is an error, and
    /// takes nothing.
    #[test]
    fn any_index_is_possible_or_an_error(begin in any::<u16>(), index in any::<u16>()) {
        let mut pair = Pair::new(begin, false);
        pair.driver.claim(index);
        let claimed = index.wrapping_sub(begin);
        let popped = pair.ring.pop(&mut Chain::new());
        if claimed > SIZE {
            prop_assert_eq!(popped.err(), Some(RingError::AvailableIndex { index, next: begin, size: SIZE }));
            prop_assert_eq!(pair.ring.state(), RingState { next_available: begin });
        } else {
            // All entries are zeroes: one head, again and again.
            let head = popped.unwrap();
            prop_assert_eq!(head.is_some(), claimed > 0);
            head.into_iter().for_each(Head::leave);
        }
    }
}
