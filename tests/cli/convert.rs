//! `sealblk convert`: what goes in comes out, what is there stays there, and what is not whole is not there. What
//! other programs make of it is in `tests/interop`.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::*;

const REFUSED: i32 = 9;
/// Bytes that are no multiple of any sector size, some of them zero.
const ODD_BYTES: usize = 3_000_001;

fn content(len_bytes: usize) -> Vec<u8> {
    let piece = |i: usize| -> [u8; 32] {
        match i / 20_000 % 3 {
            1 => [0; 32],
            _ => Sha256::digest(i.to_le_bytes()).into(),
        }
    };
    let mut bytes: Vec<u8> = (0..len_bytes.div_ceil(32)).flat_map(piece).collect();
    bytes.truncate(len_bytes);
    bytes
}

impl Bench {
    fn with_disk() -> Self {
        let bench = Self::new();
        fs::write(bench.path("disk"), content(ODD_BYTES)).unwrap();
        bench.write_key("word", b"a passphrase that nobody would guess");
        // Looks random, so that deriving a key from it takes no time.
        bench.write_key("luks", b"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08");
        bench
    }

    #[track_caller]
    fn converts(&self, arguments: &str) -> String {
        let ended = self.run(&format!("convert {arguments}"));
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{arguments}");
        ended.stdout
    }

    fn listing(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn start(&self, arguments: &str) -> Child {
        let mut command = Command::new(PROGRAM);
        command.args(arguments.split_ascii_whitespace()).current_dir(&self.folder);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Begins a conversion that cannot come to its end, and returns when it has begun to write.
    fn begin_endless(&self, to: &str) -> Child {
        File::create(self.path("endless")).unwrap().set_len(1 << 40).unwrap();
        let key = "--from plain --src-key file:key --to raw";
        let child = self.start(&format!("convert endless {to} {key}"));
        let folder = self.folder.path().to_str().unwrap().to_owned();
        let deadline = Instant::now() + Duration::from_secs(60);
        while !has_written(child.id(), &folder) {
            assert!(Instant::now() < deadline, "nothing is written");
            std::thread::sleep(Duration::from_millis(2));
        }
        child
    }
}

/// Whether the process has written to a file in `folder` that is not called `endless`.
fn has_written(process: u32, folder: &str) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{process}/fd")) else { return false };
    descriptors.flatten().any(|descriptor| {
        let target = fs::read_link(descriptor.path()).unwrap_or_default();
        let target = target.to_str().unwrap_or_default();
        let is_new = target.starts_with(folder) && !target.ends_with("endless");
        is_new && fs::metadata(descriptor.path()).is_ok_and(|file| file.blocks() > 0)
    })
}

#[test]
fn every_format_gives_back_what_went_in() {
    let bench = Bench::with_disk();
    for (to, from) in [
        ("--to plain --dst-key file:key", "--from plain --src-key file:key"),
        (
            "--to plain --dst-key file:key --dst-sector-size 4096 --dst-offset 7 --dst-skip 16 \
             --dst-iv-large-sectors --dst-cipher aes-xts-plain64be",
            "--from plain --src-key file:key --src-sector-size 4096 --src-offset 7 --src-skip 16 \
             --src-iv-large-sectors --src-cipher aes-xts-plain64be",
        ),
        ("--dst-key file:luks", "--from luks2 --src-key file:luks"),
        (
            "--to plain --dst-key file:word --dst-plain-hash ripemd160 --dst-key-size 256",
            "--from plain --src-key file:word --src-plain-hash ripemd160 --src-key-size 256",
        ),
        ("--to luks1 --dst-key file:luks --dst-key-size 256", "--from luks1 --src-key file:luks"),
        (
            "--dst-key file:luks --dst-header head --dst-sector-size 4096 --dst-cipher aes-xts-plain --dst-label L",
            "--from luks --src-key file:luks --src-header head",
        ),
        ("--to raw", "--from raw"),
        ("--to none", "--from none"),
    ] {
        bench.converts(&format!("disk made --from raw --verify {to}"));
        assert_eq!(fs::metadata(bench.path("made")).unwrap().mode() & 0o7777, 0o600);
        bench.converts(&format!("made back --to raw --verify {from}"));
        let back = fs::read(bench.path("back")).unwrap();
        let sector_bytes = if to.contains("4096") { 4096 } else { 512 };
        assert_eq!(back.len(), ODD_BYTES.next_multiple_of(sector_bytes), "{to}");
        assert!(back[..ODD_BYTES] == content(ODD_BYTES) && back[ODD_BYTES..].iter().all(|b| *b == 0), "{to}");
        if !to.contains("raw") && !to.contains("none") {
            let made = fs::read(bench.path("made")).unwrap();
            let shown = content(ODD_BYTES)[..64].to_vec();
            assert!(!made.windows(64).any(|window| window == shown), "plaintext shows");
        }
        for name in ["made", "back", "head"] {
            let _ = fs::remove_file(bench.path(name));
        }
    }
    assert_eq!(bench.listing(), ["disk", "key", "luks", "vol", "word"]);
}

#[test]
fn volumes_that_dm_crypt_wrote_are_read() {
    let bench = Bench::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden");
    let manifest: Value = serde_json::from_slice(&fs::read(folder.join("manifest.json")).unwrap()).unwrap();
    for (name, options) in [("plain-512", "--src-sector-size 512"), ("plain-4096", "--src-sector-size 4096")]
    {
        let entry =
            manifest["images"].as_array().unwrap().iter().find(|image| image["name"] == name).unwrap();
        let packed = File::open(folder.join(entry["file"].as_str().unwrap())).unwrap();
        let mut image = Vec::new();
        flate2::read::GzDecoder::new(packed).read_to_end(&mut image).unwrap();
        fs::write(bench.path("golden"), image).unwrap();
        let digits = entry["key_hex"].as_str().unwrap();
        let digit = |i: usize| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).unwrap();
        bench.write_key("golden-key", &(0..digits.len() / 2).map(digit).collect::<Vec<_>>());
        bench.converts(&format!(
            "golden out --from plain --src-key file:golden-key {options} --to raw --force"
        ));
        let out = fs::read(bench.path("out")).unwrap();
        let mut hash = Sha256::new();
        for extent in entry["extents"].as_array().unwrap() {
            let number = |i: usize| extent[i].as_u64().unwrap() as usize;
            hash.update(&out[number(0)..][..number(1)]);
        }
        let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, entry["extents_sha256"].as_str().unwrap(), "{name}");
    }
}

#[test]
fn the_result_is_told_in_json() {
    let bench = Bench::with_disk();
    let told =
        bench.converts("disk made --from raw --dst-key file:luks --json --verify --dst-sector-size 4096");
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["destination"], "made");
    assert_eq!(told["source_bytes"], ODD_BYTES);
    assert_eq!(told["disk_bytes"], ODD_BYTES.next_multiple_of(4096));
    assert_eq!((&told["sector_bytes"], &told["verified"]), (&4096.into(), &true.into()));
    assert!(told["seconds"].as_f64().unwrap() > 0.0);
}

#[test]
fn an_encrypted_destination_keeps_the_block_size_that_the_disk_was_made_for() {
    let bench = Bench::with_disk();
    bench.converts("disk made --from raw --dst-key file:luks --dst-sector-size 4096");
    let told = bench.converts("made again --from luks --src-key file:luks --dst-key file:luks --json");
    assert_eq!(serde_json::from_str::<Value>(&told).unwrap()["sector_bytes"], 4096);
    let told =
        bench.converts("made old --from luks --src-key file:luks --to luks1 --dst-key file:luks --json");
    assert_eq!(serde_json::from_str::<Value>(&told).unwrap()["sector_bytes"], 512);
}

#[test]
fn a_disk_can_grow_and_never_shrinks() {
    let bench = Bench::with_disk();
    bench.converts("disk large --from raw --to raw --size 8M");
    let large = fs::read(bench.path("large")).unwrap();
    assert_eq!(large.len(), 8 << 20);
    assert!(large[..ODD_BYTES] == content(ODD_BYTES) && large[ODD_BYTES..].iter().all(|byte| *byte == 0));
    bench.run("convert disk small --from raw --to raw --size 1M").refused(USAGE, &["1048576", "3000001"]);
    bench
        .run("convert disk huge --from raw --to raw --size 16777215T")
        .refused(USAGE, &["larger than any file"]);
    for size in ["", "G", "1.5G", "99999999999999999999"] {
        bench.run(&format!("convert disk x --from raw --to raw --size={size}")).refused(USAGE, &["--size"]);
    }
}

#[test]
fn holes_stay_holes_only_where_they_are_zeroes_for_the_reader() {
    let bench = Bench::with_disk();
    let sparse = File::create(bench.path("sparse")).unwrap();
    sparse.set_len(24 << 20).unwrap();
    sparse.write_all_at(&content(100_000), 12 << 20).unwrap();
    let stored = |name: &str| fs::metadata(bench.path(name)).unwrap().blocks() * 512;

    bench.converts("sparse raw --from raw --to raw --verify");
    assert!(
        stored("raw") < 4 << 20
            && fs::read(bench.path("raw")).unwrap() == fs::read(bench.path("sparse")).unwrap()
    );
    // Zeroes are data in an encrypted volume.
    bench.converts("sparse plain --from raw --to plain --dst-key file:key --verify");
    assert!(stored("plain") >= 24 << 20);
    bench
        .run("convert sparse x --from raw --to plain --dst-key file:key --sparse")
        .refused(USAGE, &["--sparse", "random bytes"]);
    // Written zeroes become holes again on the way out.
    bench.converts("plain out --from plain --src-key file:key --to raw --verify");
    assert!(
        stored("out") < 4 << 20
            && fs::read(bench.path("out")).unwrap() == fs::read(bench.path("sparse")).unwrap()
    );

    // What was never written in an encrypted volume is nobody's data: left out by name only.
    let holes = File::create(bench.path("holes")).unwrap();
    holes.set_len(24 << 20).unwrap();
    holes.write_all_at(&fs::read(bench.path("plain")).unwrap()[12 << 20..14 << 20], 12 << 20).unwrap();
    let plain = "--from plain --src-key file:key --verify";
    bench.converts(&format!("holes full {plain} --to raw"));
    assert!(stored("full") >= 22 << 20);
    bench.converts(&format!("holes thin {plain} --to raw --sparse"));
    bench.converts(&format!("holes thin2 {plain} --dst-key file:luks --sparse"));
    // A LUKS2 header takes 16 MiB.
    assert!(stored("thin") < 8 << 20 && stored("thin2") < 24 << 20);
    assert!(fs::read(bench.path("thin")).unwrap() == fs::read(bench.path("sparse")).unwrap());
    bench.converts("thin2 out2 --from luks --src-key file:luks --to raw --sparse");
    assert!(fs::read(bench.path("out2")).unwrap() == fs::read(bench.path("sparse")).unwrap());
}

#[test]
fn what_is_there_is_replaced_by_name_only_and_when_the_new_one_is_whole() {
    let bench = Bench::with_disk();
    fs::write(bench.path("there"), b"precious").unwrap();
    std::os::unix::fs::symlink("there", bench.path("link")).unwrap();
    for to in ["there", "link"] {
        bench
            .run(&format!("convert disk {to} --from raw --to raw"))
            .refused(REFUSED, &[to, "exists", "--force"]);
    }
    bench
        .run("convert disk new --from raw --dst-key file:luks --dst-header there")
        .refused(REFUSED, &["there", "exists"]);
    // A header is never replaced: it may be the only one of another volume.
    for header in ["there", "disk", "link"] {
        bench
            .run(&format!("convert disk new --from raw --dst-key file:luks --force --dst-header {header}"))
            .refused(REFUSED, &[header, "exists"]);
    }
    for header in ["new", "./new"] {
        bench
            .run(&format!("convert disk new --from raw --dst-key file:luks --dst-header {header}"))
            .refused(USAGE, &["new", "both"]);
    }
    // Fails after the destination was looked at.
    bench.run("convert disk there --from qcow2 --to raw --force").refused(VOLUME, &["source disk"]);
    assert_eq!(fs::read(bench.path("there")).unwrap(), b"precious");
    bench.converts("disk link --from raw --to raw --force");
    assert!(fs::read(bench.path("there")).unwrap()[..ODD_BYTES] == content(ODD_BYTES));
    assert!(fs::symlink_metadata(bench.path("link")).unwrap().is_symlink());
    assert_eq!(bench.listing(), ["disk", "key", "link", "luks", "there", "vol", "word"]);
}

#[test]
fn neither_end_may_be_in_use() {
    let bench = Bench::with_disk();
    let disk = File::open(bench.path("disk")).unwrap();
    disk.lock().unwrap();
    bench.run("convert disk new --from raw --to raw").refused(VOLUME_LOCKED, &["source", "disk", "in use"]);
    disk.unlock().unwrap();
    // Other readers do no harm.
    disk.lock_shared().unwrap();
    bench.converts("disk new --from raw --to raw");
    disk.unlock().unwrap();
    let new = File::open(bench.path("new")).unwrap();
    new.lock_shared().unwrap();
    bench
        .run("convert disk new --from raw --to raw --force")
        .refused(VOLUME_LOCKED, &["destination", "new", "in use"]);
    std::os::unix::fs::symlink("disk", bench.path("alias")).unwrap();
    for to in ["disk", "alias"] {
        bench.run(&format!("convert disk {to} --from raw --to raw --force")).refused(VOLUME, &["the same"]);
    }
}

#[test]
fn convert_options_that_make_no_sense_are_named() {
    let bench = Bench::with_disk();
    for (arguments, parts) in [
        ("convert disk", &["DST"][..]),
        ("convert disk new --to raw", &["--from"]),
        ("convert disk new --from luks9 --to raw", &["luks9", "qcow2", "vmdk"]),
        ("convert disk new --from raw", &["--dst-key", "required"]),
        ("convert disk new --from luks --to raw", &["--src-key", "required"]),
        ("convert disk new --from raw --to raw --dst-key file:luks", &["--dst-key", "raw"]),
        ("convert disk new --from raw --to raw --src-skip 8", &["--src-skip", "raw"]),
        ("convert disk new --from qcow2 --to raw --src-offset 8", &["--src-offset", "qcow2"]),
        (
            "convert disk new --from luks --src-key file:luks --src-cipher aes-xts-plain --to raw",
            &["--src-cipher"],
        ),
        (
            "convert disk new --from plain --src-key file:key --src-header x --to raw",
            &["--src-header", "plain"],
        ),
        ("convert disk new --from raw --dst-key file:luks --dst-offset 8", &["--dst-offset", "luks"]),
        (
            "convert disk new --from raw --to luks1 --dst-key file:luks --dst-label x",
            &["--dst-label", "LUKS1"],
        ),
        (
            "convert disk new --from raw --to luks1 --dst-key file:luks --dst-sector-size 4096",
            &["LUKS1", "512"],
        ),
        (
            "convert disk new --from raw --to plain --dst-key file:key --dst-key-size 384",
            &["--dst-key-size", "512"],
        ),
        (
            "convert disk new --from raw --to plain --dst-key file:key --dst-iv-large-sectors",
            &["--dst-sector-size"],
        ),
        (
            "convert disk new --from raw --to plain --dst-key file:key --dst-sector-size 4096 --dst-skip 4",
            &["--dst-skip", "multiple"],
        ),
        (
            "convert disk new --from raw --dst-key file:luks --dst-cipher aes-xts-plain64be",
            &["plain64be", "LUKS"],
        ),
        ("convert disk new --from raw --to raw --allow-linked-files", &["--allow-linked-files"]),
        ("convert disk new --from raw --to raw --insecure plaintext", &["plaintext", "equal-key-halves"]),
    ] {
        bench.run(arguments).refused(USAGE, parts);
    }
    let key = str::from_utf8(KEY_BYTES).unwrap();
    bench
        .run(&format!("convert disk new --from raw --dst-key {key}"))
        .refused(USAGE, &["--dst-key", "file:PATH"]);
    assert_eq!(bench.listing(), ["disk", "key", "luks", "vol", "word"]);
}

#[test]
fn ends_that_do_not_fit_are_refused_before_anything_is_made() {
    let bench = Bench::with_disk();
    for (arguments, code, parts) in [
        ("missing new --from raw --to raw", VOLUME, &["source", "missing", "No such file"][..]),
        (". new --from raw --to raw", VOLUME, &["a directory"]),
        ("/dev/null new --from raw --to raw", VOLUME, &["a character device"]),
        ("disk missing/new --from raw --to raw", VOLUME, &["missing/new", "No such file"]),
        ("disk . --from raw --to raw --force", VOLUME, &["a directory"]),
        ("disk new --from raw --to raw --src-offset 5860", VOLUME, &["disk", "3000001", "--src-offset"]),
        ("disk new --from luks --src-key file:luks --to raw", VOLUME, &["source", "no LUKS header"]),
        ("disk new --from plain --src-key file:key --to raw", VOLUME, &["source", "3000001", "512"]),
        ("vol new --from plain --src-key file:word --to raw", KEY, &["source", "36 bytes", "64"]),
        ("disk new --from raw --to plain --dst-key file:word", KEY, &["destination", "36 bytes", "64"]),
        ("disk new --from raw --dst-key file:gone", KEY, &["destination", "gone", "no such file"]),
    ] {
        bench.run(&format!("convert {arguments}")).refused(code, parts);
    }
    bench.converts("disk made --from raw --dst-key file:luks");
    bench.run("convert made new --from luks --src-key file:word --to raw").refused(KEY, &["source"]);
    bench
        .run("convert made new --from luks1 --src-key file:luks --to raw")
        .refused(VOLUME, &["source", "LUKS1"]);
    assert_eq!(bench.listing(), ["disk", "key", "luks", "made", "vol", "word"]);
}

#[test]
fn keys_with_equal_halves_come_in_by_name_and_never_go_out() {
    let bench = Bench::new();
    bench.write_key("equal", &KEY_BYTES[..32].repeat(2));
    let from = "vol new --from plain --src-key file:equal --to raw";
    bench.run(&format!("convert {from}")).refused(KEY, &["source", "equal"]);
    bench.converts(&format!("{from} --insecure equal-key-halves"));
    bench
        .run("convert vol out --from raw --to plain --dst-key file:equal --insecure equal-key-halves")
        .refused(KEY, &["destination", "equal"]);
}

#[test]
fn a_volume_that_does_not_fit_leaves_nothing() {
    let bench = Bench::with_disk();
    // The sizes are of 512 bytes each.
    for to in ["--to raw", "--to plain --dst-key file:key", "--dst-key file:key", "--to raw --size 1T"] {
        bench
            .shell(&format!("ulimit -f 2000; $S convert disk new --from raw {to}"))
            .refused(FAILURE, &["File too large"]);
    }
    assert_eq!(bench.listing(), ["disk", "key", "luks", "vol", "word"]);
}

#[test]
fn an_interrupted_conversion_leaves_nothing() {
    for signal in [Signal::INT, Signal::TERM] {
        let bench = Bench::new();
        let mut child = bench.begin_endless("new");
        kill_process(Pid::from_child(&child), signal).unwrap();
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!((child.wait().unwrap().code(), said.as_str()), (Some(FAILURE), "sealblk: interrupted\n"));
        assert_eq!(bench.listing(), ["endless", "key", "vol"]);
    }
}

#[test]
fn a_killed_conversion_leaves_nothing_either() {
    let bench = Bench::new();
    for to in ["new", "vol --force"] {
        let mut child = bench.begin_endless(to);
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        assert_eq!(bench.listing(), ["endless", "key", "vol"]);
        assert_eq!(fs::read(bench.path("vol")).unwrap(), vec![0; VOLUME_BYTES as usize]);
    }
}

#[test]
fn images_need_qemu() {
    let bench = Bench::with_disk();
    bench
        .shell("PATH=/nowhere; $S convert disk new --from qcow2 --to raw")
        .refused(VOLUME, &["disk", "qemu-img", "qemu-utils"]);
}

#[test]
fn a_program_that_reads_images_sees_nothing_but_its_image() {
    let bench = Bench::with_disk();
    fs::write(bench.path("image"), b"the image").unwrap();
    let tool = format!("exec $S image-tool --parent {}", std::process::id());
    let seen = bench.shell(&format!("{tool} -- cat /proc/self/fd/0 <image"));
    assert_eq!((seen.code, seen.stdout.as_str()), (0, "the image"), "{}", seen.stderr);
    for other in ["word", "/etc/passwd", "/proc/1/environ"] {
        let denied = bench.shell(&format!("{tool} -- cat {other} <image"));
        assert!(
            denied.code != 0 && denied.stderr.contains("Permission denied"),
            "{other}: {}",
            denied.stderr
        );
    }
    let denied = bench.shell(&format!("{tool} -- cp /proc/self/fd/0 new <image"));
    assert!(denied.code != 0 && !Path::new(&bench.path("new")).exists());
    let allowed = bench.shell(&format!("{tool} --linked-files -- cat word <image"));
    assert_eq!(allowed.code, 0, "{}", allowed.stderr);
    bench.shell("$S image-tool --parent 1 -- cat <image").refused(FAILURE, &["cat", "whoever asked"]);
}

/// A loop device, with sectors of 512 bytes.
fn loop_device(bench: &Bench, name: &str, size_bytes: u64) -> LoopDevice {
    File::create(bench.path(name)).unwrap().set_len(size_bytes).unwrap();
    let output = Command::new("losetup").args(["--find", "--show", &bench.path(name)]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    LoopDevice(String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

#[test]
#[ignore = "makes loop devices: needs root"]
fn devices_are_ends_too_and_overwritten_by_name_only() {
    let bench = Bench::with_disk();
    let device = loop_device(&bench, "backing", 32 << 20);
    let to = &device.0;
    bench.run(&format!("convert disk {to} --from raw --to raw")).refused(REFUSED, &[to, "--force", "header"]);
    bench.converts(&format!("disk {to} --from raw --dst-key file:luks --verify"));
    bench
        .run(&format!("convert disk {to} --from raw --dst-key file:luks"))
        .refused(REFUSED, &[to, "LUKS", "--force"]);
    bench
        .run(&format!("convert {to} {to} --from luks --src-key file:luks --to raw --force"))
        .refused(VOLUME, &["same"]);
    bench.converts(&format!("{to} back --from luks --src-key file:luks --to raw"));
    assert!(fs::read(bench.path("back")).unwrap()[..ODD_BYTES] == content(ODD_BYTES));
    bench.converts(&format!("disk {to} --from raw --to plain --dst-key file:key --force --verify"));
    bench
        .run(&format!("convert disk {to} --from raw --dst-key file:luks --size 32M --force"))
        .refused(VOLUME, &[to, "33554432", "50331648"]);
    bench.converts(&format!("{to} x --from plain --src-key file:key --to raw --sparse"));
    bench
        .run(&format!("convert x {to} --from plain --src-key file:key --to raw --sparse --force"))
        .refused(USAGE, &["--sparse"]);
    let claimed = open_exclusively(Path::new(to));
    bench.run(&format!("convert disk {to} --from raw --to raw --force")).refused(VOLUME_LOCKED, &[to]);
    drop(claimed);
}
