//! Why a LUKS volume cannot be opened.

use std::io;
use std::path::PathBuf;

use super::library::LibraryError;
use super::on_disk::Version;
use super::refusal::Refusals;
use crate::cipher::CipherError;

/// Why a LUKS volume cannot be opened. No message holds secret bytes.
#[derive(Debug, thiserror::Error)]
pub enum LuksError {
    /// The file of `--header` is missing, unreachable or failing.
    #[error("cannot open the header {path}")]
    HeaderFile {
        /// The file.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// Something that has no bytes of its own.
    #[error("the header {path} is neither a file nor a block device")]
    HeaderKind {
        /// The file of `--header`.
        path: PathBuf,
    },
    /// Neither version is there.
    #[error("there is no LUKS header{0} (--format plain and none are for volumes without one)")]
    NotLuks(&'static str),
    /// It cannot be read.
    #[error("cannot read the LUKS header")]
    Read(#[source] io::Error),
    /// It goes on beyond the end of the volume.
    #[error(
        "the {version} header takes {area_bytes} bytes, but the volume or header file ends at byte {source_bytes}"
    )]
    Truncated {
        /// Of the header.
        version: Version,
        /// Bytes of the header area.
        area_bytes: u64,
        /// Bytes of the file or device that it is on.
        source_bytes: u64,
    },
    /// No memory file.
    #[error("cannot copy the LUKS header to memory")]
    Memory(#[source] io::Error),
    /// Damaged, or made to do damage.
    #[error("the {version} header is not valid: {what}")]
    Invalid {
        /// Of the header.
        version: Version,
        /// What is wrong.
        what: String,
    },
    /// Damaged, as libcryptsetup sees it.
    #[error("the {version} header is not valid")]
    Load {
        /// Of the header.
        version: Version,
        /// What it says.
        source: LibraryError,
    },
    /// Valid, but not served.
    #[error("the volume cannot be served: {0}")]
    Refused(Refusals),
    /// The secret opens none of the slots that were tried.
    #[error("the key opens no key slot of the volume{0}")]
    WrongKey(&'static str),
    /// A slot cannot be opened whatever the key is.
    #[error("no key slot can be opened")]
    Unlock(#[source] LibraryError),
    /// What a slot held is not the volume's key.
    #[error("the volume key does not match the header's digest")]
    WrongVolumeKey(#[source] LibraryError),
    /// Not fit to be a key.
    #[error("the volume key cannot be used")]
    UnfitKey(#[from] CipherError),
}
