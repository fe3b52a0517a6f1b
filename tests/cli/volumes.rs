//! Making volumes and changing their headers: what the operator sees, and what is refused.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStderr, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::*;

pub(super) const REFUSED: i32 = 9;

/// Costs that a test can wait for.
pub(super) const FAST: &str = "--pbkdf pbkdf2 --pbkdf-iterations 1000";
const MIB: u64 = 1 << 20;

impl Bench {
    /// A folder with two keys and no volume.
    pub(super) fn without_volume() -> Self {
        let bench = Self::new();
        fs::remove_file(bench.path("vol")).unwrap();
        bench.write_key("other", b"0therKeyThatIsNotSecretButLong");
        bench
    }

    /// The same with a LUKS volume of this type that leaves the guest 1 MiB.
    pub(super) fn with_volume(kind: &str) -> Self {
        let bench = Self::without_volume();
        bench.done(&format!("format vol --size 1M --type {kind} --key file:key {FAST}"));
        bench
    }

    /// Runs a command that succeeds, for what it says as JSON.
    #[track_caller]
    pub(super) fn done(&self, arguments: &str) -> Value {
        let ended = self.run(&format!("{arguments} --json"));
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{arguments}");
        assert_eq!(ended.stdout.lines().count(), 1, "one JSON object: {}", ended.stdout);
        serde_json::from_str(&ended.stdout).unwrap()
    }

    pub(super) fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    pub(super) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(&self.folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    pub(super) fn slots(&self) -> Vec<u64> {
        let listing = self.done("slot list vol");
        listing["slots"].as_array().unwrap().iter().map(|slot| slot["id"].as_u64().unwrap()).collect()
    }

    /// Whether the key in the file `key` opens the volume.
    fn is_opened_by(&self, key: &str) -> bool {
        let ended = self.run(&format!("slot add vol --key file:{key} --new-key file:{key} --json"));
        assert!([0, KEY].contains(&ended.code), "{}", ended.stderr);
        ended.code == 0
    }
}

/// A `sealblk serve` that waits for its VMM, until dropped.
pub(super) struct Served {
    process: Child,
    /// Held open, or the process could not log.
    _log: BufReader<ChildStderr>,
}

impl Served {
    pub(super) fn start(bench: &Bench, more: &str) -> Self {
        let mut command = Command::new(PROGRAM);
        command
            .args(["serve", "--socket-path", "s", "--blk-file", "vol"])
            .args(more.split_ascii_whitespace());
        let mut child = command.current_dir(&bench.folder).stderr(Stdio::piped()).spawn().unwrap();
        // It says so once the socket can be connected to.
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("waiting for the VMM") {
            assert!(log.read_line(&mut said).unwrap() > 0, "it ended: {said}");
        }
        Self { process: child, _log: log }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_new_volume_shows_the_guest_exactly_what_was_asked_for() {
    for (kind, header_bytes, cipher_key_bits) in [("luks1", 2 * MIB, 256), ("luks2", 16 * MIB, 512)] {
        let bench = Bench::without_volume();
        let made = bench.done(&format!(
            "format vol --size 3M --type {kind} --key-size {cipher_key_bits} --key file:key {FAST}"
        ));
        assert_eq!(made["type"], kind);
        assert_eq!(made["payload_bytes"], 3 * MIB);
        assert_eq!(made["payload_offset_bytes"], header_bytes);
        assert_eq!(made["key_bits"], cipher_key_bits);
        assert_eq!(made["cipher"], "aes-xts-plain64");
        assert_eq!(made["kdf"], serde_json::json!({"type": "pbkdf2", "hash": "sha256", "iterations": 1000}));
        let metadata = fs::metadata(bench.path("vol")).unwrap();
        assert_eq!(metadata.len(), header_bytes + 3 * MIB);
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);

        let inspected = bench.done("inspect vol");
        assert_eq!(inspected["type"], kind);
        assert_eq!(inspected["servable"], true);
        assert_eq!(inspected["payload"]["bytes"], 3 * MIB);
        assert_eq!(inspected["luks"]["uuid"], made["uuid"]);
        assert_eq!(inspected["luks"]["header_digest"], made["header_digest"]);
        assert!(bench.is_opened_by("key") && !bench.is_opened_by("other"));
    }
}

#[test]
fn options_of_a_new_volume_arrive() {
    let bench = Bench::without_volume();
    let uuid = "8e5b1a4e-2f0c-4f0e-9d54-3a0d1f6a7b11";
    let made = bench.done(&format!(
        "format vol --size 1M --sector-size 4096 --cipher aes-xts-plain --label web-1 --uuid {uuid} --key file:key \
         --pbkdf argon2id --pbkdf-iterations 4 --pbkdf-memory 64K --pbkdf-threads 1 --preallocate"
    ));
    assert_eq!((&made["uuid"], &made["label"]), (&uuid.into(), &"web-1".into()));
    assert_eq!((&made["cipher"], &made["sector_bytes"]), (&"aes-xts-plain".into(), &4096.into()));
    assert_eq!(
        made["kdf"],
        serde_json::json!({"type": "argon2id", "passes": 4, "memory_kib": 64, "threads": 1})
    );
    use std::os::unix::fs::MetadataExt;
    assert!(fs::metadata(bench.path("vol")).unwrap().blocks() * 512 >= 17 * MIB, "preallocated");
    let text = bench.run("inspect vol").stdout;
    for part in ["LUKS2", uuid, "web-1", "argon2id", "sectors of 4096 bytes", "guest sees", "1 MiB", "yes"] {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
}

#[test]
fn a_detached_header_leaves_the_whole_volume_to_the_guest() {
    for kind in ["luks1", "luks2"] {
        let bench = Bench::without_volume();
        let made =
            bench.done(&format!("format vol --header vol.hdr --size 1M --type {kind} --key file:key {FAST}"));
        assert_eq!((&made["payload_offset_bytes"], &made["payload_bytes"]), (&0.into(), &MIB.into()));
        assert_eq!(fs::metadata(bench.path("vol")).unwrap().len(), MIB);
        assert!(bench.bytes("vol").iter().all(|byte| *byte == 0));
        let inspected = bench.done("inspect vol --header vol.hdr");
        assert_eq!((&inspected["servable"], &inspected["payload"]["bytes"]), (&true.into(), &MIB.into()));
        let without = bench.done("inspect vol");
        assert_eq!((&without["type"], &without["servable"]), (&"none".into(), &false.into()));
        bench.done(&format!("slot add vol --header vol.hdr --key file:key --new-key file:other {FAST}"));
        bench.done("slot remove vol --header vol.hdr --key file:key --keep-key file:other --yes");
        assert_eq!(bench.done("slot list vol --header vol.hdr")["slots"][0]["id"], 1);
        bench
            .run(&format!("format new --header vol.hdr --size 1M --key file:key {FAST}"))
            .refused(REFUSED, &["vol.hdr exists"]);
        assert!(!Path::new(&bench.path("new")).exists());
    }
}

#[test]
fn nothing_is_overwritten_without_being_told_to() {
    let bench = Bench::without_volume();
    let format = format!("format vol --key file:key {FAST}");
    let volume = File::create(bench.path("vol")).unwrap();
    volume.set_len(32 * MIB).unwrap();
    volume.write_all_at(b"x", 32 * MIB - 1).unwrap();
    bench.run(&format).refused(REFUSED, &["vol holds data without a known signature", "--force"]);
    bench.run(&format!("{format} --force")).refused(REFUSED, &["will be lost", "--yes"]);
    assert_eq!(bench.bytes("vol").iter().filter(|byte| **byte != 0).count(), 1, "left alone");
    bench.done(&format!("{format} --force --yes"));
    bench.run(&format).refused(REFUSED, &["vol holds LUKS2 header"]);
    bench
        .run(&format!("{format} --force --yes --size 1M"))
        .refused(USAGE, &["--size 1048576 does not fit", "16777216", "leave out --size"]);
    let made = bench.done(&format!("{format} --force --yes --type luks1 --size 30M"));
    assert_eq!((&made["payload_bytes"], &made["type"]), (&(30 * MIB).into(), &"luks1".into()));
}

#[test]
fn a_blank_file_is_formatted_in_place() {
    let bench = Bench::without_volume();
    let volume = File::create(bench.path("vol")).unwrap();
    bench.set_mode("vol", 0o640);
    bench.run(&format!("format vol --key file:key {FAST}")).refused(USAGE, &["--size", "is empty"]);
    bench.done(&format!("format vol --size 2M --key file:key {FAST}"));
    assert_eq!(volume.metadata().unwrap().len(), 18 * MIB);
    assert_eq!(volume.metadata().unwrap().permissions().mode() & 0o777, 0o640, "the same file");
    volume.set_len(0).unwrap();
    volume.set_len(20 * MIB).unwrap();
    assert_eq!(bench.done(&format!("format vol --key file:key {FAST}"))["payload_bytes"], 4 * MIB);
}

#[test]
fn a_volume_that_cannot_be_is_not_begun() {
    let bench = Bench::without_volume();
    let before = bench.names();
    for (more, code, parts) in [
        ("", USAGE, &["--size"][..]),
        ("--size 0", USAGE, &["--size 0"]),
        ("--size 1M1", USAGE, &["--size"]),
        ("--size 4095", USAGE, &["--size 4095", "512 bytes"]),
        ("--size 1536 --sector-size 1024", USAGE, &["--size 1536", "1024 bytes"]),
        ("--size 1M --sector-size 8192", USAGE, &["--sector-size 8192", "auto"]),
        ("--size 1M --sector-size 4096 --type luks1", USAGE, &["--sector-size 4096", "LUKS1"]),
        ("--size 1M --label x --type luks1", USAGE, &["--label x", "LUKS1"]),
        ("--size 1M --cipher aes-cbc-essiv:sha256", USAGE, &["--cipher aes-cbc-essiv:sha256", "plain64"]),
        ("--size 1M --cipher aes-xts-plain64be", USAGE, &["--cipher"]),
        ("--size 1M --key-size 128", USAGE, &["--key-size 128", "256 or 512"]),
        ("--size 1M --uuid 1234", USAGE, &["--uuid", "1234"]),
        ("--size 1M --pbkdf argon2id --type luks1", USAGE, &["--pbkdf argon2id", "LUKS1"]),
        ("--size 1M --pbkdf-iterations 1000", USAGE, &["--pbkdf-iterations", "--pbkdf"]),
        ("--size 5000P", USAGE, &["--size"]),
    ] {
        bench.run(&format!("format vol --key file:key {more}")).refused(code, parts);
    }
    bench.run("format vol --size 1M").refused(USAGE, &["--key", "sealblk format --help"]);
    bench.run("format vol --size 1M --key file:missing").refused(KEY, &["file:missing"]);
    bench.run("format vol --size 1M --key secret").refused(USAGE, &["--key: "]);
    bench
        .run("format nowhere/vol --size 1M --key file:key")
        .refused(FAILURE, &["nowhere/vol", "No such file"]);
    bench.run("format . --key file:key").refused(VOLUME, &["a directory"]);
    assert_eq!(bench.names(), before);
    File::create(bench.path("vol")).unwrap().set_len(MIB).unwrap();
    bench.run("format vol --key file:key").refused(VOLUME, &[]);
    assert!(bench.bytes("vol").iter().all(|byte| *byte == 0));
}

#[test]
fn a_format_that_is_killed_leaves_nothing() {
    let bench = Bench::without_volume();
    let before = bench.names();
    // It waits for a key that does not come.
    let script = "exec $S format vol --size 1M --key fd:5 5<&0";
    let mut child = Command::new("sh")
        .args(["-c", script])
        .env("S", PROGRAM)
        .current_dir(&bench.folder)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let folder = fs::canonicalize(&bench.folder).unwrap();
    let holds_nameless_file = |pid: u32| {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        descriptors
            .flatten()
            .filter_map(|entry| fs::read_link(entry.path()).ok())
            .any(|target| target.starts_with(&folder) && target.to_string_lossy().ends_with("(deleted)"))
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds_nameless_file(child.id()) {
        assert!(
            Instant::now() < deadline && child.try_wait().unwrap().is_none(),
            "it never came to its file"
        );
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(bench.names(), before);
}

#[test]
fn keys_are_added_changed_and_removed() {
    for kind in ["luks1", "luks2"] {
        let bench = Bench::with_volume(kind);
        let add = format!("slot add vol --key file:key --new-key file:other {FAST}");
        let added = bench.done(&add);
        assert_eq!((&added["slot"], &added["added"]), (&1.into(), &true.into()));
        assert!(bench.is_opened_by("key") && bench.is_opened_by("other"));
        assert_eq!(bench.done("inspect vol")["luks"]["header_digest"], added["header_digest"]);
        let again = bench.done(&add);
        assert_eq!(
            (&again["slot"], &again["added"]),
            (&1.into(), &false.into()),
            "asked for twice, done once"
        );
        bench.run(&format!("{add} --slot 1")).refused(VOLUME, &["slot 1 is in use"]);

        bench.write_key("third", b"thirdKey");
        let change = format!("slot change vol --key file:key --new-key file:third {FAST}");
        let changed = bench.done(&change);
        assert_eq!((&changed["slot"], &changed["removed"]), (&2.into(), &serde_json::json!([0])));
        assert!(!bench.is_opened_by("key") && bench.is_opened_by("third"));
        let again = bench.done(&change);
        assert_eq!((&again["added"], &again["removed"]), (&false.into(), &serde_json::json!([])));

        bench.run("slot remove vol --slot 7 --yes").refused(VOLUME, &["no key slot 7"]);
        bench.run("slot remove vol --slot 1").refused(REFUSED, &["Key slot 1 of vol", "--yes"]);
        bench.run("slot remove vol --key file:key --yes").refused(KEY, &["opens no key slot"]);
        bench
            .run("slot remove vol --slot 1 --keep-key file:other --yes")
            .refused(REFUSED, &["--keep-key opens no key slot but"]);
        let removed = bench.done("slot remove vol --key file:other --keep-key file:third --yes");
        assert_eq!(removed["removed"], serde_json::json!([1]));
        assert_eq!(bench.slots(), [2]);
        bench.run("slot remove vol --slot 2 --yes").refused(REFUSED, &["slot 2 is the last one"]);
        assert!(bench.is_opened_by("third"));
    }
}

#[test]
fn a_change_that_was_cut_off_in_the_middle_is_finished() {
    let bench = Bench::with_volume("luks2");
    // What it leaves between its two steps: both keys.
    bench.done(&format!("slot add vol --key file:key --new-key file:other {FAST}"));
    let changed = bench.done(&format!("slot change vol --key file:key --new-key file:other {FAST}"));
    assert_eq!((&changed["slot"], &changed["added"]), (&1.into(), &false.into()));
    assert_eq!(changed["removed"], serde_json::json!([0]));
    let changed = bench.done(&format!("slot change vol --key file:other --new-key file:other {FAST}"));
    assert_eq!(changed["removed"], serde_json::json!([]), "the same key is not given up for itself");
    assert_eq!(bench.slots(), [1]);
}

#[test]
fn slots_are_listed_for_people_too() {
    let bench = Bench::with_volume("luks2");
    let listing = bench.run("slot list vol");
    assert_eq!(listing.code, 0, "{}", listing.stderr);
    for part in ["SLOT", "pbkdf2 sha256, 1000 iterations", "normal", "the volume"] {
        assert!(listing.stdout.contains(part), "{}", listing.stdout);
    }
    bench.run("slot").refused(USAGE, &["sealblk slot --help"]);
    bench.run("slot remove vol").refused(USAGE, &["--slot", "--key"]);
    bench.run("slot remove vol --slot 1 --key file:key").refused(USAGE, &["--slot", "--key"]);
    bench.run("slot list key").refused(VOLUME, &["no LUKS header"]);
}

#[test]
fn a_header_is_saved_and_brought_back() {
    for kind in ["luks1", "luks2"] {
        let bench = Bench::with_volume(kind);
        let saved = bench.done("header backup vol saved");
        assert_eq!(fs::metadata(bench.path("saved")).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(saved["bytes"], fs::metadata(bench.path("saved")).unwrap().len());
        bench.run("header backup vol saved").refused(REFUSED, &["saved exists"]);
        bench.done(&format!("slot change vol --key file:key --new-key file:other {FAST}"));

        let restore = "header restore vol saved";
        bench.run(restore).refused(REFUSED, &["will be replaced", "--yes"]);
        let restored = bench.done(&format!("{restore} --yes"));
        assert_eq!(restored["header_digest"], saved["header_digest"]);
        assert!(bench.is_opened_by("key") && !bench.is_opened_by("other"));

        // What a header is lost by.
        let volume = OpenOptions::new().write(true).open(bench.path("vol")).unwrap();
        volume.write_all_at(&[0; 1 << 20], 0).unwrap();
        assert_eq!(bench.done("inspect vol")["type"], "none");
        bench.done(&format!("{restore} --yes"));
        assert!(bench.is_opened_by("key"));
    }
}

#[test]
fn a_backup_of_another_volume_is_refused() {
    let bench = Bench::with_volume("luks2");
    bench.done(&format!("format second --size 1M --key file:key {FAST}"));
    bench.done("header backup second saved");
    bench.run("header restore vol saved --yes").refused(REFUSED, &["does not fit", "UUID"]);
    bench.run("header restore vol key --yes").refused(VOLUME, &["key is no backup", "no LUKS header"]);
    bench.run("header restore vol missing --yes").refused(VOLUME, &["missing", "No such file"]);
    let saved = OpenOptions::new().write(true).open(bench.path("saved")).unwrap();
    bench.done("header restore vol saved --yes --force");
    assert_eq!(bench.done("inspect vol")["luks"]["uuid"], bench.done("inspect second")["luks"]["uuid"]);
    saved.set_len(MIB).unwrap();
    bench.run("header restore vol saved --yes --force").refused(VOLUME, &["saved is no backup", "1048576"]);

    // A volume too short for the backup's payload.
    bench.done("header backup second whole");
    let volume = OpenOptions::new().write(true).open(bench.path("vol")).unwrap();
    volume.set_len(16 * MIB).unwrap();
    bench.run("header restore vol whole --yes").refused(VOLUME, &["payload"]);
}

#[test]
fn what_is_no_luks_volume_is_described_all_the_same() {
    let bench = Bench::new();
    let inspected = bench.done("inspect vol");
    assert_eq!((&inspected["type"], &inspected["signature"]), (&"none".into(), &Value::Null));
    assert!(bench.run("inspect vol").stdout.contains("zeroes"));
    let volume = OpenOptions::new().write(true).open(bench.path("vol")).unwrap();
    volume.write_all_at(&KEY_BYTES.map(|byte| byte ^ 0xff), 4096).unwrap();
    assert!(bench.run("inspect vol").stdout.contains("plain (headerless) encrypted volume"));
    let mut mbr = [0; 512];
    mbr[446..462].copy_from_slice(&[0x80, 0, 2, 0, 0x83, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0]);
    mbr[510..].copy_from_slice(&[0x55, 0xaa]);
    volume.write_all_at(&mbr, 0).unwrap();
    assert_eq!(bench.done("inspect vol")["signature"], "partition table (dos)");
    bench.run("inspect missing").refused(VOLUME, &["missing", "No such file"]);

    let bench = Bench::with_volume("luks2");
    let volume = OpenOptions::new().write(true).open(bench.path("vol")).unwrap();
    volume.write_all_at(&[0; 4096], 16384).unwrap();
    let inspected = bench.done("inspect vol");
    assert_eq!(inspected["luks"]["copies"], serde_json::json!(["good", "damaged"]));
    volume.write_all_at(&[7; 4000], 512).unwrap();
    let inspected = bench.done("inspect vol");
    assert_eq!((&inspected["type"], &inspected["servable"]), (&"damaged-luks".into(), &false.into()));
}

#[test]
fn a_volume_in_use_by_something_else_is_left_alone() {
    let bench = Bench::with_volume("luks2");
    bench.done("header backup vol saved");
    let user = OpenOptions::new().read(true).write(true).open(bench.path("vol")).unwrap();
    user.lock().unwrap();
    bench.run("header restore vol saved --yes").refused(VOLUME_LOCKED, &["in use by another process"]);
    bench.run(&format!("format vol --key file:key {FAST} --force --yes")).refused(VOLUME_LOCKED, &["in use"]);
    bench.done("inspect vol");
    bench.done("header backup vol again");
    bench
        .run(&format!("slot add vol --key file:key --new-key file:other {FAST}"))
        .refused(VOLUME_LOCKED, &["stays locked, and not by `sealblk serve`"]);
    assert_eq!(bench.slots(), [0]);
}

#[test]
fn keys_are_rotated_while_the_volume_is_served() {
    for kind in ["luks1", "luks2"] {
        let bench = Bench::with_volume(kind);
        bench.done("header backup vol saved");
        let served = Served::start(&bench, "--format luks --key file:key");
        let changed = bench.done(&format!("slot change vol --key file:key --new-key file:other {FAST}"));
        assert_eq!(changed["removed"], serde_json::json!([0]));
        assert_eq!(bench.slots(), [1]);
        assert_eq!(bench.done("inspect vol")["servable"], true);
        bench.done("header backup vol again");
        bench.run("header restore vol saved --yes").refused(VOLUME_LOCKED, &["in use by another process"]);
        bench
            .run(&format!("format vol --key file:key {FAST} --force --yes"))
            .refused(VOLUME_LOCKED, &["in use by another process"]);
        drop(served);
        fs::remove_file(bench.path("s")).unwrap();
        bench
            .run("serve --socket-path s --blk-file vol --format luks --key file:key --log-level error")
            .refused(KEY, &["opens no key slot"]);
        drop(Served::start(&bench, "--format luks --key file:other"));
    }
}

#[test]
#[ignore = "makes loop devices: needs root"]
fn a_block_device_is_formatted_whole_and_alone() {
    let bench = Bench::without_volume();
    File::create(bench.path("disk")).unwrap().set_len(20 * MIB).unwrap();
    let device = LoopDevice::new(&bench.path("disk"), &[]);
    let format = format!("format {} --key file:key {FAST}", device.0);
    bench.run(&format!("{format} --preallocate")).refused(USAGE, &["--preallocate"]);
    let claimed = open_exclusively(Path::new(&device.0));
    bench.run(&format).refused(VOLUME_LOCKED, &["mounted, or claimed"]);
    drop(claimed);
    let made = bench.done(&format);
    assert_eq!((&made["payload_bytes"], &made["sector_bytes"]), (&(4 * MIB).into(), &4096.into()));
    assert_eq!(bench.done(&format!("inspect {}", device.0))["servable"], true);
    bench.run(&format).refused(REFUSED, &["LUKS2 header"]);
    // Claimed, as by device-mapper; keys can be changed all the same.
    let claimed = open_exclusively_without_writing(Path::new(&device.0));
    bench.done(&format!("slot add {} --key file:key --new-key file:other {FAST}", device.0));
    drop(claimed);
}

fn open_exclusively_without_writing(device: &Path) -> File {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_EXCL).open(device).unwrap()
}
