//! `file:PATH`: key material in a file that nobody but its owner can read.

use std::fs::{File, Metadata, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use super::{KeyError, KeyId, KeyManager, KeyReference, Scheme, Secret};

/// Permission bits that let others than the owner at a file.
const OTHERS: u32 = 0o077;

/// Keys in files. Symbolic links are followed, as in `/run/keys/current`; what is checked is the file that
/// was opened, so the links cannot be changed in between.
#[derive(Debug)]
pub struct KeyFiles;

impl KeyManager for KeyFiles {
    fn fetch(&self, id: &KeyId) -> Result<Secret, KeyError> {
        let file = open(id)?;
        let metadata = file.metadata().map_err(|source| KeyError::Unreachable {
            key: reference(id),
            problem: "its owner and mode cannot be read".to_owned(),
            source,
        })?;
        check_privacy(id, &metadata)?;
        Secret::read_from(file).map_err(|error| KeyError::reading(reference(id), error))
    }
}

fn reference(id: &KeyId) -> KeyReference {
    KeyReference::new(Scheme::File, id)
}

fn open(id: &KeyId) -> Result<File, KeyError> {
    // Without O_NONBLOCK, a FIFO would make the open wait for a writer.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    OpenOptions::new().read(true).custom_flags(flags).open(id.as_str()).map_err(|source| {
        match source.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => KeyError::NotFound {
                key: reference(id),
                remedy: "there is no such file; create it with mode 0600 or correct --key".to_owned(),
            },
            ErrorKind::PermissionDenied => KeyError::NotAllowed {
                key: reference(id),
                problem: format!("user {} may not read it", rustix::process::geteuid().as_raw()),
                remedy: format!("give it to that user with `chown {} {}`", effective_user(), quoted(id)),
            },
            _ => KeyError::Unreachable {
                key: reference(id),
                problem: "it cannot be opened".to_owned(),
                source,
            },
        }
    })
}

fn check_privacy(id: &KeyId, metadata: &Metadata) -> Result<(), KeyError> {
    let refused =
        |problem: String, remedy: String| Err(KeyError::NotAllowed { key: reference(id), problem, remedy });
    if !metadata.is_file() {
        return refused(
            "it is not a regular file".to_owned(),
            "pass pipes and devices already opened, as `fd:N`".to_owned(),
        );
    }
    let mode = metadata.mode() & 0o7777;
    if mode & OTHERS != 0 {
        return refused(
            format!("mode {mode:04o} lets group or others at it"),
            format!("run `chmod 600 {}`, and change the key if anyone may have read it", quoted(id)),
        );
    }
    let owner = metadata.uid();
    if owner != 0 && owner != effective_user() {
        return refused(
            format!("it belongs to user {owner}, who can change it"),
            format!("run `chown {} {}`", effective_user(), quoted(id)),
        );
    }
    Ok(())
}

fn effective_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The path as a shell takes it.
fn quoted(id: &KeyId) -> String {
    let path = id.as_str();
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+,:@%".contains(&byte);
    if path.bytes().all(harmless) && !path.starts_with('-') {
        return path.to_owned();
    }
    let dashed = if path.starts_with('-') { "./" } else { "" };
    format!("'{dashed}{}'", path.replace('\'', r"'\''"))
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
        KeyId(path.to_str().unwrap().to_owned())
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
            assert!(error.to_string().contains(&format!("`chmod 600 {}`", id.as_str())), "{error}");
        }
    }

    #[test]
    fn a_link_is_followed_to_the_file_that_is_checked() {
        let folder = tempfile::tempdir().unwrap();
        let link = KeyId(folder.path().join("link").to_str().unwrap().to_owned());
        symlink(key_file(folder.path(), 0o600).as_str(), link.as_str()).unwrap();
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
            let error = KeyFiles.fetch(&KeyId(path.to_str().unwrap().to_owned())).unwrap_err();
            assert!(matches!(error, KeyError::NotAllowed { .. }), "{error}");
        }
    }

    #[test]
    fn missing_empty_and_overlong_files_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let missing = KeyId(folder.path().join("nothing").to_str().unwrap().to_owned());
        assert!(matches!(KeyFiles.fetch(&missing), Err(KeyError::NotFound { .. })));
        let below_a_file = KeyId(format!("{}/below", key_file(folder.path(), 0o600).as_str()));
        assert!(matches!(KeyFiles.fetch(&below_a_file), Err(KeyError::NotFound { .. })));
        let id = key_file(folder.path(), 0o600);
        for bytes in [0, super::super::SECRET_BYTES_MAX + 1] {
            fs::write(id.as_str(), vec![b'k'; bytes]).unwrap();
            assert!(matches!(KeyFiles.fetch(&id), Err(KeyError::Malformed { .. })));
        }
    }

    #[test]
    fn the_remedy_can_be_pasted_into_a_shell() {
        assert_eq!(quoted(&KeyId("/run/keys/vm-1".to_owned())), "/run/keys/vm-1");
        assert_eq!(quoted(&KeyId("a b'c".to_owned())), r"'a b'\''c'");
        assert_eq!(quoted(&KeyId("-rf".to_owned())), "'./-rf'");
    }
}
