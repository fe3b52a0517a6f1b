//! A ring and its part of the in-flight region as the specification has them: plain values, one step after the other.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub const HEADER_BYTES: usize = 16;
pub const ENTRY_BYTES: usize = 16;

/// What the driver has made available.
#[derive(Clone, Copy)]
pub struct Available<'a> {
    pub index: u16,
    pub heads: &'a [u16],
}

/// What a back end is to find out from a region that a predecessor has left.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    pub repeats: Vec<u16>,
    pub foreign: bool,
}

/// A driver whose index cannot be.
#[derive(Debug, PartialEq, Eq)]
pub struct Impossible;

#[derive(Debug)]
pub struct Model {
    /// Every byte of the region, those of other queues included.
    pub region: Vec<u8>,
    /// Where this ring's part begins there.
    part: usize,
    pub size: u16,
    /// Heads that the part has room for.
    head_count: u16,
    pub next_available: u16,
    pub next_used: u16,
    pub published_used: u16,
    pub in_flight: BTreeSet<u16>,
    pub repeats: VecDeque<u16>,
    next_counter: u64,
    last_batch_head: u16,
    batch: Vec<u16>,
}

impl Model {
    pub fn new(region: Vec<u8>, part: usize, size: u16, head_count: u16, used: u16) -> Self {
        Self {
            region,
            part,
            size,
            head_count,
            next_available: 0,
            next_used: used,
            published_used: used,
            in_flight: BTreeSet::new(),
            repeats: VecDeque::new(),
            next_counter: 0,
            last_batch_head: 0,
            batch: Vec::new(),
        }
    }

    /// A back end that begins where another has died, as the used ring and the region tell.
    pub fn recover(&mut self, available: u16) -> Found {
        self.forget();
        let repeats = match self.header(8) {
            0 => None,
            1 => self.examine(available),
            _ => None,
        };
        let foreign = repeats.is_none() && self.header(8) != 0;
        match &repeats {
            Some(repeats) => self.settle(repeats),
            None => self.begin(),
        }
        let repeats = repeats.unwrap_or_default();
        self.next_available = self.published_used.wrapping_add(repeats.len() as u16);
        self.in_flight = repeats.iter().copied().collect();
        self.repeats = repeats.clone().into();
        Found { repeats, foreign }
    }

    /// A back end that knows that nothing is under way.
    pub fn restart(&mut self, next_available: u16) {
        self.forget();
        self.begin();
        self.next_available = next_available;
    }

    /// What a process that has died knew.
    fn forget(&mut self) {
        self.next_used = self.published_used;
        (self.next_counter, self.last_batch_head) = (0, 0);
        self.batch.clear();
        self.repeats.clear();
        self.in_flight.clear();
    }

    fn examine(&mut self, available: u16) -> Option<Vec<u16>> {
        let mut noted: BTreeMap<u16, u64> = (0..self.size)
            .filter(|head| self.region[self.entry(*head)] != 0)
            .map(|head| (head, self.counter(head)))
            .collect();
        if noted.is_empty() {
            return Some(Vec::new());
        }
        // Published, and not noted down as answered.
        let published = self.published_used.wrapping_sub(self.header(14));
        if published > self.size {
            return None;
        }
        let mut head = self.header(12);
        for _ in 0..published {
            if head >= self.size {
                break;
            }
            noted.remove(&head);
            head = self.word(self.entry(head) + 6);
        }
        let unanswered = available.wrapping_sub(self.published_used);
        if unanswered > self.size || noted.len() > usize::from(unanswered) {
            return None;
        }
        let mut taken: Vec<(u64, u16)> = noted.into_iter().map(|(head, counter)| (counter, head)).collect();
        taken.sort_unstable();
        self.next_counter = taken.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        Some(taken.into_iter().map(|(_, head)| head).collect())
    }

    fn settle(&mut self, in_flight: &[u16]) {
        for head in (0..self.head_count).filter(|head| !in_flight.contains(head)) {
            let entry = self.entry(head);
            self.region[entry] = 0;
        }
        self.set_header(14, self.published_used);
    }

    fn begin(&mut self) {
        self.settle(&[]);
        self.set_header(10, self.head_count);
        self.set_header(8, 1);
    }

    /// Takes what the driver has made available next.
    pub fn pop(&mut self, available: Available) -> Result<Option<u16>, Impossible> {
        let count = available.index.wrapping_sub(self.next_available);
        if count > self.size {
            return Err(Impossible);
        }
        for _ in 0..count {
            let head = available.heads[usize::from(self.next_available % self.size)];
            self.next_available = self.next_available.wrapping_add(1);
            if head < self.size && self.in_flight.insert(head) {
                let entry = self.entry(head);
                self.region[entry] = 1;
                self.region[entry + 8..entry + 16].copy_from_slice(&self.next_counter.to_ne_bytes());
                self.next_counter = self.next_counter.wrapping_add(1);
                return Ok(Some(head));
            }
        }
        Ok(None)
    }

    pub fn complete(&mut self, head: u16) {
        assert!(self.in_flight.remove(&head));
        self.next_used = self.next_used.wrapping_add(1);
        let entry = self.entry(head);
        self.set_word(entry + 6, self.last_batch_head);
        self.set_header(12, head);
        self.last_batch_head = head;
        self.batch.push(head);
    }

    /// Returns the heads that are answered now.
    pub fn publish(&mut self) -> Vec<u16> {
        let batch = std::mem::take(&mut self.batch);
        for head in &batch {
            let entry = self.entry(*head);
            self.region[entry] = 0;
        }
        if self.next_used != self.published_used {
            self.published_used = self.next_used;
            self.set_header(14, self.next_used);
        }
        batch
    }

    /// Where a head's entry begins in the region.
    pub fn entry(&self, head: u16) -> usize {
        self.part + HEADER_BYTES + ENTRY_BYTES * usize::from(head)
    }

    fn counter(&self, head: u16) -> u64 {
        let at = self.entry(head) + 8;
        u64::from_ne_bytes(self.region[at..at + 8].try_into().expect("eight bytes"))
    }

    fn header(&self, offset: usize) -> u16 {
        self.word(self.part + offset)
    }

    pub fn set_header(&mut self, offset: usize, value: u16) {
        self.set_word(self.part + offset, value);
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_ne_bytes([self.region[at], self.region[at + 1]])
    }

    pub fn set_word(&mut self, at: usize, value: u16) {
        self.region[at..at + 2].copy_from_slice(&value.to_ne_bytes());
    }
}
