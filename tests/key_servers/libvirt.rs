//! `libvirt:` against libvirtd, as a session of its own: nothing of the system's is touched.

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use sealblk::keys::conformance::{self, watch};
use sealblk::keys::{
    FixedKey, KeyAdmin, KeyError, KeyId, KeyKind, KeyManagers, KeySpec, KeyState, SECRET_BYTES_MAX, Secret,
};
use tempfile::TempDir;

use crate::kmip::admin_of;

const NOBODY: u32 = 65534;

/// A daemon in a folder of its own. As root it would be the system's daemon, so it runs as nobody then.
pub struct Libvirtd {
    folder: TempDir,
    process: Child,
}

impl Libvirtd {
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// The same with lines of its configuration file. Whoever is to name himself does so by SCRAM.
    pub fn start_with(settings: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let is_root = rustix::process::geteuid().is_root();
        if is_root {
            chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let path = |name: &str| folder.path().join(name);
        let log = std::fs::File::create(path("log")).unwrap();
        std::fs::write(path("libvirtd.conf"), settings).unwrap();
        std::fs::create_dir(path("sasl")).unwrap();
        std::fs::write(path("sasl/libvirt.conf"), "mech_list: scram-sha-256\n").unwrap();
        let mut command = Command::new("libvirtd");
        command
            .arg("-f")
            .arg(path("libvirtd.conf"))
            .env("SASL_CONF_PATH", path("sasl"))
            .env("HOME", folder.path())
            .env("XDG_RUNTIME_DIR", folder.path())
            .env("XDG_CONFIG_HOME", path("config"))
            .env("XDG_CACHE_HOME", path("cache"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        if is_root {
            command.uid(NOBODY).gid(NOBODY);
        }
        let process = command
            .spawn()
            .unwrap_or_else(|error| panic!("libvirtd: {error}; run `scripts/install-tools key-servers`"));
        let mut daemon = Self { folder, process };
        let started = Instant::now();
        while !daemon.answers() {
            let said = || std::fs::read_to_string(daemon.folder.path().join("log")).unwrap_or_default();
            if let Some(status) = daemon.process.try_wait().unwrap() {
                panic!("libvirtd ended, {status}: {}", said());
            }
            assert!(started.elapsed() < Duration::from_secs(120), "libvirtd does not answer: {}", said());
            std::thread::sleep(Duration::from_millis(100));
        }
        daemon
    }

    /// Lets somebody in, or does not.
    fn answers(&self) -> bool {
        let asked = self.virsh("uri");
        asked.status.success() || String::from_utf8_lossy(&asked.stderr).contains("authentication failed")
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("libvirt/libvirt-sock")
    }

    pub fn uri(&self) -> String {
        uri_of(&self.socket())
    }

    fn virsh(&self, line: &str) -> std::process::Output {
        let words = line.split_whitespace();
        Command::new("virsh").args(["-c", &self.uri()]).args(words).stdin(Stdio::null()).output().unwrap()
    }

    /// Defines a secret by what else there is to say of it; `value` is given to it, if any.
    pub fn define(&self, uuid: &str, private: &str, more: &str, value: Option<&[u8]>) -> KeyId {
        let xml = format!("<secret ephemeral='yes' private='{private}'><uuid>{uuid}</uuid>{more}</secret>");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), xml).unwrap();
        let run = |line: String| {
            let ended = self.virsh(&line);
            assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        };
        run(format!("secret-define {}", file.path().display()));
        if let Some(value) = value {
            std::fs::write(file.path(), value).unwrap();
            run(format!("secret-set-value {uuid} --plain --file {}", file.path().display()));
        }
        KeyId::new(uuid)
    }

    /// A key configuration file in which it is the default.
    pub fn config(&self, more: &str) -> PathBuf {
        config(self.folder.path(), &self.uri(), more)
    }

    pub fn stop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Libvirtd {
    fn drop(&mut self) {
        self.stop();
    }
}

pub fn uri_of(socket: &Path) -> String {
    format!("secret:///session?socket={}", socket.display())
}

pub fn config(folder: &Path, uri: &str, more: &str) -> PathBuf {
    let path = folder.join("keys.toml");
    std::fs::write(&path, format!("[libvirt.default]\nuri = '{uri}'\n{more}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn admin(path: &Path) -> Box<dyn KeyAdmin> {
    admin_of(path, "libvirt")
}

fn spec(name: Option<&str>, bits: u32) -> KeySpec {
    let name = name.map(str::to_owned);
    let volume = name.as_ref().map(|name| format!("volume of {name}"));
    KeySpec { name, kind: KeyKind::Symmetric, bits, volume }
}

fn stored(admin: &dyn KeyAdmin, bytes: &[u8]) -> Option<KeyId> {
    let secret = Secret::read_from(bytes).ok()?;
    Some(admin.store(&spec(None, bytes.len() as u32 * 8), &secret).unwrap().id)
}

struct Fetching(Box<dyn KeyAdmin>);

impl sealblk::keys::KeyManager for Fetching {
    fn fetch(&self, id: &KeyId) -> Result<Secret, KeyError> {
        self.0.fetch(id)
    }
}

#[test]
fn fetches_as_every_manager_does() {
    let daemon = Rc::new(std::cell::RefCell::new(Libvirtd::start()));
    conformance::run_all(|| {
        let config = daemon.borrow().config("");
        let (for_putting, for_failing) = (admin(&config), admin(&config));
        let daemon = Rc::clone(&daemon);
        conformance::Subject {
            manager: Box::new(Fetching(admin(&config))),
            name: "libvirt".to_owned(),
            put: Box::new(move |bytes| stored(&*for_putting, bytes)),
            missing: KeyId::new("6c1ff2ac-7c77-4d8c-8b65-a5d7d9f0a5f4"),
            put_foreign: None,
            impossible: ["", "vm1", "volume/", "nothing/vm1", "6c1ff2ac"].map(KeyId::new).into(),
            // The last that is asked of it.
            fail: Some(Box::new(move || {
                let id = stored(&*for_failing, watch::KEY).unwrap();
                daemon.borrow_mut().stop();
                id
            })),
            is_lasting: true,
            bytes_max: SECRET_BYTES_MAX,
        }
    });
}

/// As Nova defines them, and as nobody can read them.
#[test]
fn secrets_that_others_defined_are_found_by_what_they_are_for() {
    let daemon = Libvirtd::start();
    let nova = "<usage type='volume'><volume>vol-1</volume></usage>";
    let uuid = "00000000-0000-4000-8000-000000000001";
    daemon.define(uuid, "no", nova, Some(b"00ff00ff"));
    let admin = admin(&daemon.config(""));
    for id in [uuid, "volume/vol-1"] {
        assert_eq!(admin.fetch(&KeyId::new(id)).unwrap().expose(), b"00ff00ff");
    }
    let described = admin.metadata(&KeyId::new("volume/vol-1")).unwrap();
    assert_eq!((described.id.name(), described.volume.as_deref()), (uuid, Some("vol-1")));
    assert_eq!((described.bits, described.state), (64, KeyState::Active));

    let private = daemon.define("00000000-0000-4000-8000-000000000002", "yes", "", Some(watch::KEY));
    let refused = admin.fetch(&private).unwrap_err();
    assert!(matches!(refused, KeyError::NotAllowed { .. }), "{refused}");
    assert!(refused.to_string().contains("private='no'"), "{refused}");
    watch::assert_hidden_in_error(&refused);
    let without_value = daemon.define("00000000-0000-4000-8000-000000000003", "no", "", None);
    assert!(matches!(admin.fetch(&without_value), Err(KeyError::NotFound { .. })));
    assert_eq!(admin.metadata(&without_value).unwrap().state, KeyState::PreActive);
    assert_eq!(admin.list().unwrap().len(), 3);
}

/// What libvirt can do with keys besides giving them out.
#[test]
fn secrets_are_stored_listed_and_destroyed() {
    let daemon = Libvirtd::start();
    let admin = admin(&daemon.config(""));
    let key = Secret::read_from(&watch::KEY[..]).unwrap();
    let stored = admin.store(&spec(Some("<vm1> & more"), 512), &key).unwrap();
    assert_eq!((stored.name.as_deref(), stored.bits), (Some("<vm1> & more"), 512));
    assert_eq!(admin.metadata(&stored.id).unwrap(), stored);
    assert_eq!(admin.list().unwrap(), std::slice::from_ref(&stored));
    for again in [spec(Some("<vm1> & more"), 512), KeySpec { name: None, ..spec(Some("<vm1> & more"), 512) }]
    {
        assert!(matches!(admin.store(&again, &key), Err(KeyError::NotAllowed { .. })));
    }
    assert!(matches!(admin.store(&spec(None, 256), &key), Err(KeyError::Malformed { .. })));
    assert!(matches!(admin.rotate(&stored.id), Err(KeyError::NotAllowed { .. })));
    assert!(admin.fetch(&stored.id).unwrap().expose() == watch::KEY);
    admin.destroy(&stored.id).unwrap();
    assert!(matches!(admin.fetch(&stored.id), Err(KeyError::NotFound { .. })));
    assert!(matches!(admin.destroy(&stored.id), Err(KeyError::NotFound { .. })));
    assert_eq!(admin.list().unwrap(), []);

    // What would be gone with the daemon is not made.
    assert!(matches!(admin.create(&spec(None, 512)), Err(KeyError::NotAllowed { .. })));
    let persistent = self::admin(&daemon.config("persistent = true"));
    let made = persistent.create(&spec(Some("vm2"), 512)).unwrap();
    assert_eq!(persistent.fetch(&made.id).unwrap().expose().len(), 64);
}

/// A daemon that takes the connection and says nothing.
#[test]
fn a_daemon_that_hangs_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let config = config(folder.path(), &uri_of(&socket), "timeout-seconds = 1");
    let managers = KeyManagers::new(Some(&config), FixedKey::Refuse).unwrap();
    let source = managers.source(&"libvirt:volume/vol-1".parse().unwrap()).unwrap();
    let error = source.fetch().unwrap_err();
    assert!(matches!(error, KeyError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("took too long"), "{error}");
}

/// A volume's key is encrypted in the keystore of the host, under a secret that libvirt was given.
#[test]
fn the_key_of_a_keystore_may_be_there() {
    let daemon = Libvirtd::start();
    let kek = "00000000-0000-4000-8000-000000000004";
    daemon.define(kek, "no", "", Some(&watch::KEY[..32]));
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let path = folder.path().join("keystore");
    let more = format!("[keystore.default]\npath = '{}'\nkek = 'libvirt:{kek}'", path.display());
    let config = config(folder.path(), &daemon.uri(), &more);
    let managers = KeyManagers::new(Some(&config), FixedKey::Refuse).unwrap();
    managers.keystore(&"keystore".parse().unwrap()).unwrap().initialise().unwrap();
    let made = admin_of(&config, "keystore").create(&spec(Some("vm1"), 512)).unwrap();
    assert_eq!(admin_of(&config, "keystore").fetch(&made.id).unwrap().expose().len(), 64);
}
