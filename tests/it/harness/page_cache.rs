//! What the kernel still holds back of a file: pages that a power failure would lose.
#![expect(unsafe_code, reason = "cachestat(2) has no safe wrapper yet")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// The same number on every architecture.
const SYS_CACHESTAT: libc::c_long = 451;

#[repr(C)]
struct Range {
    offset: u64,
    len: u64,
}

#[repr(C)]
#[derive(Default)]
struct Counts {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Pages of the file that are not on their storage: dirty, or on their way.
///
/// # Errors
/// `ENOSYS` before Linux 6.5.
pub fn unwritten_pages(path: &Path) -> io::Result<u64> {
    let file = File::open(path)?;
    let whole = Range { offset: 0, len: 0 };
    let mut counts = Counts::default();
    // SAFETY: both pointers are to live values of the layout that the system call documents.
    let result = unsafe { libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), &whole, &mut counts, 0) };
    if result == 0 { Ok(counts.dirty + counts.writeback) } else { Err(io::Error::last_os_error()) }
}
