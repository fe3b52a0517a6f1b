//! Storage on which a durable write is two steps: the write, and the sync that makes it durable.

use std::os::fd::AsFd;

use rustix::fs::{FileType, fstat, fstatfs};

/// Whether a write with `RWF_DSYNC` to `volume` is durable when io_uring says that it is done.
///
/// Block devices and the file systems below see to that themselves. Others leave it to what the kernel does when the
/// write returns, which is too early for one that goes on in the background: of FUSE's, most are never synced.
pub(super) fn keeps_dsync(volume: &impl AsFd) -> bool {
    const EXT4: u64 = 0xef53;
    const XFS: u64 = 0x5846_5342;
    const BTRFS: u64 = 0x9123_683e;
    /// Nothing there outlives the machine.
    const TMPFS: u64 = 0x0102_1994;
    let is_device =
        fstat(volume).is_ok_and(|status| FileType::from_raw_mode(status.st_mode) == FileType::BlockDevice);
    let file_system = fstatfs(volume).map_or(0, |status| status.f_type as u64);
    is_device || [EXT4, XFS, BTRFS, TMPFS].contains(&file_system)
}
