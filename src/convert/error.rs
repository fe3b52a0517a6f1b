//! Why a conversion failed.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::image::ImageError;
use crate::cipher::CipherError;
use crate::format::FormatError;
use crate::format::luks::EditError;
use crate::format::signature::Contents;
use crate::keys::{KeyError, SecretError};
use crate::server::volume_file::VolumeError;

/// The two ends of a conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// What is read.
    Source,
    /// What is made.
    Destination,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Source => "source",
            Self::Destination => "destination",
        })
    }
}

/// Why a conversion failed. Unless it says otherwise, the destination is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// An end cannot be opened or locked.
    #[error("{end}")]
    Open {
        /// Which.
        end: End,
        /// Why.
        source: VolumeError,
    },
    /// A key cannot be fetched.
    #[error("{end}")]
    Key {
        /// Whose.
        end: End,
        /// Why.
        source: KeyError,
    },
    /// There is no locked memory for a key.
    #[error("a key cannot be held")]
    Secret(#[from] SecretError),
    /// An end does not fit its options or its key.
    #[error("{end}")]
    Format {
        /// Which.
        end: End,
        /// Why.
        source: FormatError,
    },
    /// A key makes no cipher.
    #[error("{end}")]
    Cipher {
        /// Whose.
        end: End,
        /// Why.
        source: CipherError,
    },
    /// The source is an image that cannot be read.
    #[error("source {path}")]
    Image {
        /// The image.
        path: PathBuf,
        /// Why.
        source: ImageError,
    },
    /// Nothing follows the offset.
    #[error("source {path} has {size_bytes} bytes, nothing from --src-offset on")]
    NothingThere {
        /// The source.
        path: PathBuf,
        /// Its size.
        size_bytes: u64,
    },
    /// `--size` would cut the disk.
    #[error("--size {wanted_bytes} is less than the {size_bytes} bytes of the source: nothing is cut off")]
    SizeTooSmall {
        /// What was asked for.
        wanted_bytes: u64,
        /// What there is.
        size_bytes: u64,
    },
    /// No 64-bit number says how large it would be.
    #[error("the destination would be larger than any file can be")]
    SizeTooLarge,
    /// The disk does not fit.
    #[error("device {path} has {device_bytes} bytes, {needed_bytes} are needed")]
    DeviceTooSmall {
        /// The device.
        path: PathBuf,
        /// Its size.
        device_bytes: u64,
        /// Header and payload.
        needed_bytes: u64,
    },
    /// Something is there already.
    #[error(
        "{path} exists: name a file that does not, or pass --force to replace DST when the new volume is complete"
    )]
    Exists {
        /// The destination, or its header.
        path: PathBuf,
    },
    /// A device holds something.
    #[error("device {path} holds {contents}, which would be lost: pass --force if it is not needed")]
    DeviceInUse {
        /// The device.
        path: PathBuf,
        /// What.
        contents: Contents,
    },
    /// Nothing would tell a part of the volume from the whole.
    #[error(
        "on device {path}, a volume without a header would look complete from the first moment on: pass --force \
         if nothing on the device is needed, and do not use it if the conversion does not succeed"
    )]
    NoHeader {
        /// The device.
        path: PathBuf,
    },
    /// The header cannot be made or written.
    #[error("destination")]
    Header {
        /// Why.
        source: EditError,
    },
    /// One file cannot be both.
    #[error("source and destination are the same: a volume cannot be converted in place")]
    SameFile,
    /// A detached header lies elsewhere.
    #[error("{path} cannot be both the volume and its detached header")]
    HeaderIsVolume {
        /// The path of both.
        path: PathBuf,
    },
    /// What a device keeps where nothing is written is not known.
    #[error(
        "--sparse needs a new file as the destination: what a device has where nothing is written is not known"
    )]
    SparseDevice,
    /// Zeroes that are not written would not be zeroes.
    #[error(
        "--sparse has no meaning from an unencrypted source to an encrypted destination: what is not written \
         there reads as random bytes, but the source has zeroes, and whoever made the disk may rely on them"
    )]
    SparseZeroes,
    /// The destination cannot be made.
    #[error("cannot create {path}")]
    Create {
        /// The destination, or its header.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// There is no room for it.
    #[error("cannot reserve {len_bytes} bytes for {path}")]
    Reserve {
        /// The destination.
        path: PathBuf,
        /// Its size.
        len_bytes: u64,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The process has no descriptors or threads left.
    #[error("cannot open one more descriptor or thread")]
    Descriptors {
        /// What the kernel answered.
        source: io::Error,
    },
    /// Reading failed.
    #[error("cannot read the {end} at byte {offset_bytes} of the disk")]
    Read {
        /// Which.
        end: End,
        /// Where.
        offset_bytes: u64,
        /// What the kernel or QEMU answered.
        source: io::Error,
    },
    /// Writing failed.
    #[error("cannot write the destination at byte {offset_bytes} of the disk")]
    Write {
        /// Where.
        offset_bytes: u64,
        /// What the kernel answered.
        source: io::Error,
    },
    /// Storage did not confirm what was written.
    #[error("the destination is not durable")]
    Sync {
        /// What the kernel answered.
        source: io::Error,
    },
    /// The destination does not read as what was written.
    #[error(
        "verification failed: source and destination differ at byte {offset_bytes} of the disk; did the source \
         change, or is storage unreliable?"
    )]
    Mismatch {
        /// Where the difference begins.
        offset_bytes: u64,
    },
    /// The user or the system wants it to end.
    #[error("interrupted")]
    Interrupted,
    /// It failed after a device had been written to.
    #[error("device {path} is incomplete and must not be used; run the conversion again")]
    Incomplete {
        /// The device.
        path: PathBuf,
        /// What happened.
        source: Box<ConvertError>,
    },
}
