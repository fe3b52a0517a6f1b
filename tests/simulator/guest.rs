//! A guest with some queues, laid out by hand: it sends requests, takes answers, and outlives back ends.

use std::fs::File;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, memfd_create};
use sealblk::guest::{GuestAddress, GuestMemory, InflightGeometry, InflightRegion, Region, inflight};
use sealblk::virtio::{RingAddresses, RingSetup, Tracking};
use sealblk::worker::QueueSetup;
use vm_memory::{Bytes, FileOffset, GuestMemoryMmap};

/// Requests that a queue has at most; three descriptors each.
pub const SLOTS: usize = 8;
/// Longest data of a request.
pub const MAX_DATA_BYTES: usize = 32 << 10;

pub const T_IN: u32 = 0;
pub const T_OUT: u32 = 1;
pub const T_FLUSH: u32 = 4;
pub const T_WRITE_ZEROES: u32 = 13;

const RING_SIZE: u16 = 32;
const QUEUE_BYTES: u64 = 1 << 20;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const HEADERS: u64 = 0x3000;
const STATUS: u64 = 0x4000;
const DATA: u64 = 0x1_0000;
const UNTOUCHED: u8 = 0xff;

/// One answer.
pub struct Answer {
    pub slot: usize,
    pub status: u8,
    pub used_bytes: usize,
}

pub struct Guest {
    memory: GuestMemoryMmap<()>,
    device_memory: Arc<GuestMemory>,
    queues: Vec<Queue>,
    region: Arc<InflightRegion>,
}

struct Queue {
    available: u16,
    seen: u16,
}

impl Guest {
    /// A guest whose rings begin at that index.
    pub fn new(queue_count: usize, begin: u16) -> Self {
        let bytes = QUEUE_BYTES * queue_count as u64;
        let file = File::from(memfd_create(c"guest", MemfdFlags::CLOEXEC).expect("a memory file"));
        file.set_len(bytes).expect("memory for it");
        let own = FileOffset::new(file.try_clone().expect("a descriptor"), 0);
        let start = vm_memory::GuestAddress(0);
        let memory =
            GuestMemoryMmap::from_ranges_with_files([(start, bytes as usize, Some(own))]).expect("a mapping");
        let region = Region::map(0, 0, bytes, file, 0).expect("a mapping");
        let device_memory = Arc::new(GuestMemory::from_regions([region]).expect("one region"));
        let queues = (0..queue_count).map(|_| Queue { available: begin, seen: begin }).collect();
        let mut guest = Self { memory, device_memory, queues, region: fresh_region(queue_count) };
        guest.boot(begin);
        guest
    }

    /// Begins anew: rings at that index, with nothing in them, and an in-flight region that nobody has used.
    pub fn boot(&mut self, begin: u16) {
        self.region = fresh_region(self.queues.len());
        for index in 0..self.queues.len() {
            self.queues[index] = Queue { available: begin, seen: begin };
            self.put(index, AVAILABLE + 2, &begin.to_le_bytes());
            self.put(index, USED + 2, &begin.to_le_bytes());
        }
    }

    fn put(&self, queue: usize, at: u64, bytes: &[u8]) {
        let address = vm_memory::GuestAddress(QUEUE_BYTES * queue as u64 + at);
        self.memory.write_slice(bytes, address).expect("guest memory");
    }

    fn get<const N: usize>(&self, queue: usize, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        let address = vm_memory::GuestAddress(QUEUE_BYTES * queue as u64 + at);
        self.memory.read_slice(&mut bytes, address).expect("guest memory");
        bytes
    }

    /// Makes a request available. `data` is what the device reads, `room` how much it may write.
    pub fn send(&mut self, queue: usize, slot: usize, kind: u32, sector: u64, data: &[u8], room: usize) {
        let n = slot as u64;
        let (header, status) = (HEADERS + 16 * n, STATUS + n);
        let data_at = DATA + (MAX_DATA_BYTES * slot) as u64;
        self.put(queue, header, &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
        self.put(queue, status, &[UNTOUCHED]);
        self.put(queue, data_at, data);
        self.put(queue, data_at, &vec![UNTOUCHED; room]);
        let middle = (data_at, data.len() + room, if room > 0 { 2 } else { 0 });
        let parts = [(header, 16, 0), middle, (status, 1, 2)];
        let parts = parts.into_iter().filter(|(_, len, _)| *len > 0).collect::<Vec<_>>();
        for (i, (at, len, flags)) in parts.iter().enumerate() {
            let entry = 3 * slot + i;
            let flags = if i + 1 < parts.len() { flags | 1 } else { *flags };
            let address = QUEUE_BYTES * queue as u64 + at;
            let bytes = [
                &address.to_le_bytes()[..],
                &(*len as u32).to_le_bytes(),
                &u16::to_le_bytes(flags),
                &(entry as u16 + 1).to_le_bytes(),
            ];
            self.put(queue, 16 * entry as u64, &bytes.concat());
        }
        let index = self.queues[queue].available;
        self.put(queue, AVAILABLE + 4 + 2 * u64::from(index % RING_SIZE), &(3 * slot as u16).to_le_bytes());
        self.queues[queue].available = index.wrapping_add(1);
        self.put(queue, AVAILABLE + 2, &index.wrapping_add(1).to_le_bytes());
    }

    /// The next answer, if there is one.
    pub fn take_answer(&mut self, queue: usize) -> Option<Answer> {
        let (used, seen) = (u16::from_le_bytes(self.get(queue, USED + 2)), self.queues[queue].seen);
        assert!(used.wrapping_sub(seen) <= RING_SIZE, "the used index ran ahead");
        if used == seen {
            return None;
        }
        self.queues[queue].seen = seen.wrapping_add(1);
        let entry: [u8; 8] = self.get(queue, USED + 4 + 8 * u64::from(seen % RING_SIZE));
        let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().expect("4 bytes")) as usize;
        assert!(word(0).is_multiple_of(3) && word(0) < 3 * SLOTS, "an answer to no head of ours");
        let slot = word(0) / 3;
        let [status] = self.get(queue, STATUS + slot as u64);
        Some(Answer { slot, status, used_bytes: word(4) })
    }

    /// What a request has read.
    pub fn data(&self, queue: usize, slot: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let at = QUEUE_BYTES * queue as u64 + DATA + (MAX_DATA_BYTES * slot) as u64;
        self.memory.read_slice(&mut bytes, vm_memory::GuestAddress(at)).expect("guest memory");
        bytes
    }

    /// What a back end needs to serve a queue. Where to go on it has to find out: front ends only guess that.
    pub fn setup(&self, queue: usize) -> QueueSetup {
        let base = QUEUE_BYTES * queue as u64;
        let addresses = RingAddresses {
            descriptors: GuestAddress(base),
            available: GuestAddress(base + AVAILABLE),
            used: GuestAddress(base + USED),
        };
        let next_available = 0x1234;
        let region = self.region.queue(queue as u16).expect("one part each");
        QueueSetup {
            index: queue as u16,
            ring: RingSetup { size: RING_SIZE, addresses, next_available, event_idx: false, indirect: false },
            memory: Arc::clone(&self.device_memory),
            kick: eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd"),
            call: None,
            error: None,
            enabled: true,
            tracking: Some(Tracking { region, recover: true }),
            log: None,
        }
    }

    /// The in-flight region.
    pub fn region(&self) -> Arc<InflightRegion> {
        Arc::clone(&self.region)
    }

    /// Requests that the in-flight region says were taken and not answered.
    pub fn in_flight(&self) -> usize {
        let parts = (0..self.queues.len() as u16).filter_map(|queue| self.region.queue(queue));
        parts.map(|part| (0..RING_SIZE).filter(|head| part.is_in_flight(*head)).count()).sum()
    }
}

fn fresh_region(queue_count: usize) -> Arc<InflightRegion> {
    let geometry = InflightGeometry::of(queue_count as u16, RING_SIZE).expect("a sane region");
    let file = inflight::create_file(&geometry).expect("a memory file");
    Arc::new(InflightRegion::map(file, &geometry).expect("a mapping"))
}
