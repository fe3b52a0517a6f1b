//! The dirty log: which pages of its memory the guest's disk has changed, for a front end that copies that memory to
//! another host meanwhile ("Migration" of the vhost-user specification).
//!
//! One bit for each page of 4096 bytes of guest physical memory, the lowest page in the lowest bit of the first byte.
//! We set bits and never look at them; the front end takes them off. A page is marked after it was written: marked
//! before, the front end could take the bit off and copy the page in between.
#![expect(unsafe_code, reason = "memory that another process writes")]

use std::fs::File;
use std::sync::atomic::{AtomicU8, Ordering};

use vm_memory::{FileOffset, MmapRegion};

use super::memory::{GuestAddress, GuestMemory};
use super::shared_file::{self, SharedFileError};

/// What one bit stands for.
pub const LOG_PAGE_BYTES: u64 = 4096;

/// Why a log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirtyLogError {
    /// No bits, or more than there are addresses.
    #[error("a dirty log of {len_bytes} bytes at offset {offset_bytes} makes no sense")]
    Shape {
        /// Its claimed size.
        len_bytes: u64,
        /// Where it begins in its file.
        offset_bytes: u64,
    },
    /// The file cannot hold it, or may later not.
    #[error("the dirty log's file {0}")]
    Unfit(SharedFileError),
    /// A page without a bit could be changed unnoticed.
    #[error(
        "the dirty log ends at guest address {logged_end_bytes:#x}, the guest's memory at {memory_end_bytes:#x}"
    )]
    TooSmall {
        /// First guest address behind the pages that have a bit.
        logged_end_bytes: u64,
        /// First guest address behind the last region.
        memory_end_bytes: u64,
    },
    /// The mapping failed.
    #[error("the dirty log cannot be mapped")]
    Map(#[source] vm_memory::mmap::MmapRegionError),
}

/// A mapped log.
#[derive(Debug)]
pub struct DirtyLog {
    mapping: MmapRegion,
}

impl DirtyLog {
    /// Maps the log of `len_bytes` bytes from `offset_bytes` on in `file`.
    ///
    /// # Errors
    /// When the range is impossible, or the file does not, or may later not, reach to its end.
    pub fn map(file: File, offset_bytes: u64, len_bytes: u64) -> Result<Self, DirtyLogError> {
        let shape = DirtyLogError::Shape { len_bytes, offset_bytes };
        // A log for all addresses has 2^49 bytes.
        if len_bytes == 0 || len_bytes > 1 << 49 {
            return Err(shape);
        }
        let Some(end_bytes) = offset_bytes.checked_add(len_bytes) else { return Err(shape) };
        shared_file::check(&file, end_bytes).map_err(DirtyLogError::Unfit)?;
        let mapping = MmapRegion::from_file(FileOffset::new(file, offset_bytes), len_bytes as usize)
            .map_err(DirtyLogError::Map)?;
        Ok(Self { mapping })
    }

    /// Checks that every page of `memory` has its bit.
    ///
    /// # Errors
    /// [`DirtyLogError::TooSmall`].
    pub fn check_covers(&self, memory: &GuestMemory) -> Result<(), DirtyLogError> {
        let logged_end_bytes = (self.mapping.size() as u64 * 8).saturating_mul(LOG_PAGE_BYTES);
        let memory_end_bytes = memory.end_bytes();
        if logged_end_bytes < memory_end_bytes {
            return Err(DirtyLogError::TooSmall { logged_end_bytes, memory_end_bytes });
        }
        Ok(())
    }

    /// Marks the pages of `len_bytes` bytes from `address` on, which have been written. What has no bit is left out.
    pub fn mark(&self, address: GuestAddress, len_bytes: u64) {
        let Some(last) = len_bytes.checked_sub(1).map(|last| address.0.saturating_add(last)) else { return };
        let (first_page, last_page) = (address.0 / LOG_PAGE_BYTES, last / LOG_PAGE_BYTES);
        let last_byte = (last_page / 8).min(self.mapping.size() as u64 - 1);
        for byte in first_page / 8..=last_byte {
            let below_first = if byte == first_page / 8 { first_page % 8 } else { 0 };
            let above_last = if byte == last_page / 8 { 7 - last_page % 8 } else { 0 };
            let bits = (0xff << below_first) & (0xff_u8 >> above_last);
            // SAFETY: `byte` is below the size of the mapping, which lives as long as we do and does not shrink.
            let byte = unsafe { AtomicU8::from_ptr(self.mapping.as_ptr().add(byte as usize)) };
            // Release: who sees the bit sees the bytes of the page. Not left out where the bit seems to be set: the
            // front end may be taking it off.
            byte.fetch_or(bits, Ordering::Release);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use rustix::fs::{MemfdFlags, SealFlags};

    use super::super::memory::tests::{plain_memory, region};
    use super::*;

    /// A log in plain memory.
    pub(crate) fn log(len_bytes: u64) -> DirtyLog {
        DirtyLog { mapping: plain_memory(len_bytes) }
    }

    /// The pages that a log names, which are taken off it.
    pub(crate) fn take_pages(log: &DirtyLog) -> Vec<u64> {
        let bits = |byte: usize| {
            // SAFETY: a byte of the mapping.
            let byte = unsafe { AtomicU8::from_ptr(log.mapping.as_ptr().add(byte)) };
            byte.swap(0, Ordering::Acquire)
        };
        let bytes: Vec<u8> = (0..log.mapping.size()).map(bits).collect();
        (0..bytes.len() as u64 * 8)
            .filter(|page| bytes[*page as usize / 8] & (1 << (page % 8)) != 0)
            .collect()
    }

    /// A file that may hold a log, sealed as QEMU's are.
    fn log_file(len_bytes: u64) -> File {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(rustix::fs::memfd_create(c"log", flags).unwrap());
        file.set_len(len_bytes).unwrap();
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).unwrap();
        file
    }

    #[test]
    fn exactly_the_pages_of_a_range_are_marked() {
        let log = log(8);
        for (address, len_bytes, pages) in [
            (0, 1, 0..1),
            (0, 0, 0..0),
            (4095, 1, 0..1),
            (4095, 2, 0..2),
            (4096, 4096, 1..2),
            (7 * 4096, 2 * 4096, 7..9),
            (3 * 4096 + 1, 20 * 4096, 3..24),
            (8 * 4096, 8 * 4096, 8..16),
            (63 * 4096, 4096, 63..64),
            (0, 64 * 4096, 0..64),
            // What has no bit.
            (63 * 4096, 1 << 40, 63..64),
            (64 * 4096, 1, 0..0),
            (u64::MAX, u64::MAX, 0..0),
        ] {
            log.mark(GuestAddress(address), len_bytes);
            assert_eq!(take_pages(&log), pages.collect::<Vec<_>>(), "{address:#x} {len_bytes}");
        }
    }

    #[test]
    fn marks_add_up() {
        let log = log(1);
        (0..8).step_by(3).for_each(|page| log.mark(GuestAddress(page * LOG_PAGE_BYTES), 1));
        assert_eq!(take_pages(&log), [0, 3, 6]);
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps files")]
    fn a_log_that_does_not_fit_its_file_is_refused() {
        for (offset_bytes, len_bytes) in [(0, 0), (0, u64::MAX), (u64::MAX, 1), (0, 4097), (4096, 1), (1, 16)]
        {
            DirtyLog::map(log_file(4096), offset_bytes, len_bytes).unwrap_err();
        }
        let unsealed = tempfile::tempfile().unwrap();
        unsealed.set_len(4096).unwrap();
        let refused = DirtyLog::map(unsealed, 0, 4096);
        assert!(matches!(refused, Err(DirtyLogError::Unfit(SharedFileError::Unsealed))));
    }

    #[test]
    fn a_log_covers_memory_to_its_last_page() {
        let log = log(2);
        let memory =
            |end: u64| GuestMemory::from_regions([region(0, 4096), region(end - 4096, 4096)]).unwrap();
        log.check_covers(&GuestMemory::default()).unwrap();
        log.check_covers(&memory(16 * 4096)).unwrap();
        let refused = log.check_covers(&memory(17 * 4096));
        assert!(matches!(refused, Err(DirtyLogError::TooSmall { .. })));
    }
}
