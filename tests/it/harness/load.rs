//! A guest under load that knows what its disk must hold, whatever becomes of the back end.

use std::rc::Rc;
use std::time::Instant;

use super::frontend::Frontend;
use super::memory::GuestRam;
use super::request::{S_OK, S_UNTOUCHED, T_FLUSH, T_IN, T_OUT, T_WRITE_ZEROES, header, segment};
use super::ring::{Desc, PATIENCE, Ring};
use super::volume::{Random, pattern};

/// The unit of the model.
pub const BLOCK_BYTES: usize = 4096;
const BLOCK_SECTORS: u64 = BLOCK_BYTES as u64 / 512;
const MAX_BLOCKS: usize = 16;
/// Requests that a queue has at most; three descriptors each.
const SLOTS: usize = 16;

/// What a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// What it held when the volume was made.
    Original,
    Zeroes,
    /// What the write of this number put there.
    Written(u64),
}

/// A request without an answer.
#[derive(Clone, Debug)]
pub struct Outstanding {
    pub kind: u32,
    /// First of the blocks that it is about, and how many these are. None for a flush.
    pub block: usize,
    pub count: usize,
    /// The number of the request.
    pub number: u64,
    /// How many its queue had sent before.
    order: u64,
}

/// What the guest did and what it learnt.
#[derive(Clone, Debug)]
pub enum Event {
    Sent(Outstanding),
    /// The request of this number was answered.
    Answered(u64),
}

struct Slot {
    header: u64,
    data: u64,
    status: u64,
    outstanding: Option<Outstanding>,
}

/// The guest's requests and its memory of them.
pub struct Load {
    ram: Rc<GuestRam>,
    random: Random,
    original: Vec<u8>,
    blocks: Vec<Content>,
    /// Blocks that a request is using: as file systems do, one at a time.
    busy: Vec<bool>,
    queues: Vec<Vec<Slot>>,
    sent: u64,
    sent_on: Vec<u64>,
    pub answered: u64,
    newest_answered: Vec<u64>,
    /// Answers that came before one of an earlier request.
    pub overtakings: u64,
    /// Everything since the guest began, in order.
    pub events: Vec<Event>,
}

impl Load {
    /// A guest that knows what its disk holds now.
    pub fn new(frontend: &Frontend, original: &[u8], seed: u64) -> Self {
        let ram = frontend.ram.clone();
        let slot = |_| Slot {
            header: ram.alloc(16, 16),
            data: ram.alloc((MAX_BLOCKS * BLOCK_BYTES) as u64, 4096),
            status: ram.alloc(1, 1),
            outstanding: None,
        };
        let queues: Vec<Vec<Slot>> = frontend.rings.iter().map(|_| (0..SLOTS).map(slot).collect()).collect();
        Self {
            random: Random::new(seed),
            original: original.to_vec(),
            blocks: vec![Content::Original; original.len() / BLOCK_BYTES],
            busy: vec![false; original.len() / BLOCK_BYTES],
            sent: 0,
            sent_on: vec![0; queues.len()],
            answered: 0,
            newest_answered: vec![0; queues.len()],
            overtakings: 0,
            events: Vec::new(),
            queues,
            ram,
        }
    }

    /// A number below `bound`, from the sequence that decides everything.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.random.below(bound)
    }

    /// Requests without an answer.
    pub fn outstanding(&self) -> usize {
        self.queues.iter().flatten().filter(|slot| slot.outstanding.is_some()).count()
    }

    /// Sends requests until all slots are in use.
    pub fn fill(&mut self, rings: &[Ring]) {
        for (queue, ring) in rings.iter().enumerate() {
            for slot in 0..SLOTS {
                if self.queues[queue][slot].outstanding.is_none() {
                    self.send(ring, slot);
                }
            }
            ring.kick();
        }
    }

    fn send(&mut self, ring: &Ring, slot: usize) {
        let kind = [T_OUT, T_OUT, T_OUT, T_OUT, T_OUT, T_IN, T_WRITE_ZEROES, T_FLUSH][self.below(8) as usize];
        let (mut block, mut count) = (0, 0);
        if kind != T_FLUSH {
            block = self.below(self.blocks.len() as u64) as usize;
            let most = 1 + if self.below(4) == 0 { self.below(MAX_BLOCKS as u64) as usize } else { 0 };
            count = (block..self.blocks.len()).take(most).take_while(|at| !self.busy[*at]).count();
            if count == 0 {
                return;
            }
            self.busy[block..block + count].fill(true);
        }
        self.sent += 1;
        self.sent_on[ring.index] += 1;
        let outstanding =
            Outstanding { kind, block, count, number: self.sent, order: self.sent_on[ring.index] };
        let place = &self.queues[ring.index][slot];
        let sector = if kind == T_WRITE_ZEROES { 0 } else { block as u64 * BLOCK_SECTORS };
        self.ram.write(place.header, &header(kind, 0, sector));
        self.ram.write(place.status, &[S_UNTOUCHED]);
        let len = (count * BLOCK_BYTES) as u32;
        let data = match kind {
            T_OUT => {
                let content = Content::Written(outstanding.number);
                self.ram.write(place.data, &self.bytes(block, count, |_| content));
                Some(Desc::readable(place.data, len))
            }
            T_WRITE_ZEROES => {
                let sectors = (count as u64 * BLOCK_SECTORS) as u32;
                self.ram.write(place.data, &segment(block as u64 * BLOCK_SECTORS, sectors, 0));
                Some(Desc::readable(place.data, 16))
            }
            T_IN => Some(Desc::writable(place.data, len)),
            _ => None,
        };
        let chain: Vec<Desc> =
            [Some(Desc::readable(place.header, 16)), data, Some(Desc::writable(place.status, 1))]
                .into_iter()
                .flatten()
                .collect();
        let head = ring.set_chain(3 * slot as u16, &chain);
        self.events.push(Event::Sent(outstanding.clone()));
        self.queues[ring.index][slot].outstanding = Some(outstanding);
        ring.publish(&[head]);
    }

    /// The bytes of these blocks when each of them has the content that `content` tells.
    pub fn bytes(&self, block: usize, count: usize, content: impl Fn(usize) -> Content) -> Vec<u8> {
        let one = |at: usize| match content(at) {
            Content::Original => self.original[at * BLOCK_BYTES..][..BLOCK_BYTES].to_vec(),
            Content::Zeroes => vec![0; BLOCK_BYTES],
            Content::Written(number) => pattern(number << 20 | at as u64, BLOCK_BYTES),
        };
        (block..block + count).flat_map(one).collect()
    }

    /// Takes the answers that are there, checks them, and sends new requests in their place if `go_on`. Returns how
    /// many there were.
    pub fn take_answers(&mut self, rings: &[Ring], go_on: bool) -> usize {
        let mut taken = 0;
        for ring in rings {
            while let Some(used) = ring.pop_used() {
                assert_eq!(used.head % 3, 0, "an answer to no head of ours");
                let slot = used.head as usize / 3;
                self.settle(ring.index, slot, used.len);
                taken += 1;
                if go_on {
                    self.send(ring, slot);
                }
            }
            ring.kick();
        }
        self.answered += taken as u64;
        taken
    }

    fn settle(&mut self, queue: usize, slot: usize, used_len: u32) {
        let place = &mut self.queues[queue][slot];
        let Some(request) = place.outstanding.take() else {
            panic!("queue {queue}: the request in slot {slot} was answered twice");
        };
        let (data, status) = (place.data, place.status);
        assert_eq!(self.ram.read(status, 1), [S_OK], "{request:?}");
        let Outstanding { kind, block, count, number, order } = request;
        if order < self.newest_answered[queue] {
            self.overtakings += 1;
        }
        self.newest_answered[queue] = self.newest_answered[queue].max(order);
        self.events.push(Event::Answered(number));
        self.busy[block..block + count].fill(false);
        match kind {
            T_OUT => self.blocks[block..block + count].fill(Content::Written(number)),
            T_WRITE_ZEROES => self.blocks[block..block + count].fill(Content::Zeroes),
            T_IN => {
                assert_eq!(used_len as usize, count * BLOCK_BYTES + 1);
                let read = self.ram.read(data, count * BLOCK_BYTES);
                let expected = self.bytes(block, count, |at| self.blocks[at]);
                assert!(read == expected, "request {number} read something else at block {block} + {count}");
            }
            _ => {}
        }
    }

    /// Waits for an answer on any ring.
    pub fn wait_for_answer(&self, rings: &[Ring]) {
        let deadline = Instant::now() + PATIENCE;
        while rings.iter().all(|ring| ring.pending() == 0) {
            assert!(Instant::now() < deadline, "no answer within {PATIENCE:?}: {}", self.unanswered());
            std::thread::yield_now();
        }
    }

    /// Waits until everything is answered. A request that was lost never is.
    pub fn finish(&mut self, rings: &[Ring]) {
        while self.outstanding() > 0 {
            self.wait_for_answer(rings);
            self.take_answers(rings, false);
        }
    }

    fn unanswered(&self) -> String {
        let slots = self.queues.iter().enumerate().flat_map(|(queue, slots)| {
            slots
                .iter()
                .filter_map(move |slot| Some(format!("queue {queue}: {:?}", slot.outstanding.as_ref()?)))
        });
        slots.collect::<Vec<_>>().join("; ")
    }

    /// What each block must hold, with nothing outstanding.
    pub fn contents(&self) -> &[Content] {
        assert_eq!(self.outstanding(), 0);
        &self.blocks
    }

    /// What the disk must hold, with nothing outstanding.
    pub fn disk(&self) -> Vec<u8> {
        assert_eq!(self.outstanding(), 0);
        self.bytes(0, self.blocks.len(), |at| self.blocks[at])
    }
}
