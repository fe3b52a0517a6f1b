//! The loop on a simulated disk, driven turn by turn, without threads.

use vm_memory::Bytes;

use super::*;
use crate::cipher::{EqualHalves, IvMode, IvNumbering, VolumeKey, Xts};
use crate::geometry::{Geometry, SectorNumber, SectorSize};
use crate::io::PoolShape;
use crate::io::sim::{Faults, Sim, SimDisk};
use crate::virtio::virtq::tests::{DATA, Driver};

const CAPACITY_BYTES: usize = 12 << 20;
const RING_SIZE: u16 = 64;
/// Each request has four descriptors: header, data, data, status.
const DESCRIPTORS_PER_REQUEST: u16 = 4;
/// Headers and status bytes lie before the data.
const BUFFERS: u64 = DATA + 0x10000;

mod held;
mod limited;
mod logged;
mod repeats;

struct Rig {
    driver: Driver,
    disk: SimDisk,
    volume: Arc<Volume>,
    worker: Worker<Sim>,
    requests: u16,
}

impl Rig {
    fn new(faults: Faults) -> Self {
        Self::with(faults, OnError::Report)
    }

    fn with(faults: Faults, on_error: OnError) -> Self {
        let driver = Driver::new(RING_SIZE);
        let disk = SimDisk::new(vec![0; CAPACITY_BYTES], faults);
        let geometry = Geometry {
            sector_size: SectorSize::BYTES_512,
            payload_offset_bytes: 4096,
            capacity_bytes: CAPACITY_BYTES as u64 - 4096,
        };
        let volume = Arc::new(Volume::new(geometry, Some(xts())).with_on_error(on_error));
        let mut worker = worker(&volume, &disk);
        worker.start_queue(setup(&driver)).unwrap();
        Self { driver, disk, volume, worker, requests: 0 }
    }

    /// Makes a request available, with its data in two descriptors. Returns where its status will be.
    fn offer(&mut self, kind: u32, sector: u64, data: (u64, u32), device_writes: bool) -> u64 {
        let slot = u64::from(self.requests % (RING_SIZE / DESCRIPTORS_PER_REQUEST));
        let (header, status) = (DATA + 32 * slot, DATA + 0x8000 + slot);
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        self.driver.memory.write_slice(&bytes, vm_memory::GuestAddress(header)).unwrap();
        self.driver.memory.write_slice(&[0xff], vm_memory::GuestAddress(status)).unwrap();
        // The first part cuts a sector in the middle.
        let first = data.1.min(700);
        let buffers = [
            (header, 16, false),
            (data.0, first, device_writes),
            (data.0 + u64::from(first), data.1 - first, device_writes),
            (status, 1, true),
        ];
        self.driver.offer_chain(slot as u16 * DESCRIPTORS_PER_REQUEST, &buffers);
        self.requests += 1;
        status
    }

    fn status(&self, at: u64) -> u8 {
        self.driver.memory.read_obj(vm_memory::GuestAddress(at)).unwrap()
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.driver.memory.write_slice(bytes, vm_memory::GuestAddress(at)).unwrap();
    }

    fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.driver.memory.read_slice(&mut bytes, vm_memory::GuestAddress(at)).unwrap();
        bytes
    }

    /// One turn, as the thread would do it.
    fn step(&mut self) {
        if !self.worker.turn().unwrap() {
            self.worker.wait().unwrap();
        }
    }

    /// Turns until everything offered is answered; returns how many turns that took.
    fn run(&mut self) -> usize {
        for turn in 1..100_000 {
            let busy = self.worker.turn().unwrap();
            if self.driver.used_index() == self.requests {
                return turn;
            }
            if !busy {
                self.worker.wait().unwrap();
            }
        }
        panic!("{} of {} requests answered", self.driver.used_index(), self.requests);
    }

    fn write(&mut self, sector: u64, bytes: &[u8]) -> u8 {
        self.put(BUFFERS, bytes);
        let status = self.offer(1, sector, (BUFFERS, bytes.len() as u32), false);
        self.run();
        self.status(status)
    }

    fn read(&mut self, sector: u64, len: usize) -> (u8, Vec<u8>) {
        self.put(BUFFERS, &vec![0xa5; len]);
        let status = self.offer(0, sector, (BUFFERS, len as u32), true);
        self.run();
        (self.status(status), self.get(BUFFERS, len))
    }

    fn flush(&mut self) -> u8 {
        let status = self.offer(4, 0, (BUFFERS, 0), true);
        self.run();
        self.status(status)
    }

    fn on_ranges(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> u8 {
        let bytes: Vec<u8> = ranges
            .iter()
            .flat_map(|(sector, count, flags)| {
                [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
            })
            .collect();
        self.put(BUFFERS, &bytes);
        let status = self.offer(kind, 0, (BUFFERS, bytes.len() as u32), false);
        self.run();
        self.status(status)
    }
}

fn xts() -> Xts {
    let key: Vec<u8> = (0..64).collect();
    let key = VolumeKey::new(&key, EqualHalves::Refuse).unwrap();
    let iv = IvNumbering { mode: IvMode::Plain64, offset_sectors: 0, large_sectors: false };
    Xts::new(&key, SectorSize::BYTES_512, iv).unwrap()
}

fn worker(volume: &Arc<Volume>, disk: &SimDisk) -> Worker<Sim> {
    let geometry = *volume.geometry();
    let view = DiskView { geometry, logical_block: geometry.sector_size, read_only: false, discard: true };
    let slots = SlotPool::new(PoolShape::default()).unwrap();
    let engine = Sim::new(disk.clone(), max_ops(&slots)).unwrap();
    let served = Disk { volume: Arc::clone(volume), view, serial: *b"serial-of-20-bytes.." };
    Worker::new(served, engine, slots)
}

fn setup(driver: &Driver) -> QueueSetup {
    let eventfd = || rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    QueueSetup {
        index: 0,
        ring: driver.setup(false),
        memory: Arc::clone(&driver.device_memory),
        kick: eventfd(),
        call: Some(eventfd()),
        error: None,
        enabled: true,
        tracking: None,
        log: None,
    }
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i / 512) as u8 ^ (i % 251) as u8 ^ seed).collect()
}

#[test]
fn what_lies_on_the_disk_is_the_encrypted_data_at_its_place() {
    let mut rig = Rig::new(Faults::default());
    let data = pattern(9 * 512, 7);
    assert_eq!(rig.write(100, &data), 0);
    let mut expected = data.clone();
    xts().encrypt_in_place(SectorNumber(100), &mut expected);
    let at = 4096 + 100 * 512;
    let image = rig.disk.live();
    assert_eq!(image[at..at + data.len()], expected);
    assert!(image[..at].iter().chain(&image[at + data.len()..]).all(|byte| *byte == 0));
    assert_eq!(rig.read(100, data.len()), (0, data));
    assert_eq!(rig.driver.used(1), (4, 9 * 512 + 1));
}

#[test]
fn a_request_larger_than_all_slots_together_goes_in_pieces() {
    let mut rig = Rig::new(Faults { delay_turns: 3, ..Faults::default() });
    let data = pattern(8 << 20, 1);
    assert!(data.len() > PoolShape::default().bytes());
    assert_eq!(rig.write(3, &data), 0);
    let (status, read) = rig.read(3, data.len());
    assert_eq!(status, 0);
    assert!(read == data);
}

#[test]
fn a_large_request_does_not_keep_small_ones_waiting() {
    let mut rig = Rig::new(Faults { delay_turns: 2, ..Faults::default() });
    let zeroes: Vec<u8> = [&0u64.to_le_bytes()[..], &(20_000u32).to_le_bytes(), &0u32.to_le_bytes()].concat();
    rig.put(BUFFERS, &zeroes);
    let large = rig.offer(13, 0, (BUFFERS, 16), false);
    let small = rig.offer(0, 23_000, (BUFFERS + 512, 512), true);
    while rig.status(small) == 0xff {
        rig.step();
    }
    assert_eq!(rig.status(large), 0xff, "the small request overtakes");
    rig.run();
    assert_eq!(rig.status(large), 0);
}

/// Two requests that take all large slots between them, and a third that needs one.
#[test]
fn no_request_starves() {
    let mut rig = Rig::new(Faults { delay_turns: 2, ..Faults::default() });
    let large: Vec<u64> =
        (0..2).map(|i| rig.offer(0, 2048 * i, (BUFFERS + (5 << 20) * i, 4 << 20), true)).collect();
    let third = rig.offer(0, 0, (BUFFERS + (10 << 20), 64 << 10), true);
    while rig.status(third) == 0xff {
        rig.step();
    }
    assert!(large.iter().all(|at| rig.status(*at) == 0xff), "it does not wait for the end of the others");
    rig.run();
}

#[test]
fn written_zeroes_read_as_zeroes_and_do_not_lie_there_as_zeroes() {
    let mut rig = Rig::new(Faults::default());
    assert_eq!(rig.write(0, &pattern(64 * 512, 9)), 0);
    for flags in [0, 1] {
        for range in [(8, 8, flags), (32, 0, flags), (40, 2, flags)] {
            assert_eq!(rig.on_ranges(13, &[range]), 0);
        }
        assert_eq!(rig.read(8, 8 * 512), (0, vec![0; 8 * 512]));
        assert_eq!(rig.read(40, 2 * 512), (0, vec![0; 2 * 512]));
    }
    let image = rig.disk.live();
    assert!(image[4096 + 8 * 512..4096 + 16 * 512].chunks(16).all(|block| block != [0; 16]));
    let (_, neighbours) = rig.read(16, 24 * 512);
    assert_eq!(neighbours, pattern(64 * 512, 9)[16 * 512..40 * 512]);
}

#[test]
fn ranges_are_all_checked_before_any_is_touched() {
    let mut rig = Rig::new(Faults::default());
    let data = pattern(16 * 512, 3);
    assert_eq!(rig.write(0, &data), 0);
    assert_eq!(rig.on_ranges(11, &[(0, 1, 0), (u64::MAX, 1, 0)]), 1);
    assert_eq!(rig.on_ranges(11, &[(0, 1, 0), (0, 1, 2)]), 2);
    assert_eq!(rig.on_ranges(11, &[(0, 1, 0); wire::MAX_RANGES + 1]), 1);
    assert_eq!(rig.on_ranges(13, &[(0, 1, 2)]), 2);
    assert_eq!(rig.on_ranges(13, &[(0, 1, 0); 2]), 1, "one range at a time, as the configuration space says");
    assert_eq!(rig.on_ranges(13, &[(0, wire::MAX_WRITE_ZEROES_SECTORS + 1, 0)]), 1);
    assert_eq!(rig.on_ranges(11, &[(0, 1, 1)]), 2, "a discard has no flags");
    assert_eq!(rig.read(0, data.len()), (0, data));
    assert_eq!(rig.on_ranges(11, &[(2, 1, 0), (4, 2, 0)]), 0);
    assert_eq!(rig.disk.counts().discards, 2);
}

#[test]
fn a_failed_read_is_an_error_and_shows_nothing() {
    let bad_ranges = std::iter::once(4096 + 8192..4096 + 8704).collect();
    let mut rig = Rig::new(Faults { bad_ranges, ..Faults::default() });
    let (status, read) = rig.read(16, 1024);
    assert_eq!((status, rig.driver.used(0)), (1, (0, 1)));
    assert!(read.iter().all(|byte| *byte == 0xa5), "nothing of a failed read reaches the guest");
    assert_eq!(rig.read(0, 1024).0, 0, "the next one is none the worse");
    rig.disk.truncate(8192);
    assert_eq!(rig.read(9, 512).0, 1, "the end of a truncated volume is no data");
    assert_eq!(rig.read(7, 1024).0, 1, "nor is what lies across it");
}

#[test]
fn a_failed_sync_fails_all_that_follow() {
    let mut rig = Rig::new(Faults { volatile_cache: true, ..Faults::default() });
    assert_eq!(rig.write(0, &pattern(512, 0)), 0);
    assert_eq!(rig.flush(), 0);
    rig.disk.set_faults(Faults { sync_failure_one_in: 1, ..Faults::default() });
    assert_eq!(rig.flush(), 1);
    rig.disk.set_faults(Faults::default());
    assert_eq!(rig.flush(), 1, "a sync that succeeds after one that failed promises nothing");
    assert_eq!(rig.write(0, &pattern(512, 1)), 0);
}

#[test]
fn without_a_write_cache_each_write_survives_at_once() {
    let mut rig = Rig::new(Faults { volatile_cache: true, ..Faults::default() });
    assert_eq!(rig.write(0, &pattern(512, 1)), 0);
    assert_ne!(rig.disk.durable(), rig.disk.live());
    rig.volume.set_writeback(false);
    assert_eq!(rig.write(0, &pattern(2048, 2)), 0);
    assert_eq!(rig.on_ranges(13, &[(64, 8, 0)]), 0);
    assert_eq!(rig.disk.durable(), rig.disk.live());
    assert_eq!(rig.disk.counts().syncs, 0, "not by syncing the whole volume");
}

#[test]
fn stopping_answers_what_was_taken_and_nothing_else() {
    let mut rig = Rig::new(Faults { delay_turns: 20, ..Faults::default() });
    let statuses: Vec<u64> = (0..8).map(|i| rig.offer(0, 8 * i, (BUFFERS + 4096 * i, 4096), true)).collect();
    rig.worker.turn().unwrap();
    let late = rig.offer(0, 0, (BUFFERS, 512), true);
    let state = rig.worker.stop_queue().unwrap();
    assert_eq!(state, Some(crate::virtio::RingState { next_available: 8 }));
    assert_eq!(rig.driver.used_index(), 8);
    assert!(statuses.iter().all(|at| rig.status(*at) == 0));
    assert_eq!(rig.status(late), 0xff);
    assert_eq!(rig.worker.stop_queue().unwrap(), None);
    let mut again = setup(&rig.driver);
    again.ring.next_available = 8;
    rig.worker.start_queue(again).unwrap();
    rig.run();
    assert_eq!(rig.status(late), 0);
}

#[test]
fn a_queue_that_is_disabled_or_gone_takes_nothing() {
    let mut rig = Rig::new(Faults::default());
    rig.worker.queue_mut().unwrap().set_enabled(false);
    let status = rig.offer(4, 0, (BUFFERS, 0), true);
    assert!(!rig.worker.turn().unwrap());
    assert_eq!(rig.status(status), 0xff);
    rig.worker.queue_mut().unwrap().set_enabled(true);
    rig.run();
    assert_eq!(rig.status(status), 0);
    rig.worker.stop_queue().unwrap();
    assert!(!rig.worker.turn().unwrap());
}

/// Random requests on a disk with every fault at once, against what the guest may rely on: a sector reads as
/// one of the versions that it can have, and only an acknowledged write narrows these down to one.
#[test]
fn no_fault_turns_into_wrong_data() {
    for seed in 0..40 {
        let mut rig = Rig::new(Faults {
            seed,
            eio_one_in: 20,
            enospc_one_in: 30,
            interrupt_one_in: 5,
            short_one_in: 3,
            delay_turns: 4,
            ..Faults::default()
        });
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut below = |limit: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % limit
        };
        // What each of the first 64 sectors may hold.
        let mut versions: Vec<Vec<Option<u8>>> = vec![vec![None]; 64];
        for round in 1..120 {
            let (first, count) = (below(56) as usize, 1 + below(8) as usize);
            let fill = round as u8 | 0x80;
            if below(2) == 0 {
                let status = rig.write(first as u64, &vec![fill; 512 * count]);
                for sector in &mut versions[first..first + count] {
                    if status == 0 {
                        sector.clear();
                    }
                    sector.push(Some(fill));
                }
                continue;
            }
            let (status, read) = rig.read(first as u64, 512 * count);
            if status != 0 {
                continue;
            }
            for (sector, bytes) in versions[first..].iter_mut().zip(read.chunks(512)) {
                // A failed write may have been torn between two 16-byte blocks of one sector.
                let known = |byte: &u8| sector.contains(&None) || sector.contains(&Some(*byte));
                assert!(
                    bytes.iter().all(known),
                    "seed {seed}, round {round}: {:x?} is none of {sector:x?}",
                    bytes[0]
                );
            }
        }
    }
}

#[test]
fn a_durable_write_that_fails_fails_the_flushes_that_follow() {
    let mut rig = Rig::new(Faults { volatile_cache: true, ..Faults::default() });
    rig.volume.set_writeback(false);
    rig.disk.set_faults(Faults { sync_failure_one_in: 1, ..Faults::default() });
    assert_eq!(rig.write(0, &pattern(512, 0)), 1);
    rig.disk.set_faults(Faults::default());
    assert_eq!(rig.flush(), 1);
}
