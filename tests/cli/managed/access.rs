//! Who may do what with a key, and who is told of it.

use serde_json::json;

use super::*;

/// Users that no machine has.
const VM1: u32 = 3_000_000_001;
const VM2: u32 = 3_000_000_002;

impl Bench {
    /// Runs the program as another user, with the right to open the keystore's files and no other.
    fn run_as(&self, uid: u32, arguments: &str) -> Ended {
        let mut command = Command::new("setpriv");
        command.args([format!("--reuid={uid}"), format!("--regid={uid}")]);
        command.args(["--clear-groups", "--inh-caps=+dac_override", "--ambient-caps=+dac_override"]);
        self.finish(command.arg(PROGRAM).args(arguments.split(' ').chain(CONFIG.split(' '))))
    }
}

fn me() -> String {
    format!("uid:{}", rustix::process::geteuid().as_raw())
}

#[test]
fn rights_are_given_shown_and_taken_away() {
    let bench = Bench::with_keystore();
    let key = bench.create_key();
    let id = key.strip_prefix("keystore:").unwrap();
    let all = ["fetch", "rotate", "destroy", "grant"];
    let owner = json!({"principal": me(), "rights": all});
    let access = || bench.manage(&format!("keystore access {id}"));
    assert_eq!(access(), json!({"reference": key, "access": [owner]}));

    let granted = bench.manage(&format!("keystore grant {key} --to uid:{VM1} --right rotate --right fetch"));
    let rights = ["fetch", "rotate"];
    let principal = format!("uid:{VM1}");
    let expected = json!({"reference": key, "principal": principal, "granted": rights, "rights": rights});
    assert_eq!(granted, expected);
    let granted = bench.manage(&format!("keystore grant {id} --to uid:{VM1} --right fetch,destroy"));
    assert_eq!((&granted["granted"], &granted["rights"]), (&json!(["fetch", "destroy"]), &json!(all[..3])));
    let holders = access()["access"].clone();
    assert_eq!(holders, json!([owner, {"principal": principal, "rights": all[..3]}]));

    let revoke = format!("keystore revoke {id} --from uid:{VM1} --right destroy,rotate");
    let revoked = bench.manage(&revoke);
    let expected = json!({
        "reference": key, "principal": principal, "revoked": ["rotate", "destroy"], "rights": ["fetch"],
    });
    assert_eq!(revoked, expected);
    assert_eq!(bench.manage(&revoke), expected, "again is no error");
    let last = bench.manage(&format!("key audit --after 9 --key {id}"));
    assert_eq!((&last["event"], &last["detail"]), (&json!("revoke"), &json!(format!("{principal} destroy"))));
    bench.manage("keystore verify");
}

#[test]
fn rights_are_told_to_people_with_the_names_of_users() {
    let bench = Bench::with_keystore();
    let key = bench.create_key();
    let run = |arguments: &str| {
        let ended = bench.run(&format!("{arguments} {CONFIG}"));
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{arguments}");
        ended.stdout
    };
    let told = run(&format!("keystore grant {key} --to daemon --right fetch"));
    assert_eq!(told, format!("uid:1 (daemon) has these rights to {key}: fetch\n"));
    run(&format!("keystore grant {key} --to uid:{VM1} --right grant"));
    let table = run(&format!("keystore access {key}"));
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["PRINCIPAL", "USER", "RIGHTS"]);
    assert!(rows.contains(&vec!["uid:1", "daemon", "fetch"]), "{table}");
    assert!(rows.contains(&vec![format!("uid:{VM1}").as_str(), "-", "grant"]), "{table}");
    let told = run(&format!("keystore revoke {key} --from daemon --right fetch"));
    assert_eq!(told, format!("uid:1 (daemon) has no right to {key}\n"));
}

#[test]
fn who_gives_up_every_right_gets_it_back_as_the_administrator() {
    let bench = Bench::with_keystore();
    let key = bench.create_key();
    let give_up = format!("keystore revoke {key} --from {} --right grant,fetch,rotate,destroy", me());
    assert_eq!(bench.manage(&give_up)["rights"], json!([]));
    bench.run(&format!("key show {key} {CONFIG}")).refused(KEY, &[&key, "not found"]);
    assert_eq!(bench.manage("key list")["keys"], json!([]));
    assert_eq!(bench.manage(&format!("keystore access {key}"))["access"], json!([]));
    bench.manage(&format!("keystore grant {key} --to {} --right fetch", me()));
    bench.manage(&format!("key export {key} --to out"));
    bench.run(&format!("key rotate {key} {CONFIG}")).refused(KEY, &["may not rotate it"]);
}

#[test]
fn what_names_nobody_nothing_or_no_right_is_refused() {
    let bench = Bench::with_keystore();
    let key = bench.create_key();
    let missing = "keystore:00000000-0000-0000-0000-000000000000";
    for (arguments, code, parts) in [
        (format!("grant {key} --to nobody-of-that-name --right fetch"), USAGE, &["--to: ", "uid:N"][..]),
        (format!("grant {key} --to 1 --right fetch"), USAGE, &["--to: 1 is neither uid:N"]),
        (format!("grant {key} --to uid:01 --right fetch"), USAGE, &["--to: uid:01"]),
        (format!("revoke {key} --from uid:-1 --right fetch"), USAGE, &["--from: uid:-1"]),
        (
            format!("grant {key} --to uid:1 --right read"),
            USAGE,
            &["--right", "fetch, rotate, destroy and grant"],
        ),
        (format!("grant {key} --to uid:1"), USAGE, &["--right"]),
        (format!("revoke {key} --right fetch"), USAGE, &["--from"]),
        (format!("grant {key}#1 --to uid:1 --right fetch"), KEY, &["whole key", "leave out the version"]),
        (format!("access {key}#1"), KEY, &["whole key"]),
        (format!("grant {missing} --to uid:1 --right fetch"), KEY, &[missing, "not found"]),
        (format!("revoke {missing} --from uid:1 --right fetch"), KEY, &[missing, "not found"]),
        (format!("access {missing}"), KEY, &[missing, "not found"]),
        ("access vm1".to_owned(), KEY, &["keystore:vm1 not found", "UUID"]),
        ("access x --key-manager file".to_owned(), USAGE, &["is no keystore"]),
    ] {
        bench.run(&format!("keystore {arguments} {CONFIG}")).refused(code, parts);
    }
    let access = bench.manage(&format!("keystore access {key}"));
    assert_eq!(access["access"].as_array().unwrap().len(), 1, "nothing was changed");
}

#[test]
#[ignore = "becomes other users: needs root"]
fn a_user_fetches_its_own_key_and_sees_no_other() {
    let bench = Bench::with_keystore();
    let (own, other) = (bench.create_key(), bench.create_key());
    bench.manage(&format!("keystore grant {own} --to uid:{VM1} --right fetch"));
    bench.manage(&format!("keystore grant {other} --to uid:{VM2} --right fetch"));

    let listed = bench.run_as(VM1, "key list --json");
    assert_eq!((listed.code, listed.stderr.as_str()), (0, ""));
    let listed: Value = serde_json::from_str(&listed.stdout).unwrap();
    assert_eq!((listed["keys"].as_array().unwrap().len(), &listed["keys"][0]["reference"]), (1, &json!(own)));
    assert_eq!(bench.run_as(VM1, &format!("key export {own} --to mine")).code, 0);
    assert_eq!(bench.bytes("mine").len(), 32);
    bench.run_as(VM1, &format!("key rotate {own}")).refused(KEY, &["may not rotate it"]);
    let grant = format!("keystore grant {own} --to uid:{VM2} --right fetch");
    bench.run_as(VM1, &grant).refused(KEY, &["may not grant it"]);
    assert_eq!(bench.run_as(VM1, &format!("keystore access {own}")).code, 0);

    // As if there were none.
    let missing = "keystore:00000000-0000-0000-0000-000000000000";
    for command in ["key show KEY", "key export KEY --to out", "key rotate KEY", "keystore access KEY"] {
        let answer = |key: &str| bench.run_as(VM1, &command.replace("KEY", key)).stderr.replace(key, "KEY");
        assert!(answer(&other).contains("not found"), "{command}");
        assert_eq!(answer(&other), answer(missing), "{command}");
    }
    let change = format!("keystore grant {other} --to uid:{VM1} --right fetch");
    bench.run_as(VM1, &change).refused(KEY, &["not found"]);
    bench.manage("keystore verify");
}

#[test]
#[ignore = "becomes other users: needs root"]
fn what_one_user_leaves_beside_the_keystore_keeps_no_other_away() {
    let bench = Bench::with_keystore();
    let key = bench.create_key();
    for user in [VM1, VM2] {
        bench.manage(&format!("keystore grant {key} --to uid:{user} --right fetch"));
    }
    for companion in ["ks/keystore-wal", "ks/keystore-shm"] {
        bench.write_key(companion, b"");
        std::os::unix::fs::chown(bench.path(companion), Some(VM1), Some(VM1)).unwrap();
    }
    assert_eq!(bench.run_as(VM2, &format!("key export {key} --to out")).code, 0);
    bench.manage("keystore verify");
}

#[test]
fn the_fixed_key_is_imported_and_replaced_behind_its_gate() {
    let bench = Bench::with_keystore();
    let hexadecimal: String = KEY_BYTES.iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(bench.path("nova.conf"), format!("[key_manager]\nfixed_key = {hexadecimal}\n")).unwrap();
    let before = fs::read_to_string(bench.path("keys.toml")).unwrap();
    let profile = format!("{before}[config.nova]\npath = '{}'\n", bench.path("nova.conf"));
    fs::write(bench.path("keys.toml"), profile).unwrap();
    let fixed = "config@nova:00000000-0000-0000-0000-000000000000";

    let import = format!("key import --from {fixed}");
    bench.run(&format!("{import} {CONFIG}")).refused(USAGE, &["--insecure fixed-key"]);
    assert_eq!(bench.manage(&format!("{import} --insecure fixed-key"))["bits"], 512);
    bench.done(&format!("format vol --size 1M --type luks2 --key file:key {}", super::volumes::FAST));
    let key = bench.create_key();
    let rotate = format!("key rotate --volume vol --key {fixed} --new-key {key}");
    bench.run(&format!("{rotate} {CONFIG}")).refused(USAGE, &["--insecure fixed-key"]);
    assert!(!bench.opens(&key), "nothing was changed");
    bench.manage(&format!("{rotate} --insecure fixed-key"));
    assert!(bench.opens(&key));
    bench.run(&format!("key rotate {key} --insecure fixed-key {CONFIG}")).refused(USAGE, &["--volume"]);
}
