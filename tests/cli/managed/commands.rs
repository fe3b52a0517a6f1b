//! What each command says, and what it refuses.

use std::process::Stdio;

use serde_json::json;

use super::terminal::Terminal;
use super::*;

fn is_uuid(text: &Value) -> bool {
    text.as_str().is_some_and(|text| text.parse::<uuid::Uuid>().is_ok())
}

#[test]
fn a_key_lives_from_its_creation_to_its_destruction() {
    let bench = Bench::with_keystore();
    assert_eq!(bench.manage("key list"), json!({"key_manager": "keystore", "keys": []}));
    let mut made = bench.manage("key create --name web-1 --volume /dev/vg/web --bits 512");
    let id = made["id"].as_str().unwrap().to_owned();
    assert!(is_uuid(&made["id"]) && made["created"].take().is_string());
    let expected = json!({
        "reference": format!("keystore:{id}"), "id": id, "version": 1, "name": "web-1", "kind": "symmetric",
        "bits": 512, "state": "active", "volume": "/dev/vg/web", "created": null,
    });
    assert_eq!(made, expected);
    bench.run(&format!("key create --name web-1 {CONFIG}")).refused(KEY, &["a key of this name already"]);

    let rotated = bench.manage(&format!("key rotate {id}"));
    assert_eq!((&rotated["version"], &rotated["state"]), (&json!(2), &json!("active")));
    assert_eq!(bench.manage(&format!("key show {id}#1"))["state"], "deactivated");
    assert_eq!(bench.manage(&format!("key show keystore:{id}"))["version"], 2);

    let destroy = format!("key destroy {id}#1 {CONFIG}");
    bench.run(&destroy).refused(REFUSED, &["the version", "(web-1) will be destroyed", "--yes"]);
    assert_eq!(bench.manage(&format!("key show {id}#1"))["state"], "deactivated", "not without --yes");
    let destroyed = bench.manage(&format!("key destroy {id}#1 --yes"));
    assert_eq!(destroyed, json!({"reference": format!("keystore:{id}#1"), "destroyed": true}));
    assert_eq!(bench.manage(&format!("key show {id}#1"))["state"], "destroyed");
    assert_eq!(bench.manage("key list")["keys"][0]["version"], 2, "the other version stays");

    bench.manage(&format!("key destroy {id} --yes"));
    assert_eq!(bench.manage("key list")["keys"], json!([]));
    assert_eq!(bench.manage("key list --all")["keys"][0]["state"], "destroyed");
    bench.run(&format!("key rotate {id} {CONFIG}")).refused(KEY, &["destroyed, for good"]);
    bench.manage(&format!("key destroy {id} --yes"));
}

#[test]
fn keys_are_listed_for_people_too() {
    let bench = Bench::with_keystore();
    let key = bench.create_key();
    bench.manage("key create --kind passphrase --name web");
    let listing = bench.run(&format!("key list {CONFIG}"));
    assert_eq!((listing.code, listing.stdout.lines().count()), (0, 3), "{}", listing.stdout);
    for part in ["VERSION", "STATE", "symmetric", "passphrase", "web", key.strip_prefix("keystore:").unwrap()]
    {
        assert!(listing.stdout.contains(part), "no {part} in: {}", listing.stdout);
    }
    let shown = bench.run(&format!("key show {key} {CONFIG}"));
    for part in [key.as_str(), "version 1, active", "256 bits", "created "] {
        assert!(shown.stdout.contains(part), "no {part} in: {}", shown.stdout);
    }
}

#[test]
fn a_key_comes_in_and_goes_out_as_it_is() {
    let bench = Bench::with_keystore();
    let stored = bench.manage("key import --from file:key --name old");
    assert_eq!((&stored["bits"], &stored["kind"]), (&json!(512), &json!("symmetric")));
    let key = stored["reference"].as_str().unwrap();
    let exported = bench.manage(&format!("key export {key} --to out"));
    assert_eq!(exported, json!({"reference": key, "file": "out", "bytes": 64}));
    assert_eq!(bench.bytes("out"), KEY_BYTES);
    assert_eq!(fs::metadata(bench.path("out")).unwrap().permissions().mode() & 0o777, 0o600);
    bench.run(&format!("key export {key} --to out {CONFIG}")).refused(REFUSED, &["out exists"]);
    bench
        .run(&format!("key export {key} --to no/out {CONFIG}"))
        .refused(FAILURE, &["no/out", "No such file"]);
    let piped = bench.shell(&format!("$S key export {key} --to - {CONFIG} | cat >piped"));
    assert_eq!((piped.code, piped.stderr.as_str()), (0, ""));
    assert_eq!(bench.bytes("piped"), KEY_BYTES);
    bench
        .shell(&format!("$S key export {key} --to - {CONFIG} >/dev/full"))
        .refused(FAILURE, &["standard output"]);

    let hexadecimal: String = KEY_BYTES.iter().map(|byte| format!("{byte:02x}\n")).collect();
    bench.write_key("key.hex", hexadecimal.as_bytes());
    let stored = bench.manage("key import --from file+hex:key.hex");
    bench.manage(&format!("key export {} --to again", stored["id"].as_str().unwrap()));
    assert_eq!(bench.bytes("again"), KEY_BYTES);
    bench.write_key("empty", b"");
    for (from, code, part) in [
        ("file:missing", KEY, "not found"),
        ("file:empty", KEY, "is empty"),
        ("secret", USAGE, "--from: a key is named by reference"),
        ("keystore:00000000-0000-0000-0000-000000000000", KEY, "not found"),
    ] {
        bench.run(&format!("key import --from {from} {CONFIG}")).refused(code, &[part]);
    }
    bench.write_key("binary", &[0xff; 32]);
    bench
        .run(&format!("key import --from file:binary --kind passphrase {CONFIG}"))
        .refused(KEY, &["not UTF-8"]);
    assert_eq!(bench.manage("key list")["keys"].as_array().unwrap().len(), 2);
}

#[test]
fn a_terminal_gets_no_key_and_is_asked_before_one_is_destroyed() {
    let bench = Bench::with_keystore();
    let stored = bench.manage("key import --from file:key");
    let id = stored["id"].as_str().unwrap();
    let terminal = Terminal::open();
    let mut export = Command::new(PROGRAM);
    let arguments = format!("key export {id} --to - {CONFIG}");
    export.args(arguments.split(' ')).stdout(terminal.end()).current_dir(&bench.folder);
    let child = export.stderr(Stdio::piped()).spawn().unwrap();
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    assert_eq!(status.code(), Some(REFUSED));
    assert!(String::from_utf8(stderr).unwrap().contains("not written to a terminal"));
    let last = bench.manage(&format!("key audit --key {id}"));
    assert_eq!(last["event"], "store", "the key did not leave its manager");

    for (answer, code) in [("no\n", REFUSED), ("y\n", REFUSED), ("yes\n", 0)] {
        let terminal = Terminal::open();
        terminal.types(answer);
        let mut destroy = Command::new(PROGRAM);
        let arguments = format!("key destroy {id} {CONFIG}");
        let ended = bench.finish(destroy.args(arguments.split(' ')).stdin(terminal.end()));
        assert_eq!(ended.code, code, "{answer}: {}", ended.stderr);
        assert!(ended.stderr.contains("will be destroyed, and with it whatever only it opens. Type yes"));
    }
}

#[test]
fn the_audit_log_is_shown_whole_or_in_part() {
    let bench = Bench::with_keystore();
    let keys = [bench.create_key(), bench.create_key()];
    let id = keys[1].strip_prefix("keystore:").unwrap();
    bench.manage(&format!("key rotate {id}"));
    bench.run(&format!("key export {id} --to out {CONFIG}"));
    let entries = |more: &str| -> Vec<Value> {
        let ended = bench.run(&format!("key audit --json {more} {CONFIG}"));
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{more}");
        ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let events = |entries: &[Value]| -> Vec<String> {
        entries.iter().map(|entry| entry["event"].as_str().unwrap().to_owned()).collect()
    };
    let all = entries("");
    assert_eq!(events(&all), ["initialise", "create", "create", "rotate", "fetch"]);
    let mut last = all[4].clone();
    assert!(last["time"].take().is_string());
    let principal = format!("uid:{}", rustix::process::geteuid().as_raw());
    let expected = json!({
        "seq": 5, "time": null, "principal": principal, "event": "fetch", "key": id, "version": 2, "detail": null,
        "outcome": "done",
    });
    assert_eq!(last, expected);
    assert_eq!(entries("--after 3"), all[3..]);
    assert_eq!(events(&entries(&format!("--key {}", keys[1]))), ["create", "rotate", "fetch"]);
    assert_eq!(events(&entries(&format!("--key {id}#1"))), ["create"]);
    let text = bench.run(&format!("key audit {CONFIG}")).stdout;
    assert_eq!(text.lines().count(), 5);
    assert!(text.contains(&format!("rotate              done         {id}#2")), "{text}");
}

#[test]
fn a_keystore_is_made_once_checked_and_copied() {
    let bench = Bench::before_keystore();
    bench.run(&format!("key list {CONFIG}")).refused(KEY, &["there is no keystore at", "make one first"]);
    assert_eq!(bench.manage("keystore init"), json!({"keystore": "keystore", "initialised": true}));
    bench.run(&format!("keystore init {CONFIG}")).refused(KEY, &["is there already", "nothing was changed"]);
    let verified = bench.manage("keystore verify");
    assert_eq!((&verified["keys"], &verified["versions"]), (&json!(0), &json!(0)));
    let key = bench.create_key();
    bench.manage(&format!("keystore verify --anchor {}", verified["anchor"].as_str().unwrap()));
    let verified = bench.manage("keystore verify");
    let copied = bench.manage(&format!("keystore copy {}", bench.path("ks/copy")));
    assert_eq!(copied["file"], bench.path("ks/copy"));
    bench.run(&format!("keystore copy {} {CONFIG}", bench.path("ks/copy"))).refused(KEY, &["there already"]);
    bench.manage(&format!("key rotate {key}"));
    let anchor = bench.manage("keystore verify")["anchor"].as_str().unwrap().to_owned();
    assert_ne!(verified["anchor"], anchor.as_str());
    // The older copy is a genuine keystore, but for the anchor.
    fs::rename(bench.path("ks/copy"), bench.path("ks/keystore")).unwrap();
    assert_eq!(bench.manage("keystore verify"), verified);
    bench
        .run(&format!("keystore verify --anchor {anchor} {CONFIG}"))
        .refused(KEY, &["does not contain the given anchor"]);
    bench.run(&format!("keystore verify --anchor 7 {CONFIG}")).refused(USAGE, &["--anchor", "colon"]);
    let text = bench.run(&format!("keystore verify {CONFIG}")).stdout;
    assert!(text.contains("1 keys with 1 versions"), "{text}");
}

#[test]
fn a_new_kek_replaces_the_old_one() {
    let bench = Bench::with_keystore();
    let key = bench.create_key();
    bench.write_key("new-kek", b"An0therKekThatNobodyHasEverSeen,OrWillEverSee...");
    bench.write_keystore_profile(&format!("file:{}", bench.path("new-kek")));
    bench.run(&format!("keystore rotate-kek {CONFIG}")).refused(KEY, &["none of the keys given as KEK"]);
    let before = fs::read_to_string(bench.path("keys.toml")).unwrap();
    let both = format!("{before}kek-before = 'file:{}'\n", bench.path("kek"));
    fs::write(bench.path("keys.toml"), both).unwrap();
    assert_eq!(bench.manage("keystore rotate-kek"), json!({"keystore": "keystore", "rewrapped_keys": 1}));
    assert_eq!(bench.manage("keystore rotate-kek")["rewrapped_keys"], 0, "done is done");
    fs::write(bench.path("keys.toml"), before).unwrap();
    bench.manage(&format!("key export {key} --to out"));
    bench.manage("keystore verify");
}

#[test]
fn what_no_manager_can_do_is_refused_before_it_is_tried() {
    let bench = Bench::with_keystore();
    for (arguments, code, parts) in [
        ("key", USAGE, &["sealblk key --help"][..]),
        ("keystore", USAGE, &["sealblk keystore --help"]),
        ("key list --key-manager file", USAGE, &["gives out keys", "keystore[@PROFILE]"]),
        ("key list --key-manager safe", USAGE, &["--key-manager: unknown key manager `safe`"]),
        ("key list --key-manager keystore@prod", USAGE, &["[keystore.prod]", "keys.toml"]),
        ("key audit --key-manager file", USAGE, &["is no keystore"]),
        ("keystore init --key-manager file", USAGE, &["is no keystore"]),
        ("key create --bits 100", USAGE, &["--bits 100", "multiple of 8"]),
        ("key create --bits 64", USAGE, &["--bits 64", "from 128"]),
        ("key create --bits 65544", USAGE, &["--bits 65544"]),
        ("key create --kind riddle", USAGE, &["--kind", "passphrase"]),
        ("key show", USAGE, &["<KEY>"]),
        ("key show web", KEY, &["keystore:web not found", "UUID"]),
        ("key show web#0", USAGE, &["number from 1"]),
        ("key export web --to out", KEY, &["keystore:web not found"]),
        ("key destroy web --yes", KEY, &["keystore:web not found"]),
        ("key rotate", USAGE, &["--volume"]),
        ("key rotate web#1", KEY, &["keystore:web#1 not found"]),
        (
            "key rotate 00000000-0000-0000-0000-000000000000#1",
            KEY,
            &["only a whole key is rotated", "leave out the version"],
        ),
    ] {
        let config = if arguments.contains(' ') { CONFIG } else { "" };
        bench.run(&format!("{arguments} {config}")).refused(code, parts);
    }
    assert!(!Path::new(&bench.path("out")).exists());
    bench.set_mode("ks/keystore", 0o644);
    bench.run(&format!("key list {CONFIG}")).refused(KEY, &["0644"]);
}
