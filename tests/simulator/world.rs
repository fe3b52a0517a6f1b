//! One guest, one disk, and the back ends that serve them one after the other, all of it decided by a seed.

use std::iter::Sum;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;

use sealblk::cipher::{EqualHalves, IvMode, IvNumbering, VolumeKey, Xts};
use sealblk::geometry::{Geometry, SectorNumber, SectorSize};
use sealblk::io::sim::{Faults, Sim, SimDisk};
use sealblk::io::{PoolShape, SlotPool};
use sealblk::virtio::DiskView;
use sealblk::worker::{Disk, Volume, Worker, max_ops};

use crate::guest::{Guest, MAX_DATA_BYTES, SLOTS, T_FLUSH, T_IN, T_OUT, T_WRITE_ZEROES};
use crate::model::{Model, Random, SECTOR_BYTES, Version};
use crate::mortal::{Died, Life, Mortal};

const SECTORS: usize = 128;
const PAYLOAD_OFFSET: usize = 4096;
const MAX_REQUEST_SECTORS: u64 = (MAX_DATA_BYTES / SECTOR_BYTES) as u64;
/// Few, so that requests have to wait for them; a request of 64 sectors needs two.
const POOL: PoolShape = PoolShape { small_count: 6, large_count: 0 };
/// More turns than any request needs.
const MAX_TURNS: usize = 100_000;

/// What happened in a world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub process_crashes: u64,
    pub power_failures: u64,
    pub answers: u64,
    /// Requests that successors found in flight.
    pub repeats: u64,
    /// Sectors that came back older than they were when the power failed.
    pub set_back: u64,
    /// Requests that failed, as they may where storage does.
    pub errors: u64,
}

impl Sum for Tally {
    fn sum<I: Iterator<Item = Self>>(tallies: I) -> Self {
        tallies.fold(Self::default(), |all, one| Self {
            process_crashes: all.process_crashes + one.process_crashes,
            power_failures: all.power_failures + one.power_failures,
            answers: all.answers + one.answers,
            repeats: all.repeats + one.repeats,
            set_back: all.set_back + one.set_back,
            errors: all.errors + one.errors,
        })
    }
}

struct Outstanding {
    kind: u32,
    sectors: Range<usize>,
    version: Version,
    /// What a flush has to make durable.
    oldest: Vec<u64>,
}

type Workers = Vec<Worker<Mortal>>;

pub struct World {
    random: Random,
    guest: Guest,
    model: Model,
    disk: SimDisk,
    key: VolumeKey,
    sector_size: SectorSize,
    write_through: bool,
    /// Whether storage may fail a request.
    may_fail: bool,
    only_power_fails: bool,
    outstanding: Vec<Vec<Option<Outstanding>>>,
    busy: Vec<bool>,
    sent: u64,
    tally: Tally,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let queues = 1 + random.below(2) as usize;
        let only_power_fails = random.one_in(3);
        let sync_failure_one_in = if random.one_in(3) { 4 } else { 0 };
        let eio_one_in = if random.one_in(4) { 40 } else { 0 };
        let faults = Faults {
            seed: random.next(),
            eio_one_in,
            sync_failure_one_in,
            interrupt_one_in: if random.one_in(2) { 6 } else { 0 },
            short_one_in: if random.one_in(2) { 4 } else { 0 },
            delay_turns: random.below(6) as u32,
            volatile_cache: true,
            ..Faults::default()
        };
        let sector_size =
            [SectorSize::BYTES_512, SectorSize::new(4096).expect("a size")][random.below(2) as usize];
        let key: Vec<u8> = (0..64).collect();
        let key = VolumeKey::new(&key, EqualHalves::Refuse).expect("a key");
        let mut content: Vec<u8> = (0..SECTORS).flat_map(|sector| Version::FIRST.bytes(sector)).collect();
        xts(&key, sector_size).encrypt_in_place(SectorNumber(0), &mut content);
        content.splice(0..0, [0xee; PAYLOAD_OFFSET]);
        Self {
            guest: Guest::new(queues, 65_500),
            model: Model::new(SECTORS),
            disk: SimDisk::new(content, faults),
            key,
            sector_size,
            write_through: random.one_in(3),
            may_fail: eio_one_in > 0 || sync_failure_one_in > 0,
            only_power_fails,
            outstanding: (0..queues).map(|_| (0..SLOTS).map(|_| None).collect()).collect(),
            busy: vec![false; SECTORS],
            sent: 0,
            tally: Tally::default(),
            random,
        }
    }

    /// So many lives and deaths, and then one life that ends well.
    pub fn run(mut self, crashes: u64) -> Tally {
        for _ in 0..crashes {
            let calls = match self.random.below(4) {
                0 => self.random.below(12),
                _ => self.random.below(400),
            };
            self.live_and_die(calls as u32);
            // What was answered may have been noticed before the end, or not.
            if self.random.one_in(2) {
                self.take_answers();
            }
            if self.only_power_fails || self.random.one_in(3) {
                self.power_fails();
            } else {
                self.tally.process_crashes += 1;
                self.tally.repeats += self.guest.in_flight() as u64;
            }
        }
        self.end_well();
        self.tally.set_back = self.model.set_back;
        self.tally
    }

    /// A process that takes over, for as long as it lives.
    fn workers(&mut self, life: &Rc<Life>) -> Workers {
        let geometry = Geometry {
            sector_size: self.sector_size,
            payload_offset_bytes: PAYLOAD_OFFSET as u64,
            capacity_bytes: (SECTORS * SECTOR_BYTES) as u64,
        };
        let logical_block = SectorSize::BYTES_512;
        let volume = Volume::new(geometry, Some(xts(&self.key, self.sector_size)));
        let volume = Arc::new(volume.with_logical_block(logical_block));
        volume.set_writeback(!self.write_through);
        volume.keep_note_in(self.guest.region());
        let view = DiskView { geometry, logical_block, read_only: false, discard: false };
        let workers = self.outstanding.iter().map(|_| {
            let slots = SlotPool::new(POOL).expect("memory for slots");
            let engine = Sim::new(self.disk.clone(), max_ops(&slots)).expect("an engine");
            let engine = Mortal::new(engine, life);
            Worker::new(Disk { volume: Arc::clone(&volume), view, serial: [0; 20] }, engine, slots)
        });
        workers.collect()
    }

    fn start(&mut self, workers: &mut Workers) {
        for (queue, worker) in workers.iter_mut().enumerate() {
            worker.start_queue(self.guest.setup(queue)).expect("a valid ring");
        }
    }

    /// Serves the guest until the process dies after so many calls of its engines.
    fn live_and_die(&mut self, calls: u32) {
        let life = Life::of_calls(calls, self.guest.region());
        let mut workers = self.workers(&life);
        let live = AssertUnwindSafe(|| {
            // Moved in here, so that they go down with the process.
            let mut workers = std::mem::take(&mut workers);
            self.start(&mut workers);
            loop {
                if self.random.one_in(3) {
                    self.send();
                }
                if self.random.one_in(40) {
                    // All queues at once: storage may fail one of them.
                    (0..self.outstanding.len()).for_each(|queue| self.send_to(queue, Some(T_FLUSH)));
                }
                self.turn(&mut workers);
                if self.random.one_in(3) {
                    self.take_answers();
                }
                if self.random.one_in(200) {
                    // Between two turns.
                    life.end();
                }
            }
        });
        let Err(end) = catch_unwind(live);
        if !end.is::<Died>() {
            resume_unwind(end);
        }
        life.bury();
    }

    fn turn(&mut self, workers: &mut Workers) {
        let queue = self.random.below(workers.len() as u64) as usize;
        workers[queue].turn().expect("a simulated engine does not break down");
    }

    /// The machine goes down and comes back with what its disk has kept.
    fn power_fails(&mut self) {
        self.tally.power_failures += 1;
        self.disk.crash();
        let disk = self.plaintext(self.disk.durable());
        self.model.power_failed(&disk);
        self.guest.boot([0, 65_530][self.random.below(2) as usize]);
        self.outstanding.iter_mut().flatten().for_each(|slot| *slot = None);
        self.busy.fill(false);
    }

    fn plaintext(&self, mut disk: Vec<u8>) -> Vec<u8> {
        let mut payload = disk.split_off(PAYLOAD_OFFSET);
        assert!(disk.iter().all(|byte| *byte == 0xee), "the area before the payload was written");
        xts(&self.key, self.sector_size).decrypt_in_place(SectorNumber(0), &mut payload);
        payload
    }

    /// Everything is answered in the end, and the disk holds what the guest knows.
    fn end_well(&mut self) {
        let life = Life::of_calls(u32::MAX, self.guest.region());
        let mut workers = self.workers(&life);
        self.start(&mut workers);
        let mut turns = 0;
        while self.outstanding.iter().flatten().any(Option::is_some) {
            self.turn(&mut workers);
            self.take_answers();
            turns += 1;
            if turns == MAX_TURNS {
                // Dropped in the course of a panic, they do not complain of what they have under way.
                let _workers = workers;
                panic!("a request was never answered");
            }
        }
        for worker in &mut workers {
            worker.stop_queue().expect("a simulated engine does not break down");
        }
        assert_eq!(self.guest.in_flight(), 0, "what has ended is not in flight");
        let disk = self.plaintext(self.disk.live());
        self.model.check_live(0..SECTORS, &disk);
    }

    /// The guest sends a request to some queue.
    fn send(&mut self) {
        let queue = self.random.below(self.outstanding.len() as u64) as usize;
        self.send_to(queue, None);
    }

    /// The guest sends a request, of any kind if none is given, if it has a slot and the sectors are free.
    fn send_to(&mut self, queue: usize, kind: Option<u32>) {
        const KINDS: [u32; 8] = [T_OUT, T_OUT, T_OUT, T_OUT, T_IN, T_IN, T_WRITE_ZEROES, T_FLUSH];
        let Some(slot) = self.outstanding[queue].iter().position(Option::is_none) else { return };
        let kind = kind.unwrap_or_else(|| KINDS[self.random.below(8) as usize]);
        let first = self.random.below(SECTORS as u64) as usize;
        let most = if self.random.one_in(8) { MAX_REQUEST_SECTORS } else { 10 };
        let most = 1 + self.random.below(most) as usize;
        let free = (first..SECTORS).take(most).take_while(|sector| !self.busy[*sector]).count();
        let sectors = if kind == T_FLUSH { 0..0 } else { first..first + free };
        if kind != T_FLUSH && free == 0 {
            return;
        }
        self.sent += 1;
        let version = Version { number: self.sent, zeroes: kind == T_WRITE_ZEROES };
        let (mut data, mut room, mut oldest) = (Vec::new(), 0, Vec::new());
        match kind {
            T_OUT => data = sectors.clone().flat_map(|sector| version.bytes(sector)).collect(),
            T_IN => room = free * SECTOR_BYTES,
            T_WRITE_ZEROES => {
                data = [&(first as u64).to_le_bytes()[..], &(free as u32).to_le_bytes(), &[0; 4]].concat();
            }
            _ => oldest = self.model.to_flush(),
        }
        if matches!(kind, T_OUT | T_WRITE_ZEROES) {
            self.model.sent(sectors.clone(), version);
        }
        self.busy[sectors.clone()].fill(true);
        let sector = if matches!(kind, T_OUT | T_IN) { first as u64 } else { 0 };
        self.guest.send(queue, slot, kind, sector, &data, room);
        self.outstanding[queue][slot] = Some(Outstanding { kind, sectors, version, oldest });
    }

    /// The guest takes the answers that are there, and checks them.
    fn take_answers(&mut self) {
        for queue in 0..self.outstanding.len() {
            while let Some(answer) = self.guest.take_answer(queue) {
                let request = self.outstanding[queue][answer.slot].take();
                let Outstanding { kind, sectors, version, oldest } =
                    request.unwrap_or_else(|| panic!("a request was answered twice"));
                self.tally.answers += 1;
                self.busy[sectors.clone()].fill(false);
                let succeeded = answer.status == 0;
                assert!(succeeded || (answer.status == 1 && self.may_fail), "status {}", answer.status);
                self.tally.errors += u64::from(!succeeded);
                match kind {
                    T_OUT | T_WRITE_ZEROES => {
                        self.model.answered(sectors, version, succeeded, self.write_through);
                    }
                    T_IN if succeeded => {
                        let len = sectors.len() * SECTOR_BYTES;
                        assert_eq!(answer.used_bytes, len + 1);
                        self.model.check_live(sectors, &self.guest.data(queue, answer.slot, len));
                    }
                    T_FLUSH if succeeded => self.model.flushed(&oldest),
                    _ => {}
                }
            }
        }
    }
}

fn xts(key: &VolumeKey, sector_size: SectorSize) -> Xts {
    let iv = IvNumbering { mode: IvMode::Plain64, offset_sectors: 0, large_sectors: false };
    Xts::new(key, sector_size, iv).expect("a cipher")
}
