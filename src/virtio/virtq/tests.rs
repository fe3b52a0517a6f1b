//! The ring against a driver written for these tests, and against `virtio-queue` as an oracle.

use std::sync::Arc;

use proptest::prelude::*;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestMemoryMmap};

use super::*;
use crate::guest::GuestMemory;
use crate::guest::memory::tests::BothSides;

mod model;

const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x8000;
const USED: u64 = 0xa000;
/// Where tests put buffers and indirect tables.
pub(crate) const DATA: u64 = 0x10000;
const MEMORY_BYTES: u64 = if cfg!(miri) { 0x4_0000 } else { 0x100_0000 };

impl Head {
    /// A head of no ring.
    pub(crate) fn for_tests() -> Self {
        Self(0)
    }

    /// Gives up a head of no ring.
    pub(crate) fn forget_in_tests(self) {
        std::mem::forget(self);
    }
}

/// The other side of a ring: the same memory, seen through `vm-memory`.
pub(crate) struct Driver {
    pub(crate) memory: GuestMemoryMmap<()>,
    pub(crate) device_memory: Arc<GuestMemory>,
    size: u16,
    available: u16,
    _bytes: BothSides,
}

impl Driver {
    pub(crate) fn new(size: u16) -> Self {
        let bytes = BothSides::new(MEMORY_BYTES);
        let (memory, device_memory) = (bytes.driver(), Arc::new(bytes.device()));
        Self { memory, device_memory, size, available: 0, _bytes: bytes }
    }

    pub(crate) fn setup(&self, event_idx: bool) -> RingSetup {
        let addresses = RingAddresses {
            descriptors: GuestAddress(DESCRIPTORS),
            available: GuestAddress(AVAILABLE),
            used: GuestAddress(USED),
        };
        RingSetup { size: self.size, addresses, next_available: 0, event_idx, indirect: true }
    }

    pub(crate) fn ring(&self, event_idx: bool) -> Virtq {
        Virtq::new(&self.setup(event_idx), LocalMemory::new(Arc::clone(&self.device_memory))).unwrap()
    }

    fn put16(&self, address: u64, value: u16) {
        self.memory.write_obj(value.to_le(), vm_memory::GuestAddress(address)).unwrap();
    }

    fn get16(&self, address: u64) -> u16 {
        u16::from_le(self.memory.read_obj(vm_memory::GuestAddress(address)).unwrap())
    }

    fn descriptor_at(&self, table: u64, index: u16, raw: Raw) {
        let at = table + 16 * u64::from(index);
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&raw.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&raw.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&raw.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&raw.next.to_le_bytes());
        self.memory.write_slice(&bytes, vm_memory::GuestAddress(at)).unwrap();
    }

    fn descriptor(&self, index: u16, raw: Raw) {
        self.descriptor_at(DESCRIPTORS, index, raw);
    }

    /// Puts a chain of these buffers into the descriptors from `head` on, and makes it available.
    pub(crate) fn offer_chain(&mut self, head: u16, buffers: &[(u64, u32, bool)]) {
        for (i, &(address, len, writable)) in buffers.iter().enumerate() {
            let last = i + 1 == buffers.len();
            let flags = if writable { WRITE } else { 0 } | if last { 0 } else { NEXT };
            self.descriptor(head + i as u16, Raw { address, len, flags, next: head + i as u16 + 1 });
        }
        self.make_available(head);
    }

    /// Begins at another index, as a ring does that has run before.
    pub(crate) fn begin_at(&mut self, index: u16) {
        self.available = index;
        self.put16(AVAILABLE + 2, index);
        self.put16(USED + 2, index);
    }

    fn make_available(&mut self, head: u16) {
        self.put16(AVAILABLE + 4 + 2 * u64::from(self.available % self.size), head);
        self.available = self.available.wrapping_add(1);
        self.put16(AVAILABLE + 2, self.available);
    }

    /// Makes available a chain of one readable descriptor for each head.
    pub(crate) fn offer(&mut self, heads: impl IntoIterator<Item = u16>) {
        for head in heads {
            self.descriptor(head, Raw { address: DATA, len: 16, flags: 0, next: 0 });
            self.make_available(head);
        }
    }

    /// Makes this head available, whatever its descriptor says, if it has one.
    fn offer_entry(&mut self, head: u16) {
        self.make_available(head);
    }

    /// Claims that entries up to `index` are there.
    fn claim(&self, index: u16) {
        self.put16(AVAILABLE + 2, index);
    }

    /// The index that the driver wants to be notified of, with an event index.
    fn used_event(&self) -> u16 {
        self.get16(AVAILABLE + 4 + 2 * u64::from(self.size))
    }

    fn set_used_event(&self, index: u16) {
        self.put16(AVAILABLE + 4 + 2 * u64::from(self.size), index);
    }

    pub(crate) fn used_index(&self) -> u16 {
        self.get16(USED + 2)
    }

    pub(crate) fn used(&self, index: u16) -> (u32, u32) {
        let at = USED + 4 + 8 * u64::from(index % self.size);
        let element: [u32; 2] = self.memory.read_obj(vm_memory::GuestAddress(at)).unwrap();
        (u32::from_le(element[0]), u32::from_le(element[1]))
    }
}

#[derive(Clone, Copy, Debug)]
struct Raw {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

fn pop(ring: &mut Virtq) -> Option<(Head, Chain)> {
    let mut chain = Chain::new();
    ring.pop(&mut chain).unwrap().map(|head| (head, chain))
}

#[test]
fn a_batch_is_published_at_once() {
    let mut driver = Driver::new(8);
    let mut ring = driver.ring(false);
    driver.offer([3, 5, 1]);
    let heads: Vec<Head> = std::iter::from_fn(|| pop(&mut ring).map(|(head, _)| head)).collect();
    assert_eq!(ring.in_flight_count(), 3);
    for (i, head) in heads.into_iter().rev().enumerate() {
        ring.complete(head, i as u32);
        assert_eq!(driver.used_index(), 0);
    }
    assert!(ring.publish(), "without flags the driver wants to be notified");
    assert!(!ring.publish(), "but not twice");
    assert_eq!(driver.used_index(), 3);
    assert_eq!([0, 1, 2].map(|i| driver.used(i)), [(1, 0), (5, 1), (3, 2)]);
    driver.put16(AVAILABLE, 1);
    driver.offer([0]);
    let (head, _) = pop(&mut ring).unwrap();
    ring.complete(head, 0);
    assert!(!ring.publish(), "VIRTQ_AVAIL_F_NO_INTERRUPT");
}

#[test]
fn both_indices_wrap() {
    let mut driver = Driver::new(4);
    let begin = if cfg!(miri) { 65_500 } else { 0 };
    driver.begin_at(begin as u16);
    let setup = RingSetup { next_available: begin as u16, ..driver.setup(true) };
    let mut ring = Virtq::new(&setup, LocalMemory::new(Arc::clone(&driver.device_memory))).unwrap();
    for i in begin..begin + if cfg!(miri) { 100 } else { 70_000 } {
        driver.offer([(i % 4) as u16]);
        let (head, chain) = pop(&mut ring).unwrap();
        assert_eq!(chain.descriptors().len(), 1);
        ring.complete(head, i);
        let _ = ring.publish();
        assert_eq!(driver.used_index(), (i + 1) as u16);
        assert_eq!(driver.used(i as u16), (i % 4, i));
    }
}

#[test]
fn notifications_follow_the_used_event() {
    let mut driver = Driver::new(8);
    let mut ring = driver.ring(true);
    // (used_event, completions in the batch, wanted)
    let mut done = 0_u16;
    for (ahead, batch, wanted) in
        [(0, 1, true), (1, 1, false), (0, 2, true), (2, 2, false), (1, 2, true), (7, 8, true)]
    {
        driver.put16(AVAILABLE + 4 + 16, done.wrapping_add(ahead));
        driver.offer(0..batch);
        for _ in 0..batch {
            let (head, _) = pop(&mut ring).unwrap();
            ring.complete(head, 0);
        }
        assert_eq!(ring.publish(), wanted, "event {ahead} ahead, batch of {batch}");
        done += batch;
    }
}

#[test]
fn asking_for_a_kick_tells_of_requests_that_are_there() {
    for event_idx in [false, true] {
        let mut driver = Driver::new(8);
        let mut ring = driver.ring(event_idx);
        ring.disable_notification();
        assert_eq!(driver.get16(USED), u16::from(!event_idx));
        assert!(!ring.enable_notification().unwrap());
        assert_eq!(driver.get16(USED), 0);
        driver.offer([2]);
        assert!(ring.enable_notification().unwrap());
        let (head, _) = pop(&mut ring).unwrap();
        assert!(!ring.enable_notification().unwrap());
        if event_idx {
            assert_eq!(driver.get16(USED + 4 + 64), 1, "the event index follows what was taken");
        }
        ring.complete(head, 0);
    }
}

#[test]
fn an_impossible_index_is_an_error_each_time() {
    let mut driver = Driver::new(8);
    let mut ring = driver.ring(false);
    driver.offer([0]);
    let (head, _) = pop(&mut ring).unwrap();
    ring.complete(head, 0);
    for index in [0, 10, 0x8000, u16::MAX] {
        driver.put16(AVAILABLE + 2, index);
        let error = ring.pop(&mut Chain::new()).unwrap_err();
        assert_eq!(error, RingError::AvailableIndex { index, next: 1, size: 8 });
        assert!(ring.enable_notification().is_err());
    }
    assert_eq!(ring.state(), RingState { next_available: 1 });
}

#[test]
fn heads_that_cannot_be_answered_are_passed_over() {
    let mut driver = Driver::new(8);
    let mut ring = driver.ring(false);
    driver.offer([4]);
    let (first, _) = pop(&mut ring).unwrap();
    driver.make_available(8);
    driver.make_available(4);
    driver.make_available(u16::MAX);
    driver.offer([6]);
    let (second, _) = pop(&mut ring).unwrap();
    assert!(pop(&mut ring).is_none());
    ring.complete(second, 0);
    ring.complete(first, 0);
    assert!(ring.publish());
    assert_eq!([driver.used(0).0, driver.used(1).0, u32::from(driver.used_index())], [6, 4, 2]);
    driver.offer([4]);
    let (again, _) = pop(&mut ring).expect("an answered head may come again");
    ring.complete(again, 0);
}

#[test]
fn areas_must_be_aligned_and_mapped() {
    let driver = Driver::new(8);
    let start = |change: fn(&mut RingSetup)| {
        let mut setup = driver.setup(true);
        change(&mut setup);
        Virtq::new(&setup, LocalMemory::new(Arc::clone(&driver.device_memory))).map(drop)
    };
    assert_eq!(start(|_| {}), Ok(()));
    assert_eq!(start(|s| s.size = 0), Err(RingError::Size(0)));
    assert_eq!(start(|s| s.size = 12), Err(RingError::Size(12)));
    assert!(start(|s| s.addresses.descriptors.0 += 8).is_err());
    assert!(start(|s| s.addresses.available.0 += 1).is_err());
    assert!(start(|s| s.addresses.used.0 += 2).is_err());
    assert!(
        start(|s| s.addresses.used.0 = MEMORY_BYTES - 4 - 64).is_err(),
        "the event index is a part of it"
    );
    assert!(start(|s| (s.addresses.used.0, s.event_idx) = (MEMORY_BYTES - 4 - 64, false)).is_ok());
    assert!(start(|s| s.addresses.descriptors.0 = u64::MAX - 15).is_err());
}

/// A descriptor with a fair chance to be part of a valid chain.
fn raw(count: u16) -> impl Strategy<Value = Raw> {
    let flags = prop_oneof![8 => Just(0), 8 => Just(NEXT), 4 => Just(NEXT | WRITE), 4 => Just(WRITE), 3 => Just(INDIRECT), 1 => any::<u16>().prop_map(|f| f & 7)];
    let address = (0_u64..8).prop_map(|page| DATA + 0x100 * page);
    let len = prop_oneof![(0_u32..0x100), (1_u32..8).prop_map(|n| 16 * n)];
    (address, len, flags, 0..count + 1).prop_map(|(address, len, flags, next)| Raw {
        address,
        len,
        flags,
        next,
    })
}

/// What `virtio-queue` makes of the chain at `head`: `None` when it is broken.
fn oracle(driver: &Driver, head: u16) -> Option<Vec<Descriptor>> {
    let mut queue = Queue::new(driver.size).unwrap();
    queue.set_size(driver.size);
    queue.try_set_desc_table_address(vm_memory::GuestAddress(DESCRIPTORS)).unwrap();
    queue.try_set_avail_ring_address(vm_memory::GuestAddress(AVAILABLE)).unwrap();
    queue.try_set_used_ring_address(vm_memory::GuestAddress(USED)).unwrap();
    queue.set_ready(true);
    queue.set_next_avail(driver.available.wrapping_sub(1));
    let chain = queue.iter(&driver.memory).unwrap().next().unwrap();
    assert_eq!(chain.head_index(), head);
    let descriptors: Vec<_> = chain.collect();
    // It ends a broken chain early, which shows in the last descriptor's NEXT flag, or with nothing at all.
    descriptors.last().filter(|last| !last.has_next())?;
    let ours = |d: &virtio_queue::desc::split::Descriptor| Descriptor {
        address: GuestAddress(d.addr().0),
        len_bytes: d.len(),
        writable: d.is_write_only(),
    };
    Some(descriptors.iter().map(ours).collect())
}

/// Whether a descriptor with both NEXT and INDIRECT comes up: malformed for us, unnoticed by the oracle.
fn has_indirect_with_next(table: &[Raw], head: u16) -> bool {
    let mut index = head;
    for _ in 0..table.len() {
        let Some(raw) = table.get(usize::from(index)) else { return false };
        if raw.flags & INDIRECT != 0 {
            return raw.flags & NEXT != 0;
        }
        if raw.flags & NEXT == 0 {
            return false;
        }
        index = raw.next;
    }
    false
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 30 } else { 2000 }))]

    #[test]
    fn chains_are_read_as_the_oracle_reads_them(
        table in prop::collection::vec(raw(8), 8),
        indirect in prop::collection::vec(raw(7), 8),
        head in 0_u16..8,
    ) {
        let mut driver = Driver::new(8);
        for (index, raw) in table.iter().enumerate() {
            driver.descriptor(index as u16, *raw);
        }
        // Where indirect descriptors may point to.
        for page in 0..8 {
            for (index, raw) in indirect.iter().enumerate() {
                driver.descriptor_at(DATA + 0x100 * page, index as u16, *raw);
            }
        }
        driver.make_available(head);
        let mut ring = driver.ring(false);
        let (taken, chain) = pop(&mut ring).unwrap();
        let expected = oracle(&driver, head).filter(|_| !has_indirect_with_next(&table, head)).unwrap_or_default();
        ring.complete(taken, 0);
        prop_assert_eq!(chain.descriptors(), &expected[..]);
    }
}
