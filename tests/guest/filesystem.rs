//! A file system on an encrypted disk lives on, and the host's storage never sees what is in it.

use std::fs::File;

use tempfile::tempdir;

use crate::harness::volume::occurrences;
use crate::harness::{BackEnd, Guest, PlainLayout, ServeOptions, Served, Volume};

const PHRASE: &str = "these words must never reach the storage";

#[test]
fn filesystem_survives_reboot() {
    BackEnd::require_sealblk("the stand-in does not encrypt");
    let folder = tempdir().unwrap();
    let volume = Volume::create(folder.path(), "volume", 96 << 20, PlainLayout::default());
    let plain = folder.path().join("plain.img");
    File::create(&plain).unwrap().set_len(96 << 20).unwrap();

    let served = Served::start(&volume, &ServeOptions::default());
    let written = Guest::new(folder.path(), "filesystem_write")
        .disk(&served)
        .raw_disk(&plain)
        .var("PHRASE", PHRASE)
        .run();
    served.stop();
    assert_eq!(written.get("sums0"), written.get("sums1"), "the same files went to both disks");

    let served = Served::start(&volume, &ServeOptions::default());
    let read = Guest::new(folder.path(), "filesystem_verify").disk(&served).run();
    served.stop();
    assert_eq!(read.get("sums0"), written.get("sums0"));

    // The plain disk shows that the search finds what there is to find.
    assert!(occurrences(&plain, PHRASE.as_bytes()) >= 4096);
    assert_eq!(occurrences(&volume.image, PHRASE.as_bytes()), 0, "plaintext lies on the host");
    // A name in a directory and the first line of a file.
    for known in [&b"phrases"[..], b"1000010000000000\n1000010000000001"] {
        assert!(occurrences(&plain, known) > 0);
        assert_eq!(occurrences(&volume.image, known), 0, "plaintext lies on the host");
    }
}
