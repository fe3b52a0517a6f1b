//! A LUKS volume gets another key, whatever happens meanwhile.

use serde_json::json;

use super::killing::{Run, kill_before_change};
use super::volumes::{FAST, Served};
use super::*;

impl Bench {
    /// A keystore, and a volume that a key in it opens. With the reference to it.
    fn with_managed_volume(kind: &str) -> (Self, String) {
        let bench = Self::with_keystore();
        let key = bench.create_key();
        bench.manage(&format!("format vol --size 1M --type {kind} --key {key}"));
        (bench, key)
    }
}

#[test]
fn a_volume_gets_a_new_version_of_its_key_while_it_is_served() {
    for kind in ["luks1", "luks2"] {
        let (bench, key) = Bench::with_managed_volume(kind);
        let served = Served::start(&bench, &format!("--key {key} {CONFIG}"));
        let rotated = bench.manage(&format!("key rotate --volume vol --key {key}"));
        let digest = bench.done("slot list vol")["header_digest"].clone();
        let expected = json!({
            "volume": "vol", "key": format!("{key}#2"), "slot": 1, "added": true, "removed": [0], "destroyed": [],
            "header_digest": digest,
        });
        assert_eq!(rotated, expected);
        assert_eq!(bench.slots(), [1]);
        drop(served);
        fs::remove_file(bench.path("s")).unwrap();
        drop(Served::start(&bench, &format!("--key {key} {CONFIG}")));
        assert!(bench.opens(&format!("{key}#2")) && !bench.opens(&format!("{key}#1")));
        assert_eq!(bench.manage(&format!("key show {key}#1"))["state"], "deactivated");

        let rotate = format!("key rotate --volume vol --key {key} --destroy-old {CONFIG}");
        bench.run(&rotate).refused(
            REFUSED,
            &[
                "once vol opens with the new key, every version of",
                "before the new one will be destroyed",
                "--yes",
            ],
        );
        assert_eq!(bench.manage(&format!("key show {key}"))["version"], 2, "nothing was begun");
        let rotated = bench.done(&format!("{rotate} --yes"));
        assert_eq!(rotated["destroyed"], json!([format!("{key}#2"), format!("{key}#1")]));
        assert!(bench.opens(&key));
        assert_eq!(bench.manage(&format!("key show {key}#2"))["state"], "destroyed");
        bench.manage("keystore verify");
    }
}

#[test]
fn a_volume_moves_from_one_manager_to_another() {
    let bench = Bench::with_keystore();
    bench.done(&format!("format vol --header hdr --size 1M --key file:key {FAST}"));
    let key = bench.create_key();
    let rotate = format!("key rotate --volume vol --header hdr --key file:key {CONFIG}");
    bench
        .run(&format!("{rotate} --new-key {key} --destroy-old --yes"))
        .refused(USAGE, &["key manager file", "does nothing else"]);
    bench.run(&rotate).refused(USAGE, &["key manager file", "does nothing else"]);
    let rotated = bench.done(&format!("{rotate} --new-key {key}"));
    assert_eq!((&rotated["key"], &rotated["removed"]), (&json!(key), &json!([0])));
    let text =
        bench.run(&format!("key rotate --volume vol --header hdr --key {key} --destroy-old --yes {CONFIG}"));
    for part in [format!("{key}#2 opens slot 0"), "slot 1 is removed".into(), format!("destroyed {key}#1")] {
        assert!(text.stdout.contains(&part), "{}", text.stdout);
    }
    let other = bench.create_key();
    let rotated = bench.manage(&format!(
        "key rotate --volume vol --header hdr --key {key} --new-key {other} --destroy-old --yes"
    ));
    assert_eq!(rotated["destroyed"], json!([key]), "with all its versions");
    assert_eq!(bench.manage("key list")["keys"].as_array().unwrap().len(), 1);
}

#[test]
fn a_rotation_that_makes_no_sense_changes_nothing() {
    let (bench, key) = Bench::with_managed_volume("luks2");
    let stranger = bench.create_key();
    bench.write_key("copy", b"");
    fs::remove_file(bench.path("copy")).unwrap();
    bench.manage(&format!("key export {key} --to copy"));
    let before = bench.bytes("vol");
    let rotate = |more: &str, code: i32, parts: &[&str]| {
        bench.run(&format!("key rotate --volume vol {more} --yes {CONFIG}")).refused(code, parts);
        assert!(bench.bytes("vol") == before, "{more}");
    };
    rotate("", USAGE, &["--key"]);
    rotate(&format!("--key {key} --new-key {key}"), USAGE, &["one key"]);
    rotate(&format!("--key {key} --new-key {key}#1 --destroy-old"), USAGE, &["one key"]);
    rotate(&format!("--key {key}#1 --new-key keystore@default:{}#1", &key[9..]), USAGE, &["one key"]);
    rotate(&format!("--key {key} --new-key file:copy --destroy-old"), USAGE, &["same bytes"]);
    rotate(&format!("--key {key} --key-manager keystore"), USAGE, &["--key-manager", "--volume"]);
    rotate(&format!("{key} --key {key}"), USAGE, &["--volume"]);
    rotate(&format!("--key {stranger}"), KEY, &["opens no key slot"]);
    rotate(&format!("--key {stranger} --new-key file:other"), KEY, &["opens no key slot"]);
    rotate(&format!("--key {key}#2"), KEY, &["versions up to 1"]);
    rotate(&format!("--key {key} --new-key file:missing"), KEY, &["file:missing"]);
    rotate(&format!("--key file:missing --new-key {key}"), KEY, &["file:missing"]);
    rotate(&format!("--key {key} --pbkdf-iterations 7"), USAGE, &["--pbkdf-iterations"]);
    bench.run(&format!("key rotate --volume key --key {key} {CONFIG}")).refused(VOLUME, &["no LUKS header"]);
    assert_eq!(bench.manage(&format!("key show {stranger}"))["version"], 1, "no version is made in vain");
}

#[test]
fn a_rotation_that_was_cut_off_goes_on_with_the_version_that_it_made() {
    let (bench, key) = Bench::with_managed_volume("luks2");
    let rotate = format!("key rotate --volume vol --key {key}");
    // The version is made, and opens nothing yet.
    bench.manage(&format!("key rotate {key}"));
    let rotated = bench.manage(&rotate);
    assert_eq!(rotated["key"], json!(format!("{key}#2")));
    assert_eq!((&rotated["added"], &rotated["removed"]), (&json!(true), &json!([0])));
    // The next one is made and has its slot, and the old one has its own still.
    bench.manage(&format!("key rotate {key}"));
    bench.manage(&format!("slot add vol --key {key}#2 --new-key {key}#3"));
    let rotated = bench.manage(&rotate);
    assert_eq!(rotated["key"], json!(format!("{key}#3")));
    assert_eq!((&rotated["added"], &rotated["removed"]), (&json!(false), &json!([1])));
    // Nothing was begun: this is a new rotation, whose end destroys what was left of the others.
    let rotated = bench.manage(&format!("{rotate} --destroy-old --yes"));
    assert_eq!(rotated["key"], json!(format!("{key}#4")));
    assert_eq!(rotated["destroyed"], json!([3, 2, 1].map(|version| format!("{key}#{version}"))));
    // By its version, what was done is known to be done.
    let rotated = bench.manage(&format!("key rotate --volume vol --key {key}#3 --destroy-old --yes"));
    assert_eq!((&rotated["added"], &rotated["removed"]), (&json!(false), &json!([])));
    assert_eq!(rotated["key"], json!(format!("{key}#4")));
}

/// The files that a rotation changes, to begin again with.
struct Beginning(Vec<(&'static str, Vec<u8>)>);

impl Beginning {
    fn of(bench: &Bench) -> Self {
        Self(["vol", "ks/keystore"].map(|name| (name, bench.bytes(name))).to_vec())
    }

    fn restore(&self, bench: &Bench) {
        for (name, bytes) in &self.0 {
            // With holes where it had them: less to be made durable by the program each time.
            let file = File::create(bench.path(name)).unwrap();
            file.set_len(bytes.len() as u64).unwrap();
            for (block, at) in bytes.chunks(4096).zip((0..).step_by(4096)) {
                if block.iter().any(|byte| *byte != 0) {
                    file.write_all_at(block, at).unwrap();
                }
            }
        }
        for name in ["ks/keystore-wal", "ks/keystore-shm"] {
            // It is there after some runs only.
            let _ = fs::remove_file(bench.path(name));
        }
    }
}

/// Kills `rotate` before each of its changes of a file, and asserts that one of `keys` opens the volume then, that the
/// same command ends what was begun, and what `is_done` asserts.
fn survives_kills(bench: &Bench, rotate: &str, keys: &[&str], is_done: impl Fn()) {
    let rotate = format!("{rotate} --yes {CONFIG} --json");
    let beginning = Beginning::of(bench);
    let folder = fs::canonicalize(&bench.folder).unwrap();
    for nth in 0.. {
        beginning.restore(bench);
        let mut command = Command::new(PROGRAM);
        command
            .args(rotate.split_ascii_whitespace())
            .current_dir(&folder)
            .stdout(File::create(bench.path("log")).unwrap());
        match kill_before_change(&mut command, |file| file.starts_with(&folder), nth) {
            Run::Exited(code) => {
                assert!(code == 0 && nth >= 5, "{code} after {nth} changes");
                is_done();
                return;
            }
            Run::Killed => {}
        }
        assert!(keys.iter().any(|key| bench.opens(key)), "nothing opens the volume before change {nth}");
        let again = bench.run(&rotate);
        assert_eq!(again.code, 0, "repeated after change {nth}: {}", again.stderr);
        is_done();
    }
}

#[test]
fn old_or_new_key_opens_a_volume_whenever_its_rotation_is_killed() {
    for kind in ["luks1", "luks2"] {
        let bench = Bench::with_keystore();
        bench.done(&format!("format vol --size 1M --type {kind} --key file:key {FAST}"));
        let rotate = format!("key rotate --volume vol --key file:key --new-key file:other {FAST}");
        survives_kills(&bench, &rotate, &["file:key", "file:other"], || {
            assert_eq!(bench.slots(), [1]);
            assert!(bench.opens("file:other") && !bench.opens("file:key"));
        });
    }
}

#[test]
fn a_new_version_and_the_end_of_the_old_one_survive_kills_too() {
    let (bench, key) = Bench::with_managed_volume("luks1");
    let [old, new] = [1, 2].map(|version| format!("{key}#{version}"));
    let rotate = format!("key rotate --volume vol --key {old} --destroy-old");
    survives_kills(&bench, &rotate, &[&old, &new], || {
        assert_eq!(bench.slots(), [1]);
        assert!(bench.opens(&new));
        assert_eq!(bench.manage(&format!("key show {key}"))["version"], 2, "one version is made");
        assert_eq!(bench.manage(&format!("key show {old}"))["state"], "destroyed");
    });
    bench.manage("keystore verify");
}
