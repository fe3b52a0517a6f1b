//! What a command-line tool may do with keys besides fetching them.
//!
//! The server is given [`KeyManager`](super::KeyManager) only, so that it cannot even name what is here.

use std::fmt;

use jiff::Timestamp;
use serde::Serialize;

use super::{KeyError, KeyId, KeyManager, SECRET_BYTES_MAX, Secret, SecretError};
#[cfg(any(feature = "http", feature = "libvirt"))]
use super::{ManagerName, Subject};

/// Longest name of a key or a volume: what the tightest of the managers takes.
const NAME_BYTES_MAX: usize = 255;

/// Makes, keeps and destroys keys. Every implementation passes the same conformance suite.
///
/// Keys of others look as if they did not exist. Nothing makes a key but [`create`](Self::create) and
/// [`store`](Self::store).
pub trait KeyAdmin: KeyManager {
    /// Makes a new random key inside the manager, [`KeyState::Active`] at once, and says what it is called.
    ///
    /// # Errors
    /// See [`KeyError`]; [`KeyError::NotAllowed`] also when the name is taken.
    fn create(&self, spec: &KeySpec) -> Result<KeyMetadata, KeyError>;

    /// Puts key material that exists already there, as [`create`](Self::create) would a new one.
    ///
    /// # Errors
    /// See [`KeyError`]; [`KeyError::Malformed`] when `material` does not have the bits of `spec`.
    fn store(&self, spec: &KeySpec, material: &Secret) -> Result<KeyMetadata, KeyError>;

    /// The newest version of every key that the caller may see, in the order of creation, destroyed ones
    /// included where the manager remembers them.
    ///
    /// # Errors
    /// See [`KeyError`].
    fn list(&self) -> Result<Vec<KeyMetadata>, KeyError>;

    /// What is known of one key.
    ///
    /// # Errors
    /// See [`KeyError`].
    fn metadata(&self, id: &KeyId) -> Result<KeyMetadata, KeyError>;

    /// Makes a new random version of a key, which a plain reference means from now on. The version before is
    /// [`KeyState::Deactivated`]: still fetched when it is asked for by number, until it is destroyed. A manager whose
    /// keys have no versions refuses, and changes nothing.
    ///
    /// # Errors
    /// See [`KeyError`]; [`KeyError::NotAllowed`] where there are no versions, [`KeyError::Malformed`] when `id` names one.
    fn rotate(&self, id: &KeyId) -> Result<KeyMetadata, KeyError>;

    /// Destroys a key with all its versions, or the one version that `id` names. There is no way back. Destroying
    /// again is no error where the manager remembers what it destroyed.
    ///
    /// # Errors
    /// See [`KeyError`].
    fn destroy(&self, id: &KeyId) -> Result<(), KeyError>;
}

/// What a new key is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySpec {
    /// A name for people; unique within the manager where given.
    pub name: Option<String>,
    /// What the bytes are used as.
    pub kind: KeyKind,
    /// Length in bits, a multiple of 8.
    pub bits: u32,
    /// The volume that it is for, as a name for people and for finding orphans.
    pub volume: Option<String>,
}

/// Why there can be no key as it is specified, and what to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unfit {
    pub(super) problem: String,
    pub(super) remedy: String,
}

impl Unfit {
    /// The same about a manager, or a key in it: [`KeyError::Malformed`].
    #[cfg(any(feature = "http", feature = "libvirt"))]
    pub(super) fn about(self, subject: impl Into<Subject>) -> KeyError {
        KeyError::malformed(subject, self.problem, self.remedy)
    }
}

/// Refuses to rotate one version of a key: a new one follows the newest, whichever was named.
///
/// # Errors
/// When `id` names a version.
pub(super) fn fit_to_rotate(id: &KeyId) -> Result<(), Unfit> {
    match id.version() {
        None => Ok(()),
        Some(_) => Err(Unfit {
            problem: "only a whole key is rotated".to_owned(),
            remedy: "leave out the version".to_owned(),
        }),
    }
}

impl KeySpec {
    /// Refuses what no key can be, and `material` that is not what the specification says: the same for every manager.
    ///
    /// # Errors
    /// What is wrong, in the first respect that is.
    pub(super) fn fit(&self, material: Option<&Secret>) -> Result<(), Unfit> {
        let unfit = |problem: String, remedy: String| Err(Unfit { problem, remedy });
        let bits_max = SECRET_BYTES_MAX as u32 * 8;
        if self.bits == 0 || !self.bits.is_multiple_of(8) || self.bits > bits_max {
            return unfit(
                format!("a key cannot have {} bits", self.bits),
                format!("give a multiple of 8, up to {bits_max}"),
            );
        }
        for text in [&self.name, &self.volume].into_iter().flatten() {
            if text.is_empty() || text.len() > NAME_BYTES_MAX || text.chars().any(char::is_control) {
                return unfit(
                    "a name is empty, too long, or not printable".to_owned(),
                    format!("use up to {NAME_BYTES_MAX} bytes of text"),
                );
            }
        }
        let Some(material) = material else { return Ok(()) };
        let found_bits = material.expose().len() as u64 * 8;
        if found_bits != u64::from(self.bits) {
            return unfit(
                format!("the key has {found_bits} bits, and {} were announced", self.bits),
                "give the key itself, or another length".to_owned(),
            );
        }
        if self.kind == KeyKind::Passphrase && str::from_utf8(material.expose()).is_err() {
            return unfit(
                "the passphrase is not UTF-8 text".to_owned(),
                "store it as a symmetric key".to_owned(),
            );
        }
        Ok(())
    }

    /// What [`fit`](Self::fit) refuses, about a manager.
    ///
    /// # Errors
    /// [`KeyError::Malformed`].
    #[cfg(any(feature = "http", feature = "libvirt"))]
    pub(super) fn check(&self, manager: &ManagerName, material: Option<&Secret>) -> Result<(), KeyError> {
        self.fit(material).map_err(|unfit| unfit.about(manager.clone()))
    }
}

/// What the bytes of a key are used as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyKind {
    /// Random bytes: a volume key, or a passphrase for machines.
    Symmetric,
    /// Text, taken as it is.
    Passphrase,
}

impl KeyKind {
    /// Random material of a key. A passphrase gets one of 64 characters for every 8 bits of its length.
    ///
    /// # Errors
    /// See [`SecretError`].
    pub(super) fn random(self, bits: u32) -> Result<Secret, SecretError> {
        let length_bytes = bits as usize / 8;
        match self {
            Self::Symmetric => Secret::random(length_bytes),
            Self::Passphrase => Secret::random_text(length_bytes),
        }
    }
}

/// Where a version of a key is in its life (names as in NIST SP 800-57 part 1 and KMIP).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyState {
    /// Made, not yet for use.
    PreActive,
    /// What a reference without a version means.
    Active,
    /// For what was protected with it earlier.
    Deactivated,
    /// The bytes are gone.
    Destroyed,
    /// Some of the bytes are gone, or were never there: making or destroying it was broken off. All that can be done with
    /// it is to destroy it. Only where a key is several objects of its manager.
    Incomplete,
}

/// What a manager tells of a key: never its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyMetadata {
    /// What references call it.
    pub id: KeyId,
    /// Counted from 1 by rotation.
    pub version: u32,
    /// A name for people.
    pub name: Option<String>,
    /// What the bytes are used as.
    pub kind: KeyKind,
    /// Length in bits; 0 where the manager was not told.
    pub bits: u32,
    /// State of this version.
    pub state: KeyState,
    /// The volume that it is for.
    pub volume: Option<String>,
    /// When this version was made, if the manager knows.
    #[serde(serialize_with = "as_text")]
    pub created: Option<Timestamp>,
}

impl fmt::Display for KeyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PreActive => "pre-active",
            Self::Active => "active",
            Self::Deactivated => "deactivated",
            Self::Destroyed => "destroyed",
            Self::Incomplete => "incomplete",
        })
    }
}

fn as_text<S: serde::Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(|time| time.to_string()).serialize(serializer)
}
