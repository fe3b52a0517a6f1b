//! What servers do that real ones do not do on demand, or that only those do which are not there to be tested with.

mod stand_in;

use std::ops::Deref;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use self::stand_in::{GIVEN_TOKEN, SECRET_ID, TOKEN, but, data, vault};
use crate::keys::conformance::watch::{KEY, assert_hidden_in_error};
use crate::keys::conformance::{self, admin};
use crate::keys::doctor::{self, Link};
use crate::keys::http::host;
use crate::keys::http::stub::{Received, Reply};
use crate::keys::{
    KeyAdmin, KeyError, KeyId, KeyKind, KeyManager, KeySpec, KeyState, SECRET_BYTES_MAX, Secret,
};

/// A host with what lets us in.
struct Host(host::Host);

impl Deref for Host {
    type Target = host::Host;

    fn deref(&self) -> &host::Host {
        &self.0
    }
}

impl Host {
    /// One that is let in by a role, with `more` in its profile.
    fn new(url: &str, more: &str) -> Self {
        Self::let_in_by(url, &format!("role-id = 'disks'\nsecret-id = 'file:@/secret-id'\n{more}"))
    }

    /// One whose profile says `more`, with `@/` for its folder, and is not patient.
    fn let_in_by(url: &str, more: &str) -> Self {
        let host = Self(host::Host::empty());
        host.write("secret-id", &format!("{SECRET_ID}\n"));
        host.write("token", &format!("{GIVEN_TOKEN}\n"));
        let more = more.replace("@/", host.path("").to_str().unwrap());
        host.write(
            "keys.toml",
            &format!(
                "[vault.default]\naddress = '{url}'\nnamespace = 'tenants/a'\ntimeout-seconds = 1\n{more}"
            ),
        );
        host
    }

    fn admin(&self) -> Box<dyn KeyAdmin> {
        self.managers().admin(&"vault".parse().unwrap()).unwrap()
    }

    fn fetch(&self, reference: &str) -> Result<Secret, KeyError> {
        self.source(reference).fetch()
    }
}

/// A failed fetch, of which nothing secret shows.
#[track_caller]
fn failure(host: &Host, reference: &str) -> KeyError {
    let error = host.fetch(reference).expect_err("it should fail");
    assert_hidden_in_error(&error);
    let shown = format!("{error} {error:?}");
    assert!([SECRET_ID, TOKEN, GIVEN_TOKEN].iter().all(|secret| !shown.contains(secret)), "{shown}");
    assert!(!error.to_string().contains('\n'), "{error}");
    error
}

fn spec(kind: KeyKind, bits: u32) -> KeySpec {
    KeySpec { name: None, kind, bits, volume: None }
}

fn key() -> Secret {
    Secret::read_from(&KEY[..]).unwrap()
}

const KV_1: &str = "mount = 'old'\nkv-version = 1\n";

#[test]
fn fetches_as_every_manager_does() {
    for more in ["", "transit-key = 'disks'\n", KV_1] {
        conformance::run_all(|| {
            let stub = vault();
            let host = Host::new(&stub.url, more);
            let manager: Box<dyn KeyManager> = host.admin();
            conformance::Subject {
                manager,
                name: "vault".to_owned(),
                put: Box::new(move |bytes| {
                    let material = Secret::read_from(bytes).ok()?;
                    let spec = spec(KeyKind::Symmetric, bytes.len() as u32 * 8);
                    Some(host.admin().store(&spec, &material).unwrap().id)
                }),
                missing: KeyId::new("sealblk/nothing"),
                // What a policy keeps from us is refused before anybody looks whether it exists.
                put_foreign: None,
                impossible: ["../sys/seal", "a/../../b", "/a", "a//b", "a/", ".", "a\nb"]
                    .into_iter()
                    .map(KeyId::new)
                    .collect(),
                fail: None,
                is_lasting: true,
                bytes_max: SECRET_BYTES_MAX,
            }
        });
    }
}

#[test]
fn manages_keys_as_every_manager_does() {
    for (more, keeps_versions) in [("", true), ("transit-key = 'disks'\n", true), (KV_1, false)] {
        admin::run_all(|| {
            let stub = vault();
            let host = Rc::new(Host::new(&stub.url, more));
            admin::Subject {
                open: Rc::new(move || host.admin()),
                open_for_another: None,
                missing: KeyId::new("sealblk/nothing"),
                keeps_versions,
            }
        });
    }
}

#[test]
fn a_transit_key_keeps_the_key_out_of_the_store() {
    let stub = vault();
    let host = Host::new(&stub.url, "transit-key = 'disks'\n");
    let stored = host.admin().store(&spec(KeyKind::Symmetric, 512), &key()).unwrap();
    let is_write = |request: &&Received| request.line.starts_with("POST /v1/secret/data/");
    let written = stub.received().iter().find(is_write).cloned().unwrap();
    assert!(written.body.contains("vault:v1:") && !written.body.contains("value"), "{}", written.line);
    let reference = format!("vault:{}", stored.id);
    assert!(host.fetch(&reference).unwrap().expose() == KEY);

    let made = host.admin().create(&spec(KeyKind::Symmetric, 512)).unwrap();
    assert_eq!(stub.count("POST /v1/transit/datakey/wrapped/disks"), 1, "it is made in Vault");
    assert_eq!(host.fetch(&format!("vault:{}", made.id)).unwrap().expose().len(), 64);

    let without = Host::new(&stub.url, "");
    assert!(matches!(failure(&without, &reference), KeyError::NotAllowed { .. }));
    let other = Host::new(&stub.url, "transit-key = 'another'\n");
    assert!(matches!(failure(&other, &reference), KeyError::Malformed { .. }));
    // As whoever wraps a key by hand writes it.
    let by_hand = but(|request| {
        let record = json!({"data": {"ciphertext": "vault:v1:====AAAA"}});
        (request.line == "GET /v1/secret/data/vm1").then(|| data(record))
    });
    let host = Host::new(&by_hand.url, "transit-key = 'disks'\n");
    assert!(matches!(failure(&host, "vault:vm1"), KeyError::Malformed { .. }));
}

#[test]
fn what_others_wrote_is_a_field_with_an_encoding() {
    let stub = vault();
    let with = |more: &str| Host::new(&stub.url, &format!("{KV_1}{more}"));
    assert!(with("").fetch("vault+base64:foreign").unwrap().expose() == KEY);
    let text = with("field = 'note'\n").fetch("vault:foreign").unwrap();
    assert!(text.expose() == b"a\n\"b\" & c" && text.kind() == KeyKind::Symmetric);
    for field in ["number", "nothing"] {
        let error = failure(&with(&format!("field = '{field}'\n")), "vault:foreign");
        assert!(matches!(error, KeyError::Malformed { .. }), "{error}");
        assert!(error.to_string().contains(field), "{error}");
    }
    assert!(matches!(failure(&with(""), "vault:foreign#2"), KeyError::NotFound { .. }));
}

#[test]
fn a_record_of_castellan_is_a_key() {
    for (kind, value, meant) in [
        ("symmetric", "00ff", Some((&b"\0\xff"[..], KeyKind::Symmetric))),
        ("opaque", "00FF", Some((b"\0\xff", KeyKind::Symmetric))),
        ("passphrase", "6162", Some((b"ab", KeyKind::Passphrase))),
        ("private", "00", None),
        ("certificate", "00", None),
        ("symmetric", "0", None),
        ("symmetric", "", None),
    ] {
        let stub = but(move |request| {
            let record = json!({"type": kind, "value": value, "algorithm": "aes", "bit_length": 16,
                                "name": null, "created": 1_700_000_000});
            (request.line == "GET /v1/secret/data/3f0c").then(|| data(json!({"data": record})))
        });
        let host = Host::new(&stub.url, "");
        match meant {
            Some((bytes, kind)) => {
                let secret = host.fetch("vault:3f0c").unwrap();
                assert!(secret.expose() == bytes && secret.kind() == kind, "{value}");
            }
            None => {
                let error = failure(&host, "vault:3f0c");
                assert!(matches!(error, KeyError::Malformed { .. }), "{kind}: {error}");
            }
        }
    }
    // What others call `type` is none of castellan's business.
    let stub = but(|request| {
        let record = json!({"type": "luks", "value": "secret"});
        (request.line == "GET /v1/secret/data/vm1").then(|| data(json!({"data": record})))
    });
    assert!(Host::new(&stub.url, "").fetch("vault:vm1").unwrap().expose() == b"secret");
}

#[test]
fn no_path_leads_out_of_the_mount() {
    let stub = vault();
    let host = Host::new(&stub.url, "");
    for path in ["../sys/seal", "a/../../b", "/a", "a//b", "a/", "."] {
        assert!(matches!(failure(&host, &format!("vault:{path}")), KeyError::NotFound { .. }), "{path}");
    }
    assert_eq!(stub.received().len(), 0);
    failure(&host, "vault:a?version=1&x=/\u{e9}");
    let asked = stub.received().pop().unwrap();
    assert_eq!(asked.line, "GET /v1/secret/data/a%3Fversion%3D1%26x%3D/%C3%A9");
}

#[test]
fn a_token_that_is_given_is_used_and_renewed() {
    let renewals = "POST /v1/auth/token/renew-self";
    for (more, renewed) in [("", 0), ("renew-token = true\n", 1)] {
        let stub = vault();
        let host = Host::let_in_by(&stub.url, &format!("token = 'file:@/token'\n{more}"));
        let stored = host.admin().store(&spec(KeyKind::Symmetric, 512), &key()).unwrap();
        let before = stub.count(renewals);
        assert!(host.fetch(&format!("vault:{}", stored.id)).unwrap().expose() == KEY);
        assert_eq!(stub.count(renewals) - before, renewed);
        assert_eq!(stub.count("POST /v1/auth/approle"), 0);
        let all = stub.received();
        assert!(all.iter().all(|request| request.header("x-vault-token") == Some(GIVEN_TOKEN)));
    }
    let stub = vault();
    let host = Host::let_in_by(&stub.url, "token = 'file:@/token'\n");
    host.write("token", &format!("{GIVEN_TOKEN}\n\n"));
    let error = failure(&host, "vault:vm1");
    assert!(error.to_string().contains("not one word"), "{error}");
    assert_eq!(stub.received().len(), 0);
    let stub = but(|request| request.line.ends_with("/renew-self").then(|| Reply::status(400)));
    let host = Host::let_in_by(&stub.url, "token = 'file:@/token'\nrenew-token = true\n");
    let error = failure(&host, "vault:vm1");
    assert!(error.to_string().contains("`renew-token`"), "{error}");
}

#[test]
fn a_token_that_ended_is_replaced_once() {
    let lists = AtomicUsize::new(0);
    let stub = but(move |request| {
        let is_list = request.line.starts_with("LIST");
        (is_list && lists.fetch_add(1, Ordering::Relaxed) == 1).then(|| Reply::status(403))
    });
    let host = Host::new(&stub.url, "");
    let admin = host.admin();
    assert!(admin.list().unwrap().is_empty() && admin.list().unwrap().is_empty());
    assert_eq!(stub.count("POST /v1/auth/approle/login"), 2);

    // One that lasts a second is not used for another.
    let stub = but(|request| {
        let auth = json!({"auth": {"client_token": TOKEN, "lease_duration": 1}});
        request.line.ends_with("/login").then(|| Reply::json(200, auth.to_string()))
    });
    let host = Host::new(&stub.url, "");
    let admin = host.admin();
    assert!(admin.list().unwrap().is_empty() && admin.list().unwrap().is_empty());
    assert_eq!(stub.count("POST /v1/auth/approle/login"), 2);
}

#[test]
fn a_profile_says_in_one_way_by_what_we_are_let_in() {
    let stub = vault();
    for more in ["", "token = 'file:@/token'\nrole-id = 'disks'\n", "secret-id = 'file:@/secret-id'\n"] {
        let error = failure(&Host::let_in_by(&stub.url, more), "vault:vm1");
        assert!(matches!(error, KeyError::NotAllowed { .. }), "{error}");
    }
    assert_eq!(stub.received().len(), 0);
    let error = failure(&Host::new("http://192.0.2.1", ""), "vault:vm1");
    assert!(error.to_string().contains("plain-http"), "{error}");
    let error = failure(&Host::new("https://127.0.0.1:1", ""), "vault:vm1");
    assert!(error.to_string().contains("`ca`"), "{error}");
}

#[test]
fn refusals_are_told_from_outages() {
    for (status, is_outage) in
        [(403, false), (400, false), (405, false), (412, true), (429, true), (473, true), (503, true)]
    {
        let stub = but(move |request| {
            let is_read = request.line.contains("/secret/");
            is_read.then(|| Reply::json(status, json!({"errors": [TOKEN]}).to_string()))
        });
        let error = failure(&Host::new(&stub.url, ""), "vault:vm1");
        assert_eq!(matches!(error, KeyError::Unreachable { .. }), is_outage, "{status}: {error}");
    }
    let stub = vault();
    let host = Host::new(&stub.url, "");
    host.write("secret-id", "another");
    let error = failure(&host, "vault:vm1");
    assert!(matches!(error, KeyError::NotAllowed { .. }), "{error}");
    assert!(error.to_string().contains("secret-id"), "{error}");
}

#[test]
fn answers_that_are_none_are_refused() {
    let broken: [fn() -> Reply; 6] = [
        || data(json!({"data": {"type": "symmetric"}})),
        || data(json!({"data": {"value": ["x"]}})),
        || Reply::json(200, "[1"),
        || Reply::json(200, "{}"),
        || Reply::Answer(200, vec![], vec![b' '; 2 << 20]),
        || Reply::Answer(200, vec!["Content-Encoding: gzip".to_owned()], vec![]),
    ];
    for reply in broken {
        let stub = but(move |request| request.line.contains("/secret/").then(reply));
        let error = failure(&Host::new(&stub.url, ""), "vault:vm1");
        assert!(matches!(error, KeyError::Malformed { .. }), "{error}");
    }
    let redirect = || Reply::Answer(307, vec!["Location: http://127.0.0.1:1/".to_owned()], vec![]);
    for path in ["/login", "/secret/"] {
        let stub = but(move |request| request.line.contains(path).then(redirect));
        let error = failure(&Host::new(&stub.url, ""), "vault:vm1");
        assert!(matches!(error, KeyError::NotAllowed { .. }), "{error}");
        let half = b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n{";
        let stub = but(move |request| request.line.contains(path).then(|| Reply::Dribble(half.to_vec())));
        let error = failure(&Host::new(&stub.url, ""), "vault:vm1");
        assert!(error.to_string().contains("took too long"), "{error}");
        let stub = but(move |request| request.line.contains(path).then(|| Reply::Cut(half.to_vec())));
        let error = failure(&Host::new(&stub.url, ""), "vault:vm1");
        assert!(matches!(error, KeyError::Unreachable { .. }), "{error}");
    }
}

#[test]
fn a_key_that_cannot_be_written_leaves_nothing_behind() {
    let stub = but(|request| request.line.starts_with("POST /v1/secret/data/").then(|| Reply::status(403)));
    let host = Host::new(&stub.url, "");
    let admin = host.admin();
    let error = admin.create(&spec(KeyKind::Symmetric, 256)).unwrap_err();
    assert!(matches!(error, KeyError::NotAllowed { .. }), "{error}");
    assert_eq!(stub.count("DELETE /v1/secret/metadata/sealblk/"), 1);
    assert!(admin.list().unwrap().is_empty());
}

#[test]
fn two_who_rotate_at_once_do_not_overwrite_each_other() {
    // Somebody else was faster than our second write.
    let stub = but(|request| {
        let is_second =
            request.line.starts_with("POST /v1/secret/data/") && request.body.contains("\"cas\":1");
        is_second.then(|| Reply::status(400))
    });
    let host = Host::new(&stub.url, "");
    let key = host.admin().create(&spec(KeyKind::Symmetric, 256)).unwrap();
    let error = host.admin().rotate(&key.id).unwrap_err();
    assert!(matches!(error, KeyError::NotAllowed { .. }), "{error}");
    assert!(error.to_string().contains("somebody else"), "{error}");
}

#[test]
fn a_version_that_was_deleted_is_not_there() {
    let stub = but(|request| {
        let versions = json!({
            "1": {"created_time": "2026-01-01T00:00:00Z", "deletion_time": "2026-01-02T00:00:00Z", "destroyed": false},
            "2": {"created_time": "2026-01-01T00:00:00Z", "deletion_time": "9000-01-01T00:00:00Z", "destroyed": false},
            "3": {"created_time": "2026-01-01T00:00:00Z", "deletion_time": "", "destroyed": true}});
        let notes = json!({"created_time": "2026-01-01T00:00:00Z", "current_version": 3, "versions": versions,
                           "custom_metadata": null});
        (request.line == "GET /v1/secret/metadata/vm1").then(|| data(notes))
    });
    let host = Host::new(&stub.url, "");
    let admin = host.admin();
    let state = |version| admin.metadata(&KeyId::new("vm1").with_version(version)).unwrap().state;
    assert_eq!([1, 2, 3].map(state), [KeyState::Destroyed, KeyState::Deactivated, KeyState::Destroyed]);
    assert!(matches!(admin.rotate(&KeyId::new("vm1")), Err(KeyError::NotFound { .. })));
    assert!(matches!(admin.metadata(&KeyId::new("vm1").with_version(4)), Err(KeyError::NotFound { .. })));
}

#[test]
fn the_doctor_names_the_broken_link() {
    let links = |host: &Host, reference: &str| {
        let mut held = Vec::new();
        let result = doctor::diagnose(&host.source(reference), |step| held.push(step.link));
        (held, result.map_err(|broken| broken.link))
    };
    let stub = vault();
    let host = Host::new(&stub.url, "transit-key = 'disks'\n");
    let key = host.admin().create(&spec(KeyKind::Symmetric, 256)).unwrap();
    let reference = format!("vault:{}", key.id);
    let way = [
        Link::Reference,
        Link::Credentials,
        Link::NameResolution,
        Link::Connection,
        Link::Authentication,
        Link::Permission,
        Link::KeyState,
        Link::Permission,
        Link::Length,
    ];
    let (held, result) = links(&host, &reference);
    assert!(held == way && result.is_ok(), "{held:?}");

    let broken_at = |host: &Host, reference: &str| links(host, reference).1.unwrap_err();
    assert_eq!(broken_at(&host, "vault:../x"), Link::Reference);
    assert_eq!(broken_at(&host, "vault:nothing"), Link::KeyState);
    assert_eq!(broken_at(&host, &format!("vault+hex:{}", key.id)), Link::Length);
    assert_eq!(broken_at(&Host::new(&stub.url, ""), &reference), Link::Permission);
    assert_eq!(broken_at(&Host::let_in_by(&stub.url, ""), &reference), Link::Credentials);
    host.write("secret-id", "another");
    assert_eq!(broken_at(&host, &reference), Link::Authentication);
    let refusing = but(|request| request.line.contains("/secret/").then(|| Reply::status(403)));
    assert_eq!(broken_at(&Host::new(&refusing.url, ""), "vault:vm1"), Link::Permission);
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(broken_at(&Host::new(&format!("http://{gone}"), ""), "vault:vm1"), Link::Connection);
}
