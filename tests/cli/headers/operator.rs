//! The program on headers: messages, exit codes, and bounds on memory and time.

use std::fs;
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};

use super::image::{COPY_BYTES, PASSPHRASE, luks1, luks2, luks2_with};
use crate::{Bench, KEY, USAGE, VOLUME};

/// Bytes of the header area of [`luks2`]: two copies and a keyslots area of 1 MiB.
const LUKS2_AREA_BYTES: usize = 2 * COPY_BYTES + (1 << 20);

struct Luks {
    bench: Bench,
}

impl Luks {
    fn new(image: &[u8]) -> Self {
        let bench = Bench::new();
        fs::write(bench.path("vol"), image).unwrap();
        bench.write_key("key", PASSPHRASE);
        bench.write_key("wrong", b"incorrect horse");
        Self { bench }
    }

    /// Serving cannot begin: the socket's folder is not there. Whatever is wrong with the volume is told before.
    fn serve(&self, more: &str) -> crate::Ended {
        let key = if more.contains("--key ") { "" } else { "--key file:key" };
        let level = if more.contains("--log-level") { "" } else { "--log-level error" };
        let serve = "serve --socket-path none/s --blk-file vol --direct off";
        self.bench.run(&format!("{serve} {level} {key} {more}"))
    }

    #[track_caller]
    fn opens(&self, more: &str) {
        self.serve(more).refused(crate::SOCKET, &["none/s"]);
    }
}

#[test]
fn a_volume_is_opened_without_naming_its_format() {
    for (image, own, other) in [(luks1(), "luks1", "luks2"), (luks2(), "luks2", "luks1")] {
        let luks = Luks::new(&image);
        luks.opens("");
        luks.opens("--format luks");
        luks.opens(&format!("--format {own}"));
        luks.serve(&format!("--format {other}")).refused(VOLUME, &["but --format says"]);
        luks.serve("--key file:wrong").refused(KEY, &["opens no key slot"]);
        luks.opens("--key-slot 0");
        luks.serve("--key-slot 1").refused(VOLUME, &["no key slot 1"]);
        luks.serve("--sector-size 512").refused(USAGE, &["--sector-size has no meaning with --format luks"]);
        // Direct I/O reads the header as well.
        luks.bench
            .run("serve --socket-path none/s --log-level error --blk-file vol --read-only --key file:key")
            .refused(crate::SOCKET, &["none/s"]);
    }
    let blank = Luks::new(&[0; 1 << 20]);
    blank.serve("").refused(VOLUME, &["no LUKS header", "blank", "--format plain"]);
}

#[test]
fn a_damaged_copy_is_warned_of() {
    for copy in 0..2 {
        let mut image = luks2();
        image[copy * COPY_BYTES + 300] ^= 1;
        let luks = Luks::new(&image);
        let stderr = luks.serve("--log-level warn").stderr;
        assert!(stderr.contains("one copy of the LUKS2 header is damaged"), "copy {copy}: {stderr}");
        assert!(stderr.contains("cannot listen on socket"), "copy {copy}: {stderr}");
    }
    let stderr = Luks::new(&luks2()).serve("--log-level warn").stderr;
    assert!(!stderr.contains("damaged"), "{stderr}");
}

#[test]
fn a_detached_header_is_used() {
    let mut image = luks2();
    let header = image[..LUKS2_AREA_BYTES].to_vec();
    image[..LUKS2_AREA_BYTES].fill(0);
    let luks = Luks::new(&image);
    fs::write(luks.bench.path("header"), &header).unwrap();
    luks.serve("").refused(VOLUME, &["no LUKS header"]);
    luks.opens("--header header");
    luks.serve("--header missing").refused(VOLUME, &["header missing"]);
    luks.serve("--header .").refused(VOLUME, &["neither a file nor a block device"]);
    luks.serve("--header header --format plain").refused(USAGE, &["--header has no meaning"]);
    fs::write(luks.bench.path("header"), &header[..header.len() - 512]).unwrap();
    luks.serve("--header header").refused(VOLUME, &["ends at byte"]);
}

/// A payload that overlaps the header is allowed with a header elsewhere only, not with one that is said to be.
#[test]
fn the_volume_is_not_its_own_detached_header() {
    let luks = Luks::new(&luks2_with(|json| json["segments"]["0"]["offset"] = "0".into()));
    std::os::unix::fs::symlink("vol", luks.bench.path("link")).unwrap();
    for name in ["vol", "link"] {
        luks.serve(&format!("--header {name}")).refused(VOLUME, &["inside the header"]);
    }
}

#[test]
fn a_header_is_pinned_by_the_digest_of_its_backup() {
    for (image, area_bytes) in [(luks1(), 2_068_480), (luks2(), LUKS2_AREA_BYTES)] {
        let luks = Luks::new(&image);
        let digest = base16ct::lower::encode_string(&Sha256::digest(&image[..area_bytes]));
        luks.opens(&format!("--expect-header-digest {digest}"));
        // Anywhere in the area, also where nothing is used; and not behind it.
        let volume = fs::OpenOptions::new().write(true).open(luks.bench.path("vol")).unwrap();
        volume.write_all_at(&[1], area_bytes as u64).unwrap();
        luks.opens(&format!("--expect-header-digest {digest}"));
        volume.write_all_at(&[1], area_bytes as u64 - 1).unwrap();
        luks.serve(&format!("--expect-header-digest {digest}")).refused(VOLUME, &["was the header changed?"]);
        luks.opens("");
    }
}

/// Each of these would take gigabytes or hours. The shell allows the program 400 MB of address space, and a minute.
#[test]
fn hostile_costs_are_refused_before_they_are_paid() {
    let kdf = |field: &'static str, value: u32| {
        luks2_with(move |json| json["keyslots"]["0"]["kdf"][field] = value.into())
    };
    let iterations = i32::MAX as u32;
    for (image, part) in [
        (kdf("memory", 2 << 20), "--kdf-memory-max"),
        (kdf("time", iterations), "--kdf-work-max"),
        (kdf("cpus", 10_000), "--kdf-threads-max"),
        (luks2_with(|json| json["digests"]["0"]["iterations"] = iterations.into()), "--kdf-iterations-max"),
        (luks2_with(|json| json["keyslots"]["0"]["key_size"] = iterations.into()), ""),
        (luks2_with(|json| json["keyslots"]["0"]["af"]["stripes"] = iterations.into()), ""),
        (luks2_with(|json| json["config"]["keyslots_size"] = "134217728".into()), ""),
    ] {
        let luks = Luks::new(&image);
        let serve = "$S serve --socket-path none/s --blk-file vol --direct off --key file:key";
        luks.bench.shell(&format!("ulimit -v 400000; exec timeout 60 {serve}")).refused(VOLUME, &[part]);
    }
    // The same bounds are enough for a header that is in order.
    let luks = Luks::new(&luks2());
    let serve = "$S serve --socket-path none/s --blk-file vol --direct off --key file:wrong";
    luks.bench
        .shell(&format!("ulimit -v 400000; exec timeout 60 {serve}"))
        .refused(KEY, &["opens no key slot"]);
}

#[test]
fn plain_volumes_take_a_passphrase_only_when_told_so() {
    let bench = Bench::new();
    // As Nova hands a managed key of 32 bytes to cryptsetup: as many digits as a volume key has bytes.
    bench.write_key("key", b"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f");
    let serve = |more: &str| {
        bench.run(&format!(
            "serve --socket-path none/s --log-level error --blk-file vol --direct off --format plain \
             --key file:key {more}"
        ))
    };
    serve("").refused(KEY, &["64 hexadecimal digits", "--plain-hash"]);
    serve("--key-size 256").refused(KEY, &["64 bytes", "--plain-hash"]);
    for hash in ["none", "ripemd160", "sha256 --key-size 256"] {
        serve(&format!("--plain-hash {hash}")).refused(crate::SOCKET, &["none/s"]);
    }
    serve("--plain-hash md5").refused(USAGE, &["md5", "ripemd160"]);
}
