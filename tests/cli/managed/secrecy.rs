//! Key bytes show nowhere but where they were sent on purpose.

use base64ct::{Base64, Encoding};
use sealblk::keys::Secret;
use sealblk::keys::keystore::Keystore;

use super::*;

/// Writes down, of every `sealblk` that asks it for the KEK and of itself, what any user of the machine may look at.
const KEK_COMMAND: &str = r#"
cd "$1"
# The environment of a program that shields itself is for root alone.
cat /proc/$PPID/cmdline /proc/$PPID/environ /proc/$$/cmdline /proc/$$/environ >>seen 2>>unseen
echo >>seen
cat kek"#;

/// Everything that the commands left where others may look.
#[derive(Default)]
struct Seen(Vec<(String, Vec<u8>)>);

impl Seen {
    fn add(&mut self, place: impl Into<String>, bytes: impl Into<Vec<u8>>) {
        self.0.push((place.into(), bytes.into()));
    }

    /// Runs a command that succeeds, and keeps and returns its output.
    #[track_caller]
    fn run(&mut self, bench: &Bench, arguments: &str) -> String {
        let ended = bench.run(arguments);
        assert_eq!(ended.code, 0, "{arguments}: {}", ended.stderr);
        self.add(format!("the output of {arguments}"), ended.stdout.clone() + &ended.stderr);
        ended.stdout
    }

    /// Asserts that no part of `secret` is there in any usual spelling.
    fn holds_nothing_of(&self, what: &str, secret: &[u8]) {
        for (place, bytes) in &self.0 {
            for spelt in spellings(secret) {
                let shows = bytes.windows(spelt.len()).any(|window| window.eq_ignore_ascii_case(&spelt));
                assert!(!shows, "{what} shows in {place}");
            }
        }
    }
}

/// Pieces of 12 bytes as they are, in hexadecimal and in Base64, which spells 3 bytes by 4 characters.
fn spellings(secret: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    secret.chunks_exact(12).flat_map(|piece| {
        let hexadecimal: String = piece.iter().map(|byte| format!("{byte:02x}")).collect();
        [piece.to_vec(), hexadecimal.into_bytes(), Base64::encode_string(piece).into_bytes()]
    })
}

#[test]
fn key_bytes_show_nowhere_whatever_is_done_with_them() {
    let bench = Bench::before_keystore();
    let config = format!(
        "[command.kek]\nargv = ['/bin/sh', '-c', '''{KEK_COMMAND}''', 'sh', '{}']\n\
         [keystore.default]\npath = '{}'\nkek = 'command:kek'\n",
        bench.path(""),
        bench.path("ks/keystore")
    );
    fs::write(bench.path("keys.toml"), config).unwrap();
    let mut seen = Seen::default();
    seen.run(&bench, &format!("keystore init {CONFIG}"));
    // As long as somebody has it open, what is written stays in the log beside the file.
    let kek = Secret::read_from(&KEK_BYTES[..]).unwrap();
    let open = Keystore::open(Path::new(&bench.path("ks/keystore")), vec![kek]).unwrap();
    let made = seen.run(&bench, &format!("key create --name web --json {CONFIG}"));
    let made: Value = serde_json::from_str(&made).unwrap();
    let key = made["reference"].as_str().unwrap();
    for command in [
        "key import --from file:key --name old",
        &format!("key export {key} --to first"),
        &format!("format vol --size 1M --key {key}"),
        &format!("key rotate --volume vol --key {key}"),
        &format!("key rotate {key}"),
        &format!("key export {key} --to third"),
        &format!("key rotate --volume vol --key {key}"),
        &format!("key show {key}"),
        "key list",
        "key list --all --json",
        "key audit",
        "key audit --json",
        "keystore verify",
    ] {
        seen.run(&bench, &format!("{command} {CONFIG}"));
    }
    let disk =
        seen.run(&bench, &format!("ephemeral create --size 1M --file disk --format plain --json {CONFIG}"));
    let disk: Value = serde_json::from_str(&disk).unwrap();
    for command in [&format!("key export {} --to fourth", disk["key"].as_str().unwrap()), "ephemeral list"] {
        seen.run(&bench, &format!("{command} {CONFIG}"));
    }
    seen.run(&bench, "slot list vol --json");
    seen.run(&bench, "inspect vol --json");
    for name in ["keystore", "keystore-wal"] {
        seen.add(format!("the file {name}"), bench.bytes(&format!("ks/{name}")));
    }
    assert!(bench.bytes("ks/keystore-wal").len() > 10_000, "it holds what was done");
    drop(open);
    seen.run(&bench, &format!("keystore copy {} {CONFIG}", bench.path("ks/copy")));
    seen.run(&bench, &format!("key destroy {key} --yes {CONFIG}"));
    seen.run(&bench, &format!("ephemeral destroy --file disk --yes {CONFIG}"));
    seen.add("the copy", bench.bytes("ks/copy"));
    seen.add("the file after all", bench.bytes("ks/keystore"));
    let arguments = bench.bytes("seen");
    let calls = arguments.split(|byte| *byte == b'\n').count();
    assert!(calls > 15 && arguments.windows(6).any(|part| part == b"rotate"), "{calls} calls were seen");
    seen.add("arguments and environment", arguments);

    let secrets = [
        ("the KEK", KEK_BYTES.to_vec()),
        ("an imported key", KEY_BYTES.to_vec()),
        ("a made key", bench.bytes("first")),
        ("a later version", bench.bytes("third")),
        ("the key of an ephemeral disk", bench.bytes("fourth")),
    ];
    for (what, secret) in &secrets {
        seen.holds_nothing_of(what, secret);
    }
    // What would have been found.
    for (what, secret) in secrets {
        let mut shown = Seen::default();
        shown.add("a place", [b"before ", secret.as_slice()].concat());
        assert!(std::panic::catch_unwind(|| shown.holds_nothing_of(what, &secret)).is_err());
    }
}
