//! The managers that need nothing but this host, each through the suite.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use linux_keyutils::{KeyPermissions, KeyRing, KeyRingIdentifier};
use rustix::fs::{MemfdFlags, memfd_create};
use tempfile::TempDir;

use super::{Subject, run_all};
use crate::inherited;
use crate::keys::command::KeyCommands;
use crate::keys::credential::Credentials;
use crate::keys::fd::KeyDescriptors;
use crate::keys::file::KeyFiles;
use crate::keys::fixed_key::{FIXED_KEY_ID, ServiceConfig};
use crate::keys::keyring::Keyrings;
use crate::keys::{KeyId, SECRET_BYTES_MAX};

/// A file of ours that can be opened, and whose first byte cannot be read: nothing is mapped there.
const FAILING_FILE: &str = "/proc/self/mem";

/// A folder that lives as long as the closures that were given it.
fn folder() -> Rc<TempDir> {
    Rc::new(tempfile::tempdir().unwrap())
}

fn write_private(path: &Path, bytes: &[u8]) {
    let _ = fs::remove_file(path);
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).unwrap().write_all(bytes).unwrap();
}

fn id(path: PathBuf) -> KeyId {
    KeyId::new(path.to_str().unwrap())
}

#[test]
fn files() {
    run_all(|| {
        let folder = folder();
        let path = folder.path().join("key");
        let (missing, below) = (folder.path().join("missing"), path.join("below"));
        Subject {
            manager: Box::new(KeyFiles),
            name: "file".to_owned(),
            put: Box::new(move |bytes| {
                let path = folder.path().join("key");
                write_private(&path, bytes);
                Some(id(path))
            }),
            missing: id(missing),
            // Who may read a file is for its owner to say, and this user is told of it.
            put_foreign: None,
            impossible: [id(below), id(path.join("x".repeat(300))), KeyId::new("/"), KeyId::new("a\0b")]
                .into(),
            fail: Some(Box::new(|| KeyId::new(FAILING_FILE))),
            is_lasting: true,
            bytes_max: SECRET_BYTES_MAX,
        }
    });
}

#[test]
fn descriptors() {
    run_all(|| Subject {
        manager: Box::new(KeyDescriptors),
        name: "fd".to_owned(),
        put: Box::new(|bytes| {
            let mut file = File::from(memfd_create("key", MemfdFlags::CLOEXEC).unwrap());
            file.write_all(bytes).unwrap();
            std::io::Seek::rewind(&mut file).unwrap();
            Some(KeyId::new(inherited::hand_over(file.into()).to_string()))
        }),
        missing: KeyId::new("1000000"),
        put_foreign: None,
        impossible: ["0", "2", "-1", "three", "", "99999999999999999999"].map(KeyId::new).into(),
        // It is read once, so there is nothing to try again.
        fail: None,
        is_lasting: false,
        bytes_max: SECRET_BYTES_MAX,
    });
}

#[test]
fn commands() {
    run_all(|| {
        let folder = folder();
        let path = folder.path().join("key");
        let table = |name: &str, script: &str| format!("[{name}]\nargv = ['/bin/sh', '-c', \"{script}\"]\n");
        // A careless one: it prints the key and fails, and says it on its standard error too.
        let failing = format!("cat '{0}'; cat '{0}' >&2; exit 1", path.display());
        let tables = table("vm1", &format!("cat '{}'", path.display())) + &table("failing", &failing);
        let for_failing = Rc::clone(&folder);
        Subject {
            manager: Box::new(KeyCommands::new(toml::from_str(&tables).unwrap())),
            name: "command".to_owned(),
            put: Box::new(move |bytes| {
                write_private(&folder.path().join("key"), bytes);
                Some(KeyId::new("vm1"))
            }),
            missing: KeyId::new("vm2"),
            put_foreign: None,
            impossible: ["", "/bin/true", "vm1 "].map(KeyId::new).into(),
            fail: Some(Box::new(move || {
                write_private(&for_failing.path().join("key"), super::watch::KEY);
                KeyId::new("failing")
            })),
            is_lasting: true,
            bytes_max: SECRET_BYTES_MAX,
        }
    });
}

#[test]
fn credentials() {
    run_all(|| {
        let folder = folder();
        symlink(FAILING_FILE, folder.path().join("failing")).unwrap();
        Subject {
            manager: Box::new(Credentials::in_folder(folder.path())),
            name: "credential".to_owned(),
            put: Box::new(move |bytes| {
                write_private(&folder.path().join("vm1"), bytes);
                Some(KeyId::new("vm1"))
            }),
            missing: KeyId::new("vm2"),
            put_foreign: None,
            impossible: ["..", "../vm1", "vm1/", "/etc/passwd"].map(KeyId::new).into(),
            fail: Some(Box::new(|| KeyId::new("failing"))),
            is_lasting: true,
            bytes_max: SECRET_BYTES_MAX,
        }
    });
}

#[test]
fn keyrings() {
    let ring = || KeyRing::from_special_id(KeyRingIdentifier::Thread, true).unwrap();
    run_all(|| Subject {
        manager: Box::new(Keyrings::of_this_thread()),
        name: "keyring".to_owned(),
        put: Box::new(move |bytes| ring().add_key("vm1", bytes).ok().map(|_| KeyId::new("vm1"))),
        missing: KeyId::new("vm2"),
        put_foreign: Some(Box::new(move |bytes| {
            // All but reading and searching, which includes reading.
            let key = ring().add_key("foreign", bytes).unwrap();
            key.set_perms(KeyPermissions::from_u32(0x3500_0000)).unwrap();
            KeyId::new("foreign")
        })),
        impossible: vec![KeyId::new(""), KeyId::new("x".repeat(5000)), KeyId::new("a\0b")],
        // The kernel does not go away.
        fail: None,
        is_lasting: true,
        bytes_max: SECRET_BYTES_MAX,
    });
}

#[test]
fn fixed_keys() {
    run_all(|| {
        let folder = folder();
        let path = folder.path().join("nova.conf");
        fs::write(&path, "[key_manager]\n").unwrap();
        let for_failing = path.clone();
        Subject {
            manager: Box::new(ServiceConfig::for_tests(&path)),
            name: "config".to_owned(),
            put: Box::new(move |bytes| {
                let digits = base16ct::lower::encode_string(bytes);
                let text = format!("[DEFAULT]\n[key_manager]\nfixed_key = {digits}\n");
                fs::write(folder.path().join("nova.conf"), text).unwrap();
                Some(KeyId::new(FIXED_KEY_ID))
            }),
            missing: KeyId::new("11111111-1111-1111-1111-111111111111"),
            put_foreign: None,
            impossible: [KeyId::new("vm1"), KeyId::new("")].into(),
            fail: Some(Box::new(move || {
                let _ = fs::remove_file(&for_failing);
                symlink(FAILING_FILE, &for_failing).unwrap();
                KeyId::new(FIXED_KEY_ID)
            })),
            is_lasting: true,
            // As text it has twice as many.
            bytes_max: SECRET_BYTES_MAX / 2,
        }
    });
}
