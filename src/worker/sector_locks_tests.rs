//! Who gets in beside whom, who has to wait, and that whoever waits is woken.

use std::os::fd::OwnedFd;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::*;

const SECTOR_BYTES: u64 = 4096;

/// A worker's hand, and the descriptor that wakes it.
struct Hand {
    locker: Locker,
    wake: OwnedFd,
}

impl Hand {
    fn new(locks: &Arc<SectorLocks>) -> Self {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let worker = locks.peers.join();
        let locker = Locker::new(Arc::clone(locks), worker);
        locks.peers.set_wake(worker, wake.try_clone().unwrap());
        Self { locker, wake }
    }

    /// An attempt of a request that has not waited yet and gives up at once.
    fn enters(&mut self, range: SectorRange, access: Access) -> bool {
        let mut in_line = None;
        let attempt = self.locker.lock(range, access, &mut in_line);
        if let Some(in_line) = in_line {
            self.locker.give_up(range, in_line);
        }
        attempt == Attempt::Locked
    }

    fn was_woken(&self) -> bool {
        rustix::io::read(&self.wake, &mut [0; 8]).is_ok()
    }
}

fn locks() -> Arc<SectorLocks> {
    Arc::new(SectorLocks::new(SectorSize::BYTES_4096, Arc::new(Peers::new())))
}

fn hands<const COUNT: usize>() -> [Hand; COUNT] {
    let locks = locks();
    std::array::from_fn(|_| Hand::new(&locks))
}

fn sectors(first: u64, count: u64) -> SectorRange {
    SectorRange { offset_bytes: first * SECTOR_BYTES, len_bytes: count * SECTOR_BYTES }
}

/// The third block of a sector.
fn block_of(sector: u64) -> SectorRange {
    SectorRange { offset_bytes: sector * SECTOR_BYTES + 1024, len_bytes: 512 }
}

use Access::{Modify, Overwrite};

#[test]
fn overwriting_goes_together_and_modifying_alone() {
    let [mut a, mut b] = hands();
    assert!(a.enters(sectors(3, 4), Overwrite));
    assert!(b.enters(sectors(5, 4), Overwrite));
    for sector in 3..9 {
        assert!(!a.enters(block_of(sector), Modify), "sector {sector}");
    }
    assert!(a.enters(block_of(2), Modify));
    assert!(b.enters(block_of(9), Modify));
    assert!(!b.enters(block_of(2), Modify));
    assert!(!b.enters(sectors(0, 3), Overwrite));
    a.locker.unlock(block_of(2), Modify);
    assert!(b.enters(sectors(0, 3), Overwrite));
    a.locker.unlock(sectors(3, 4), Overwrite);
    b.locker.unlock(sectors(5, 4), Overwrite);
    assert!(a.enters(block_of(5), Modify));
}

#[test]
fn all_sectors_or_none() {
    let [mut a, mut b] = hands();
    assert!(a.enters(block_of(7), Modify));
    assert!(!b.enters(sectors(4, 6), Overwrite));
    for sector in [4, 5, 6, 8, 9] {
        assert!(b.enters(block_of(sector), Modify), "sector {sector} was let go");
    }
}

#[test]
fn a_range_longer_than_the_table_has_each_place_once() {
    let locks = locks();
    let mut a = Hand::new(&locks);
    let all = sectors(PLACES as u64 - 7, 3 * PLACES as u64);
    assert!(a.enters(all, Overwrite));
    assert!(locks.places.iter().all(|place| place.users.load(SeqCst) == 1));
    a.locker.unlock(all, Overwrite);
    assert!(locks.places.iter().all(|place| place.users.load(SeqCst) == 0));
    assert!(a.enters(block_of(5), Modify));
    assert!(!a.enters(block_of(5 + PLACES as u64), Modify), "these two share a place");
    assert!(a.enters(block_of(6 + PLACES as u64), Modify));
}

#[test]
fn who_waits_is_woken_and_gets_in_before_newcomers() {
    let [mut a, mut b, mut c] = hands();
    assert!(a.enters(sectors(0, 8), Overwrite));
    let (mut first, mut second) = (None, None);
    assert_eq!(b.locker.lock(block_of(4), Modify, &mut first), Attempt::Wait);
    assert!(!a.enters(sectors(4, 1), Overwrite), "though it would go together with what is under way");
    assert!(a.enters(sectors(5, 1), Overwrite), "where nobody waits");
    assert!(b.was_woken(), "a was in line behind b, and gave up");
    assert_eq!(b.locker.lock(block_of(4), Modify, &mut first), Attempt::Wait);
    assert_eq!(c.locker.lock(sectors(2, 4), Overwrite, &mut second), Attempt::Wait);
    a.was_woken();

    a.locker.unlock(sectors(0, 8), Overwrite);
    assert!(b.was_woken() && c.was_woken() && !a.was_woken());
    assert_eq!(c.locker.lock(sectors(2, 4), Overwrite, &mut second), Attempt::Wait, "b was there before");
    assert_eq!(b.locker.lock(block_of(4), Modify, &mut first), Attempt::Locked);
    assert!(first.is_none());
    b.locker.unlock(block_of(4), Modify);
    assert!(c.was_woken() && !b.was_woken());
    assert_eq!(c.locker.lock(sectors(2, 4), Overwrite, &mut second), Attempt::Locked);
    assert!(a.enters(sectors(0, 8), Overwrite), "nobody waits any more");
}

#[test]
fn giving_up_lets_those_behind_go_ahead() {
    let [mut a, mut b] = hands();
    assert!(a.enters(sectors(0, 2), Overwrite));
    let (mut first, mut second) = (None, None);
    assert_eq!(b.locker.lock(block_of(1), Modify, &mut first), Attempt::Wait);
    assert_eq!(b.locker.lock(sectors(1, 1), Overwrite, &mut second), Attempt::Wait);
    b.locker.give_up(block_of(1), first.unwrap());
    assert!(b.was_woken(), "it has one more in line itself");
    assert_eq!(b.locker.lock(sectors(1, 1), Overwrite, &mut second), Attempt::Locked);
}

#[test]
fn nobody_waits_for_a_worker_that_broke_down() {
    let [mut a, mut b, mut c] = hands();
    assert!(a.enters(block_of(1), Modify));
    let mut in_line = None;
    assert_eq!(b.locker.lock(block_of(1), Modify, &mut in_line), Attempt::Wait);
    assert!(c.enters(block_of(2), Modify));
    c.locker.unlock(block_of(2), Modify);
    drop(c);
    assert_eq!(b.locker.lock(block_of(1), Modify, &mut in_line), Attempt::Wait, "c had let go");
    b.was_woken();
    drop(a);
    assert!(b.was_woken());
    assert_eq!(b.locker.lock(block_of(1), Modify, &mut in_line), Attempt::Abandoned);
    assert!(b.enters(block_of(2), Modify), "other sectors are none the worse");
}

/// Threads that lock and unlock as fast as they can. One that is not woken when it could go on fails by its
/// patience; only then does time matter.
#[test]
fn threads_exclude_and_wake_each_other() {
    const SECTORS: u64 = 6;
    const MODIFYING: u32 = 1 << 16;
    let locks = locks();
    let users: [AtomicU32; SECTORS as usize] = std::array::from_fn(|_| AtomicU32::new(0));
    let (locks_of_all, users) = (&locks, &users);
    let work = move |seed: u64, rounds: u32| {
        let mut hand = Hand::new(locks_of_all);
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut below = |limit: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % limit
        };
        for _ in 0..rounds {
            let first = below(SECTORS);
            let (range, access) = match below(2) {
                0 => (block_of(first), Modify),
                _ => (sectors(first, 1 + below(SECTORS - first)), Overwrite),
            };
            let mut in_line = None;
            while hand.locker.lock(range, access, &mut in_line) != Attempt::Locked {
                let patience = Timespec { tv_sec: 60, tv_nsec: 0 };
                let mut woken = [PollFd::new(&hand.wake, PollFlags::IN)];
                assert_eq!(poll(&mut woken, Some(&patience)), Ok(1), "nobody woke us");
                assert!(hand.was_woken());
            }
            let count = range.len_bytes.div_ceil(SECTOR_BYTES);
            let own = &users[first as usize..(first + count) as usize];
            let unit = if access == Modify { MODIFYING } else { 1 };
            for users in own {
                let before = users.fetch_add(unit, SeqCst);
                assert!(
                    before == 0 || (access == Overwrite && before < MODIFYING),
                    "{before:#x}, {access:?}"
                );
            }
            std::thread::yield_now();
            for users in own {
                users.fetch_sub(unit, SeqCst);
            }
            hand.locker.unlock(range, access);
        }
    };
    std::thread::scope(|scope| {
        for seed in 1..=4 {
            scope.spawn(move || work(seed, 5000));
        }
    });
    assert!(locks.places.iter().all(|place| place.users.load(SeqCst) == 0));
    assert!(locks.places.iter().all(|place| place.next.load(SeqCst) == NO_NUMBER));
}
