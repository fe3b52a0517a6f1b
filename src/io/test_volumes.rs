//! Volumes for the tests of the engines that work on files.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The kinds of file that every engine is tested on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// Pages in memory, as on a tmpfs.
    Memory,
    /// A file beside the test binary, through the page cache.
    Disk,
    /// The same, past the page cache.
    DiskDirect,
}

pub(super) const KINDS: [Kind; 3] = [Kind::Memory, Kind::Disk, Kind::DiskDirect];

/// A file without a name that contains `content`: the descriptor for the engine, and one to look at it.
pub(super) fn volume(kind: Kind, content: &[u8]) -> (Arc<OwnedFd>, File) {
    let (mut file, volume) = match kind {
        Kind::Memory => {
            let file = File::from(memfd_create("volume", MemfdFlags::CLOEXEC).unwrap());
            let volume = file.try_clone().unwrap();
            (file, volume)
        }
        Kind::Disk | Kind::DiskDirect => {
            let path = unique_path();
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create_new(true).open(&path).unwrap();
            let flags = if matches!(kind, Kind::DiskDirect) { libc::O_DIRECT } else { 0 };
            let volume = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path);
            std::fs::remove_file(&path).unwrap();
            (file, volume.unwrap())
        }
    };
    file.write_all(content).unwrap();
    file.sync_all().unwrap();
    (Arc::new(volume.into()), file)
}

/// What the volume contains.
pub(super) fn contents(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// The file again, for reading only.
pub(super) fn read_only(file: &File) -> Arc<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Arc::new(File::open(path).unwrap().into())
}

/// A file of `len_bytes` that cannot grow.
pub(super) fn fixed_size(len_bytes: u64) -> Arc<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(memfd_create("fixed", flags).unwrap());
    file.set_len(len_bytes).unwrap();
    fcntl_add_seals(&file, SealFlags::GROW).unwrap();
    Arc::new(file.into())
}

/// The device that never has room.
pub(super) fn always_full() -> Arc<OwnedFd> {
    Arc::new(OpenOptions::new().read(true).write(true).open("/dev/full").unwrap().into())
}

/// Calls `test` while no file may grow beyond the returned limit, and with a volume that may reach it. Writes
/// across the limit are cut short there, those beyond it fail with `EFBIG`. The limit is so high that no other
/// test of this process notices.
pub(super) fn with_file_size_limit(test: impl FnOnce(Arc<OwnedFd>, u64)) {
    let limit_bytes = 1 << 40;
    let before = getrlimit(Resource::Fsize);
    ignore_file_size_signal();
    setrlimit(Resource::Fsize, Rlimit { current: Some(limit_bytes), maximum: before.maximum }).unwrap();
    let (volume, _) = volume(Kind::Disk, &[]);
    test(volume, limit_bytes);
    setrlimit(Resource::Fsize, before).unwrap();
}

/// The signal that comes along with `EFBIG` would end the process.
#[expect(unsafe_code, reason = "changes a signal's disposition")]
fn ignore_file_size_signal() {
    // SAFETY: ignoring a signal runs no handler.
    let before = unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    assert_ne!(before, libc::SIG_ERR);
}

fn unique_path() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("sealblk-test-{}-{number}.img", std::process::id());
    std::env::current_exe().unwrap().with_file_name(name)
}
