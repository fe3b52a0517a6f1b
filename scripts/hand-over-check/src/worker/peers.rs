//! Workers that wake each other, by bells: an eventfd is rung once or more often, and is silent once it was heard.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use shuttle::sync::{Condvar, Mutex};

/// As many as the checks have.
pub const MAX_WORKERS: usize = 3;

#[derive(Debug, Default)]
pub(super) struct Bell {
    rung: Mutex<bool>,
    rings: Condvar,
}

impl Bell {
    pub(super) fn ring(&self) {
        *self.rung.lock().expect("no thread panics") = true;
        self.rings.notify_all();
    }

    /// Sleeps until it rings, or has rung.
    pub(super) fn wait(&self) {
        let mut rung = self.rung.lock().expect("no thread panics");
        while !*rung {
            rung = self.rings.wait(rung).expect("no thread panics");
        }
        *rung = false;
    }

    /// Whether it has rung; it has been heard then.
    pub(super) fn hear(&self) -> bool {
        std::mem::take(&mut *self.rung.lock().expect("no thread panics"))
    }
}

#[derive(Debug)]
pub(super) struct Peers {
    bells: [Arc<Bell>; MAX_WORKERS],
    count: AtomicUsize,
}

impl Peers {
    pub(super) fn new() -> Self {
        Self { bells: std::array::from_fn(|_| Arc::default()), count: AtomicUsize::new(0) }
    }

    pub(super) fn join(&self) -> usize {
        self.count.fetch_add(1, SeqCst)
    }

    pub(super) fn bell(&self, worker: usize) -> Arc<Bell> {
        Arc::clone(&self.bells[worker])
    }

    pub(super) fn wake(&self, workers: u64) {
        let bells = self.bells.iter().enumerate();
        bells.filter(|(worker, _)| workers >> worker & 1 == 1).for_each(|(_, bell)| bell.ring());
    }
}
