//! What can be wrong with a keystore, or with what is asked of it.

use std::io;
use std::path::PathBuf;

use rusqlite::ErrorCode;

use super::super::{SecretError, Unfit};
use super::kek::KEK_BYTES_MIN;

/// Why a keystore did not do what it was asked to. Nothing of a key shows in it.
#[derive(Debug, thiserror::Error)]
pub enum KeystoreError {
    /// No file there. Opening never makes one.
    #[error("there is no keystore at {path}; make one first, or correct the path")]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// Something is where a new keystore or a copy was to be.
    #[error("{path} is there already; nothing was changed")]
    Exists {
        /// What is in the way.
        path: PathBuf,
    },
    /// Others than the owner can get at the file or at the folder that it is in.
    #[error("{path}: {problem}; {remedy}")]
    Exposed {
        /// The file or folder.
        path: PathBuf,
        /// Who can get at it.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// A file of another kind.
    #[error("{path} is not a keystore")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// Written by a newer release.
    #[error(
        "the keystore has version {found}, and this release knows versions up to {known}; use a newer release"
    )]
    Newer {
        /// Schema version of the file.
        found: u32,
        /// Newest schema version known here.
        known: u32,
    },
    /// The content is not what was written: the disk failed, or somebody changed it.
    #[error("the keystore is damaged, or was changed by others: {problem}; restore it from a copy")]
    Damaged {
        /// What does not fit.
        problem: String,
    },
    /// The key-encryption key that is needed is not among those given.
    #[error("{problem}; {remedy}")]
    Kek {
        /// Which one is missing, or what is wrong with the one given.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// No such key, or one that the caller may not know of.
    #[error("there is no such key: {remedy}")]
    NotFound {
        /// What to do.
        remedy: String,
    },
    /// The key is there, and the caller may not do this with it; or the request breaks a rule.
    #[error("{problem}; {remedy}")]
    NotAllowed {
        /// What speaks against it.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// The request makes no sense.
    #[error("{problem}; {remedy}")]
    Malformed {
        /// What is wrong.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// Another process holds on to the keystore. Trying again helps.
    #[error("another process keeps the keystore busy; try again")]
    Busy,
    /// A destroyed or rewrapped key may still be found, encrypted, in the write-ahead log.
    #[error(
        "done, but other processes are still reading the keystore, so that the old content is not wiped yet; \
         run the same command again"
    )]
    NotYetWiped,
    /// Nothing can be written, hence no key be released either: that would go unrecorded.
    #[error("no space is left for the keystore; make room on its file system")]
    Full,
    /// SQLite or the disk below it failed.
    #[error("the keystore cannot be read or written")]
    Database(#[source] rusqlite::Error),
    /// The system failed.
    #[error("{doing}")]
    Io {
        /// What was tried.
        doing: String,
        /// What came back.
        source: io::Error,
    },
    /// No locked memory for a key.
    #[error("a key cannot be held in memory")]
    Memory(#[source] SecretError),
}

impl KeystoreError {
    pub(super) fn damaged(problem: impl Into<String>) -> Self {
        Self::Damaged { problem: problem.into() }
    }

    pub(super) fn io(doing: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io { doing: doing.into(), source: source.into() }
    }

    pub(super) fn short_kek(found_bytes: usize) -> Self {
        Self::Kek {
            problem: format!("the KEK has {found_bytes} bytes"),
            remedy: format!("use {KEK_BYTES_MIN} random bytes or more"),
        }
    }
}

impl From<rusqlite::Error> for KeystoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error {
            rusqlite::Error::SqliteFailure(failure, _) => match failure.code {
                ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Self::Busy,
                ErrorCode::DiskFull => Self::Full,
                ErrorCode::DatabaseCorrupt
                | ErrorCode::NotADatabase
                | ErrorCode::TypeMismatch
                | ErrorCode::ConstraintViolation => Self::damaged(error.to_string()),
                _ => Self::Database(error),
            },
            rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::Utf8Error(..)
            | rusqlite::Error::QueryReturnedNoRows
            | rusqlite::Error::QueryReturnedMoreThanOneRow => {
                Self::damaged("a row does not hold what it should")
            }
            error => Self::Database(error),
        }
    }
}

impl From<Unfit> for KeystoreError {
    fn from(Unfit { problem, remedy }: Unfit) -> Self {
        Self::Malformed { problem, remedy }
    }
}

impl From<SecretError> for KeystoreError {
    fn from(error: SecretError) -> Self {
        Self::Memory(error)
    }
}
