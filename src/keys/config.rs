//! The key configuration file: how key managers are set up, in TOML.
//!
//! It holds no secret: what a manager needs to be let in is named by a reference of its own. It decides what is run and
//! trusted, so nobody but its owner may be able to change it.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

#[cfg(feature = "kmip")]
use super::kmip;
#[cfg(feature = "libvirt")]
use super::libvirt;
use super::owned_file::{self, Others, Refusal};
use super::reference::{self, KeyReference, ManagerName, ReferenceError};
use super::{command, fixed_key, keystore};

/// Where the key configuration file is unless an option says otherwise.
pub(super) const DEFAULT_CONFIG_PATH: &str = "/etc/sealblk/keys.toml";

/// Longest key configuration file.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// The profiles of every kind of key manager that has any: `[SCHEME.PROFILE]`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct KeyConfig {
    #[cfg(feature = "barbican")]
    pub(super) barbican: Profiles<super::barbican::Profile>,
    pub(super) command: Profiles<command::Profile>,
    pub(super) config: Profiles<fixed_key::Profile>,
    pub(super) keystore: Profiles<keystore::Profile>,
    #[cfg(feature = "kmip")]
    pub(super) kmip: Profiles<kmip::Profile>,
    #[cfg(feature = "libvirt")]
    pub(super) libvirt: Profiles<libvirt::Profile>,
    #[cfg(feature = "vault")]
    pub(super) vault: Profiles<super::vault::Profile>,
}

/// The tables of one kind of key manager.
pub type Profiles<P> = BTreeMap<ProfileName, P>;

/// What a profile is called: the last part of a table's name, as references write it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct ProfileName(String);

/// A path that means the same wherever the program is started.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "PathBuf")]
pub struct AbsolutePath(PathBuf);

/// Why the managers that references mean cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum KeyConfigError {
    /// There is no such file, or none that can be read.
    #[error("cannot read key configuration file {path}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// Somebody else could have written it.
    #[error("key configuration file {path} is not trusted: {problem}; {remedy}")]
    NotTrusted {
        /// The file.
        path: PathBuf,
        /// What speaks against it.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// It is no TOML, or holds what no manager knows.
    #[error("key configuration file {path}, line {line}: {message}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where in it, from 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// A reference to a profile that is not there.
    #[error("key manager {manager} is not set up: there is no {table} in {path} (see --key-config)")]
    NoProfile {
        /// The manager.
        manager: ManagerName,
        /// What is missing.
        table: String,
        /// Where.
        path: PathBuf,
    },
    /// Keys that need keys that need keys.
    #[error("key {key} leads through too many key managers, or in a circle")]
    TooDeep {
        /// Where following was given up.
        key: KeyReference,
    },
    /// Nothing but fetching is possible.
    #[error("key manager {manager} gives out keys, and does nothing else with them; these do: {others}")]
    FetchOnly {
        /// The manager.
        manager: ManagerName,
        /// Those that can do more.
        others: String,
    },
    /// What only a keystore can do, asked of something else.
    #[error("key manager {manager} is no keystore: name one as keystore@PROFILE")]
    NoKeystore {
        /// The manager.
        manager: ManagerName,
    },
    /// Something unsafe that was not asked for by name.
    #[error("{what}: pass --insecure {gate} if that is what you want")]
    Gated {
        /// What would happen.
        what: &'static str,
        /// The gate that opens it.
        gate: &'static str,
    },
}

impl KeyConfig {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// See [`KeyConfigError`].
    pub(super) fn read(path: &Path) -> Result<Self, KeyConfigError> {
        let unreadable = |source| KeyConfigError::Unreadable { path: path.to_owned(), source };
        let file = owned_file::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if let Err(Refusal { problem, remedy }) = owned_file::check(&metadata, path, Others::MayRead) {
            return Err(KeyConfigError::NotTrusted { path: path.to_owned(), problem, remedy });
        }
        let mut text = String::new();
        file.take(CONFIG_BYTES_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
        if text.len() as u64 > CONFIG_BYTES_MAX {
            return Err(unreadable(io::Error::new(ErrorKind::FileTooLarge, "longer than 1 MiB")));
        }
        Self::parse(&text, path)
    }

    /// Reads the file at `path`; nothing is set up where there is none.
    ///
    /// # Errors
    /// See [`KeyConfigError`].
    pub(super) fn read_if_there(path: &Path) -> Result<Self, KeyConfigError> {
        match Self::read(path) {
            Err(KeyConfigError::Unreadable { source, .. }) if source.kind() == ErrorKind::NotFound => {
                Ok(Self::default())
            }
            result => result,
        }
    }

    fn parse(text: &str, path: &Path) -> Result<Self, KeyConfigError> {
        toml::from_str(text).map_err(|error| KeyConfigError::Syntax {
            path: path.to_owned(),
            line: 1 + text[..error.span().map_or(0, |span| span.start)].matches('\n').count(),
            message: error.message().to_owned(),
        })
    }
}

impl Borrow<str> for ProfileName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ProfileName {
    type Error = ReferenceError;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        if reference::is_profile_name(&name) { Ok(Self(name)) } else { Err(ReferenceError::ProfileName) }
    }
}

impl AbsolutePath {
    /// The path itself.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl TryFrom<PathBuf> for AbsolutePath {
    type Error = &'static str;

    fn try_from(path: PathBuf) -> Result<Self, Self::Error> {
        if path.is_absolute() { Ok(Self(path)) } else { Err("a path here begins with `/`") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_answered_with_their_line() {
        for (text, line, complaint) in [
            ("[bank.prod]\n", 1, "bank"),
            ("\n[command.vm1]\nargv = ['/bin/true']\nargs = []\n", 4, "args"),
            ("[command.vm1]\nargv = ['true']\n", 2, "whole path"),
            ("[command.'vm 1']\nargv = ['/bin/true']\n", 1, "letters, digits"),
            ("[config.prod]\npath = 'nova.conf'\n", 2, "begins with `/`"),
            ("[config.prod]\n\n\nnonsense\n", 4, ""),
            ("[config.prod]\n", 1, "path"),
        ] {
            match KeyConfig::parse(text, Path::new("keys.toml")).unwrap_err() {
                KeyConfigError::Syntax { line: at, message, .. } => {
                    assert_eq!(at, line, "{text}: {message}");
                    assert!(message.contains(complaint), "{text}: {message}");
                }
                error => panic!("{error}"),
            }
        }
    }

    #[test]
    fn a_file_without_end_is_not_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "#".repeat(CONFIG_BYTES_MAX as usize + 1)).unwrap();
        assert!(matches!(KeyConfig::read(file.path()), Err(KeyConfigError::Unreadable { .. })));
    }
}
