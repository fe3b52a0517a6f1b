//! Why a header cannot be made or changed.

use std::io;
use std::path::PathBuf;

use super::error::LuksError;
use super::library::LibraryError;

/// Why a header cannot be made or changed. No message holds secret bytes.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// The header that is there cannot be read, is not served, or the key does not open it.
    #[error(transparent)]
    Luks(#[from] LuksError),
    /// libcryptsetup refuses.
    #[error("libcryptsetup does not {what}")]
    Library {
        /// What it was asked for.
        what: &'static str,
        /// What it says.
        source: LibraryError,
    },
    /// No room for a payload behind the header.
    #[error(
        "the volume ends at byte {volume_bytes}, but its payload would begin at byte {payload_offset_bytes}; \
         --header FILE puts the header elsewhere"
    )]
    TooSmall {
        /// Size of the volume.
        volume_bytes: u64,
        /// Where the payload would begin.
        payload_offset_bytes: u64,
    },
    /// No memory to work in.
    #[error("cannot work on the LUKS header in memory")]
    Memory(#[source] io::Error),
    /// The volume cannot be read or written.
    #[error("cannot write the LUKS header")]
    Write(#[source] io::Error),
    /// Somebody else changes it, or has it open in a way that may lead to changes.
    #[error("the LUKS header is being changed or used by another program: {who}")]
    Busy {
        /// What is known of it.
        who: &'static str,
    },
    /// It is another header than a moment ago.
    #[error(
        "the LUKS header was changed by another program meanwhile, and is left as that made it; try again"
    )]
    ChangedMeanwhile,
    /// There is no such slot.
    #[error("there is no key slot {0}")]
    NoSuchSlot(u32),
    /// The slot asked for holds a key.
    #[error("key slot {0} is in use: remove it first, or name another")]
    SlotInUse(u32),
    /// Every slot holds a key, or their areas fill the header.
    #[error("there is no room for another key slot; remove one first")]
    NoFreeSlot,
    /// Without it, nobody could open the volume again.
    #[error("key slot {0} is the last one that opens the volume: removing it would lose all data")]
    LastSlot(u32),
    /// The key that is to open what is left does not.
    #[error("the key of --keep-key opens no key slot but those that are to be removed")]
    NothingKept,
    /// What was written is not what is read back.
    #[error("{0}: what was written does not read back; check the storage")]
    Verification(&'static str),
    /// A backup of another volume.
    #[error("the backup does not fit the volume: {0}")]
    Misfit(String),
    /// What should be a backup is not.
    #[error("{path} is no backup of a LUKS header")]
    NoBackup {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: LuksError,
    },
}
