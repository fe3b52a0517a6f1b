//! A keystore as the key configuration file sets it up, and through references.

use std::fs;
use std::path::Path;

use super::super::KeystoreManager;
use super::*;
use crate::keys::{FixedKey, KeyAdmin, KeyError, KeyManagers, KeyReference, Subject};

/// A key configuration file with one keystore, and the files of two KEKs.
pub(super) struct Host {
    folder: TempDir,
}

impl Host {
    pub(super) fn new() -> Self {
        let host = Self { folder: fast_folder() };
        host.write("kek1", &[1; 32]);
        host.write("kek2", &[2; 32]);
        host.configure("kek = \"file:{}/kek1\"");
        host
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, content: &[u8]) {
        fs::write(self.path(name), content).unwrap();
        fs::set_permissions(self.path(name), Permissions::from_mode(0o600)).unwrap();
    }

    fn configure(&self, keks: &str) {
        let folder = self.folder.path().to_str().unwrap();
        let keks = keks.replace("{}", folder);
        self.write(
            "keys.toml",
            format!("[keystore.default]\npath = \"{folder}/keystore\"\n{keks}\n").as_bytes(),
        );
    }

    fn managers(&self) -> KeyManagers {
        KeyManagers::new(Some(&self.path("keys.toml")), FixedKey::Refuse).unwrap()
    }

    pub(super) fn keystore(&self) -> KeystoreManager {
        self.managers().keystore(&"keystore".parse().unwrap()).unwrap()
    }

    fn fetch(&self, reference: &str) -> Result<Secret, KeyError> {
        self.managers().source(&reference.parse().unwrap()).unwrap().fetch()
    }
}

#[test]
fn keys_are_fetched_by_reference() {
    let host = Host::new();
    let keystore = host.keystore();
    let error = keystore.list().unwrap_err();
    assert!(matches!(error, KeyError::NotFound { .. }), "{error}");
    assert!(!host.path("keystore").exists(), "asking makes none");
    keystore.initialise().unwrap();
    let key = keystore.create(&spec("vm1")).unwrap();
    let first = host.fetch(&format!("keystore:{}", key.id)).unwrap();
    keystore.rotate(&key.id).unwrap();
    assert_eq!(host.fetch(&format!("keystore@default:{}#1", key.id)).unwrap().expose(), first.expose());
    assert_ne!(host.fetch(&format!("keystore:{}", key.id)).unwrap().expose(), first.expose());
    assert!(matches!(keystore.initialise(), Err(KeyError::NotAllowed { .. })));
    keystore.with(|keystore| keystore.verify(None)).unwrap();
}

#[test]
fn nothing_is_kept_by_who_only_fetches() {
    let host = Host::new();
    host.keystore().initialise().unwrap();
    let key = host.keystore().create(&spec("vm1")).unwrap();
    let managers = host.managers();
    let source = managers.source(&format!("keystore:{}", key.id).parse().unwrap()).unwrap();
    source.fetch().unwrap();
    assert!(!host.path("keystore-wal").exists(), "the file is closed");
    source.fetch().unwrap();
}

#[test]
fn the_kek_is_rotated_by_editing_the_profile() {
    let host = Host::new();
    host.keystore().initialise().unwrap();
    let key = host.keystore().create(&spec("vm1")).unwrap();
    let reference = format!("keystore:{}", key.id);
    let before = host.fetch(&reference).unwrap();

    host.configure("kek = \"file:{}/kek2\"\nkek-before = \"file:{}/kek1\"");
    assert_eq!(host.fetch(&reference).unwrap().expose(), before.expose(), "not rotated yet");
    assert_eq!(host.keystore().rotate_kek(|_| ()).unwrap().rewrapped_keys, 1);
    assert_eq!(host.keystore().rotate_kek(|_| ()).unwrap().rewrapped_keys, 0);
    host.configure("kek = \"file:{}/kek2\"");
    assert_eq!(host.fetch(&reference).unwrap().expose(), before.expose());
    host.configure("kek = \"file:{}/kek1\"");
    let error = host.fetch(&reference).unwrap_err();
    assert!(matches!(error, KeyError::NotAllowed { .. }), "{error}");
}

#[test]
fn errors_say_whether_it_is_the_key_or_the_keystore() {
    let host = Host::new();
    host.keystore().initialise().unwrap();
    let missing = "keystore:6c1ff2ac-7c77-4d8c-8b65-a5d7d9f0a5f4";
    let error = host.fetch(missing).unwrap_err();
    assert!(matches!(error, KeyError::NotFound { .. }), "{error}");
    assert_eq!(*error.subject(), Subject::Key(missing.parse::<KeyReference>().unwrap()));

    let whole_keystore = |error: &KeyError| matches!(error.subject(), Subject::Manager(_));
    let spoil = |what: &dyn Fn(&Path)| {
        let spoiled = Host::new();
        spoiled.keystore().initialise().unwrap();
        what(spoiled.folder.path());
        spoiled.fetch(missing).unwrap_err()
    };
    let error = spoil(&|folder| {
        fs::set_permissions(folder.join("keystore"), Permissions::from_mode(0o644)).unwrap();
    });
    assert!(whole_keystore(&error) && matches!(error, KeyError::NotAllowed { .. }), "{error}");
    let error = spoil(&|folder| fs::write(folder.join("keystore"), b"x").unwrap());
    assert!(whole_keystore(&error) && matches!(error, KeyError::Malformed { .. }), "{error}");
    let error = spoil(&|folder| {
        Connection::open(folder.join("keystore")).unwrap().execute_batch("PRAGMA user_version = 9").unwrap();
    });
    assert!(whole_keystore(&error) && matches!(error, KeyError::Malformed { .. }), "{error}");
    assert!(error.to_string().contains("newer release"), "{error}");
    let error = spoil(&|folder| fs::remove_file(folder.join("kek1")).unwrap());
    assert!(error.to_string().contains("kek1"), "{error}");
}

#[test]
fn a_profile_is_checked_when_it_is_read() {
    let host = Host::new();
    for wrong in ["kek = \"nonsense\"", "kek = \"file:/k\"\nkek_before = \"file:/k\"", ""] {
        host.configure(wrong);
        assert!(KeyManagers::new(Some(&host.path("keys.toml")), FixedKey::Refuse).is_err(), "{wrong}");
    }
    host.configure("kek = \"keystore:6c1ff2ac-7c77-4d8c-8b65-a5d7d9f0a5f4\"");
    assert!(host.managers().keystore(&"keystore".parse().unwrap()).is_err(), "a circle");
    assert!(host.managers().keystore(&"file".parse().unwrap()).is_err());
    assert!(host.managers().keystore(&"keystore@other".parse().unwrap()).is_err());
}
