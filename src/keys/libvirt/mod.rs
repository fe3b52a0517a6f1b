//! `libvirt[@PROFILE]:UUID` and `libvirt[@PROFILE]:USAGE/ID`: secrets that libvirt keeps, as Nova puts them there.
//!
//! libvirt's library is loaded when it is asked for the first time, so that nobody else needs it. It keeps no deadline
//! towards its daemon: each call has a thread of its own, which is left behind when it takes too long.
//!
//! libvirt makes no keys, and a secret has no versions. Secrets that are `ephemeral` are gone with the daemon, others
//! lie in clear below `/etc/libvirt/secrets` (until libvirt 12.1): a profile has to ask for those.

mod description;
mod library;
mod walk;

use std::num::NonZeroU16;
use std::sync::mpsc;
use std::time::Duration;

use serde::Deserialize;
use uuid::Uuid;

use self::description::Description;
use self::library::{Connection, VirError, VirSecret};
use super::doctor::Walk;
use super::reference::ManagerName;
use super::registry::Opening;
use super::scheme::Scheme;
use super::{
    KeyAdmin, KeyConfigError, KeyError, KeyId, KeyKind, KeyManager, KeyMetadata, KeySpec, KeyState, Secret,
    SecretError, Subject,
};

pub(super) const SCHEME: Scheme = Scheme {
    name: "libvirt",
    usage: "libvirt[@PROFILE]:UUID",
    takes_profile: true,
    takes_version: false,
    open: |opening| Ok(Box::new(LibvirtManager::new(opening)?)),
    administer: Some(|opening| Ok(Box::new(LibvirtManager::new(opening)?))),
};

/// Numbers of `virErrorNumber`.
const NO_SUPPORT: i32 = 3;
const OPERATION_DENIED: i32 = 29;
const SYSTEM_ERROR: i32 = 38;
const AUTH_FAILED: i32 = 45;
const INVALID_SECRET: i32 = 65;
const NO_SECRET: i32 = 66;
const AUTH_CANCELLED: i32 = 79;
const ACCESS_DENIED: i32 = 88;
const AUTH_UNAVAILABLE: i32 = 94;

/// What a secret may be for, with libvirt's number.
const USAGES: [(&str, i32); 5] = [("volume", 1), ("ceph", 2), ("iscsi", 3), ("tls", 4), ("vtpm", 5)];

/// A table `[libvirt.PROFILE]` of the key configuration file. The default profile need not be there.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Profile {
    /// The daemon, as libvirt's tools name it.
    uri: String,
    /// How long one operation may take.
    timeout_seconds: NonZeroU16,
    /// Whether secrets that are put there outlive the daemon, in clear on this host's disk.
    persistent: bool,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            uri: "secret:///system".to_owned(),
            timeout_seconds: const { NonZeroU16::new(10).expect("ten is not zero") },
            persistent: false,
        }
    }
}

/// The secrets of one daemon.
#[derive(Debug)]
pub struct LibvirtManager {
    name: ManagerName,
    profile: Profile,
}

/// Why an operation did not come to its end.
enum Stop {
    Vir(VirError),
    /// The secret is defined, and that is all.
    NoValue,
    Error(KeyError),
}

impl From<VirError> for Stop {
    fn from(error: VirError) -> Self {
        Self::Vir(error)
    }
}

impl From<KeyError> for Stop {
    fn from(error: KeyError) -> Self {
        Self::Error(error)
    }
}

impl LibvirtManager {
    /// # Errors
    /// When a profile other than the default one is missing.
    pub(super) fn new(opening: &Opening<'_>) -> Result<Self, KeyConfigError> {
        let name = opening.name();
        let profile = match opening.profile(|config| &config.libvirt) {
            Ok(profile) => profile.clone(),
            Err(KeyConfigError::NoProfile { .. }) if name.profile() == "default" => Profile::default(),
            Err(error) => return Err(error),
        };
        Ok(Self { name, profile })
    }

    /// Runs `work` with a connection, for as long as the profile allows.
    fn with<T: Send + 'static>(
        &self,
        id: Option<&KeyId>,
        work: impl FnOnce(&Connection) -> Result<T, Stop> + Send + 'static,
    ) -> Result<T, KeyError> {
        self.attempt(work).map_err(|stop| self.failed(stop, id))
    }

    fn attempt<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Stop> + Send + 'static,
    ) -> Result<T, Stop> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let uri = self.profile.uri.clone();
        let run = move || {
            let result = Connection::open(&uri).map_err(Stop::from).and_then(|connection| work(&connection));
            // Whoever asked may have gone.
            let _ = sender.send(result);
        };
        let unreachable = |problem: String| KeyError::unreachable(self.name.clone(), problem);
        std::thread::Builder::new()
            .name("libvirt".to_owned())
            .spawn(run)
            .map_err(|error| unreachable(format!("a thread cannot be started: {error}")))?;
        let patience = Duration::from_secs(self.profile.timeout_seconds.get().into());
        let late = |_| unreachable(format!("the daemon at {} took too long", self.profile.uri));
        receiver.recv_timeout(patience).map_err(late)?
    }

    fn failed(&self, stop: Stop, id: Option<&KeyId>) -> KeyError {
        let subject = || match id {
            Some(id) => Subject::from(self.name.key(id)),
            None => self.name.clone().into(),
        };
        let error = match stop {
            Stop::Error(error) => return error,
            Stop::NoValue => {
                return KeyError::not_found(
                    subject(),
                    "libvirt has the secret and no value for it: give it one with `virsh secret-set-value`",
                );
            }
            Stop::Vir(error) => error,
        };
        match error {
            VirError::Library(error) => KeyError::not_allowed(
                self.name.clone(),
                format!("libvirt's library cannot be used ({error})"),
                "install libvirt's client library (Debian: libvirt0)",
            ),
            VirError::Secret(error) => KeyError::of_secret(subject(), error),
            VirError::Said { code: NO_SECRET, .. } => {
                KeyError::not_found(subject(), "libvirt has no such secret; see `virsh secret-list`")
            }
            VirError::Said { code: INVALID_SECRET, message } => KeyError::not_allowed(
                subject(),
                format!("libvirt gives it to nobody ({message})"),
                "define it with private='no'",
            ),
            VirError::Said { code: AUTH_FAILED | AUTH_CANCELLED | AUTH_UNAVAILABLE, message } => {
                KeyError::not_allowed(
                    subject(),
                    format!("libvirt does not let us in without being told who we are ({message})"),
                    "let this user in by the rules of polkit, or by the daemon's `auth_unix_rw` and the mode of its socket",
                )
            }
            VirError::Said { code: OPERATION_DENIED | ACCESS_DENIED, message } => KeyError::not_allowed(
                subject(),
                format!("libvirt refuses ({message})"),
                "let this user at the daemon's socket for reading and writing",
            ),
            VirError::Said { code: NO_SUPPORT, message } => KeyError::not_allowed(
                self.name.clone(),
                format!("{} has no secrets ({message})", self.profile.uri),
                "correct `uri` in its profile",
            ),
            VirError::Said { message, .. } => {
                KeyError::unreachable(subject(), format!("libvirt at {} says: {message}", self.profile.uri))
            }
        }
    }
}

/// The secret that `id` means.
fn find<'c>(connection: &'c Connection, id: &KeyId) -> Result<VirSecret<'c>, VirError> {
    let absent = || VirError::Said { code: NO_SECRET, message: String::new() };
    if id.version().is_some_and(|version| version != 1) {
        return Err(absent());
    }
    if Uuid::try_parse(id.name()).is_ok() {
        return connection.by_uuid(id.name());
    }
    let (usage, name) = id.name().split_once('/').ok_or_else(absent)?;
    let (_, kind) = USAGES.iter().find(|(known, _)| *known == usage).ok_or_else(absent)?;
    connection.by_usage(*kind, name)
}

fn described(secret: &VirSecret<'_>) -> Result<KeyMetadata, VirError> {
    let Description { name, volume } = Description::read(&secret.description()?);
    let (bits, state) = match secret.value() {
        Ok(value) => (value.expose().len() as u32 * 8, KeyState::Active),
        // It was defined, and has been given no value; or it is for libvirt's own use.
        Err(VirError::Said { code: NO_SECRET, .. }) => (0, KeyState::PreActive),
        Err(VirError::Said { code: INVALID_SECRET, .. }) => (0, KeyState::Active),
        Err(VirError::Secret(SecretError::Empty | SecretError::TooLong)) => (0, KeyState::Active),
        Err(error) => return Err(error),
    };
    let id = KeyId::new(secret.uuid()?);
    Ok(KeyMetadata { id, version: 1, name, kind: KeyKind::Symmetric, bits, state, volume, created: None })
}

impl KeyManager for LibvirtManager {
    fn fetch(&self, id: &KeyId) -> Result<Secret, KeyError> {
        let wanted = id.clone();
        self.with(Some(id), move |connection| match find(connection, &wanted)?.value() {
            Err(VirError::Said { code: NO_SECRET, .. }) => Err(Stop::NoValue),
            value => Ok(value?),
        })
    }

    fn diagnose(&self, id: &KeyId, walk: &mut Walk<'_>) -> Result<Secret, KeyError> {
        self.walk(id, walk)
    }
}

impl KeyAdmin for LibvirtManager {
    fn create(&self, spec: &KeySpec) -> Result<KeyMetadata, KeyError> {
        if !self.profile.persistent {
            return Err(KeyError::not_allowed(
                self.name.clone(),
                "a key that is nowhere else would be gone with libvirt's daemon",
                "make it in another key manager, or set `persistent = true` in its profile and protect \
                 /etc/libvirt/secrets",
            ));
        }
        spec.check(&self.name, None)?;
        let key = spec.kind.random(spec.bits);
        let key = key.map_err(|error| KeyError::of_secret(self.name.clone(), error))?;
        self.store(spec, &key)
    }

    fn store(&self, spec: &KeySpec, material: &Secret) -> Result<KeyMetadata, KeyError> {
        spec.check(&self.name, Some(material))?;
        let taken = KeyError::not_allowed(
            self.name.clone(),
            "there is a secret of this name, or for this volume, already",
            "choose another name, or destroy that one",
        );
        let wanted = Description { name: spec.name.clone(), volume: spec.volume.clone() };
        let xml = wanted.xml(Uuid::new_v4(), self.profile.persistent);
        let copy = Secret::read_from(material.expose())
            .map_err(|error| KeyError::of_secret(self.name.clone(), error))?;
        self.with(None, move |connection| {
            for secret in connection.list()? {
                let known = Description::read(&secret.description()?);
                let is_same = |one: &Option<String>, other: &Option<String>| one.is_some() && one == other;
                if is_same(&known.name, &wanted.name) || is_same(&known.volume, &wanted.volume) {
                    return Err(taken.into());
                }
            }
            let secret = connection.define(&xml)?;
            if let Err(error) = secret.set_value(copy.expose()) {
                // A secret without a value is none; what went wrong first is what is told.
                let _ = secret.undefine();
                return Err(error.into());
            }
            Ok(described(&secret)?)
        })
    }

    fn list(&self) -> Result<Vec<KeyMetadata>, KeyError> {
        self.with(None, |connection| {
            let mut listed = Vec::new();
            for secret in connection.list()? {
                listed.push(described(&secret)?);
            }
            // libvirt knows no order of creation.
            listed.sort_by(|one, other| one.id.name().cmp(other.id.name()));
            Ok(listed)
        })
    }

    fn metadata(&self, id: &KeyId) -> Result<KeyMetadata, KeyError> {
        let wanted = id.clone();
        self.with(Some(id), move |connection| Ok(described(&find(connection, &wanted)?)?))
    }

    fn rotate(&self, id: &KeyId) -> Result<KeyMetadata, KeyError> {
        self.metadata(id)?;
        Err(KeyError::not_allowed(
            self.name.key(id),
            "libvirt's secrets have no versions, and the one before would be lost",
            "put the new key there as another secret",
        ))
    }

    fn destroy(&self, id: &KeyId) -> Result<(), KeyError> {
        let wanted = id.clone();
        self.with(Some(id), move |connection| Ok(find(connection, &wanted)?.undefine()?))
    }
}
