//! A host as key managers see it: a key configuration file, and the secrets that it names.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use tempfile::TempDir;

use crate::keys::{FixedKey, KeyManagers, KeySource};

/// A folder with a key configuration file `keys.toml`, and what its profiles name.
pub(in super::super) struct Host(TempDir);

impl Host {
    /// One without any file.
    pub(in super::super) fn empty() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(in super::super) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file that is closed to others.
    pub(in super::super) fn write(&self, name: &str, text: &str) {
        self.write_with_mode(name, text, 0o600);
    }

    pub(in super::super) fn write_with_mode(&self, name: &str, text: &str, mode: u32) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    pub(in super::super) fn managers(&self) -> KeyManagers {
        KeyManagers::new(Some(&self.path("keys.toml")), FixedKey::Refuse).unwrap()
    }

    pub(in super::super) fn source(&self, reference: &str) -> KeySource {
        self.managers().source(&reference.parse().unwrap()).unwrap()
    }
}
