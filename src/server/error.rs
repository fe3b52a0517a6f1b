//! Why a disk cannot be served, or no longer.

use std::io;

use super::control::client::ControlError;
use super::socket::SocketError;
use super::volume_file::VolumeError;
use crate::cipher::CipherError;
use crate::format::FormatError;
use crate::io::uring::UringError;
use crate::keys::KeyError;
use crate::sandbox::SandboxError;

/// Why serving ended other than by request.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The volume cannot be opened, locked or reached.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The key cannot be fetched.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Volume, key and declared format do not fit together.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The key does not make a cipher for this volume.
    #[error(transparent)]
    Cipher(#[from] CipherError),
    /// The guest cannot have blocks larger than what is encrypted as a whole.
    #[error(
        "--logical-block-size {block_bytes} is larger than the volume's encryption sectors of {sector_bytes} bytes: \
         leave it out, or choose at most that"
    )]
    LogicalBlockTooLarge {
        /// What was asked for.
        block_bytes: u32,
        /// The encryption sector size.
        sector_bytes: u32,
    },
    /// The vhost-user socket cannot be made, taken over or connected to.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The server that is to be taken over cannot be asked, or says no.
    #[error("cannot take over")]
    TakeOver(#[from] ControlError),
    /// The I/O ring cannot be had.
    #[error(transparent)]
    Uring(#[from] UringError),
    /// The process cannot be shut in as it was to be.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// Serving failed after it had begun.
    #[error("serving the disk failed")]
    Session(#[from] io::Error),
}
