//! The back end dies under a guest that works, and comes back. The guest notices a pause.

use std::fs::{self, File};
use std::thread::sleep;
use std::time::Duration;

use tempfile::tempdir;

use crate::harness::{BackEnd, Guest, PlainLayout, ServeOptions, Served, Volume, wait_for_write, wait_until};

/// Kills at least, and at most: as many as it takes for enough of them to hit a request.
const KILLS: usize = 20;
const KILLS_MAX: usize = 5 * KILLS;

fn killed_under_load(queue_count: u16) {
    BackEnd::require_sealblk("the stand-in keeps no in-flight region");
    let folder = tempdir().expect("a temporary folder");
    let volume = Volume::create(folder.path(), "volume", 96 << 20, PlainLayout::default());
    // How the host talks to the guest.
    let message = folder.path().join("message");
    File::create(&message).and_then(|file| file.set_len(1 << 20)).expect("a disk for messages");
    let mut served = Served::start(&volume, &ServeOptions { queue_count, ..ServeOptions::default() });
    let mut guest = Guest::new(folder.path(), "under_load")
        .disk(&served)
        .raw_disk(&message)
        .with_fio()
        .cpus_and_queues(queue_count)
        .boot();
    guest.wait_for("load");
    let recoveries = |served: &Served| served.logged("repeating requests");
    for kill in 1..=KILLS_MAX {
        // Other moments of the guest's work, other lengths of absence.
        wait_for_write(&volume);
        sleep(Duration::from_millis(13 * (kill as u64 % 7)));
        served.kill_and_start_again(Duration::from_millis(50 * (kill as u64 % 4)));
        wait_until("QEMU does not come back", || served.logged("VMM connected") > kill);
        if kill >= KILLS && recoveries(&served) > KILLS / 4 {
            break;
        }
    }
    fs::write(&message, [&b"enough"[..], &[0; (1 << 20) - 6]].concat()).expect("tell the guest");
    guest.finish();
    let recoveries = recoveries(&served);
    assert!(recoveries > KILLS / 4, "only {recoveries} kills hit a request");
    served.stop();
}

#[test]
fn killed_under_load_one_queue() {
    killed_under_load(1);
}

#[test]
fn killed_under_load_two_queues() {
    killed_under_load(2);
}
