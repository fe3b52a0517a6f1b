//! What the guest's kernel sees of the device, and each kind of request it can send.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};
use tempfile::tempdir;

use crate::harness::{BackEnd, Guest, PlainLayout, ServeOptions, Served, Volume};

const MIB: u64 = 1 << 20;

fn fio_verify(queue_count: u16, layout: PlainLayout) {
    let folder = tempdir().expect("a temporary folder");
    let volume = Volume::create(folder.path(), "volume", 256 * MIB, layout);
    let served = Served::start(&volume, &ServeOptions { queue_count, ..ServeOptions::default() });
    Guest::new(folder.path(), "fio_verify")
        .disk(&served)
        .with_fio()
        // The kernel uses no more queues than it has processors.
        .cpus_and_queues(queue_count)
        .var("QUEUES", queue_count)
        .run();
    served.stop();
}

#[test]
fn fio_verify_one_queue() {
    fio_verify(1, PlainLayout::default());
}

#[test]
fn fio_verify_four_queues() {
    fio_verify(4, PlainLayout { sector_bytes: 4096, ..PlainLayout::default() });
}

#[test]
fn discard_and_write_zeroes() {
    let folder = tempdir().unwrap();
    let volume = Volume::create(folder.path(), "volume", 32 * MIB, PlainLayout::default());
    let options = ServeOptions { pass_discard: true, ..ServeOptions::default() };
    let served = Served::start(&volume, &options);
    Guest::new(folder.path(), "discard_and_write_zeroes").disk(&served).run();
    served.stop();

    // The script discarded [1, 3) MiB and then wrote the first 256 KiB of it again.
    let image = File::open(&volume.image).unwrap();
    let written_again = MIB + (256 << 10);
    assert_eq!(
        seek(&image, SeekFrom::Hole(0)).unwrap(),
        written_again,
        "the discard did not reach the storage"
    );
    assert_eq!(seek(&image, SeekFrom::Data(written_again)).unwrap(), 3 * MIB, "the discard went astray");
    if BackEnd::chosen() == BackEnd::Sealblk {
        // Zeroes are encrypted like any other data.
        for zeroed in [9 * MIB + 4096, 19 * MIB, 28 * MIB] {
            let mut sector = [0; 512];
            image.read_exact_at(&mut sector, zeroed).unwrap();
            assert_ne!(sector, [0; 512], "the storage shows which sectors are zero, at {zeroed}");
        }
    }
}

#[test]
fn cache_mode_toggles_through_sysfs() {
    let folder = tempdir().unwrap();
    let volume = Volume::create(folder.path(), "volume", 80 * MIB, PlainLayout::default());
    let served = Served::start(&volume, &ServeOptions::default());
    let initial = match BackEnd::chosen() {
        BackEnd::Sealblk => "write back",
        BackEnd::QemuStorageDaemon => "write through",
    };
    Guest::new(folder.path(), "cache_mode").disk(&served).var("INITIAL", initial).run();
    served.stop();
}

/// A disk of `geometry_seen_by_guest`: its name, its layout, and how it is served.
type Case = (&'static str, PlainLayout, ServeOptions);

fn geometry_cases() -> Vec<Case> {
    let layout = PlainLayout::default();
    let options = ServeOptions::default();
    vec![
        ("sectors512", layout, ServeOptions { serial: Some("disk-one"), ..options.clone() }),
        (
            "sectors4096",
            PlainLayout { sector_bytes: 4096, ..layout },
            // As long as a serial may be.
            ServeOptions { serial: Some("twenty-bytes-exactly"), pass_discard: true, ..options.clone() },
        ),
        (
            "offset",
            PlainLayout { sector_bytes: 2048, offset_sectors: 24, ..layout },
            ServeOptions { serial: Some("behind offset"), writethrough: true, ..options.clone() },
        ),
        ("read_only", layout, ServeOptions { serial: Some("ro"), read_only: true, ..options.clone() }),
        ("buffered", layout, ServeOptions { serial: Some("page cache"), direct: false, ..options }),
    ]
}

fn expected_line(index: usize, volume: &Volume, options: &ServeOptions) -> String {
    let ours = BackEnd::chosen() == BackEnd::Sealblk;
    format!(
        "{index} {} {} {} {} {} {}\n",
        volume.capacity_bytes(),
        volume.layout.sector_bytes,
        u8::from(options.read_only),
        // The stand-in offers every disk discard, starts without cache, and calls all disks the same.
        if options.pass_discard || !ours { "yes" } else { "no" },
        if options.writethrough || !ours { "write~through" } else { "write~back" },
        if ours { options.serial.unwrap_or_default().replace(' ', "~") } else { "vhost_user_blk".to_owned() },
    )
}

#[test]
fn geometry_seen_by_guest() {
    let folder = tempdir().unwrap();
    let (mut disks, mut expected) = (Vec::new(), String::new());
    for (index, (name, layout, options)) in geometry_cases().into_iter().enumerate() {
        let volume = Volume::create(folder.path(), name, 8 * MIB, layout);
        expected += &expected_line(index, &volume, &options);
        disks.push((Served::start(&volume, &options), volume));
    }
    let expected_file = folder.path().join("expected");
    fs::write(&expected_file, expected).unwrap();

    let guest = Guest::new(folder.path(), "geometry").file("expected", &expected_file);
    disks.iter().fold(guest, |guest, (served, _)| guest.disk(served)).run();
    for (served, volume) in disks {
        served.stop();
        let bytes = fs::read(&volume.image).unwrap();
        let touched = bytes.iter().position(|byte| *byte != 0);
        // Only the last block was written, and on the read-only disk not even that.
        let last_block = 8 * MIB as usize - volume.layout.sector_bytes as usize;
        let wanted = if volume.image.ends_with("read_only.img") { None } else { Some(last_block) };
        assert_eq!(touched, wanted, "{}: the first byte that is not zero", volume.image.display());
    }
}
