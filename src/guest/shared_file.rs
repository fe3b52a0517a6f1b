//! Files of the front end in which something else than guest memory lies. Touching a page that such a file does not
//! reach any more raises SIGBUS, so it has to be long enough, and to stay so.

use std::fs::File;
use std::io;

use rustix::fs::SealFlags;
use rustix::io::Errno;

/// Why a file is not mapped. Read after "the file".
#[derive(Debug, thiserror::Error)]
pub enum SharedFileError {
    /// It ends too early.
    #[error("ends at {file_bytes} bytes, {needed_bytes} are needed")]
    TooShort {
        /// Its size.
        file_bytes: u64,
        /// Where it would have to end at the earliest.
        needed_bytes: u64,
    },
    /// It may end too early later.
    #[error("may shrink: it has to be a memory file that is sealed against that (F_SEAL_SHRINK)")]
    Unsealed,
    /// It cannot be examined.
    #[error("cannot be examined: {0}")]
    Examine(io::Error),
}

/// Whether `file` has `end_bytes` bytes, for good.
pub(super) fn check(file: &File, end_bytes: u64) -> Result<(), SharedFileError> {
    let seals = match rustix::fs::fcntl_get_seals(file) {
        // No memory file at all.
        Err(Errno::INVAL) => return Err(SharedFileError::Unsealed),
        other => other.map_err(|errno| SharedFileError::Examine(errno.into()))?,
    };
    if !seals.contains(SealFlags::SHRINK) {
        return Err(SharedFileError::Unsealed);
    }
    // In this order: the size cannot go down any more once the seal is there.
    let file_bytes = file.metadata().map_err(SharedFileError::Examine)?.len();
    if file_bytes < end_bytes {
        return Err(SharedFileError::TooShort { file_bytes, needed_bytes: end_bytes });
    }
    Ok(())
}
