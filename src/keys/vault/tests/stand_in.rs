//! A stand-in for Vault, written from the documentation of its HTTP API: KV 1 at `old`, KV 2 at `secret`, AppRole, tokens
//! that are renewed, transit, namespaces. (A real server for some of it: tests/key_servers.)

use std::collections::BTreeMap;
use std::sync::Mutex;

use base64ct::{Base64, Encoding as _};
use serde_json::{Value, json};

use crate::keys::http::stub::{Received, Reply, Stub};

/// What a role is let in by, and what it gets. Must not show anywhere.
pub(super) const SECRET_ID: &str = "84896a0c-1347-aa90-a4f6-aca8b7558780";
pub(super) const TOKEN: &str = "hvs.CAESIJ";

/// A token that somebody else gives to us. Must not show anywhere.
pub(super) const GIVEN_TOKEN: &str = "hvs.GIVEN";

/// The whole server, as it should be.
#[derive(Default)]
pub(super) struct StandIn {
    records: Mutex<Records>,
    clock: Mutex<u32>,
}

#[derive(Default)]
struct Records {
    /// By path.
    old: BTreeMap<String, Value>,
    versioned: BTreeMap<String, Entry>,
}

#[derive(Default)]
struct Entry {
    created: String,
    custom: Value,
    versions: BTreeMap<u64, (String, Option<Value>)>,
}

/// A running one.
pub(super) fn vault() -> Stub {
    let server = StandIn::default();
    Stub::new(move |request, _| server.answer(request))
}

/// One that answers by `reply` whatever it has an answer for.
pub(super) fn but(reply: impl Fn(&Received) -> Option<Reply> + Send + 'static) -> Stub {
    let server = StandIn::default();
    Stub::new(move |request, _| reply(request).unwrap_or_else(|| server.answer(request)))
}

pub(super) fn data(data: Value) -> Reply {
    Reply::json(200, json!({"request_id": "x", "lease_duration": 0, "data": data}).to_string())
}

fn missing() -> Reply {
    Reply::json(404, r#"{"errors":[]}"#)
}

fn done() -> Reply {
    Reply::Answer(204, vec![], vec![])
}

fn auth(token: &str) -> Reply {
    let auth = json!({"client_token": token, "lease_duration": 3600, "renewable": true});
    Reply::json(200, json!({"auth": auth, "data": null}).to_string())
}

fn names<'a>(paths: impl Iterator<Item = &'a String>, folder: &str) -> Reply {
    let keys: Vec<&str> = paths.filter_map(|path| path.strip_prefix(folder)).collect();
    if keys.is_empty() { missing() } else { data(json!({"keys": keys})) }
}

impl StandIn {
    pub(super) fn answer(&self, request: &Received) -> Reply {
        let (method, path) = request.line.split_once(" /v1/").unwrap();
        let body: Value = serde_json::from_str(&request.body).unwrap_or_default();
        if request.header("x-vault-namespace") != Some("tenants/a") {
            return Reply::status(404);
        }
        if path == "auth/approle/login" {
            return match body == json!({"role_id": "disks", "secret_id": SECRET_ID}) {
                true => auth(TOKEN),
                false => Reply::json(400, json!({"errors": [format!("invalid {SECRET_ID}")]}).to_string()),
            };
        }
        let token = request.header("x-vault-token");
        if ![Some(TOKEN), Some(GIVEN_TOKEN)].contains(&token) {
            return Reply::json(403, r#"{"errors":["permission denied"]}"#);
        }
        match path.split_once('/') {
            Some(("auth", "token/renew-self")) => auth(token.unwrap()),
            Some(("old", path)) => self.old(method, path, body),
            Some(("secret", path)) => self.versioned(method, path, &body),
            Some(("transit", path)) => transit(path, &body),
            _ => missing(),
        }
    }

    fn time(&self) -> String {
        let mut clock = self.clock.lock().unwrap();
        *clock += 1;
        format!("2026-01-01T00:00:00.{:09}Z", *clock)
    }

    /// Version 1 of the KV engine.
    fn old(&self, method: &str, path: &str, body: Value) -> Reply {
        let records = &mut self.records.lock().unwrap().old;
        match method {
            "GET" if path == "foreign" => {
                data(json!({"value": Base64::encode_string(super::KEY), "note": "a\n\"b\" & c", "number": 7}))
            }
            "GET" => records.get(path).map_or_else(missing, |record| data(record.clone())),
            "LIST" => names(records.keys(), path),
            "DELETE" => {
                records.remove(path);
                done()
            }
            _ => {
                records.insert(path.to_owned(), body);
                done()
            }
        }
    }

    /// Version 2 of the KV engine.
    fn versioned(&self, method: &str, path: &str, body: &Value) -> Reply {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let (kind, name) = path.split_once('/').unwrap();
        let time = self.time();
        let records = &mut self.records.lock().unwrap().versioned;
        match (method, kind) {
            ("GET", "data") => read(records.get(name), query),
            ("POST", "data") => {
                let entry = records.entry(name.to_owned()).or_insert_with(|| Entry::new(&time));
                entry.write(time, body)
            }
            ("POST", "destroy") => {
                let versions = &mut records.get_mut(name).unwrap().versions;
                for number in body["versions"].as_array().unwrap() {
                    versions.get_mut(&number.as_u64().unwrap()).unwrap().1 = None;
                }
                done()
            }
            ("LIST", "metadata") => names(records.keys(), name),
            ("GET", "metadata") => records.get(name).map_or_else(missing, Entry::metadata),
            ("DELETE", "metadata") => {
                records.remove(name);
                done()
            }
            ("POST", "metadata") => {
                let entry = records.entry(name.to_owned()).or_insert_with(|| Entry::new(&time));
                entry.custom = body["custom_metadata"].clone();
                done()
            }
            _ => Reply::status(405),
        }
    }
}

impl Entry {
    fn new(time: &str) -> Self {
        Self { created: time.to_owned(), ..Self::default() }
    }

    fn newest(&self) -> u64 {
        self.versions.keys().last().copied().unwrap_or(0)
    }

    fn write(&mut self, time: String, body: &Value) -> Reply {
        if body["options"]["cas"].as_u64() != Some(self.newest()) {
            return Reply::json(400, r#"{"errors":["check-and-set parameter did not match"]}"#);
        }
        self.versions.insert(self.newest() + 1, (time, Some(body["data"].clone())));
        data(json!({"version": self.newest()}))
    }

    fn metadata(&self) -> Reply {
        let version = |(number, (time, value)): (&u64, &(String, Option<Value>))| {
            let version = json!({"created_time": time, "deletion_time": "", "destroyed": value.is_none()});
            (number.to_string(), version)
        };
        let versions: BTreeMap<String, Value> = self.versions.iter().map(version).collect();
        data(json!({"created_time": self.created, "current_version": self.newest(), "versions": versions,
                    "custom_metadata": self.custom}))
    }
}

fn read(entry: Option<&Entry>, query: &str) -> Reply {
    let Some(entry) = entry else { return missing() };
    let number = query.strip_prefix("version=").map_or(entry.newest(), |number| number.parse().unwrap());
    match entry.versions.get(&number) {
        None => missing(),
        Some((_, None)) => Reply::json(404, json!({"data": {"data": null, "metadata": {}}}).to_string()),
        Some((time, Some(value))) => {
            data(json!({"data": value, "metadata": {"version": number, "created_time": time}}))
        }
    }
}

/// No cipher, but nothing that a reader could take for the key either.
fn transit(path: &str, body: &Value) -> Reply {
    let reversed = |text: &str| text.chars().rev().collect::<String>();
    match path {
        "encrypt/disks" => {
            let plaintext = body["plaintext"].as_str().unwrap();
            data(json!({"ciphertext": format!("vault:v1:{}", reversed(plaintext))}))
        }
        "datakey/wrapped/disks" => {
            let bytes = crate::keys::Secret::random(body["bits"].as_u64().unwrap() as usize / 8).unwrap();
            let plaintext = Base64::encode_string(bytes.expose());
            data(json!({"ciphertext": format!("vault:v1:{}", reversed(&plaintext)), "key_version": 1}))
        }
        "decrypt/disks" => match body["ciphertext"].as_str().unwrap().strip_prefix("vault:v1:") {
            Some(ciphertext) => data(json!({"plaintext": reversed(ciphertext)})),
            None => Reply::json(400, r#"{"errors":["invalid ciphertext: no prefix"]}"#),
        },
        _ => Reply::json(400, r#"{"errors":["encryption key not found"]}"#),
    }
}
