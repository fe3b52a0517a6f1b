//! Blocks smaller than sectors: what each request does to storage, and workers of several queues over one volume, in
//! every order of turns and completions that a seed gives, against a history of every block.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use vm_memory::{Bytes, GuestAddress};

use crate::cipher::{EqualHalves, IvMode, IvNumbering, VolumeKey, Xts};
use crate::geometry::{Geometry, SectorNumber, SectorSize};
use crate::io::PoolShape;
use crate::io::sim::{Faults, Sim, SimDisk};
use crate::virtio::virtq::tests::{DATA, Driver};
use crate::worker::*;

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const PAYLOAD_OFFSET: usize = 4096;
/// Requests of one queue that can be made at once: each has descriptors and memory of its own.
const SLOTS: u16 = 8;
const DESCRIPTORS_PER_REQUEST: u16 = 4;
const BUFFERS: u64 = DATA + 0x10000;
const BUFFER_BYTES: u64 = 256 << 10;
const UNANSWERED: u8 = 0xee;

/// A disk with sectors larger than its blocks.
#[derive(Clone, Copy, Debug)]
struct Shape {
    sector_bytes: u32,
    block_bytes: u32,
    sectors: u64,
    encrypted: bool,
}

const USUAL: Shape = Shape { sector_bytes: 4096, block_bytes: 512, sectors: 16, encrypted: true };

impl Shape {
    fn geometry(self) -> Geometry {
        Geometry {
            sector_size: SectorSize::new(self.sector_bytes).unwrap(),
            payload_offset_bytes: PAYLOAD_OFFSET as u64,
            capacity_bytes: self.sectors * u64::from(self.sector_bytes),
        }
    }

    fn xts(self) -> Option<Xts> {
        let key: Vec<u8> = (0..64).collect();
        let key = VolumeKey::new(&key, EqualHalves::Refuse).unwrap();
        let iv = IvNumbering { mode: IvMode::Plain64Be, offset_sectors: 8, large_sectors: true };
        self.encrypted.then(|| Xts::new(&key, SectorSize::new(self.sector_bytes).unwrap(), iv).unwrap())
    }

    /// What an image decrypts to.
    fn decrypted(self, image: &[u8]) -> Vec<u8> {
        let mut payload = image[PAYLOAD_OFFSET..].to_vec();
        if let Some(xts) = self.xts() {
            xts.decrypt_in_place(SectorNumber(0), &mut payload);
        }
        payload
    }
}

/// A volume on a simulated disk.
struct Served {
    shape: Shape,
    disk: SimDisk,
    volume: Arc<Volume>,
}

impl Served {
    fn new(shape: Shape, payload: &[u8], faults: Faults) -> Self {
        let geometry = shape.geometry();
        let mut image = vec![0; PAYLOAD_OFFSET];
        image.extend(payload);
        if let Some(xts) = shape.xts() {
            xts.encrypt_in_place(SectorNumber(0), &mut image[PAYLOAD_OFFSET..]);
        }
        let logical_block = SectorSize::new(shape.block_bytes).unwrap();
        let volume = Arc::new(Volume::new(geometry, shape.xts()).with_logical_block(logical_block));
        Self { shape, disk: SimDisk::new(image, faults), volume }
    }

    fn disk(&self) -> Disk {
        let logical_block = SectorSize::new(self.shape.block_bytes).unwrap();
        let view =
            DiskView { geometry: self.shape.geometry(), logical_block, read_only: false, discard: true };
        Disk { volume: Arc::clone(&self.volume), view, serial: [0; 20] }
    }

    fn payload(&self) -> Vec<u8> {
        self.shape.decrypted(&self.disk.live())
    }
}

/// One queue: the guest's side, and its worker, which runs when it is told to.
struct Queue {
    driver: Driver,
    worker: Worker<Sim>,
    /// By slot: whether its request is under way.
    busy: [bool; SLOTS as usize],
    answers_seen: u16,
    wake: OwnedFd,
    /// Nothing but a kick or its wake descriptor would end its sleep.
    asleep: bool,
}

fn descriptor() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

fn setup(driver: &Driver) -> QueueSetup {
    QueueSetup {
        index: 0,
        ring: driver.setup(false),
        memory: Arc::clone(&driver.device_memory),
        kick: descriptor(),
        call: None,
        error: None,
        enabled: true,
        tracking: None,
        log: None,
    }
}

/// Lays a request out in the memory of `slot` and makes it available.
fn offer(driver: &mut Driver, slot: u16, kind: u32, sector: u64, payload: &[u8], room: u32) {
    let at = u64::from(slot);
    let (header, status, buffer) = (DATA + 32 * at, DATA + 0x8000 + at, BUFFERS + BUFFER_BYTES * at);
    let memory = &driver.memory;
    memory
        .write_slice(&[kind.to_le_bytes(), [0; 4]].concat(), GuestAddress(header))
        .and_then(|()| memory.write_slice(&sector.to_le_bytes(), GuestAddress(header + 8)))
        .and_then(|()| memory.write_slice(payload, GuestAddress(buffer)))
        .and_then(|()| memory.write_slice(&[UNANSWERED], GuestAddress(status)))
        .unwrap();
    let (len, device_writes) = (payload.len() as u32 + room, room > 0);
    // The first part ends inside a block, and inside what the cipher takes at once.
    let first = len.min(300);
    let buffers = [
        (header, 16, false),
        (buffer, first, device_writes),
        (buffer + u64::from(first), len - first, device_writes),
        (status, 1, true),
    ];
    driver.offer_chain(slot * DESCRIPTORS_PER_REQUEST, &buffers);
}

fn segment(sector: u64, count: u64) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &(count as u32).to_le_bytes(), &[0; 4]].concat()
}

impl Queue {
    fn new(served: &Served, shape: PoolShape) -> Self {
        let driver = Driver::new((SLOTS * DESCRIPTORS_PER_REQUEST).next_power_of_two());
        let slots = SlotPool::new(shape).unwrap();
        let engine = Sim::new(served.disk.clone(), max_ops(&slots)).unwrap();
        let mut worker = Worker::new(served.disk(), engine, slots);
        let wake = descriptor();
        worker.watch_control(wake.try_clone().unwrap()).unwrap();
        worker.start_queue(setup(&driver)).unwrap();
        Self { driver, worker, busy: [false; SLOTS as usize], answers_seen: 0, wake, asleep: false }
    }

    fn offer(&mut self, slot: u16, kind: u32, sector: u64, payload: &[u8], room: u32) {
        assert!(!std::mem::replace(&mut self.busy[slot as usize], true));
        offer(&mut self.driver, slot, kind, sector, payload, room);
        self.asleep = false;
    }

    /// One turn and, if there was nothing to do, what comes before the next: a submit, or sleep. Returns whether
    /// it was awake.
    fn step(&mut self) -> bool {
        let woken = rustix::io::read(&self.wake, &mut [0; 8]).is_ok();
        if self.asleep && !woken {
            return false;
        }
        self.asleep = !self.worker.turn().unwrap() && self.worker.pieces.count() == 0;
        if !self.asleep {
            self.worker.submit(Wait::No).unwrap();
        }
        true
    }

    /// Slot, status and data of the requests that were answered since the last call.
    fn answers(&mut self) -> Vec<(u16, u8, Vec<u8>)> {
        let mut answers = Vec::new();
        while self.answers_seen != self.driver.used_index() {
            let (head, written) = self.driver.used(self.answers_seen);
            self.answers_seen = self.answers_seen.wrapping_add(1);
            let slot = head as u16 / DESCRIPTORS_PER_REQUEST;
            assert!(std::mem::take(&mut self.busy[slot as usize]), "answered once");
            let at = u64::from(slot);
            let status = self.driver.memory.read_obj(GuestAddress(DATA + 0x8000 + at)).unwrap();
            let mut data = vec![0; written as usize - 1];
            self.driver.memory.read_slice(&mut data, GuestAddress(BUFFERS + BUFFER_BYTES * at)).unwrap();
            answers.push((slot, status, data));
        }
        answers
    }

    /// One request by itself.
    fn run(&mut self, kind: u32, sector: u64, payload: &[u8], room: u32) -> (u8, Vec<u8>) {
        self.offer(0, kind, sector, payload, room);
        for _ in 0..10_000 {
            assert!(self.step(), "asleep with a request under way");
            if let Some((_, status, data)) = self.answers().pop() {
                return (status, data);
            }
        }
        panic!("not answered");
    }
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i / 512) as u8 ^ (i % 251) as u8 ^ seed).collect()
}

fn served(faults: Faults) -> (Served, Queue, Vec<u8>) {
    let payload = pattern((USUAL.sectors * 4096) as usize, 1);
    let served = Served::new(USUAL, &payload, faults);
    let queue = Queue::new(&served, PoolShape::default());
    (served, queue, payload)
}

#[test]
fn only_the_ends_of_a_write_are_read_first() {
    for (sector, count, reads, writes) in [
        (8, 8, 0, 1),
        (0, 64, 0, 1),
        (8, 1, 1, 1),
        (12, 1, 1, 1),
        (15, 1, 1, 1),
        (9, 6, 1, 1),
        (15, 2, 2, 2),
        (8, 9, 1, 2),
        (7, 9, 1, 2),
        (7, 34, 2, 3),
        (127, 1, 1, 1),
    ] {
        for kind in [WRITE, WRITE_ZEROES] {
            let (served, mut queue, mut payload) = served(Faults::default());
            let data = if kind == WRITE { pattern(count * 512, 77) } else { vec![0; count * 512] };
            let sent = if kind == WRITE { data.clone() } else { segment(sector, count as u64) };
            assert_eq!(queue.run(kind, sector, &sent, 0).0, 0);
            let counts = served.disk.counts();
            assert_eq!((counts.reads, counts.writes), (reads, writes), "{kind}: {count} blocks at {sector}");
            payload[sector as usize * 512..][..data.len()].copy_from_slice(&data);
            assert!(served.payload() == payload, "{kind}: {count} blocks at {sector}");
        }
    }
}

#[test]
fn a_read_is_one_read_wherever_it_begins() {
    let (served, mut queue, payload) = served(Faults::default());
    let mut reads = 0;
    for (sector, count) in [(0, 1), (3, 1), (7, 1), (7, 2), (8, 8), (1, 15), (9, 40), (127, 1), (0, 128)] {
        let (status, data) = queue.run(READ, sector, &[], 512 * count);
        assert_eq!(status, 0);
        assert!(data == payload[sector as usize * 512..][..data.len()], "{count} blocks at {sector}");
        reads += 1;
        assert_eq!(served.disk.counts().reads, reads, "{count} blocks at {sector}");
    }
}

#[test]
fn requests_longer_than_a_slot_go_on_at_whole_sectors() {
    let shape = Shape { sectors: 128, ..USUAL };
    let mut payload = pattern(128 * 4096, 2);
    let served = Served::new(shape, &payload, Faults { delay_turns: 2, ..Faults::default() });
    let mut queue = Queue::new(&served, PoolShape { small_count: 4, large_count: 0 });
    for (sector, count) in [(1, 511), (9, 300), (8, 33), (15, 257)] {
        let data = pattern(count * 512, sector as u8);
        assert_eq!(queue.run(WRITE, sector, &data, 0).0, 0);
        payload[sector as usize * 512..][..data.len()].copy_from_slice(&data);
        assert!(served.payload() == payload, "{count} blocks at {sector}");
        let (status, read) = queue.run(READ, sector - 1, &[], 512 * (count as u32 + 1));
        assert_eq!(status, 0);
        assert!(read == payload[(sector as usize - 1) * 512..][..read.len()], "{count} blocks at {sector}");
    }
}

#[test]
fn only_whole_sectors_are_discarded() {
    let (served, mut queue, payload) = served(Faults::default());
    for (first, count, discards) in [(1, 7, 0), (12, 8, 0), (9, 14, 0), (33, 0, 0), (15, 10, 1), (40, 16, 2)]
    {
        assert_eq!(queue.run(DISCARD, 0, &segment(first, count), 0).0, 0);
        assert_eq!(served.disk.counts().discards, discards, "{count} blocks at {first}");
    }
    let now = served.payload();
    for (block, content) in payload.chunks(512).enumerate() {
        let discarded = (16..24).contains(&block) || (40..56).contains(&block);
        assert_eq!(now[block * 512..][..512] == *content, !discarded, "block {block}");
    }
    assert_eq!(queue.run(WRITE, 17, &[9; 512], 0).0, 0, "what is there instead can be changed");
    assert_eq!(served.payload()[17 * 512..18 * 512], [9; 512]);
}

#[test]
fn a_sector_that_cannot_be_read_is_not_written() {
    let (served, mut queue, payload) = served(Faults::default());
    for writeback in [true, false] {
        served.volume.set_writeback(writeback);
        served.disk.set_faults(Faults { eio_one_in: 1, ..Faults::default() });
        assert_eq!(queue.run(WRITE, 9, &[7; 512], 0).0, 1);
        assert_eq!(queue.run(WRITE_ZEROES, 0, &segment(9, 2), 0).0, 1);
        assert_eq!(served.disk.counts().writes, 0);
        served.disk.set_faults(Faults::default());
        assert_eq!(queue.run(FLUSH, 0, &[], 0).0, 0, "a failed read says nothing about durability");
    }
    assert!(served.payload() == payload);
    assert_eq!(queue.run(WRITE, 8, &[8; 4096], 0).0, 0, "nobody holds the sector");
}

#[test]
fn a_write_that_fails_lets_go_of_its_sector() {
    let (served, mut queue, payload) = served(Faults::default());
    served.disk.set_faults(Faults { enospc_one_in: 1, ..Faults::default() });
    assert_eq!(queue.run(WRITE, 9, &[7; 1024], 0).0, 1);
    assert_eq!(served.disk.counts().reads, 1);
    served.disk.set_faults(Faults::default());
    assert!(served.payload() == payload);
    assert_eq!(queue.run(WRITE, 10, &[8; 512], 0).0, 0);
    assert_eq!(queue.run(WRITE, 8, &[8; 4096], 0).0, 0);
}

#[test]
fn a_part_is_as_durable_as_a_whole() {
    let (served, mut queue, _) = served(Faults { volatile_cache: true, ..Faults::default() });
    assert_eq!(queue.run(WRITE, 9, &[1; 512], 0).0, 0);
    assert_ne!(served.disk.durable(), served.disk.live());
    assert_eq!(queue.run(FLUSH, 0, &[], 0).0, 0);
    assert_eq!(served.disk.durable(), served.disk.live(), "a flush covers it");
    let syncs = served.disk.counts().syncs;
    served.volume.set_writeback(false);
    assert_eq!(queue.run(WRITE, 11, &[2; 512], 0).0, 0);
    assert_eq!(queue.run(WRITE_ZEROES, 0, &segment(30, 4), 0).0, 0);
    assert_eq!(served.disk.durable(), served.disk.live(), "without a cache it is durable at once");
    assert_eq!(served.disk.counts().syncs, syncs);
    served.disk.set_faults(Faults { sync_failure_one_in: 1, ..Faults::default() });
    assert_eq!(queue.run(WRITE, 9, &[3; 512], 0).0, 1);
    served.disk.set_faults(Faults::default());
    assert_eq!(queue.run(FLUSH, 0, &[], 0).0, 1, "what the failed write may have hidden is lost for good");
}

/// What storage writes as a whole, whatever the size of blocks and sectors: the history knows of these.
const UNIT_BYTES: usize = 512;

/// The content of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// What the request with this number wrote there.
    Written(u64),
    Zeroes,
    /// Nobody may rely on it.
    Discarded,
}

/// One change of a unit, from when it was made available until its answer was seen.
#[derive(Clone, Copy, Debug)]
struct Change {
    content: Content,
    began: u64,
    /// `None` while it is under way.
    ended: Option<u64>,
    succeeded: bool,
}

/// Every unit's past, from which follows what it may read as.
struct History {
    clock: u64,
    units: Vec<Vec<Change>>,
}

impl History {
    fn new(shape: Shape) -> Self {
        let initial = Change { content: Content::Written(0), began: 0, ended: Some(0), succeeded: true };
        let units = shape.geometry().capacity_bytes as usize / UNIT_BYTES;
        Self { clock: 1, units: vec![vec![initial]; units] }
    }

    fn now(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn begin(&mut self, unit: usize, content: Content) {
        let began = self.clock;
        self.units[unit].push(Change { content, began, ended: None, succeeded: false });
    }

    fn end(&mut self, unit: usize, began: u64, content: Content, succeeded: bool) {
        let ended = self.clock;
        let change = |change: &&mut Change| change.began == began && change.content == content;
        let change = self.units[unit].iter_mut().find(change).unwrap();
        (change.ended, change.succeeded) = (Some(ended), succeeded);
    }

    /// What a unit may hold for a look that began at `began` and is over now: every change that had begun by
    /// now, except where another one came after it and was through before the look.
    fn possible(&self, unit: usize, began: u64) -> Vec<Content> {
        let changes = &self.units[unit];
        let is_superseded = |change: &Change| {
            changes.iter().any(|later| {
                later.succeeded
                    && later.ended.is_some_and(|ended| ended < began)
                    && change.ended.is_some_and(|ended| ended < later.began)
            })
        };
        changes.iter().filter(|change| !is_superseded(change)).map(|change| change.content).collect()
    }

    fn bytes(unit: usize, content: Content) -> Option<Vec<u8>> {
        let words = UNIT_BYTES / 8;
        match content {
            Content::Written(number) => {
                let word = (number << 32 | unit as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                Some((0..words as u64).flat_map(|i| (word ^ i).to_le_bytes()).collect())
            }
            Content::Zeroes => Some(vec![0; UNIT_BYTES]),
            Content::Discarded => None,
        }
    }

    fn check(&self, first: usize, bytes: &[u8], began: u64, what: &str) {
        for (unit, bytes) in (first..).zip(bytes.chunks(UNIT_BYTES)) {
            let possible = self.possible(unit, began);
            let fits =
                |content: &Content| Self::bytes(unit, *content).is_none_or(|expected| expected == bytes);
            assert!(possible.iter().any(fits), "{what}: unit {unit} is none of {possible:?}");
        }
    }
}

/// A request under way, as the history has to know of it.
#[derive(Clone, Copy, Debug)]
struct UnderWay {
    kind: u32,
    /// In units.
    first: usize,
    count: usize,
    content: Content,
    began: u64,
}

/// Several queues over one volume.
struct Scene {
    served: Served,
    queues: Vec<Queue>,
    history: History,
    under_way: Vec<[Option<UnderWay>; SLOTS as usize]>,
    random: u64,
    next_number: u64,
    durable: bool,
    sync_failed: bool,
    answered: usize,
}

impl Scene {
    fn new(seed: u64, queues: usize, shape: Shape, pool: PoolShape, faults: Faults, durable: bool) -> Self {
        let history = History::new(shape);
        let payload: Vec<u8> = (0..history.units.len())
            .flat_map(|unit| History::bytes(unit, Content::Written(0)).unwrap())
            .collect();
        let served = Served::new(shape, &payload, Faults { seed, volatile_cache: true, ..faults });
        served.volume.set_writeback(!durable);
        let queues: Vec<Queue> = (0..queues).map(|_| Queue::new(&served, pool)).collect();
        Self {
            under_way: queues.iter().map(|_| [None; SLOTS as usize]).collect(),
            served,
            queues,
            history,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            next_number: 1,
            durable,
            sync_failed: false,
            answered: 0,
        }
    }

    fn below(&mut self, limit: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % limit as u64) as usize
    }

    fn offer(&mut self, queue: usize) {
        let Some(slot) = self.queues[queue].busy.iter().position(|busy| !busy) else { return };
        let shape = self.served.shape;
        let units_per_block = shape.block_bytes as usize / UNIT_BYTES;
        let blocks = self.history.units.len() / units_per_block;
        let count = if self.below(2) == 0 { 1 + self.below(2) } else { 1 + self.below(24.min(blocks)) };
        let first = self.below(blocks - count + 1) * units_per_block;
        let count = count * units_per_block;
        let kinds = [READ, READ, READ, WRITE, WRITE, WRITE, WRITE, WRITE, WRITE_ZEROES, DISCARD, FLUSH];
        let kind = kinds[self.below(kinds.len())];
        let content = match kind {
            WRITE_ZEROES => Content::Zeroes,
            DISCARD => Content::Discarded,
            _ => Content::Written(self.next_number),
        };
        self.next_number += 1;
        let began = self.history.now();
        let request = UnderWay { kind, first, count, content, began };
        for unit in self.changed(request) {
            self.history.begin(unit, content);
        }
        let (sector, payload, room) = match kind {
            READ => (first as u64, Vec::new(), (count * UNIT_BYTES) as u32),
            WRITE => {
                let bytes = |unit| History::bytes(unit, content).unwrap();
                (first as u64, (first..first + count).flat_map(bytes).collect(), 0)
            }
            FLUSH => (0, Vec::new(), 0),
            _ => (0, segment(first as u64, count as u64), 0),
        };
        self.under_way[queue][slot] = Some(request);
        self.queues[queue].offer(slot as u16, kind, sector, &payload, room);
    }

    /// The units that a request may change: of a discard those of whole sectors.
    fn changed(&self, request: UnderWay) -> std::ops::Range<usize> {
        let (first, end) = (request.first, request.first + request.count);
        let per_sector = self.served.shape.sector_bytes as usize / UNIT_BYTES;
        match request.kind {
            WRITE | WRITE_ZEROES => first..end,
            DISCARD => first.next_multiple_of(per_sector)..end / per_sector * per_sector,
            _ => 0..0,
        }
    }

    fn step(&mut self, queue: usize) -> bool {
        let awake = self.queues[queue].step();
        for (slot, status, data) in self.queues[queue].answers() {
            let request = self.under_way[queue][slot as usize].take().unwrap();
            self.history.now();
            self.answered += 1;
            self.finish(request, status, &data);
        }
        awake
    }

    fn finish(&mut self, request: UnderWay, status: u8, data: &[u8]) {
        let UnderWay { kind, first, content, began, .. } = request;
        let succeeded = status == 0;
        assert!(status <= 1);
        for unit in self.changed(request) {
            self.history.end(unit, began, content, succeeded);
        }
        self.history.now();
        match kind {
            READ if succeeded => self.history.check(first, data, began, "read"),
            FLUSH if succeeded => {
                assert!(!self.sync_failed, "a flush succeeds after one that failed");
                self.check_durable(0, self.history.units.len(), began, "flush");
            }
            FLUSH => self.sync_failed = true,
            WRITE | WRITE_ZEROES if succeeded && self.durable => {
                self.check_durable(first, request.count, self.history.clock, "durable write");
            }
            _ => {}
        }
    }

    /// What would survive a power failure has to be what a look that began at `began` may find.
    fn check_durable(&self, first: usize, count: usize, began: u64, what: &str) {
        let payload = self.served.shape.decrypted(&self.served.disk.durable());
        let range = first * UNIT_BYTES..(first + count) * UNIT_BYTES;
        self.history.check(first, &payload[range], began, what);
    }

    fn run(mut self, steps: usize) -> usize {
        for _ in 0..steps {
            let queue = self.below(self.queues.len());
            if self.below(3) == 0 {
                self.offer(queue);
            } else {
                self.step(queue);
            }
        }
        let mut idle = 0;
        while self.under_way.iter().flatten().any(Option::is_some) {
            let queue = self.below(self.queues.len());
            idle = if self.step(queue) { 0 } else { idle + 1 };
            assert!(idle < 1000, "all sleep, nobody wakes them: {:?}", self.under_way);
        }
        let began = self.history.now();
        self.history.check(0, &self.served.payload(), began, "the volume in the end");
        let image = self.served.disk.live();
        assert!(image[..PAYLOAD_OFFSET].iter().all(|byte| *byte == 0));
        for queue in &mut self.queues {
            queue.worker.stop_queue().unwrap();
        }
        self.answered
    }
}

fn scenes(seeds: std::ops::Range<u64>, queue_counts: [usize; 5], faults: Faults) {
    let few = PoolShape { small_count: 3, large_count: 0 };
    let shapes = [
        Shape { sectors: 3, ..USUAL },
        Shape { sectors: 8, ..USUAL },
        Shape { block_bytes: 2048, sectors: 6, ..USUAL },
        Shape { sector_bytes: 2048, block_bytes: 1024, sectors: 8, encrypted: true },
        Shape { sectors: 4, encrypted: false, ..USUAL },
    ];
    for seed in seeds {
        let queues = queue_counts[seed as usize / 5 % 5];
        let pool = if seed % 3 == 0 { few } else { PoolShape::default() };
        let faults = Faults { delay_turns: (seed % 7) as u32, ..faults.clone() };
        let shape = shapes[seed as usize % shapes.len()];
        let scene = Scene::new(seed, queues, shape, pool, faults, seed % 4 == 1);
        println!("seed {seed}: {queues} queues, {shape:?}");
        assert!(scene.run(600) > 30, "seed {seed}");
    }
}

#[test]
fn queues_that_change_the_same_sectors_undo_nothing_of_each_other() {
    scenes(0..150, [1, 2, 2, 4, 4], Faults { short_one_in: 3, interrupt_one_in: 9, ..Faults::default() });
}

#[test]
fn nor_do_they_when_storage_fails() {
    let faults = Faults { eio_one_in: 15, enospc_one_in: 25, short_one_in: 4, ..Faults::default() };
    scenes(1000..1150, [1, 2, 2, 4, 4], faults.clone());
    // With more queues another one's flush may succeed after the failure and before it is known.
    scenes(2000..2050, [1; 5], Faults { sync_failure_one_in: 12, ..faults });
}

/// The other queue's worker has the sector: a stop waits for it, and then answers what was taken.
#[test]
fn a_queue_that_waits_for_another_can_be_stopped() {
    let (served, mut queue, mut payload) = served(Faults { delay_turns: 50, ..Faults::default() });
    queue.offer(0, WRITE, 8, &[1; 512], 0);
    queue.worker.turn().unwrap();
    assert_eq!(queue.worker.pieces.count(), 1, "it is reading the sector");

    let mut driver = Driver::new(SLOTS * DESCRIPTORS_PER_REQUEST);
    offer(&mut driver, 0, WRITE, 9, &[2; 512], 0);
    let (disk, slots) = (served.disk(), SlotPool::new(PoolShape::default()).unwrap());
    let storage = served.disk.clone();
    let make_engine = move |slots: &SlotPool| Sim::new(storage, max_ops(slots));
    let thread = QueueThread::spawn("other".into(), disk, slots, make_engine, descriptor()).unwrap();
    // A turn comes between two commands: the request is taken before the stop.
    thread.start(setup(&driver)).unwrap().unwrap();
    let (stopped, outcome) = mpsc::channel();
    let stopping = std::thread::spawn(move || stopped.send(thread.stop().unwrap()).unwrap());
    while queue.answers().is_empty() {
        assert!(queue.step());
    }
    let state = outcome.recv_timeout(Duration::from_secs(60)).expect("the stop ends when the sector is free");
    assert_eq!(state, Some(crate::virtio::RingState { next_available: 1 }));
    stopping.join().unwrap();
    payload[8 * 512..9 * 512].fill(1);
    payload[9 * 512..10 * 512].fill(2);
    assert!(served.payload() == payload);
}

#[test]
fn a_worker_that_breaks_down_leaves_nobody_waiting() {
    let (served, mut queue, _) = served(Faults { delay_turns: 50, ..Faults::default() });
    let mut other = Queue::new(&served, PoolShape::default());
    queue.offer(0, WRITE, 8, &[1; 512], 0);
    queue.worker.turn().unwrap();
    other.offer(0, WRITE, 9, &[2; 512], 0);
    while other.step() {}
    assert!(other.answers().is_empty());
    let worker = std::panic::AssertUnwindSafe(queue.worker);
    let broken = std::panic::catch_unwind(move || {
        let _worker = worker;
        panic!("a bug");
    });
    broken.unwrap_err();
    assert!(other.step(), "it is woken");
    while other.step() {}
    assert_eq!(other.answers(), [(0, 1, Vec::new())]);
    other.worker.stop_queue().unwrap();
}
