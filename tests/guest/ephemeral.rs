//! Ephemeral disks on logical volumes: the program itself runs in the guest, where LVM and device-mapper are real ones.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tempfile::tempdir;

use crate::harness::qemu::Report;
use crate::harness::{BackEnd, Guest};

/// Several tools are started, and each reads all disks: slow under emulation.
const LIMIT: Duration = Duration::from_secs(480);

fn json(report: &Report, key: &str) -> Value {
    serde_json::from_str(report.get(key)).unwrap_or_else(|error| panic!("{key}: {error}"))
}

#[test]
fn a_disk_on_a_logical_volume_lives_and_ends_with_its_key() {
    BackEnd::require_sealblk("the program itself runs in the guest");
    let folder = tempdir().expect("a temporary folder");
    let disk = folder.path().join("disk");
    File::create_new(&disk).and_then(|file| file.set_len(256 << 20)).expect("the folder is ours");
    let report = Guest::new(folder.path(), "lvm")
        .raw_disk(&disk)
        .programs_disk(&[Path::new("lvm"), &BackEnd::Sealblk.program()])
        .limit(LIMIT)
        .run();

    let [made, gone, keyless, off] = ["made", "gone", "keyless", "off"].map(|key| json(&report, key));
    let uuid = made["uuid"].as_str().expect("text");
    assert_eq!(report.get("tags"), format!("sealblk-ephemeral={uuid}"));
    assert_eq!(report.get("luks_uuid"), uuid);
    assert_eq!(report.get("mapped_bytes"), made["payload_bytes"].to_string());
    for (key, complaint) in [
        ("in_use", "volume /dev/vg0/a is mounted, or claimed by another device or process"),
        ("no_room", "lvcreate fails: Volume group \"vg0\" has insufficient free space"),
        ("no_group", "lvs fails: Volume group \"vg1\" not found"),
        ("inactive", "vg0/off is not active: `lvchange --activate y vg0/off`"),
    ] {
        assert!(report.get(key).contains(complaint), "{key}: {}", report.get(key));
    }

    let listing = json(&report, "listing");
    assert_eq!(listing["lvm_problem"], Value::Null);
    let disks = listing["disks"].as_array().expect("a list");
    let told: Vec<_> = disks.iter().map(|disk| [&disk["uuid"], &disk["lvm"], &disk["state"]]).collect();
    let expected = [
        (&made, "vg0/moved", "whole"),
        (&gone, "vg0/gone", "no-disk"),
        (&keyless, "vg0/keyless", "key-destroyed"),
        (&off, "vg0/off", "unknown"),
    ];
    let expected =
        expected.map(|(disk, place, state)| (&disk["uuid"], Value::from(place), Value::from(state)));
    assert_eq!(told, expected.each_ref().map(|(uuid, place, state)| [*uuid, place, state]));

    let destroyed = json(&report, "destroyed");
    assert_eq!(destroyed["keys_destroyed"], serde_json::json!([made["key"]]));
    assert_eq!((&destroyed["data_gone"], &destroyed["removed"]["lvm"]), (&true.into(), &"vg0/moved".into()));
    assert_eq!(json(&report, "keys_left")["keys"], serde_json::json!([]));
    assert_eq!(json(&report, "listing_left")["disks"], serde_json::json!([]));
}
