//! `kmip:` against PyKMIP.

use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

use sealblk::keys::conformance::{self, admin, watch};
use sealblk::keys::{
    FixedKey, KeyAdmin, KeyError, KeyId, KeyKind, KeyManagers, KeySpec, KeyState, SECRET_BYTES_MAX, Secret,
};

use crate::pki::{Pki, Wish};
use crate::server::{Server, free_port, program};

/// PyKMIP with a folder of certificates. Objects belong to whom the client's certificate names.
pub struct Kmip {
    pub pki: Pki,
    pub server: Server,
    clients: AtomicU32,
}

/// A policy under which others may look at a key, and not have it.
const SHOWN_TO_ALL: &str = r#"{"shown to all": {"preset": {"SYMMETRIC_KEY": {
    "GET": "ALLOW_OWNER", "GET_ATTRIBUTES": "ALLOW_ALL", "LOCATE": "ALLOW_ALL", "ACTIVATE": "ALLOW_OWNER"
}}}}"#;

impl Kmip {
    pub fn start() -> Self {
        Self::run(Command::new(program("kmip", "pykmip-server")))
    }

    /// The same, with the rules of stricter servers.
    pub fn start_strict() -> Self {
        let mut command = Command::new(program("kmip", "python"));
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/key_servers/python/strict_kmip.py"));
        Self::run(command)
    }

    fn run(mut command: Command) -> Self {
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
        pki.write("policy/policy.json", SHOWN_TO_ALL, 0o644);
        command.env("TRAP", pki.path("trap"));
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

    /// Lets PyKMIP's own client run `script` as the first client. What it prints are identifiers.
    pub fn with_another_program(&self, script: &str) -> Vec<KeyId> {
        let (folder, port) = (self.pki.folder().display(), self.server.address.port());
        let script = format!(
            "from kmip.pie.client import ProxyKmipClient\nfrom kmip.core import enums\n\
             from kmip.pie import objects as o\nA = enums.CryptographicAlgorithm\n\
             client = ProxyKmipClient(hostname='127.0.0.1', port={port}, cert='{folder}/client-0.pem', \
             key='{folder}/client-0.key', ca='{folder}/ca.pem', ssl_version='PROTOCOL_TLSv1_2')\n\
             client.open()\n{script}\n"
        );
        let ended = Command::new(program("kmip", "python")).args(["-c", &script]).output().unwrap();
        // The last line of a traceback says what happened.
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success(), "{}\n{said}", said.lines().last().unwrap_or_default());
        String::from_utf8(ended.stdout).unwrap().split_whitespace().map(KeyId::new).collect()
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
            keeps_versions: true,
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

/// Servers that follow the letter: two keys of 256 bits are the halves of one for XTS, and only active keys are given out.
#[test]
fn a_strict_server_does_as_well() {
    let server = Kmip::start_strict();
    let ours = server.new_client();
    let admin = kmip(&ours);
    let made = admin.create(&spec(Some("vm1"), 512)).unwrap();
    assert_eq!((made.bits, made.version), (512, 1));
    let first = admin.fetch(&made.id).unwrap().expose().to_vec();
    assert!(first.len() == 64 && first[..32] != first[32..]);
    let key = Secret::read_from(&watch::KEY[..]).unwrap();
    let stored = admin.store(&spec(Some("vm2"), 512), &key).unwrap();
    assert!(admin.fetch(&stored.id).unwrap().expose() == watch::KEY, "the halves are in order");
    assert_eq!(admin.list().unwrap(), [made.clone(), stored.clone()]);

    // A plain reference means the new version, and the one before is still given out.
    assert_eq!(admin.rotate(&made.id).unwrap().version, 2);
    assert!(admin.fetch(&made.id.clone().with_version(1)).unwrap().expose() == first);
    assert!(admin.fetch(&made.id).unwrap().expose() != first);
    admin.destroy(&stored.id).unwrap();
    assert!(matches!(admin.fetch(&stored.id), Err(KeyError::NotFound { .. })));
    assert_eq!(admin.list().unwrap().len(), 1);
}

/// Objects of other programs are fetched by the server's identifiers, in the state in which they are.
#[test]
fn objects_of_other_programs_are_keys_as_well() {
    let server = Kmip::start_strict();
    let ours = server.new_client();
    let identifiers = server.with_another_program(
        "active = client.create(A.AES, 256, name='volume 7')\n\
         client.activate(active)\n\
         secret = client.register(o.SecretData(b'correct horse', enums.SecretDataType.PASSWORD))\n\
         client.activate(secret)\n\
         opaque = client.register(o.OpaqueObject(b'#' * 64, enums.OpaqueDataType.NONE))\n\
         pre_active = client.create(A.AES, 256)\n\
         print(active, secret, opaque, pre_active)",
    );
    let [active, secret, opaque, pre_active] = identifiers.as_slice() else { panic!("{identifiers:?}") };
    let admin = kmip(&ours);
    let fetched = admin.fetch(active).unwrap();
    assert_eq!((fetched.expose().len(), fetched.kind()), (32, KeyKind::Symmetric));
    let fetched = admin.fetch(secret).unwrap();
    assert_eq!((fetched.expose(), fetched.kind()), (&b"correct horse"[..], KeyKind::Passphrase));
    assert_eq!(admin.fetch(opaque).unwrap().expose(), [b'#'; 64]);
    let refused = admin.fetch(pre_active).unwrap_err();
    assert!(matches!(refused, KeyError::NotAllowed { .. }), "{refused}");
    assert!(refused.to_string().contains("not active yet"), "{refused}");
    let described = admin.metadata(active).unwrap();
    assert_eq!((described.name.as_deref(), described.bits), (Some("volume 7"), 256));
    assert_eq!(admin.list().unwrap().len(), 4);
    let refused = admin.rotate(active).unwrap_err();
    assert!(refused.to_string().contains("not made by this program"), "{refused}");
    admin.destroy(active).unwrap();
    assert!(matches!(admin.fetch(active), Err(KeyError::NotFound { .. })));
}

/// A volume's key is encrypted in the keystore of the host, under a key that only the server keeps.
#[test]
fn the_key_of_a_keystore_may_be_there() {
    let server = Kmip::start();
    let ours = server.new_client();
    let kek = kmip(&ours).create(&spec(Some("host7"), 256)).unwrap();
    let config = std::fs::read_to_string(&ours).unwrap();
    let path = server.pki.path("keystore");
    let more = format!("[keystore.default]\npath = '{}'\nkek = 'kmip:{}'\n", path.display(), kek.id);
    server.pki.write("host7.toml", &format!("{config}{more}"), 0o600);
    let host = server.pki.path("host7.toml");
    let managers = KeyManagers::new(Some(&host), FixedKey::Refuse).unwrap();
    managers.keystore(&"keystore".parse().unwrap()).unwrap().initialise().unwrap();
    let made = admin_of(&host, "keystore").create(&spec(Some("vm1"), 512)).unwrap();
    assert_eq!(admin_of(&host, "keystore").fetch(&made.id).unwrap().expose().len(), 64);
    kmip(&ours).destroy(&kek.id).unwrap();
    let error = admin_of(&host, "keystore").fetch(&made.id).unwrap_err();
    assert!(matches!(error, KeyError::NotFound { .. }), "{error}");
    assert!(error.to_string().contains(&format!("key kmip:{}", kek.id)), "{error}");
}

/// Runs the program with `arguments`, and kills it when the server has come to `operation`, which does not happen then.
fn killed_at(server: &Kmip, operation: &str, config: &std::path::Path, arguments: &[&str]) {
    let [trap, reached] = ["trap", "reached"].map(|name| server.pki.path(name));
    server.pki.write("trap", operation, 0o600);
    let mut program = Command::new(env!("CARGO_BIN_EXE_sealblk"));
    program.arg("key").args(arguments).args(["--key-manager", "kmip", "--key-config"]).arg(config);
    let mut client = program.stdout(std::process::Stdio::null()).spawn().unwrap();
    while !reached.exists() {
        assert!(client.try_wait().unwrap().is_none(), "it ended before {operation}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    client.kill().unwrap();
    client.wait().unwrap();
    std::fs::remove_file(reached).unwrap();
    std::fs::remove_file(trap).unwrap();
}

/// Between the two objects of a key for XTS: what is left is seen, is never taken for a key, and can be destroyed.
#[test]
fn a_crash_between_two_halves_leaves_nothing_that_cannot_be_destroyed() {
    let server = Kmip::start_strict();
    let ours = server.new_client();
    let admin = kmip(&ours);
    let broken_off = |error: &KeyError| {
        assert!(matches!(error, KeyError::Malformed { .. }), "{error}");
        assert!(error.to_string().contains("only a part of it is there"), "{error}");
    };
    let assert_incomplete = |id: &KeyId| {
        assert_eq!(admin.metadata(id).unwrap().state, KeyState::Incomplete);
        broken_off(&admin.fetch(id).unwrap_err());
    };
    let only_key = || {
        let listed = admin.list().unwrap();
        let [key] = listed.as_slice() else { panic!("{listed:?}") };
        key.id.clone()
    };

    // Made, as far as the first half.
    killed_at(&server, "create 2", &ours, &["create", "--bits", "512", "--name", "vm1"]);
    let half = only_key();
    assert_incomplete(&half);
    broken_off(&admin.rotate(&half).unwrap_err());
    assert!(matches!(admin.create(&spec(Some("vm1"), 512)), Err(KeyError::NotAllowed { .. })));
    admin.destroy(&half).unwrap();
    assert_eq!(admin.list().unwrap(), []);

    // A version begun: the one before stays the key, and the next has another number.
    let made = admin.create(&spec(Some("vm1"), 512)).unwrap();
    let first = admin.fetch(&made.id).unwrap();
    killed_at(&server, "create 6", &ours, &["rotate", made.id.name()]);
    assert!(admin.fetch(&made.id).unwrap().expose() == first.expose());
    assert_incomplete(&made.id.clone().with_version(2));
    assert_eq!(admin.rotate(&made.id).unwrap().version, 3);

    // Destroyed, as far as the first half: the second is not forgotten.
    killed_at(&server, "destroy 3", &ours, &["destroy", "--yes", &format!("{}#1", made.id)]);
    assert_incomplete(&made.id.clone().with_version(1));
    assert_eq!(admin.fetch(&made.id).unwrap().expose().len(), 64);
    admin.destroy(&made.id).unwrap();
    assert_eq!(admin.list().unwrap(), []);
    let identifiers = server.with_another_program("print(*client.locate())");
    assert_eq!(identifiers, [], "something is left at the server");
}
