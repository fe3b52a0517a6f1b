//! The in-flight region: memory in which a back end notes the requests that it has taken and not answered, and which
//! the front end keeps for its successor ("Inflight I/O tracking" of the vhost-user specification, split rings).
//!
//! ```text
//! queue 0                                                        queue 1
//! +--------------------------+-----------+-----------+-- ... --+--------------------------+-- ...
//! | features          8      | in flight | in flight | padding | features ...
//! | version           2      | 0      5  | 0      5  | to 64   |
//! | descriptor count  2      | next   2  | next   2  |         |
//! | last batch head   2      | counter 8 | counter 8 |         |
//! | used index        2      | of head 0 | of head 1 |         |
//! +--------------------------+-----------+-----------+-- ... --+--------------------------+-- ...
//! ```
//!
//! Behind the last queue's part, 64 bytes of our own: what else a successor has to know ([`Remembered`]).
//!
//! Everything in host byte order. Only we write it, but the front end can at any time: what is read here may be
//! anything, and each value is read once. Stores become visible in the order in which they are made, so that a
//! successor finds no later one without those before it, wherever this process was killed.
#![expect(unsafe_code, reason = "memory that another process can write")]

use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags};
use vm_memory::{FileOffset, MmapRegion};

use super::shared_file::{self, SharedFileError};

/// What `version` says once a queue's part has been initialised. Zeroes are a fresh one.
pub const VERSION: u16 = 1;
/// Largest ring of the split format, hence most heads that a queue's part can have.
pub const MAX_HEADS: u16 = 32768;

const HEADER_BYTES: u64 = 16;
const ENTRY_BYTES: u64 = 16;
/// Each queue's part begins at a multiple of this: no two threads write to one cache line.
const ALIGN_BYTES: u64 = 64;

/// Marks the bytes behind the queues as ours.
const REMEMBERED_MAGIC: u64 = u64::from_le_bytes(*b"sealblk1");
/// Not a number that could be there by mistake: flushes fail for it.
const SYNC_FAILED_MAGIC: u64 = u64::from_le_bytes(*b"unsynced");

const VERSION_OFFSET: usize = 8;
const DESCRIPTOR_COUNT_OFFSET: usize = 10;
const LAST_BATCH_HEAD_OFFSET: usize = 12;
const USED_INDEX_OFFSET: usize = 14;
const IN_FLIGHT_OFFSET: usize = 0;
const NEXT_OFFSET: usize = 6;
const COUNTER_OFFSET: usize = 8;

/// Size and place of a region in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InflightGeometry {
    /// Its size.
    pub len_bytes: u64,
    /// Where it begins in the file.
    pub offset_bytes: u64,
    /// Number of queues that it has room for.
    pub queue_count: u16,
    /// Largest ring of each.
    pub queue_size: u16,
}

impl InflightGeometry {
    /// A region of its own for so many queues of that size.
    ///
    /// # Errors
    /// When there are none, or no ring is that large.
    pub fn of(queue_count: u16, queue_size: u16) -> Result<Self, InflightError> {
        if queue_count == 0 || queue_size == 0 || queue_size > MAX_HEADS {
            return Err(InflightError::Shape { queue_count, queue_size });
        }
        let len_bytes = u64::from(queue_count) * queue_bytes(queue_size) + ALIGN_BYTES;
        Ok(Self { len_bytes, offset_bytes: 0, queue_count, queue_size })
    }

    /// What the queues take of it.
    fn queues_bytes(&self) -> u64 {
        u64::from(self.queue_count) * queue_bytes(self.queue_size)
    }
}

/// Bytes of one queue's part. At most some 512 KiB.
fn queue_bytes(queue_size: u16) -> u64 {
    (HEADER_BYTES + ENTRY_BYTES * u64::from(queue_size)).next_multiple_of(ALIGN_BYTES)
}

/// Why a region cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum InflightError {
    /// No queues, no entries, or rings larger than there are.
    #[error("an in-flight region for {queue_count} queues of {queue_size} makes no sense")]
    Shape {
        /// Number of queues.
        queue_count: u16,
        /// Size of each.
        queue_size: u16,
    },
    /// The queues do not fit.
    #[error("an in-flight region of {len_bytes} bytes is too small: its queues need {needed_bytes}")]
    TooSmall {
        /// Claimed size of the region.
        len_bytes: u64,
        /// What the queues need.
        needed_bytes: u64,
    },
    /// The file cannot hold it, or may later not.
    #[error("the in-flight region's file {0}")]
    Unfit(SharedFileError),
    /// The file cannot be made.
    #[error("the in-flight region's file cannot be made")]
    File(#[source] io::Error),
    /// The mapping failed.
    #[error("the in-flight region cannot be mapped")]
    Map(#[source] vm_memory::mmap::MmapRegionError),
}

/// Makes the file of a fresh region, which can neither shrink nor grow any more.
///
/// # Errors
/// When the kernel has no memory or descriptor left.
pub fn create_file(geometry: &InflightGeometry) -> Result<File, InflightError> {
    let make = || {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(rustix::fs::memfd_create(c"sealblk-inflight", flags)?);
        file.set_len(geometry.len_bytes)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(file)
    };
    make().map_err(InflightError::File)
}

/// A mapped region.
#[derive(Debug)]
pub struct InflightRegion {
    mapping: MmapRegion,
    queue_count: u16,
    queue_size: u16,
    /// Where the bytes behind the queues begin, if there are any.
    remembered_offset: Option<usize>,
}

/// What a back end leaves word of for its successor, beside requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// Whether the driver knows that there is a write cache, and flushes it.
    pub writeback: bool,
}

impl InflightRegion {
    /// Maps the region of that geometry in `file`.
    ///
    /// # Errors
    /// When the geometry is impossible, or the file does not, or may later not, reach to its end.
    pub fn map(file: File, geometry: &InflightGeometry) -> Result<Self, InflightError> {
        let InflightGeometry { len_bytes, offset_bytes, queue_count, queue_size } = *geometry;
        let own = InflightGeometry::of(queue_count, queue_size)?;
        if len_bytes < own.queues_bytes() {
            return Err(InflightError::TooSmall { len_bytes, needed_bytes: own.queues_bytes() });
        }
        // A region that somebody else has made may end with its queues, or go on as it likes.
        let mapped_bytes = len_bytes.min(own.len_bytes);
        let end_bytes = offset_bytes.saturating_add(mapped_bytes);
        shared_file::check(&file, end_bytes).map_err(InflightError::Unfit)?;
        let mapping = MmapRegion::from_file(FileOffset::new(file, offset_bytes), mapped_bytes as usize)
            .map_err(InflightError::Map)?;
        Ok(Self::over(mapping, &own))
    }

    /// The region that `mapping` is, which has room for the queues of that geometry at least.
    fn over(mapping: MmapRegion, own: &InflightGeometry) -> Self {
        let remembered_offset =
            (mapping.size() as u64 == own.len_bytes).then_some(own.queues_bytes() as usize);
        let InflightGeometry { queue_count, queue_size, .. } = *own;
        Self { mapping, queue_count, queue_size, remembered_offset }
    }

    /// What the last back end has left word of.
    pub fn remembered(&self) -> Option<Remembered> {
        let [magic, writeback, _] = self.remembered_words()?;
        if magic.load(Ordering::Acquire) != REMEMBERED_MAGIC {
            return None;
        }
        match writeback.load(Ordering::Acquire) {
            0 => Some(Remembered { writeback: false }),
            1 => Some(Remembered { writeback: true }),
            _ => None,
        }
    }

    /// Leaves word for the next back end, if the region has room for that.
    pub fn remember(&self, remembered: Remembered) {
        let Some([magic, writeback, _]) = self.remembered_words() else { return };
        writeback.store(u64::from(remembered.writeback), Ordering::Release);
        magic.store(REMEMBERED_MAGIC, Ordering::Release);
    }

    /// Whether a back end that has died had seen storage fail to make writes durable.
    pub fn has_sync_failed(&self) -> bool {
        self.remembered_words()
            .is_some_and(|[.., sync_failed]| sync_failed.load(Ordering::Acquire) == SYNC_FAILED_MAGIC)
    }

    /// Leaves word of that, if the region has room for it, or takes it back.
    pub fn note_sync_failed(&self, failed: bool) {
        if let Some([.., sync_failed]) = self.remembered_words() {
            sync_failed.store(if failed { SYNC_FAILED_MAGIC } else { 0 }, Ordering::Release);
        }
    }

    /// In this order: a magic number that makes the second word valid; the write cache; a failed sync.
    fn remembered_words(&self) -> Option<[&AtomicU64; 3]> {
        let offset = self.remembered_offset?;
        // SAFETY: 64 bytes are mapped from there on, a multiple of 64 from the mapping's page-aligned start.
        unsafe {
            let start = self.mapping.as_ptr().add(offset).cast::<u64>();
            Some([0, 1, 2].map(|word| AtomicU64::from_ptr(start.add(word))))
        }
    }

    /// The part of one queue, if the region has one.
    pub fn queue(self: &Arc<Self>, index: u16) -> Option<InflightQueue> {
        if index >= self.queue_count {
            return None;
        }
        let offset = u64::from(index) * queue_bytes(self.queue_size);
        // SAFETY: the mapping has `queue_count` parts of that size, as `map` saw to.
        let start = unsafe { self.mapping.as_ptr().add(offset as usize) };
        let start = NonNull::new(start)?;
        Some(InflightQueue { start, head_count: self.queue_size, _region: Arc::clone(self) })
    }
}

/// The part of one queue. Used by one thread at a time.
#[derive(Debug)]
pub struct InflightQueue {
    /// Begin of `HEADER_BYTES` and `head_count` entries, page-aligned plus a multiple of 64.
    start: NonNull<u8>,
    head_count: u16,
    _region: Arc<InflightRegion>,
}

// SAFETY: the pointer leads into the mapping that the value itself keeps, and every access through it is atomic.
unsafe impl Send for InflightQueue {}

impl InflightQueue {
    /// Number of heads that there is an entry for.
    pub fn head_count(&self) -> u16 {
        self.head_count
    }

    /// 0 in a fresh region, [`VERSION`] in one that was initialised.
    pub fn version(&self) -> u16 {
        self.header(VERSION_OFFSET).load(Ordering::Acquire)
    }

    /// See [`version`](Self::version).
    pub fn set_version(&self, version: u16) {
        store_u16(self.header(VERSION_OFFSET), version);
    }

    /// Writes down for how many heads there is an entry.
    pub fn set_descriptor_count(&self) {
        store_u16(self.header(DESCRIPTOR_COUNT_OFFSET), self.head_count);
    }

    /// The head that was completed last: where the list of the last batch begins.
    pub fn last_batch_head(&self) -> u16 {
        self.header(LAST_BATCH_HEAD_OFFSET).load(Ordering::Acquire)
    }

    /// See [`last_batch_head`](Self::last_batch_head).
    pub fn set_last_batch_head(&self, head: u16) {
        store_u16(self.header(LAST_BATCH_HEAD_OFFSET), head);
    }

    /// The index of the used ring as of the last batch that was written down completely.
    pub fn used_index(&self) -> u16 {
        self.header(USED_INDEX_OFFSET).load(Ordering::Acquire)
    }

    /// See [`used_index`](Self::used_index).
    pub fn set_used_index(&self, index: u16) {
        store_u16(self.header(USED_INDEX_OFFSET), index);
    }

    /// Whether the request at `head` was taken and not answered.
    pub fn is_in_flight(&self, head: u16) -> bool {
        self.in_flight_byte(head).load(Ordering::Acquire) != 0
    }

    /// See [`is_in_flight`](Self::is_in_flight).
    pub fn set_in_flight(&self, head: u16, in_flight: bool) {
        crash::point();
        self.in_flight_byte(head).store(u8::from(in_flight), Ordering::Release);
    }

    /// The head that was completed before this one, in the same batch.
    pub fn next(&self, head: u16) -> u16 {
        self.next_word(head).load(Ordering::Acquire)
    }

    /// See [`next`](Self::next).
    pub fn set_next(&self, head: u16, next: u16) {
        store_u16(self.next_word(head), next);
    }

    /// The request's number, in the order in which requests were taken.
    pub fn counter(&self, head: u16) -> u64 {
        self.counter_word(head).load(Ordering::Acquire)
    }

    /// See [`counter`](Self::counter).
    pub fn set_counter(&self, head: u16, counter: u64) {
        crash::point();
        self.counter_word(head).store(counter, Ordering::Release);
    }

    fn header(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: `offset` is one of the header's fields, which are aligned, as the header is.
        unsafe { AtomicU16::from_ptr(self.start.add(offset).cast().as_ptr()) }
    }

    fn in_flight_byte(&self, head: u16) -> &AtomicU8 {
        // SAFETY: a byte of an entry.
        unsafe { AtomicU8::from_ptr(self.entry(head).add(IN_FLIGHT_OFFSET).as_ptr()) }
    }

    fn next_word(&self, head: u16) -> &AtomicU16 {
        // SAFETY: an aligned field of an entry, which is aligned to its size.
        unsafe { AtomicU16::from_ptr(self.entry(head).add(NEXT_OFFSET).cast().as_ptr()) }
    }

    fn counter_word(&self, head: u16) -> &AtomicU64 {
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(self.entry(head).add(COUNTER_OFFSET).cast().as_ptr()) }
    }

    fn entry(&self, head: u16) -> NonNull<u8> {
        assert!(head < self.head_count, "heads are checked before they are looked up");
        // SAFETY: there are `head_count` entries behind the header.
        unsafe { self.start.add((HEADER_BYTES + ENTRY_BYTES * u64::from(head)) as usize) }
    }
}

fn store_u16(word: &AtomicU16, value: u16) {
    crash::point();
    word.store(value, Ordering::Release);
}

/// Crashes of the process between two stores, for tests.
pub(crate) mod crash {
    #[cfg(test)]
    std::thread_local! {
        static STORES_LEFT: std::cell::Cell<Option<u32>> = const { std::cell::Cell::new(None) };
    }

    /// Stands before each store that a successor may find. Nothing outside tests.
    #[inline(always)]
    pub(crate) fn point() {
        #[cfg(test)]
        STORES_LEFT.with(|left| match left.get() {
            Some(0) => std::panic::resume_unwind(Box::new("crash")),
            Some(some) => left.set(Some(some - 1)),
            None => {}
        });
    }

    /// Runs `life` until it has made so many stores, and not further. Returns whether it came to its end.
    #[cfg(test)]
    pub(crate) fn after_stores(count: u32, life: impl FnOnce()) -> bool {
        STORES_LEFT.set(Some(count));
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(life)).is_ok();
        STORES_LEFT.set(None);
        ended
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::memory::tests::plain_memory;
    use super::*;

    /// A fresh region in plain memory.
    pub(crate) fn region(queue_count: u16, queue_size: u16) -> Arc<InflightRegion> {
        let geometry = InflightGeometry::of(queue_count, queue_size).unwrap();
        Arc::new(InflightRegion::over(plain_memory(geometry.len_bytes), &geometry))
    }

    impl InflightRegion {
        /// What the front end sees there.
        pub(crate) fn peek<const N: usize>(&self, offset: usize) -> [u8; N] {
            assert!(offset + N <= self.mapping.size());
            // SAFETY: within the mapping, which nobody else touches meanwhile.
            unsafe { self.mapping.as_ptr().add(offset).cast::<[u8; N]>().read_unaligned() }
        }

        /// What the front end writes there, which it can at any time.
        pub(crate) fn poke<const N: usize>(&self, offset: usize, bytes: [u8; N]) {
            assert!(offset + N <= self.mapping.size());
            // SAFETY: as above.
            unsafe { self.mapping.as_ptr().add(offset).cast::<[u8; N]>().write_unaligned(bytes) }
        }
    }

    #[test]
    fn the_layout_is_the_specifications() {
        let region = region(2, 3);
        // 16 + 3 * 16 bytes are 64; the next part begins right there.
        assert_eq!(region.mapping.size(), 128 + 64);
        let queue = region.queue(1).unwrap();
        queue.set_version(0x0102);
        queue.set_descriptor_count();
        queue.set_last_batch_head(0x0506);
        queue.set_used_index(0x0708);
        queue.set_in_flight(2, true);
        queue.set_next(2, 0x090a);
        queue.set_counter(2, 0x1112_1314_1516_1718);
        let bytes: [u8; 128] = region.peek(0);
        assert_eq!(bytes[..64], [0; 64]);
        let mut expected = [0; 64];
        expected[8..10].copy_from_slice(&0x0102_u16.to_ne_bytes());
        expected[10..12].copy_from_slice(&3_u16.to_ne_bytes());
        expected[12..14].copy_from_slice(&0x0506_u16.to_ne_bytes());
        expected[14..16].copy_from_slice(&0x0708_u16.to_ne_bytes());
        expected[48] = 1;
        expected[54..56].copy_from_slice(&0x090a_u16.to_ne_bytes());
        expected[56..].copy_from_slice(&0x1112_1314_1516_1718_u64.to_ne_bytes());
        assert_eq!(bytes[64..], expected);
        assert!(queue.is_in_flight(2) && !queue.is_in_flight(1));
        assert_eq!((queue.next(2), queue.counter(2)), (0x090a, 0x1112_1314_1516_1718));
        assert!(region.queue(2).is_none());
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps files")]
    fn a_file_that_we_make_keeps_its_size() {
        let file = create_file(&InflightGeometry::of(4, 128).unwrap()).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 4 * (16 + 128 * 16 + 48) + 64);
        assert!(file.set_len(0).is_err());
        assert!(file.set_len(1 << 20).is_err());
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps files")]
    fn geometries_are_checked_against_themselves_and_the_file() {
        let good = InflightGeometry::of(2, 128).unwrap();
        let try_map = |change: fn(&mut InflightGeometry)| {
            let mut geometry = good;
            change(&mut geometry);
            InflightRegion::map(create_file(&good).unwrap(), &geometry).map(drop)
        };
        try_map(|_| {}).unwrap();
        try_map(|g| g.queue_count = 1).unwrap();
        try_map(|g| g.len_bytes = u64::MAX).unwrap();
        try_map(|g| g.len_bytes -= 1).unwrap();
        assert!(matches!(try_map(|g| g.len_bytes -= 65), Err(InflightError::TooSmall { .. })));
        assert!(matches!(try_map(|g| g.queue_size = 132), Err(InflightError::TooSmall { .. })));
        assert!(matches!(try_map(|g| g.queue_size = u16::MAX), Err(InflightError::Shape { .. })));
        assert!(matches!(try_map(|g| g.queue_count = 0), Err(InflightError::Shape { .. })));
        assert!(matches!(try_map(|g| g.queue_size = 0), Err(InflightError::Shape { .. })));
        let beyond = try_map(|g| (g.queue_count, g.len_bytes) = (u16::MAX, u64::MAX));
        assert!(matches!(beyond, Err(InflightError::Unfit(SharedFileError::TooShort { .. }))));
        for offset_bytes in [4096, 1, u64::MAX, u64::MAX - 4095, i64::MAX as u64] {
            let geometry = InflightGeometry { offset_bytes, ..good };
            let refused = InflightRegion::map(create_file(&good).unwrap(), &geometry);
            assert!(refused.is_err(), "{offset_bytes}");
        }
    }

    #[test]
    fn what_is_remembered_lies_behind_the_queues() {
        let region = region(2, 3);
        assert_eq!(region.remembered(), None);
        for writeback in [true, false] {
            region.remember(Remembered { writeback });
            assert_eq!(region.remembered(), Some(Remembered { writeback }));
        }
        assert_eq!(region.peek(0), [0; 128]);
        region.poke(136, [2]);
        assert_eq!(region.remembered(), None, "no value of ours");
        region.poke(135, [1, 0]);
        assert_eq!(region.remembered(), None, "no mark of ours");
        // A region that ends with its queues.
        let own = InflightGeometry::of(2, 3).unwrap();
        let region = InflightRegion::over(plain_memory(own.len_bytes - 1), &own);
        region.remember(Remembered { writeback: true });
        assert_eq!(region.remembered(), None);
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps files")]
    fn a_file_that_may_shrink_is_refused() {
        let geometry = InflightGeometry::of(1, 8).unwrap();
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let unsealed = File::from(rustix::fs::memfd_create(c"unsealed", flags).unwrap());
        unsealed.set_len(geometry.len_bytes).unwrap();
        let refused = InflightRegion::map(unsealed.try_clone().unwrap(), &geometry);
        assert!(matches!(refused, Err(InflightError::Unfit(SharedFileError::Unsealed))));
        rustix::fs::fcntl_add_seals(&unsealed, SealFlags::SHRINK).unwrap();
        InflightRegion::map(unsealed, &geometry).unwrap();
        let on_disk = tempfile::tempfile().unwrap();
        on_disk.set_len(geometry.len_bytes).unwrap();
        assert!(matches!(
            InflightRegion::map(on_disk, &geometry),
            Err(InflightError::Unfit(SharedFileError::Unsealed))
        ));
    }
}
