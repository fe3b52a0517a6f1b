//! `file:PATH`: key material in a file that nobody but its owner can read.

use std::io::{self, ErrorKind};
use std::path::Path;

use super::owned_file::{self, Others, effective_user, quoted};
use super::reference::ManagerName;
use super::scheme::Scheme;
use super::{KeyError, KeyId, KeyManager, Secret};

pub(super) const SCHEME: Scheme = Scheme {
    name: "file",
    usage: "file:PATH",
    takes_profile: false,
    takes_version: false,
    open: |_| Ok(Box::new(KeyFiles)),
    administer: None,
};

/// Keys in files. Symbolic links are followed, as in `/run/keys/current`; what is checked is the file that
/// was opened, so the links cannot be changed in between.
#[derive(Debug)]
pub struct KeyFiles;

impl KeyManager for KeyFiles {
    fn fetch(&self, id: &KeyId) -> Result<Secret, KeyError> {
        let key = || ManagerName::new(&SCHEME).key(id);
        let path = Path::new(id.name());
        let file = owned_file::open(path).map_err(|error| refusal_to_open(id, error))?;
        let metadata = file.metadata().map_err(|error| {
            KeyError::unreachable_because(key(), "its owner and mode cannot be read", error)
        })?;
        if !metadata.is_file() {
            let remedy = "pass pipes and devices already opened, as `fd:N`";
            return Err(KeyError::not_allowed(key(), "it is not a regular file", remedy));
        }
        owned_file::check(&metadata, path, Others::MayNothing)
            .map_err(|refusal| KeyError::not_allowed(key(), refusal.problem, refusal.remedy))?;
        Secret::read_from(file).map_err(|error| KeyError::of_secret(key(), error))
    }
}

/// What it means that the file of a key cannot be opened. Storage that is away may come back; a path that leads nowhere
/// will not.
fn refusal_to_open(id: &KeyId, error: io::Error) -> KeyError {
    let key = ManagerName::new(&SCHEME).key(id);
    match error.kind() {
        _ if matches!(error.raw_os_error(), None | Some(libc::ELOOP | libc::ENAMETOOLONG)) => {
            KeyError::malformed(key, format!("the path leads nowhere ({error})"), "correct --key")
        }
        ErrorKind::NotFound | ErrorKind::NotADirectory => {
            KeyError::not_found(key, "there is no such file; create it with mode 0600 or correct --key")
        }
        ErrorKind::PermissionDenied => KeyError::not_allowed(
            key,
            format!("user {} may not read it", effective_user()),
            format!(
                "give it to that user with `chown {} {}`",
                effective_user(),
                quoted(Path::new(id.name()))
            ),
        ),
        _ => KeyError::unreachable_because(key, "it cannot be opened", error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    use super::*;

    fn key_file(folder: &Path, mode: u32) -> KeyId {
        let path = folder.join("key");
        fs::write(&path, b"0123456789abcdef0123456789ABCDEF").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        KeyId::new(path.to_str().unwrap())
    }

    #[test]
    fn a_private_file_is_read_whole() {
        let folder = tempfile::tempdir().unwrap();
        for mode in [0o600, 0o400] {
            let secret = KeyFiles.fetch(&key_file(folder.path(), mode)).unwrap();
            assert_eq!(secret.expose(), b"0123456789abcdef0123456789ABCDEF");
            fs::remove_file(folder.path().join("key")).unwrap();
        }
    }

    #[test]
    fn any_permission_for_group_or_others_is_refused() {
        for bit in 0..6 {
            let folder = tempfile::tempdir().unwrap();
            let id = key_file(folder.path(), 0o600 | 1 << bit);
            let error = KeyFiles.fetch(&id).unwrap_err();
            assert!(matches!(error, KeyError::NotAllowed { .. }), "{error}");
            assert!(error.to_string().contains(&format!("`chmod 600 {}`", id.name())), "{error}");
        }
    }

    #[test]
    fn a_link_is_followed_to_the_file_that_is_checked() {
        let folder = tempfile::tempdir().unwrap();
        let link = KeyId::new(folder.path().join("link").to_str().unwrap());
        symlink(key_file(folder.path(), 0o600).name(), link.name()).unwrap();
        assert_eq!(KeyFiles.fetch(&link).unwrap().expose().len(), 32);
        fs::set_permissions(folder.path().join("key"), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(KeyFiles.fetch(&link), Err(KeyError::NotAllowed { .. })));
    }

    #[test]
    fn what_is_no_regular_file_is_refused_without_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        for path in [fifo.as_path(), folder.path(), Path::new("/dev/zero")] {
            let error = KeyFiles.fetch(&KeyId::new(path.to_str().unwrap())).unwrap_err();
            assert!(matches!(error, KeyError::NotAllowed { .. }), "{error}");
        }
    }

    #[test]
    fn missing_empty_and_overlong_files_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let missing = KeyId::new(folder.path().join("nothing").to_str().unwrap());
        assert!(matches!(KeyFiles.fetch(&missing), Err(KeyError::NotFound { .. })));
        let below_a_file = KeyId::new(format!("{}/below", key_file(folder.path(), 0o600).name()));
        assert!(matches!(KeyFiles.fetch(&below_a_file), Err(KeyError::NotFound { .. })));
        let id = key_file(folder.path(), 0o600);
        for bytes in [0, super::super::SECRET_BYTES_MAX + 1] {
            fs::write(id.name(), vec![b'k'; bytes]).unwrap();
            assert!(matches!(KeyFiles.fetch(&id), Err(KeyError::Malformed { .. })));
        }
    }
}
