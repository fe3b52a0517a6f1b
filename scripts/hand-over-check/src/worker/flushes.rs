//! Storage that has lost data says so to one sync, and to none of the others.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use shuttle::thread;

use super::between_threads::AtomicBool;
use super::peers::Peers;
use super::syncs::{OwnSyncs, Syncs};

struct Storage {
    lost: AtomicBool,
}

impl Storage {
    fn sync(&self) -> Result<(), ()> {
        thread::yield_now();
        let lost = self.lost.swap(false, SeqCst);
        // Whoever is told of it does not come to tell others at once.
        thread::yield_now();
        if lost { Err(()) } else { Ok(()) }
    }
}

/// A worker's flush, as far as its loop goes. Whether the guest is told that all is well.
fn flush(own: &mut OwnSyncs, all: &Syncs, storage: &Storage, wait: impl Fn()) -> bool {
    if all.is_latched() {
        return false;
    }
    let failures = own.failures();
    let number = own.begin();
    let failed = storage.sync().is_err();
    if failed {
        all.latch();
    }
    own.end(number, failed);
    let until = own.now();
    while !own.have_ended(until) {
        wait();
    }
    !failed && own.failures() == failures && !all.is_latched()
}

fn worker(all: &Arc<Syncs>, peers: &Arc<Peers>, storage: &Arc<Storage>) -> thread::JoinHandle<Vec<bool>> {
    let (all, peers, storage) = (Arc::clone(all), Arc::clone(peers), Arc::clone(storage));
    let number = peers.join();
    thread::spawn(move || {
        let mut own = OwnSyncs::new(Arc::clone(&all), number, 2);
        let bell = peers.bell(number);
        (0..2).map(|_| flush(&mut own, &all, &storage, || bell.wait())).collect()
    })
}

fn world(lost: bool) -> (Arc<Syncs>, Arc<Peers>, Arc<Storage>) {
    let peers = Arc::new(Peers::new());
    (Arc::new(Syncs::new(Arc::clone(&peers))), peers, Arc::new(Storage { lost: AtomicBool::new(lost) }))
}

pub(super) fn none_succeeds_beside_one_that_failed() {
    let (all, peers, storage) = world(true);
    let workers: Vec<_> = (0..3).map(|_| worker(&all, &peers, &storage)).collect();
    for worker in workers {
        let told = worker.join().expect("it ended well");
        assert_eq!(told, [false, false], "what was flushed is lost");
    }
}

pub(super) fn control_and_workers_wait() {
    for lost in [true, false] {
        let (all, peers, storage) = world(lost);
        let workers: Vec<_> = (0..2).map(|_| worker(&all, &peers, &storage)).collect();
        let failures = all.failures();
        let told = all.run(|| storage.sync()).is_ok() && all.failures() == failures && !all.is_latched();
        assert_eq!(told, !lost);
        for worker in workers {
            assert_eq!(worker.join().expect("it ended well"), [!lost, !lost]);
        }
    }
}
