//! Disks that are logical volumes, with a stand-in for LVM that records what it is asked for.

use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;

use super::*;

const LVS: &str = "lvs --reportformat json --options vg_name,lv_name,lv_path,lv_tags";

impl Bench {
    /// Puts the stand-in where `PATH` leads, with one empty volume group, `vg0`.
    pub(super) fn install_stand_in(&self) {
        fs::create_dir(self.path("bin")).unwrap();
        fs::create_dir_all(self.path("lvm/vg0")).unwrap();
        fs::write(self.path("bin/stand-in"), include_str!("lvm-stand-in")).unwrap();
        self.set_mode("bin/stand-in", 0o755);
        for tool in ["lvs", "lvcreate", "lvremove"] {
            symlink("stand-in", self.path(&format!("bin/{tool}"))).unwrap();
        }
    }

    fn with_lvm() -> Self {
        let bench = Self::with_disk_keys();
        bench.install_stand_in();
        bench
    }

    /// What LVM was asked for since the last time.
    fn lvm_log(&self) -> Vec<String> {
        let log = fs::read_to_string(self.path("lvm/log")).unwrap();
        fs::remove_file(self.path("lvm/log")).unwrap();
        log.lines().map(str::to_owned).collect()
    }

    fn refuse(&self, refuse: bool) {
        match refuse {
            true => drop(File::create(self.path("lvm/refuse")).unwrap()),
            false => fs::remove_file(self.path("lvm/refuse")).unwrap(),
        }
    }
}

#[test]
fn a_logical_volume_is_made_served_and_removed_by_the_tools_of_lvm() {
    for (format, asked_bytes, payload_bytes) in [("luks2", 19 * MIB, 4 * MIB), ("plain", 3 * MIB, 4 * MIB)] {
        let bench = Bench::with_lvm();
        let made = bench.ok(&format!("ephemeral create --size 3M --lvm vg0/vm1 --format {format}"));
        let uuid = made["uuid"].as_str().unwrap();
        assert_eq!((&made["lvm"], &made["file"]), (&"vg0/vm1".into(), &Value::Null));
        assert_eq!(
            (&made["path"], &made["payload_bytes"]),
            (&bench.path("lvm/vg0/vm1").into(), &payload_bytes.into())
        );
        assert_eq!(
            bench.lvm_log(),
            [
                format!("{LVS} vg0"),
                format!(
                    "lvcreate --yes --wipesignatures y --zero y --size {asked_bytes}b --addtag \
                     sealblk-ephemeral={uuid} --name vm1 vg0"
                ),
                format!("{LVS} vg0"),
            ]
        );
        assert!(bench.served_as_told(&made).is_none(), "it is served");
        let listing = bench.ok("ephemeral list");
        assert_eq!(
            (&listing["disks"][0]["state"], &listing["disks"][0]["lvm"]),
            (&"whole".into(), &made["lvm"])
        );
        assert_eq!(bench.lvm_log(), [LVS]);
        bench.keystore_run("ephemeral create --size 3M --lvm vg0/vm1").refused(REFUSED, &["vg0/vm1 exists"]);

        bench.lvm_log();
        let destroyed = bench.ok("ephemeral destroy --lvm vg0/vm1 --yes");
        assert_eq!((&destroyed["data_gone"], &destroyed["removed"]["lvm"]), (&true.into(), &made["lvm"]));
        assert_eq!(bench.lvm_log().last().map(String::as_str), Some("lvremove --yes vg0/vm1"));
        assert!(!Path::new(&bench.path("lvm/vg0/vm1")).exists());
        assert_eq!(bench.standings(), []);
    }
}

#[test]
fn what_lvm_refuses_takes_its_key_along() {
    let bench = Bench::with_lvm();
    bench
        .keystore_run("ephemeral create --size 1M --lvm vg1/x")
        .refused(FAILURE, &["lvs fails", "\"vg1\" not found"]);
    assert_eq!(bench.ok("key list --all")["keys"], serde_json::json!([]));
    bench.refuse(true);
    bench
        .keystore_run("ephemeral create --size 1M --lvm vg0/x")
        .refused(FAILURE, &["bin/lvcreate fails: lvcreate refuses"]);
    let keys = bench.ok("key list --all");
    assert_eq!((keys["keys"].as_array().unwrap().len(), &keys["keys"][0]["state"]), (1, &"destroyed".into()));
    assert_eq!(bench.standings(), []);
}

#[test]
fn data_is_gone_even_if_the_volume_cannot_be_removed() {
    let bench = Bench::with_lvm();
    bench.ok("ephemeral create --size 1M --lvm vg0/x");
    bench.refuse(true);
    bench.keystore_run("ephemeral destroy --lvm vg0/x --yes").refused(
        FAILURE,
        &["the key is destroyed, and with it the data, but vg0/x cannot be removed", "lvremove refuses"],
    );
    assert_eq!(bench.states(), ["key-destroyed"]);
    assert_eq!(bench.ok("key list")["keys"], serde_json::json!([]));
    bench.refuse(false);
    bench.ok("ephemeral destroy --lvm vg0/x --yes");
    assert_eq!(bench.standings(), []);
}

#[test]
fn volumes_of_others_are_not_touched() {
    let bench = Bench::with_lvm();
    bench.ok("ephemeral create --size 1M --lvm vg0/x");
    let made = bench.ok("ephemeral create --size 1M --lvm vg0/y");
    // As lvrename would.
    for (from, to) in [("y", "moved"), ("x", "y")] {
        for suffix in ["", ".tags"] {
            let path = |name: &str| bench.path(&format!("lvm/vg0/{name}{suffix}"));
            fs::rename(path(from), path(to)).unwrap();
        }
    }
    fs::write(bench.path("lvm/vg0/other.tags"), "backup,weekly").unwrap();
    File::create(bench.path("lvm/vg0/other")).unwrap().set_len(MIB).unwrap();
    assert_eq!(bench.states(), ["whole", "whole"]);
    bench
        .keystore_run("ephemeral destroy --lvm vg0/other --yes")
        .refused(VOLUME, &["vg0/other is no ephemeral disk"]);
    let uuid = made["uuid"].as_str().unwrap();
    let destroyed = bench.ok(&format!("ephemeral destroy --uuid {uuid} --yes"));
    assert_eq!(
        (&destroyed["removed"], &destroyed["note"]),
        (&Value::Null, &"something else lies at its place".into())
    );
    let standings = bench.standings();
    assert_eq!(standings.len(), 2);
    assert_eq!((standings[1].state.as_str(), standings[1].place.as_str()), ("key-destroyed", "vg0/moved"));
    bench.ok("ephemeral destroy --lvm vg0/moved --yes");
    bench.ok("ephemeral destroy --lvm vg0/y --yes");
    assert_eq!(bench.standings(), []);
    assert!(Path::new(&bench.path("lvm/vg0/other")).exists());
}

#[test]
fn without_lvm_its_disks_are_unknown_and_their_keys_can_be_destroyed() {
    let bench = Bench::with_lvm();
    let made = bench.ok("ephemeral create --size 1M --lvm vg0/x");
    fs::rename(bench.path("bin"), bench.path("hidden")).unwrap();
    let listing = bench.ok("ephemeral list");
    assert_eq!(
        (&listing["disks"][0]["state"], &listing["disks"][0]["serve"]),
        (&"unknown".into(), &Value::Null)
    );
    for problem in [&listing["disks"][0]["problem"], &listing["lvm_problem"]] {
        assert!(problem.as_str().unwrap().contains("no `lvs` on PATH"), "{listing}");
    }
    assert!(bench.keystore_run("ephemeral list").stdout.contains("were not looked through"));
    bench.keystore_run("ephemeral destroy --lvm vg0/x --yes").refused(FAILURE, &["no `lvs` on PATH"]);
    assert_eq!(bench.ok("ephemeral destroy --lvm vg0/x --key-only --yes")["keys_destroyed"][0], made["key"]);
    fs::rename(bench.path("hidden"), bench.path("bin")).unwrap();
    assert_eq!(bench.states(), ["key-destroyed"]);

    // An answer that is not understood is not taken for "nothing there".
    fs::write(bench.path("bin/stand-in"), "#!/bin/sh\necho LV VG\n").unwrap();
    bench
        .keystore_run("ephemeral destroy --lvm vg0/x --yes")
        .refused(FAILURE, &["lvs answers in an unknown way"]);
}

#[test]
fn a_volume_without_its_device_is_to_be_activated() {
    let bench = Bench::with_lvm();
    bench.ok("ephemeral create --size 1M --lvm vg0/x");
    // As `lvchange --activate n` would.
    fs::rename(bench.path("lvm/vg0/x"), bench.path("device")).unwrap();
    let listing = bench.ok("ephemeral list");
    let told = "vg0/x is not active: `lvchange --activate y vg0/x`";
    assert_eq!(
        (&listing["disks"][0]["state"], &listing["disks"][0]["problem"]),
        (&"unknown".into(), &told.into())
    );
    bench.keystore_run("ephemeral destroy --lvm vg0/x --yes").refused(VOLUME, &[told]);
    fs::rename(bench.path("device"), bench.path("lvm/vg0/x")).unwrap();
    assert_eq!(bench.states(), ["whole"]);
}

#[test]
fn killed_while_lvm_is_at_work() {
    let bench = Bench::with_lvm();
    let killed = |arguments: &str, when: &str| {
        let flag = bench.path(&format!("lvm/kill-{when}"));
        File::create(&flag).unwrap();
        let status = bench.keystore_command(arguments).output().unwrap().status;
        assert_eq!(status.signal(), Some(libc::SIGKILL), "{arguments}");
        fs::remove_file(flag).unwrap();
        bench.states()
    };
    for (when, created, destroyed) in
        [("before", &["no-disk"][..], &["key-destroyed"][..]), ("after", &["unfinished"], &[])]
    {
        let create = "ephemeral create --size 1M --lvm vg0/x";
        assert_eq!(killed(create, when), created, "{when}");
        bench.ok("ephemeral destroy --lvm vg0/x --yes");
        assert_eq!(bench.standings(), []);
        bench.ok(create);
        assert_eq!(killed("ephemeral destroy --lvm vg0/x --yes", when), destroyed, "{when}");
        bench.ok("ephemeral destroy --lvm vg0/x --yes");
        assert_eq!(bench.standings(), []);
        assert_eq!(bench.ok("key list")["keys"], serde_json::json!([]));
    }
}
