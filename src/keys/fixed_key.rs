//! `config@PROFILE:ID`: the fixed key of an OpenStack service that keeps its keys in its configuration file.
//!
//! Nova and Cinder can be run without a key manager, for tests: every volume of every project is then encrypted with
//! `fixed_key` of `[key_manager]`, hexadecimal text, and the key is called
//! `00000000-0000-0000-0000-000000000000`. Volumes made that way can be opened with the same file here. One key for all, in
//! a file that many can read, is no protection: the operator has to ask for it by name.

use std::io::{ErrorKind, Read};
use std::path::Path;

use serde::Deserialize;

use super::config::AbsolutePath;
use super::encoding::DecodeError;
use super::reference::ManagerName;
use super::scheme::Scheme;
use super::{
    Encoding, FixedKey, KeyConfigError, KeyError, KeyId, KeyManager, Secret, SecretError, owned_file,
};
use crate::locked::Locked;

pub(super) const SCHEME: Scheme = Scheme {
    name: "config",
    usage: "config[@PROFILE]:ID",
    takes_profile: true,
    takes_version: false,
    open: |opening| match opening.fixed_key() {
        FixedKey::Refuse => {
            Err(KeyConfigError::Gated { what: "a fixed key is the same for every volume", gate: "fixed-key" })
        }
        FixedKey::Accept => {
            let profile = opening.profile(|config| &config.config)?;
            Ok(Box::new(ServiceConfig { name: opening.name(), path: profile.path.clone() }))
        }
    },
    administer: None,
};

/// What the one key is called.
pub const FIXED_KEY_ID: &str = "00000000-0000-0000-0000-000000000000";

/// Longest configuration file: room for a complete sample with all its comments.
const FILE_BYTES_MAX: usize = 512 << 10;

/// A table `[config.PROFILE]` of the key configuration file.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Profile {
    /// The service's configuration file, such as `/etc/nova/nova.conf`.
    path: AbsolutePath,
}

/// The configuration file of Nova or Cinder.
#[derive(Debug)]
pub struct ServiceConfig {
    name: ManagerName,
    path: AbsolutePath,
}

impl ServiceConfig {
    /// The one at `path`, without a key configuration file.
    #[cfg(test)]
    pub(super) fn for_tests(path: &Path) -> Self {
        let path = AbsolutePath::try_from(path.to_owned()).expect("paths of temporary files are absolute");
        Self { name: ManagerName::new(&SCHEME), path }
    }
}

impl KeyManager for ServiceConfig {
    fn fetch(&self, id: &KeyId) -> Result<Secret, KeyError> {
        let key = || self.name.key(id);
        if id.name() != FIXED_KEY_ID {
            return Err(KeyError::not_found(key(), format!("the only key here is {FIXED_KEY_ID}")));
        }
        let path = self.path.as_path().display();
        let text = read(self.path.as_path()).map_err(|error| match error {
            SecretError::Read(error) if error.kind() == ErrorKind::NotFound => {
                KeyError::not_found(key(), format!("there is no file {path}"))
            }
            SecretError::Read(error) if error.kind() == ErrorKind::PermissionDenied => KeyError::not_allowed(
                key(),
                format!("this user may not read {path}"),
                "run as a user who may",
            ),
            error => KeyError::of_secret(key(), error),
        })?;
        let Some(digits) = fixed_key(&text.bytes[..text.filled_bytes]) else {
            return Err(KeyError::not_found(
                key(),
                format!("there is no fixed_key in [key_manager] of {path}"),
            ));
        };
        let digits = Secret::read_from(digits).map_err(|error| KeyError::of_secret(key(), error))?;
        Encoding::Hex.decode(digits).map_err(|error| match error {
            DecodeError::Secret(error) => KeyError::of_secret(key(), error),
            DecodeError::NotText(_) => KeyError::malformed(
                key(),
                format!("fixed_key in [key_manager] of {path} is no hexadecimal text"),
                "correct it there",
            ),
        })
    }
}

/// A whole configuration file, in memory that is as safe as a key's, since it holds one.
struct Text {
    bytes: [u8; FILE_BYTES_MAX + 1],
    filled_bytes: usize,
}

impl Default for Text {
    fn default() -> Self {
        Self { bytes: [0; FILE_BYTES_MAX + 1], filled_bytes: 0 }
    }
}

fn read(path: &Path) -> Result<Locked<Text>, SecretError> {
    let mut file = owned_file::open(path).map_err(SecretError::Read)?;
    Locked::new_with(|text: &mut Text| {
        loop {
            match file.read(&mut text.bytes[text.filled_bytes..]) {
                Ok(0) if text.filled_bytes == text.bytes.len() => {
                    return Err(SecretError::Read(ErrorKind::FileTooLarge.into()));
                }
                Ok(0) => return Ok(()),
                Ok(read_bytes) => text.filled_bytes += read_bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(SecretError::Read(error)),
            }
        }
    })
}

/// The value of `fixed_key` in `[key_manager]`, read as oslo.config does: the last one counts, and quotes around it do not.
/// (A library for such files would leave copies of the key behind, neither locked nor wiped.)
fn fixed_key(text: &[u8]) -> Option<&[u8]> {
    let mut in_section = false;
    let mut value = None;
    for line in text.split(|byte| *byte == b'\n') {
        // A line that begins with white space continues a value: never ours, which has no second line.
        if line.first().is_none_or(u8::is_ascii_whitespace) {
            continue;
        }
        let line = line.trim_ascii();
        if let [b'[', section @ .., b']'] = line {
            in_section = section.trim_ascii() == b"key_manager";
        } else if let Some(at) = line.iter().position(|byte| matches!(byte, b'=' | b':'))
            && in_section
            && line[..at].trim_ascii() == b"fixed_key"
        {
            value = Some(unquoted(line[at + 1..].trim_ascii()));
        }
    }
    value
}

fn unquoted(value: &[u8]) -> &[u8] {
    match value {
        [b'"', inner @ .., b'"'] | [b'\'', inner @ .., b'\''] => inner,
        _ => value,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn fetch(text: impl AsRef<[u8]>) -> Result<Secret, KeyError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nova.conf");
        fs::write(&path, text).unwrap();
        fetch_from(&path, FIXED_KEY_ID)
    }

    fn fetch_from(path: &Path, id: &str) -> Result<Secret, KeyError> {
        ServiceConfig::for_tests(path).fetch(&KeyId::new(id))
    }

    #[test]
    fn the_key_is_found_as_the_service_finds_it() {
        for text in [
            "[key_manager]\nfixed_key = 00ff\n",
            "[DEFAULT]\nfixed_key = 11\n[key_manager]\nbackend = x\nfixed_key=00FF",
            "[key_manager]\r\nfixed_key: 00ff\r\n[other]\nfixed_key = 11",
            "[key_manager]\n# fixed_key = 11\n;fixed_key = 11\nfixed_key = '00ff'",
            "[key_manager]\nfixed_key = 11\nfixed_key = \"00ff\"\n  more\nfixed_key_id = 11",
            "[other]\nfixed_key = 11\n[ key_manager ]\nfixed_key = 00ff\n",
        ] {
            assert_eq!(fetch(text).unwrap().expose(), [0, 255], "{text}");
        }
    }

    #[test]
    fn a_file_without_the_key_and_one_with_something_else_are_told_apart() {
        for text in ["", "[key_manager]\n", "fixed_key = 00ff\n"] {
            assert!(matches!(fetch(text), Err(KeyError::NotFound { .. })), "{text}");
        }
        for value in ["s3cret", "00f", "\u{fc}", "00ff # not a comment here"] {
            let error = fetch(format!("[key_manager]\nfixed_key = {value}")).unwrap_err();
            assert!(matches!(error, KeyError::Malformed { .. }), "{error}");
            assert!(!format!("{error} {error:?}").contains(value), "{error}");
        }
        let large = [b"[key_manager]\nfixed_key = 00ff\n".as_slice(), &[b'#'; FILE_BYTES_MAX]].concat();
        assert!(fetch(large).is_err());
    }

    #[test]
    fn there_is_one_key_and_it_has_one_name() {
        let error = fetch_from(Path::new("/nonexistent"), "vm1").unwrap_err();
        assert!(error.to_string().contains(FIXED_KEY_ID), "{error}");
        let error = fetch_from(Path::new("/nonexistent"), FIXED_KEY_ID).unwrap_err();
        assert!(matches!(error, KeyError::NotFound { .. }), "{error}");
        assert!(error.to_string().contains("/nonexistent"), "{error}");
    }
}
