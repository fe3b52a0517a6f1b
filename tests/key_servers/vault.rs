//! `vault:` against OpenBao: both versions of the KV engine, transit, AppRole, tokens, policies, in a namespace. What real
//! servers do not do on demand is tested with a stand-in, beside the code.

use std::fs;
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
use crate::server::{Server, free_port, program};

/// Where everything of ours is.
const NAMESPACE: &str = "tenants/a";

/// What docs/keys.md gives to who manages keys, for folders of any name.
const MANAGES: &str = r#"
path "secret/data/*"     { capabilities = ["create", "read", "update"] }
path "secret/metadata/*" { capabilities = ["create", "read", "update", "list", "delete"] }
path "secret/destroy/*"  { capabilities = ["update"] }
path "old/*"             { capabilities = ["create", "read", "update", "list", "delete"] }
path "transit/datakey/wrapped/disks" { capabilities = ["update"] }
path "transit/encrypt/disks"     { capabilities = ["update"] }
path "transit/decrypt/disks"     { capabilities = ["update"] }
"#;

/// The ways in which keys are kept: what a profile says, and whether keys have versions.
const WAYS: [(&str, bool); 3] =
    [("", true), ("transit-key = \"disks\"\n", true), ("mount = \"old\"\nkv-version = 1\n", false)];

/// A server that is initialised and unsealed, with its engines and a role that manages keys.
struct Vault {
    folder: TempDir,
    server: Server,
    root_token: String,
}

/// What lets us in: a role, and a secret ID.
struct Role {
    role_id: String,
    secret_id: String,
    secret_id_accessor: String,
}

impl Vault {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let path = |name: &str| folder.path().join(name);
        let config = format!(
            "storage \"inmem\" {{}}\nlistener \"tcp\" {{\n  address = \"127.0.0.1:{port}\"\n  tls_disable = true\n}}\n\
             api_addr = \"http://127.0.0.1:{port}\"\n"
        );
        fs::write(path("server.hcl"), config).unwrap();
        let mut command = Command::new(program("openbao", "bao"));
        command.arg("server").arg("-config").arg(path("server.hcl"));
        let server = Server::start(&mut command, port, &path("log"));
        let mut vault = Self { folder, server, root_token: String::new() };
        vault.set_up();
        vault
    }

    fn set_up(&mut self) {
        let shares = json!({"secret_shares": 1, "secret_threshold": 1});
        let init = self.ask("", "PUT", "sys/init", &shares);
        self.root_token = init["root_token"].as_str().unwrap().to_owned();
        self.ask("", "PUT", "sys/unseal", &json!({"key": init["keys"][0]}));
        self.ask("", "POST", "sys/namespaces/tenants", &json!({}));
        self.ask("tenants", "POST", "sys/namespaces/a", &json!({}));
        self.ask(NAMESPACE, "POST", "sys/mounts/secret", &json!({"type": "kv", "options": {"version": "2"}}));
        self.ask(NAMESPACE, "POST", "sys/mounts/old", &json!({"type": "kv", "options": {"version": "1"}}));
        self.ask(NAMESPACE, "POST", "sys/mounts/transit", &json!({"type": "transit"}));
        self.ask(NAMESPACE, "POST", "transit/keys/disks", &json!({}));
        self.ask(NAMESPACE, "POST", "sys/auth/approle", &json!({"type": "approle"}));
        self.allow("disks", MANAGES);
    }

    /// A policy, and a role that has it.
    fn allow(&self, name: &str, policy: &str) {
        self.ask(NAMESPACE, "PUT", &format!("sys/policies/acl/{name}"), &json!({"policy": policy}));
        let role = json!({"token_policies": name, "token_ttl": "5m"});
        self.ask(NAMESPACE, "POST", &format!("auth/approle/role/{name}"), &role);
    }

    /// What the server answers to whoever may do anything.
    fn ask(&self, namespace: &str, method: &str, path: &str, body: &Value) -> Value {
        let token = format!("X-Vault-Token: {}", self.root_token);
        let namespace = format!("X-Vault-Namespace: {namespace}");
        let headers = [&*token, &*namespace];
        let request = Request { method, path: &format!("/v1/{path}"), headers: &headers, body };
        let answer = request.send(self.server.address.port());
        let said = String::from_utf8_lossy(&answer.body);
        assert!([200, 204].contains(&answer.status), "{method} {path}: {} {said}", answer.status);
        if answer.body.is_empty() { Value::Null } else { answer.json() }
    }

    /// A secret ID of its own for the role `name`.
    fn role(&self, name: &str) -> Role {
        let path = format!("auth/approle/role/{name}");
        let role = self.ask(NAMESPACE, "GET", &format!("{path}/role-id"), &Value::Null);
        let made = self.ask(NAMESPACE, "POST", &format!("{path}/secret-id"), &json!({}));
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        Role {
            role_id: text(&role["data"]["role_id"]),
            secret_id: text(&made["data"]["secret_id"]),
            secret_id_accessor: text(&made["data"]["secret_id_accessor"]),
        }
    }

    /// A key configuration file that lets us in by `role`, with `more` in its profile.
    fn client(&self, role: &Role, more: &str) -> PathBuf {
        let secret = self.folder.path().join(unique("secret-id"));
        write_secret(&secret, format!("{}\n", role.secret_id).as_bytes());
        let role_id = &role.role_id;
        self.configure(&format!("role-id = \"{role_id}\"\nsecret-id = \"file:{}\"\n{more}", secret.display()))
    }

    /// The same by a token of the policy `disks`, with `more` said of it.
    fn client_with_token(&self, mut wanted: Value, more: &str) -> (String, PathBuf) {
        wanted["policies"] = json!(["disks"]);
        let made = self.ask(NAMESPACE, "POST", "auth/token/create", &wanted);
        let token = made["auth"]["client_token"].as_str().unwrap().to_owned();
        let path = self.folder.path().join(unique("token"));
        write_secret(&path, format!("{token}\n").as_bytes());
        (token, self.configure(&format!("token = \"file:{}\"\n{more}", path.display())))
    }

    fn configure(&self, more: &str) -> PathBuf {
        let path = self.folder.path().join(unique("keys"));
        let address = self.server.address;
        let profile =
            format!("[vault.default]\naddress = \"http://{address}\"\nnamespace = \"{NAMESPACE}\"\n{more}");
        fs::write(&path, profile).unwrap();
        path
    }
}

fn admin_of(config: &Path) -> Box<dyn KeyAdmin> {
    let managers = KeyManagers::new(Some(config), FixedKey::Refuse).unwrap();
    managers.admin(&"vault".parse().unwrap()).unwrap()
}

fn fetch(config: &Path, reference: &str) -> Result<Secret, KeyError> {
    let managers = KeyManagers::new(Some(config), FixedKey::Refuse).unwrap();
    managers.source(&reference.parse().unwrap()).unwrap().fetch()
}

fn spec(bits: u32) -> KeySpec {
    KeySpec { name: None, kind: KeyKind::Symmetric, bits, volume: None }
}

#[test]
fn keeps_every_promise_of_a_key_manager() {
    let vault = Vault::start();
    for (way, keeps_versions) in WAYS {
        let new_store =
            || vault.client(&vault.role("disks"), &format!("{way}folder = \"{}\"\n", unique("folder")));
        conformance::run_all(|| {
            let config = new_store();
            let manager: Box<dyn KeyManager> = admin_of(&config);
            conformance::Subject {
                manager,
                name: "vault".to_owned(),
                put: Box::new(move |bytes| {
                    let material = Secret::read_from(bytes).ok()?;
                    Some(admin_of(&config).store(&spec(bytes.len() as u32 * 8), &material).unwrap().id)
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
                keeps_versions,
            }
        });
    }
}

/// With the policy of docs/keys.md, a role that serves one disk reads its key and nothing else.
#[test]
fn a_role_may_be_let_at_one_key() {
    let vault = Vault::start();
    let transit = "transit-key = \"disks\"\n";
    let manager = admin_of(&vault.client(&vault.role("disks"), transit));
    let [ours, other] = [(); 2].map(|()| manager.create(&spec(512)).unwrap().id);
    let policy = format!(
        "path \"secret/data/{ours}\" {{ capabilities = [\"read\"] }}\n\
         path \"transit/decrypt/disks\" {{ capabilities = [\"update\"] }}\n"
    );
    vault.allow("vm1", &policy);
    let config = vault.client(&vault.role("vm1"), transit);
    assert!(fetch(&config, &format!("vault:{ours}")).unwrap().expose().len() == 64);
    for error in
        [fetch(&config, &format!("vault:{other}")).unwrap_err(), admin_of(&config).list().unwrap_err()]
    {
        assert!(matches!(error, KeyError::NotAllowed { .. }), "{error}");
    }
}

#[test]
fn a_secret_id_that_is_revoked_lets_nobody_in() {
    let vault = Vault::start();
    vault.ask(NAMESPACE, "POST", "old/vm1", &json!({"key": "AAECAw==", "note": "by hand"}));
    let role = vault.role("disks");
    let config = vault.client(&role, "mount = \"old\"\nkv-version = 1\nfield = \"key\"\n");
    assert_eq!(fetch(&config, "vault+base64:vm1").unwrap().expose(), [0, 1, 2, 3]);
    let path = "auth/approle/role/disks/secret-id-accessor/destroy";
    vault.ask(NAMESPACE, "POST", path, &json!({"secret_id_accessor": role.secret_id_accessor}));
    let error = fetch(&config, "vault+base64:vm1").unwrap_err();
    assert!(!error.to_string().contains(&role.secret_id), "{error}");
    assert!(matches!(error, KeyError::NotAllowed { .. }), "{error}");
}

#[test]
fn a_token_is_renewed_and_replaced() {
    let vault = Vault::start();
    let key = admin_of(&vault.client(&vault.role("disks"), "")).create(&spec(256)).unwrap().id;
    let reference = format!("vault:{key}");
    let renew = "renew-token = true\n";

    let renewed = |token: &str| {
        let known = vault.ask(NAMESPACE, "POST", "auth/token/lookup", &json!({"token": token}));
        known["data"]["last_renewal_time"].is_number()
    };
    for (more, is_renewed) in [("", false), (renew, true)] {
        let (token, config) = vault.client_with_token(json!({"ttl": "1h"}), more);
        assert_eq!(fetch(&config, &reference).unwrap().expose().len(), 32);
        assert_eq!(renewed(&token), is_renewed);
    }
    let (_, config) = vault.client_with_token(json!({"ttl": "1h", "renewable": false}), renew);
    let error = fetch(&config, &reference).unwrap_err();
    assert!(matches!(error, KeyError::NotAllowed { .. }), "{error}");
    assert!(error.to_string().contains("`renew-token`"), "{error}");

    let (token, config) = vault.client_with_token(json!({"ttl": "1h"}), "");
    vault.ask(NAMESPACE, "POST", "auth/token/revoke", &json!({"token": token}));
    let error = fetch(&config, &reference).unwrap_err();
    assert!(matches!(error, KeyError::NotAllowed { .. }), "{error}");
    assert!(!error.to_string().contains(&token), "{error}");

    // A role's token that ends in mid-use is replaced by another.
    let admin = admin_of(&vault.client(&vault.role("disks"), ""));
    assert_eq!(admin.list().unwrap().len(), 1);
    vault.ask(NAMESPACE, "POST", "sys/leases/revoke-prefix/auth/approle", &json!({}));
    assert_eq!(admin.list().unwrap().len(), 1);
}

#[test]
fn a_sealed_server_is_an_outage() {
    let vault = Vault::start();
    let config = vault.client(&vault.role("disks"), "");
    assert!(admin_of(&config).list().unwrap().is_empty());
    vault.ask("", "PUT", "sys/seal", &json!({}));
    let error = admin_of(&config).fetch(&KeyId::new("vm1")).unwrap_err();
    assert!(matches!(error, KeyError::Unreachable { .. }), "{error}");
}
