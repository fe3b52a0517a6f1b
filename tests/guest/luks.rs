//! The kernel's dm-crypt, set up by the guest's cryptsetup, and we share LUKS volumes of every kind.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::{TempDir, tempdir};

use crate::harness::{BackEnd, Guest, LuksLayout, PlainLayout, ServeOptions, Served, Volume};

const PASSPHRASE: &[u8] = b"correct horse battery staple";
const CAPACITY_BYTES: u64 = 512 << 10;
/// Where the payload begins when the header lies in front of it.
const PAYLOAD_BYTES: u64 = 2 << 20;

const PBKDF2: &str = "--pbkdf pbkdf2 --pbkdf-force-iterations 1000";
const ARGON2ID: &str = "--pbkdf argon2id --pbkdf-force-iterations 4 --pbkdf-memory 64 --pbkdf-parallel 1";
/// Headers of half a MiB, which leave room in front of the payload.
const SMALL_LUKS2: &str = "--type luks2 --luks2-metadata-size 16k --luks2-keyslots-size 512k";

/// What cryptsetup is told when it formats a volume.
struct Kind {
    name: &'static str,
    options: String,
    sector_bytes: u32,
    detached: bool,
}

fn kinds() -> Vec<Kind> {
    let luks1 = "--type luks1 --pbkdf-force-iterations 1000";
    let kind = |name, options: String, sector_bytes, detached| Kind { name, options, sector_bytes, detached };
    vec![
        kind("luks1-aes256", format!("{luks1} --key-size 512"), 512, false),
        kind("luks1-aes128-plain", format!("{luks1} --key-size 256 --cipher aes-xts-plain"), 512, false),
        kind("luks1-detached", format!("{luks1} --key-size 512"), 512, true),
        kind("luks2-512-pbkdf2", format!("{SMALL_LUKS2} {PBKDF2} --sector-size 512"), 512, false),
        kind("luks2-512-argon2id", format!("{SMALL_LUKS2} {ARGON2ID} --sector-size 512"), 512, false),
        kind("luks2-4096-pbkdf2", format!("{SMALL_LUKS2} {PBKDF2} --sector-size 4096"), 4096, false),
        kind("luks2-4096-argon2id", format!("{SMALL_LUKS2} {ARGON2ID} --sector-size 4096"), 4096, false),
        kind(
            "luks2-2048-aes128",
            format!("{SMALL_LUKS2} {PBKDF2} --sector-size 2048 --key-size 256"),
            2048,
            false,
        ),
        kind("luks2-4096-detached", format!("{SMALL_LUKS2} {ARGON2ID} --sector-size 4096"), 4096, true),
    ]
}

/// One volume of each kind, and the files that tell the guest about them.
struct Table {
    folder: TempDir,
    volumes: Vec<Volume>,
}

impl Table {
    fn new() -> Self {
        let folder = tempdir().expect("a temporary folder");
        fs::write(folder.path().join("passphrase"), PASSPHRASE).expect("the folder is ours");
        let (mut volumes, mut lines) = (Vec::new(), String::new());
        // The guest gets detached headers as disks of their own, after all others.
        let mut header_disks = kinds().len()..;
        for (index, kind) in kinds().into_iter().enumerate() {
            let header_disk = if kind.detached { header_disks.next() } else { None };
            let header = header_disk.map_or("attached".to_owned(), |disk| disk.to_string());
            let Kind { name, sector_bytes, .. } = kind;
            lines += &format!("{index} {name} {sector_bytes} {CAPACITY_BYTES} {header}\n");
            volumes.push(format_volume(folder.path(), &kind));
        }
        fs::write(folder.path().join("cases"), lines).expect("the folder is ours");
        Self { folder, volumes }
    }

    fn headers(&self) -> impl Iterator<Item = &PathBuf> {
        self.volumes.iter().filter_map(|volume| volume.luks.as_ref()?.header.as_ref())
    }

    /// A guest that does `action` with the disks that it will be given.
    fn guest(&self, action: &str, mapped: &str, seed: u32) -> Guest {
        Guest::new(self.folder.path(), "luks")
            // See dm_crypt.rs.
            .cpus_and_queues(1)
            .var("ACTION", action)
            .var("MAPPED", mapped)
            .var("SEED", seed)
            .file("cases", &self.folder.path().join("cases"))
            .file("passphrase", &self.folder.path().join("passphrase"))
    }

    fn through_sealblk(&self, action: &str, seed: u32) {
        let served: Vec<_> =
            self.volumes.iter().map(|volume| Served::start(volume, &ServeOptions::default())).collect();
        let report = served.iter().fold(self.guest(action, "no", seed), Guest::disk).run();
        assert_eq!(report.get("cases"), self.volumes.len().to_string());
        served.into_iter().for_each(Served::stop);
    }

    fn through_dm_crypt(&self, action: &str, seed: u32) {
        let guest = self.guest(action, "yes", seed);
        let disks = self.volumes.iter().map(|volume| &volume.image).chain(self.headers());
        let report = disks.fold(guest, |guest, disk| guest.raw_disk(disk)).run();
        assert_eq!(report.get("cases"), self.volumes.len().to_string());
    }
}

fn format_volume(folder: &Path, kind: &Kind) -> Volume {
    let mut volume = Volume::create(folder, kind.name, 0, PlainLayout::default());
    let header = kind.detached.then(|| folder.join(format!("{}.header", kind.name)));
    let image_bytes = CAPACITY_BYTES + if kind.detached { 0 } else { PAYLOAD_BYTES };
    File::options().write(true).open(&volume.image).and_then(|file| file.set_len(image_bytes)).expect("ours");
    let mut command = Command::new("cryptsetup");
    command.args(["--batch-mode", "luksFormat", "--key-file", "passphrase"]).args(kind.options.split(' '));
    match &header {
        Some(header) => {
            File::create(header).and_then(|file| file.set_len(4 << 20)).expect("the folder is ours");
            command.arg("--header").arg(header);
        }
        None => {
            command.args(["--offset", &(PAYLOAD_BYTES / 512).to_string()]);
        }
    }
    let output = command.arg(&volume.image).current_dir(folder).output().expect("cryptsetup runs");
    assert!(output.status.success(), "{}: {output:?}", kind.name);
    fs::write(&volume.key_file, PASSPHRASE).expect("the folder is ours");
    volume.luks = Some(LuksLayout { header });
    volume
}

#[test]
fn dm_crypt_reads_what_we_write_to_luks() {
    BackEnd::require_sealblk("the stand-in does not encrypt");
    let table = Table::new();
    table.through_sealblk("write", 1000);
    table.through_dm_crypt("read", 1000);
}

#[test]
fn we_read_what_dm_crypt_writes_to_luks() {
    BackEnd::require_sealblk("the stand-in does not encrypt");
    let table = Table::new();
    table.through_dm_crypt("write", 2000);
    table.through_sealblk("read", 2000);
}
