//! Keystone and Barbican, as small as they get: SQLite, and a key in Barbican's configuration file.

use std::fs::{self, File};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use base64ct::{Base64, Encoding};
use serde_json::{Value, json};

use crate::http::{Answer, Request, unique, write_secret};
use crate::server::{free_port, program};

/// How long a server may take to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// Both servers, for all tests of this process, with whose standard input they end.
pub struct Cloud {
    /// Removed by the servers when they end.
    folder: PathBuf,
    pub keystone_port: u16,
    pub barbican_port: u16,
    admin_password: String,
    admin_token: String,
    _servers: Mutex<Vec<Child>>,
}

/// A project of its own, with one user in it.
#[derive(Clone)]
pub struct Project {
    pub name: String,
    pub user: String,
    pub user_id: String,
    pub password: String,
}

/// An application credential of a user.
pub struct Credential {
    pub id: String,
    pub name: String,
    pub secret: String,
}

/// The cloud, started when it is first asked for.
pub fn cloud() -> &'static Cloud {
    static CLOUD: LazyLock<Cloud> = LazyLock::new(Cloud::start);
    &CLOUD
}

impl Cloud {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap().keep();
        let (keystone_port, barbican_port) = (free_port(), free_port());
        let mut cloud = Self {
            folder,
            keystone_port,
            barbican_port,
            admin_password: unique("admin"),
            admin_token: String::new(),
            _servers: Mutex::new(Vec::new()),
        };
        cloud.set_up_keystone();
        let keystone = cloud.serve("keystone", keystone_port);
        cloud.admin_token = cloud.token("admin", "admin", &cloud.admin_password);
        cloud.set_up_barbican();
        let barbican = cloud.serve("barbican", barbican_port);
        cloud._servers.lock().unwrap().extend([keystone, barbican]);
        cloud
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Where Identity is.
    pub fn keystone_url(&self) -> String {
        format!("http://127.0.0.1:{}/v3", self.keystone_port)
    }

    fn set_up_keystone(&self) {
        let folder = self.folder.display();
        let keys = self.path("keys");
        fs::create_dir(&keys).unwrap();
        fs::set_permissions(&keys, fs::Permissions::from_mode(0o700)).unwrap();
        let config = format!(
            "[database]\nconnection = sqlite:///{folder}/keystone.db\n[token]\nprovider = fernet\n\
             [fernet_tokens]\nkey_repository = {folder}/keys\n[fernet_receipts]\nkey_repository = {folder}/keys\n\
             [cache]\nenabled = true\nbackend = dogpile.cache.memory\n[identity]\npassword_hash_rounds = 4\n"
        );
        fs::write(self.path("keystone.conf"), config).unwrap();
        self.keystone_manage(&["db_sync"]);
        self.keystone_manage(&["fernet_setup", "--keystone-user", "root", "--keystone-group", "root"]);
        let url = self.keystone_url();
        let password = &self.admin_password;
        self.keystone_manage(&[
            "bootstrap",
            "--bootstrap-password",
            password,
            "--bootstrap-admin-url",
            &url,
            "--bootstrap-public-url",
            &url,
            "--bootstrap-internal-url",
            &url,
            "--bootstrap-region-id",
            "RegionOne",
        ]);
    }

    fn keystone_manage(&self, arguments: &[&str]) {
        let output = Command::new(program("openstack", "keystone-manage"))
            .arg("--config-file")
            .arg(self.path("keystone.conf"))
            .args(arguments)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "keystone-manage {}: {said}", arguments[0]);
    }

    fn set_up_barbican(&self) {
        let (folder, url, password) = (self.folder.display(), self.keystone_url(), &self.admin_password);
        let service = self.create("projects", "project", json!({"name": "service", "domain_id": "default"}));
        let user = self.create(
            "users",
            "user",
            json!({"name": "barbican", "domain_id": "default", "password": password}),
        );
        self.grant(&service, &user, "admin");
        let key_manager =
            self.create("services", "service", json!({"type": "key-manager", "name": "barbican"}));
        let public = format!("http://127.0.0.1:{}", self.barbican_port);
        for interface in ["public", "internal"] {
            let endpoint = json!({"service_id": key_manager, "interface": interface, "region_id": "RegionOne",
                                  "url": public});
            self.create("endpoints", "endpoint", endpoint);
        }
        self.create("roles", "role", json!({"name": "creator"}));
        fs::create_dir(self.path(".barbican")).unwrap();
        let kek = Base64::encode_string(&[7; 32]);
        // A host that secrets are not at: whoever believed it would reach nothing.
        let config = format!(
            "[DEFAULT]\nhost_href = http://127.0.0.1:9\ndb_auto_create = true\nmax_allowed_request_size_in_bytes = 100000\n\
             [database]\nconnection = sqlite:///{folder}/barbican.db\n\
             [secretstore]\nenabled_secretstore_plugins = store_crypto\n\
             [crypto]\nenabled_crypto_plugins = simple_crypto\n[simple_crypto_plugin]\nkek = {kek}\n\
             [keystone_authtoken]\nservice_type = key-manager\nwww_authenticate_uri = {url}\nauth_url = {url}\n\
             auth_type = password\nusername = barbican\npassword = {password}\nproject_name = service\n\
             user_domain_id = default\nproject_domain_id = default\ntoken_cache_time = -1\n"
        );
        fs::write(self.path(".barbican/barbican.conf"), config).unwrap();
    }

    fn serve(&self, service: &str, port: u16) -> Child {
        // Stays there to be looked at.
        let log = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{service}.log"));
        let output = File::create(&log).unwrap();
        let script =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/key_servers/python/serve_openstack.py");
        let mut server = Command::new(program("openstack", "python"))
            .arg(script)
            .arg(service)
            .arg(&self.folder)
            .arg(port.to_string())
            .stdin(Stdio::piped())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let said = || fs::read_to_string(&log).unwrap_or_default();
            assert!(server.try_wait().unwrap().is_none(), "{service} ended: {}", said());
            assert!(started.elapsed() < PATIENCE, "{service} does not listen: {}", said());
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    /// A new project with a user that may make and read keys.
    pub fn project(&self) -> Project {
        let (name, user, password) = (unique("project"), unique("user"), unique("password"));
        let id = self.create("projects", "project", json!({"name": name, "domain_id": "default"}));
        let user_id =
            self.create("users", "user", json!({"name": user, "domain_id": "default", "password": password}));
        for role in ["member", "creator"] {
            self.grant(&id, &user_id, role);
        }
        Project { name, user, user_id, password }
    }

    /// Lets a user have a role in a project.
    pub fn grant(&self, project: &str, user: &str, role: &str) {
        let roles = self.keystone("GET", &format!("/roles?name={role}"), &self.admin_token, &Value::Null);
        let role = roles.json()["roles"][0]["id"].as_str().unwrap().to_owned();
        let path = format!("/projects/{project}/users/{user}/roles/{role}");
        assert_eq!(self.keystone("PUT", &path, &self.admin_token, &Value::Null).status, 204);
    }

    fn create(&self, path: &str, what: &str, fields: Value) -> String {
        let answer = self.keystone("POST", &format!("/{path}"), &self.admin_token, &json!({what: fields}));
        assert_eq!(answer.status, 201, "{path}: {}", String::from_utf8_lossy(&answer.body));
        answer.json()[what]["id"].as_str().unwrap().to_owned()
    }

    /// A token for a user in a project.
    pub fn token(&self, user: &str, project: &str, password: &str) -> String {
        let domain = json!({"id": "default"});
        let request = json!({"auth": {
            "identity": {"methods": ["password"],
                         "password": {"user": {"name": user, "domain": domain, "password": password}}},
            "scope": {"project": {"name": project, "domain": domain}}}});
        let answer = self.keystone("POST", "/auth/tokens", "", &request);
        assert_eq!(answer.status, 201, "{}", String::from_utf8_lossy(&answer.body));
        answer.header("x-subject-token").unwrap().to_owned()
    }

    /// A request to Keystone.
    pub fn keystone(&self, method: &str, path: &str, token: &str, body: &Value) -> Answer {
        let line = format!("X-Auth-Token: {token}");
        let headers: &[&str] = if token.is_empty() { &[] } else { &[&line] };
        Request { method, path: &format!("/v3{path}"), headers, body }.send(self.keystone_port)
    }

    /// A request to Barbican.
    pub fn barbican(&self, method: &str, path: &str, token: &str, body: &Value) -> Answer {
        let headers = [&*format!("X-Auth-Token: {token}"), "OpenStack-API-Version: key-manager 1.1"];
        Request { method, path: &format!("/v1{path}"), headers: &headers, body }.send(self.barbican_port)
    }

    /// Stops taking every token of `user`.
    pub fn set_password(&self, project: &Project, password: &str) {
        let path = format!("/users/{}", project.user_id);
        let change = json!({"user": {"password": password}});
        assert_eq!(self.keystone("PATCH", &path, &self.admin_token, &change).status, 200);
    }
}

impl Project {
    pub fn token(&self) -> String {
        cloud().token(&self.user, &self.name, &self.password)
    }

    /// A file of its own with the password, and the table of a profile that lets us in by it.
    pub fn profile(&self, folder: &Path, name: &str) -> String {
        let secret = folder.join(format!("{name}.password"));
        write_secret(&secret, format!("{}\n", self.password).as_bytes());
        format!(
            "[barbican.{name}]\nauth-url = \"{}\"\nuser-name = \"{}\"\nproject-name = \"{}\"\npassword = \"file:{}\"\n",
            cloud().keystone_url(),
            self.user,
            self.name,
            secret.display(),
        )
    }

    /// Puts `payload` into Barbican as OpenStack's services do, and says what it is called.
    pub fn put(&self, secret_type: &str, payload: &[u8]) -> (u16, Option<String>) {
        let secret = json!({"secret_type": secret_type, "payload": Base64::encode_string(payload),
                            "payload_content_type": "application/octet-stream",
                            "payload_content_encoding": "base64", "algorithm": "aes"});
        let answer = cloud().barbican("POST", "/secrets", &self.token(), &secret);
        let uuid = (answer.status == 201).then(|| {
            let answer = answer.json();
            answer["secret_ref"].as_str().unwrap().rsplit('/').next().unwrap().to_owned()
        });
        (answer.status, uuid)
    }

    /// An application credential, with access rules if there are any.
    pub fn application_credential(&self, rules: &[(&str, &str)]) -> Credential {
        let rules: Vec<Value> = rules
            .iter()
            .map(|(method, path)| json!({"method": method, "path": path, "service": "key-manager"}))
            .collect();
        let mut credential = json!({"name": unique("credential"), "roles": [{"name": "member"}]});
        if !rules.is_empty() {
            credential["access_rules"] = rules.into();
        }
        let path = format!("/users/{}/application_credentials", self.user_id);
        let request = json!({"application_credential": credential});
        let answer = cloud().keystone("POST", &path, &self.token(), &request);
        assert_eq!(answer.status, 201, "{}", String::from_utf8_lossy(&answer.body));
        let text = |field: &str| answer.json()["application_credential"][field].as_str().unwrap().to_owned();
        Credential { id: text("id"), name: text("name"), secret: text("secret") }
    }

    /// Revokes it.
    pub fn revoke(&self, credential: &Credential) {
        let path = format!("/users/{}/application_credentials/{}", self.user_id, credential.id);
        assert_eq!(cloud().keystone("DELETE", &path, &self.token(), &Value::Null).status, 204);
    }
}
