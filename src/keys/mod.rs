//! Where keys come from. Start-up only: the data path never hears of key managers.
//!
//! [`KeyManager`] is one of the project's three joints, and all of it that serving a disk is ever given. What
//! a command-line tool may do besides (create, store, list, destroy) is a second trait, [`KeyAdmin`].
//!
//! | reference | manager | key material is |
//! |---|---|---|
//! | `file:PATH` | [`mod@file`] | the bytes of a file that only its owner can read |
//! | `fd:N` | [`fd`] | the bytes read from a descriptor that the parent process left open |

mod admin;
pub mod fd;
pub mod file;
mod secret;

use std::fmt;
use std::io;
use std::str::FromStr;

use serde::Serialize;

pub use admin::{KeyAdmin, KeyKind, KeyMetadata, KeySpec, KeyState};
pub use secret::{SECRET_BYTES_MAX, Secret, SecretError};

/// Finds key material.
pub trait KeyManager {
    /// Fetches the key called `id`. Asked once, at start-up; may block.
    ///
    /// # Errors
    /// See [`KeyError`]. Nothing of the key material shows in it.
    fn fetch(&self, id: &KeyId) -> Result<Secret, KeyError>;
}

/// What a key is called within its manager. Not secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct KeyId(String);

impl KeyId {
    /// The name as the operator wrote it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The kinds of key manager, by the scheme that names them in a reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `file`: see [`file::KeyFiles`].
    File,
    /// `fd`: see [`fd::KeyDescriptors`].
    Fd,
}

impl Scheme {
    const ALL: [Self; 2] = [Self::File, Self::Fd];

    fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Fd => "fd",
        }
    }

    /// How a reference of this scheme is written.
    fn usage(self) -> &'static str {
        match self {
            Self::File => "file:PATH",
            Self::Fd => "fd:N",
        }
    }

    fn manager(self) -> Box<dyn KeyManager> {
        match self {
            Self::File => Box::new(file::KeyFiles),
            Self::Fd => Box::new(fd::KeyDescriptors),
        }
    }
}

/// Names one key: `SCHEME:ID`, for example `file:/run/keys/vm1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyReference {
    scheme: Scheme,
    id: KeyId,
}

impl KeyReference {
    /// Fetches the key from the manager that its scheme names.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn fetch(&self) -> Result<Secret, KeyError> {
        self.scheme.manager().fetch(&self.id)
    }

    fn new(scheme: Scheme, id: &KeyId) -> Self {
        Self { scheme, id: id.clone() }
    }
}

impl fmt::Display for KeyReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.scheme.name(), self.id.0)
    }
}

impl FromStr for KeyReference {
    type Err = ReferenceError;

    fn from_str(reference: &str) -> Result<Self, ReferenceError> {
        let (scheme, id) = reference.split_once(':').ok_or(ReferenceError::NoScheme)?;
        let scheme = Scheme::ALL
            .into_iter()
            .find(|known| known.name() == scheme)
            .ok_or_else(|| ReferenceError::UnknownScheme(presentable(scheme)))?;
        if id.is_empty() {
            return Err(ReferenceError::NoId(scheme));
        }
        Ok(Self { scheme, id: KeyId(id.to_owned()) })
    }
}

/// Why text does not name a key. Never shows the text itself: it may be a key, given where a reference to one
/// was asked for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// No colon in it.
    #[error("a key is named by reference, {}; the key itself must not be given", known_schemes())]
    NoScheme,
    /// No such key manager.
    #[error("unknown key manager{0}: the known ones are {known}", known = known_schemes())]
    UnknownScheme(String),
    /// Nothing after the colon.
    #[error("nothing follows `{}:`: write {}", .0.name(), .0.usage())]
    NoId(Scheme),
}

fn known_schemes() -> String {
    Scheme::ALL.map(Scheme::usage).join(" or ")
}

/// `scheme` quoted for a message when it looks like one, or nothing: it may be part of a key.
fn presentable(scheme: &str) -> String {
    let short_word =
        scheme.len() <= 12 && scheme.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    if short_word { format!(" `{scheme}`") } else { String::new() }
}

/// Why a key could not be fetched: each variant names manager and key and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The manager works and has no such key. Also what a manager says of keys that belong to others.
    #[error("key {key} not found: {remedy}")]
    NotFound {
        /// Which key.
        key: KeyReference,
        /// What to do.
        remedy: String,
    },
    /// The key is there and must not, or may not, be used.
    #[error("key {key} refused: {problem}; {remedy}")]
    NotAllowed {
        /// Which key.
        key: KeyReference,
        /// What speaks against it.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// The manager, or what lies between, failed. Trying again may help.
    #[error("key {key} cannot be fetched: {problem}")]
    Unreachable {
        /// Which key.
        key: KeyReference,
        /// What was tried, and what to look at.
        problem: String,
        /// What came back.
        source: io::Error,
    },
    /// Something is there that cannot be a key.
    #[error("key {key} is malformed: {problem}; {remedy}")]
    Malformed {
        /// Which key.
        key: KeyReference,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        remedy: String,
    },
}

impl KeyError {
    /// What a failed [`Secret::read_from`] means for `key`.
    fn reading(key: KeyReference, error: SecretError) -> Self {
        match error {
            SecretError::Empty | SecretError::TooLong => Self::Malformed {
                key,
                problem: error.to_string(),
                remedy: "give the raw bytes of the key".to_owned(),
            },
            SecretError::Read(source) => Self::Unreachable {
                key,
                problem: "reading it failed; check what it is stored on".to_owned(),
                source,
            },
            SecretError::Lock(source) => Self::Unreachable {
                key,
                problem: "memory for it cannot be locked; raise the limit `ulimit -l`".to_owned(),
                source,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_survive_a_round_trip() {
        for text in ["file:/run/keys/vm1", "file:relative:with:colons", "fd:5"] {
            assert_eq!(text.parse::<KeyReference>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_bad_reference_is_answered_with_the_known_schemes() {
        for (text, scheme) in [("vault:kv/vm1", " `vault`"), ("FILE:/x", ""), (":/x", " ``")] {
            let error = text.parse::<KeyReference>().unwrap_err();
            assert_eq!(error, ReferenceError::UnknownScheme(scheme.to_owned()));
            assert!(error.to_string().contains("file:PATH or fd:N"), "{error}");
        }
        assert_eq!("file:".parse::<KeyReference>(), Err(ReferenceError::NoId(Scheme::File)));
    }

    #[test]
    fn a_key_given_instead_of_a_reference_is_not_repeated() {
        for key in ["00112233445566778899aabbccddeeff", "00112233445566778899aabbccddeeff:0011", "c2VjcmV0:x"]
        {
            let error = key.parse::<KeyReference>().unwrap_err().to_string();
            assert!(!error.contains("0011") && !error.contains("c2V"), "{error}");
        }
    }
}
