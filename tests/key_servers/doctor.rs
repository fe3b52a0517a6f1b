//! `sealblk key doctor` finds the link that is broken, whichever that is.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use sealblk::keys::conformance::watch::KEY;
use serde_json::Value;

use crate::hostile::{self, Hostile, IDENTITY, client};
use crate::kmip::Kmip;
use crate::libvirt::{self, Libvirtd};
use crate::pki::{Pki, Wish};
use crate::server::free_port;

const PROGRAM: &str = env!("CARGO_BIN_EXE_sealblk");

fn sealblk() -> Command {
    Command::new(PROGRAM)
}

/// The same, held back by the modes of files, as root is not.
fn sealblk_bound_by_modes() -> Command {
    if !rustix::process::geteuid().is_root() {
        return sealblk();
    }
    let mut command = Command::new("setpriv");
    let dropped = "-dac_override,-dac_read_search";
    command.args(["--bounding-set", dropped, "--inh-caps", dropped, PROGRAM]);
    command
}

/// What the program says, as JSON, and its exit code.
fn asked(mut program: Command, config: &Path, reference: &str) -> (Value, i32) {
    program.args(["key", "doctor", reference, "--json", "--key-config"]).arg(config);
    let ended = program.output().unwrap();
    let said = [ended.stdout.as_slice(), &ended.stderr].concat();
    assert!(!said.windows(16).any(|window| KEY.windows(16).any(|part| part == window)), "a key shows");
    let found = serde_json::from_slice(&ended.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}", String::from_utf8_lossy(&said));
    });
    (found, ended.status.code().unwrap())
}

/// The links that hold, in order; of one that was passed over it is said that it is down.
fn links(diagnosis: &Value) -> Vec<String> {
    let links = diagnosis["links"].as_array().unwrap();
    let name = |step: &Value| {
        let down = if step["holds"].as_bool().unwrap() { "" } else { " down" };
        format!("{}{down}", step["link"].as_str().unwrap())
    };
    links.iter().map(name).collect()
}

/// The whole way holds, over `expected`.
#[track_caller]
fn holds(config: &Path, reference: &str, expected: &[&str]) -> Value {
    let (diagnosis, code) = asked(sealblk(), config, reference);
    assert_eq!((code, diagnosis["ok"].as_bool()), (0, Some(true)), "{diagnosis}");
    assert_eq!(links(&diagnosis), expected);
    diagnosis
}

/// The way breaks at `link`, after `before`, with a problem that says `parts`, in one line.
#[track_caller]
fn breaks_for(program: Command, config: &Path, reference: &str, before: &str, link: &str, parts: &[&str]) {
    let (diagnosis, code) = asked(program, config, reference);
    let broken = &diagnosis["broken"];
    assert_eq!(broken["link"].as_str(), Some(link), "{diagnosis}");
    assert_eq!(broken["exit_code"].as_i64(), Some(i64::from(code)), "{diagnosis}");
    assert_ne!(code, 0);
    assert_eq!(links(&diagnosis).last().map(String::as_str), Some(before), "{diagnosis}");
    let problem = broken["problem"].as_str().unwrap();
    assert!(!problem.contains('\n'), "{problem}");
    for part in parts {
        assert!(problem.contains(part), "no `{part}` in: {problem}");
    }
}

#[track_caller]
fn breaks(config: &Path, reference: &str, before: &str, link: &str, parts: &[&str]) {
    breaks_for(sealblk(), config, reference, before, link, parts);
}

const TO_A_KMIP_SERVER: [&str; 10] = [
    "reference",
    "configuration",
    "credentials",
    "name-resolution",
    "connection",
    "tls",
    "authentication",
    "key-state",
    "permission",
    "length",
];

/// What is wrong before a server is asked.
#[test]
fn the_way_to_a_kmip_server() {
    let ours = hostile::pki();
    let dead = format!("127.0.0.1:{}", free_port());
    let config = |server: &str, more: &str| client(&ours, &[server], more);
    breaks(&config(&dead, IDENTITY), "kmip@elsewhere:1", "reference", "configuration", &["[kmip.elsewhere]"]);
    ours.write("client.key", "", 0o644);
    breaks(&config(&dead, IDENTITY), "kmip:1", "configuration", "credentials", &["client.key"]);
    let config = |server: &str| config(server, "");
    breaks(&config("kmip.invalid"), "kmip:1", "credentials", "name-resolution", &["kmip.invalid"]);
    breaks(&config(&dead), "kmip:1", "name-resolution", "connection", &["connecting to", "refused"]);
}

/// Each way in which two sides may not accept each other is told apart.
#[test]
fn the_handshake_with_a_kmip_server() {
    let (ours, theirs) = (hostile::pki(), hostile::pki());
    let breaks_at_tls = |pki: &Pki, name: &str, clients: Option<&Pki>, more: &str, parts: &[&str]| {
        let hostile = Hostile::start(hostile::server(pki, name, clients), Box::new(|_| ()));
        let config = client(&ours, &[&hostile.address], more);
        let (diagnosis, code) = asked(sealblk(), &config, "kmip:1");
        assert_eq!(diagnosis["broken"]["link"].as_str(), Some("tls"), "{diagnosis}");
        assert_eq!(diagnosis["broken"]["exit_code"].as_i64(), Some(i64::from(code)));
        let problem = diagnosis["broken"]["problem"].as_str().unwrap();
        for part in parts {
            assert!(problem.contains(part), "no `{part}` in: {problem}");
        }
    };
    breaks_at_tls(&theirs, "server", None, IDENTITY, &["not from a CA that its profile trusts"]);
    ours.issue("expired", &Wish { years: 2020..2021, ..Wish::server() });
    breaks_at_tls(
        &ours,
        "expired",
        None,
        IDENTITY,
        &["it was valid until 2021-01-01", "the clock here says"],
    );
    ours.issue("early", &Wish { years: 3000..3001, ..Wish::server() });
    breaks_at_tls(&ours, "early", None, IDENTITY, &["it will be from 3000-01-01", "the clock here says"]);
    ours.issue("another", &Wish { names: vec!["kmip2.example".to_owned()], ..Wish::server() });
    breaks_at_tls(&ours, "another", None, IDENTITY, &["for another name"]);
    breaks_at_tls(&ours, "server", Some(&theirs), IDENTITY, &["the server refuses our certificate"]);
    breaks_at_tls(&ours, "server", Some(&ours), "", &["the server asks who we are"]);
}

/// What a server that takes our certificate has to say.
#[test]
fn the_key_on_a_kmip_server() {
    let server = Kmip::start_strict();
    let (ours, theirs) = (server.new_client(), server.new_client());
    let identifiers = server.with_another_program(
        "active = client.create(A.AES, 256)\n\
         client.activate(active)\n\
         pre_active = client.create(A.AES, 256)\n\
         shown = client.create(A.AES, 256, operation_policy_name='shown to all')\n\
         client.activate(shown)\n\
         print(active, pre_active, shown)",
    );
    let [active, pre_active, shown] = identifiers.as_slice() else { panic!("{identifiers:?}") };
    let diagnosis = holds(&ours, &format!("kmip:{active}"), &TO_A_KMIP_SERVER);
    let found = diagnosis["links"].to_string();
    for part in ["127.0.0.1", "TLSv1_2", "speaks KMIP", "1.2", "active, 256 bits", "32 bytes"] {
        assert!(found.contains(part), "no `{part}` in: {found}");
    }

    // OpenSSL lets in who has a certificate without a purpose; PyKMIP does not.
    server.pki.issue("anybody", &Wish { purpose: None, ..Wish::client() });
    let anybody = server.client("anybody", &[server.server.address.to_string()]);
    breaks(&anybody, "kmip:1", "tls", "authentication", &["authentication not successful"]);

    breaks(&ours, "kmip:4711", "authentication", "key-state", &["not found"]);
    breaks(&theirs, &format!("kmip:{active}"), "authentication", "key-state", &["not found"]);
    breaks(&ours, &format!("kmip:{pre_active}"), "key-state", "key-state", &["not active yet"]);
    breaks(&theirs, &format!("kmip:{shown}"), "key-state", "permission", &["permission denied"]);
    breaks(&ours, &format!("kmip+hex:{active}"), "permission", "length", &["malformed"]);

    // Fetching passes over a server that cannot be reached, and so does the doctor.
    let dead = format!("127.0.0.1:{}", free_port());
    let both = server.client("client-0", &[dead, server.server.address.to_string()]);
    let mut around = TO_A_KMIP_SERVER.to_vec();
    around.splice(3..3, ["name-resolution", "connection down"]);
    holds(&both, &format!("kmip:{active}"), &around);
}

#[test]
fn the_way_to_a_secret_of_libvirt() {
    let mut daemon = Libvirtd::start();
    let uuid = |number: u32| format!("00000000-0000-4000-8000-{number:012}");
    let usage = "<usage type='volume'><volume>vol-1</volume></usage>";
    daemon.define(&uuid(1), "no", usage, Some(KEY));
    daemon.define(&uuid(2), "no", "", None);
    daemon.define(&uuid(3), "yes", "", Some(KEY));
    let config = daemon.config("");
    let whole = ["reference", "configuration", "library", "connection", "key-state", "permission", "length"];
    for id in [uuid(1), "volume/vol-1".to_owned()] {
        let diagnosis = holds(&config, &format!("libvirt:{id}"), &whole);
        assert!(diagnosis["links"].to_string().contains("for volume vol-1"), "{diagnosis}");
    }
    let breaks_at = |id: &str, before: &str, link: &str, parts: &[&str]| {
        breaks(&config, &format!("libvirt{id}"), before, link, parts);
    };
    breaks_at(&format!(":{}", uuid(9)), "connection", "key-state", &["has no such secret"]);
    breaks_at(&format!(":{}", uuid(2)), "key-state", "key-state", &["no value", "secret-set-value"]);
    breaks_at(&format!(":{}", uuid(3)), "key-state", "permission", &["private='no'"]);
    breaks_at(&format!("+hex:{}", uuid(1)), "permission", "length", &["malformed"]);

    // A library that is none stands before the system's.
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("libvirt.so.0"), "no library").unwrap();
    let mut misled = sealblk();
    misled.env("LD_LIBRARY_PATH", folder.path());
    let key = format!("libvirt:{}", uuid(1));
    breaks_for(misled, &config, &key, "configuration", "library", &["install libvirt"]);

    std::fs::set_permissions(daemon.socket(), std::fs::Permissions::from_mode(0o000)).unwrap();
    let ours = libvirt::config(folder.path(), &daemon.uri(), "");
    let refused = ["Permission denied", "let this user at the daemon's socket"];
    breaks_for(sealblk_bound_by_modes(), &ours, &key, "library", "authentication", &refused);

    daemon.stop();
    breaks(&config, &key, "library", "connection", &["cannot be reached"]);
    let secretless = libvirt::config(folder.path(), "test:///default", "");
    breaks(&secretless, &key, "library", "connection", &["test:///default"]);
}

/// We have no name and no password to give.
#[test]
fn a_libvirt_that_asks_who_we_are() {
    let daemon = Libvirtd::start_with("auth_unix_rw = \"sasl\"\n");
    let config = daemon.config("timeout-seconds = 60");
    let asked = ["authentication failed", "auth_unix_rw"];
    breaks(&config, "libvirt:volume/vol-1", "library", "authentication", &asked);
}
