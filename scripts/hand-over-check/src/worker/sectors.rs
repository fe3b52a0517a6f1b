//! Pieces of several workers that change the same sectors.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;

use super::peers::{Bell, Peers};
use super::sector_locks::{Access, Attempt, Locker, SectorLocks};
use crate::geometry::SectorSize;
use crate::virtio::request::SectorRange;

const SECTORS: u64 = 3;
const SECTOR_BYTES: u64 = 4096;
const MODIFIES: u32 = 1 << 16;

struct World {
    locks: Arc<SectorLocks>,
    peers: Arc<Peers>,
    /// Who is inside, of no concern to the order of threads.
    users: [AtomicU32; SECTORS as usize],
}

impl World {
    fn new() -> Arc<Self> {
        let peers = Arc::new(Peers::new());
        let locks = SectorLocks::with_places(SECTORS as usize, SectorSize::BYTES_4096, Arc::clone(&peers));
        Arc::new(Self { locks: Arc::new(locks), peers, users: Default::default() })
    }

    fn hand(&self) -> (Locker, Arc<Bell>) {
        let number = self.peers.join();
        (Locker::new(Arc::clone(&self.locks), number), self.peers.bell(number))
    }
}

/// A piece of a worker's: part of a sector to be modified, or sectors to be overwritten.
fn piece() -> (u64, u64, Access) {
    let mut random = thread_rng();
    let first = random.gen_range(0..SECTORS);
    if random.gen_bool(0.5) {
        (first, 1, Access::Modify)
    } else {
        (first, random.gen_range(1..=SECTORS - first), Access::Overwrite)
    }
}

fn range(first: u64, count: u64, access: Access) -> SectorRange {
    match access {
        Access::Modify => SectorRange { offset_bytes: first * SECTOR_BYTES + 512, len_bytes: 512 },
        Access::Overwrite => {
            SectorRange { offset_bytes: first * SECTOR_BYTES, len_bytes: count * SECTOR_BYTES }
        }
    }
}

fn change(world: &World, locker: &mut Locker, bell: &Bell) {
    let (first, count, access) = piece();
    let range = range(first, count, access);
    let mut in_line = None;
    while locker.lock(range, access, &mut in_line) != Attempt::Locked {
        bell.wait();
    }
    let users = &world.users[first as usize..][..count as usize];
    let unit = if access == Access::Modify { MODIFIES } else { 1 };
    for users in users {
        let before = users.fetch_add(unit, SeqCst);
        let alone = before == 0 || (access == Access::Overwrite && before < MODIFIES);
        assert!(alone, "{access:?} beside {before:#x}");
    }
    thread::yield_now();
    users.iter().for_each(|users| {
        users.fetch_sub(unit, SeqCst);
    });
    locker.unlock(range, access);
}

fn run_all(world: &Arc<World>, work: fn(&World, usize)) {
    let threads: Vec<_> = (0..3)
        .map(|number| {
            let world = Arc::clone(world);
            thread::spawn(move || work(&world, number))
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().expect("it ended well"));
}

pub(super) fn one_at_a_time() {
    run_all(&World::new(), |world, _| {
        let (mut locker, bell) = world.hand();
        (0..2).for_each(|_| change(world, &mut locker, &bell));
    });
}

/// One of them does not wait for its turn: those behind it are not to wait for it either.
pub(super) fn giving_up() {
    run_all(&World::new(), |world, number| {
        let (mut locker, bell) = world.hand();
        if number > 0 {
            return (0..2).for_each(|_| change(world, &mut locker, &bell));
        }
        let (first, count, access) = piece();
        let (range, mut in_line) = (range(first, count, access), None);
        match locker.lock(range, access, &mut in_line) {
            Attempt::Locked => locker.unlock(range, access),
            _ => locker.give_up(range, in_line.expect("it has drawn a number")),
        }
    });
}
