//! Why an ephemeral disk cannot be made, found or destroyed.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use uuid::Uuid;

use super::lvm::LvmError;
use super::place::{Place, PlaceError};
use crate::format::FormatError;
use crate::format::luks::{EditError, LuksError};
use crate::keys::{KeyError, KeyReference, ManagerName};
use crate::server::volume_file::VolumeError;

/// Why an ephemeral disk cannot be made, found or destroyed. No message holds secret bytes.
#[derive(Debug, thiserror::Error)]
pub enum EphemeralError {
    /// No place for a disk.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The key manager refuses, or is away.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// LVM refuses, or is not there.
    #[error(transparent)]
    Lvm(#[from] LvmError),
    /// The disk cannot be opened, or somebody has it.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The logical volume has no device.
    #[error("{place} is not active: `lvchange --activate y {place}`")]
    Inactive {
        /// The logical volume.
        place: Place,
    },
    /// The header cannot be made or written.
    #[error(transparent)]
    Header(#[from] EditError),
    /// The disk that was made does not open.
    #[error("the new disk does not open")]
    Format(#[source] FormatError),
    /// A file cannot be made, written or removed.
    #[error("cannot {what} {path}")]
    File {
        /// What was to be done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// Something is there.
    #[error("{place} exists: name a place that is free")]
    Exists {
        /// The place.
        place: Place,
    },
    /// The disk's size is not possible.
    #[error("--size {size_bytes} is not a multiple of the sector size, {sector_bytes} bytes")]
    Size {
        /// What was asked for.
        size_bytes: u64,
        /// The encryption sector size.
        sector_bytes: u32,
    },
    /// Direct I/O cannot reach single sectors.
    #[error("{place} is written in blocks of {least_bytes} bytes: pass --sector-size {least_bytes}")]
    SectorsTooSmall {
        /// The place.
        place: Place,
        /// The smallest sector that is possible there.
        least_bytes: u32,
    },
    /// The key's record has no room for the path.
    #[error(
        "the path {place} is {excess_bytes} bytes too long for the record of its key: choose a shorter one"
    )]
    TooLong {
        /// The place.
        place: Place,
        /// How much shorter it must be.
        excess_bytes: usize,
    },
    /// Nothing that a plain volume could be recognised by.
    #[error(
        "the file system of {path} keeps no extended attributes, by which a plain disk is recognised: use luks2"
    )]
    NoAttributes {
        /// The file.
        path: PathBuf,
    },
    /// Neither a disk nor a key.
    #[error("{place} is not there, and {manager} has no key of an ephemeral disk there")]
    NothingThere {
        /// Where nothing is.
        place: Place,
        /// Where no key is.
        manager: ManagerName,
    },
    /// Something else is there.
    #[error("{place} is no ephemeral disk, and {manager} has no key of one there")]
    NotEphemeral {
        /// What is something else.
        place: Place,
        /// Where no key is.
        manager: ManagerName,
    },
    /// No key is for a disk of this UUID.
    #[error("{manager} has no key of an ephemeral disk {uuid}; if the disk is there, name its place")]
    NoKey {
        /// Where no key is.
        manager: ManagerName,
        /// The disk.
        uuid: Uuid,
    },
    /// Several keys are for a place where there is no disk now.
    #[error("{} keys are for disks at {place}, and none is there: name one with --uuid: {}", .uuids.len(), list(.uuids))]
    Ambiguous {
        /// The place.
        place: Place,
        /// The disks that were there.
        uuids: Vec<Uuid>,
    },
    /// The disk says that it is another than the place's key is for. Whoever wrote that may want the key to stay.
    #[error(
        "{place} says that it is disk {uuid}, but the key of disk {expected} is for that place: name the one that is \
         meant with --uuid"
    )]
    Mismatch {
        /// The place.
        place: Place,
        /// What the disk is marked with.
        uuid: Uuid,
        /// What the key's record says.
        expected: Uuid,
    },
    /// The place holds something else than a moment ago.
    #[error("{place} was changed meanwhile, and is left as it is; try again")]
    ChangedMeanwhile {
        /// The place.
        place: Place,
    },
    /// The data is gone, and the disk is not.
    #[error("the key is destroyed, and with it the data, but {place} cannot be removed")]
    NotRemoved {
        /// The disk.
        place: Place,
        /// Why not.
        source: Box<Self>,
    },
    /// A disk was begun, not finished, and could not be taken back.
    #[error("the disk is not finished; `sealblk ephemeral destroy --uuid {uuid}` removes its key {key}")]
    NotUndone {
        /// The disk.
        uuid: Uuid,
        /// Its key.
        key: KeyReference,
        /// Why it is not finished.
        source: Box<Self>,
    },
}

impl EphemeralError {
    /// A new file cannot be made.
    pub(super) fn new_file(path: PathBuf, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AlreadyExists => Self::Exists { place: Place::File(path) },
            _ => Self::File { what: "make", path, source },
        }
    }
}

impl From<LuksError> for EphemeralError {
    fn from(error: LuksError) -> Self {
        Self::Header(error.into())
    }
}

fn list(uuids: &[Uuid]) -> String {
    uuids.iter().map(Uuid::to_string).collect::<Vec<_>>().join(", ")
}

/// The error and its causes, in one line.
pub(super) fn told(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line += &format!(": {error}");
        cause = error.source();
    }
    line
}
