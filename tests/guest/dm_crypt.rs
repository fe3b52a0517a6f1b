//! The kernel's dm-crypt, in the guest, reads what we write and writes what we read.

use std::fs;
use std::path::Path;

use tempfile::{TempDir, tempdir};

use crate::harness::{BackEnd, Guest, KeyBits, PlainLayout, ServeOptions, Served, Volume};

const VOLUME_BYTES: u64 = 512 << 10;

/// Half a volume before the 512-byte sector number no longer fits 32 bits.
const SKIP_ACROSS_2_TO_32: u64 = (1 << 32) - VOLUME_BYTES / 512 / 2;

/// Every sector size with every way to count IVs, each with both key lengths and with all four ways to shift the
/// payload: two of them under one key length, two under the other.
fn layouts() -> Vec<PlainLayout> {
    let mut layouts = Vec::new();
    for (sector_bytes, iv_large_sectors) in
        [(512, false), (1024, false), (1024, true), (2048, false), (2048, true), (4096, false), (4096, true)]
    {
        for (key, offset_sectors, skip_sectors) in [
            (KeyBits::Bits256, 0, 0),
            (KeyBits::Bits256, 24, SKIP_ACROSS_2_TO_32),
            (KeyBits::Bits512, 8, 0),
            (KeyBits::Bits512, 0, 4096),
        ] {
            layouts.push(PlainLayout { key, sector_bytes, iv_large_sectors, offset_sectors, skip_sectors });
        }
    }
    layouts
}

/// One volume for each layout, and the files that tell the guest about them.
struct Table {
    folder: TempDir,
    volumes: Vec<Volume>,
}

impl Table {
    fn new() -> Self {
        let folder = tempdir().expect("a temporary folder");
        let (mut volumes, mut lines) = (Vec::new(), String::new());
        for (index, layout) in layouts().into_iter().enumerate() {
            let volume = Volume::create(folder.path(), &format!("case{index}"), VOLUME_BYTES, layout);
            lines += &format!(
                "{index} {} {} {} {} {} {}\n",
                layout.key.count(),
                layout.sector_bytes,
                if layout.iv_large_sectors { "yes" } else { "no" },
                layout.offset_sectors,
                layout.skip_sectors,
                volume.capacity_bytes(),
            );
            volumes.push(volume);
        }
        fs::write(folder.path().join("cases"), lines).expect("the folder is ours");
        Self { folder, volumes }
    }

    fn key_file(&self, key: KeyBits) -> &Path {
        &self.volumes.iter().find(|volume| volume.layout.key == key).expect("both lengths occur").key_file
    }

    /// A guest that does `action` with the disks that it will be given.
    fn guest(&self, action: &str, mapped: &str, seed: u32) -> Guest {
        Guest::new(self.folder.path(), "dm_crypt")
            // With two emulated processors and this many vhost-user disks, QEMU 10.0 aborts in about one boot
            // of twenty (an assertion in msix_table_mmio_write), whoever serves the disks. With one processor
            // it has not been seen to.
            .cpus_and_queues(1)
            .var("ACTION", action)
            .var("MAPPED", mapped)
            .var("SEED", seed)
            .file("cases", &self.folder.path().join("cases"))
            .file("key256", self.key_file(KeyBits::Bits256))
            .file("key512", self.key_file(KeyBits::Bits512))
    }

    /// Lets the guest do `action` through our back end.
    fn through_sealblk(&self, action: &str, seed: u32) {
        let served: Vec<_> =
            self.volumes.iter().map(|volume| Served::start(volume, &ServeOptions::default())).collect();
        let report = served.iter().fold(self.guest(action, "no", seed), Guest::disk).run();
        assert_eq!(report.get("cases"), self.volumes.len().to_string());
        served.into_iter().for_each(Served::stop);
    }

    /// Lets the guest do `action` through its own dm-crypt, on the images as they are.
    fn through_dm_crypt(&self, action: &str, seed: u32) {
        let guest = self.guest(action, "yes", seed);
        let report = self.volumes.iter().fold(guest, |guest, volume| guest.raw_disk(&volume.image)).run();
        assert_eq!(report.get("cases"), self.volumes.len().to_string());
    }

    /// Bytes before the payload belong to someone else.
    fn assert_nothing_before_payload(&self) {
        for volume in &self.volumes {
            let image = fs::read(&volume.image).expect("the image exists");
            let payload = volume.layout.offset_sectors as usize * 512;
            assert!(
                image[..payload].iter().all(|byte| *byte == 0),
                "{:?}: written before the payload",
                volume.layout
            );
            assert!(
                image[payload..payload + 16].iter().any(|byte| *byte != 0),
                "{:?}: nothing there",
                volume.layout
            );
        }
    }
}

#[test]
fn dm_crypt_reads_what_we_write() {
    BackEnd::require_sealblk("the stand-in does not encrypt");
    let table = Table::new();
    table.through_sealblk("write", 1000);
    table.assert_nothing_before_payload();
    table.through_dm_crypt("read", 1000);
}

#[test]
fn we_read_what_dm_crypt_writes() {
    BackEnd::require_sealblk("the stand-in does not encrypt");
    let table = Table::new();
    table.through_dm_crypt("write", 2000);
    table.assert_nothing_before_payload();
    table.through_sealblk("read", 2000);
}

/// The table and the script alone, without our back end: a failure here is not sealblk's.
#[test]
fn dm_crypt_reads_what_dm_crypt_writes() {
    let table = Table::new();
    table.through_dm_crypt("write", 3000);
    table.through_dm_crypt("read", 3000);
}
