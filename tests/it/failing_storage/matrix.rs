//! Every way of storage to fail, through both engines: the guest gets an I/O error and never data, and everything works
//! again when storage does, but for flushes, which fail for good.
//!
//! The storage is nbdkit, as a file through FUSE. Needs `scripts/install-tools slow-storage` and the right to mount.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::harness::request::Prepared;
use crate::harness::ring::wait_until;
use crate::harness::*;

const PAYLOAD_BYTES: usize = 1 << 20;

/// A file on storage that fails as long as it is told to.
struct FaultyFile {
    folder: TempDir,
    nbdfuse: Child,
}

impl FaultyFile {
    /// `error` is what reads and writes fail with, each while the file of its name is there.
    fn with(content: &[u8], error: &str) -> Self {
        let folder = tempfile::tempdir().expect("temporary directory");
        let path =
            |name: &str| folder.path().join(name).to_str().expect("temporary paths are text").to_owned();
        fs::write(path("image"), content).expect("write the image");
        fs::create_dir(path("mount")).expect("create the mount point");
        let mut nbdkit = vec![path("mount/disk"), "--command".into(), "nbdkit".into(), "-s".into()];
        nbdkit.extend(["--filter=error", "--filter=delay", "eval"].map(String::from));
        for operation in ["pread", "pwrite"] {
            nbdkit.push(format!("error-{operation}={error}"));
            nbdkit.push(format!("error-{operation}-rate=100%"));
            nbdkit.push(format!("error-{operation}-file={}", path(operation)));
        }
        let image = path("image");
        let moved = "bs=64k status=none iflag=count_bytes,skip_bytes,fullblock";
        nbdkit.push(format!("get_size=stat -c %s {image}"));
        nbdkit.push(format!("pread=dd if={image} skip=$4 count=$3 {moved}"));
        nbdkit.push(format!("pwrite=dd of={image} seek=$4 bs=64k status=none conv=notrunc oflag=seek_bytes"));
        nbdkit.push("can_write=true".into());
        nbdkit.push("can_flush=true".into());
        let flush = path("flush");
        nbdkit.push(format!("flush=if [ -e {flush} ]; then echo EIO failed >&2; exit 1; fi"));
        nbdkit.push("delay-write=10ms".into());
        let nbdfuse = Command::new("nbdfuse").args(nbdkit).stdin(Stdio::null()).spawn();
        let faulty = Self { folder, nbdfuse: nbdfuse.expect("nbdfuse, of libnbd-bin") };
        wait_until("nbdfuse mounts nothing", || faulty.path().exists());
        faulty
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("mount/disk")
    }

    /// Lets an operation fail, or not any more.
    fn fail(&self, operation: &str, fails: bool) {
        let trigger = self.folder.path().join(operation);
        match fails {
            true => drop(File::create(trigger).expect("make the trigger")),
            false => fs::remove_file(trigger).expect("remove the trigger"),
        }
    }

    /// Nothing answers any more.
    fn vanish(&mut self) {
        let _ = self.nbdfuse.kill();
        let _ = self.nbdfuse.wait();
    }
}

impl Drop for FaultyFile {
    fn drop(&mut self) {
        // Lazily: what still holds the file goes with its test.
        let _ = Command::new("umount").arg("--lazy").arg(self.folder.path().join("mount")).status();
        self.vanish();
    }
}

fn disk(error: &str, args: &[&str]) -> (FaultyFile, Backend) {
    let layout = Layout::encrypted(PAYLOAD_BYTES);
    let faulty = FaultyFile::with(&layout.encrypt(&pattern(1, PAYLOAD_BYTES)), error);
    let backend = Serve::volume(layout).behind(&faulty.path()).args(args).controlled().start();
    (faulty, backend)
}

fn reported(engine: &str, error: &str) {
    let (mut faulty, mut backend) = disk(error, &["--engine", engine]);
    let frontend = Frontend::connect(backend.socket());
    let data = pattern(7, 4096);
    frontend.run(&Request::write(8, &data)).ok();
    faulty.fail("pread", true);
    frontend.run(&Request::read(8, 4096)).failed(1);
    frontend.run(&Request::write(16, &data)).ok();
    faulty.fail("pread", false);
    assert!(frontend.run(&Request::read(8, 4096)).ok() == data);
    faulty.fail("pwrite", true);
    frontend.run(&Request::write(8, &pattern(8, 4096))).failed(1);
    frontend.run(&Request::write_zeroes(8, 8)).failed(1);
    assert!(frontend.run(&Request::read(8, 4096)).ok() == data, "nothing of it was stored");
    faulty.fail("pwrite", false);
    frontend.run(&Request::flush()).ok();
    faulty.fail("flush", true);
    frontend.run(&Request::flush()).failed(1);
    faulty.fail("flush", false);
    frontend.run(&Request::flush()).failed(1);
    let (kind, message) = backend.control().failed("flush");
    assert_eq!(kind, "failed");
    assert!(message.contains("earlier fdatasync"), "{message}");
    let status = backend.control().done("status");
    assert_eq!(status["volume"]["sync_failed"], true);
    frontend.run(&Request::write(8, &pattern(9, 4096))).ok();
    drop(frontend);
    backend.signal_term();
    assert_eq!(backend.wait().code(), Some(1), "it cannot say that all is durable");
    // Served anew, it flushes.
    backend.start_again();
    let frontend = Frontend::connect(backend.socket());
    frontend.run(&Request::flush()).ok();
    assert!(frontend.run(&Request::read(8, 4096)).ok() == pattern(9, 4096));
    faulty.vanish();
    frontend.run(&Request::read(8, 4096)).failed(1);
    frontend.run(&Request::write(8, &data)).failed(1);
    frontend.run(&Request::flush()).failed(1);
    backend.assert_alive();
}

fn offer(frontend: &Frontend, request: &Request) -> Prepared {
    let prepared = frontend.prepare(0, request);
    frontend.rings[0].publish(&[prepared.head]);
    frontend.rings[0].kick();
    prepared
}

fn held(engine: &str, error: &str, cache: &str) {
    let args = ["--engine", engine, "--on-error", "stop", "--cache", cache];
    let (faulty, mut backend) = disk(error, &args);
    let frontend = Frontend::connect(backend.socket());
    let mut control = backend.control();
    let mut is_held =
        |count: u64| wait_until("it is not held", || control.done("status")["queues"][0]["held"] == count);
    let data = pattern(7, 4096);
    faulty.fail("pwrite", true);
    let write = offer(&frontend, &Request::write(8, &data));
    is_held(1);
    frontend.rings[0].expect_silence();
    faulty.fail("pwrite", false);
    backend.control().done("retry");
    write.answer(frontend.rings[0].collect(1)[0]).ok();
    faulty.fail("pread", true);
    let read = offer(&frontend, &Request::read(8, 4096));
    is_held(1);
    faulty.fail("pread", false);
    backend.control().done("retry");
    assert!(read.answer(frontend.rings[0].collect(1)[0]).ok() == data);
    is_held(0);
    // A flush has to be repeated by nobody: it may have been the only word of a loss. So may the flush of a write that is
    // to be durable, which is one of its own on such storage.
    let flushing = if cache == "writethrough" { Request::write(16, &data) } else { Request::flush() };
    frontend.run(&flushing).ok();
    faulty.fail("flush", true);
    frontend.run(&flushing).failed(1);
    faulty.fail("flush", false);
    frontend.run(&Request::flush()).failed(1);
    drop(frontend);
    backend.signal_term();
    assert_eq!(backend.wait().code(), Some(1));
}

#[test]
#[ignore = "needs nbdfuse and the right to mount"]
fn errors_are_reported_uring() {
    reported("uring", "EIO");
    reported("uring", "ENOSPC");
}

#[test]
#[ignore = "needs nbdfuse and the right to mount"]
fn errors_are_reported_blocking() {
    reported("blocking", "EIO");
    reported("blocking", "ENOSPC");
}

#[test]
#[ignore = "needs nbdfuse and the right to mount"]
fn errors_are_held_uring() {
    held("uring", "ENOSPC", "writeback");
    held("uring", "EIO", "writethrough");
}

#[test]
#[ignore = "needs nbdfuse and the right to mount"]
fn errors_are_held_blocking() {
    held("blocking", "EIO", "writeback");
    held("blocking", "ENOSPC", "writethrough");
}

#[test]
#[ignore = "needs nbdfuse and the right to mount"]
fn a_process_that_is_killed_leaves_word_of_a_failed_flush() {
    let (faulty, mut backend) = disk("EIO", &[]);
    let setup = Setup { keeps_inflight: true, ..Setup::default() };
    let mut frontend = Frontend::with(backend.socket(), setup);
    frontend.run(&Request::write(8, &pattern(7, 4096))).ok();
    faulty.fail("flush", true);
    frontend.run(&Request::flush()).failed(1);
    faulty.fail("flush", false);
    backend.kill();
    backend.start_again();
    frontend = frontend.resume(backend.socket());
    frontend.run(&Request::flush()).failed(1);
    frontend.run(&Request::write(8, &pattern(8, 4096))).ok();
    assert!(
        backend.stderr().contains("the last process died after the volume had failed"),
        "{}",
        backend.stderr()
    );
    backend.signal_term();
    assert_eq!(backend.wait().code(), Some(1), "it cannot say that all is durable");
    // Its end was in good order, and the guest knows: now the volume is served anew.
    backend.start_again();
    frontend = frontend.resume(backend.socket());
    frontend.run(&Request::flush()).ok();
    assert!(frontend.run(&Request::read(8, 4096)).ok() == pattern(8, 4096));
}

#[test]
#[ignore = "needs nbdfuse and the right to mount"]
fn who_cannot_make_all_durable_is_not_taken_over() {
    let (faulty, mut backend) = disk("EIO", &[]);
    let setup = Setup { keeps_inflight: true, ..Setup::default() };
    let frontend = Frontend::with(backend.socket(), setup);
    let data = pattern(7, 4096);
    frontend.run(&Request::write(8, &data)).ok();
    faulty.fail("flush", true);
    let refused = backend.try_take_over(&[]);
    assert_eq!(refused.status.code(), Some(1));
    let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(complaint.contains("not all is durable"), "{complaint}");
    // It serves on, and still knows.
    faulty.fail("flush", false);
    let frontend = frontend.resume(backend.socket());
    assert!(frontend.run(&Request::read(8, 4096)).ok() == data);
    frontend.run(&Request::flush()).failed(1);
    backend.assert_alive();
}
