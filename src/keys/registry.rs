//! From a reference to the manager that it means.

use std::cell::OnceCell;
use std::fmt;
use std::path::{Path, PathBuf};

use super::config::{DEFAULT_CONFIG_PATH, KeyConfig, KeyConfigError, Profiles};
use super::doctor::{self, Link, Walk};
use super::encoding::DecodeError;
use super::error::KeyError;
use super::keystore::{self, KeystoreManager};
use super::reference::{KeyReference, ManagerName};
use super::scheme;
use super::secret::Secret;
use super::{KeyAdmin, KeyManager};

/// How many references may lead to one key: a keystore whose key is in a keystore whose key is in a file.
const DEPTH_MAX: u32 = 4;

/// The key managers of this host, as the key configuration file sets them up.
#[derive(Debug)]
pub struct KeyManagers {
    path: PathBuf,
    config: OnceCell<KeyConfig>,
    fixed_key: FixedKey,
}

/// Whether the fixed key of OpenStack's test set-ups may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FixedKey {
    /// References to it are refused.
    Refuse,
    /// One key for all volumes of all projects, in a file for many eyes.
    Accept,
}

/// One key and all that is needed to fetch it.
pub struct KeySource {
    pub(super) reference: KeyReference,
    pub(super) manager: Box<dyn KeyManager>,
}

/// What a scheme is given to make its manager from.
pub(super) struct Opening<'a> {
    managers: &'a KeyManagers,
    name: &'a ManagerName,
    depth: u32,
}

impl KeyManagers {
    /// Reads the key configuration file at `path`. Without one the default file is meant, which need not exist, and
    /// which is read only once a reference asks for something in it: whoever has no use for it need not be able to.
    ///
    /// # Errors
    /// See [`KeyConfigError`].
    pub fn new(path: Option<&Path>, fixed_key: FixedKey) -> Result<Self, KeyConfigError> {
        let config = match path {
            Some(path) => OnceCell::from(KeyConfig::read(path)?),
            None => OnceCell::new(),
        };
        let path = path.unwrap_or(Path::new(DEFAULT_CONFIG_PATH)).to_owned();
        Ok(Self { path, config, fixed_key })
    }

    /// Resolves a reference. Nothing is fetched, opened or connected to yet.
    ///
    /// # Errors
    /// See [`KeyConfigError`]: what can be said against the reference without asking its manager.
    pub fn source(&self, reference: &KeyReference) -> Result<KeySource, KeyConfigError> {
        self.source_at(reference, 1)
    }

    /// The manager called `name`, for a tool. Nothing is opened or connected to yet.
    ///
    /// # Errors
    /// See [`KeyConfigError`].
    pub fn admin(&self, name: &ManagerName) -> Result<Box<dyn KeyAdmin>, KeyConfigError> {
        let Some(administer) = name.scheme().administer else {
            return Err(KeyConfigError::FetchOnly { manager: name.clone(), others: scheme::administered() });
        };
        administer(&Opening { managers: self, name, depth: 1 })
    }

    /// The embedded keystore called `name`, for what only keystores can do. Nothing is opened yet.
    ///
    /// # Errors
    /// See [`KeyConfigError`].
    pub fn keystore(&self, name: &ManagerName) -> Result<KeystoreManager, KeyConfigError> {
        if *name.scheme() != keystore::SCHEME {
            return Err(KeyConfigError::NoKeystore { manager: name.clone() });
        }
        KeystoreManager::new(&Opening { managers: self, name, depth: 1 })
    }

    fn source_at(&self, reference: &KeyReference, depth: u32) -> Result<KeySource, KeyConfigError> {
        if depth > DEPTH_MAX {
            return Err(KeyConfigError::TooDeep { key: reference.clone() });
        }
        let name = reference.manager();
        let manager = (name.scheme().open)(&Opening { managers: self, name, depth })?;
        Ok(KeySource { reference: reference.clone(), manager })
    }

    fn config(&self) -> Result<&KeyConfig, KeyConfigError> {
        if let Some(config) = self.config.get() {
            return Ok(config);
        }
        let config = KeyConfig::read_if_there(&self.path)?;
        Ok(self.config.get_or_init(|| config))
    }
}

impl KeySource {
    /// What the operator wrote.
    pub fn reference(&self) -> &KeyReference {
        &self.reference
    }

    /// Fetches the key and decodes it. May be asked again when it could not be reached.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn fetch(&self) -> Result<Secret, KeyError> {
        self.decode(self.manager.fetch(self.reference.id())?)
    }

    /// Has its manager note that it is in use by `volume`: see [`KeyManager::note_use`].
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn note_use(&self, volume: &str) -> Result<(), KeyError> {
        self.manager.note_use(self.reference.id(), volume)
    }

    /// Fetches it and tells of every link of the way there.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub(super) fn walk(&self, walk: &mut Walk<'_>) -> Result<Secret, KeyError> {
        let payload = self.manager.diagnose(self.reference.id(), walk)?;
        walk.link(Link::Length, || {
            let secret = self.decode(payload)?;
            let found = doctor::length(&secret);
            Ok((secret, found))
        })
    }

    fn decode(&self, payload: Secret) -> Result<Secret, KeyError> {
        self.reference.encoding().decode(payload).map_err(|error| match error {
            DecodeError::Secret(error) => KeyError::of_secret(self.reference.clone(), error),
            DecodeError::NotText(_) => KeyError::malformed(
                self.reference.clone(),
                error.to_string(),
                "name its encoding, or `raw` for bytes that are the key",
            ),
        })
    }
}

impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeySource({})", self.reference)
    }
}

impl Opening<'_> {
    /// What the manager is called: errors name it and its keys by this.
    pub(super) fn name(&self) -> ManagerName {
        self.name.clone()
    }

    /// The key configuration file.
    pub(super) fn config(&self) -> Result<&KeyConfig, KeyConfigError> {
        self.managers.config()
    }

    /// The profile that the reference chose, out of one table of the configuration.
    pub(super) fn profile<P>(
        &self,
        table: impl Fn(&KeyConfig) -> &Profiles<P>,
    ) -> Result<&P, KeyConfigError> {
        table(self.config()?).get(self.name.profile()).ok_or_else(|| KeyConfigError::NoProfile {
            manager: self.name(),
            table: format!("[{}.{}]", self.name.scheme().name, self.name.profile()),
            path: self.managers.path.clone(),
        })
    }

    /// Whether the operator allowed the fixed key.
    pub(super) fn fixed_key(&self) -> FixedKey {
        self.managers.fixed_key
    }

    /// Another key that this manager needs, such as the one that its own are encrypted with.
    pub(super) fn source(&self, reference: &KeyReference) -> Result<KeySource, KeyConfigError> {
        self.managers.source_at(reference, self.depth + 1)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::keys::KeyId;

    fn managers(config: &str, fixed_key: FixedKey) -> Result<KeyManagers, KeyConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), config).unwrap();
        KeyManagers::new(Some(file.path()), fixed_key)
    }

    fn source(config: &str, reference: &str) -> Result<KeySource, KeyConfigError> {
        managers(config, FixedKey::Accept).unwrap().source(&reference.parse().unwrap())
    }

    #[test]
    fn a_key_is_fetched_and_decoded() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "00ff\n").unwrap();
        let name = file.path().display();
        for (encoding, key) in [("", &b"00ff\n"[..]), ("+hex", &[0, 255]), ("+openstack", b"303066660a")] {
            let source = source("", &format!("file{encoding}:{name}")).unwrap();
            assert_eq!(source.fetch().unwrap().expose(), key);
        }
        fs::write(file.path(), "00ff\n=").unwrap();
        let error = source("", &format!("file+base64:{name}")).unwrap().fetch().unwrap_err();
        assert!(matches!(error, KeyError::Malformed { .. }), "{error}");
        assert!(error.to_string().contains(&format!("file+base64:{name}")), "{error}");
        assert!(!error.to_string().contains("00ff"), "{error}");
    }

    #[test]
    fn profiles_are_found_by_name_or_by_default() {
        let config = "[config.default]\npath = '/nonexistent/a'\n[config.prod]\npath = '/nonexistent/b'";
        let id = crate::keys::fixed_key::FIXED_KEY_ID;
        for (manager, path) in [("config", "/nonexistent/a"), ("config@prod", "/nonexistent/b")] {
            let error = source(config, &format!("{manager}:{id}")).unwrap().fetch().unwrap_err().to_string();
            assert!(error.contains(&format!("key {manager}:{id} ")) && error.contains(path), "{error}");
        }
        let error = source(config, &format!("config@test:{id}")).unwrap_err().to_string();
        assert!(error.contains("[config.test]"), "{error}");
    }

    #[test]
    fn a_fixed_key_is_gated() {
        let config = "[config.default]\npath = '/nonexistent/a'";
        let error =
            managers(config, FixedKey::Refuse).unwrap().source(&"config:x".parse().unwrap()).unwrap_err();
        assert!(error.to_string().ends_with("pass --insecure fixed-key if that is what you want"), "{error}");
    }

    #[test]
    fn managers_in_a_circle_are_refused() {
        let error = source("", "nested@a:x").unwrap_err();
        assert!(matches!(error, KeyConfigError::TooDeep { .. }), "{error}");
    }

    #[test]
    fn managers_that_only_give_out_keys_say_so() {
        let managers = managers("", FixedKey::Refuse).unwrap();
        for name in ["file", "fd", "command", "credential", "keyring", "config@prod"] {
            let error = managers.admin(&name.parse().unwrap()).err().unwrap();
            assert!(matches!(error, KeyConfigError::FetchOnly { .. }), "{error}");
        }
    }

    #[test]
    fn the_default_file_is_not_needed_by_those_who_need_nothing_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        let managers =
            || KeyManagers { path: path.clone(), config: OnceCell::new(), fixed_key: FixedKey::Accept };
        let resolve = |reference: &str| managers().source(&reference.parse().unwrap());
        assert!(matches!(resolve("config:x"), Err(KeyConfigError::NoProfile { .. })));
        fs::write(&path, "not TOML").unwrap();
        assert!(matches!(resolve("config:x"), Err(KeyConfigError::Syntax { .. })));
        resolve("file:/x").unwrap();
        fs::remove_file(&path).unwrap();
        assert!(matches!(
            KeyManagers::new(Some(&path), FixedKey::Refuse),
            Err(KeyConfigError::Unreadable { .. })
        ));
    }

    #[test]
    fn a_file_that_others_can_change_is_not_trusted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        fs::write(&path, "").unwrap();
        for (mode, is_trusted) in
            [(0o600, true), (0o644, true), (0o640, true), (0o660, false), (0o602, false), (0o666, false)]
        {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let result = KeyManagers::new(Some(&path), FixedKey::Refuse);
            assert_eq!(result.is_ok(), is_trusted, "{mode:o}: {result:?}");
        }
        assert!(matches!(
            KeyManagers::new(Some(folder.path()), FixedKey::Refuse),
            Err(KeyConfigError::NotTrusted { .. })
        ));
    }

    #[test]
    fn debug_of_a_source_is_its_reference() {
        let source = source("", "file:/x").unwrap();
        assert_eq!(format!("{source:?}"), "KeySource(file:/x)");
        assert_eq!(source.reference().id(), &KeyId::new("/x"));
    }
}
