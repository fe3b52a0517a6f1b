//! The device's side of a split virtqueue (virtio 1.2, section 2.7).
//!
//! Pointers to the three ring areas are resolved once, when the ring starts, and kept beside the size they
//! were checked for; the size never changes afterwards. Everything the driver writes is read once and checked
//! in our own memory. The used ring is published once a batch.
#![expect(unsafe_code, reason = "the rings live in memory that the guest writes")]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use virtio_bindings::virtio_ring;

use super::inflight::{Findings, RingIndices, Tracker};
use crate::guest::DirtyLog;
use crate::guest::inflight::crash;
use crate::guest::memory::{GuestAddress, LocalMemory};

mod log;
mod setup;

pub use setup::{MAX_RING_SIZE, Recovery, RingAddresses, RingError, RingSetup, RingState, Tracking};

use setup::Areas;

/// Most descriptors that one chain may have, an indirect table included. QEMU's limit, too.
pub const MAX_CHAIN: usize = 1024;

const DESCRIPTOR_BYTES: u64 = 16;
const NEXT: u16 = virtio_ring::VRING_DESC_F_NEXT as u16;
const WRITE: u16 = virtio_ring::VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = virtio_ring::VRING_DESC_F_INDIRECT as u16;
const USED_NO_NOTIFY: u16 = virtio_ring::VRING_USED_F_NO_NOTIFY as u16;
const AVAIL_NO_INTERRUPT: u16 = virtio_ring::VRING_AVAIL_F_NO_INTERRUPT as u16;

/// A request's place in the ring, from [`Virtq::pop`] until [`Virtq::complete`] consumes it.
#[derive(Debug)]
#[must_use = "every head that was taken is answered"]
pub struct Head(pub(super) u16);

impl Head {
    /// Gives the head up without an answer. The in-flight region has it still, for a successor to repeat.
    pub fn leave(self) {
        std::mem::forget(self);
    }
}

impl Drop for Head {
    fn drop(&mut self) {
        debug_assert!(std::thread::panicking(), "head {} was dropped without an answer", self.0);
    }
}

/// One descriptor, copied out of the guest's reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// First byte of the buffer.
    pub address: GuestAddress,
    /// Its length.
    pub len_bytes: u32,
    /// Whether the device writes it (or else reads it).
    pub writable: bool,
}

/// The descriptors of one chain, copied once. Made once and used for every request of a queue.
#[derive(Debug, Default)]
pub struct Chain {
    descriptors: Vec<Descriptor>,
}

impl Chain {
    /// An empty chain with room for the longest one.
    pub fn new() -> Self {
        Self { descriptors: Vec::with_capacity(MAX_CHAIN) }
    }

    /// A chain of these descriptors.
    pub fn from_descriptors(descriptors: Vec<Descriptor>) -> Self {
        Self { descriptors }
    }

    /// The descriptors in order. Empty for a chain that was broken: a loop, an index out of range, a
    /// malformed indirect table, or more than [`MAX_CHAIN`] descriptors.
    pub fn descriptors(&self) -> &[Descriptor] {
        &self.descriptors
    }
}

/// A descriptor as it stands in a table.
struct RawDescriptor {
    descriptor: Descriptor,
    flags: u16,
    next: u16,
}

impl RawDescriptor {
    fn from_bytes(bytes: [u8; DESCRIPTOR_BYTES as usize]) -> Self {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let flags = word(12);
        let (address, rest) = bytes.split_at(8);
        let address = u64::from_le_bytes(address.try_into().expect("eight bytes"));
        let len_bytes = u32::from_le_bytes(rest[..4].try_into().expect("four bytes"));
        let descriptor =
            Descriptor { address: GuestAddress(address), len_bytes, writable: flags & WRITE != 0 };
        Self { descriptor, flags, next: word(14) }
    }

    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// A running ring.
#[derive(Debug)]
pub struct Virtq {
    memory: LocalMemory,
    size: u16,
    addresses: RingAddresses,
    event_idx: bool,
    indirect: bool,
    descriptors: NonNull<u8>,
    available: NonNull<u16>,
    used: NonNull<u16>,
    next_available: u16,
    /// Where the next used element goes; ahead of what is published by the elements of this batch.
    next_used: u16,
    published_used: u16,
    /// One bit a head, set from `pop` to `complete`.
    in_flight: Box<[u64]>,
    in_flight_count: u16,
    /// The same for a successor, if the front end keeps it.
    tracker: Option<Tracker>,
    /// Where writes to the guest's memory are noted while it is being migrated.
    log: Option<Arc<DirtyLog>>,
    /// What a predecessor took and did not answer, the first one last. In flight already.
    repeats: Vec<u16>,
}

impl Virtq {
    /// Starts a ring: resolves and checks its areas in `memory`. The index of the next used element is the
    /// one that the used ring holds now.
    ///
    /// # Errors
    /// When the size or an area is impossible.
    pub fn new(setup: &RingSetup, memory: LocalMemory) -> Result<Self, RingError> {
        setup.check(&memory)?;
        let size = setup.size;
        let areas = Areas::resolve(setup, &memory)?;
        let mut ring = Self {
            memory,
            size,
            addresses: setup.addresses,
            event_idx: setup.event_idx,
            indirect: setup.indirect,
            descriptors: areas.descriptors,
            available: areas.available,
            used: areas.used,
            next_available: setup.next_available,
            next_used: 0,
            published_used: 0,
            in_flight: vec![0; usize::from(size).div_ceil(64)].into_boxed_slice(),
            in_flight_count: 0,
            tracker: None,
            log: None,
            repeats: Vec::new(),
        };
        ring.next_used = u16::from_le(ring.used_index().load(Ordering::Acquire));
        ring.published_used = ring.next_used;
        Ok(ring)
    }

    /// Notes from now on which requests are under way, and takes over those of a predecessor: they come from
    /// [`pop_repeat`](Self::pop_repeat), and the ring goes on behind them, wherever it was set up to begin. (Front
    /// ends that have lost a back end can only guess that.) Called once, before anything is taken.
    ///
    /// # Errors
    /// When the ring does not fit.
    pub fn track(&mut self, tracking: Tracking) -> Result<Recovery, RingError> {
        let room = tracking.region.head_count();
        if self.size > room {
            return Err(RingError::Untracked { size: self.size, room });
        }
        let mut tracker = Tracker::new(tracking.region, self.size);
        let mut recovery = Recovery::default();
        if tracking.recover {
            let available = u16::from_le(self.available_index().load(Ordering::Acquire));
            let indices = RingIndices { size: self.size, available, used: self.next_used };
            match tracker.recover(indices) {
                Findings::Repeat(heads) => self.repeats = heads,
                Findings::Foreign => recovery.foreign = true,
            }
            recovery.repeats = self.repeats.len() as u16;
            self.next_available = self.next_used.wrapping_add(recovery.repeats);
        } else {
            tracker.begin(self.next_used);
        }
        for at in 0..self.repeats.len() {
            self.mark_in_flight(self.repeats[at]);
        }
        self.repeats.reverse();
        self.tracker = Some(tracker);
        Ok(recovery)
    }

    /// Moves the ring to a table that still has the regions of its areas.
    ///
    /// # Errors
    /// When an area is not there any more; the ring is then unchanged.
    pub fn set_memory(&mut self, memory: LocalMemory) -> Result<(), RingError> {
        let areas = Areas::resolve(&self.setup(), &memory)?;
        (self.descriptors, self.available, self.used) = (areas.descriptors, areas.available, areas.used);
        self.memory = memory;
        Ok(())
    }

    /// The memory that the ring and its requests lie in.
    pub fn memory(&self) -> &LocalMemory {
        &self.memory
    }

    /// What it takes to start the ring again from where it is.
    pub fn state(&self) -> RingState {
        RingState { next_available: self.next_available }
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Number of heads taken and not completed.
    pub fn in_flight_count(&self) -> u16 {
        self.in_flight_count
    }

    /// Whether something was completed that the driver was not shown.
    pub fn has_unpublished(&self) -> bool {
        self.next_used != self.published_used
    }

    fn setup(&self) -> RingSetup {
        RingSetup {
            size: self.size,
            addresses: self.addresses,
            next_available: self.next_available,
            event_idx: self.event_idx,
            indirect: self.indirect,
        }
    }

    /// Takes the next request, if there is one, and copies its descriptors into `chain`. A broken chain
    /// leaves `chain` empty; its head still wants its answer. Entries that name no head of this ring, or one
    /// that is in flight already, are passed over: no answer to them would be right.
    ///
    /// # Errors
    /// When the driver's index is impossible. Nothing more can be taken from this ring then.
    pub fn pop(&mut self, chain: &mut Chain) -> Result<Option<Head>, RingError> {
        // Bounded by what is there now: the driver may go on adding.
        for _ in 0..self.new_entries()? {
            let entry = 2 + self.place(self.next_available);
            // SAFETY: the available area was checked for 2 + size entries.
            let head = u16::from_le(unsafe { self.available.add(entry).read_volatile() });
            self.next_available = self.next_available.wrapping_add(1);
            if head >= self.size || self.is_in_flight(head) {
                continue;
            }
            self.mark_in_flight(head);
            if let Some(tracker) = &mut self.tracker {
                tracker.take(head);
            }
            return Ok(Some(self.copy_chain(head, chain)));
        }
        Ok(None)
    }

    /// As [`pop`](Self::pop), for the requests that a predecessor took and did not answer, in the order in which it
    /// took them.
    pub fn pop_repeat(&mut self, chain: &mut Chain) -> Option<Head> {
        let head = self.repeats.pop()?;
        Some(self.copy_chain(head, chain))
    }

    /// Whether [`pop_repeat`](Self::pop_repeat) has more.
    pub fn has_repeats(&self) -> bool {
        !self.repeats.is_empty()
    }

    fn copy_chain(&self, head: u16, chain: &mut Chain) -> Head {
        chain.descriptors.clear();
        if self.walk(head, &mut chain.descriptors).is_none() {
            chain.descriptors.clear();
        }
        Head(head)
    }

    /// How many requests the driver has made available and we have not taken.
    fn new_entries(&self) -> Result<u16, RingError> {
        // Acquire: the entries and descriptors behind the index are read after it.
        let index = u16::from_le(self.available_index().load(Ordering::Acquire));
        let count = index.wrapping_sub(self.next_available);
        if count > self.size {
            return Err(RingError::AvailableIndex { index, next: self.next_available, size: self.size });
        }
        Ok(count)
    }

    /// Copies the chain at `head`. `None` when it is broken.
    fn walk(&self, head: u16, chain: &mut Vec<Descriptor>) -> Option<()> {
        let mut index = head;
        // A chain of more descriptors than the ring has is a loop.
        for _ in 0..self.size {
            let raw = self.descriptor(index)?;
            if raw.has(INDIRECT) {
                // An indirect table ends the chain: with NEXT set as well it is malformed (2.7.5.3.1).
                let allowed = self.indirect && !raw.has(NEXT);
                return if allowed { self.walk_indirect(raw.descriptor, chain) } else { None };
            }
            push(chain, raw.descriptor)?;
            if !raw.has(NEXT) {
                return Some(());
            }
            index = raw.next;
        }
        None
    }

    fn walk_indirect(&self, table: Descriptor, chain: &mut Vec<Descriptor>) -> Option<()> {
        let len_bytes = u64::from(table.len_bytes);
        let count = len_bytes / DESCRIPTOR_BYTES;
        if count == 0 || !len_bytes.is_multiple_of(DESCRIPTOR_BYTES) || count > MAX_CHAIN as u64 {
            return None;
        }
        let mut index = 0;
        for _ in 0..count {
            let at = table.address.checked_add(index * DESCRIPTOR_BYTES)?;
            let raw = RawDescriptor::from_bytes(self.memory.read(at)?);
            if raw.has(INDIRECT) {
                return None;
            }
            push(chain, raw.descriptor)?;
            if !raw.has(NEXT) {
                return Some(());
            }
            index = u64::from(raw.next);
            if index >= count {
                return None;
            }
        }
        None
    }

    fn descriptor(&self, index: u16) -> Option<RawDescriptor> {
        if index >= self.size {
            return None;
        }
        // SAFETY: the table was checked for `size` descriptors and 16-byte alignment.
        let words = unsafe {
            let at = self.descriptors.cast::<u64>().add(2 * usize::from(index));
            [at.read_volatile(), at.add(1).read_volatile()]
        };
        let mut bytes = [0; DESCRIPTOR_BYTES as usize];
        bytes[..8].copy_from_slice(&words[0].to_ne_bytes());
        bytes[8..].copy_from_slice(&words[1].to_ne_bytes());
        Some(RawDescriptor::from_bytes(bytes))
    }

    /// Answers a request: `written_bytes` of its device-writable part hold something. The driver sees it at
    /// the next [`publish`](Self::publish).
    pub fn complete(&mut self, head: Head, written_bytes: u32) {
        let index = head.0;
        std::mem::forget(head);
        let element = 2 + 4 * self.place(self.next_used);
        // SAFETY: the used area was checked for `size` elements of four 16-bit words behind the two of its
        // head, and for 4-byte alignment.
        unsafe {
            let element = self.used.add(element).cast::<u32>();
            element.write_volatile(u32::from(index).to_le());
            element.add(1).write_volatile(written_bytes.to_le());
        }
        self.next_used = self.next_used.wrapping_add(1);
        self.in_flight[usize::from(index) / 64] &= !(1 << (index % 64));
        self.in_flight_count -= 1;
        if let Some(tracker) = &mut self.tracker {
            tracker.complete(index);
        }
    }

    /// Shows the driver everything completed since the last call, at once. Returns whether it wants to be
    /// notified of that.
    #[must_use = "a driver that is not notified may wait for ever"]
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published_used, self.next_used);
        if old == new {
            return false;
        }
        crash::point();
        // Release: status, data and used elements are visible before the index, and the marks of the batch as well.
        self.used_index().store(new.to_le(), Ordering::Release);
        self.published_used = new;
        if let Some(tracker) = &mut self.tracker {
            tracker.published(new);
        }
        self.mark_published(old, new);
        // The driver's wish is read after it can see the index (2.7.7.1): one of the two sides notices.
        fence(Ordering::SeqCst);
        if !self.event_idx {
            let flags = u16::from_le(self.available_flags().load(Ordering::Relaxed));
            return flags & AVAIL_NO_INTERRUPT == 0;
        }
        let used_event = u16::from_le(self.used_event().load(Ordering::Relaxed));
        new.wrapping_sub(used_event).wrapping_sub(1) < new.wrapping_sub(old)
    }

    /// Asks the driver for a notification of its next request. Returns whether there are requests already:
    /// then none may come.
    ///
    /// # Errors
    /// As [`pop`](Self::pop).
    pub fn enable_notification(&mut self) -> Result<bool, RingError> {
        if self.event_idx {
            self.available_event().store(self.next_available.to_le(), Ordering::Relaxed);
            self.mark_available_event();
        } else {
            self.used_flags().store(0, Ordering::Relaxed);
            self.mark_used_flags();
        }
        // The index is read after the driver can see the wish.
        fence(Ordering::SeqCst);
        Ok(self.new_entries()? > 0)
    }

    /// Spares the driver notifications while we look at the ring anyway. With `VIRTIO_F_EVENT_IDX` there is
    /// nothing to do: the event index stays behind.
    pub fn disable_notification(&mut self) {
        if !self.event_idx {
            self.used_flags().store(USED_NO_NOTIFY.to_le(), Ordering::Relaxed);
            self.mark_used_flags();
        }
    }

    /// Where an index, which counts on for ever, lies in a ring: its size is a power of two.
    fn place(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    fn is_in_flight(&self, head: u16) -> bool {
        self.in_flight[usize::from(head) / 64] & (1 << (head % 64)) != 0
    }

    fn mark_in_flight(&mut self, head: u16) {
        self.in_flight[usize::from(head) / 64] |= 1 << (head % 64);
        self.in_flight_count += 1;
    }

    fn available_flags(&self) -> &AtomicU16 {
        // SAFETY: word 0 of a checked, aligned area.
        unsafe { AtomicU16::from_ptr(self.available.as_ptr()) }
    }

    fn available_index(&self) -> &AtomicU16 {
        // SAFETY: word 1 of a checked, aligned area.
        unsafe { AtomicU16::from_ptr(self.available.add(1).as_ptr()) }
    }

    fn used_event(&self) -> &AtomicU16 {
        // SAFETY: the area was checked for the word behind its entries, since `event_idx` is on.
        unsafe { AtomicU16::from_ptr(self.available.add(2 + usize::from(self.size)).as_ptr()) }
    }

    fn used_flags(&self) -> &AtomicU16 {
        // SAFETY: word 0 of a checked, aligned area.
        unsafe { AtomicU16::from_ptr(self.used.as_ptr()) }
    }

    fn used_index(&self) -> &AtomicU16 {
        // SAFETY: word 1 of a checked, aligned area.
        unsafe { AtomicU16::from_ptr(self.used.add(1).as_ptr()) }
    }

    fn available_event(&self) -> &AtomicU16 {
        // SAFETY: the area was checked for the word behind its elements, since `event_idx` is on.
        unsafe { AtomicU16::from_ptr(self.used.add(2 + 4 * usize::from(self.size)).as_ptr()) }
    }
}

fn push(chain: &mut Vec<Descriptor>, descriptor: Descriptor) -> Option<()> {
    (chain.len() < MAX_CHAIN).then(|| chain.push(descriptor))
}

#[cfg(test)]
pub(crate) mod tests;
