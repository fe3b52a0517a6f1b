//! Keys in Barbican, let in by Keystone.

mod cloud;
mod volumes;

use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use sealblk::keys::conformance::{self, admin};
use sealblk::keys::{
    FixedKey, KeyAdmin, KeyError, KeyId, KeyKind, KeyManager, KeyManagers, KeySource, KeySpec, KeyState,
    SECRET_BYTES_MAX, Secret,
};
use tempfile::TempDir;

use cloud::{Credential, Project, cloud};

use crate::http::{unique, write_secret};

/// What no secret is called.
const MISSING: &str = "6c1ff2ac-7c77-4d8c-8b65-a5d7d9f0a5f4";

/// A host: a folder with a key configuration file and what it names.
struct Host {
    folder: TempDir,
}

impl Host {
    /// One whose profiles are those of `projects`, by name.
    fn new(projects: &[(&str, &Project)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let profiles: String =
            projects.iter().map(|(name, project)| project.profile(folder.path(), name)).collect();
        let host = Self { folder };
        host.configure(&profiles);
        host
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn config(&self) -> PathBuf {
        self.path().join("keys.toml")
    }

    fn configure(&self, profiles: &str) {
        fs::write(self.config(), profiles).unwrap();
    }

    fn managers(&self) -> KeyManagers {
        KeyManagers::new(Some(&self.config()), FixedKey::Refuse).unwrap()
    }

    fn admin(&self, manager: &str) -> Box<dyn KeyAdmin> {
        self.managers().admin(&manager.parse().unwrap()).unwrap()
    }

    fn source(&self, reference: &str) -> KeySource {
        self.managers().source(&reference.parse().unwrap()).unwrap()
    }
}

#[test]
fn fetches_as_every_manager_does() {
    let stranger = cloud().project();
    conformance::run_all(|| {
        let ours = cloud().project();
        let host = Host::new(&[("default", &ours)]);
        let manager: Box<dyn KeyManager> = host.admin("barbican");
        let stranger = stranger.clone();
        conformance::Subject {
            manager,
            name: "barbican".to_owned(),
            put: Box::new(move |bytes| {
                let _keep = &host;
                let (status, uuid) = ours.put("symmetric", bytes);
                assert!(matches!(status, 201 | 400 | 413), "{status}");
                uuid.map(KeyId::new)
            }),
            missing: KeyId::new(MISSING),
            put_foreign: Some(Box::new(move |bytes| {
                KeyId::new(stranger.put("symmetric", bytes).1.expect("the store takes any key"))
            })),
            impossible: vec![
                KeyId::new("vm1"),
                KeyId::new("../orders"),
                KeyId::new(MISSING.replace('-', "")),
                KeyId::new(MISSING).with_version(2),
            ],
            fail: None,
            is_lasting: true,
            bytes_max: SECRET_BYTES_MAX,
        }
    });
}

#[test]
fn manages_keys_as_every_manager_does() {
    admin::run_all(|| {
        let (ours, theirs) = (cloud().project(), cloud().project());
        let host = Rc::new(Host::new(&[("default", &ours), ("theirs", &theirs)]));
        let open = |name: &'static str| -> Rc<dyn Fn() -> Box<dyn KeyAdmin>> {
            let host = Rc::clone(&host);
            Rc::new(move || host.admin(name))
        };
        admin::Subject {
            open: open("barbican"),
            // Messages name the profile, so the other one has to be the same there.
            open_for_another: Some(open("barbican@theirs")),
            missing: KeyId::new(MISSING),
            keeps_versions: false,
        }
    });
}

/// A host that is let in by an application credential, which `named` says the name of.
fn host_with_credential(credential: &Credential, named: &str) -> Host {
    let host = Host::new(&[]);
    let path = host.path().join("credential");
    write_secret(&path, credential.secret.as_bytes());
    host.configure(&format!(
        "[barbican.default]\nauth-url = \"{}\"\napplication-credential-secret = \"file:{}\"\n{named}",
        cloud().keystone_url(),
        path.display()
    ));
    host
}

#[test]
fn an_application_credential_opens_one_key_and_nothing_else() {
    let project = cloud().project();
    let (_, ours) = project.put("symmetric", &[7; 32]);
    let (_, other) = project.put("symmetric", &[8; 32]);
    let (ours, other) = (ours.unwrap(), other.unwrap());
    let record = format!("/v1/secrets/{ours}");
    let payload = format!("{record}/payload");
    let credential = project.application_credential(&[("GET", &record), ("GET", &payload)]);
    let host =
        host_with_credential(&credential, &format!("application-credential-id = \"{}\"\n", credential.id));

    assert_eq!(host.source(&format!("barbican:{ours}")).fetch().unwrap().expose(), [7; 32]);
    let error = host.source(&format!("barbican:{other}")).fetch().unwrap_err();
    assert!(matches!(error, KeyError::NotAllowed { .. }), "{error}");
    assert!(error.to_string().contains("access rules"), "{error}");
    let error = host.admin("barbican").list().unwrap_err();
    assert!(matches!(error, KeyError::NotAllowed { .. }), "{error}");

    project.revoke(&credential);
    let error = host.source(&format!("barbican:{ours}")).fetch().unwrap_err();
    assert!(matches!(error, KeyError::NotAllowed { .. }), "{error}");
    assert!(
        error.to_string().contains("revoked") && !error.to_string().contains(&credential.secret),
        "{error}"
    );
}

/// A name is one user's, whom Keystone has to be told of: by ID, or by a name of a domain.
#[test]
fn an_application_credential_has_a_name_too() {
    let project = cloud().project();
    let key = format!("barbican:{}", project.put("symmetric", &[7; 32]).1.unwrap());
    let credential = project.application_credential(&[]);
    let by_name = format!("application-credential-name = \"{}\"\n", credential.name);
    let fetch = |more: &str| {
        let host = host_with_credential(&credential, &format!("{by_name}{more}"));
        host.source(&key).fetch()
    };
    let user = format!("user-name = \"{}\"\n", project.user);
    for domain in ["", "user-domain-id = \"default\"\n", "user-domain-name = \"Default\"\n"] {
        assert_eq!(fetch(&format!("{user}{domain}")).unwrap().expose(), [7; 32], "{domain}");
    }
    assert_eq!(fetch(&format!("user-id = \"{}\"\n", project.user_id)).unwrap().expose(), [7; 32]);

    let stranger = cloud().project();
    for (more, said) in [
        (String::new(), "user-name"),
        (format!("user-name = \"{}\"\n", stranger.user), "credential"),
        (format!("{user}user-domain-name = \"Elsewhere\"\n"), "credential"),
    ] {
        let error = fetch(&more).unwrap_err();
        assert!(matches!(error, KeyError::NotAllowed { .. }), "{more}: {error}");
        assert!(error.to_string().contains(said), "{more}: {error}");
        assert!(!error.to_string().contains(&credential.secret), "{error}");
    }
}

#[test]
fn a_token_that_ends_in_mid_use_is_replaced() {
    let project = cloud().project();
    let host = Host::new(&[("default", &project)]);
    let admin = host.admin("barbican");
    let spec = KeySpec { name: None, kind: KeyKind::Symmetric, bits: 256, volume: None };
    let key = admin.create(&spec).unwrap();
    // Every token of the user ends; the password stays what it is.
    cloud().set_password(&project, &unique("another"));
    cloud().set_password(&project, &project.password);
    // Those as well that are made within the same second, as Keystone counts time.
    let deadline = Instant::now() + Duration::from_secs(300);
    while cloud().barbican("GET", "/secrets", &project.token(), &serde_json::Value::Null).status == 401 {
        assert!(Instant::now() < deadline, "no token lasts");
    }
    assert_eq!(admin.fetch(&key.id).unwrap().expose().len(), 32);
}

#[test]
fn another_project_is_not_ours() {
    let (ours, theirs) = (cloud().project(), cloud().project());
    let stranger = Project { name: theirs.name, ..ours.clone() };
    let host = Host::new(&[("default", &stranger)]);
    let error = host.source(&format!("barbican:{MISSING}")).fetch().unwrap_err();
    assert!(matches!(error, KeyError::NotAllowed { .. }), "{error}");
}

#[test]
fn a_key_in_use_elsewhere_is_not_destroyed() {
    let project = cloud().project();
    let host = Host::new(&[("default", &project)]);
    let admin = host.admin("barbican");
    let spec =
        KeySpec { name: None, kind: KeyKind::Passphrase, bits: 256, volume: Some("vm1.img".to_owned()) };
    let key = admin.create(&spec).unwrap();
    let uses = format!("/secrets/{}/consumers", key.id);
    let cinder = serde_json::json!({"service": "cinder", "resource_type": "volume", "resource_id": "v1"});
    assert_eq!(cloud().barbican("POST", &uses, &project.token(), &cinder).status, 200);
    let error = admin.destroy(&key.id).unwrap_err();
    assert!(matches!(error, KeyError::NotAllowed { .. }), "{error}");
    assert!(error.to_string().contains("volume v1 of cinder"), "{error}");
    let found = admin.metadata(&key.id).unwrap();
    assert_eq!((found.state, found.volume.as_deref()), (KeyState::Active, Some("vm1.img")));
    assert_eq!(cloud().barbican("DELETE", &uses, &project.token(), &cinder).status, 200);
    admin.destroy(&key.id).unwrap();
}

/// Runs `sealblk` in the folder of `host`, its line cut at spaces.
fn sealblk(host: &Host, line: &str) -> std::process::Output {
    std::process::Command::new(env!("CARGO_BIN_EXE_sealblk"))
        .args(line.split_ascii_whitespace())
        .current_dir(host.path())
        .output()
        .unwrap()
}

#[track_caller]
fn succeeds(output: &std::process::Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn a_keystore_is_opened_by_a_key_in_barbican() {
    let project = cloud().project();
    let host = Host::new(&[("default", &project)]);
    let made =
        succeeds(&sealblk(&host, "key create --key-manager barbican --key-config keys.toml --name kek"));
    let kek = made.lines().next().unwrap().strip_prefix("key ").unwrap().to_owned();
    let mut config = fs::read_to_string(host.config()).unwrap();
    let folder = host.path().join("store");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    config += &format!("[keystore.default]\npath = \"{}/keys\"\nkek = \"{kek}\"\n", folder.display());
    host.configure(&config);
    succeeds(&sealblk(&host, "keystore init --key-config keys.toml"));
    let made = succeeds(&sealblk(&host, "key create --key-config keys.toml"));
    let key = made.lines().next().unwrap().strip_prefix("key ").unwrap().to_owned();
    assert_eq!(host.source(&key).fetch().unwrap().expose().len(), 32);

    let way = succeeds(&sealblk(&host, &format!("key doctor {key} --key-config keys.toml")));
    assert!(way.contains("ok     authentication  barbican:"), "{way}");
    assert!(way.contains("ok     authentication  keystore:"), "{way}");
    succeeds(&sealblk(
        &host,
        &format!("key destroy {kek} --key-manager barbican --key-config keys.toml --yes"),
    ));
    let broken = sealblk(&host, &format!("key doctor {key} --key-config keys.toml --json"));
    assert_eq!(broken.status.code(), Some(5));
    let diagnosis: serde_json::Value = serde_json::from_slice(&broken.stdout).unwrap();
    assert_eq!(
        (&diagnosis["broken"]["link"], &diagnosis["broken"]["of"]),
        (&"key-state".into(), &"barbican".into())
    );
}

#[test]
fn a_passphrase_keeps_its_edges() {
    let project = cloud().project();
    let host = Host::new(&[("default", &project)]);
    let admin = host.admin("barbican");
    // Barbican trims text; JSON escapes some.
    for text in ["plain", " with edges\n", "\"\\\u{e9}\t\u{1f511}"] {
        let spec =
            KeySpec { name: None, kind: KeyKind::Passphrase, bits: text.len() as u32 * 8, volume: None };
        let key = admin.store(&spec, &Secret::read_from(text.as_bytes()).unwrap()).unwrap();
        let secret = host.source(&format!("barbican+openstack:{}", key.id)).fetch().unwrap();
        assert_eq!((secret.expose(), secret.kind()), (text.as_bytes(), KeyKind::Passphrase));
    }
}

#[test]
fn openstacks_variables_are_read_when_the_profile_says_so() {
    let project = cloud().project();
    let uuid = project.put("symmetric", &[7; 32]).1.unwrap();
    let host = Host::new(&[]);
    let doctor = |profile: &str| {
        host.configure(profile);
        std::process::Command::new(env!("CARGO_BIN_EXE_sealblk"))
            .args(["key", "doctor", &format!("barbican:{uuid}"), "--key-config", "keys.toml"])
            .current_dir(host.path())
            .env("OS_AUTH_URL", cloud().keystone_url())
            .env("OS_USERNAME", &project.user)
            .env("OS_PASSWORD", &project.password)
            .env("OS_PROJECT_NAME", &project.name)
            .env("OS_USER_DOMAIN_ID", "default")
            .env("OS_PROJECT_DOMAIN_NAME", "Default")
            .output()
            .unwrap()
    };
    succeeds(&doctor("[barbican.default]\nenvironment = true\n"));
    let unasked = doctor("[barbican.default]\n");
    assert_eq!(unasked.status.code(), Some(5));
    assert!(String::from_utf8(unasked.stderr).unwrap().contains("auth-url"));
}
