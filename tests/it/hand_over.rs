//! A guest moves from one server to another over a volume that both have, or stays when that fails. At no moment both of
//! them have running rings.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

use crate::harness::log::{self, Log};
use crate::harness::memory::*;
use crate::harness::ring::*;
use crate::harness::wire::*;
use crate::harness::*;

/// A server that waits for the guest of `source`, for so long once its first ring is started.
fn destination(source: &Backend, timeout_seconds: u32, args: &[&str]) -> Backend {
    let timeout = timeout_seconds.to_string();
    Serve::volume(source.volume.layout.clone())
        .behind(&source.volume.image)
        .args(&["--incoming", "--incoming-timeout", &timeout])
        .args(args)
        .start()
}

/// A front end that has told of everything but has started no ring, as QEMU's before the guest has arrived.
fn waiting(backend: &Backend) -> Frontend {
    let setup = Setup::default();
    let ram = GuestRam::new(setup.data_bytes);
    let rings = vec![Ring::new(&ram, 0, setup.queue_size)];
    let mut frontend = Frontend::begin(dial(backend.socket()), setup, ram, rings);
    frontend.share_memory();
    frontend.configure_ring(0, 0);
    frontend
}

/// Waits until a server has logged this: it may do so after it has answered.
#[track_caller]
fn wait_for_log(backend: &Backend, text: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !backend.stderr().contains(text) {
        assert!(Instant::now() < deadline, "no '{text}' in: {}", backend.stderr());
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The guest is not let run there, and who asks learns of it.
#[track_caller]
fn assert_refused(backend: &mut Backend) {
    let frontend = waiting(backend);
    let mut wire = frontend.wire();
    let kick = frontend.rings[0].kick.borrow();
    wire.send(SET_VRING_KICK, NEED_REPLY, &words(&[0]), &[fd::borrow(&*kick)]);
    match wire.reply() {
        Reply::Message(SET_VRING_KICK, answer) => assert_ne!(answer, [0; 8], "both have the volume"),
        other => assert_eq!(other, Reply::Closed),
    }
    assert_eq!(wire.reply(), Reply::Closed, "a front end that does not ask notices this");
    wait_for_log(backend, "the guest cannot go on here");
    backend.assert_alive();
}

/// The end of a migration, as a front end sees it that the guest leaves.
fn leave(frontend: &mut Frontend) {
    Log::up_to(128 * MIB).begin(frontend);
    for ring in 0..frontend.rings.len() {
        frontend.stop_ring(ring);
    }
}

fn assert_reads(frontend: &Frontend, seeds: std::ops::RangeInclusive<u64>) {
    for seed in seeds {
        let data = frontend.run(&Request::read(8 * seed, 4096)).ok();
        assert!(data == pattern(seed, 4096), "sector {}", 8 * seed);
    }
}

fn write(frontend: &Frontend, seed: u64) {
    frontend.run(&Request::write(8 * seed, &pattern(seed, 4096))).ok();
}

fn goes_to_and_fro(args: &[&str]) {
    let first = Serve::encrypted().args(args).start();
    let second = destination(&first, 1, args);
    let mut servers = [first, second];
    let mut frontend = Frontend::connect(servers[0].socket());
    let config = frontend.config(0, 60).expect("GET_CONFIG");
    for round in 1..=6_u64 {
        let [from, to] = [(round as usize + 1) % 2, round as usize % 2];
        let mut arriving = waiting(&servers[to]);
        assert_eq!(arriving.config(0, 60).expect("GET_CONFIG"), config, "long before the guest arrives");
        write(&frontend, round);
        leave(&mut frontend);
        arriving.start_ring(0, 0);
        assert_reads(&arriving, 1..=round);
        drop(frontend);
        assert_refused(&mut servers[from]);
        frontend = arriving;
    }
    drop(frontend);
    let mut expected = servers[0].volume.original.clone();
    for seed in 1..=6 {
        expected[8 * 512 * seed as usize..][..4096].copy_from_slice(&pattern(seed, 4096));
    }
    servers.iter_mut().for_each(Backend::terminate);
    servers[0].volume.assert_holds(&expected);
}

#[test]
fn a_guest_goes_to_and_fro() {
    goes_to_and_fro(&[]);
}

#[test]
fn a_guest_goes_to_and_fro_without_io_uring_and_direct_io() {
    goes_to_and_fro(&["--engine", "blocking", "--direct", "off"]);
}

#[test]
fn a_guest_that_cannot_leave_goes_on_where_it_was() {
    let source = Serve::encrypted().start();
    let mut target = destination(&source, 0, &[]);
    let mut frontend = Frontend::connect(source.socket());
    for round in 1..4_u64 {
        assert_refused(&mut target);
        write(&frontend, round);
        let log = Log::up_to(128 * MIB);
        log.begin(&frontend);
        let base = frontend.stop_ring(0);
        // It did not arrive, and goes on here, before or after the VMM has ended the migration.
        if round % 2 == 0 {
            log::end(&frontend);
        }
        frontend.start_ring(0, base);
        assert_refused(&mut target);
        log::end(&frontend);
        assert_reads(&frontend, 1..=round);
    }
    leave(&mut frontend);
    // It did arrive: that it has been stopped for good here does not lie with us.
    let arrived = Frontend::connect(target.socket());
    assert_reads(&arrived, 1..=3);
    let kick = frontend.rings[0].kick.borrow();
    frontend.messages.set_vring_kick(0, &kick).expect_err("both have the volume");
    write(&arrived, 4);
}

#[test]
fn only_the_end_of_a_migration_gives_the_volume_away() {
    let source = Serve::encrypted().queues(2).start();
    let mut target = destination(&source, 0, &[]);
    let mut frontend = Frontend::with(source.socket(), Setup::queues(2));
    for ring in 0..2 {
        // As in a guest that reboots.
        frontend.stop_ring(ring);
    }
    assert_refused(&mut target);
    (0..2).for_each(|ring| frontend.start_ring(ring, 0));
    Log::up_to(128 * MIB).begin(&frontend);
    frontend.share_memory();
    frontend.set_config(32, &[0]).expect("what pauses all rings");
    assert_refused(&mut target);
    frontend.stop_ring(0);
    assert_refused(&mut target);
    frontend.run_on(1, &Request::read(0, 4096)).ok();
    // The front end is gone, and nobody knows what becomes of the guest.
    frontend = frontend.resume(source.socket());
    assert_refused(&mut target);
    leave(&mut frontend);
    Frontend::connect(target.socket()).assert_serves(0, 0, 1);
}

#[test]
fn a_guest_that_arrives_early_waits() {
    let source = Serve::encrypted().start();
    let target = destination(&source, 60, &[]);
    let mut frontend = Frontend::connect(source.socket());
    let mut arriving = waiting(&target);
    let mut wire = arriving.wire();
    {
        let kick = arriving.rings[0].kick.borrow();
        wire.send(SET_VRING_KICK, NEED_REPLY, &words(&[0]), &[fd::borrow(&*kick)]);
    }
    assert_eq!(wire.reply_within(SILENCE), Reply::Silence);
    write(&frontend, 1);
    leave(&mut frontend);
    assert_eq!(wire.reply(), Reply::Message(SET_VRING_KICK, vec![0; 8]));
    arriving.messages.set_vring_call(0, &arriving.rings[0].call).expect("SET_VRING_CALL");
    arriving.messages.set_vring_enable(0, true).expect("SET_VRING_ENABLE");
    arriving.rings[0].drain_calls();
    assert_reads(&arriving, 1..=1);
}

#[test]
fn a_server_that_waits_for_the_volume_ends_when_told_to() {
    let source = Serve::encrypted().start();
    let mut target = destination(&source, 3600, &[]);
    let frontend = Frontend::connect(source.socket());
    let arriving = waiting(&target);
    let mut wire = arriving.wire();
    {
        let kick = arriving.rings[0].kick.borrow();
        wire.send(SET_VRING_KICK, NEED_REPLY, &words(&[0]), &[fd::borrow(&*kick)]);
    }
    assert_eq!(wire.reply_within(SILENCE), Reply::Silence);
    target.terminate();
    assert_eq!(wire.reply(), Reply::Message(SET_VRING_KICK, [1, 0, 0, 0, 0, 0, 0, 0].into()));
    assert_eq!(wire.reply(), Reply::Closed);
    wait_for_log(&target, "and this one was told to end");
    write(&frontend, 1);
}

#[test]
fn a_server_that_died_is_succeeded_by_one_that_waits() {
    let mut source = Serve::encrypted().start();
    let mut target = destination(&source, 0, &[]);
    let frontend = Frontend::connect(source.socket());
    write(&frontend, 1);
    assert_refused(&mut target);
    source.kill();
    assert_reads(&Frontend::connect(target.socket()), 1..=1);
}

#[test]
fn a_volume_that_was_cut_short_meanwhile_is_refused() {
    let source = Serve::encrypted().start();
    let mut target = destination(&source, 0, &[]);
    let mut frontend = Frontend::connect(source.socket());
    leave(&mut frontend);
    let image = File::options().write(true).open(&source.volume.image).expect("open the image");
    let len = image.metadata().expect("it is there").len();
    image.set_len(len - 4096).expect("cut it short");
    assert_refused(&mut target);
    image.set_len(len).expect("make it whole");
    Frontend::connect(target.socket()).assert_serves(0, 0, 1);
}

#[test]
fn readers_share_the_volume_before_and_after() {
    let source = Serve::encrypted().args(&["--read-only"]).start();
    let target = destination(&source, 0, &["--read-only"]);
    let mut frontend = Frontend::connect(source.socket());
    let read = |frontend: &Frontend| frontend.run(&Request::read(0, 4096)).ok();
    let arrived = Frontend::connect(target.socket());
    assert!(read(&arrived) == read(&frontend));
    leave(&mut frontend);
    frontend.start_ring(0, 1);
    assert!(read(&arrived) == read(&frontend));
}

/// What is claimed exclusively, besides being locked.
struct LoopDevice(PathBuf);

impl LoopDevice {
    fn over(file: &Path) -> Self {
        let output =
            Command::new("losetup").args(["--find", "--show"]).arg(file).output().expect("losetup, of mount");
        assert!(output.status.success(), "{output:?}");
        Self(String::from_utf8(output.stdout).expect("text").trim().into())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
#[ignore = "needs the right to make loop devices"]
fn a_block_device_goes_with_the_guest() {
    let image = tempfile::NamedTempFile::new().expect("temporary file");
    let layout = Layout::encrypted(4 << 20);
    std::fs::write(image.path(), layout.encrypt(&pattern(1, 4 << 20))).expect("write the image");
    let device = LoopDevice::over(image.path());
    let serve = || Serve::volume(layout.clone()).behind(&device.0);
    let source = serve().start();
    let mut target = serve().args(&["--incoming", "--incoming-timeout", "0"]).start();
    let claim = || {
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::EXCL;
        rustix::fs::open(&device.0, flags, rustix::fs::Mode::empty())
    };
    let mut frontend = Frontend::connect(source.socket());
    for round in 1..4 {
        assert_eq!(claim().expect_err("it is in use"), rustix::io::Errno::BUSY);
        assert_refused(&mut target);
        write(&frontend, round);
        Log::up_to(128 * MIB).begin(&frontend);
        let base = frontend.stop_ring(0);
        if round < 3 {
            frontend.start_ring(0, base);
        }
    }
    let arrived = Frontend::connect(target.socket());
    assert_reads(&arrived, 1..=3);
    assert_eq!(claim().expect_err("it is in use"), rustix::io::Errno::BUSY);
    let kick = frontend.rings[0].kick.borrow();
    frontend.messages.set_vring_kick(0, &kick).expect_err("both have the device");
}
