//! The guest's side of the ring: lays out requests as a plan says, and keeps account of what the device may touch.

use std::ops::Range;
use std::rc::Rc;

use sealblk::guest::GuestAddress;
use sealblk::virtio::{RingAddresses, RingSetup};
use sealblk_fuzz::{Ram, RamRegion};

use crate::script::{Flaw, Nowhere, RequestPlan};

const RINGS: RamRegion = RamRegion { start: 0x1_0000, len_bytes: 0x8000 };
/// Two regions side by side, so that buffers lie across their border.
const LOW: RamRegion = RamRegion { start: RINGS.start + RINGS.len_bytes, len_bytes: 0xc000 };
const HIGH: RamRegion = RamRegion { start: LOW.start + LOW.len_bytes, len_bytes: 0xc000 };
const ISLAND: RamRegion = RamRegion { start: 0x10_0000, len_bytes: 0x1000 };
const REGIONS: &[RamRegion] = &[RINGS, LOW, HIGH, ISLAND];

const DESCRIPTORS: u64 = RINGS.start;
const AVAILABLE: u64 = RINGS.start + 0x800;
const USED: u64 = RINGS.start + 0xc00;
const TABLES: u64 = RINGS.start + 0x1000;
/// At the end of a region, for buffers that reach beyond it.
const RESERVED_BYTES: u64 = 16;
const TABLE_ENTRIES_MAX: usize = 48;
const DESCRIPTOR_BYTES: u64 = 16;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A buffer of a chain.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    pub address: u64,
    pub len_bytes: u32,
    pub writable: bool,
}

/// An entry of a descriptor table.
#[derive(Clone, Copy)]
struct Entry {
    address: u64,
    len_bytes: u32,
    flags: u16,
    next: u16,
}

/// An answer that the device put into the used ring.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    pub head: u32,
    pub written_bytes: u32,
}

pub struct Driver {
    pub ram: Rc<Ram>,
    pub size: u16,
    event_idx: bool,
    indirect: bool,
    free: Vec<u16>,
    /// The descriptors that each head holds.
    chains: Vec<Vec<u16>>,
    pub available_index: u16,
    /// The oldest entry of the available ring that the device may not have taken yet.
    pub oldest_entry: u16,
    used_seen: u16,
    next_byte: u64,
    /// What memory contains, wherever the device may not write.
    shadow: Vec<u8>,
    grants: Vec<Range<u64>>,
}

impl Driver {
    pub fn new(size_log2: u8, first_index: u16, event_idx: bool, indirect: bool) -> Self {
        let size = 1 << size_log2;
        let ram = Ram::reused(REGIONS);
        let shadow = ram.read_all();
        let mut driver = Self {
            ram,
            size,
            event_idx,
            indirect,
            free: (0..size).rev().collect(),
            chains: vec![Vec::new(); usize::from(size)],
            available_index: first_index,
            oldest_entry: first_index,
            used_seen: first_index,
            next_byte: LOW.start,
            shadow,
            grants: Vec::new(),
        };
        driver.store(AVAILABLE + 2, &first_index.to_le_bytes());
        driver.store(USED + 2, &first_index.to_le_bytes());
        driver
    }

    pub fn setup(&self, next_available: u16) -> RingSetup {
        let addresses = RingAddresses {
            descriptors: GuestAddress(DESCRIPTORS),
            available: GuestAddress(AVAILABLE),
            used: GuestAddress(USED),
        };
        let (event_idx, indirect) = (self.event_idx, self.indirect);
        RingSetup { size: self.size, addresses, next_available, event_idx, indirect }
    }

    /// Writes memory as the guest.
    pub fn store(&mut self, address: u64, bytes: &[u8]) {
        self.ram.write(address, bytes);
        let at = self.ram.file_offset(address).expect("the guest writes to its own memory") as usize;
        // The regions that are written across a border lie next to each other in the file too.
        self.shadow[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Cuts a stream of `len_bytes` into buffers with memory of their own. `None` when memory is used up.
    pub fn allocate(&mut self, len_bytes: usize, writable: bool, cuts: &mut Cuts<'_>) -> Option<Vec<Buffer>> {
        let mut buffers = Vec::new();
        let mut left = len_bytes;
        while left > 0 {
            let part = cuts.next_len(left);
            let address = self.next_byte + cuts.gap();
            if address + part as u64 > HIGH.end() - RESERVED_BYTES {
                return None;
            }
            self.next_byte = address + part as u64;
            buffers.push(Buffer { address, len_bytes: part as u32, writable });
            if cuts.plan.empty_buffers {
                buffers.push(Buffer { address, len_bytes: 0, writable });
            }
            left -= part;
        }
        Some(buffers)
    }

    /// How many buffers a request may have now.
    pub fn buffers_max(&self, plan: &RequestPlan) -> usize {
        match (self.uses_table(plan), self.free.len()) {
            (_, 0) => 0,
            (true, _) => TABLE_ENTRIES_MAX,
            (false, free) => free,
        }
    }

    fn uses_table(&self, plan: &RequestPlan) -> bool {
        plan.indirect && self.indirect
    }

    /// Puts a chain of `buffers` into the descriptor table, with the flaw of the plan, and returns its head.
    pub fn place_chain(&mut self, plan: &RequestPlan, mut buffers: Vec<Buffer>) -> u16 {
        let flaw = plan.flaw();
        flaw.inspect(|flaw| bend_buffers(*flaw, &mut buffers));
        for buffer in buffers.iter().filter(|buffer| buffer.writable) {
            self.grant(buffer.address, u64::from(buffer.len_bytes));
        }
        if !self.uses_table(plan) {
            let indices: Vec<u16> = buffers.iter().map(|_| self.free.pop().expect("there is room")).collect();
            let mut entries = chain(&buffers, &indices);
            bend_links(flaw, &mut entries, &indices, self.size);
            for (index, entry) in indices.iter().zip(&entries) {
                self.put(DESCRIPTORS, *index, *entry);
            }
            let head = indices[0];
            self.chains[usize::from(head)] = indices;
            return head;
        }
        let head = self.free.pop().expect("there is room");
        let table = TABLES + u64::from(head) * TABLE_ENTRIES_MAX as u64 * DESCRIPTOR_BYTES;
        let indices: Vec<u16> = (0..buffers.len() as u16).collect();
        let mut entries = chain(&buffers, &indices);
        let len_bytes = (entries.len() as u64 * DESCRIPTOR_BYTES) as u32;
        let mut whole = Entry { address: table, len_bytes, flags: INDIRECT, next: 0 };
        match flaw {
            Some(Flaw::NestedTable) => entries[0].flags |= INDIRECT,
            Some(Flaw::TableAndNext) => whole.flags |= NEXT,
            Some(Flaw::TableLength(len_bytes)) => whole.len_bytes = len_bytes,
            _ => bend_links(flaw, &mut entries, &indices, indices.len() as u16),
        }
        for (index, entry) in entries.iter().enumerate() {
            self.put(table, index as u16, *entry);
        }
        self.put(DESCRIPTORS, head, whole);
        self.chains[usize::from(head)] = vec![head];
        head
    }

    fn put(&mut self, table: u64, index: u16, entry: Entry) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&entry.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&entry.len_bytes.to_le_bytes());
        bytes[12..14].copy_from_slice(&entry.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&entry.next.to_le_bytes());
        self.store(table + u64::from(index) * DESCRIPTOR_BYTES, &bytes);
    }

    /// Whether the available ring has an entry left.
    pub fn has_room(&self) -> bool {
        self.available_index.wrapping_sub(self.oldest_entry) < self.size
    }

    pub fn make_available(&mut self, head: u16) {
        let entry = AVAILABLE + 4 + 2 * u64::from(self.available_index % self.size);
        self.store(entry, &head.to_le_bytes());
        self.available_index = self.available_index.wrapping_add(1);
        self.store(AVAILABLE + 2, &self.available_index.to_le_bytes());
    }

    /// The heads in the entries from `next_available` on.
    pub fn heads_from(&self, mut next_available: u16) -> Vec<u16> {
        let mut heads = Vec::new();
        while next_available != self.available_index {
            heads.push(self.ram.read_u16(AVAILABLE + 4 + 2 * u64::from(next_available % self.size)));
            next_available = next_available.wrapping_add(1);
        }
        heads
    }

    /// Says whether the next answer is to be notified.
    pub fn want_notification(&mut self, wanted: bool) {
        if self.event_idx {
            let event = if wanted { self.used_seen } else { self.used_seen.wrapping_sub(1) };
            self.store(AVAILABLE + 4 + 2 * u64::from(self.size), &event.to_le_bytes());
        } else {
            self.store(AVAILABLE, &u16::from(!wanted).to_le_bytes());
        }
    }

    /// The index at which the device wants to be notified.
    pub fn available_event(&self) -> Option<u16> {
        self.event_idx.then(|| self.ram.read_u16(USED + 4 + 8 * u64::from(self.size)))
    }

    pub fn used_index(&self) -> u16 {
        self.ram.read_u16(USED + 2)
    }

    /// The answers that came since the last call.
    pub fn take_answers(&mut self) -> Vec<Answer> {
        let count = self.used_index().wrapping_sub(self.used_seen);
        assert!(count <= self.size, "the used index jumped by {count}");
        let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes"));
        let answer = |i| {
            let element =
                self.ram.read(USED + 4 + 8 * u64::from(self.used_seen.wrapping_add(i) % self.size), 8);
            Answer { head: word(&element[..4]), written_bytes: word(&element[4..]) }
        };
        let answers = (0..count).map(answer).collect();
        self.used_seen = self.used_seen.wrapping_add(count);
        answers
    }

    /// Takes the descriptors of an answered chain back.
    pub fn free_chain(&mut self, head: u16) {
        self.free.append(&mut self.chains[usize::from(head)]);
    }

    /// The device may write here.
    fn grant(&mut self, address: u64, len_bytes: u64) {
        self.grants.push(address..address.saturating_add(len_bytes));
    }

    /// Checks that nothing but the used ring and granted buffers has changed. All requests are answered.
    pub fn check_memory(&mut self) {
        let now = self.ram.read_all();
        self.grant(USED, 6 + 8 * u64::from(self.size));
        for grant in std::mem::take(&mut self.grants) {
            for region in REGIONS {
                let (start, end) = (grant.start.max(region.start), grant.end.min(region.end()));
                if start < end {
                    let at = self.ram.file_offset(start).expect("it is in the region") as usize;
                    let range = at..at + (end - start) as usize;
                    self.shadow[range.clone()].copy_from_slice(&now[range]);
                }
            }
        }
        // The comparison of whole slices is fast under instrumentation, the one of bytes is not.
        if now != self.shadow {
            let at = now.iter().zip(&self.shadow).position(|(now, then)| now != then);
            panic!("byte {at:?} of the guest's memory was changed and not granted");
        }
        self.next_byte = LOW.start;
    }
}

/// How a request is cut into buffers.
pub struct Cuts<'a> {
    plan: &'a RequestPlan,
    position: usize,
    /// Buffers that are left; the last one takes what remains.
    buffers_left: usize,
}

impl<'a> Cuts<'a> {
    /// At most `buffers_max` buffers, for one stream.
    pub fn new(plan: &'a RequestPlan, buffers_max: usize) -> Self {
        let share = if plan.empty_buffers { 2 } else { 1 };
        Self { plan, position: 0, buffers_left: (buffers_max / share).max(1) }
    }

    fn next_len(&mut self, left: usize) -> usize {
        self.buffers_left -= 1;
        let cut = self.plan.cuts.get(self.position).copied();
        self.position += 1;
        match cut {
            _ if self.buffers_left == 0 => left,
            None => left,
            // Small ones by the byte, large ones by the sector.
            Some(cut @ 0..=127) => left.min(usize::from(cut) + 1),
            Some(cut) => left.min((usize::from(cut) - 127) * 512),
        }
    }

    fn gap(&self) -> u64 {
        u64::from(self.plan.gap % 16)
    }
}

fn chain(buffers: &[Buffer], indices: &[u16]) -> Vec<Entry> {
    let nexts = indices.iter().skip(1).map(|next| (NEXT, *next)).chain([(0, 0)]);
    let entry = |(buffer, (next_flag, next)): (&Buffer, (u16, u16))| Entry {
        address: buffer.address,
        len_bytes: buffer.len_bytes,
        flags: next_flag | if buffer.writable { WRITE } else { 0 },
        next,
    };
    buffers.iter().zip(nexts).map(entry).collect()
}

/// Applies the flaws that are about buffers.
fn bend_buffers(flaw: Flaw, buffers: &mut Vec<Buffer>) {
    let count = buffers.len();
    let at = |index: u8| usize::from(index) % count;
    match flaw {
        Flaw::Truncated(by) => buffers.truncate(count - at(by)),
        Flaw::Flipped(index) => buffers[at(index)].writable ^= true,
        // Shorter, or too long for memory: in between it would lie over somebody else's buffer.
        Flaw::Resized(index, len_bytes) if len_bytes < buffers[at(index)].len_bytes => {
            buffers[at(index)].len_bytes = len_bytes;
        }
        Flaw::Resized(index, len_bytes) => buffers[at(index)].len_bytes = len_bytes | 0xff00_0000,
        Flaw::Unmapped(index, nowhere) => {
            buffers[at(index)].address = match nowhere {
                Nowhere::Hole => HIGH.end(),
                Nowhere::Zero => 0,
                Nowhere::Top => u64::MAX - 7,
                Nowhere::EndOfRegion => HIGH.end() - 1,
            }
        }
        Flaw::Next(..) | Flaw::NestedTable | Flaw::TableAndNext | Flaw::TableLength(_) => {}
    }
}

/// Makes one entry go on at another one of the same chain, or past the end of the table.
fn bend_links(flaw: Option<Flaw>, entries: &mut [Entry], indices: &[u16], table_len: u16) {
    let Some(Flaw::Next(at, next)) = flaw else { return };
    let at = usize::from(at) % entries.len();
    let next = if next % 2 == 0 {
        indices[usize::from(next / 2) % indices.len()]
    } else {
        table_len.saturating_add(next / 2)
    };
    (entries[at].flags, entries[at].next) = (entries[at].flags | NEXT, next);
}

/// Somewhere in the memory of the rings and tables.
pub fn scribble_address(position: u16) -> u64 {
    RINGS.start + u64::from(position) % (RINGS.len_bytes - 6)
}
