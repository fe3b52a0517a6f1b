//! `sealblk convert` against QEMU, cryptsetup and nbdkit, both ways.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_sealblk");
const DISK_BYTES: u64 = 24 << 20;
/// Looks random, so that deriving a key from it costs next to nothing.
const PASSPHRASE: &str = "1f0e2d3c4b5a69788796a5b4c3d2e1f00112233445566778899aabbccddeeff0";

/// A folder with a disk in many forms.
struct Bench(TempDir);

impl Bench {
    fn new() -> Self {
        let bench = Self(tempfile::tempdir().unwrap());
        let mut disk = vec![0; DISK_BYTES as usize];
        for (i, block) in disk.chunks_mut(4096).enumerate() {
            match i % 96 {
                0..10 => block.fill(i as u8 | 1),
                10..12 => block[100..200].fill(0x5a),
                _ => {}
            }
        }
        fs::write(bench.path("disk"), disk).unwrap();
        fs::write(bench.path("word"), PASSPHRASE).unwrap();
        fs::set_permissions(bench.path("word"), Permissions::from_mode(0o600)).unwrap();
        bench
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn output(&self, program: &str, arguments: &str) -> Output {
        let mut command = Command::new(program);
        command.args(arguments.split_ascii_whitespace()).current_dir(&self.0);
        command.output().unwrap_or_else(|error| panic!("{program}: {error}"))
    }

    #[track_caller]
    fn run(&self, program: &str, arguments: &str) {
        let output = self.output(program, arguments);
        assert!(
            output.status.success(),
            "{program} {arguments}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    #[track_caller]
    fn convert(&self, arguments: &str) {
        self.run(PROGRAM, &format!("convert {arguments}"));
    }

    #[track_caller]
    fn refused(&self, arguments: &str, part: &str) {
        let output = self.output(PROGRAM, &format!("convert {arguments}"));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{arguments}: {said}");
        assert!(said.lines().count() == 1 && said.contains(part), "{arguments}: {said}");
    }

    #[track_caller]
    fn same_as_disk(&self, name: &str) {
        assert!(
            fs::read(self.path(name)).unwrap() == fs::read(self.path("disk")).unwrap(),
            "{name} is different"
        );
    }
}

#[test]
fn every_image_format_becomes_the_disk_that_qemu_sees() {
    let bench = Bench::new();
    for (format, options) in [
        ("qcow2", ""),
        ("qcow2", "-c"),
        ("qcow2", "-o compat=0.10"),
        ("qcow2", "-o cluster_size=4k,extended_l2=off"),
        ("qcow2", "-c -o compression_type=zstd"),
        ("qed", ""),
        ("vdi", ""),
        ("vhdx", ""),
        ("vpc", "-o force_size=on"),
        ("vmdk", ""),
        ("vmdk", "-o subformat=streamOptimized"),
    ] {
        bench.run("qemu-img", &format!("convert -f raw -O {format} {options} disk image"));
        bench.convert(&format!("image out --from {format} --to raw --verify --force"));
        bench.same_as_disk("out");
        bench.convert(&format!("image volume --from {format} --dst-key file:word --verify --force"));
        bench.convert("volume out --from luks --src-key file:word --to raw --force");
        bench.same_as_disk("out");
    }
}

#[test]
fn what_an_image_adds_to_its_backing_file_is_seen() {
    let bench = Bench::new();
    bench.run("qemu-img", "convert -f raw -O qcow2 disk base");
    bench.run("qemu-img", "create -q -f qcow2 -b base -F qcow2 image");
    let write = ["-f", "qcow2", "-c", "write -P 7 1M 1M", "image"];
    assert!(Command::new("qemu-io").args(write).current_dir(&bench.0).output().unwrap().status.success());
    bench.convert("image out --from qcow2 --to raw --allow-linked-files --verify");
    bench.run("qemu-img", "compare -f qcow2 -F raw image out");
}

#[test]
fn an_image_that_is_something_else_is_refused() {
    let bench = Bench::new();
    bench.refused("disk out --from qcow2 --to raw", "not in qcow2 format");
    // Whatever a guest wrote to its raw disk stays data.
    bench.run("qemu-img", "create -q -f qcow2 -b /etc/passwd -F raw trap 24M");
    bench.convert("trap out --from raw --to raw");
    let trap = fs::read(bench.path("trap")).unwrap();
    assert!(fs::read(bench.path("out")).unwrap()[..trap.len()] == trap);
}

#[test]
fn luks1_is_what_qemu_and_nbdkit_read() {
    let bench = Bench::new();
    for bits in [256, 512] {
        bench.convert(&format!(
            "disk volume --from raw --to luks1 --dst-key file:word --dst-key-size {bits} --verify --force"
        ));
        bench.run("cryptsetup", "open --test-passphrase --type luks1 --key-file word volume");
        bench.run(
            "qemu-img",
            "compare --object secret,id=s,file=word --image-opts \
             driver=luks,key-secret=s,file.filename=volume driver=raw,file.filename=disk",
        );
        let read = "-U - file volume --filter=luks passphrase=+word --run";
        let mut nbdkit = Command::new("nbdkit");
        nbdkit.args(read.split_ascii_whitespace()).arg("nbdcopy $uri out").current_dir(&bench.0);
        assert!(nbdkit.status().unwrap().success());
        bench.same_as_disk("out");
    }
}

#[test]
fn luks2_is_what_cryptsetup_decrypts() {
    let bench = Bench::new();
    for sector_bytes in [512, 4096] {
        bench.convert(&format!(
            "disk volume --from raw --dst-key file:word --dst-sector-size {sector_bytes} --force"
        ));
        let header = format!("header-{sector_bytes}");
        bench.run(
            "cryptsetup",
            &format!(
                "reencrypt --decrypt --header {header} --force-offline-reencrypt --batch-mode --key-file word volume"
            ),
        );
        let decrypted = fs::read(bench.path("volume")).unwrap();
        assert!(decrypted[..DISK_BYTES as usize] == fs::read(bench.path("disk")).unwrap());
    }
}

#[test]
fn luks_volumes_of_others_are_exported() {
    let bench = Bench::new();
    bench.run(
        "qemu-img",
        "convert -f raw -O luks --object secret,id=s,file=word -o key-secret=s,iter-time=10 disk volume",
    );
    bench.convert("volume out --from luks1 --src-key file:word --to raw --verify");
    bench.same_as_disk("out");
    for sector_bytes in [512, 4096] {
        fs::copy(bench.path("disk"), bench.path("volume")).unwrap();
        File::options()
            .write(true)
            .open(bench.path("volume"))
            .unwrap()
            .set_len(DISK_BYTES + (32 << 20))
            .unwrap();
        bench.run(
            "cryptsetup",
            &format!(
                "reencrypt --encrypt --type luks2 --reduce-device-size 32M --force-offline-reencrypt --batch-mode \
                 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --sector-size {sector_bytes} --key-file word volume"
            ),
        );
        bench.convert("volume out --from luks2 --src-key file:word --to raw --force");
        let out = fs::read(bench.path("out")).unwrap();
        assert!(out[..DISK_BYTES as usize] == fs::read(bench.path("disk")).unwrap(), "{sector_bytes}");
    }
}

#[test]
fn a_detached_header_is_one_that_cryptsetup_takes() {
    let bench = Bench::new();
    bench.convert("disk volume --from raw --dst-key file:word --dst-header header --verify");
    assert_eq!(fs::metadata(bench.path("volume")).unwrap().len(), DISK_BYTES);
    bench.run("cryptsetup", "open --test-passphrase --header header --key-file word volume");
    bench.convert("volume out --from luks --src-key file:word --src-header header --to raw");
    bench.same_as_disk("out");
}

/// A VMDK whose content is in the file at `extent`.
fn vmdk_of(extent: &Path) -> String {
    let extent = extent.display();
    format!(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\
         RW 49152 FLAT \"{extent}\" 0\nddb.adapterType = \"ide\"\nddb.geometry.cylinders = \"48\"\n\
         ddb.geometry.heads = \"16\"\nddb.geometry.sectors = \"63\"\n"
    )
}

#[test]
fn an_image_cannot_pull_in_files_of_the_host() {
    let bench = Bench::new();
    let refused = |format: &str, part: &str| {
        bench.refused(&format!("image out --from {format} --to raw"), part);
        bench.refused(&format!("image out --from {format} --to raw"), "--allow-linked-files");
        bench.convert(&format!("image out --from {format} --to raw --allow-linked-files --force"));
        bench.same_as_disk("out");
        fs::remove_file(bench.path("out")).unwrap();
    };
    let disk = bench.path("disk");
    bench.run("qemu-img", &format!("create -q -f qcow2 -b {disk} -F raw image"));
    refused("qcow2", &disk);
    bench.run("qemu-img", "create -q -f qcow2 -b disk -F raw image");
    refused("qcow2", "disk");
    bench.run("qemu-img", "create -q -f qed -b disk -F raw image");
    refused("qed", "disk");
    fs::write(bench.path("image"), vmdk_of(Path::new(&disk))).unwrap();
    refused("vmdk", &disk);
    fs::write(bench.path("image"), vmdk_of(Path::new("disk"))).unwrap();
    refused("vmdk", "disk");
    bench.run("qemu-img", "create -q -f qcow2 -o data_file=data,data_file_raw=on image 24M");
    fs::copy(bench.path("disk"), bench.path("data")).unwrap();
    refused("qcow2", "data");
}

#[test]
fn an_image_encrypted_inside_is_told_from_a_broken_one() {
    let bench = Bench::new();
    bench.run(
        "qemu-img",
        "convert -f raw -O qcow2 --object secret,id=s,file=word \
         -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 disk image",
    );
    bench.refused("image out --from qcow2 --to raw", "encrypted inside");
}

#[test]
fn an_image_that_lost_its_end_is_refused() {
    let bench = Bench::new();
    for (format, options) in [
        ("qcow2", ""),
        ("qcow2", "-c"),
        ("qed", ""),
        ("vhdx", "-o subformat=dynamic"),
        ("vpc", "-o force_size=on"),
        ("vmdk", ""),
    ] {
        bench.run("qemu-img", &format!("convert -f raw -O {format} {options} disk image"));
        let image = File::options().write(true).open(bench.path("image")).unwrap();
        image.set_len(image.metadata().unwrap().len() / 4 * 3 / 512 * 512).unwrap();
        bench.refused(&format!("image out --from {format} --to raw"), "source image");
        assert!(!Path::new(&bench.path("out")).exists());
    }
}
