//! Which sectors are being changed, on a disk whose blocks are smaller than the sectors that are encrypted.
//!
//! A write of a part of a sector reads it, changes that part and writes the sector back. Nothing else may change the
//! sector meanwhile, whichever queue it comes from, or one of the two changes is lost. So every piece of a request
//! that changes sectors locks them for as long as it is under way: any number of pieces may *overwrite* a sector
//! at once (how those overlap is the guest's own affair, as on every disk); only one may *modify* it, and alone.
//!
//! Reads lock nothing. XTS encrypts each 16 bytes of a sector by themselves: writing a sector back stores, for the
//! parts that were not to be changed, the very bytes that lie there already. So a read beside it, a write that is
//! cut short and a power failure in the middle find the old or the new content of the changed blocks, as on
//! a disk whose sectors are that small, and the old content of all others.
//!
//! Nobody sleeps on a lock. A piece that cannot have its locks is begun in a later turn; when whoever has them lets
//! go, it wakes the workers that wait.
//!
//! * No deadlock: a piece takes all of its locks or none, and a piece that has them waits for storage alone.
//! * No starvation: a request that has to wait draws a number, and each place notes the lowest number that waits
//!   for it. Nobody with a higher one, and nobody without one, gets in before. Those inside leave when storage
//!   has answered, so the lowest number of all gets in; then the next.
//! * No missed wake-up: whoever waits notes that in each place and then tries once more; whoever leaves does so and
//!   then looks who waits. Every access is in the single order of `SeqCst`, so one of them sees the other.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use super::between_threads::{AtomicBool, AtomicU32, AtomicU64};
use super::peers::Peers;
use crate::geometry::SectorSize;
use crate::virtio::request::SectorRange;

/// Places in the table of a volume. Sectors that are a multiple of so many apart share one, and wait without need at times.
const PLACES: usize = 4096;
/// In [`Place::users`]: a piece modifies the sector.
const MODIFIED: u32 = u32::MAX;
/// Above every number that is drawn.
const NO_NUMBER: u64 = u64::MAX;

/// What a piece does to the sectors that it locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Replaces them as a whole: others may do so at the same time.
    Overwrite,
    /// Reads one, changes a part of it and writes it back.
    Modify,
}

/// What became of an attempt to lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    /// The sectors are locked.
    Locked,
    /// They are not; the worker is woken when it makes sense to try again.
    Wait,
    /// They may never be: a worker broke down while it had locks.
    Abandoned,
}

/// A request's number in the line for its next piece. Either the piece is locked in the end, or the request
/// [gives up](Locker::give_up).
pub(super) type Number = NonZeroU64;

/// One entry of the table: the sectors that are [`PLACES`] apart.
#[derive(Debug)]
struct Place {
    /// How many pieces overwrite, or [`MODIFIED`].
    users: AtomicU32,
    /// The workers to be woken when one of these leaves, a bit each.
    waiting: AtomicU64,
    /// The lowest number that waits, as far as it is known here.
    next: AtomicU64,
}

impl Place {
    /// Whether somebody with `number` would get in.
    fn admits(&self, access: Access, number: u64) -> bool {
        let users = self.users.load(SeqCst);
        let fits = if access == Access::Modify { users == 0 } else { users != MODIFIED };
        fits && self.next.load(SeqCst) >= number
    }

    fn enter(&self, access: Access, number: u64) -> bool {
        if self.next.load(SeqCst) < number {
            return false;
        }
        let entered = self.users.fetch_update(SeqCst, SeqCst, |users| match access {
            Access::Overwrite => (users != MODIFIED).then(|| users + 1),
            Access::Modify => (users == 0).then_some(MODIFIED),
        });
        entered.is_ok()
    }

    /// Returns the workers to be woken.
    fn leave(&self, access: Access) -> u64 {
        match access {
            Access::Overwrite => {
                self.users.fetch_sub(1, SeqCst);
            }
            Access::Modify => self.users.store(0, SeqCst),
        }
        self.take_waiting()
    }

    fn take_waiting(&self) -> u64 {
        // The load is all there is to it as long as nobody waits.
        if self.waiting.load(SeqCst) == 0 { 0 } else { self.waiting.swap(0, SeqCst) }
    }

    fn line_up(&self, worker: u64, number: u64) {
        self.waiting.fetch_or(worker, SeqCst);
        self.next.fetch_min(number, SeqCst);
    }

    fn step_out_of_line(&self, number: u64) {
        // Of two that wait the other one notes itself again when it is woken, if it must go on waiting.
        let _ = self.next.compare_exchange(number, NO_NUMBER, SeqCst, SeqCst);
    }
}

/// The locks of one volume.
#[derive(Debug)]
pub(super) struct SectorLocks {
    sector_size: SectorSize,
    places: Box<[Place]>,
    numbers: AtomicU64,
    peers: Arc<Peers>,
    abandoned: AtomicBool,
}

impl SectorLocks {
    pub(super) fn new(sector_size: SectorSize, peers: Arc<Peers>) -> Self {
        Self::with_places(PLACES, sector_size, peers)
    }

    pub(super) fn with_places(count: usize, sector_size: SectorSize, peers: Arc<Peers>) -> Self {
        let place = || Place {
            users: AtomicU32::new(0),
            waiting: AtomicU64::new(0),
            next: AtomicU64::new(NO_NUMBER),
        };
        Self {
            sector_size,
            places: (0..count).map(|_| place()).collect(),
            numbers: AtomicU64::new(0),
            peers,
            abandoned: AtomicBool::new(false),
        }
    }

    /// The places of the sectors that `range` touches, each once.
    fn places(&self, range: SectorRange) -> impl Iterator<Item = &Place> + Clone {
        let sectors = range.widened(self.sector_size);
        let shift = self.sector_size.bytes().ilog2();
        let first = (sectors.offset_bytes >> shift) as usize % self.places.len();
        let count = (sectors.len_bytes >> shift).min(self.places.len() as u64) as usize;
        let (wrapped, from_first) = self.places.split_at(first);
        from_first.iter().chain(wrapped).take(count)
    }

    /// Takes all of these places or none.
    fn enter_all(&self, range: SectorRange, access: Access, number: u64) -> bool {
        let places = self.places(range);
        let entered = places.clone().take_while(|place| place.enter(access, number)).count();
        if entered == places.clone().count() {
            return true;
        }
        // Somebody may have found the door shut on our account.
        let waiting = places.take(entered).fold(0, |waiting, place| waiting | place.leave(access));
        self.peers.wake(waiting);
        false
    }
}

/// One worker's hand on the locks of its volume.
#[derive(Debug)]
pub(super) struct Locker {
    locks: Arc<SectorLocks>,
    worker: usize,
    /// Pieces that are locked.
    held: usize,
}

impl Locker {
    /// The hand of the worker with that number among its peers.
    pub(super) fn new(locks: Arc<SectorLocks>, worker: usize) -> Self {
        Self { locks, worker, held: 0 }
    }

    /// Locks the sectors that `range` touches. `in_line` is the request's, the same at each attempt for one piece.
    pub(super) fn lock(
        &mut self,
        range: SectorRange,
        access: Access,
        in_line: &mut Option<Number>,
    ) -> Attempt {
        let locks = &*self.locks;
        if in_line.is_none() && locks.enter_all(range, access, NO_NUMBER) {
            self.held += 1;
            return Attempt::Locked;
        }
        let draw = || Number::MIN.saturating_add(locks.numbers.fetch_add(1, SeqCst));
        let number = in_line.get_or_insert_with(draw).get();
        for place in locks.places(range) {
            place.line_up(1 << self.worker, number);
        }
        // Whoever left before we were in line did not wake us. Looking comes before entering: who enters some places
        // and leaves again wakes others, who may do the same to us, round and round.
        let admitted = locks.places(range).all(|place| place.admits(access, number));
        if admitted && locks.enter_all(range, access, number) {
            locks.places(range).for_each(|place| place.step_out_of_line(number));
            *in_line = None;
            self.held += 1;
            return Attempt::Locked;
        }
        if locks.abandoned.load(SeqCst) { Attempt::Abandoned } else { Attempt::Wait }
    }

    /// Unlocks what [`lock`](Self::lock) has locked. The caller tries again itself what it has in line.
    pub(super) fn unlock(&mut self, range: SectorRange, access: Access) {
        let waiting = self.locks.places(range).fold(0, |waiting, place| waiting | place.leave(access));
        self.held -= 1;
        self.locks.peers.wake(waiting & !(1 << self.worker));
    }

    /// Leaves the line for `range`. Those behind may get in now, some of them this worker's own.
    pub(super) fn give_up(&self, range: SectorRange, number: Number) {
        let mut waiting = 0;
        for place in self.locks.places(range) {
            place.step_out_of_line(number.get());
            waiting |= place.take_waiting();
        }
        self.locks.peers.wake(waiting);
    }
}

impl Drop for Locker {
    /// A worker that ends with pieces under way has broken down. There is no telling when storage is through
    /// with them, so their locks stay, and nobody is to wait for them.
    fn drop(&mut self) {
        if self.held > 0 {
            self.locks.abandoned.store(true, SeqCst);
            self.locks.peers.wake(u64::MAX);
        }
    }
}

#[cfg(test)]
#[path = "sector_locks_tests.rs"]
mod tests;
