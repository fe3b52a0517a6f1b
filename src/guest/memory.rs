//! The guest's memory as the front end describes it: regions, each a shared mapping of a file.
//!
//! A [`GuestMemory`] never changes; adding or removing a region makes a new table that shares the remaining
//! mappings. A mapping therefore lives as long as anyone who might still touch it holds the table.
#![expect(unsafe_code, reason = "raw access to memory that another process writes")]

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::sync::Arc;

use rustix::mm::{self, Advice};
use vm_memory::{FileOffset, MmapRegion};

/// An address in the guest's physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GuestAddress(pub u64);

impl GuestAddress {
    /// The address `offset_bytes` further on, `None` past the end of the address space.
    pub fn checked_add(self, offset_bytes: u64) -> Option<Self> {
        self.0.checked_add(offset_bytes).map(Self)
    }
}

/// As many regions as QEMU has memory slots.
pub const MAX_REGIONS: usize = 509;

/// Why a region cannot become part of the guest's memory, or cannot leave it.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Its end lies past the end of the address space, or it is empty.
    #[error("memory region at {guest_start:#x}: {len_bytes} bytes are not a valid size there")]
    Size {
        /// Guest physical address of the region.
        guest_start: u64,
        /// Its claimed size.
        len_bytes: u64,
    },
    /// The file behind it is too short: touching the rest would raise SIGBUS.
    #[error(
        "memory region at {guest_start:#x}: its file ends at {file_bytes} bytes, {needed_bytes} are needed"
    )]
    FileTooShort {
        /// Guest physical address of the region.
        guest_start: u64,
        /// Size of the file.
        file_bytes: u64,
        /// Offset of the region in the file plus its size.
        needed_bytes: u64,
    },
    /// It shares guest addresses with a region that is there already.
    #[error("memory region at {guest_start:#x} overlaps another one")]
    Overlap {
        /// Guest physical address of the new region.
        guest_start: u64,
    },
    /// There are [`MAX_REGIONS`] already.
    #[error("more than {MAX_REGIONS} memory regions")]
    TooMany,
    /// No region has this start and size.
    #[error("no memory region of {len_bytes} bytes at {guest_start:#x}")]
    Unknown {
        /// Guest physical address that was named.
        guest_start: u64,
        /// Size that was named.
        len_bytes: u64,
    },
    /// The file cannot be examined.
    #[error("memory region's file cannot be examined")]
    Stat(#[source] io::Error),
    /// The mapping failed.
    #[error("memory region cannot be mapped")]
    Map(#[source] vm_memory::mmap::MmapRegionError),
}

/// One mapped region.
#[derive(Debug)]
pub struct Region {
    guest_start: u64,
    user_start: u64,
    len_bytes: u64,
    mapping: MmapRegion,
}

impl Region {
    /// Maps `len_bytes` of `file` from `file_offset_bytes`, shared. `user_start` is the address of the region
    /// in the front end, the unit in which it names rings.
    ///
    /// # Errors
    /// When the range is impossible, the file is shorter than the range, or the kernel refuses the mapping.
    pub fn map(
        guest_start: u64,
        user_start: u64,
        len_bytes: u64,
        file: File,
        file_offset_bytes: u64,
    ) -> Result<Self, MemoryError> {
        let size_error = MemoryError::Size { guest_start, len_bytes };
        let ends = [guest_start, user_start].map(|start| start.checked_add(len_bytes));
        let Ok(len) = usize::try_from(len_bytes) else { return Err(size_error) };
        let Some(needed_bytes) = file_offset_bytes.checked_add(len_bytes) else { return Err(size_error) };
        if len == 0 || ends.contains(&None) {
            return Err(size_error);
        }
        let file_bytes = rustix::fs::fstat(file.as_fd()).map_err(|e| MemoryError::Stat(e.into()))?.st_size;
        let file_bytes = u64::try_from(file_bytes).unwrap_or(0);
        if file_bytes < needed_bytes {
            return Err(MemoryError::FileTooShort { guest_start, file_bytes, needed_bytes });
        }
        let mapping =
            MmapRegion::from_file(FileOffset::new(file, file_offset_bytes), len).map_err(MemoryError::Map)?;
        // Guest data does not belong in a core dump. Not worth refusing the guest's memory for.
        // SAFETY: the range is exactly the mapping made above.
        let _ = unsafe { mm::madvise(mapping.as_ptr().cast(), len, Advice::LinuxDontDump) };
        Ok(Self { guest_start, user_start, len_bytes, mapping })
    }

    fn guest_end(&self) -> u64 {
        self.guest_start + self.len_bytes
    }

    fn contains(&self, address: GuestAddress) -> bool {
        (self.guest_start..self.guest_end()).contains(&address.0)
    }
}

/// A queue thread's own handle to a table that the threads share. Cloned for each request: threads that counted
/// their references in the same place would slow each other down.
#[derive(Clone, Debug)]
pub struct LocalMemory(Rc<SharedMemory>);

#[derive(Debug)]
struct SharedMemory(Arc<GuestMemory>);

impl LocalMemory {
    /// A handle for one thread.
    pub fn new(shared: Arc<GuestMemory>) -> Self {
        Self(Rc::new(SharedMemory(shared)))
    }
}

impl Deref for LocalMemory {
    type Target = GuestMemory;
    fn deref(&self) -> &GuestMemory {
        &self.0.0
    }
}

/// A run of guest memory that is contiguous for the host too. Lives as long as the table it came from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) host: NonNull<u8>,
    pub(super) len_bytes: usize,
}

/// All of the guest's memory, sorted by guest address.
#[derive(Clone, Debug, Default)]
pub struct GuestMemory {
    regions: Vec<Arc<Region>>,
}

impl GuestMemory {
    /// A table of exactly these regions.
    ///
    /// # Errors
    /// When two overlap or there are too many.
    pub fn from_regions(regions: impl IntoIterator<Item = Region>) -> Result<Self, MemoryError> {
        regions.into_iter().try_fold(Self::default(), |memory, region| memory.with_region(region))
    }

    /// This table and one more region.
    ///
    /// # Errors
    /// When it overlaps one of them or they are too many.
    pub fn with_region(&self, region: Region) -> Result<Self, MemoryError> {
        if self.regions.len() >= MAX_REGIONS {
            return Err(MemoryError::TooMany);
        }
        let position = self.regions.partition_point(|other| other.guest_start < region.guest_start);
        let before = position.checked_sub(1).map(|i| self.regions[i].guest_end());
        let after = self.regions.get(position).map(|next| next.guest_start);
        if before.is_some_and(|end| end > region.guest_start) || after.is_some_and(|s| s < region.guest_end())
        {
            return Err(MemoryError::Overlap { guest_start: region.guest_start });
        }
        let mut regions = self.regions.clone();
        regions.insert(position, Arc::new(region));
        Ok(Self { regions })
    }

    /// This table without the region of that start and size.
    ///
    /// # Errors
    /// When there is none.
    pub fn without_region(&self, guest_start: u64, len_bytes: u64) -> Result<Self, MemoryError> {
        let mut regions = self.regions.clone();
        regions.retain(|region| (region.guest_start, region.len_bytes) != (guest_start, len_bytes));
        if regions.len() == self.regions.len() {
            return Err(MemoryError::Unknown { guest_start, len_bytes });
        }
        Ok(Self { regions })
    }

    /// Translates an address of the front end's own address space.
    pub fn guest_address(&self, user: u64) -> Option<GuestAddress> {
        let region =
            self.regions.iter().find(|r| (r.user_start..r.user_start + r.len_bytes).contains(&user))?;
        Some(GuestAddress(user - region.user_start + region.guest_start))
    }

    /// First guest address behind the last region, 0 without any.
    pub fn end_bytes(&self) -> u64 {
        self.regions.last().map_or(0, |region| region.guest_end())
    }

    /// Calls `visit` with the guest addresses of a span that this table gave, and the length of each range.
    pub(super) fn for_each_guest_range(&self, span: &Span, mut visit: impl FnMut(GuestAddress, u64)) {
        let host_start = span.host.as_ptr().addr();
        let host_end = host_start + span.len_bytes;
        let mut left = span.len_bytes;
        for region in &self.regions {
            let region_start = region.mapping.as_ptr().addr();
            let start = host_start.max(region_start);
            let end = host_end.min(region_start + region.mapping.size());
            if start < end {
                visit(GuestAddress(region.guest_start + (start - region_start) as u64), (end - start) as u64);
                left -= end - start;
                if left == 0 {
                    return;
                }
            }
        }
    }

    /// The longest span from `address` on that one region holds, at most `len_bytes`.
    pub(super) fn span_at(&self, address: GuestAddress, len_bytes: u64) -> Option<Span> {
        // Few regions, the first of which holds most addresses: a linear search beats a binary one.
        let region = self.regions.iter().find(|region| region.contains(address))?;
        let offset = address.0 - region.guest_start;
        let len = len_bytes.min(region.len_bytes - offset);
        // SAFETY: `offset` lies within the mapping, since `contains` said so.
        let host = unsafe { region.mapping.as_ptr().add(offset as usize) };
        Some(Span { host: NonNull::new(host)?, len_bytes: len as usize })
    }

    /// A pointer to `len_bytes` bytes at `address`, `None` unless one region holds them all. Valid for reads
    /// and writes while this table, or one made from it that keeps the region, lives.
    pub fn host_pointer(&self, address: GuestAddress, len_bytes: u64) -> Option<NonNull<u8>> {
        let span = self.span_at(address, len_bytes)?;
        (span.len_bytes as u64 == len_bytes).then_some(span.host)
    }

    /// Whether `len_bytes` bytes from `address` on are all mapped, over however many adjacent regions.
    pub fn is_mapped(&self, address: GuestAddress, len_bytes: u64) -> bool {
        self.for_each_span(address, len_bytes, |_| {})
    }

    /// Calls `visit` with each span of the range in order. Returns false, having visited only the beginning,
    /// when a part is not mapped.
    pub(super) fn for_each_span(
        &self,
        address: GuestAddress,
        len_bytes: u64,
        mut visit: impl FnMut(Span),
    ) -> bool {
        let (mut address, mut left) = (address, len_bytes);
        while left > 0 {
            let Some(span) = self.span_at(address, left) else { return false };
            visit(span);
            left -= span.len_bytes as u64;
            match address.checked_add(span.len_bytes as u64) {
                Some(next) => address = next,
                None => return left == 0,
            }
        }
        true
    }

    /// Copies `N` bytes out of guest memory, each read exactly once, so that what is checked afterwards is
    /// what is used. `None` when a part is not mapped.
    pub fn read<const N: usize>(&self, address: GuestAddress) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.read_into(address, &mut bytes)?;
        Some(bytes)
    }

    /// As [`read`](Self::read), into `destination`, which is undefined after a `None`.
    pub fn read_into(&self, address: GuestAddress, destination: &mut [u8]) -> Option<()> {
        let mut filled = 0;
        let whole = self.for_each_span(address, destination.len() as u64, |span| {
            // SAFETY: the span is mapped for as long as `self` lives.
            unsafe { read_volatile(span.host, &mut destination[filled..filled + span.len_bytes]) };
            filled += span.len_bytes;
        });
        whole.then_some(())
    }

    /// Stores one byte. Returns false when the address is not mapped.
    pub fn write_byte(&self, address: GuestAddress, value: u8) -> bool {
        let Some(host) = self.host_pointer(address, 1) else { return false };
        // SAFETY: one mapped byte; volatile, since the guest may look at any time.
        unsafe { host.write_volatile(value) };
        true
    }
}

/// Reads each byte once, eight at a time where the source allows: a plain copy would let the compiler read
/// again after a check.
///
/// # Safety
/// `source` is valid for reads of `destination.len()` bytes.
unsafe fn read_volatile(source: NonNull<u8>, destination: &mut [u8]) {
    let mut at = 0;
    while at < destination.len() {
        // SAFETY: `at` is below the length, which the caller vouches for.
        let from = unsafe { source.add(at) };
        if from.cast::<u64>().is_aligned() && destination.len() - at >= size_of::<u64>() {
            // SAFETY: eight bytes are left and `from` is aligned for them.
            let word = unsafe { ptr::read_volatile(from.cast::<u64>().as_ptr()) };
            destination[at..at + 8].copy_from_slice(&word.to_ne_bytes());
            at += 8;
        } else {
            // SAFETY: one byte is left.
            destination[at] = unsafe { ptr::read_volatile(from.as_ptr()) };
            at += 1;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use vm_memory::{GuestMemoryMmap, GuestRegionMmap};

    use super::*;

    /// What a ring's areas and the region's words are aligned to, at least.
    const ALIGN_BYTES: usize = 16;

    /// Memory of its own: plain bytes under Miri, which knows of no files that are mapped.
    pub(crate) fn plain_memory(len_bytes: u64) -> MmapRegion {
        // Under Miri it is aligned to 8 bytes only, or better by chance.
        std::iter::repeat_with(|| MmapRegion::new(len_bytes as usize).unwrap())
            .find(|mapping| mapping.as_ptr().addr().is_multiple_of(ALIGN_BYTES))
            .unwrap()
    }

    /// A region of plain memory.
    pub(crate) fn region(guest_start: u64, len_bytes: u64) -> Region {
        let user_start = 0x7000_0000_0000 + guest_start;
        Region { guest_start, user_start, len_bytes, mapping: plain_memory(len_bytes) }
    }

    const PAGE_BYTES: usize = 4096;

    /// Memory from guest address 0 on, for both sides of a ring. It is gone with this value, whoever has it still:
    /// Miri notices.
    pub(crate) struct BothSides {
        /// A page more than it takes to begin on a page boundary.
        words: *mut [u64],
    }

    impl BothSides {
        pub(crate) fn new(len_bytes: u64) -> Self {
            let words = Box::<[u64]>::new_zeroed_slice((len_bytes as usize + PAGE_BYTES) / size_of::<u64>());
            // SAFETY: zeroes are words.
            Self { words: Box::into_raw(unsafe { words.assume_init() }) }
        }

        fn mapping(&self) -> MmapRegion {
            let start = self.words.cast::<u8>().map_addr(|start| start.next_multiple_of(PAGE_BYTES));
            let len_bytes = self.words.len() * size_of::<u64>() - PAGE_BYTES;
            // SAFETY: the words are there, and neither side refers to them but by pointers.
            unsafe { MmapRegion::build_raw(start, len_bytes, 0, 0) }.unwrap()
        }

        /// The guest's memory for us.
        pub(crate) fn device(&self) -> GuestMemory {
            let mapping = self.mapping();
            let region = Region { guest_start: 0, user_start: 0, len_bytes: mapping.size() as u64, mapping };
            GuestMemory::from_regions([region]).unwrap()
        }

        /// The same for a driver.
        pub(crate) fn driver(&self) -> GuestMemoryMmap<()> {
            let region = GuestRegionMmap::new(self.mapping(), vm_memory::GuestAddress(0)).unwrap();
            GuestMemoryMmap::from_regions(vec![region]).unwrap()
        }
    }

    impl Drop for BothSides {
        fn drop(&mut self) {
            // SAFETY: it was a box.
            drop(unsafe { Box::from_raw(self.words) });
        }
    }

    fn memory_file(len_bytes: u64) -> File {
        let file = File::from(rustix::fs::memfd_create(c"guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.set_len(len_bytes).unwrap();
        file
    }

    #[test]
    fn a_range_may_cross_adjacent_regions_but_no_hole() {
        let memory = GuestMemory::from_regions([
            region(0x1000, 0x1000),
            region(0x2000, 0x1000),
            region(0x8000, 0x1000),
        ])
        .unwrap();
        assert!(memory.is_mapped(GuestAddress(0x1ff0), 32));
        assert!(memory.host_pointer(GuestAddress(0x1ff0), 32).is_none());
        assert!(!memory.is_mapped(GuestAddress(0x2ff0), 32));
        assert!(!memory.is_mapped(GuestAddress(0), 1));
        assert!(memory.is_mapped(GuestAddress(0x8fff), 1));
        assert!(!memory.is_mapped(GuestAddress(0x8fff), 2));
        assert!(!memory.is_mapped(GuestAddress(u64::MAX), 1));
        assert!(!memory.is_mapped(GuestAddress(u64::MAX), u64::MAX));
    }

    #[test]
    fn what_was_written_is_read_across_a_border() {
        let memory = GuestMemory::from_regions([region(0, 0x1000), region(0x1000, 0x1000)]).unwrap();
        for i in 0..16 {
            assert!(memory.write_byte(GuestAddress(0xff9 + i), i as u8 + 1));
        }
        let bytes: [u8; 16] = memory.read(GuestAddress(0xff9)).unwrap();
        assert_eq!(bytes, std::array::from_fn(|i| i as u8 + 1));
        assert!(memory.read::<16>(GuestAddress(0x1ff1)).is_none());
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps files")]
    fn overlaps_and_short_files_are_refused() {
        let memory = GuestMemory::from_regions([region(0x1000, 0x2000)]).unwrap();
        for (start, len) in [(0x1000, 0x1000), (0x2000, 0x2000), (0, 0x1001), (0, 0x8000)] {
            let error = memory.with_region(region(start, len)).unwrap_err();
            assert!(matches!(error, MemoryError::Overlap { .. }), "{start:#x}: {error}");
        }
        let error = Region::map(0, 0, 0x2000, memory_file(0x1000), 0).unwrap_err();
        assert!(matches!(error, MemoryError::FileTooShort { file_bytes: 0x1000, needed_bytes: 0x2000, .. }));
        let error = Region::map(u64::MAX - 1, 0, 0x1000, memory_file(0x1000), 0).unwrap_err();
        assert!(matches!(error, MemoryError::Size { .. }));
        assert!(Region::map(0, 0, 0, memory_file(0x1000), 0).is_err());
        let region = Region::map(0x1000, 0, 0x1000, memory_file(0x2000), 0x1000).unwrap();
        assert!(GuestMemory::from_regions([region]).unwrap().write_byte(GuestAddress(0x1fff), 1));
    }

    #[test]
    fn regions_leave_by_start_and_size() {
        let memory = GuestMemory::from_regions([region(0, 0x1000), region(0x4000, 0x1000)]).unwrap();
        assert!(memory.without_region(0x4000, 0x2000).is_err());
        let smaller = memory.without_region(0x4000, 0x1000).unwrap();
        assert!(!smaller.is_mapped(GuestAddress(0x4000), 1));
        assert_eq!(memory.guest_address(0x7000_0000_4010), Some(GuestAddress(0x4010)));
        assert_eq!(smaller.guest_address(0x7000_0000_4010), None);
    }
}
