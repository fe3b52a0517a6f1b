//! `kmip:` against PyKMIP.

use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

use sealblk::keys::conformance::{self, admin, watch};
use sealblk::keys::{
    FixedKey, KeyAdmin, KeyError, KeyId, KeyKind, KeyManagers, KeySpec, SECRET_BYTES_MAX, Secret,
};

use crate::pki::{Pki, Wish};
use crate::server::{Server, free_port, program};

/// PyKMIP with a folder of certificates. Objects belong to whom the client's certificate names.
pub struct Kmip {
    pub pki: Pki,
    pub server: Server,
    clients: AtomicU32,
}

impl Kmip {
    pub fn start() -> Self {
        let pki = Pki::new();
        pki.issue("server", &Wish::server());
        let port = free_port();
        let folder = pki.folder().display();
        let config = format!(
            "[server]\nhostname=127.0.0.1\nport={port}\ncertificate_path={folder}/server.pem\n\
             key_path={folder}/server.key\nca_path={folder}/ca.pem\nauth_suite=TLS1.2\n\
             policy_path={folder}/policy\nenable_tls_client_auth=True\ntls_cipher_suites=\n\
             \x20   TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384\nlogging_level=INFO\n\
             database_path={folder}/pykmip.db\n"
        );
        pki.write("server.conf", &config, 0o644);
        std::fs::create_dir(pki.path("policy")).unwrap();
        let mut command = Command::new(program("kmip", "pykmip-server"));
        command.arg("-f").arg(pki.path("server.conf")).arg("-l").arg(pki.path("server.log"));
        let server = Server::start(&mut command, port, &pki.path("output.log"));
        Self { pki, server, clients: AtomicU32::new(0) }
    }

    /// A key configuration file of a client whom the server has not seen before.
    pub fn new_client(&self) -> PathBuf {
        let name = format!("client-{}", self.clients.fetch_add(1, Ordering::Relaxed));
        self.pki.issue(&name, &Wish::client());
        self.client(&name, &[self.server.address.to_string()])
    }

    /// The key configuration file of the client `name`, whose servers are `servers`.
    pub fn client(&self, name: &str, servers: &[String]) -> PathBuf {
        let folder = self.pki.folder().display();
        let config = format!(
            "[kmip.default]\nservers = {servers:?}\ntimeout-seconds = 60\n\
             tls = {{ ca = '{folder}/ca.pem', client-certificate = '{folder}/{name}.pem', \
             client-key = '{folder}/{name}.key' }}\n"
        );
        let file = format!("{name}.toml");
        self.pki.write(&file, &config, 0o600);
        self.pki.path(&file)
    }
}

/// The manager that the key configuration file at `path` sets up.
pub fn admin_of(path: &std::path::Path, name: &str) -> Box<dyn KeyAdmin> {
    let managers = KeyManagers::new(Some(path), FixedKey::Refuse).unwrap();
    managers.admin(&name.parse().unwrap()).unwrap()
}

fn kmip(path: &std::path::Path) -> Box<dyn KeyAdmin> {
    admin_of(path, "kmip")
}

fn spec(name: Option<&str>, bits: u32) -> KeySpec {
    KeySpec { name: name.map(str::to_owned), kind: KeyKind::Symmetric, bits, volume: None }
}

fn stored(admin: &dyn KeyAdmin, bytes: &[u8]) -> Option<KeyId> {
    let secret = Secret::read_from(bytes).ok()?;
    Some(admin.store(&spec(None, bytes.len() as u32 * 8), &secret).unwrap().id)
}

#[test]
fn fetches_as_every_manager_does() {
    let server = Rc::new(Kmip::start());
    conformance::run_all(|| {
        let (ours, theirs) = (server.new_client(), server.new_client());
        let (for_putting, for_failing) = (kmip(&ours), kmip(&ours));
        let server = Rc::clone(&server);
        conformance::Subject {
            manager: Box::new(Fetching(kmip(&ours))),
            name: "kmip".to_owned(),
            put: Box::new(move |bytes| stored(&*for_putting, bytes)),
            missing: KeyId::new("4294967295"),
            put_foreign: Some(Box::new(move |bytes| stored(&*kmip(&theirs), bytes).unwrap())),
            impossible: ["", "sealblk-", "/", "{1}", "1 or 1=1"].map(KeyId::new).into(),
            // The last that is asked of it.
            fail: Some(Box::new(move || {
                let id = stored(&*for_failing, watch::KEY).unwrap();
                server.server.stop();
                id
            })),
            is_lasting: true,
            bytes_max: SECRET_BYTES_MAX,
        }
    });
}

/// A tools' manager as one that only fetches.
struct Fetching(Box<dyn KeyAdmin>);

impl sealblk::keys::KeyManager for Fetching {
    fn fetch(&self, id: &KeyId) -> Result<Secret, KeyError> {
        self.0.fetch(id)
    }
}

#[test]
fn administers_as_every_manager_does() {
    let server = Kmip::start();
    admin::run_all(|| {
        let (ours, theirs) = (server.new_client(), server.new_client());
        admin::Subject {
            open: Rc::new(move || kmip(&ours)),
            open_for_another: Some(Rc::new(move || kmip(&theirs))),
            missing: KeyId::new("sealblk-6c1ff2ac-7c77-4d8c-8b65-a5d7d9f0a5f4"),
        }
    });
}

/// Another server is asked when one cannot be reached, and only then.
#[test]
fn another_server_is_asked_when_one_cannot_be_reached() {
    let server = Kmip::start();
    server.pki.issue("alice", &Wish::client());
    let dead = format!("127.0.0.1:{}", free_port());
    let alive = server.server.address.to_string();
    let id = stored(&*kmip(&server.client("alice", &[dead.clone(), alive])), watch::KEY).unwrap();
    let error = kmip(&server.client("alice", &[dead.clone(), dead.clone()])).fetch(&id).unwrap_err();
    assert!(matches!(error, KeyError::Unreachable { .. }), "{error}");
    assert_eq!(error.to_string().matches(&format!("connecting to {dead} failed")).count(), 2, "{error}");
    watch::assert_hidden_in_error(&error);
}
