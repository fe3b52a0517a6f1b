//! Which requests of a ring are under way, noted where a successor finds it, and how that successor goes on.
//!
//! The stores and their order are those of the vhost-user specification ("Inflight I/O tracking"). A crash between any
//! two of them leaves one of three states, each of which recovery tells apart:
//!
//! 1. nothing of a batch was published: all its heads still count as in flight, and are repeated;
//! 2. the batch was published, and not yet noted down as answered: the used ring is ahead of the region by its
//!    length, and the list that begins at the last batch's head names it;
//! 3. both agree.
//!
//! The list is therefore the batch that was published in one go, never a part of it or more than it: whoever adds
//! to the list after it has published something has to note that down first.

use crate::guest::inflight::{InflightQueue, VERSION};

/// Where the driver and the predecessor left the ring.
#[derive(Clone, Copy, Debug)]
pub(super) struct RingIndices {
    pub(super) size: u16,
    pub(super) available: u16,
    pub(super) used: u16,
}

/// What a region told about its ring.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Findings {
    /// These heads are to be repeated, in this order.
    Repeat(Vec<u16>),
    /// It cannot be about this ring in the state that it is in.
    Foreign,
}

/// The notes of one running ring.
#[derive(Debug)]
pub(super) struct Tracker {
    region: InflightQueue,
    next_counter: u64,
    last_batch_head: u16,
    /// Heads that were completed since the last publication. Our own copy: the list in the region is for a
    /// successor.
    batch: Vec<u16>,
}

impl Tracker {
    /// Notes for a ring of that size, in a region that has room for them.
    pub(super) fn new(region: InflightQueue, size: u16) -> Self {
        debug_assert!(size <= region.head_count());
        Self { region, next_counter: 0, last_batch_head: 0, batch: Vec::with_capacity(usize::from(size)) }
    }

    /// Takes over from a predecessor: finds out what it has taken and not answered, and notes that down.
    pub(super) fn recover(&mut self, ring: RingIndices) -> Findings {
        let findings = match self.region.version() {
            0 => Findings::Repeat(Vec::new()),
            VERSION => match self.examine(ring) {
                Findings::Repeat(heads) => {
                    self.settle(ring.used, &heads);
                    return Findings::Repeat(heads);
                }
                Findings::Foreign => Findings::Foreign,
            },
            _ => Findings::Foreign,
        };
        self.begin(ring.used);
        findings
    }

    /// What a region of our version says, each value of it read once.
    fn examine(&mut self, ring: RingIndices) -> Findings {
        let mut counters: Vec<Option<u64>> = (0..ring.size)
            .map(|head| self.region.is_in_flight(head).then(|| self.region.counter(head)))
            .collect();
        if counters.iter().all(Option::is_none) {
            return Findings::Repeat(Vec::new());
        }
        let batch_len = ring.used.wrapping_sub(self.region.used_index());
        if batch_len > ring.size {
            return Findings::Foreign;
        }
        let mut head = self.region.last_batch_head();
        for _ in 0..batch_len {
            let Some(counter) = counters.get_mut(usize::from(head)) else { break };
            *counter = None;
            head = self.region.next(head);
        }
        let mut taken: Vec<(u64, u16)> =
            (0..).zip(counters).filter_map(|(head, counter)| Some((counter?, head))).collect();
        // Each of them was made available and not used.
        let unanswered = ring.available.wrapping_sub(ring.used);
        if unanswered > ring.size || taken.len() > usize::from(unanswered) {
            return Findings::Foreign;
        }
        taken.sort_unstable();
        self.next_counter = taken.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        Findings::Repeat(taken.into_iter().map(|(_, head)| head).collect())
    }

    /// Notes down that only these heads are in flight.
    fn settle(&self, used: u16, in_flight: &[u16]) {
        let mut settled = vec![true; usize::from(self.region.head_count())];
        for &head in in_flight {
            settled[usize::from(head)] = false;
        }
        for (head, settled) in (0..).zip(settled) {
            if settled && self.region.is_in_flight(head) {
                self.region.set_in_flight(head, false);
            }
        }
        self.region.set_used_index(used);
    }

    /// Notes down that nothing is in flight, whatever the region said before.
    pub(super) fn begin(&mut self, used: u16) {
        // Not valid in between.
        self.region.set_version(0);
        self.settle(used, &[]);
        self.region.set_descriptor_count();
        self.region.set_version(VERSION);
    }

    /// A request was taken.
    pub(super) fn take(&mut self, head: u16) {
        self.region.set_counter(head, self.next_counter);
        self.next_counter = self.next_counter.wrapping_add(1);
        self.region.set_in_flight(head, true);
    }

    /// A request's answer is in the used ring, and not published yet.
    pub(super) fn complete(&mut self, head: u16) {
        self.region.set_next(head, self.last_batch_head);
        self.region.set_last_batch_head(head);
        self.last_batch_head = head;
        self.batch.push(head);
    }

    /// Everything completed so far was published, with the used ring's index at `used`.
    pub(super) fn published(&mut self, used: u16) {
        for head in self.batch.drain(..) {
            self.region.set_in_flight(head, false);
        }
        self.region.set_used_index(used);
    }
}

#[cfg(test)]
mod tests;
