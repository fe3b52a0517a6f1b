//! Volumes, slots and backups that this program makes, in the hands of the others; and theirs in its hands.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// Costs that a test can wait for, here and with cryptsetup.
const FAST: &str = "--pbkdf pbkdf2 --pbkdf-iterations 1000";
const FAST_THERE: &str = "--pbkdf pbkdf2 --pbkdf-force-iterations 1000";

/// A folder with three keys, where every program is run.
struct Bench {
    folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { folder: tempfile::tempdir().unwrap() };
        for (name, key) in [("key", "the first key"), ("other", "another key"), ("third", "a third one")] {
            fs::write(bench.path(name), key).unwrap();
            fs::set_permissions(bench.path(name), Permissions::from_mode(0o600)).unwrap();
        }
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    fn output(&self, program: &str, line: &str) -> Output {
        let arguments = line.split_ascii_whitespace();
        let output = Command::new(program).args(arguments).current_dir(&self.folder).output();
        output.unwrap_or_else(|error| panic!("{program}: {error}; run `scripts/install-tools interop`"))
    }

    /// Runs a program that succeeds, with arguments cut at spaces, for what it prints.
    #[track_caller]
    fn run(&self, program: &str, line: &str) -> String {
        let output = self.output(program, line);
        assert!(output.status.success(), "{program} {line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn sealblk(&self, line: &str) -> Value {
        serde_json::from_str(&self.run(env!("CARGO_BIN_EXE_sealblk"), &format!("{line} --json"))).unwrap()
    }

    #[track_caller]
    fn cryptsetup(&self, line: &str) -> String {
        self.run("cryptsetup", &format!("--batch-mode {line}"))
    }

    /// Whether cryptsetup opens `volume` with the key in the file `key`.
    fn is_opened_there(&self, volume: &str, key: &str) -> bool {
        let line = format!("open --test-passphrase --key-file {key} {volume}");
        let output = self.output("cryptsetup", &line);
        match output.status.code() {
            Some(0) => true,
            Some(2) => false,
            _ => panic!("cryptsetup {line}: {output:?}"),
        }
    }

    /// Whether this program opens `volume` with it.
    fn is_opened_here(&self, volume: &str, key: &str) -> bool {
        let line = format!("slot add {volume} --key file:{key} --new-key file:{key} --json");
        let output = self.output(env!("CARGO_BIN_EXE_sealblk"), &line);
        match output.status.code() {
            Some(0) => true,
            Some(5) => false,
            _ => panic!("{line}: {output:?}"),
        }
    }

    /// The volume key, as cryptsetup gets it out of the header.
    #[track_caller]
    fn volume_key(&self, volume: &str) -> Vec<u8> {
        let _ = fs::remove_file(self.path("volume-key"));
        self.cryptsetup(&format!(
            "luksDump --dump-volume-key --volume-key-file volume-key --key-file key {volume}"
        ));
        self.read("volume-key")
    }

    /// Asks cryptsetup for everything that it can say about `volume`, and to find nothing to repair.
    #[track_caller]
    fn is_accepted_there(&self, volume: &str, kind: &str) -> String {
        self.cryptsetup(&format!("isLuks --type {kind} {volume}"));
        let before = self.read(volume);
        self.cryptsetup(&format!("repair {volume}"));
        assert_eq!(before, self.read(volume), "cryptsetup repaired something");
        self.cryptsetup(&format!("luksDump {volume}"))
    }
}

#[test]
fn cryptsetup_accepts_every_kind_of_volume() {
    for (kind, sectors) in [("luks1", &[512][..]), ("luks2", &[512, 1024, 2048, 4096])] {
        for key_bits in [256, 512] {
            for sector_bytes in sectors {
                let bench = Bench::new();
                let made = bench.sealblk(&format!(
                    "format vol --size 1M --type {kind} --key-size {key_bits} --sector-size {sector_bytes} \
                     --key file:key {FAST}"
                ));
                let dump = bench.is_accepted_there("vol", kind);
                assert!(dump.contains(made["uuid"].as_str().unwrap()), "{dump}");
                if kind == "luks2" {
                    assert!(dump.contains(&format!("sector: {sector_bytes} [bytes]")), "{dump}");
                }
                assert!(bench.is_opened_there("vol", "key") && !bench.is_opened_there("vol", "other"));
                assert_eq!(bench.volume_key("vol").len(), key_bits / 8);
            }
        }
    }
}

/// The areas of a header are those that cryptsetup makes by itself.
#[test]
fn headers_are_laid_out_as_cryptsetups() {
    for kind in ["luks1", "luks2"] {
        let bench = Bench::new();
        bench.sealblk(&format!("format ours --size 4M --type {kind} --key file:key {FAST}"));
        let size = fs::metadata(bench.path("ours")).unwrap().len();
        fs::File::create(bench.path("theirs")).unwrap().set_len(size).unwrap();
        let more = if kind == "luks2" { "--sector-size 512" } else { "" };
        bench.cryptsetup(&format!(
            "luksFormat --type {kind} --cipher aes-xts-plain64 --key-size 512 --hash sha256 --key-file key {more} \
             {FAST_THERE} theirs"
        ));
        let layout = |name: &str| {
            let mut header = bench.sealblk(&format!("inspect {name}"))["luks"].take();
            for field in ["uuid", "header_digest", "sequence_id"] {
                header[field].take();
            }
            // The cost of the digest is measured, or fixed; either way it is small beside the slot's.
            header["digests"][0]["kdf"]["iterations"].take();
            header
        };
        assert_eq!(layout("ours"), layout("theirs"));
    }
}

#[test]
fn a_detached_header_opens_there() {
    for kind in ["luks1", "luks2"] {
        let bench = Bench::new();
        bench.sealblk(&format!("format vol --header hdr --size 1M --type {kind} --key file:key {FAST}"));
        bench.cryptsetup(&format!("isLuks --type {kind} hdr"));
        bench.cryptsetup("open --test-passphrase --key-file key --header hdr vol");
        bench.cryptsetup(&format!("luksAddKey --key-file key {FAST_THERE} --header hdr vol other"));
        assert_eq!(bench.sealblk("slot list vol --header hdr")["slots"].as_array().unwrap().len(), 2);
        bench.sealblk("slot remove vol --header hdr --key file:key --keep-key file:other --yes");
        bench.cryptsetup("open --test-passphrase --key-file other --header hdr vol");
    }
}

#[test]
fn slots_of_either_side_open_on_the_other() {
    for kind in ["luks1", "luks2"] {
        let bench = Bench::new();
        bench.sealblk(&format!("format vol --size 1M --type {kind} --key file:key {FAST}"));
        let volume_key = bench.volume_key("vol");
        bench.cryptsetup(&format!("luksAddKey --key-file key {FAST_THERE} vol other"));
        assert!(bench.is_opened_here("vol", "other"));
        bench.sealblk(&format!("slot add vol --key file:other --new-key file:third {FAST}"));
        for key in ["key", "other", "third"] {
            assert!(bench.is_opened_there("vol", key), "{kind}: {key}");
        }
        bench.cryptsetup("luksKillSlot vol 1");
        assert!(!bench.is_opened_here("vol", "other") && bench.is_opened_here("vol", "third"));
        bench.sealblk(&format!("slot change vol --key file:third --new-key file:other {FAST}"));
        bench.sealblk("slot remove vol --key file:key --yes");
        bench.is_accepted_there("vol", kind);
        assert!(bench.is_opened_there("vol", "other"));
        assert!(!bench.is_opened_there("vol", "key") && !bench.is_opened_there("vol", "third"));
        fs::copy(bench.path("other"), bench.path("key")).unwrap();
        assert_eq!(bench.volume_key("vol"), volume_key, "the volume key stays through all of it");
    }
}

#[test]
fn slots_of_volumes_from_there_are_changed_here() {
    for (kind, more) in [
        ("luks1", "--hash sha1"),
        ("luks2", "--sector-size 4096 --luks2-metadata-size 64k --luks2-keyslots-size 4m"),
        ("luks2", "--hash sha512"),
    ] {
        let bench = Bench::new();
        fs::File::create(bench.path("vol")).unwrap().set_len(24 << 20).unwrap();
        bench.cryptsetup(&format!("luksFormat --type {kind} --key-file key {more} {FAST_THERE} vol"));
        if kind == "luks2" {
            fs::write(bench.path("token"), r#"{"type":"example","keyslots":["0"],"text":"stays"}"#).unwrap();
            bench.cryptsetup("token import --json-file token vol");
        }
        bench.sealblk(&format!("slot add vol --key file:key --new-key file:other --slot 4 {FAST}"));
        assert!(bench.is_opened_there("vol", "key") && bench.is_opened_there("vol", "other"));
        bench.sealblk(&format!("slot change vol --key file:key --new-key file:third {FAST}"));
        let dump = bench.is_accepted_there("vol", kind);
        assert_eq!(dump.contains("example"), kind == "luks2", "{dump}");
        assert!(!bench.is_opened_there("vol", "key"));
        assert!(bench.is_opened_there("vol", "other") && bench.is_opened_there("vol", "third"));
    }
}

#[test]
fn argon2_slots_open_there() {
    let bench = Bench::new();
    let argon2 = "--pbkdf argon2id --pbkdf-iterations 4 --pbkdf-memory 64K --pbkdf-threads 1";
    bench.sealblk(&format!("format vol --size 1M --key file:key {argon2}"));
    bench.sealblk(&format!("slot add vol --key file:key --new-key file:other {argon2}"));
    assert!(bench.is_opened_there("vol", "key") && bench.is_opened_there("vol", "other"));
    assert!(bench.cryptsetup("luksDump vol").contains("argon2id"));
}

#[test]
fn backups_are_exchanged() {
    for kind in ["luks1", "luks2"] {
        let bench = Bench::new();
        bench.sealblk(&format!("format vol --size 1M --type {kind} --key file:key {FAST}"));
        bench.sealblk("header backup vol ours");
        bench.cryptsetup("luksHeaderBackup vol --header-backup-file theirs");
        assert!(bench.read("ours") == bench.read("theirs"), "the same bytes");

        bench.sealblk(&format!("slot change vol --key file:key --new-key file:other {FAST}"));
        bench.cryptsetup("luksHeaderRestore vol --header-backup-file ours");
        assert!(bench.is_opened_there("vol", "key") && !bench.is_opened_there("vol", "other"));
        bench.sealblk(&format!("slot change vol --key file:key --new-key file:other {FAST}"));
        bench.sealblk("header restore vol theirs --yes");
        assert!(bench.is_opened_there("vol", "key") && !bench.is_opened_there("vol", "other"));
        bench.is_accepted_there("vol", kind);
    }
}

/// QEMU encrypts what nbdkit decrypts, both with the header that was made here.
#[test]
fn qemu_and_nbdkit_use_a_luks1_volume() {
    let bench = Bench::new();
    for key_bits in [256, 512] {
        bench.sealblk(&format!(
            "format vol --size 3M --type luks1 --key-size {key_bits} --key file:key {FAST}"
        ));
        let image =
            "--object secret,id=pass,file=key --image-opts driver=luks,key-secret=pass,file.filename=vol";
        let info: Value =
            serde_json::from_str(&bench.run("qemu-img", &format!("info --output json {image}"))).unwrap();
        assert_eq!(info["virtual-size"], 3 << 20, "the guest sees what --size says");
        let plaintext: Vec<u8> = (0..3_u32 << 20).map(|at| (at ^ (at >> 9)) as u8).collect();
        fs::write(bench.path("plaintext"), &plaintext).unwrap();
        let (object, target) = image.split_once(" --image-opts ").unwrap();
        bench.run("qemu-img", &format!("convert {object} -n -f raw plaintext --target-image-opts {target}"));
        let script = "nbdkit -U - file vol --filter=luks passphrase=+key --run 'nbdcopy \"$uri\" decrypted'";
        let output = Command::new("sh").args(["-c", script]).current_dir(&bench.folder).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(bench.read("decrypted") == plaintext, "what nbdkit reads is not what QEMU wrote");
        assert!(!bench.read("vol").windows(64).any(|part| part == &plaintext[..64]), "it is encrypted");
        fs::remove_file(bench.path("vol")).unwrap();
        fs::remove_file(bench.path("decrypted")).unwrap();
    }
}

/// QEMU's layout is its own: key material and payload begin elsewhere.
#[test]
fn slots_of_a_volume_made_by_qemu_are_changed_here() {
    let bench = Bench::new();
    bench.run(
        "qemu-img",
        "create -q -f luks --object secret,id=pass,file=key -o key-secret=pass,iter-time=10 vol 1M",
    );
    let before = bench.read("vol");
    bench.sealblk(&format!("slot change vol --key file:key --new-key file:other {FAST}"));
    assert!(bench.is_opened_there("vol", "other") && !bench.is_opened_there("vol", "key"));
    let offset = bench.sealblk("inspect vol")["payload"]["offset_bytes"].as_u64().unwrap();
    let offset = usize::try_from(offset).unwrap();
    assert!(before[offset..] == bench.read("vol")[offset..], "the payload is untouched");
    bench.sealblk("header backup vol ours");
    bench.cryptsetup("luksHeaderBackup vol --header-backup-file theirs");
    assert!(bench.read("ours") == bench.read("theirs"), "the same bytes");
}
