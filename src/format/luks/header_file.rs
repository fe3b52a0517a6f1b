//! The file or device that a detached header lies on.

use std::fs::{self, File, Metadata, TryLockError};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::error::LuksError;

/// How long another program may take to change the header: cryptsetup holds its lock for a few writes.
const BUSY_PATIENCE: Duration = Duration::from_secs(1);
const BUSY_RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// A detached header, open for reading; nobody who locks it changes it meanwhile.
#[derive(Debug)]
pub(super) struct HeaderFile {
    pub(super) file: File,
    pub(super) size_bytes: u64,
    /// Not the volume itself under another name: there the payload must not reach into the header.
    pub(super) detached: bool,
}

impl HeaderFile {
    pub(super) fn open(path: &Path, volume: &File) -> Result<Self, LuksError> {
        let failed = |source| LuksError::HeaderFile { path: path.to_owned(), source };
        // Looked at before it is opened, since opening a pipe waits for somebody to write to it.
        let kind = fs::metadata(path).map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(LuksError::HeaderKind { path: path.to_owned() });
        }
        let mut file = File::open(path).map_err(failed)?;
        let detached =
            !is_same(&file.metadata().map_err(failed)?, &volume.metadata().map_err(LuksError::Read)?);
        if detached {
            lock(&file).map_err(failed)?;
        }
        let size_bytes = file.seek(SeekFrom::End(0)).map_err(failed)?;
        Ok(Self { file, size_bytes, detached })
    }
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    if one.file_type().is_block_device() {
        other.file_type().is_block_device() && one.rdev() == other.rdev()
    } else {
        (one.dev(), one.ino()) == (other.dev(), other.ino())
    }
}

/// The shared `flock` that goes with the exclusive one by which cryptsetup changes LUKS2 headers in files.
fn lock(file: &File) -> io::Result<()> {
    let deadline = Instant::now() + BUSY_PATIENCE;
    loop {
        match file.try_lock_shared() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(BUSY_RETRY_INTERVAL),
            Err(TryLockError::WouldBlock) => return Err(ErrorKind::ResourceBusy.into()),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}
