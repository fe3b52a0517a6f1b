//! Who holds the lock of a volume that is busy: a process that serves it, or one that has ended.
//!
//! # Late writes of a dead process
//!
//! A process that is killed leaves transfers under way to storage, and its successor repeats the requests behind them,
//! answers them, and takes new ones for the same sectors. A transfer of the dead that arrived after those would put old
//! data over new. It cannot: the kernel holds the volume's open file for every transfer until it has ended, whoever
//! started it has ended or not, and gives up the `flock` (and the exclusive claim on a block device) only with the last
//! such hold. Who has got the lock has the volume to himself. `tests/it/late_writes.rs` shows it, on storage that takes
//! its time.
//!
//! So the lock of a dead process is worth waiting for, as long as storage takes, while that of a live one is not: it
//! serves the volume. This holds on one host. When a host dies that shares storage with others, whatever brought it
//! down has to fence it from the storage before the volume is served elsewhere.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// What is known of the process that took a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// It runs.
    Alive,
    /// It has ended, or is not to be seen from here.
    Gone,
}

/// Who holds a `flock` on this file.
pub(super) fn holder(locked: &Metadata) -> Holder {
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    if holders(&locks, locked.dev(), locked.ino()).any(is_alive) { Holder::Alive } else { Holder::Gone }
}

/// The processes that hold a `flock` on a file, from the text of `/proc/locks`:
/// `1: FLOCK  ADVISORY  WRITE 703 fe:00:1234 0 EOF`.
fn holders(locks: &str, device: u64, inode: u64) -> impl Iterator<Item = i32> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let file = format!("{major:02x}:{minor:02x}:{inode}");
    // An arrow stands before those that wait for one.
    locks.lines().filter(|line| !line.contains("->")).filter_map(move |line| {
        let mut words = line.split_ascii_whitespace().skip_while(|word| *word != "FLOCK").skip(3);
        let pid = words.next()?.parse().ok()?;
        (words.next()? == file).then_some(pid)
    })
}

/// Whether a process runs. One that only waits for its parent to take notice of its end does not.
fn is_alive(pid: i32) -> bool {
    let Some(Ok(process)) = Pid::from_raw(pid).map(|pid| pidfd_open(pid, PidfdFlags::empty())) else {
        return false;
    };
    // Readable from its end on.
    let mut fds = [PollFd::new(&process, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())) == Ok(0)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_holder_is_told_by_device_and_inode() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 fe:00:77 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 12 fe:00:77 0 EOF\n\
                     2: -> FLOCK  ADVISORY  READ 13 fe:00:77 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 14 fe:00:78 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE x fe:00:77\n\n5: FLOCK\n";
        let device = rustix::fs::makedev(0xfe, 0);
        assert_eq!(holders(locks, device, 77).collect::<Vec<_>>(), [12]);
        assert_eq!(holders(locks, device, 7).count(), 0);
    }

    #[test]
    fn a_process_that_has_ended_is_gone() {
        let mut child = Command::new("sleep").arg("60").stdout(Stdio::null()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(is_alive(pid));
        child.kill().unwrap();
        // Not waited for yet: a zombie, as soon as the signal has got there.
        while is_alive(pid) {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!is_alive(pid));
    }

    #[test]
    fn our_own_lock_is_held_by_a_live_process() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let metadata = file.as_file().metadata().unwrap();
        assert_eq!(holder(&metadata), Holder::Gone);
        file.as_file().lock().unwrap();
        assert_eq!(holder(&metadata), Holder::Alive);
    }
}
