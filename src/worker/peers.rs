//! The workers of one volume, as far as they wake each other.

use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Most workers of one volume: each has a bit in masks of who waits for something.
pub const MAX_WORKERS: usize = u64::BITS as usize;

/// Who they are, and how each is woken.
#[derive(Debug)]
pub(super) struct Peers {
    wakes: [OnceLock<OwnedFd>; MAX_WORKERS],
    count: AtomicU32,
}

impl Peers {
    pub(super) fn new() -> Self {
        Self { wakes: [const { OnceLock::new() }; MAX_WORKERS], count: AtomicU32::new(0) }
    }

    /// Counts one more worker in. Returns its number, which is that of its bit.
    ///
    /// # Panics
    /// When there are [`MAX_WORKERS`] already.
    pub(super) fn join(&self) -> usize {
        let worker = self.count.fetch_add(1, Ordering::Relaxed) as usize;
        assert!(worker < MAX_WORKERS, "a volume has at most {MAX_WORKERS} workers");
        worker
    }

    /// Sets the eventfd by which others wake this worker, once.
    pub(super) fn set_wake(&self, worker: usize, wake: OwnedFd) {
        self.wakes[worker].set(wake).expect("a worker has one control descriptor");
    }

    /// Wakes the workers whose bits are set.
    pub(super) fn wake(&self, workers: u64) {
        let wakes = self.wakes.iter().enumerate().filter(|(worker, _)| workers >> worker & 1 == 1);
        for wake in wakes.filter_map(|(_, wake)| wake.get()) {
            // It cannot be full: nobody counts to 2^64.
            let _ = rustix::io::write(wake, &1u64.to_ne_bytes());
        }
    }
}
