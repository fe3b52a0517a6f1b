//! The suites that every key manager passes.

use std::rc::Rc;
use std::time::Duration;

use super::super::{KeystoreManager, Principal};
use super::profile::Host;
use super::*;
use crate::keys::conformance::{self, admin, watch};
use crate::keys::{KeyAdmin, KeyError, KeyManager, SECRET_BYTES_MAX};

const MISSING: &str = "6c1ff2ac-7c77-4d8c-8b65-a5d7d9f0a5f4";

/// One manager for the suite to ask and for the test to fill.
struct Shared(Rc<KeystoreManager>);

impl KeyManager for Shared {
    fn fetch(&self, id: &KeyId) -> Result<Secret, KeyError> {
        self.0.fetch(id)
    }
}

fn another() -> Principal {
    Principal::User(4_000_000_000)
}

fn stored(keystore: &KeystoreManager, bytes: &[u8]) -> Option<KeyId> {
    let secret = Secret::read_from(bytes).ok()?;
    let spec = KeySpec { name: None, bits: bytes.len() as u32 * 8, ..spec("") };
    Some(keystore.store(&spec, &secret).unwrap().id)
}

#[test]
fn fetches_as_every_manager_does() {
    conformance::run_all(|| {
        let host = Host::new();
        host.keystore().initialise().unwrap();
        let ours = Rc::new(host.keystore());
        let theirs = host.keystore().acting_as(another());
        let (for_putting, for_failing) = (Rc::clone(&ours), Rc::clone(&ours));
        conformance::Subject {
            manager: Box::new(Shared(ours)),
            name: "keystore".to_owned(),
            put: Box::new(move |bytes| stored(&for_putting, bytes)),
            missing: KeyId::new(MISSING),
            put_foreign: Some(Box::new(move |bytes| stored(&theirs, bytes).unwrap())),
            impossible: ["", "vm1", "/", "6c1ff2ac", "{6c1ff2ac}"].map(KeyId::new).into(),
            fail: Some(Box::new(move || {
                let id = stored(&for_failing, watch::KEY).unwrap();
                for_failing
                    .with(|keystore| Ok(keystore.lock().connection.busy_timeout(Duration::ZERO)?))
                    .unwrap();
                // Another process that writes, and never ends.
                let writer = Connection::open(host.path("keystore")).unwrap();
                writer.execute_batch("BEGIN IMMEDIATE").unwrap();
                std::mem::forget(writer);
                id
            })),
            is_lasting: true,
            bytes_max: SECRET_BYTES_MAX,
        }
    });
}

#[test]
fn administers_as_every_manager_does() {
    admin::run_all(|| {
        let host = Rc::new(Host::new());
        host.keystore().initialise().unwrap();
        let for_another = Rc::clone(&host);
        admin::Subject {
            open: Rc::new(move || -> Box<dyn KeyAdmin> { Box::new(host.keystore()) }),
            open_for_another: Some(Rc::new(move || Box::new(for_another.keystore().acting_as(another())))),
            missing: KeyId::new(MISSING),
            keeps_versions: true,
        }
    });
}
