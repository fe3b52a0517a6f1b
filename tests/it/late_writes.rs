//! A server is killed while storage still holds one of its writes. Its successor must not begin before that has landed,
//! or it would land on something newer.
//!
//! The storage is nbdkit, which delays each write, as a file through FUSE, as a loop device over that, and under a file
//! system on it. Needs `scripts/install-tools slow-storage` and the right to mount.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::harness::ring::wait_until;
use crate::harness::*;

/// Longer than a volume is waited for that a live process holds.
const DELAY_SECONDS: u32 = 2;
const PAYLOAD_BYTES: usize = 1 << 20;

/// A file on storage that takes its time.
struct SlowFile {
    folder: TempDir,
    nbdfuse: Child,
}

impl SlowFile {
    fn with(content: &[u8]) -> Self {
        let folder = tempfile::tempdir().expect("temporary directory");
        let path =
            |name: &str| folder.path().join(name).to_str().expect("temporary paths are text").to_owned();
        fs::write(path("image"), content).expect("write the image");
        fs::create_dir(path("mount")).expect("create the mount point");
        let nbdfuse = Command::new("nbdfuse")
            .args([
                &path("mount/disk"),
                "--command",
                "nbdkit",
                "-s",
                "--filter=log",
                "--filter=delay",
                "file",
            ])
            .args([path("image"), format!("logfile={}", path("log")), format!("delay-write={DELAY_SECONDS}")])
            .stdin(Stdio::null())
            .spawn()
            .expect("nbdfuse, of libnbd-bin");
        let slow = Self { folder, nbdfuse };
        wait_until("nbdfuse mounts nothing", || slow.path().exists());
        slow
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("mount/disk")
    }

    /// How many writes of so many bytes have arrived, and how many of them have landed.
    fn writes_of(&self, bytes: usize) -> (usize, usize) {
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        // `... Write id=7 offset=0x2000 count=0x1000 flags=0x0 ...`, and then `...Write id=7 return=0 (Success)`
        let id = |line: &str| {
            line.split_once("Write id=").and_then(|(_, rest)| rest.split(' ').next().map(str::to_owned))
        };
        let count = format!(" count={bytes:#x} ");
        let arrived: Vec<String> = log.lines().filter(|line| line.contains(&count)).filter_map(id).collect();
        let landed = log.lines().filter(|line| line.contains("...Write id="));
        (arrived.len(), landed.filter(|line| id(line).is_some_and(|id| arrived.contains(&id))).count())
    }
}

impl Drop for SlowFile {
    fn drop(&mut self) {
        // Lazily: what still holds the file goes with its test.
        let _ = Command::new("umount").arg("--lazy").arg(self.folder.path().join("mount")).status();
        let _ = self.nbdfuse.kill();
        let _ = self.nbdfuse.wait();
    }
}

/// Kills a server with a write under way to `path`, and lets its successor write the same sectors. `outlived` tells
/// whether the write outlives the server.
fn late_write(slow: &SlowFile, layout: &Layout, path: &Path, args: &[&str], outlived: bool) {
    let mut backend = Serve::volume(layout.clone()).behind(path).args(args).start();
    let setup = Setup { keeps_inflight: true, ..Setup::default() };
    let mut frontend = Frontend::with(backend.socket(), setup);
    let (old, new) = (pattern(50, 4096), pattern(51, 4096));
    let write = frontend.prepare(0, &Request::write(16, &old));
    frontend.rings[0].publish(&[write.head]);
    frontend.rings[0].kick();
    wait_until("the write does not reach the storage", || slow.writes_of(4096).0 > 0);
    backend.kill();
    let landed = slow.writes_of(4096).1;
    assert_eq!(landed == 0, outlived, "whether the write has landed when the process has ended");
    backend.start_again();
    let (arrived, landed) = slow.writes_of(4096);
    assert_eq!(arrived, landed, "the successor began while a write of its predecessor was under way");
    frontend = frontend.resume(backend.socket());
    write.answer(frontend.rings[0].collect(1)[0]).ok();
    frontend.run(&Request::write(16, &new)).ok();
    drop(frontend);
    backend.terminate();
    let content = fs::read(path).expect("read the volume");
    let mut expected = pattern(1, PAYLOAD_BYTES);
    expected[16 * 512..][..4096].copy_from_slice(&new);
    assert!(content == layout.encrypt(&expected), "an old write landed on a newer one");
    assert!(backend.stderr().contains("all writes are durable"));
}

fn volume() -> (Vec<u8>, Layout) {
    let layout = Layout::encrypted(PAYLOAD_BYTES);
    (layout.encrypt(&pattern(1, PAYLOAD_BYTES)), layout)
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

#[test]
#[ignore = "needs nbdfuse and the right to mount"]
fn a_late_write_of_the_blocking_engine_keeps_the_successor_waiting() {
    let (image, layout) = volume();
    let slow = SlowFile::with(&image);
    // Its threads are in the middle of a system call, and end with it.
    late_write(&slow, &layout, &slow.path(), &["--engine", "blocking"], false);
}

/// A loop device, detached when dropped.
struct LoopDevice(PathBuf);

impl LoopDevice {
    fn over(file: &Path) -> Self {
        Self(run(Command::new("losetup").args(["--find", "--show", "--direct-io=on"]).arg(file)).into())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
#[ignore = "needs nbdfuse, and the right to mount and to make loop devices"]
fn a_late_write_to_a_block_device_keeps_the_successor_waiting() {
    let (image, layout) = volume();
    let slow = SlowFile::with(&image);
    let device = LoopDevice::over(&slow.path());
    late_write(&slow, &layout, &device.0, &[], true);
}

/// A mounted file system, unmounted when dropped.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
#[ignore = "needs nbdfuse, and the right to mount and to make loop devices"]
fn a_late_write_to_a_file_keeps_the_successor_waiting() {
    let (image, layout) = volume();
    let folder = tempfile::tempdir().expect("temporary directory");
    let [content, filesystem, mount] =
        ["content", "filesystem", "mount"].map(|name| folder.path().join(name));
    fs::create_dir(&content).and_then(|()| fs::create_dir(&mount)).expect("make folders");
    fs::write(content.join("disk"), image).expect("write the image");
    run(Command::new("mkfs.ext4")
        .args(["-q", "-O", "^has_journal", "-d"])
        .arg(&content)
        .arg(&filesystem)
        .arg("16m"));
    let slow = SlowFile::with(&fs::read(&filesystem).expect("read the file system"));
    let device = LoopDevice::over(&slow.path());
    run(Command::new("mount").arg(&device.0).arg(&mount));
    let mounted = Mounted(mount);
    late_write(&slow, &layout, &mounted.0.join("disk"), &[], true);
}
