//! What an operator does to a disk while a guest uses it.

use std::fs::{self, File};

use tempfile::tempdir;

use crate::harness::{BackEnd, Guest, PlainLayout, ServeOptions, Served, Volume, wait_for_write, wait_until};

const MIB: u64 = 1 << 20;
const TAKE_OVERS: usize = 5;

#[test]
fn a_disk_grows_under_its_guest() {
    BackEnd::require_sealblk("the stand-in has no control socket");
    let folder = tempdir().expect("a temporary folder");
    let volume = Volume::create(folder.path(), "volume", 32 * MIB, PlainLayout::default());
    let served = Served::start(&volume, &ServeOptions::default());
    let mut guest = Guest::new(folder.path(), "resize").disk(&served).var("BYTES", 48 * MIB).boot();
    guest.wait_for("before");
    let image = File::options().write(true).open(&volume.image).expect("the image is there");
    let image_bytes = image.metadata().expect("the image is there").len();
    image.set_len(image_bytes + 16 * MIB).expect("the image can grow");
    assert!(served.control("resize").contains("and the VMM knows"));
    let report = guest.finish();
    assert_eq!(report.get("before"), (32 * MIB).to_string());
    served.stop();
}

#[test]
fn taken_over_under_load() {
    BackEnd::require_sealblk("the stand-in has no control socket");
    let folder = tempdir().expect("a temporary folder");
    let volume = Volume::create(folder.path(), "volume", 96 * MIB, PlainLayout::default());
    // How the host talks to the guest.
    let message = folder.path().join("message");
    File::create(&message).and_then(|file| file.set_len(MIB)).expect("a disk for messages");
    let mut served = Served::start(&volume, &ServeOptions { queue_count: 2, ..ServeOptions::default() });
    let mut guest = Guest::new(folder.path(), "under_load")
        .disk(&served)
        .raw_disk(&message)
        .with_fio()
        .cpus_and_queues(2)
        .boot();
    guest.wait_for("load");
    for round in 1..=TAKE_OVERS {
        wait_for_write(&volume);
        served.take_over();
        wait_until("QEMU does not come back", || served.logged("VMM connected") > round);
    }
    fs::write(&message, [&b"enough"[..], &[0; MIB as usize - 6]].concat()).expect("tell the guest");
    guest.finish();
    assert_eq!(served.logged("all writes are durable"), TAKE_OVERS, "each predecessor ended in order");
    served.stop();
}
