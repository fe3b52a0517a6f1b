//! Where keys come from. Start-up only: the data path never hears of key managers.
//!
//! [`KeyManager`] is one of the project's three joints, and all of it that serving a disk is ever given: as a
//! [`KeySource`], a reference that a [`KeyManagers`] has resolved. What a command-line tool may do besides (create,
//! store, list, destroy) is a second trait, [`KeyAdmin`].
//!
//! | reference | manager | key material is |
//! |---|---|---|
//! | `file:PATH` | [`mod@file`] | the bytes of a file that only its owner can read |
//! | `fd:N` | [`fd`] | the bytes read from a descriptor that the parent process left open |
//! | `command:NAME` | [`command`] | what a program of the key configuration file prints |
//! | `credential:NAME` | [`credential`] | a credential that systemd passed to its service |
//! | `keyring:NAME` | [`keyring`] | a `user` key of the kernel's session or user keyring |
//! | `config@PROFILE:ID` | [`fixed_key`] | the fixed key of an OpenStack test set-up |
//! | `keystore:ID` | [`keystore`] | kept in a file of this machine, encrypted under a key from elsewhere |
//! | `kmip:ID` | `kmip` | kept by a KMIP server |
//! | `libvirt:UUID` | `libvirt` | a secret of libvirt |
//! | `barbican:UUID` | `barbican` | a secret in OpenStack's key manager |
//! | `vault:PATH` | `vault` | kept by HashiCorp Vault or OpenBao |

mod admin;
#[cfg(feature = "barbican")]
pub mod barbican;
pub mod command;
mod config;
#[cfg(any(test, feature = "key-server-tests"))]
pub mod conformance;
pub mod credential;
pub mod doctor;
mod encoding;
mod error;
pub mod fd;
pub mod file;
pub mod fixed_key;
#[cfg(feature = "http")]
mod http;
pub mod keyring;
pub mod keystore;
#[cfg(feature = "kmip")]
pub mod kmip;
#[cfg(feature = "libvirt")]
pub mod libvirt;
mod outage;
mod owned_file;
mod reference;
mod registry;
#[cfg(feature = "tls")]
pub mod remote;
mod scheme;
mod secret;
#[cfg(feature = "vault")]
pub mod vault;

pub use admin::{KeyAdmin, KeyKind, KeyMetadata, KeySpec, KeyState};
use admin::{Unfit, fit_to_rotate};
pub use config::{AbsolutePath, KeyConfig, KeyConfigError, Profiles};
pub use encoding::Encoding;
pub use error::{Cause, KeyError, Subject};
pub use outage::fetch_first;
pub use reference::{KeyId, KeyReference, ManagerName, ReferenceError};
pub use registry::{FixedKey, KeyManagers, KeySource};
pub use secret::{SECRET_BYTES_MAX, Secret, SecretError};

/// Finds key material.
///
/// Making a manager takes its configuration and nothing else; it connects, opens and reads when it is asked.
pub trait KeyManager {
    /// Fetches the key called `id`, as its manager keeps it. Asked at start-up only; may block, for a time that is
    /// bounded unless the operator chose a source without bounds (a pipe).
    ///
    /// # Errors
    /// See [`KeyError`]. Nothing of the key material shows in it.
    fn fetch(&self, id: &KeyId) -> Result<Secret, KeyError>;

    /// Notes that the key called `id` is in use by `volume`, where the manager keeps such notes and its profile asks for
    /// them, so that whoever is about to delete the key is told. Asked when the volume is open, before it is served.
    ///
    /// # Errors
    /// See [`KeyError`].
    fn note_use(&self, _id: &KeyId, _volume: &str) -> Result<(), KeyError> {
        Ok(())
    }

    /// Fetches it and tells of every link of the way there that holds. A manager that is one step away needs none of its
    /// own.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch); the link that was being looked at is the one that broke.
    fn diagnose(&self, id: &KeyId, walk: &mut doctor::Walk<'_>) -> Result<Secret, KeyError> {
        walk.link(doctor::Link::KeyState, || self.fetch(id).map(|secret| (secret, "it is there".to_owned())))
    }
}
