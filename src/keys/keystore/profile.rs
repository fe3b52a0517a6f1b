//! A keystore as one of the key managers: set up by a profile, opened when it is asked.

use std::cell::OnceCell;
use std::path::PathBuf;

use serde::Deserialize;

use super::super::doctor::{Link, Walk};
use super::super::reference::ManagerName;
use super::super::registry::Opening;
use super::super::scheme::Scheme;
use super::super::{
    AbsolutePath, KeyAdmin, KeyConfigError, KeyError, KeyId, KeyManager, KeyMetadata, KeyReference,
    KeySource, KeySpec, Secret, Subject,
};
use super::{KekRotation, Keystore, KeystoreError, Principal};

pub(in super::super) const SCHEME: Scheme = Scheme {
    name: "keystore",
    usage: "keystore[@PROFILE]:ID[#VERSION]",
    takes_profile: true,
    takes_version: true,
    open: |opening| Ok(Box::new(KeystoreManager::new(opening)?)),
    administer: Some(|opening| Ok(Box::new(KeystoreManager::new(opening)?))),
};

/// A table `[keystore.PROFILE]` of the key configuration file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Profile {
    /// The file.
    path: AbsolutePath,
    /// Where the key-encryption key is.
    kek: KeyReference,
    /// Where the one before is, until the rotation to `kek` is finished.
    kek_before: Option<KeyReference>,
}

/// The keystore of a profile.
pub struct KeystoreManager {
    name: ManagerName,
    path: PathBuf,
    kek: KeySource,
    kek_before: Option<KeySource>,
    principal: Principal,
    keystore: OnceCell<Keystore>,
}

impl KeystoreManager {
    /// # Errors
    /// When the profile is missing, or a reference in it leads nowhere.
    pub(in super::super) fn new(opening: &Opening<'_>) -> Result<Self, KeyConfigError> {
        let profile = opening.profile(|config| &config.keystore)?;
        Ok(Self {
            name: opening.name(),
            path: profile.path.as_path().to_owned(),
            kek: opening.source(&profile.kek)?,
            kek_before: profile.kek_before.as_ref().map(|kek| opening.source(kek)).transpose()?,
            principal: Principal::of_process(),
            keystore: OnceCell::new(),
        })
    }

    /// The same keystore, used on behalf of `principal`: see [`Keystore::acting_as`].
    #[must_use]
    pub fn acting_as(self, principal: Principal) -> Self {
        Self { principal, keystore: OnceCell::new(), ..self }
    }

    /// Makes the keystore that the profile describes. See [`Keystore::initialise`].
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn initialise(&self) -> Result<(), KeyError> {
        Keystore::initialise(&self.path, self.kek.fetch()?).map_err(|error| self.failed(error, None))
    }

    /// Does something that only keystores can do.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn with<T>(&self, work: impl FnOnce(&Keystore) -> Result<T, KeystoreError>) -> Result<T, KeyError> {
        work(self.open()?).map_err(|error| self.failed(error, None))
    }

    /// Moves every key from the KEK before to the KEK of the profile. See [`Keystore::rotate_kek`].
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn rotate_kek(&self, progress: impl FnMut(u64)) -> Result<KekRotation, KeyError> {
        let keystore = self.open()?;
        let new = self.kek.fetch()?;
        keystore.rotate_kek(new, progress).map_err(|error| self.failed(error, None))
    }

    /// The keystore, opened now if it is not open yet.
    fn open(&self) -> Result<&Keystore, KeyError> {
        if let Some(keystore) = self.keystore.get() {
            return Ok(keystore);
        }
        let keystore = self.opened()?;
        Ok(self.keystore.get_or_init(|| keystore))
    }

    fn opened(&self) -> Result<Keystore, KeyError> {
        let mut keks = vec![self.kek.fetch()?];
        if let Some(kek) = &self.kek_before {
            keks.push(kek.fetch()?);
        }
        match Keystore::open(&self.path, keks) {
            Ok(keystore) => Ok(keystore.acting_as(self.principal.clone())),
            Err(error) => Err(self.failed(error, None)),
        }
    }

    /// The same with one key, which an error is about.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn with_key<T>(
        &self,
        id: &KeyId,
        work: impl FnOnce(&Keystore) -> Result<T, KeystoreError>,
    ) -> Result<T, KeyError> {
        work(self.open()?).map_err(|error| self.failed(error, Some(id)))
    }

    fn failed(&self, error: KeystoreError, id: Option<&KeyId>) -> KeyError {
        let manager = || Subject::from(self.name.clone());
        let subject = || id.map_or_else(manager, |id| self.name.key(id).into());
        match error {
            KeystoreError::NotFound { remedy } => KeyError::not_found(subject(), remedy),
            KeystoreError::NotAllowed { problem, remedy } => {
                KeyError::not_allowed(subject(), problem, remedy)
            }
            KeystoreError::Malformed { problem, remedy } => KeyError::malformed(subject(), problem, remedy),
            KeystoreError::Missing { .. } => KeyError::not_found(manager(), error.to_string()),
            KeystoreError::Exists { path } => KeyError::not_allowed(
                manager(),
                format!("{} is there already", path.display()),
                "nothing was changed; choose another path if a new keystore is wanted",
            ),
            KeystoreError::Exposed { path, problem, remedy } => {
                KeyError::not_allowed(manager(), format!("{}: {problem}", path.display()), remedy)
            }
            KeystoreError::Kek { problem, remedy } => KeyError::not_allowed(manager(), problem, remedy),
            KeystoreError::Foreign { path } => KeyError::malformed(
                manager(),
                format!("{} is not a keystore", path.display()),
                "correct the path in its profile",
            ),
            KeystoreError::Newer { found, known } => KeyError::malformed(
                manager(),
                format!("it has version {found}, and this release knows versions up to {known}"),
                "use a newer release",
            ),
            KeystoreError::Damaged { problem } => KeyError::malformed(
                manager(),
                format!("it is damaged, or was changed by others: {problem}"),
                "restore it from a copy",
            ),
            KeystoreError::Memory(error) => KeyError::of_secret(subject(), error),
            KeystoreError::Database(cause) => {
                KeyError::unreachable_because(manager(), "its file cannot be read or written", cause)
            }
            KeystoreError::Io { doing, source } => KeyError::unreachable_because(manager(), doing, source),
            KeystoreError::Busy | KeystoreError::NotYetWiped | KeystoreError::Full => {
                KeyError::unreachable(manager(), error.to_string())
            }
        }
    }
}

impl KeyManager for KeystoreManager {
    fn fetch(&self, id: &KeyId) -> Result<Secret, KeyError> {
        if self.keystore.get().is_some() {
            return self.with_key(id, |keystore| keystore.fetch_key(id));
        }
        // Whoever only fetches goes on to other things, for a long time: neither KEK nor file is kept.
        self.opened()?.fetch_key(id).map_err(|error| self.failed(error, Some(id)))
    }

    fn diagnose(&self, id: &KeyId, walk: &mut Walk<'_>) -> Result<Secret, KeyError> {
        self.walk(id, walk)
    }
}

impl KeystoreManager {
    /// The KEK first, and the file with it.
    fn walk(&self, id: &KeyId, walk: &mut Walk<'_>) -> Result<Secret, KeyError> {
        let mut keks = Vec::new();
        for kek in std::iter::once(&self.kek).chain(&self.kek_before) {
            keks.push(walk.by_way_of(kek)?);
        }
        let keystore = walk.link(Link::Authentication, || {
            let keystore = Keystore::open(&self.path, keks).map_err(|error| self.failed(error, None))?;
            let found = format!("{} opens with its KEK", self.path.display());
            Ok((keystore.acting_as(self.principal.clone()), found))
        })?;
        walk.link(Link::KeyState, || {
            let metadata = keystore.key_metadata(id).map_err(|error| self.failed(error, Some(id)))?;
            Ok(((), format!("version {}, {}", metadata.version, metadata.state)))
        })?;
        walk.link(Link::Permission, || {
            let secret = keystore.fetch_key(id).map_err(|error| self.failed(error, Some(id)))?;
            Ok((secret, format!("{} may have it", self.principal)))
        })
    }
}

impl KeyAdmin for KeystoreManager {
    fn create(&self, spec: &KeySpec) -> Result<KeyMetadata, KeyError> {
        self.with(|keystore| keystore.create_key(spec))
    }

    fn store(&self, spec: &KeySpec, material: &Secret) -> Result<KeyMetadata, KeyError> {
        self.with(|keystore| keystore.store_key(spec, material))
    }

    fn list(&self) -> Result<Vec<KeyMetadata>, KeyError> {
        self.with(Keystore::list_keys)
    }

    fn metadata(&self, id: &KeyId) -> Result<KeyMetadata, KeyError> {
        self.with_key(id, |keystore| keystore.key_metadata(id))
    }

    fn rotate(&self, id: &KeyId) -> Result<KeyMetadata, KeyError> {
        self.with_key(id, |keystore| keystore.rotate_key(id))
    }

    fn destroy(&self, id: &KeyId) -> Result<(), KeyError> {
        self.with_key(id, |keystore| keystore.destroy_key(id))
    }
}
