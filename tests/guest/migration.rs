//! A guest moves from one QEMU to another while it works, each with its own back end over one volume.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::harness::qemu::Running;
use crate::harness::{BackEnd, Guest, PlainLayout, Qmp, ServeOptions, Served, Volume};

const CPUS: u16 = 2;
/// Slow enough to interfere with a migration half-way, in bytes a second.
const SLOW: u64 = 16 << 20;
/// Rounds of work that are not much longer than a migration, under emulation.
const FIO_SIZE: &str = "4m";
const MESSAGE_BYTES: usize = 1 << 20;
const LIMIT: Duration = Duration::from_secs(480);
/// What is plugged, and lies in the destination from the start.
const MORE_MEMORY: &str = "memory-backend-memfd,id=more,size=256M,share=on";

/// The volume, a disk by which the host talks to the guest, and the back ends.
struct Rig {
    folder: TempDir,
    message: PathBuf,
    source: Served,
    target: Served,
}

/// A QEMU and its monitor.
struct Machine {
    guest: Running,
    qmp: Qmp,
}

impl Rig {
    fn new() -> Self {
        BackEnd::require_sealblk("the stand-in does not drain its queues when the guest leaves");
        let folder = tempdir().expect("a temporary folder");
        let volume = Volume::create(folder.path(), "volume", 96 << 20, PlainLayout::default());
        let message = folder.path().join("message");
        File::create(&message)
            .and_then(|file| file.set_len(MESSAGE_BYTES as u64))
            .expect("a disk for messages");
        let options = ServeOptions { queue_count: CPUS, ..ServeOptions::default() };
        let source = Served::start(&volume, &options);
        // Long before the guest arrives, as QEMU wants it.
        let target = Served::start(&volume, &ServeOptions { incoming: true, ..options });
        Self { folder, message, source, target }
    }

    fn boot(&self, name: &str, served: &Served, qemu: &[&str]) -> Machine {
        let folder = self.folder.path().join(name);
        fs::create_dir(&folder).expect("a folder for each QEMU");
        let monitor = folder.join("monitor");
        let guest = Guest::new(&folder, "under_load")
            .disk(served)
            .raw_disk(&self.message)
            .with_fio()
            .cpus_and_queues(CPUS)
            .var("fio_size", FIO_SIZE)
            .qemu(&Qmp::arguments(&monitor).each_ref().map(String::as_str))
            .qemu(&["-m", "512M,slots=1,maxmem=1G"])
            .qemu(qemu)
            .limit(LIMIT)
            .boot();
        Machine { guest, qmp: Qmp::connect(&monitor) }
    }

    fn boot_source(&self) -> Machine {
        let mut machine = self.boot("source", &self.source, &[]);
        machine.guest.wait_for("load");
        machine
    }

    /// A QEMU that waits for the guest, and where.
    fn boot_target(&self, name: &str, qemu: &[&str]) -> (Machine, PathBuf) {
        let mut machine = self.boot(name, &self.target, &[&["-incoming", "defer"], qemu].concat());
        let socket = self.folder.path().join(name).join("migration");
        machine.execute("migrate-incoming", json!({"uri": uri(&socket)}));
        (machine, socket)
    }

    /// Lets the guest work on where it is now, then checks what it found, and ends.
    fn finish(self, mut machine: Machine, more_memory: bool) {
        machine.guest.wait_for("round");
        let message = [&b"enough"[..], &[0; MESSAGE_BYTES - 6]].concat();
        fs::write(&self.message, message).expect("tell the guest");
        let report = machine.guest.finish();
        let memory_kib: u64 = report.get("memory_kib").parse().expect("a number");
        assert_eq!(memory_kib > 512 << 10, more_memory, "{memory_kib} KiB");
        assert_eq!(self.target.logged("the volume is ours"), 1);
        self.source.stop();
        self.target.stop();
    }
}

fn uri(socket: &Path) -> String {
    format!("unix:{}", socket.display())
}

impl Machine {
    /// Has QEMU execute a command, which must succeed, and returns what it returns.
    fn execute(&mut self, command: &str, arguments: Value) -> Value {
        self.qmp.execute(command, arguments).unwrap_or_else(|why| self.guest.fail_over_monitor(&why))
    }

    /// Asks QEMU again and again, until the answer satisfies `holds`.
    fn wait_until(&mut self, command: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        self.qmp.wait_until(command, what, holds).unwrap_or_else(|why| self.guest.fail_over_monitor(&why))
    }

    /// Waits until something holds that QEMU is not asked for, but must be there for.
    fn wait_beside(&mut self, what: &str, holds: impl Fn(&Running) -> bool) {
        let waited = self.qmp.wait_until("query-status", what, |_| holds(&self.guest));
        waited.unwrap_or_else(|why| self.guest.fail_over_monitor(&why));
    }

    /// Waits until the migration has that status.
    fn wait_for_migration(&mut self, status: &str) -> Value {
        self.wait_until("query-migrate", status, |answer| answer["status"] == status)
    }

    /// Begins a migration at so many bytes a second, and waits until a part of the memory has gone.
    fn begin_to_leave(&mut self, socket: &Path) {
        self.execute("migrate-set-parameters", json!({"max-bandwidth": SLOW, "downtime-limit": 2000}));
        self.execute("migrate", json!({"uri": uri(socket)}));
        self.wait_until("query-migrate", "no memory goes", |answer| {
            answer["ram"]["transferred"].as_u64().is_some_and(|bytes| bytes > SLOW)
        });
    }

    /// Lets the migration come to its end.
    fn leave(mut self, target: &mut Self) {
        self.execute("migrate-set-parameters", json!({"max-bandwidth": 0}));
        let answer = self.wait_for_migration("completed");
        println!(
            "migrated: {} ms, of which the guest stood still for {} ms",
            answer["total-time"], answer["downtime"]
        );
        target.wait_until("query-status", "the guest does not run", |answer| answer["status"] == "running");
        self.execute("quit", json!({}));
        self.guest.wait_for_end();
    }
}

/// The second try finds more memory in the guest than the first.
#[test]
fn migrated_under_load_after_a_cancelled_attempt() {
    let rig = Rig::new();
    let mut source = rig.boot_source();
    let (mut first, socket) = rig.boot_target("first", &[]);
    source.begin_to_leave(&socket);
    source.execute("migrate_cancel", json!({}));
    source.wait_for_migration("cancelled");
    first.guest.wait_for_end();
    source.execute(
        "object-add",
        json!({"qom-type": "memory-backend-memfd", "id": "more", "size": 256 << 20, "share": true}),
    );
    source.execute("device_add", json!({"driver": "pc-dimm", "id": "dimm", "memdev": "more"}));
    let rounds = source.guest.count("round");
    source.wait_beside("the guest does not go on", |guest| guest.count("round") > rounds);
    let plugged = ["-object", MORE_MEMORY, "-device", "pc-dimm,id=dimm,memdev=more"];
    let (mut second, socket) = rig.boot_target("second", &plugged);
    source.begin_to_leave(&socket);
    source.leave(&mut second);
    assert_eq!(rig.source.logged("let go of the volume"), 1);
    rig.finish(second, true);
}

#[test]
fn migrated_under_load_although_the_source_back_end_died() {
    let mut rig = Rig::new();
    let mut source = rig.boot_source();
    let (mut target, socket) = rig.boot_target("target", &[]);
    source.begin_to_leave(&socket);
    rig.source.kill_and_start_again(Duration::from_millis(50));
    source.wait_beside("QEMU does not come back", |_| rig.source.logged("VMM connected") > 1);
    source.leave(&mut target);
    rig.finish(target, false);
}
