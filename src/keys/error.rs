//! Why an operation on a key failed.

use std::error::Error;
use std::fmt;

use super::reference::{KeyReference, ManagerName};
use super::secret::SecretError;

/// What an error is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// One key.
    Key(KeyReference),
    /// A manager as a whole.
    Manager(ManagerName),
}

/// What came back from below, as far as it says nothing of key material.
pub type Cause = Box<dyn Error + Send + Sync>;

/// Why an operation on a key failed. Each kind calls for something else, and says what it is about and what to do.
/// Nothing of any key material shows in it, its causes and their `Debug` included.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The manager works and has no such key. Also what a manager says of keys that belong to others.
    #[error("{subject} not found: {remedy}")]
    NotFound {
        /// What was looked for.
        subject: Box<Subject>,
        /// What to do.
        remedy: String,
    },
    /// It is there and must not, or may not, be used.
    #[error("{subject} refused: {problem}; {remedy}")]
    NotAllowed {
        /// What was refused.
        subject: Box<Subject>,
        /// What speaks against it.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// The manager, or what lies between, failed. Trying again may help.
    #[error("{subject} cannot be reached: {problem}")]
    Unreachable {
        /// What was to be reached.
        subject: Box<Subject>,
        /// What was tried, and what to look at.
        problem: String,
        /// What came back.
        source: Option<Cause>,
    },
    /// Something is there that cannot be a key, or cannot be what a manager keeps.
    #[error("{subject} is malformed: {problem}; {remedy}")]
    Malformed {
        /// What is malformed.
        subject: Box<Subject>,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        remedy: String,
    },
}

impl KeyError {
    /// See [`KeyError::NotFound`].
    pub fn not_found(subject: impl Into<Subject>, remedy: impl Into<String>) -> Self {
        Self::NotFound { subject: Box::new(subject.into()), remedy: remedy.into() }
    }

    /// See [`KeyError::NotAllowed`].
    pub fn not_allowed(
        subject: impl Into<Subject>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::NotAllowed { subject: Box::new(subject.into()), problem: problem.into(), remedy: remedy.into() }
    }

    /// See [`KeyError::Unreachable`].
    pub fn unreachable(subject: impl Into<Subject>, problem: impl Into<String>) -> Self {
        Self::Unreachable { subject: Box::new(subject.into()), problem: problem.into(), source: None }
    }

    /// The same, because of `cause`.
    pub fn unreachable_because(
        subject: impl Into<Subject>,
        problem: impl Into<String>,
        cause: impl Into<Cause>,
    ) -> Self {
        Self::Unreachable {
            subject: Box::new(subject.into()),
            problem: problem.into(),
            source: Some(cause.into()),
        }
    }

    /// See [`KeyError::Malformed`].
    pub fn malformed(
        subject: impl Into<Subject>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::Malformed { subject: Box::new(subject.into()), problem: problem.into(), remedy: remedy.into() }
    }

    /// What a failed [`Secret::read_from`](super::Secret::read_from) or
    /// [`Secret::fill`](super::Secret::fill) means for `subject`.
    pub fn of_secret(subject: impl Into<Subject>, error: SecretError) -> Self {
        match error {
            SecretError::Empty | SecretError::TooLong => {
                Self::malformed(subject, error.to_string(), "give the key and nothing else")
            }
            SecretError::Read(cause) => {
                Self::unreachable_because(subject, "reading it failed; check what it is stored on", cause)
            }
            // Waiting does not help: the limit has to be raised.
            SecretError::Lock(cause) => Self::not_allowed(
                subject,
                format!("memory for it cannot be locked ({cause})"),
                "raise the limit `ulimit -l` (LimitMEMLOCK= of a systemd unit)",
            ),
        }
    }

    /// What the error is about.
    pub fn subject(&self) -> &Subject {
        match self {
            Self::NotFound { subject, .. }
            | Self::NotAllowed { subject, .. }
            | Self::Unreachable { subject, .. }
            | Self::Malformed { subject, .. } => subject,
        }
    }
}

impl From<KeyReference> for Subject {
    fn from(key: KeyReference) -> Self {
        Self::Key(key)
    }
}

impl From<ManagerName> for Subject {
    fn from(manager: ManagerName) -> Self {
        Self::Manager(manager)
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(key) => write!(f, "key {key}"),
            Self::Manager(manager) => write!(f, "key manager {manager}"),
        }
    }
}
