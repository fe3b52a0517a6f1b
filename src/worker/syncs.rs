//! Syncs of one volume that are under way at the same time: flushes and durable writes, of one queue or of several.
//!
//! Storage that loses data says so once, to whichever sync comes first: a sync beside that one may succeed although
//! what it covers is gone. So the success of a sync is not believed before every other sync that was under way
//! at that moment has ended as well; and if one of them has failed, it is not believed at all. A sync that has no others
//! beside it is believed at once.
//!
//! Every sync draws a number before storage is told of it, and each worker shows the lowest number it has under way.
//! Whoever wants to know that all syncs until now have ended draws the number of the next one, and waits until nobody
//! shows a lower one.
//!
//! * A failure counts, and is latched where it has to be, before its number is no longer shown.
//! * No missed wake-up: whoever waits notes that and then looks once more; whoever ends a sync shows that and then looks
//!   who waits. Every access is in the single order of `SeqCst`, so one of them sees the other.
//! * No deadlock: a sync that is under way waits for storage alone.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, PoisonError};

use super::between_threads::{AtomicBool, AtomicU32, AtomicU64, Mutex, pause};
use super::peers::{MAX_WORKERS, Peers};
use crate::guest::InflightRegion;

/// Shown by a worker that has no sync under way: above every number.
const NONE: u64 = u64::MAX;
/// The place behind the workers': of the threads that sync for an operator or a front end, one at a time, and wait without
/// being woken.
const CONTROL: usize = MAX_WORKERS;

/// The number of one sync. They grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SyncNumber(u64);

/// A worker's lowest number under way, on a cache line of its own.
#[derive(Debug)]
#[repr(align(64))]
struct Shown(AtomicU64);

/// The syncs of one volume.
#[derive(Debug)]
pub(super) struct Syncs {
    next: AtomicU64,
    shown: [Shown; MAX_WORKERS + 1],
    /// The workers to be woken when a sync ends, a bit each.
    waiting: AtomicU64,
    /// How many have failed.
    failures: AtomicU32,
    /// Whether a loss may have been told of that nobody can make good.
    latched: AtomicBool,
    /// Whether the guest knows, from a flush that has failed.
    told: AtomicBool,
    /// Held by whoever has the place [`CONTROL`].
    control: Mutex<()>,
    /// Where a successor would find that out.
    note: Mutex<Option<Arc<InflightRegion>>>,
    peers: Arc<Peers>,
}

impl Syncs {
    pub(super) fn new(peers: Arc<Peers>) -> Self {
        Self {
            next: AtomicU64::new(0),
            shown: std::array::from_fn(|_| Shown(AtomicU64::new(NONE))),
            waiting: AtomicU64::new(0),
            failures: AtomicU32::new(0),
            latched: AtomicBool::new(false),
            told: AtomicBool::new(false),
            control: Mutex::new(()),
            note: Mutex::new(None),
            peers,
        }
    }

    /// How many syncs have failed so far.
    pub(super) fn failures(&self) -> u32 {
        self.failures.load(SeqCst)
    }

    pub(super) fn is_latched(&self) -> bool {
        self.latched.load(SeqCst)
    }

    /// Latches the failure of a sync.
    #[cold]
    pub(super) fn latch(&self) {
        if !self.latched.swap(true, SeqCst) {
            tracing::error!("the volume failed to make writes durable: flushes fail until it is served anew");
            self.write_note(true);
        }
    }

    /// Keeps the word of a failed sync in this region from now on, and learns what a predecessor has left there that
    /// has died.
    pub(super) fn keep_note_in(&self, region: Arc<InflightRegion>) {
        let inherited = region.has_sync_failed();
        *self.note.lock().unwrap_or_else(PoisonError::into_inner) = Some(region);
        if inherited && !self.latched.swap(true, SeqCst) {
            tracing::error!(
                "the last process died after the volume had failed to make writes durable: \
                 flushes fail until it is served anew"
            );
        }
        if self.is_latched() {
            self.write_note(true);
        }
    }

    /// A flush is answered with an error.
    #[cold]
    pub(super) fn tell(&self) {
        self.told.store(true, SeqCst);
    }

    /// Ends an orderly life: what comes next is a volume that is served anew, unless the guest does not know yet of what
    /// is lost.
    pub(super) fn end_life(&self) {
        if self.told.load(SeqCst) {
            self.write_note(false);
        }
    }

    fn write_note(&self, failed: bool) {
        if let Some(region) = &*self.note.lock().unwrap_or_else(PoisonError::into_inner) {
            region.note_sync_failed(failed);
        }
    }

    fn draw(&self) -> SyncNumber {
        SyncNumber(self.next.fetch_add(1, SeqCst))
    }

    fn show(&self, place: usize, lowest: u64) {
        self.shown[place].0.store(lowest, SeqCst);
    }

    /// Everything that has begun until now has a lower number.
    fn now(&self) -> SyncNumber {
        SyncNumber(self.next.load(SeqCst))
    }

    /// Whether everything before `number` has ended.
    fn have_ended(&self, number: SyncNumber) -> bool {
        self.shown.iter().all(|shown| shown.0.load(SeqCst) >= number.0)
    }

    fn wake_waiting(&self) {
        // The load is all there is to it as long as nobody waits.
        if self.waiting.load(SeqCst) != 0 {
            self.peers.wake(self.waiting.swap(0, SeqCst));
        }
    }

    /// Runs a sync of another thread than the workers': its failure is latched, and its success is that of all others
    /// beside it.
    pub(super) fn run<E>(&self, sync: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let turn = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        self.show(CONTROL, self.draw().0);
        let result = sync();
        if result.is_err() {
            self.failures.fetch_add(1, SeqCst);
            self.latch();
        }
        self.show(CONTROL, NONE);
        drop(turn);
        self.wake_waiting();
        let now = self.now();
        while result.is_ok() && !self.have_ended(now) {
            pause();
        }
        result
    }
}

/// The syncs of one worker.
#[derive(Debug)]
pub(super) struct OwnSyncs {
    syncs: Arc<Syncs>,
    worker: usize,
    /// Those under way, by number, and among them some that have ended.
    under_way: VecDeque<(SyncNumber, bool)>,
}

impl OwnSyncs {
    /// `most` syncs may be under way.
    pub(super) fn new(syncs: Arc<Syncs>, worker: usize, most: u32) -> Self {
        Self { syncs, worker, under_way: VecDeque::with_capacity(most as usize) }
    }

    pub(super) fn failures(&self) -> u32 {
        self.syncs.failures()
    }

    /// Counts a sync in, before storage is told of it.
    pub(super) fn begin(&mut self) -> SyncNumber {
        // A number that is drawn and not shown yet is of a sync that has not begun.
        let number = self.syncs.draw();
        if self.under_way.is_empty() {
            self.syncs.show(self.worker, number.0);
        }
        self.under_way.push_back((number, false));
        number
    }

    /// Counts a sync out. Its failure has been latched if it has to be.
    pub(super) fn end(&mut self, number: SyncNumber, failed: bool) {
        if failed {
            self.syncs.failures.fetch_add(1, SeqCst);
        }
        let place = self.under_way.binary_search_by_key(&number, |(number, _)| *number);
        self.under_way[place.expect("it was counted in")].1 = true;
        if self.under_way.front().is_some_and(|(_, ended)| !ended) {
            return;
        }
        while self.under_way.pop_front_if(|(_, ended)| *ended).is_some() {}
        self.syncs.show(self.worker, self.under_way.front().map_or(NONE, |(number, _)| number.0));
        self.syncs.wake_waiting();
    }

    /// Everything that has begun until now has a lower number.
    pub(super) fn now(&self) -> SyncNumber {
        self.syncs.now()
    }

    /// Whether everything before `number` has ended. If not, the worker is woken when it makes sense to look again.
    pub(super) fn have_ended(&self, number: SyncNumber) -> bool {
        if self.syncs.have_ended(number) {
            return true;
        }
        self.syncs.waiting.fetch_or(1 << self.worker, SeqCst);
        self.syncs.have_ended(number)
    }
}

impl Drop for OwnSyncs {
    /// A worker that ends with syncs under way has broken down: nobody will learn what became of them.
    fn drop(&mut self) {
        if self.under_way.iter().any(|(_, ended)| !ended) {
            self.syncs.failures.fetch_add(1, SeqCst);
            self.syncs.latch();
            self.syncs.show(self.worker, NONE);
            self.syncs.wake_waiting();
        }
    }
}

#[cfg(test)]
#[path = "syncs_tests.rs"]
mod tests;
