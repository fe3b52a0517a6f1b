//! What servers do that real ones do not do on demand. (Real ones: tests/key_servers.)

use std::fs;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::keys::conformance::watch::{KEY, assert_hidden_in_error};
use crate::keys::doctor::{self, Link};
use crate::keys::http::host;
use crate::keys::http::stub::{Received, Reply, Stub};
use crate::keys::{KeyError, KeyKind, Secret};

const UUID: &str = "0b1c2d3e-4f50-4617-8293-a4b5c6d7e8f9";

/// What lets us in, in these tests. Must not show anywhere.
const PASSWORD: &str = "correct horse battery staple";

/// A host with a password.
struct Host(host::Host);

impl Deref for Host {
    type Target = host::Host;

    fn deref(&self) -> &host::Host {
        &self.0
    }
}

impl Host {
    /// One whose profile is `profile`, with `{}` for the path of the password.
    fn new(profile: &str) -> Self {
        let host = Self(host::Host::empty());
        host.write("password", &format!("{PASSWORD}\n"));
        let profile = profile.replace("{}", &host.path("password").display().to_string());
        host.write("keys.toml", &format!("[barbican.default]\n{profile}"));
        host
    }

    /// One that is let in by a user's password at `url`, and is not patient.
    fn at(url: &str) -> Self {
        Self::new(&format!(
            "auth-url = '{url}'\nuser-name = 'u'\nproject-name = 'p'\npassword = 'file:{{}}'\ntimeout-seconds = 1\n"
        ))
    }

    fn fetch(&self) -> Result<Secret, KeyError> {
        self.source(&format!("barbican:{UUID}")).fetch()
    }
}

fn token(url: &str) -> Reply {
    token_until("2020-01-01T01:00:00.000000Z", "T0KEN", url)
}

/// A token `text` that is issued at the beginning of 2020.
fn token_until(expires_at: &str, text: &str, url: &str) -> Reply {
    let body = format!(
        r#"{{"token": {{"issued_at": "2020-01-01T00:00:00.000000Z", "expires_at": "{expires_at}",
            "catalog": [{{"type": "identity", "endpoints": []}},
                        {{"type": "key-manager", "endpoints": [
                            {{"interface": "internal", "region_id": "two", "url": "http://127.0.0.1:1"}},
                            {{"interface": "public", "region_id": "one", "url": "{url}"}}]}}]}}}}"#
    );
    Reply::Answer(201, vec![format!("X-Subject-Token: {text}")], body.into_bytes())
}

fn record(secret_type: &str, content_type: &str) -> Reply {
    Reply::json(
        200,
        format!(
            r#"{{"secret_ref": "http://192.0.2.1/v1/secrets/{UUID}", "status": "ACTIVE", "secret_type": "{secret_type}",
                "bit_length": 512, "content_types": {{"default": "{content_type}"}}}}"#
        ),
    )
}

fn payload() -> Reply {
    Reply::Answer(200, vec![], KEY.to_vec())
}

/// Keystone and Barbican in one, as they should be.
fn good(request: &Received, url: &str) -> Reply {
    match request.line.as_str() {
        "POST /v3/auth/tokens" => token(url),
        line if line == format!("GET /v1/secrets/{UUID}") => record("symmetric", "application/octet-stream"),
        line if line == format!("GET /v1/secrets/{UUID}/payload") => payload(),
        _ => Reply::status(404),
    }
}

/// The same, but for one request.
fn but(line: &'static str, reply: impl Fn() -> Reply + Send + 'static) -> Stub {
    Stub::new(move |request, url| if request.line == line { reply() } else { good(request, url) })
}

/// A failed fetch, of which nothing secret shows.
#[track_caller]
fn failure(host: &Host) -> KeyError {
    let error = host.fetch().expect_err("it should fail");
    assert_hidden_in_error(&error);
    let shown = format!("{error} {error:?}");
    assert!(!shown.contains(PASSWORD) && !shown.contains("T0KEN"), "{shown}");
    assert!(!error.to_string().contains('\n'), "{error}");
    error
}

const TOKENS: &str = "POST /v3/auth/tokens";
const RECORD: &str = "GET /v1/secrets/0b1c2d3e-4f50-4617-8293-a4b5c6d7e8f9";
const PAYLOAD: &str = "GET /v1/secrets/0b1c2d3e-4f50-4617-8293-a4b5c6d7e8f9/payload";

#[test]
fn a_key_is_fetched_in_three_requests() {
    let stub = Stub::new(good);
    let secret = Host::at(&stub.url).fetch().unwrap();
    assert!(secret.expose() == KEY && secret.kind() == KeyKind::Symmetric);
    let lines: Vec<String> = stub.received().into_iter().map(|request| request.line).collect();
    assert_eq!(lines, [TOKENS, RECORD, PAYLOAD]);
    let asked = &stub.received()[0];
    let body: serde_json::Value = serde_json::from_str(&asked.body).unwrap();
    assert_eq!(body["auth"]["identity"]["password"]["user"]["password"], PASSWORD, "without its line end");
    assert_eq!(body["auth"]["identity"]["password"]["user"]["domain"]["id"], "default");
    assert!(stub.received()[1..].iter().all(|request| request.header("x-auth-token") == Some("T0KEN")));
    assert_eq!(stub.received()[2].header("accept"), Some("application/octet-stream"));
}

#[test]
fn what_a_secret_is_decides_what_openstack_makes_of_it() {
    for (secret_type, content_type, kind) in [
        ("symmetric", "application/octet-stream", KeyKind::Symmetric),
        ("opaque", "text/plain;charset=utf-8", KeyKind::Symmetric),
        ("passphrase", "text/plain", KeyKind::Passphrase),
    ] {
        let stub = but(RECORD, move || record(secret_type, content_type));
        let host = Host::at(&stub.url);
        assert_eq!(host.fetch().unwrap().kind(), kind);
        assert_eq!(stub.received()[2].header("accept"), Some(content_type));
        let passphrase = host.source(&format!("barbican+openstack:{UUID}")).fetch().unwrap();
        let text = base16ct::lower::encode_string(KEY);
        let expected = if kind == KeyKind::Passphrase { &KEY[..] } else { text.as_bytes() };
        assert!(passphrase.expose() == expected, "{secret_type}");
    }
    for (secret_type, content_type) in
        [("certificate", "application/octet-stream"), ("symmetric", "image/png")]
    {
        let stub = but(RECORD, move || record(secret_type, content_type));
        assert!(matches!(failure(&Host::at(&stub.url)), KeyError::Malformed { .. }));
    }
    let stub =
        but(RECORD, || Reply::json(200, format!(r#"{{"secret_ref": "x/{UUID}", "status": "ACTIVE"}}"#)));
    assert!(matches!(failure(&Host::at(&stub.url)), KeyError::NotFound { .. }), "nothing in it yet");
}

#[test]
fn a_volume_is_registered_as_a_consumer_where_that_is_wanted() {
    let uses = "POST /v1/secrets/0b1c2d3e-4f50-4617-8293-a4b5c6d7e8f9/consumers";
    let stub = but(uses, || Reply::status(200));
    let host = Host::at(&stub.url);
    let note_use = || host.source(&format!("barbican:{UUID}")).note_use("/dev/vg0/vm1");
    note_use().unwrap();
    assert_eq!(stub.received().len(), 0, "nobody asked for it");
    let config = fs::read_to_string(host.path("keys.toml")).unwrap();
    host.write("keys.toml", &format!("{config}register-consumers = true\n"));
    note_use().unwrap();
    let told = stub.received().pop().unwrap();
    assert_eq!(told.line, uses);
    let consumer: serde_json::Value = serde_json::from_str(&told.body).unwrap();
    assert_eq!((&consumer["service"], &consumer["resource_id"]), (&"sealblk".into(), &"/dev/vg0/vm1".into()));

    let refusing = but(uses, || Reply::status(401));
    let config = fs::read_to_string(host.path("keys.toml")).unwrap();
    host.write("keys.toml", &config.replace(&stub.url, &refusing.url));
    assert!(matches!(
        host.source(&format!("barbican:{UUID}")).note_use("x"),
        Err(KeyError::NotAllowed { .. })
    ));
}

#[test]
fn a_token_that_ended_early_is_replaced_once() {
    let refusals = AtomicUsize::new(1);
    let stub = Stub::new(move |request, url| match request.line.as_str() {
        PAYLOAD if refusals.swap(0, Ordering::Relaxed) > 0 => Reply::status(401),
        _ => good(request, url),
    });
    assert!(Host::at(&stub.url).fetch().unwrap().expose() == KEY);
    assert_eq!(stub.count(TOKENS), 2);

    let stub = but(PAYLOAD, || Reply::status(401));
    let error = failure(&Host::at(&stub.url));
    assert!(matches!(error, KeyError::NotAllowed { .. }), "{error}");
    assert!(error.to_string().contains("access rules"), "{error}");
    assert_eq!(stub.count(TOKENS), 2, "twice, and not for ever");
}

/// How long a token lasts is the time between two moments of Keystone's clock.
#[test]
fn a_token_is_replaced_before_it_ends() {
    for (expires_at, tokens) in [
        ("2020-01-01T01:00:00.000000Z", 1),
        ("2020-01-01T00:00:00.000001Z", 2),
        // It had ended when it was issued.
        ("2020-01-01T00:00:00.000000Z", 2),
        ("2019-12-31T23:00:00.000000Z", 2),
    ] {
        let given = AtomicUsize::new(0);
        let stub = Stub::new(move |request, url| match request.line.as_str() {
            TOKENS => {
                let text = format!("T0KEN-{}", given.fetch_add(1, Ordering::Relaxed) + 1);
                token_until(expires_at, &text, url)
            }
            _ => good(request, url),
        });
        assert!(Host::at(&stub.url).fetch().unwrap().expose() == KEY);
        assert_eq!(stub.count(TOKENS), tokens, "{expires_at}");
        let last = stub.received().pop().unwrap();
        assert_eq!((&*last.line, last.header("x-auth-token")), (PAYLOAD, Some(&*format!("T0KEN-{tokens}"))));
    }

    // Where Barbican takes none of them, that is an answer, and nobody asks for ever.
    let stub = Stub::new(|request, url| match request.line.as_str() {
        TOKENS => token_until("2019-12-31T23:00:00.000000Z", "T0KEN", url),
        _ => Reply::status(401),
    });
    let error = failure(&Host::at(&stub.url));
    assert!(matches!(error, KeyError::NotAllowed { .. }), "{error}");
    assert_eq!((stub.count(TOKENS), stub.received().len()), (1, 2));
}

#[test]
fn refusals_are_told_from_outages() {
    for (line, status, is_outage, said) in [
        (TOKENS, 401, false, "does not accept the credentials"),
        (TOKENS, 404, false, "auth-url"),
        (TOKENS, 400, false, "check the profile"),
        (TOKENS, 503, true, "503"),
        (RECORD, 403, false, "there is no such secret"),
        (RECORD, 404, false, "there is no such secret"),
        (RECORD, 429, true, "429"),
        (PAYLOAD, 403, false, "the role member"),
        (PAYLOAD, 404, false, "there is no such secret"),
        (PAYLOAD, 500, true, "500"),
    ] {
        // What a server writes may quote what it was sent.
        let stub =
            but(line, move || Reply::json(status, format!("{{\"description\": \"{PASSWORD} T0KEN\"}}")));
        let error = failure(&Host::at(&stub.url));
        assert_eq!(matches!(error, KeyError::Unreachable { .. }), is_outage, "{line} {status}: {error}");
        assert!(error.to_string().contains(said), "{line} {status}: {error}");
    }
}

#[test]
fn redirects_are_not_followed() {
    for line in [TOKENS, RECORD, PAYLOAD] {
        for status in [301, 302, 303, 307, 308] {
            let elsewhere = Stub::new(good);
            let location = format!("Location: {}/v3/auth/tokens", elsewhere.url);
            let stub = but(line, move || Reply::Answer(status, vec![location.clone()], vec![]));
            let error = failure(&Host::at(&stub.url));
            assert!(matches!(error, KeyError::NotAllowed { .. }), "{line} {status}: {error}");
            assert_eq!(elsewhere.received().len(), 0, "nothing was sent there");
        }
    }
}

#[test]
fn half_answers_are_outages() {
    let head = b"HTTP/1.1 200 OK\r\nX-Subject-Token: T0KEN\r\nContent-Length: 64\r\n\r\n";
    let half = [head, &KEY[..40]].concat();
    for line in [TOKENS, RECORD, PAYLOAD] {
        let status_line = b"HTTP/1.1 20".to_vec();
        let headers = b"HTTP/1.1 200 OK\r\nX-Subject-Tok".to_vec();
        for bytes in [Vec::new(), status_line, headers, half.clone()] {
            let stub = but(line, move || Reply::Cut(bytes.clone()));
            let error = failure(&Host::at(&stub.url));
            assert!(matches!(error, KeyError::Unreachable { .. }), "{line}: {error}");
        }
    }
}

#[test]
fn slow_answers_end_in_time() {
    let head = b"HTTP/1.1 200 OK\r\nX-Subject-Token: T0KEN\r\nContent-Length: 8000\r\n\r\n".to_vec();
    for line in [TOKENS, PAYLOAD] {
        let replies: [fn(Vec<u8>) -> Reply; 2] = [Reply::Silence, Reply::Dribble];
        for reply in replies {
            let head = head.clone();
            let stub = but(line, move || reply(head.clone()));
            let error = failure(&Host::at(&stub.url));
            assert!(matches!(error, KeyError::Unreachable { .. }), "{line}: {error}");
            assert!(error.to_string().contains("took too long"), "{line}: {error}");
        }
    }
    let stub = but(RECORD, || Reply::Dribble(b"HTTP/1.1 200 OK\r\nX: ".to_vec()));
    let error = failure(&Host::at(&stub.url));
    assert!(error.to_string().contains("took too long"), "{error}");
}

#[test]
fn oversized_answers_are_not_read_to_their_end() {
    for (line, body_bytes) in [(TOKENS, 3 << 20), (RECORD, 2 << 20), (PAYLOAD, 9000)] {
        let stub = but(line, move || {
            Reply::Answer(200, vec!["X-Subject-Token: T0KEN".to_owned()], vec![b' '; body_bytes])
        });
        let error = failure(&Host::at(&stub.url));
        assert!(matches!(error, KeyError::Malformed { .. }), "{line}: {error}");
    }
    let stub = but(RECORD, || Reply::Answer(200, vec![format!("X: {}", "x".repeat(200 << 10))], vec![]));
    let error = failure(&Host::at(&stub.url));
    assert!(matches!(error, KeyError::Malformed { .. }), "{error}");
}

#[test]
fn malformed_answers_are_refused() {
    let gzip = || Reply::Answer(200, vec!["Content-Encoding: gzip".to_owned()], KEY.to_vec());
    let nonsense: [fn() -> Reply; 4] = [
        || Reply::Cut(b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec()),
        || Reply::json(200, "<html>"),
        || Reply::json(200, "[[[[[[[["),
        || {
            Reply::json(
                200,
                format!(r#"{{"secret_ref": "x/{}", "status": "ACTIVE"}}"#, UUID.replace('0', "1")),
            )
        },
    ];
    for reply in nonsense {
        for line in [TOKENS, RECORD] {
            let error = failure(&Host::at(&but(line, reply).url));
            assert!(matches!(error, KeyError::Malformed { .. }), "{line}: {error}");
        }
    }
    assert!(matches!(failure(&Host::at(&but(PAYLOAD, gzip).url)), KeyError::Malformed { .. }));
    let empty = || Reply::Answer(200, vec![], vec![]);
    assert!(matches!(failure(&Host::at(&but(PAYLOAD, empty).url)), KeyError::Malformed { .. }));
}

#[test]
fn nobody_there_is_an_outage() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = failure(&Host::at(&format!("http://{gone}")));
    assert!(matches!(error, KeyError::Unreachable { .. }), "{error}");
    let host = Host::at("https://name.invalid");
    let config = fs::read_to_string(host.path("keys.toml")).unwrap();
    host.write("keys.toml", &format!("{config}tls = {{ system-roots = true }}\n"));
    // Where this machine trusts nobody, that is said first.
    let error = failure(&host);
    assert!(!matches!(error, KeyError::Malformed { .. }), "{error}");
}

#[test]
fn nothing_crosses_a_network_in_the_clear_unasked() {
    let host = Host::at("http://192.0.2.1");
    let error = failure(&host);
    assert!(matches!(error, KeyError::NotAllowed { .. }), "{error}");
    assert!(error.to_string().contains("plain-http"), "{error}");
    // The catalogue does not decide it either.
    let stub = but(TOKENS, || token("http://192.0.2.1:9311"));
    let error = failure(&Host::at(&stub.url));
    assert!(error.to_string().contains("plain-http"), "{error}");
    assert_eq!(stub.received().len(), 1);
    let error = failure(&Host::at("https://127.0.0.1:1"));
    assert!(error.to_string().contains("`ca`"), "{error}");
}

#[test]
fn the_catalogue_is_searched_by_region_and_interface() {
    for (more, reachable) in [
        ("", true),
        ("region = 'one'\n", true),
        ("region = 'two'\n", false),
        ("interface = 'admin'\n", false),
        ("region = 'two'\nendpoint = 'URL'\n", true),
    ] {
        let stub = Stub::new(good);
        let host = Host::at(&stub.url);
        let config = fs::read_to_string(host.path("keys.toml")).unwrap();
        host.write("keys.toml", &(config + &more.replace("URL", &stub.url)));
        match reachable {
            true => assert!(host.fetch().unwrap().expose() == KEY, "{more}"),
            false => {
                let error = failure(&host);
                assert!(error.to_string().contains("catalogue"), "{more}: {error}");
            }
        }
    }
}

#[test]
fn clouds_yaml_is_read_as_openstack_reads_it() {
    let stub = Stub::new(good);
    let host = Host::new("cloud = 'prod'\nclouds-file = 'CLOUDS'\n");
    let config = fs::read_to_string(host.path("keys.toml")).unwrap();
    host.write("keys.toml", &config.replace("CLOUDS", host.path("clouds.yaml").to_str().unwrap()));
    let public = format!(
        "clouds:\n  other: {{}}\n  prod:\n    region_name: one\n    auth:\n      auth_url: {}/v3\n      username: \"u\"\n      \
         project_name: p\n      user_domain_name: Default\n      project_domain_id: default\n",
        stub.url
    );
    let secret = format!("clouds: {{prod: {{auth: {{password: '{PASSWORD}'}}}}}}\n");

    host.write_with_mode("clouds.yaml", &public, 0o644);
    let error = failure(&host);
    assert!(error.to_string().contains("password"), "{error}");

    host.write("secure.yaml", &secret);
    assert!(host.fetch().unwrap().expose() == KEY);
    let body: serde_json::Value = serde_json::from_str(&stub.received()[0].body).unwrap();
    assert_eq!(body["auth"]["identity"]["password"]["user"]["domain"]["name"], "Default");
    assert_eq!(body["auth"]["identity"]["password"]["user"]["password"], PASSWORD);

    // One file for both has to be as closed as a secret.
    fs::remove_file(host.path("secure.yaml")).unwrap();
    let both = public.replace("auth:\n", &format!("auth:\n      password: '{PASSWORD}'\n"));
    host.write_with_mode("clouds.yaml", &both, 0o644);
    let error = failure(&host);
    assert!(error.to_string().contains("0644") && error.to_string().contains("chmod 600"), "{error}");
    host.write("clouds.yaml", &both);
    assert!(host.fetch().unwrap().expose() == KEY);

    for (text, said) in [
        (format!("clouds: {{prod: {{auth: {{password: [{PASSWORD}\n"), "no YAML"),
        ("clouds: {other: {}}\n".to_owned(), "there is no cloud"),
        (both.replace(&format!("'{PASSWORD}'"), "0123"), "between quotes"),
        (format!("{both}    verify: false\n"), "certificates"),
    ] {
        host.write("clouds.yaml", &text);
        let error = failure(&host);
        assert!(error.to_string().contains(said), "{said}: {error}");
    }
}

#[test]
fn the_doctor_names_the_broken_link() {
    let links = |host: &Host| {
        let mut held = Vec::new();
        let result = doctor::diagnose(&host.source(&format!("barbican:{UUID}")), |step| held.push(step.link));
        (held, result.map_err(|broken| broken.link))
    };
    let stub = Stub::new(good);
    let way = [
        Link::Reference,
        Link::Credentials,
        Link::NameResolution,
        Link::Connection,
        Link::Authentication,
        Link::NameResolution,
        Link::Connection,
        Link::KeyState,
        Link::Permission,
        Link::Length,
    ];
    assert_eq!(links(&Host::at(&stub.url)), (way.to_vec(), Ok(())));

    let broken_at = |host: &Host| links(host).1.unwrap_err();
    assert_eq!(broken_at(&Host::at(&but(TOKENS, || Reply::status(401)).url)), Link::Authentication);
    assert_eq!(broken_at(&Host::at(&but(RECORD, || Reply::status(404)).url)), Link::KeyState);
    assert_eq!(broken_at(&Host::at(&but(PAYLOAD, || Reply::status(403)).url)), Link::Permission);
    let host = Host::at(&stub.url);
    host.write_with_mode("password", "x", 0o644);
    assert_eq!(broken_at(&host), Link::Credentials);
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(broken_at(&Host::at(&format!("http://{gone}"))), Link::Connection);
    let short = || Reply::Answer(200, vec![], b"x".to_vec());
    let stub = but(PAYLOAD, short);
    let host = Host::at(&stub.url);
    let broken = doctor::diagnose(&host.source(&format!("barbican+hex:{UUID}")), |_| {}).unwrap_err();
    assert_eq!(broken.link, Link::Length);
}
