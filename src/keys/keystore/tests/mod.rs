//! A keystore in a folder of its own, and what it promises.

mod conformance;
mod crash;
mod life;
mod profile;
mod recorder;
mod refusals;
mod secrecy;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use rusqlite::Connection;
use tempfile::TempDir;

use super::super::{KeyId, KeyKind, KeyMetadata, KeySpec, KeyState, Secret};
use super::operations::newest;
use super::place::Place;
use super::record::Record;
use super::{Keystore, KeystoreError};

/// A folder with a keystore in it.
struct Rig {
    folder: TempDir,
}

impl Rig {
    fn new() -> Self {
        let rig = Self { folder: fast_folder() };
        Keystore::initialise(&rig.path(), kek(1)).unwrap();
        rig
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("keystore")
    }

    fn open(&self) -> Keystore {
        self.try_open().unwrap()
    }

    fn try_open(&self) -> Result<Keystore, KeystoreError> {
        Keystore::open(&self.path(), vec![kek(1)])
    }

    /// The database behind the keystore's back.
    fn database(&self) -> Connection {
        Connection::open(self.path()).unwrap()
    }

    fn edit(&self, sql: &str) {
        self.database().execute_batch(sql).unwrap();
    }
}

/// A private folder in memory where there is one: thousands of syncs cost nothing there.
fn fast_folder() -> TempDir {
    let mut private = tempfile::Builder::new();
    private.permissions(Permissions::from_mode(0o700));
    private.tempdir_in("/dev/shm").or_else(|_| private.tempdir()).unwrap()
}

fn secret(bytes: &[u8]) -> Secret {
    Secret::read_from(bytes).unwrap()
}

fn kek(fill: u8) -> Secret {
    secret(&[fill; 32])
}

fn spec(name: &str) -> KeySpec {
    KeySpec { name: Some(name.to_owned()), kind: KeyKind::Symmetric, bits: 256, volume: None }
}

/// A reference to one version.
fn version(key: &KeyMetadata, version: u32) -> KeyId {
    key.id.clone().with_version(version)
}

/// Each key, and of each of its versions the number, the state and the bytes.
type Content = Vec<(KeyMetadata, Vec<(u32, KeyState, Option<Vec<u8>>)>)>;

/// What the keystore holds, read without leaving a trace in the audit log.
fn content(keystore: &Keystore) -> Content {
    keystore
        .read(|session| {
            let mut content = Vec::new();
            Record::each(session, |record| {
                let mut versions = Vec::new();
                for version in &record.versions {
                    let bytes = match version.state {
                        KeyState::Destroyed => None,
                        _ => Some(record.unwrap_key(session, version)?.expose().to_vec()),
                    };
                    versions.push((version.number, version.state, bytes));
                }
                content.push((newest(&record), versions));
                Ok(())
            })?;
            Ok(content)
        })
        .unwrap()
}
