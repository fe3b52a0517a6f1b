//! Opening the backing file or block device: the right kind of file, ours alone, with known size and alignment.
//!
//! Two writers are impossible: every process that serves a volume holds a `flock` on it until it ends, shared
//! when it only reads, and a block device is opened exclusively besides, which the kernel refuses while it is
//! mounted or claimed (by device-mapper, md, another `sealblk`). A process that has let another one go on with the
//! guest, or waits for that, has it open for reading only: see `tenure.rs`.

use std::fs::{self, File, FileType, Metadata, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, StatxFlags, ioctl_blksszget, statx};

use super::config::VolumeConfig;
use super::lock_holder::{Holder, holder};
use crate::geometry::{Geometry, SectorSize};

/// How long a volume may stay busy before it counts as somebody else's: udev locks a block device while it looks at
/// it, and a process takes a moment to end.
pub(super) const BUSY_PATIENCE: Duration = Duration::from_secs(1);
/// How long the lock of a dead process is waited for. It lasts until that process's last transfer has ended: see
/// [`lock_holder`](super::lock_holder).
const GONE_PATIENCE: Duration = Duration::from_secs(60);
const BUSY_RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// Alignment of I/O buffers: a page, the least that any platform has.
const BUFFER_ALIGN_BYTES: u32 = 4096;

/// An open volume.
#[derive(Debug)]
pub struct OpenedVolume {
    /// The volume. Its lock, if it has one, lasts as long as this open file, duplicates included.
    pub file: File,
    /// Its size.
    pub size_bytes: u64,
    /// Whether it is a block device; else it is a regular file.
    pub is_block_device: bool,
    /// What offsets and lengths of direct I/O must be multiples of; `None` when the page cache is used.
    pub direct_align_bytes: Option<u32>,
    path: PathBuf,
}

/// Why a volume cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// Missing, unreachable, or failing.
    #[error("cannot open volume {path}")]
    Open {
        /// The volume.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// Something that has no sectors.
    #[error("volume {path} is {kind}: a regular file or block device is needed")]
    WrongKind {
        /// The volume.
        path: PathBuf,
        /// What it is instead.
        kind: &'static str,
    },
    /// It can be read, but is to be written.
    #[error("volume {path} cannot be written: pass --read-only to serve it to a guest that only reads")]
    NotWritable {
        /// The volume.
        path: PathBuf,
    },
    /// Another process serves it.
    #[error("volume {path} is in use by another process{}", if *.read_only { ", which may write to it" } else { "" })]
    Locked {
        /// The volume.
        path: PathBuf,
        /// Whether it was to be read only, hence the other is not.
        read_only: bool,
    },
    /// Another process serves it, and there was no time to wait for its end.
    #[error("volume {path} is in use by another process, and this one was told to end")]
    Interrupted {
        /// The volume.
        path: PathBuf,
    },
    /// The kernel has it: mounted, or part of another device.
    #[error("volume {path} is mounted, or claimed by another device or process")]
    Claimed {
        /// The block device.
        path: PathBuf,
    },
    /// No `flock` there.
    #[error("volume {path} cannot be locked, so a second writer could not be kept out")]
    LockFailed {
        /// The volume.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// No `O_DIRECT` there.
    #[error("the file system of volume {path} has no direct I/O: pass --direct off")]
    DirectUnsupported {
        /// The volume.
        path: PathBuf,
    },
    /// Direct I/O cannot reach single encryption sectors.
    #[error(
        "direct I/O on volume {path} moves blocks of {align_bytes} bytes, but its sectors have {sector_bytes}: \
         pass --direct off, or --sector-size {align_bytes} when the volume is new"
    )]
    SectorsTooSmall {
        /// The volume.
        path: PathBuf,
        /// What direct I/O needs.
        align_bytes: u32,
        /// The encryption sector size.
        sector_bytes: u32,
    },
    /// Direct I/O cannot begin where the payload does.
    #[error(
        "direct I/O on volume {path} moves blocks of {align_bytes} bytes, but its payload begins at byte \
         {payload_offset_bytes}: pass --direct off"
    )]
    PayloadMisaligned {
        /// The volume.
        path: PathBuf,
        /// What direct I/O needs.
        align_bytes: u32,
        /// Where the payload begins.
        payload_offset_bytes: u64,
    },
}

/// Opens and locks the volume.
///
/// # Errors
/// See [`VolumeError`].
pub fn open_volume(config: &VolumeConfig) -> Result<OpenedVolume, VolumeError> {
    open_at(&config.path, config, Access::Locked { patience: BUSY_PATIENCE, pause: &sleep })
}

fn sleep(time: Duration) -> bool {
    thread::sleep(time);
    true
}

/// Opens a volume that another process serves until the guest goes on here: for reading only, without a lock. That it
/// could be written as well is checked.
///
/// # Errors
/// See [`VolumeError`].
pub fn open_incoming(config: &VolumeConfig) -> Result<OpenedVolume, VolumeError> {
    let volume = open_at(&config.path, config, Access::Idle)?;
    if !config.read_only {
        open_file(&descriptor_path(&volume.file), config, 0, &mut Patience::new(Duration::ZERO, &sleep))?;
    }
    Ok(volume)
}

/// Opens the volume behind an open file anew, to serve it, and locks it. Others may have it for so long; in that time
/// `pause` waits for a moment, and says whether to wait on.
///
/// # Errors
/// See [`VolumeError`].
pub(super) fn reopen_locked(
    volume: &impl AsRawFd,
    config: &VolumeConfig,
    patience: Duration,
    pause: Pause<'_>,
) -> Result<OpenedVolume, VolumeError> {
    open_at(&descriptor_path(volume), config, Access::Locked { patience, pause })
}

/// Opens the volume behind an open file anew, for reading only and without a lock.
///
/// # Errors
/// See [`VolumeError`].
pub(super) fn reopen_idle(volume: &impl AsRawFd, config: &VolumeConfig) -> Result<OpenedVolume, VolumeError> {
    open_at(&descriptor_path(volume), config, Access::Idle)
}

/// Where the kernel opens what an open file is open on, wherever its path leads by now.
pub(super) fn descriptor_path(file: &impl AsRawFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// A wait, which says whether to go on waiting.
type Pause<'a> = &'a dyn Fn(Duration) -> bool;

/// What a volume is opened for.
#[derive(Clone, Copy)]
enum Access<'a> {
    /// To be served: locked, and written unless that was declined.
    Locked { patience: Duration, pause: Pause<'a> },
    /// To be looked at.
    Idle,
}

/// Opens the configured volume at `place`: its path, or one that leads to the same file.
fn open_at(place: &Path, config: &VolumeConfig, access: Access<'_>) -> Result<OpenedVolume, VolumeError> {
    let path = &config.path;
    // Looked at before it is opened, since opening alone can wait (FIFO) or do things (tape, watchdog).
    let found = fs::metadata(place).map_err(|source| VolumeError::Open { path: path.clone(), source })?;
    check_kind(path, found.file_type())?;
    let (mut patience, read_only) = match access {
        Access::Locked { patience, pause } => (Patience::new(patience, pause), config.read_only),
        Access::Idle => (Patience::new(Duration::ZERO, &sleep), true),
    };
    let exclusive = !read_only && found.file_type().is_block_device();
    let opened_for = VolumeConfig { read_only, ..config.clone() };
    let mut file = open_file(place, &opened_for, if exclusive { libc::O_EXCL } else { 0 }, &mut patience)?;

    let opened = file.metadata().map_err(|source| VolumeError::Open { path: path.clone(), source })?;
    check_kind(path, opened.file_type())?;
    let is_block_device = opened.file_type().is_block_device();
    if !config.read_only && is_write_protected(&opened) {
        return Err(VolumeError::NotWritable { path: path.clone() });
    }
    if matches!(access, Access::Locked { .. }) {
        lock(config, &file, &mut patience)?;
    }

    let size_bytes = if is_block_device { file.seek(SeekFrom::End(0)) } else { Ok(opened.len()) }
        .map_err(|source| VolumeError::Open { path: path.clone(), source })?;
    let direct_align_bytes =
        if config.direct { Some(direct_alignment(path, &file, is_block_device)?) } else { None };
    Ok(OpenedVolume { file, size_bytes, is_block_device, direct_align_bytes, path: path.clone() })
}

/// Opens a volume that others may be using, without a lock and without direct I/O: to look at it, or to change its
/// header by the rules of [`header_lock`](crate::format::header_lock).
///
/// # Errors
/// See [`VolumeError`].
pub fn open_beside_others(path: &Path, write: bool) -> Result<OpenedVolume, VolumeError> {
    let failed = |source| VolumeError::Open { path: path.to_owned(), source };
    check_kind(path, fs::metadata(path).map_err(failed)?.file_type())?;
    let mut file = OpenOptions::new().read(true).write(write).open(path).map_err(failed)?;
    let opened = file.metadata().map_err(failed)?;
    check_kind(path, opened.file_type())?;
    let is_block_device = opened.file_type().is_block_device();
    let size_bytes =
        if is_block_device { file.seek(SeekFrom::End(0)) } else { Ok(opened.len()) }.map_err(failed)?;
    Ok(OpenedVolume { file, size_bytes, is_block_device, direct_align_bytes: None, path: path.to_owned() })
}

impl OpenedVolume {
    /// Checks that direct I/O, if used, can reach every sector of the payload.
    ///
    /// # Errors
    /// [`VolumeError::SectorsTooSmall`] or [`VolumeError::PayloadMisaligned`], each with its remedy.
    pub fn check_alignment(&self, geometry: &Geometry) -> Result<(), VolumeError> {
        let Some(align_bytes) = self.direct_align_bytes else { return Ok(()) };
        let sector_bytes = geometry.sector_size.bytes();
        if !sector_bytes.is_multiple_of(align_bytes) {
            return Err(VolumeError::SectorsTooSmall { path: self.path.clone(), align_bytes, sector_bytes });
        }
        let payload_offset_bytes = geometry.payload_offset_bytes;
        if !payload_offset_bytes.is_multiple_of(u64::from(align_bytes)) {
            let path = self.path.clone();
            return Err(VolumeError::PayloadMisaligned { path, align_bytes, payload_offset_bytes });
        }
        Ok(())
    }
}

fn check_kind(path: &Path, file_type: FileType) -> Result<(), VolumeError> {
    let kind = match file_type {
        t if t.is_file() || t.is_block_device() => return Ok(()),
        t if t.is_dir() => "a directory",
        t if t.is_char_device() => "a character device",
        t if t.is_fifo() => "a pipe",
        t if t.is_socket() => "a socket",
        _ => "of an unknown kind",
    };
    Err(VolumeError::WrongKind { path: path.to_owned(), kind })
}

/// Whether writes are not meant to be, although the kernel let us (or root) open it for writing: a file without any
/// write permission, or a block device that was set read-only.
fn is_write_protected(opened: &Metadata) -> bool {
    if opened.file_type().is_block_device() {
        let device = opened.rdev();
        let flag = format!("/sys/dev/block/{}:{}/ro", rustix::fs::major(device), rustix::fs::minor(device));
        fs::read_to_string(flag).is_ok_and(|flag| flag.trim() == "1")
    } else {
        opened.mode() & 0o222 == 0
    }
}

fn open_file(
    place: &Path,
    config: &VolumeConfig,
    flags: libc::c_int,
    patience: &mut Patience<'_>,
) -> Result<File, VolumeError> {
    let flags = flags | if config.direct { libc::O_DIRECT } else { 0 };
    let path = config.path.clone();
    loop {
        let opened = OpenOptions::new().read(true).write(!config.read_only).custom_flags(flags).open(place);
        let source = match opened {
            Ok(file) => return Ok(file),
            Err(source) => source,
        };
        return Err(match source.kind() {
            ErrorKind::ResourceBusy if patience.lasts(|| claimant(place)) => continue,
            ErrorKind::ResourceBusy if patience.interrupted => VolumeError::Interrupted { path },
            ErrorKind::ResourceBusy => VolumeError::Claimed { path },
            ErrorKind::InvalidInput if config.direct => VolumeError::DirectUnsupported { path },
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem
                if !config.read_only && File::open(place).is_ok() =>
            {
                VolumeError::NotWritable { path }
            }
            _ => VolumeError::Open { path, source },
        });
    }
}

fn lock(config: &VolumeConfig, file: &File, patience: &mut Patience<'_>) -> Result<(), VolumeError> {
    let path = || config.path.clone();
    loop {
        let locked = if config.read_only { file.try_lock_shared() } else { file.try_lock() };
        match locked {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if patience.lasts(|| locker(file)) => {}
            Err(TryLockError::WouldBlock) if patience.interrupted => {
                return Err(VolumeError::Interrupted { path: path() });
            }
            Err(TryLockError::WouldBlock) => {
                return Err(VolumeError::Locked { path: path(), read_only: config.read_only });
            }
            Err(TryLockError::Error(source)) => return Err(VolumeError::LockFailed { path: path(), source }),
        }
    }
}

/// Waiting for a busy volume.
struct Patience<'a> {
    with_the_living: Duration,
    pause: Pause<'a>,
    since: Option<Instant>,
    told: bool,
    /// There was more patience, but no time.
    interrupted: bool,
}

impl<'a> Patience<'a> {
    fn new(with_the_living: Duration, pause: Pause<'a>) -> Self {
        Self { with_the_living, pause, since: None, told: false, interrupted: false }
    }

    /// Whether to try again, after a pause that this makes.
    fn lasts(&mut self, holder: impl FnOnce() -> Holder) -> bool {
        let waited = self.since.get_or_insert_with(Instant::now).elapsed();
        if waited >= self.with_the_living {
            if waited >= GONE_PATIENCE.max(self.with_the_living) || holder() == Holder::Alive {
                return false;
            }
            if !self.told {
                self.told = true;
                tracing::warn!(
                    "the volume is locked by a process that has ended: waiting for its last transfers"
                );
            }
        }
        self.interrupted = !(self.pause)(BUSY_RETRY_INTERVAL);
        !self.interrupted
    }
}

/// Who has locked a file.
fn locker(file: &File) -> Holder {
    // A volume that cannot be looked at is not worth waiting for.
    file.metadata().map_or(Holder::Alive, |metadata| holder(&metadata))
}

/// Who has claimed a block device. Whoever serves it has locked it as well; a claim without a lock is a mount, or
/// another device.
fn claimant(path: &Path) -> Holder {
    match File::open(path) {
        Ok(file) if matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)) => locker(&file),
        _ => Holder::Alive,
    }
}

/// What offsets and lengths of direct I/O on `file` must be multiples of: as the kernel says (since Linux 6.1
/// for the usual file systems), else as the block device or a trial read says.
fn direct_alignment(path: &Path, file: &File, is_block_device: bool) -> Result<u32, VolumeError> {
    let unsupported = || VolumeError::DirectUnsupported { path: path.to_owned() };
    if let Ok(status) = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
        && StatxFlags::from_bits_retain(status.stx_mask).contains(StatxFlags::DIOALIGN)
    {
        let (memory_bytes, offset_bytes) = (status.stx_dio_mem_align, status.stx_dio_offset_align);
        let usable =
            offset_bytes != 0 && memory_bytes != 0 && BUFFER_ALIGN_BYTES.is_multiple_of(memory_bytes);
        return if usable { Ok(offset_bytes) } else { Err(unsupported()) };
    }
    if is_block_device {
        return ioctl_blksszget(file)
            .map_err(|errno| VolumeError::Open { path: path.to_owned(), source: errno.into() });
    }
    match probe_alignment(file) {
        Ok(Some(align_bytes)) => Ok(align_bytes),
        Ok(None) => Err(unsupported()),
        Err(source) => Err(VolumeError::Open { path: path.to_owned(), source }),
    }
}

/// The smallest encryption sector that direct I/O on `file` can write: 512 bytes, unless storage says otherwise.
pub fn smallest_sector(file: &File) -> SectorSize {
    let told = match statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
        Ok(status) if status.stx_dio_offset_align > 0 => status.stx_dio_offset_align,
        _ => ioctl_blksszget(file).unwrap_or(512),
    };
    SectorSize::new(told.max(512)).unwrap_or(SectorSize::BYTES_4096)
}

/// The shortest direct read that `file` accepts, for kernels that do not tell. May be too optimistic for a
/// file whose first bytes are a hole.
fn probe_alignment(file: &File) -> io::Result<Option<u32>> {
    let mut memory = vec![0_u8; 2 * BUFFER_ALIGN_BYTES as usize];
    let start = memory.as_ptr().align_offset(BUFFER_ALIGN_BYTES as usize);
    for align_bytes in [512, 1024, 2048, 4096] {
        match file.read_at(&mut memory[start..start + align_bytes as usize], 0) {
            Ok(_) => return Ok(Some(align_bytes)),
            Err(error) if error.kind() == ErrorKind::InvalidInput => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(path: &Path) -> VolumeConfig {
        VolumeConfig { path: path.to_owned(), read_only: false, direct: true }
    }

    fn volume_of(size_bytes: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().write_all_at(&[7; 8192], 0).unwrap();
        file.as_file().set_len(size_bytes).unwrap();
        file
    }

    #[test]
    fn a_regular_file_opens_with_its_size() {
        let backing = volume_of(1_000_001);
        let volume = open_volume(&config(backing.path())).unwrap();
        assert_eq!((volume.size_bytes, volume.is_block_device), (1_000_001, false));
        let flags = rustix::fs::fcntl_getfl(&volume.file).unwrap();
        assert!(flags.contains(rustix::fs::OFlags::DIRECT | rustix::fs::OFlags::RDWR));
        assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK), "io_uring would not wait for the storage");
    }

    #[test]
    fn without_direct_io_there_is_nothing_to_align() {
        let backing = volume_of(8192);
        let buffered = VolumeConfig { direct: false, ..config(backing.path()) };
        let volume = open_volume(&buffered).unwrap();
        assert!(!rustix::fs::fcntl_getfl(&volume.file).unwrap().contains(rustix::fs::OFlags::DIRECT));
        assert_eq!(volume.direct_align_bytes, None);
    }

    #[test]
    fn what_the_kernel_says_of_alignment_holds_in_a_trial() {
        let backing = volume_of(8192);
        let volume = open_volume(&config(backing.path())).unwrap();
        assert_eq!(probe_alignment(&volume.file).unwrap(), volume.direct_align_bytes);
    }

    #[test]
    fn readers_share_a_volume_that_a_writer_has_alone() {
        let backing = volume_of(8192);
        let reading = VolumeConfig { read_only: true, ..config(backing.path()) };
        let readers = [open_volume(&reading).unwrap(), open_volume(&reading).unwrap()];
        assert!(matches!(open_volume(&config(backing.path())), Err(VolumeError::Locked { .. })));
        drop(readers);
        let _writer = open_volume(&config(backing.path())).unwrap();
        assert!(matches!(open_volume(&config(backing.path())), Err(VolumeError::Locked { .. })));
        assert!(matches!(open_volume(&reading), Err(VolumeError::Locked { .. })));
    }

    #[test]
    fn a_lock_that_is_about_to_end_is_waited_for() {
        let backing = volume_of(8192);
        let predecessor = open_volume(&config(backing.path())).unwrap();
        let successor = thread::scope(|scope| {
            let successor = scope.spawn(|| open_volume(&config(backing.path())));
            thread::sleep(BUSY_PATIENCE / 4);
            assert!(!successor.is_finished());
            drop(predecessor);
            successor.join().unwrap()
        });
        successor.unwrap();
    }

    #[test]
    fn sectors_and_payload_must_begin_where_direct_io_can() {
        let volume = |direct_align_bytes| OpenedVolume {
            file: tempfile::tempfile().unwrap(),
            size_bytes: 1 << 20,
            is_block_device: true,
            direct_align_bytes,
            path: "vol".into(),
        };
        let geometry = |sector_size, payload_offset_bytes| Geometry {
            sector_size,
            payload_offset_bytes,
            capacity_bytes: 1 << 19,
        };
        let (small, large) = (SectorSize::BYTES_512, SectorSize::BYTES_4096);
        volume(Some(4096)).check_alignment(&geometry(large, 8192)).unwrap();
        volume(Some(512)).check_alignment(&geometry(small, 512)).unwrap();
        volume(None).check_alignment(&geometry(small, 1)).unwrap();
        let error = volume(Some(4096)).check_alignment(&geometry(small, 8192)).unwrap_err();
        assert!(matches!(error, VolumeError::SectorsTooSmall { align_bytes: 4096, sector_bytes: 512, .. }));
        let error = volume(Some(4096)).check_alignment(&geometry(large, 512)).unwrap_err();
        assert!(matches!(error, VolumeError::PayloadMisaligned { payload_offset_bytes: 512, .. }));
    }
}
