//! Storage that records what reaches it, and in between which flushes: QEMU's `blklogwrites`, as a file through NBD and
//! FUSE. (QEMU's own FUSE export, as of 10.0, mixes up the data of writes that are under way at the same time.)
//!
//! The log has the format of Linux' dm-log-writes (Documentation/admin-guide/device-mapper/log-writes.rst), all of it
//! little-endian and in sectors whose size the first one tells:
//!
//! ```text
//! sector 0:  magic 8, version 8, number of entries 8, sector size 4
//! each entry: one sector with  first sector 8, sector count 8, flags 8, data length 8,
//!             then the sectors themselves, if it is a write
//! ```

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::ring::PATIENCE;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
const FLAG_FLUSH: u64 = 1;
/// The log's unit, as the tests choose it.
const SECTOR_BYTES: u64 = 512;
/// Room for the log, in a file that takes up what was written to it.
const LOG_BYTES: u64 = 4 << 30;

/// What reached storage.
#[derive(Debug)]
pub enum Entry {
    /// These bytes at this offset.
    Write { offset_bytes: usize, data: Vec<u8> },
    /// Everything before is durable.
    Flush,
}

/// A file whose writes and flushes are recorded.
pub struct RecordedFile {
    folder: TempDir,
    daemon: Child,
    nbdfuse: Child,
    log: File,
}

impl RecordedFile {
    /// A file with this content.
    pub fn with(content: &[u8]) -> Self {
        let folder = tempfile::tempdir().expect("temporary directory");
        let path = |name: &str| folder.path().join(name);
        fs::write(path("image"), content).expect("write the image");
        fs::create_dir(path("mount")).expect("create the mount point");
        let log = File::options().read(true).write(true).create_new(true).open(path("log"));
        let log = log.expect("make the log");
        log.set_len(LOG_BYTES).expect("make the log as long as it may become");
        let text = |name: &str| path(name).to_str().expect("temporary paths are text").to_owned();
        let file = |name: &str| format!("driver=file,node-name={name},filename={}", text(name));
        let daemon = Command::new("qemu-storage-daemon")
            .args(["--blockdev", &file("image"), "--blockdev", &file("log"), "--blockdev"])
            .arg(format!(
                "driver=blklogwrites,node-name=all,file=image,log=log,log-sector-size={SECTOR_BYTES}"
            ))
            .args(["--nbd-server", &format!("addr.type=unix,addr.path={}", text("nbd"))])
            .args(["--export", "type=nbd,id=disk,name=disk,node-name=all,writable=on"])
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-storage-daemon, of qemu-utils");
        wait_until("qemu-storage-daemon does not listen", || path("nbd").exists());
        let nbdfuse = Command::new("nbdfuse")
            .args([text("mount/disk"), format!("nbd+unix:///disk?socket={}", text("nbd"))])
            .stdin(Stdio::null())
            .spawn()
            .expect("nbdfuse, of libnbd-bin");
        let recorded = Self { folder, daemon, nbdfuse, log };
        wait_until("nbdfuse mounts nothing", || recorded.path().exists());
        recorded
    }

    /// Where it lies.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("mount/disk")
    }

    /// How many entries there were at the last flush that has begun.
    pub fn entry_count(&self) -> usize {
        let mut header = [0; 24];
        self.log.read_exact_at(&mut header, 0).expect("read the log");
        word(&header, 2) as usize
    }

    /// Ends the recording, and tells what was recorded.
    pub fn finish(mut self) -> Vec<Entry> {
        self.unmount();
        kill_process(Pid::from_child(&self.daemon), Signal::TERM).expect("signal our own child");
        let status = self.daemon.wait().expect("wait for our own child");
        assert!(status.success(), "qemu-storage-daemon: {status}");
        read_log(&self.log)
    }
}

impl RecordedFile {
    fn unmount(&mut self) {
        if !matches!(self.nbdfuse.try_wait(), Ok(None)) {
            return;
        }
        // Lazily: what still holds the file goes with its test.
        let _ = Command::new("umount").arg("--lazy").arg(self.folder.path().join("mount")).status();
        let _ = self.nbdfuse.kill();
        let _ = self.nbdfuse.wait();
    }
}

impl Drop for RecordedFile {
    fn drop(&mut self) {
        self.unmount();
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        sleep(Duration::from_millis(2));
    }
}

fn word(bytes: &[u8], index: usize) -> u64 {
    u64::from_le_bytes(bytes[8 * index..][..8].try_into().expect("8 bytes"))
}

fn read_log(log: &File) -> Vec<Entry> {
    let read = |offset_bytes: u64, len_bytes: u64| {
        assert!(offset_bytes + len_bytes <= LOG_BYTES, "an entry beyond the end of the log");
        let mut bytes = vec![0; len_bytes as usize];
        log.read_exact_at(&mut bytes, offset_bytes).expect("read the log");
        bytes
    };
    let header = read(0, SECTOR_BYTES);
    assert_eq!((word(&header, 0), word(&header, 1)), (MAGIC, VERSION), "the log's magic number and version");
    assert_eq!(word(&header, 3) as u32, SECTOR_BYTES as u32, "the log's sector size");
    let mut position = SECTOR_BYTES;
    let mut entries = Vec::new();
    for number in 0..word(&header, 2) {
        let entry = read(position, SECTOR_BYTES);
        let [first, count, flags] = [0, 1, 2].map(|index| word(&entry, index));
        position += SECTOR_BYTES;
        match (flags, count) {
            (FLAG_FLUSH, 0) => entries.push(Entry::Flush),
            (0, _) => {
                let data = read(position, count * SECTOR_BYTES);
                position += count * SECTOR_BYTES;
                entries.push(Entry::Write { offset_bytes: (first * SECTOR_BYTES) as usize, data });
            }
            _ => panic!("entry {number} has flags {flags:#x} and {count} sectors: no write, no flush"),
        }
    }
    entries
}

/// The position of the last flush among the first `count` entries.
pub fn last_flush(entries: &[Entry], count: usize) -> Option<usize> {
    entries[..count].iter().rposition(|entry| matches!(entry, Entry::Flush))
}
