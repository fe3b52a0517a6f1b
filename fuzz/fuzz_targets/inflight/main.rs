//! The in-flight region, as a front end might forge it before and while a ring goes on from it: every store to it, every
//! request that is repeated and every answer is that of a model; what nobody has forged is repeated exactly as it was
//! taken; and a region is mapped only where all of it can be touched.
#![no_main]

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use sealblk::guest::inflight::{self, Remembered};
use sealblk::guest::{GuestAddress, InflightGeometry, InflightRegion, LocalMemory};
use sealblk::virtio::{Chain, Head, RingAddresses, RingSetup, Tracking, Virtq};
use sealblk_fuzz::{Ram, RamRegion};

use mapping::Claim;
use model::{Available, Found, Model};

mod mapping;
mod model;

const RAM: &[RamRegion] = &[RamRegion { start: 0, len_bytes: 1 << 13 }];
const ADDRESSES: RingAddresses = RingAddresses {
    descriptors: GuestAddress(0),
    available: GuestAddress(0x800),
    used: GuestAddress(0x1000),
};
const QUEUES: u16 = 2;
const SIZE_DOUBLINGS_MAX: u8 = 5;
const STEPS_MAX: usize = 256;

#[derive(Arbitrary, Debug)]
struct Input {
    claim: Claim,
    size_doublings: u8,
    /// What the region has more room for.
    spare_heads: u8,
    queue: bool,
    used: u16,
    /// What the driver has made available beyond that.
    available_ahead: u8,
    available: Vec<u8>,
    /// What somebody has written into the region, if it is not a fresh one.
    left: Option<Left>,
    steps: Vec<Step>,
}

/// A region as a predecessor might have left it, or a front end that has seen one.
#[derive(Arbitrary, Debug)]
struct Left {
    /// Mostly ours.
    version: u8,
    used_behind: u8,
    last_batch_head: u8,
    entries: Vec<Entry>,
    bytes: Vec<(u16, u8)>,
}

#[derive(Arbitrary, Debug)]
struct Entry {
    in_flight: u8,
    next: u8,
    counter: Counter,
}

/// Mostly small, so that some are equal.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Counter {
    Small(u8),
    Any(u64),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Step {
    Offer {
        head: u8,
    },
    /// An index that the driver has not come to by offering.
    MoveAvailable {
        by: i8,
    },
    Pop,
    PopRepeat,
    Complete {
        which: u8,
        written_bytes: u32,
    },
    Publish,
    Forge {
        offset: u16,
        byte: u8,
    },
    Remember {
        writeback: bool,
    },
    NoteSyncFailed {
        failed: bool,
    },
    /// The process dies, and another takes over.
    Die,
    /// The ring is stopped with nothing under way and started again.
    Restart,
}

struct Rig {
    ram: std::rc::Rc<Ram>,
    file: File,
    region: Arc<InflightRegion>,
    queue: u16,
    ring: Virtq,
    model: Model,
    held: Vec<(u16, Head)>,
    available: u16,
    available_heads: Vec<u16>,
    /// Requests taken and not answered, in this order, as long as neither the front end nor the driver has lied.
    honest: Option<Vec<u16>>,
}

impl Rig {
    fn new(input: &Input) -> Self {
        let size = 1 << (input.size_doublings % (SIZE_DOUBLINGS_MAX + 1));
        let head_count = size + u16::from(input.spare_heads % 8);
        let ram = Ram::reused(RAM);
        // Each chain is one descriptor, whose address tells which.
        for head in 0..size {
            ram.write(16 * u64::from(head), &address_of(head).to_le_bytes());
        }
        ram.write(ADDRESSES.used.0 + 2, &input.used.to_le_bytes());

        let geometry = InflightGeometry::of(QUEUES, head_count).expect("a small ring");
        let file = inflight::create_file(&geometry).expect("memory for a region");
        let region = InflightRegion::map(file.try_clone().expect("a descriptor"), &geometry);
        let region = Arc::new(region.expect("it is our own"));
        let queue = u16::from(input.queue);
        let part_bytes = (geometry.len_bytes as usize - 64) / usize::from(QUEUES);
        let part = usize::from(queue) * part_bytes;
        let mut model = Model::new(vec![0; geometry.len_bytes as usize], part, size, head_count, input.used);
        if let Some(left) = &input.left {
            left.write(&mut model);
            file.write_all_at(&model.region, 0).expect("in the region");
        }
        let available_heads: Vec<u16> = (0..usize::from(size))
            .map(|at| input.available.get(at).map_or(at as u16, |head| u16::from(*head)))
            .collect();
        let honest = (input.left.is_none() && input.available_ahead == 0).then(Vec::new);
        let ring = ring(&ram, size, 0);
        let available = input.used.wrapping_add(u16::from(input.available_ahead));
        let mut rig = Self {
            ram,
            file,
            region,
            queue,
            ring,
            model,
            held: Vec::new(),
            available,
            available_heads,
            honest,
        };
        rig.write_available();
        rig.recover();
        rig
    }

    fn write_available(&self) {
        self.ram.write(ADDRESSES.available.0 + 2, &self.available.to_le_bytes());
        let heads: Vec<u8> = self.available_heads.iter().flat_map(|head| head.to_le_bytes()).collect();
        self.ram.write(ADDRESSES.available.0 + 4, &heads);
    }

    fn tracking(&self, recover: bool) -> Tracking {
        Tracking { region: self.region.queue(self.queue).expect("it has that queue"), recover }
    }

    /// Where it is told to begin is wrong, as after a crash.
    fn recover(&mut self) {
        self.held.drain(..).for_each(|(_, head)| head.leave());
        self.ring = ring(&self.ram, self.model.size, 0x4321);
        let recovery = self.ring.track(self.tracking(true)).expect("it has room");
        let found = self.model.recover(self.available);
        let count = usize::from(recovery.repeats);
        assert_eq!((count, recovery.foreign), (found.repeats.len(), found.foreign), "{found:?}");
        let Found { repeats, .. } = found;
        if let Some(honest) = &self.honest {
            assert_eq!(&repeats, honest, "what was taken and not answered is repeated in that order");
        }
    }

    fn step(&mut self, step: Step, chain: &mut Chain) {
        match step {
            Step::Offer { head } => self.offer(u16::from(head)),
            Step::MoveAvailable { by } => {
                self.honest = None;
                self.available = self.available.wrapping_add_signed(by.into());
                self.write_available();
            }
            Step::Pop => self.pop(chain),
            Step::PopRepeat => {
                let expected = self.model.repeats.pop_front();
                let head = self.ring.pop_repeat(chain);
                assert_eq!(self.ring.has_repeats(), !self.model.repeats.is_empty());
                self.hold(head, expected, chain);
            }
            Step::Complete { which, written_bytes } if !self.held.is_empty() => {
                let (number, head) = self.held.swap_remove(usize::from(which) % self.held.len());
                let slot = u64::from(self.model.next_used % self.model.size);
                self.ring.complete(head, written_bytes);
                self.model.complete(number);
                let element = self.ram.read(ADDRESSES.used.0 + 4 + 8 * slot, 8);
                let expected = [u32::from(number).to_le_bytes(), written_bytes.to_le_bytes()].concat();
                assert_eq!(element, expected, "the answer to head {number}");
            }
            Step::Complete { .. } => {}
            Step::Publish => self.publish(),
            Step::Forge { offset, byte } => {
                self.honest = None;
                let offset = usize::from(offset) % self.model.region.len();
                self.model.region[offset] = byte;
                self.file.write_all_at(&[byte], offset as u64).expect("in the region");
            }
            Step::Remember { writeback } => {
                self.region.remember(Remembered { writeback });
                assert_eq!(self.region.remembered(), Some(Remembered { writeback }));
                self.write_word(0, u64::from_le_bytes(*b"sealblk1"));
                self.write_word(1, writeback.into());
            }
            Step::NoteSyncFailed { failed } => {
                self.region.note_sync_failed(failed);
                assert_eq!(self.region.has_sync_failed(), failed);
                self.write_word(2, if failed { u64::from_le_bytes(*b"unsynced") } else { 0 });
            }
            Step::Die => self.recover(),
            Step::Restart => self.restart(),
        }
        self.check();
    }

    fn offer(&mut self, head: u16) {
        if self.available.wrapping_sub(self.model.published_used) < self.model.size {
            let slot = usize::from(self.available % self.model.size);
            self.available_heads[slot] = head;
            self.available = self.available.wrapping_add(1);
            self.write_available();
        }
    }

    fn pop(&mut self, chain: &mut Chain) {
        let available = Available { index: self.available, heads: &self.available_heads };
        let expected = self.model.pop(available);
        let popped = self.ring.pop(chain);
        assert_eq!(popped.is_err(), expected.is_err(), "{popped:?}, {expected:?}");
        let (Ok(head), Ok(expected)) = (popped, expected) else { return };
        if let (Some(honest), Some(head)) = (&mut self.honest, expected) {
            // A driver that offers a head again before it can have seen the answer.
            if honest.contains(&head) {
                self.honest = None;
            } else {
                honest.push(head);
            }
        }
        self.hold(head, expected, chain);
    }

    fn hold(&mut self, head: Option<Head>, expected: Option<u16>, chain: &Chain) {
        assert_eq!(head.is_some(), expected.is_some(), "{head:?}, {expected:?}");
        let (Some(head), Some(number)) = (head, expected) else { return };
        self.held.push((number, head));
        assert_eq!(chain.descriptors().len(), 1, "head {number}");
        assert_eq!(chain.descriptors()[0].address.0, address_of(number), "another head than {number}");
    }

    fn publish(&mut self) {
        let _notified = self.ring.publish();
        let answered = self.model.publish();
        if let Some(honest) = &mut self.honest {
            honest.retain(|head| !answered.contains(head));
        }
    }

    fn restart(&mut self) {
        self.publish();
        if self.ring.in_flight_count() > 0 {
            return;
        }
        let next_available = self.ring.state().next_available;
        self.ring = ring(&self.ram, self.model.size, next_available);
        let recovery = self.ring.track(self.tracking(false)).expect("it has room");
        assert_eq!((recovery.repeats, recovery.foreign), (0, false));
        self.model.restart(next_available);
    }

    /// Of those behind the queues.
    fn write_word(&mut self, word: usize, value: u64) {
        let at = self.model.region.len() - 64 + 8 * word;
        self.model.region[at..at + 8].copy_from_slice(&value.to_ne_bytes());
    }

    fn check(&self) {
        let mut region = vec![0; self.model.region.len()];
        self.file.read_exact_at(&mut region, 0).expect("all of it is there");
        if region != self.model.region {
            let differing: BTreeMap<usize, (u8, u8)> = (0..region.len())
                .filter(|at| region[*at] != self.model.region[*at])
                .map(|at| (at, (region[at], self.model.region[at])))
                .collect();
            panic!("bytes of the region, as they are and as they should be: {differing:?}");
        }
        assert_eq!(usize::from(self.ring.in_flight_count()), self.model.in_flight.len());
        assert_eq!(self.ring.state().next_available, self.model.next_available);
        assert_eq!(self.ring.has_unpublished(), self.model.next_used != self.model.published_used);
        assert_eq!(self.ram.read_u16(ADDRESSES.used.0 + 2), self.model.published_used);
    }
}

impl Left {
    fn write(&self, model: &mut Model) {
        let version = if self.version < 0xe0 { 1 } else { u16::from(self.version & 3) << (self.version & 8) };
        model.set_header(8, version);
        model.set_header(12, self.last_batch_head.into());
        model.set_header(14, model.published_used.wrapping_sub(self.used_behind.into()));
        let room = usize::from(model.size) + 8;
        for (head, entry) in self.entries.iter().enumerate().take(room) {
            let at = model.entry(head as u16);
            // Entries behind the part are the next queue's, or nobody's.
            let Some(bytes) = model.region.get_mut(at..at + model::ENTRY_BYTES) else { break };
            bytes[0] = entry.in_flight;
            bytes[6..8].copy_from_slice(&u16::from(entry.next).to_ne_bytes());
            let counter = match entry.counter {
                Counter::Small(counter) => counter.into(),
                Counter::Any(counter) => counter,
            };
            bytes[8..].copy_from_slice(&counter.to_ne_bytes());
        }
        for (offset, byte) in &self.bytes {
            let offset = usize::from(*offset) % model.region.len();
            model.region[offset] = *byte;
        }
    }
}

fn address_of(head: u16) -> u64 {
    0x1_0000 + u64::from(head)
}

fn ring(ram: &Ram, size: u16, next_available: u16) -> Virtq {
    let setup = RingSetup { size, addresses: ADDRESSES, next_available, event_idx: false, indirect: true };
    Virtq::new(&setup, LocalMemory::new(ram.map())).expect("its areas are there")
}

fuzz_target!(|input: Input| {
    input.claim.check();
    let mut rig = Rig::new(&input);
    rig.check();
    let mut chain = Chain::new();
    for step in input.steps.iter().take(STEPS_MAX) {
        rig.step(*step, &mut chain);
    }
    rig.held.drain(..).for_each(|(_, head)| head.leave());
});
