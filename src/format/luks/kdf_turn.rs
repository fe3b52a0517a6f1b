//! One memory-hard unlock at a time on a host, however many processes start at once.
//!
//! A LUKS2 header as cryptsetup makes it asks for 1 GiB while its passphrase is tried: fifty volumes started together
//! would take 50 GiB. Each process therefore waits for its turn, which is a `flock` on the program's own file: it is
//! the same file for all of them whoever they run as, needs no folder that they may write to, and a process that dies
//! gives its turn back.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use tracing::{info, warn};

const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// How long a turn is waited for: a hundred unlocks of the slowest kind. Whoever can read the program can hold its lock;
/// that must not keep disks from being served for ever.
const PATIENCE: Duration = Duration::from_secs(30 * 60);

/// A process's turn, until it is dropped.
#[derive(Debug)]
pub(super) struct KdfTurn {
    _lock: Option<File>,
}

impl KdfTurn {
    /// Waits for the turn. Goes on without one, and says so, when there is no lock to be had.
    pub(super) fn wait() -> Self {
        Self::wait_for(Path::new("/proc/self/exe"), PATIENCE)
    }

    fn wait_for(path: &Path, patience: Duration) -> Self {
        let lock = lock(path, patience).unwrap_or_else(|error| {
            warn!(
                error = &error as &dyn std::error::Error,
                "unlocking without waiting for others on this host: memory may run short"
            );
            None
        });
        Self { _lock: lock }
    }
}

fn lock(path: &Path, patience: Duration) -> io::Result<Option<File>> {
    let file = File::open(path)?;
    let began = Instant::now();
    let mut waiting = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) if began.elapsed() < patience => {
                if !waiting {
                    info!("waiting until other volumes on this host are unlocked");
                    waiting = true;
                }
                thread::sleep(RETRY_INTERVAL);
            }
            Err(TryLockError::WouldBlock) => {
                warn!(?patience, "no turn to unlock came: going on, memory may run short");
                return Ok(None);
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_taken_one_after_the_other() {
        let program = tempfile::NamedTempFile::new().unwrap();
        let turn = KdfTurn::wait_for(program.path(), Duration::ZERO);
        assert!(turn._lock.is_some());
        assert!(KdfTurn::wait_for(program.path(), Duration::ZERO)._lock.is_none(), "two turns at once");
        drop(turn);
        assert!(KdfTurn::wait_for(program.path(), Duration::ZERO)._lock.is_some());
    }

    #[test]
    fn a_turn_is_waited_for() {
        let program = tempfile::NamedTempFile::new().unwrap();
        let turn = KdfTurn::wait_for(program.path(), PATIENCE);
        thread::scope(|scope| {
            let second = scope.spawn(|| KdfTurn::wait_for(program.path(), PATIENCE)._lock.is_some());
            drop(turn);
            assert!(second.join().unwrap());
        });
    }

    #[test]
    fn without_a_lock_the_work_goes_on() {
        assert!(KdfTurn::wait_for(Path::new("/nonexistent"), PATIENCE)._lock.is_none());
    }

    #[test]
    fn the_program_itself_can_be_locked() {
        assert!(lock(Path::new("/proc/self/exe"), PATIENCE).unwrap().is_some());
    }
}
