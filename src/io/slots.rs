//! The private buffers that stand between guest memory and storage.
//!
//! Every byte of the guest's disk passes through a slot: encrypted into it on the way out, decrypted out of it
//! on the way in. A queue's slots are cut from one mapping, made once and given to the kernel once, so that
//! taking and putting them back costs neither a lock nor an allocation. The slot used last is taken first: its
//! bytes are still in the processor's cache.
#![expect(unsafe_code, reason = "one anonymous mapping, and byte slices of its parts")]

use std::io;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;

use rustix::mm::{self, Advice, MapFlags, ProtFlags};

/// Capacity of a small slot: most requests of a file system fit.
pub const SMALL_SLOT_BYTES: usize = 16 << 10;
/// Capacity of a large slot: the piece in which long requests are moved.
pub const LARGE_SLOT_BYTES: usize = 128 << 10;

/// How many slots of each size a pool holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolShape {
    /// Slots of [`SMALL_SLOT_BYTES`].
    pub small_count: usize,
    /// Slots of [`LARGE_SLOT_BYTES`].
    pub large_count: usize,
}

impl Default for PoolShape {
    /// 128 small and 16 large slots: 2 MiB of each.
    fn default() -> Self {
        Self { small_count: 128, large_count: 16 }
    }
}

impl PoolShape {
    /// Memory that a pool of this shape maps.
    pub fn bytes(self) -> usize {
        self.small_count * SMALL_SLOT_BYTES + self.large_count * LARGE_SLOT_BYTES
    }
}

/// One queue's slots. Hands out each of them to one holder at a time.
#[derive(Debug)]
pub struct SlotPool {
    mapping: Arc<Mapping>,
    slot_count: usize,
    largest_bytes: usize,
    free_small: Vec<Slot>,
    free_large: Vec<Slot>,
}

impl SlotPool {
    /// Maps the memory and cuts it up. The pages are filled with zeroes, kept out of core dumps and of forked
    /// children (they hold the guest's plaintext when encryption is off), and start on a page boundary.
    ///
    /// # Errors
    /// `InvalidInput` for a shape without slots; otherwise what `mmap` says.
    pub fn new(shape: PoolShape) -> io::Result<Self> {
        if shape.bytes() == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a slot pool needs at least one slot"));
        }
        let mapping = Arc::new(Mapping::new(shape.bytes())?);
        let large_end = shape.large_count * LARGE_SLOT_BYTES;
        let cut = |start: usize, count: usize, capacity_bytes: usize| -> Vec<Slot> {
            // Last to first, so that the first slot is on top of the free list.
            (0..count).rev().map(|i| mapping.slot(start + i * capacity_bytes, capacity_bytes)).collect()
        };
        let free_large = cut(0, shape.large_count, LARGE_SLOT_BYTES);
        let free_small = cut(large_end, shape.small_count, SMALL_SLOT_BYTES);
        Ok(Self {
            slot_count: shape.small_count + shape.large_count,
            largest_bytes: if shape.large_count > 0 { LARGE_SLOT_BYTES } else { SMALL_SLOT_BYTES },
            mapping,
            free_small,
            free_large,
        })
    }

    /// A slot of the smallest free size that holds `len_bytes`, or `None` when those that would do are all
    /// out. What it contains is left from its last use.
    pub fn take(&mut self, len_bytes: usize) -> Option<Slot> {
        if len_bytes <= SMALL_SLOT_BYTES {
            self.free_small.pop().or_else(|| self.free_large.pop())
        } else if len_bytes <= LARGE_SLOT_BYTES {
            self.free_large.pop()
        } else {
            None
        }
    }

    /// Takes a slot back, to be handed out again next.
    ///
    /// # Panics
    /// When the slot belongs to another pool.
    pub fn put(&mut self, slot: Slot) {
        assert!(Arc::ptr_eq(&slot.mapping, &self.mapping), "the slot belongs to another pool");
        // Neither list grows beyond the capacity that it was made with: every slot was in it then.
        match slot.capacity_bytes {
            SMALL_SLOT_BYTES => self.free_small.push(slot),
            _ => self.free_large.push(slot),
        }
    }

    /// The longest transfer that one slot can carry.
    pub fn largest_bytes(&self) -> usize {
        self.largest_bytes
    }

    /// How many slots the pool was made with, handed out or not.
    pub fn slot_count(&self) -> usize {
        self.slot_count
    }

    /// Base and length in bytes of the memory that holds every slot, for registering it with the kernel.
    pub fn span(&self) -> (NonNull<u8>, usize) {
        (self.mapping.base, self.mapping.len_bytes)
    }

    /// Keeps the memory mapped for as long as the caller likes, pool or no pool.
    pub(super) fn mapping(&self) -> Arc<Mapping> {
        Arc::clone(&self.mapping)
    }
}

/// A private buffer. Whoever holds it is the only one who may touch its bytes; giving it to an engine gives
/// that right to the kernel.
///
/// A slot keeps the pool's memory mapped, so it may outlive its pool. One that is dropped instead of
/// [put back](SlotPool::put) is lost to its pool.
#[derive(Debug)]
pub struct Slot {
    mapping: Arc<Mapping>,
    start: NonNull<u8>,
    capacity_bytes: usize,
}

// SAFETY: the slot owns its part of the mapping as a `Box<[u8]>` would: no other slot overlaps it, and the
// mapping is neither moved nor unmapped while the slot lives.
unsafe impl Send for Slot {}
// SAFETY: as above; a shared slot only gives out shared bytes and a pointer.
unsafe impl Sync for Slot {}

impl Slot {
    /// Length of the buffer.
    pub fn capacity_bytes(&self) -> usize {
        self.capacity_bytes
    }

    /// First byte, for reading.
    pub fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    /// First byte, for writing.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The first `len_bytes` bytes.
    ///
    /// # Panics
    /// When `len_bytes` exceeds the capacity.
    pub fn bytes(&self, len_bytes: usize) -> &[u8] {
        assert!(len_bytes <= self.capacity_bytes, "{len_bytes} bytes of a {}-byte slot", self.capacity_bytes);
        // SAFETY: the range lies within this slot's part of a live mapping, whose bytes were initialised to
        // zero by the kernel; the slot is their only owner and the borrow of it is shared.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), len_bytes) }
    }

    /// The first `len_bytes` bytes, to be changed.
    ///
    /// # Panics
    /// When `len_bytes` exceeds the capacity.
    pub fn bytes_mut(&mut self, len_bytes: usize) -> &mut [u8] {
        assert!(len_bytes <= self.capacity_bytes, "{len_bytes} bytes of a {}-byte slot", self.capacity_bytes);
        // SAFETY: as in `bytes`, with an exclusive borrow of the slot.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), len_bytes) }
    }
}

/// The memory of one pool, mapped until the pool, its slots and the engines that registered it are gone. An
/// engine that cannot get a slot back from the kernel forgets it, which leaves the memory mapped for good.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<u8>,
    len_bytes: usize,
}

// SAFETY: the mapping is only an address range; the bytes in it belong to the slots.
unsafe impl Send for Mapping {}
// SAFETY: as above, and nothing can be changed through it.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(len_bytes: usize) -> io::Result<Self> {
        // SAFETY: an anonymous private mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe {
            mm::mmap_anonymous(
                std::ptr::null_mut(),
                len_bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?;
        // Either advice may be refused by an old kernel, and Miri knows of none. The pool works without it.
        // SAFETY: the range is exactly the mapping just made; neither advice changes its content.
        #[cfg(not(miri))]
        unsafe {
            let _ = mm::madvise(base, len_bytes, Advice::LinuxDontDump);
            let _ = mm::madvise(base, len_bytes, Advice::LinuxDontFork);
        }
        Ok(Self { base: NonNull::new(base.cast()).expect("mmap never returns null"), len_bytes })
    }

    /// Whether `len_bytes` bytes at `start` lie inside.
    pub(super) fn contains(&self, start: *const u8, len_bytes: usize) -> bool {
        let base = self.base.addr().get();
        start.addr() >= base && start.addr() + len_bytes <= base + self.len_bytes
    }

    /// To be called once for each part of the mapping.
    fn slot(self: &Arc<Self>, start_bytes: usize, capacity_bytes: usize) -> Slot {
        assert!(start_bytes + capacity_bytes <= self.len_bytes, "a slot lies inside the mapping");
        // SAFETY: just checked to stay within the mapping.
        let start = unsafe { self.base.add(start_bytes) };
        Slot { mapping: Arc::clone(self), start, capacity_bytes }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is exactly our mapping, and no slot or engine refers to it any more. An unmap that
        // fails leaves it mapped: nothing better can be done here.
        let _ = unsafe { mm::munmap(self.base.as_ptr().cast(), self.len_bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn is_mapped(address: usize) -> bool {
        std::fs::read_to_string("/proc/self/maps").unwrap().lines().any(|line| {
            let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
            let bound = |hex: &str| usize::from_str_radix(hex, 16).unwrap();
            (bound(from)..bound(to)).contains(&address)
        })
    }

    #[test]
    fn every_slot_is_handed_out_once_and_none_overlap() {
        let mut pool = SlotPool::new(PoolShape::default()).unwrap();
        let (base, len_bytes) = pool.span();
        assert_eq!(len_bytes, 4 << 20);
        assert_eq!(base.as_ptr().addr() % 4096, 0);
        let mut slots = Vec::new();
        while let Some(slot) = pool.take(1) {
            slots.push(slot);
        }
        assert_eq!(slots.len(), pool.slot_count());
        let mut owned = HashSet::new();
        for slot in &slots {
            assert_eq!(slot.as_ptr().addr() % 4096, 0);
            for block in (0..slot.capacity_bytes()).step_by(4096) {
                let offset = slot.as_ptr().addr() + block - base.as_ptr().addr();
                assert!(offset < len_bytes);
                assert!(owned.insert(offset), "two slots share a block");
            }
        }
        assert_eq!(owned.len() * 4096, len_bytes);
    }

    #[test]
    fn the_smallest_size_that_fits_is_taken_and_the_last_put_comes_first() {
        let mut pool = SlotPool::new(PoolShape { small_count: 1, large_count: 2 }).unwrap();
        let small = pool.take(SMALL_SLOT_BYTES).unwrap();
        assert_eq!(small.capacity_bytes(), SMALL_SLOT_BYTES);
        let large = pool.take(SMALL_SLOT_BYTES + 1).unwrap();
        assert_eq!(large.capacity_bytes(), LARGE_SLOT_BYTES);
        let instead = pool.take(512).unwrap();
        assert_eq!(instead.capacity_bytes(), LARGE_SLOT_BYTES, "the small ones are out");
        assert!(pool.take(512).is_none());
        let first = large.as_ptr();
        pool.put(instead);
        pool.put(large);
        assert_eq!(pool.take(LARGE_SLOT_BYTES).unwrap().as_ptr(), first);
        assert!(pool.take(LARGE_SLOT_BYTES + 1).is_none());
        pool.put(small);
        assert_eq!(pool.take(1).unwrap().capacity_bytes(), SMALL_SLOT_BYTES);
    }

    #[test]
    fn bytes_are_kept_and_bounded() {
        let mut pool = SlotPool::new(PoolShape { small_count: 1, large_count: 0 }).unwrap();
        assert_eq!(pool.largest_bytes(), SMALL_SLOT_BYTES);
        let mut slot = pool.take(512).unwrap();
        assert!(slot.bytes(SMALL_SLOT_BYTES).iter().all(|&byte| byte == 0));
        slot.bytes_mut(512).fill(7);
        assert_eq!(slot.bytes(513)[510..], [7, 7, 0]);
        let beyond = std::panic::catch_unwind(|| slot.bytes(SMALL_SLOT_BYTES + 1).len());
        assert!(beyond.is_err());
    }

    #[test]
    fn the_memory_lives_exactly_as_long_as_something_needs_it() {
        let mut pool = SlotPool::new(PoolShape::default()).unwrap();
        let mapping = Arc::downgrade(&pool.mapping);
        let mut slot = pool.take(LARGE_SLOT_BYTES).unwrap();
        drop(pool);
        slot.bytes_mut(LARGE_SLOT_BYTES).fill(1);
        assert!(is_mapped(slot.as_ptr().addr()), "a slot outlives its pool");
        drop(slot);
        assert!(mapping.upgrade().is_none(), "nothing is left that keeps the memory mapped");

        let mut pool = SlotPool::new(PoolShape::default()).unwrap();
        let forgotten = pool.take(1).unwrap();
        let leaked = forgotten.as_ptr().addr();
        std::mem::forget(forgotten);
        drop(pool);
        assert!(is_mapped(leaked), "a forgotten slot leaks the memory");
    }

    #[test]
    #[should_panic(expected = "another pool")]
    fn a_foreign_slot_is_refused() {
        let mut mine = SlotPool::new(PoolShape { small_count: 1, large_count: 0 }).unwrap();
        let mut other = SlotPool::new(PoolShape { small_count: 1, large_count: 0 }).unwrap();
        mine.put(other.take(1).unwrap());
    }

    #[test]
    fn a_slot_may_change_threads() {
        fn is_send<T: Send>() {}
        is_send::<Slot>();
        is_send::<SlotPool>();
        assert!(SlotPool::new(PoolShape { small_count: 0, large_count: 0 }).is_err());
    }
}
