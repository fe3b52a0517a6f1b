//! `vault:` against RustyVault, which has version 1 of the KV engine, AppRole and tokens, and neither policies nor
//! namespaces, version 2 or transit: those are tested with a stand-in, beside the code.
//!
//! Building it takes longer than all else here together, so nothing installs it. Where it is, it is used:
//! `cargo install --locked --version 0.2.1 --root target/key-servers/rusty_vault rusty_vault`.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use sealblk::keys::conformance::{self, admin};
use sealblk::keys::{
    FixedKey, KeyAdmin, KeyError, KeyId, KeyKind, KeyManager, KeyManagers, KeySpec, SECRET_BYTES_MAX, Secret,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http::{Request, unique, write_secret};
use crate::server::{Server, free_port, installed};

/// A server that is initialised and unsealed, with a role.
struct Vault {
    folder: TempDir,
    server: Server,
    root_token: String,
    role_id: String,
}

impl Vault {
    /// `None`, and a line about it, where there is no such server.
    fn start() -> Option<Self> {
        let Some(program) = installed("rusty_vault", "rvault") else {
            // Not by `eprintln`, whose output is not shown of a test that passes.
            let said = "NOT TESTED: no RustyVault in target/key-servers (see tests/key_servers/vault.rs)";
            let _ = writeln!(std::io::stderr(), "{said}");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let path = |name: &str| folder.path().join(name);
        let config = format!(
            "storage \"file\" {{\n  path = \"{}\"\n}}\nlistener \"tcp\" {{\n  address = \"127.0.0.1:{port}\"\n  \
             tls_disable = \"true\"\n}}\napi_addr = \"http://127.0.0.1:{port}\"\nlog_level = \"info\"\n\
             pid_file = \"{}\"\n",
            path("data").display(),
            path("pid").display()
        );
        fs::write(path("server.hcl"), config).unwrap();
        let mut command = Command::new(program);
        command.arg("server").arg("--config").arg(path("server.hcl"));
        let server = Server::start(&mut command, port, &path("log"));
        let mut vault = Self { folder, server, root_token: String::new(), role_id: String::new() };
        vault.set_up();
        Some(vault)
    }

    fn set_up(&mut self) {
        let init = self.ask("PUT", "sys/init", &json!({"secret_shares": 1, "secret_threshold": 1}));
        self.root_token = init["root_token"].as_str().unwrap().to_owned();
        self.ask("PUT", "sys/unseal", &json!({"key": init["keys"][0]}));
        self.ask("POST", "sys/auth/approle", &json!({"type": "approle"}));
        self.ask("POST", "auth/approle/role/disks", &json!({"token_policies": "root", "token_ttl": "5m"}));
        let role = self.ask("GET", "auth/approle/role/disks/role-id", &Value::Null);
        self.role_id = role["data"]["role_id"].as_str().unwrap().to_owned();
    }

    /// What the server answers to whoever may do anything.
    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let token = format!("X-Vault-Token: {}", self.root_token);
        let request = Request { method, path: &format!("/v1/{path}"), headers: &[&token], body };
        let answer = request.send(self.server.address.port());
        let said = String::from_utf8_lossy(&answer.body);
        assert!([200, 204].contains(&answer.status), "{method} {path}: {} {said}", answer.status);
        if answer.body.is_empty() { Value::Null } else { answer.json() }
    }

    /// The credentials of the role: a secret ID of its own, and what they are called in the server.
    fn secret_id(&self) -> (String, String) {
        let made = self.ask("POST", "auth/approle/role/disks/secret-id", &json!({}));
        let text = |name: &str| made["data"][name].as_str().unwrap().to_owned();
        (text("secret_id"), text("secret_id_accessor"))
    }

    /// A key configuration file that lets us in by the role, with `more` in its profile.
    fn client(&self, secret_id: &str, more: &str) -> PathBuf {
        let path = self.folder.path().join(unique("keys"));
        let secret = self.folder.path().join(unique("secret-id"));
        write_secret(&secret, format!("{secret_id}\n").as_bytes());
        self.configure(
            &path,
            &format!("role-id = \"{}\"\nsecret-id = \"file:{}\"\n{more}", self.role_id, secret.display()),
        );
        path
    }

    fn configure(&self, path: &Path, more: &str) {
        let address = self.server.address;
        let profile = format!("[vault.default]\naddress = \"http://{address}\"\nkv-version = 1\n{more}");
        fs::write(path, profile).unwrap();
    }
}

fn admin_of(config: &Path) -> Box<dyn KeyAdmin> {
    let managers = KeyManagers::new(Some(config), FixedKey::Refuse).unwrap();
    managers.admin(&"vault".parse().unwrap()).unwrap()
}

#[test]
fn keeps_every_promise_of_a_key_manager() {
    let Some(vault) = Vault::start() else { return };
    let new_store = || {
        let (secret_id, _) = vault.secret_id();
        vault.client(&secret_id, &format!("folder = \"{}\"\n", unique("folder")))
    };
    conformance::run_all(|| {
        let config = new_store();
        let manager: Box<dyn KeyManager> = admin_of(&config);
        conformance::Subject {
            manager,
            name: "vault".to_owned(),
            put: Box::new(move |bytes| {
                let material = Secret::read_from(bytes).ok()?;
                let bits = bytes.len() as u32 * 8;
                let spec = KeySpec { name: None, kind: KeyKind::Symmetric, bits, volume: None };
                Some(admin_of(&config).store(&spec, &material).unwrap().id)
            }),
            missing: KeyId::new("sealblk/nothing"),
            put_foreign: None,
            impossible: vec![KeyId::new("../sys/seal"), KeyId::new("a//b")],
            fail: None,
            is_lasting: true,
            bytes_max: SECRET_BYTES_MAX,
        }
    });
    admin::run_all(|| {
        let config = new_store();
        admin::Subject {
            open: Rc::new(move || admin_of(&config)),
            open_for_another: None,
            missing: KeyId::new("sealblk/nothing"),
            keeps_versions: false,
        }
    });
}

#[test]
fn lets_us_in_by_a_token_or_a_role_and_not_when_that_is_revoked() {
    let Some(vault) = Vault::start() else { return };
    vault.ask("POST", "secret/vm1", &json!({"key": "AAECAw==", "note": "by hand"}));
    let fetch = |config: &Path| {
        let managers = KeyManagers::new(Some(config), FixedKey::Refuse).unwrap();
        managers.source(&"vault+base64:vm1".parse().unwrap()).unwrap().fetch()
    };

    let (secret_id, accessor) = vault.secret_id();
    let role = vault.client(&secret_id, "field = \"key\"\n");
    assert_eq!(fetch(&role).unwrap().expose(), [0, 1, 2, 3]);
    vault.ask(
        "POST",
        "auth/approle/role/disks/secret-id-accessor/destroy",
        &json!({"secret_id_accessor": accessor}),
    );
    let error = fetch(&role).unwrap_err();
    assert!(!error.to_string().contains(&secret_id), "{error}");
    assert!(matches!(error, KeyError::NotAllowed { .. }), "{error}");

    let token = vault.folder.path().join("token");
    let config = vault.folder.path().join("by-token");
    write_secret(&token, vault.root_token.as_bytes());
    vault.configure(&config, &format!("field = \"key\"\ntoken = \"file:{}\"\n", token.display()));
    assert_eq!(fetch(&config).unwrap().expose(), [0, 1, 2, 3]);
    write_secret(&token, b"nobody's\n");
    let error = fetch(&config).unwrap_err();
    assert!(matches!(error, KeyError::NotAllowed { .. }), "{error}");
}

#[test]
fn a_sealed_server_is_an_outage() {
    let Some(vault) = Vault::start() else { return };
    let (secret_id, _) = vault.secret_id();
    let config = vault.client(&secret_id, "");
    assert!(admin_of(&config).list().unwrap().is_empty());
    vault.ask("PUT", "sys/seal", &json!({}));
    let error = admin_of(&config).fetch(&KeyId::new("vm1")).unwrap_err();
    assert!(matches!(error, KeyError::Unreachable { .. }), "{error}");
}
