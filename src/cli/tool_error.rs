//! Why a command about volumes or keys fails, and the exit code of each reason.

use std::io;
use std::path::{Path, PathBuf};

use super::ephemeral::ephemeral_exit;
use super::exit::{Exit, key_exit, luks_exit, volume_exit};
use super::keystore::PrincipalNameError;
use super::resolve::ConfigError;
use crate::ephemeral::EphemeralError;
use crate::format::luks::{EditError, LuksError};
use crate::format::signature::Contents;
use crate::keys::{KeyConfigError, KeyError, ReferenceError};
use crate::server::volume_file::VolumeError;

/// Why a command about volumes or keys fails.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// Options that make no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No name of a key.
    #[error("{option}: {problem}")]
    Reference {
        /// The option that should name one.
        option: &'static str,
        /// What is wrong with it.
        problem: ReferenceError,
    },
    /// Nobody, or nobody who can be found.
    #[error("{option}")]
    Principal {
        /// The option that should name somebody.
        option: &'static str,
        /// What is wrong with it.
        #[source]
        problem: PrincipalNameError,
    },
    /// Rotation from a key to itself.
    #[error(
        "--key and --new-key name one key: name another version of it in each, or leave out --new-key for a new version"
    )]
    OneKey,
    /// The same, as their bytes say.
    #[error(
        "--key and --new-key lead to the same bytes: there is nothing to rotate, and nothing was changed"
    )]
    EqualKeys,
    /// The key configuration file is wrong.
    #[error(transparent)]
    KeyConfig(#[from] KeyConfigError),
    /// The key cannot be fetched.
    #[error(transparent)]
    Fetch(#[from] KeyError),
    /// The volume cannot be opened.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The header cannot be read.
    #[error(transparent)]
    Luks(#[from] LuksError),
    /// The header cannot be made or changed.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// An ephemeral disk cannot be made, found or destroyed.
    #[error(transparent)]
    Ephemeral(#[from] EphemeralError),
    /// A file cannot be read or written.
    #[error("cannot {what} {path}")]
    File {
        /// What was to be done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// Data would be overwritten.
    #[error("{path} holds {contents}: pass --force to give it up")]
    HoldsData {
        /// The volume.
        path: PathBuf,
        /// What lies there.
        contents: Contents,
    },
    /// The file is there already.
    #[error("{path} exists: name a file that does not")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The size that was asked for is not the one that there is.
    #[error(
        "--size {asked_bytes} does not fit: {path} leaves the guest {payload_bytes} bytes; leave out --size, which \
         is for new files"
    )]
    Size {
        /// The volume.
        path: PathBuf,
        /// What `--size` says.
        asked_bytes: u64,
        /// What the guest would see.
        payload_bytes: u64,
    },
    /// Nobody said yes.
    #[error("{question}: pass --yes to confirm")]
    Unconfirmed {
        /// What was to be confirmed.
        question: String,
    },
    /// Somebody said no.
    #[error("not confirmed: nothing was changed")]
    Declined,
    /// Standard output leads to a screen, and so into its history.
    #[error("key bytes are not written to a terminal: name a file, or a pipe as standard output")]
    KeyOnTerminal,
    /// Standard output is gone.
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
}

impl ToolError {
    /// A new file cannot be made or filled.
    pub(super) fn new_file(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AlreadyExists => Self::Exists { path: path.to_owned() },
            _ => Self::File { what: "make", path: path.to_owned(), source },
        }
    }

    /// The code to exit with.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Config(_)
            | Self::Reference { .. }
            | Self::OneKey
            | Self::EqualKeys
            | Self::KeyConfig(_)
            | Self::Size { .. } => Exit::Usage,
            Self::Principal { problem: PrincipalNameError::Unknown { .. }, .. } => Exit::Usage,
            Self::Principal { problem: PrincipalNameError::LookUp { .. }, .. } => Exit::Failure,
            Self::Fetch(error) => key_exit(error),
            Self::Volume(error) => volume_exit(error),
            Self::Luks(error) => luks_exit(error),
            Self::Edit(error) => edit_exit(error),
            Self::Ephemeral(error) => ephemeral_exit(error),
            Self::File { .. } | Self::Output(_) => Exit::Failure,
            Self::HoldsData { .. }
            | Self::Exists { .. }
            | Self::Unconfirmed { .. }
            | Self::Declined
            | Self::KeyOnTerminal => Exit::Refused,
        }
    }
}

pub(super) fn edit_exit(error: &EditError) -> Exit {
    match error {
        EditError::Luks(error) => luks_exit(error),
        EditError::Memory(_) | EditError::Write(_) | EditError::Verification(_) => Exit::Failure,
        EditError::Busy { .. } | EditError::ChangedMeanwhile => Exit::VolumeLocked,
        EditError::Library { .. }
        | EditError::TooSmall { .. }
        | EditError::NoSuchSlot(_)
        | EditError::SlotInUse(_)
        | EditError::NoFreeSlot
        | EditError::NoBackup { .. } => Exit::Volume,
        EditError::LastSlot(_) | EditError::NothingKept | EditError::Misfit(_) => Exit::Refused,
    }
}
