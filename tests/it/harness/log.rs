//! A dirty log, as a front end keeps it that copies the guest's memory to another host.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, SealFlags};
use vhost::{VhostBackend, VhostUserDirtyLogRegion};

use super::Frontend;
use super::frontend::F_LOG_ALL;

const PAGE_BYTES: u64 = 4096;

/// One bit for each page of guest memory.
pub struct Log {
    pub file: File,
    len_bytes: u64,
}

impl Log {
    /// A log for memory that ends below `end`, sealed as QEMU's is.
    pub fn up_to(end: u64) -> Self {
        let fd = rustix::fs::memfd_create("log", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING);
        let file = File::from(fd.expect("memfd"));
        let len_bytes = end.div_ceil(PAGE_BYTES * 8);
        file.set_len(len_bytes).expect("size the memfd");
        let seals = SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals).expect("seal the memfd");
        Self { file, len_bytes }
    }

    /// Hands the log to the back end.
    pub fn set(&self, frontend: &Frontend) -> vhost::Result<()> {
        let region = VhostUserDirtyLogRegion {
            mmap_size: self.len_bytes,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        };
        frontend.messages.set_log_base(0, Some(region))
    }

    /// What QEMU does when a migration begins.
    pub fn begin(&self, frontend: &Frontend) {
        self.set(frontend).expect("SET_LOG_BASE");
        frontend.messages.set_features(frontend.features | F_LOG_ALL).expect("SET_FEATURES");
    }

    /// The pages that are marked; they are not any more.
    pub fn take(&self) -> Pages {
        let mut bits = vec![0; self.len_bytes as usize];
        self.file.read_exact_at(&mut bits, 0).expect("read the log");
        self.file.write_all_at(&vec![0; bits.len()], 0).expect("clear the log");
        let is_set = |page: &u64| bits[*page as usize / 8] & (1 << (page % 8)) != 0;
        Pages((0..bits.len() as u64 * 8).filter(is_set).collect())
    }
}

/// What QEMU does when a migration has failed or was cancelled.
pub fn end(frontend: &Frontend) {
    frontend.messages.set_features(frontend.features).expect("SET_FEATURES");
}

/// Pages of guest memory.
#[derive(Debug, PartialEq, Eq)]
pub struct Pages(pub BTreeSet<u64>);

impl Pages {
    /// Every page that has a part in one of the ranges.
    pub fn of(ranges: &[Range<u64>]) -> Self {
        let pages = |range: &Range<u64>| range.start / PAGE_BYTES..range.end.div_ceil(PAGE_BYTES);
        Self(ranges.iter().filter(|range| !range.is_empty()).flat_map(pages).collect())
    }

    /// As ranges of addresses.
    pub fn ranges(&self) -> Vec<Range<u64>> {
        self.0.iter().map(|page| page * PAGE_BYTES..(page + 1) * PAGE_BYTES).collect()
    }

    pub fn is_superset(&self, other: &Self) -> bool {
        self.0.is_superset(&other.0)
    }
}
