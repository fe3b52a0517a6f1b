//! `credential:NAME`: a credential that the service manager passed to this process, as systemd's `LoadCredential=`,
//! `LoadCredentialEncrypted=` and their kin do.
//!
//! Such credentials are files in a folder of their own, in memory, named by `$CREDENTIALS_DIRECTORY`
//! (systemd.exec(5)). That folder is private to the service by systemd's doing, in part with access control lists, so
//! neither owner nor mode of the files say anything here.

use std::env;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::owned_file;
use super::reference::ManagerName;
use super::scheme::Scheme;
use super::{KeyError, KeyId, KeyManager, Secret};

pub(super) const SCHEME: Scheme = Scheme {
    name: "credential",
    usage: "credential:NAME",
    takes_profile: false,
    takes_version: false,
    open: |_| Ok(Box::new(Credentials::passed())),
    administer: None,
};

/// Longest name of a credential: a file is called so.
const NAME_BYTES_MAX: usize = 255;

/// The credentials of this service.
#[derive(Debug)]
pub struct Credentials {
    folder: Option<PathBuf>,
}

impl Credentials {
    /// Those that the service manager passed to this process, if any.
    pub fn passed() -> Self {
        Self { folder: env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from) }
    }

    /// Those in `folder`.
    pub fn in_folder(folder: &Path) -> Self {
        Self { folder: Some(folder.to_owned()) }
    }
}

impl KeyManager for Credentials {
    fn fetch(&self, id: &KeyId) -> Result<Secret, KeyError> {
        let key = || ManagerName::new(&SCHEME).key(id);
        let name = id.name();
        if name.contains('/') || name == "." || name == ".." || name.len() > NAME_BYTES_MAX {
            return Err(KeyError::malformed(
                key(),
                "that is no name of a credential",
                format!("name it as the unit does, without `/` and in at most {NAME_BYTES_MAX} bytes"),
            ));
        }
        let Some(folder) = self.folder.as_deref().filter(|folder| folder.is_absolute()) else {
            let remedy = "no credentials were passed to this process ($CREDENTIALS_DIRECTORY): set \
                          LoadCredential= or LoadCredentialEncrypted= in its systemd unit";
            return Err(KeyError::not_found(key(), remedy));
        };
        let file = owned_file::open(&folder.join(name)).map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => {
                KeyError::not_found(key(), "no credential of that name was passed to this service")
            }
            ErrorKind::PermissionDenied => KeyError::not_allowed(
                key(),
                "this user may not read it",
                "run as the user of the service that it was passed to",
            ),
            _ => KeyError::unreachable_because(key(), "it cannot be opened", error),
        })?;
        Secret::read_from(file).map_err(|error| KeyError::of_secret(key(), error))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn fetch(folder: &Path, name: &str) -> Result<Secret, KeyError> {
        Credentials::in_folder(folder).fetch(&KeyId::new(name))
    }

    #[test]
    fn a_credential_is_read_whatever_its_mode_is() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("vm1"), b"key of vm1").unwrap();
        assert_eq!(fetch(folder.path(), "vm1").unwrap().expose(), b"key of vm1");
    }

    #[test]
    fn a_name_does_not_lead_out_of_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).unwrap();
        fs::write(folder.path().join("vm1"), b"key of vm1").unwrap();
        let long = "x".repeat(256);
        for name in ["../vm1", "/etc/passwd", "..", ".", "a/b", &long] {
            assert!(matches!(fetch(&inner, name), Err(KeyError::Malformed { .. })), "{name}");
        }
    }

    #[test]
    fn a_process_without_credentials_is_told_how_to_get_some() {
        for folder in [None, Some(PathBuf::new()), Some(PathBuf::from("relative"))] {
            let error = Credentials { folder }.fetch(&KeyId::new("vm1")).unwrap_err();
            assert!(matches!(error, KeyError::NotFound { .. }), "{error}");
            assert!(error.to_string().contains("LoadCredential="), "{error}");
        }
    }
}
