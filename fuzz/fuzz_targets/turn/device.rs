//! Runs a script: the worker under test between the driver and the model.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use sealblk::cipher::{EqualHalves, IvMode, IvNumbering, VolumeKey, Xts};
use sealblk::geometry::{Geometry, SectorNumber, SectorSize};
use sealblk::io::sim::{Faults, Sim, SimDisk};
use sealblk::io::{PoolShape, SlotPool};
use sealblk::virtio::wire::{MAX_RANGES, MAX_WRITE_ZEROES_RANGES, Status};
use sealblk::virtio::{DiskView, RingState};
use sealblk::worker::{Disk, QueueSetup, Volume, Worker, max_ops};

use crate::driver::{Answer, Buffer, Cuts, Driver, scribble_address};
use crate::model::{INITIAL, Model, Observation, ZEROES};
use crate::script::{FaultPlan, Operation, Place, RequestPlan, Segment, Setup, Step};

const CAPACITY_BYTES: usize = 48 << 10;
/// What lies on the volume before and behind the payload, and has to stay.
const MARGIN_BYTES: usize = 4096;
const MARGIN: u8 = 0xa5;
const SERIAL: &[u8; 20] = b"fuzzed\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
/// No status that a device may give.
const UNANSWERED: u8 = 0xee;
/// More turns than any delay adds up to.
const TURNS_MAX: usize = 4000;

const TYPE_READ: u32 = 0;
const TYPE_WRITE: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;
const TYPE_WRITE_ZEROES: u32 = 13;
const TYPES: [u32; 6] = [TYPE_READ, TYPE_WRITE, TYPE_FLUSH, TYPE_GET_ID, TYPE_DISCARD, TYPE_WRITE_ZEROES];

/// A request that was made available and is not answered.
#[derive(Debug)]
struct InFlight {
    expected: Expected,
    effect: Effect,
    data: Vec<Buffer>,
    status_address: u64,
    writable_bytes: u64,
}

/// The status that a request has to get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// Success, unless the storage fails.
    Success,
    /// Refused, with this status.
    Refused(Status),
    /// Its framing is wrong: anything but harm.
    Anything,
}

/// What a request does to the disk, or finds there.
#[derive(Debug)]
enum Effect {
    None,
    Read(Observation),
    Write { ranges: Vec<Range<usize>>, version: Option<u32> },
    Flush(Observation),
    GetId,
}

pub struct Device {
    worker: Worker<Sim>,
    disk: SimDisk,
    driver: Driver,
    model: Model,
    xts: Option<Xts>,
    view: DiskView,
    writethrough: bool,
    storage_fails: bool,
    sync_failed: bool,
    enabled: bool,
    /// The rings were overwritten: only the promises that hold for any guest are left.
    scribbled: bool,
    in_flight: BTreeMap<u16, InFlight>,
    next_version: u32,
    kick: OwnedFd,
    call: OwnedFd,
}

impl Device {
    pub fn new(setup: &Setup) -> Self {
        let doublings = setup.sector_sizes % 4;
        let block_bytes = 512 << (doublings - doublings.min(setup.sector_sizes / 4 % 4));
        let logical_block = SectorSize::new(block_bytes).expect("one of four sizes");
        let geometry = Geometry {
            sector_size: SectorSize::new(512 << doublings).expect("one of four sizes"),
            payload_offset_bytes: MARGIN_BYTES as u64,
            capacity_bytes: CAPACITY_BYTES as u64,
        };
        let model = Model::new(CAPACITY_BYTES / block_bytes as usize, block_bytes as usize);
        let cipher = || setup.encrypted.then(|| xts(setup, geometry.sector_size));
        let xts = cipher();
        let disk = make_disk(&model, xts.as_ref(), faults(&setup.faults));
        let volume = Volume::new(geometry, cipher()).with_logical_block(logical_block);
        volume.set_writeback(!setup.writethrough);
        let read_only = setup.read_only.happens();
        let view = DiskView { geometry, logical_block, read_only, discard: setup.discard };
        let shape = PoolShape { small_count: usize::from(setup.small_slots % 4) + 1, large_count: 0 };
        let slots = SlotPool::new(shape).expect("memory for slots");
        let engine = Sim::new(disk.clone(), max_ops(&slots)).expect("an engine");
        let worker = Worker::new(Disk { volume: Arc::new(volume), view, serial: *SERIAL }, engine, slots);
        let plan = &setup.faults;
        let fails = [plan.eio, plan.enospc, plan.sync_failure, plan.power_lasts, plan.space];
        let mut device = Self {
            worker,
            disk,
            driver: Driver::new(setup.ring_doublings % 6, setup.first_index, setup.event_idx, true),
            model,
            xts,
            view,
            writethrough: setup.writethrough,
            storage_fails: fails.iter().any(|rate| *rate > FAULTS_FROM),
            sync_failed: false,
            enabled: true,
            scribbled: false,
            in_flight: BTreeMap::new(),
            next_version: INITIAL + 1,
            kick: eventfd(0, EventfdFlags::NONBLOCK).expect("a descriptor"),
            call: eventfd(0, EventfdFlags::NONBLOCK).expect("a descriptor"),
        };
        device.start(setup.first_index);
        device
    }

    fn start(&mut self, next_available: u16) {
        let duplicate = |fd: &OwnedFd| fd.try_clone().expect("a descriptor");
        let setup = QueueSetup {
            index: 0,
            ring: self.driver.setup(next_available),
            memory: self.driver.ram.map(),
            kick: duplicate(&self.kick),
            call: Some(duplicate(&self.call)),
            error: None,
            enabled: self.enabled,
            tracking: None,
            log: None,
        };
        self.worker.start_queue(setup).expect("a sane ring");
        // Somebody may have missed a notification: one too many is of no consequence.
        let _ = rustix::io::read(&self.call, &mut [0; 8]);
    }

    pub fn run(mut self, steps: &[Step]) {
        for step in steps {
            match step {
                Step::Request(plan) => self.request(plan),
                Step::RequestAndTurn(plan) => {
                    self.request(plan);
                    self.turn(true);
                }
                Step::Turn(wants_notification) => self.turn(*wants_notification),
                Step::Drain => self.drain(),
                Step::Sleep => self.sleep(),
                Step::Restart => self.restart(),
                Step::Disable(seldom) => self.enable(!seldom.happens()),
                Step::BadHead(head) => self.bad_head(*head),
                Step::Scribble(seldom, position, bytes) if seldom.happens() => {
                    self.scribble(*position, bytes)
                }
                Step::Scribble(..) => {}
            }
        }
        self.drain();
        self.restart();
        let image = self.disk.live();
        let margin = [MARGIN; MARGIN_BYTES];
        assert!(image[..MARGIN_BYTES] == margin, "the volume before the payload was changed");
        assert!(
            image[MARGIN_BYTES + CAPACITY_BYTES..] == margin,
            "the volume behind the payload was changed"
        );
    }

    fn turn(&mut self, wants_notification: bool) {
        let before = self.driver.used_index();
        if !self.scribbled {
            self.driver.want_notification(wants_notification);
        }
        if !self.worker.turn().expect("the engine works") {
            self.wait();
        }
        if self.scribbled {
            return;
        }
        let answered = self.driver.used_index() != before;
        let notified = rustix::io::read(&self.call, &mut [0; 8]).is_ok();
        assert_eq!(notified, answered && wants_notification, "notified: {notified}, answered: {answered}");
        self.take_answers();
        if self.enabled {
            self.driver.oldest_entry = self.driver.available_index;
        }
    }

    fn drain(&mut self) {
        self.enable(true);
        // There is no telling what it should answer when the rings are nonsense; it must not break.
        let turns = if self.scribbled { 64 } else { TURNS_MAX };
        for _ in 0..turns {
            self.turn(true);
            if !self.scribbled && self.in_flight.is_empty() {
                return self.driver.check_memory();
            }
        }
        assert!(self.scribbled, "not answered after {TURNS_MAX} turns: {:?}", self.in_flight);
    }

    /// The worker sleeps, which a kick ends if nothing else does.
    fn wait(&mut self) {
        rustix::io::write(&self.kick, &1u64.to_ne_bytes()).expect("a kick");
        self.worker.sleep().expect("the engine works");
    }

    /// The worker goes to sleep with nothing to do. Before that it has to ask for a kick.
    fn sleep(&mut self) {
        if self.scribbled {
            return;
        }
        self.drain();
        self.wait();
        if let Some(event) = self.driver.available_event() {
            assert_eq!(event, self.driver.available_index, "the next request needs a kick");
        }
    }

    fn enable(&mut self, enabled: bool) {
        self.enabled = enabled;
        self.worker.queue_mut().expect("it runs").set_enabled(enabled);
    }

    fn restart(&mut self) {
        let state = self.worker.stop_queue().expect("the engine works").expect("it ran");
        let RingState { next_available } = state;
        let _ = rustix::io::read(&self.call, &mut [0; 8]);
        if !self.scribbled {
            self.take_answers();
            let mut left: Vec<u16> = self.driver.heads_from(next_available);
            left.retain(|head| *head < self.driver.size);
            left.sort_unstable();
            left.dedup();
            let in_flight: Vec<u16> = self.in_flight.keys().copied().collect();
            assert_eq!(left, in_flight, "what was taken is answered, the rest is left in the ring");
            self.driver.oldest_entry = next_available;
        }
        self.start(next_available);
    }

    fn bad_head(&mut self, head: u16) {
        if head >= self.driver.size && self.driver.has_room() && !self.scribbled {
            self.driver.make_available(head);
        }
    }

    fn scribble(&mut self, position: u16, bytes: &[u8]) {
        self.scribbled = true;
        self.driver.ram.write(scribble_address(position), bytes);
    }

    fn request(&mut self, plan: &RequestPlan) {
        let buffers_max = self.driver.buffers_max(plan);
        if self.scribbled || !self.driver.has_room() || buffers_max < 2 {
            return;
        }
        let (expected, effect) = self.judge(&plan.operation);
        let version = self.next_version;
        let mut readable = self.header(&plan.operation);
        readable.extend(self.payload(&plan.operation, version));
        let Some([readable_buffers, writable_buffers]) = self.lay_out(plan, buffers_max, readable.len())
        else {
            return;
        };
        let mut done = 0;
        for buffer in &readable_buffers {
            let part = &readable[done..done + buffer.len_bytes as usize];
            self.driver.store(buffer.address, part);
            done += part.len();
        }
        let last = writable_buffers.iter().rfind(|buffer| buffer.len_bytes > 0).expect("the status byte");
        let status_address = last.address + u64::from(last.len_bytes) - 1;
        self.driver.store(status_address, &[UNANSWERED]);

        let is_flawed = plan.is_flawed.happens();
        let expected = if is_flawed { Expected::Anything } else { expected };
        let effect = if is_flawed { self.worst_effect(&plan.operation) } else { effect };
        let writable_bytes = writable_buffers.iter().map(|buffer| u64::from(buffer.len_bytes)).sum();
        let buffers = [readable_buffers, writable_buffers.clone()].concat();
        let head = self.driver.place_chain(plan, buffers);
        self.begin_effect(&effect);
        self.next_version += 1;
        let is_slow = expected == Expected::Success
            && matches!(plan.operation, Operation::Read(_) | Operation::Write(_))
            && !matches!(&effect, Effect::Read(Observation { sectors, .. }) if sectors.is_empty())
            && !matches!(&effect, Effect::Write { ranges, .. } if ranges.iter().all(Range::is_empty));
        let request = InFlight { expected, effect, data: writable_buffers, status_address, writable_bytes };
        self.in_flight.insert(head, request);
        self.driver.make_available(head);
        if plan.twice.happens() && is_slow && self.driver.has_room() {
            self.driver.make_available(head);
        }
    }

    /// Buffers for both directions of a request, `None` when there is no memory or no descriptor left.
    fn lay_out(
        &mut self,
        plan: &RequestPlan,
        buffers_max: usize,
        readable: usize,
    ) -> Option<[Vec<Buffer>; 2]> {
        let writable = match &plan.operation {
            Operation::Read(place) => self.bytes_of(place).1 as usize,
            Operation::GetId(len) => usize::from(*len),
            _ => 0,
        } + 1;
        let half = buffers_max / 2;
        if half == 1 && plan.empty_buffers {
            return None;
        }
        let readable = self.driver.allocate(readable, false, &mut Cuts::new(plan, half))?;
        let writable = self.driver.allocate(writable, true, &mut Cuts::new(plan, half))?;
        Some([readable, writable])
    }

    /// Offset and length in bytes.
    fn bytes_of(&self, place: &Place) -> (u64, u64) {
        let sectors = (CAPACITY_BYTES / 512) as u64 + 16;
        let (mut offset, mut len) =
            (u64::from(place.sector) % sectors * 512, u64::from(place.sector_count) * 512);
        if !place.unaligned.happens() {
            offset -= offset % self.model.sector_bytes as u64;
            len -= len % self.model.sector_bytes as u64;
        }
        (offset, len)
    }

    /// The sectors of a place, or `None` when it is not one.
    fn sectors_of(&self, (offset, len): (u64, u64)) -> Option<Range<usize>> {
        let sector_bytes = self.model.sector_bytes as u64;
        let is_whole = offset.is_multiple_of(sector_bytes) && len.is_multiple_of(sector_bytes);
        let range = (offset / sector_bytes) as usize..((offset + len) / sector_bytes) as usize;
        (is_whole && offset + len <= self.model.capacity_bytes() as u64).then_some(range)
    }

    /// What a well-framed request has to come to.
    fn judge(&self, operation: &Operation) -> (Expected, Effect) {
        let refused = |status| (Expected::Refused(status), Effect::None);
        match operation {
            Operation::Read(place) => match self.sectors_of(self.bytes_of(place)) {
                Some(sectors) => (Expected::Success, Effect::Read(self.model.observe(sectors))),
                None => refused(Status::IoError),
            },
            Operation::Write(place) => match self.sectors_of(self.bytes_of(place)) {
                Some(sectors) if !self.view.read_only => {
                    let version = Some(self.next_version);
                    (Expected::Success, Effect::Write { ranges: vec![sectors], version })
                }
                _ => refused(Status::IoError),
            },
            Operation::Flush if self.sync_failed => refused(Status::IoError),
            Operation::Flush => (Expected::Success, Effect::Flush(self.model.observe(self.model.all()))),
            Operation::GetId(_) => (Expected::Success, Effect::GetId),
            Operation::Discard(_) if !self.view.discard => refused(Status::Unsupported),
            Operation::Discard(_) => self.judge_segments(operation.segments(), MAX_RANGES, 0, None),
            Operation::WriteZeroes(..) => {
                self.judge_segments(operation.segments(), MAX_WRITE_ZEROES_RANGES, 1, Some(ZEROES))
            }
            Operation::Other(_) => refused(Status::Unsupported),
        }
    }

    fn judge_segments(
        &self,
        segments: &[Segment],
        segments_max: usize,
        flags: u32,
        version: Option<u32>,
    ) -> (Expected, Effect) {
        let refused = |status| (Expected::Refused(status), Effect::None);
        if self.view.read_only || segments.is_empty() || segments.len() > segments_max {
            return refused(Status::IoError);
        }
        let mut ranges = Vec::new();
        for segment in segments {
            if segment.flags() & !flags != 0 {
                return refused(Status::Unsupported);
            }
            match self.sectors_of(self.bytes_of(&segment.place)) {
                Some(_) if segment.enormous.happens() => return refused(Status::IoError),
                // Parts of encryption sectors are left alone by a discard.
                Some(range) if version.is_none() => ranges.push(self.whole_encryption_sectors(range)),
                Some(range) => ranges.push(range),
                None => return refused(Status::IoError),
            }
        }
        (Expected::Success, Effect::Write { ranges, version })
    }

    /// The guest's sectors per encryption sector.
    fn blocks_per_sector(&self) -> usize {
        self.view.geometry.sector_size.bytes() as usize / self.model.sector_bytes
    }

    /// Those of the guest's sectors in `range` whose encryption sector is in it as a whole.
    fn whole_encryption_sectors(&self, range: Range<usize>) -> Range<usize> {
        let per_sector = self.blocks_per_sector();
        let start = range.start.next_multiple_of(per_sector);
        start..start.max(range.end / per_sector * per_sector)
    }

    /// The most that a badly framed request may do.
    fn worst_effect(&self, operation: &Operation) -> Effect {
        let changes =
            matches!(operation, Operation::Write(_) | Operation::WriteZeroes(..) | Operation::Discard(_));
        if changes && !self.view.read_only {
            // A cut-off list of segments, or a write of less than was meant.
            return Effect::Write { ranges: vec![self.model.all()], version: None };
        }
        Effect::None
    }

    fn begin_effect(&mut self, effect: &Effect) {
        let Effect::Write { ranges, .. } = effect else { return };
        for range in ranges {
            let observations = self.in_flight.values_mut().filter_map(|request| match &mut request.effect {
                Effect::Read(observation) | Effect::Flush(observation) => Some(observation),
                _ => None,
            });
            self.model.begin_write(range.clone(), observations);
        }
    }

    fn header(&self, operation: &Operation) -> Vec<u8> {
        let (kind, sector) = match operation {
            Operation::Read(place) => (TYPE_READ, self.bytes_of(place).0 / 512),
            Operation::Write(place) => (TYPE_WRITE, self.bytes_of(place).0 / 512),
            Operation::Flush => (TYPE_FLUSH, 0),
            Operation::GetId(_) => (TYPE_GET_ID, 0),
            Operation::Discard(_) => (TYPE_DISCARD, 0),
            Operation::WriteZeroes(..) => (TYPE_WRITE_ZEROES, 0),
            Operation::Other(kind) if TYPES.contains(kind) => (u32::MAX, 0),
            Operation::Other(kind) => (*kind, 0),
        };
        [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
    }

    fn payload(&self, operation: &Operation, version: u32) -> Vec<u8> {
        match operation {
            Operation::Write(place) => {
                let (offset, len) = self.bytes_of(place);
                match self.sectors_of((offset, len)) {
                    Some(sectors) => self.model.content(sectors, version),
                    None => vec![0x77; len as usize],
                }
            }
            Operation::Discard(_) | Operation::WriteZeroes(..) => {
                operation.segments().iter().flat_map(|segment| self.segment_bytes(segment)).collect()
            }
            _ => Vec::new(),
        }
    }

    fn segment_bytes(&self, segment: &Segment) -> [u8; 16] {
        let (offset, len) = self.bytes_of(&segment.place);
        let sector_count = if segment.enormous.happens() { u32::MAX } else { (len / 512) as u32 };
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&(offset / 512).to_le_bytes());
        bytes[8..12].copy_from_slice(&sector_count.to_le_bytes());
        bytes[12..].copy_from_slice(&segment.flags().to_le_bytes());
        bytes
    }

    fn take_answers(&mut self) {
        for Answer { head, written_bytes } in self.driver.take_answers() {
            let number = u16::try_from(head).expect("a head is one of the ring's");
            let request = self.in_flight.remove(&number);
            let request = request.unwrap_or_else(|| panic!("head {head} is not in flight"));
            self.driver.free_chain(number);
            self.check_answer(request, written_bytes);
        }
    }

    fn check_answer(&mut self, request: InFlight, written_bytes: u32) {
        let status = self.driver.ram.read(request.status_address, 1)[0];
        let succeeded = status == Status::Ok as u8;
        match request.expected {
            Expected::Success => {
                assert!(
                    succeeded || (self.storage_fails && status == Status::IoError as u8),
                    "{status}: {request:?}"
                );
                let data_bytes = match request.effect {
                    Effect::Read(_) if succeeded => request.writable_bytes - 1,
                    Effect::GetId if succeeded => (request.writable_bytes - 1).min(SERIAL.len() as u64),
                    _ => 0,
                };
                assert_eq!(u64::from(written_bytes), data_bytes + 1, "used length of {request:?}");
            }
            Expected::Refused(refused) => {
                assert_eq!((status, written_bytes), (refused as u8, 1), "{request:?}");
            }
            Expected::Anything => {}
        }
        self.end_effect(request, succeeded);
    }

    fn end_effect(&mut self, request: InFlight, succeeded: bool) {
        match request.effect {
            Effect::Read(observation) if succeeded => {
                let content = self.read_data(&request.data);
                self.model.check(&observation, &content[..content.len() - 1], "read");
            }
            Effect::GetId if succeeded => {
                let content = self.read_data(&request.data);
                let len = SERIAL.len().min(content.len() - 1);
                assert_eq!(content[..len], SERIAL[..len]);
            }
            Effect::Flush(observation) if succeeded => self.check_durable(&observation, "flush"),
            Effect::Flush(_) => self.sync_failed = true,
            Effect::Write { ranges, version } => {
                // A failed durable write may be the only report of a lost one before it. A discard is not durable.
                self.sync_failed |= self.writethrough && !succeeded && version.is_some();
                for range in ranges {
                    self.model.end_write(range.clone(), version.filter(|_| succeeded));
                    // A discard promises nothing, durable or not.
                    if self.writethrough && succeeded && version.is_some() {
                        self.check_durable(&self.model.observe(range), "write-through");
                    }
                }
            }
            Effect::None | Effect::Read(_) | Effect::GetId => {}
        }
    }

    fn read_data(&self, buffers: &[Buffer]) -> Vec<u8> {
        buffers
            .iter()
            .flat_map(|buffer| self.driver.ram.read(buffer.address, buffer.len_bytes as usize))
            .collect()
    }

    /// Checks that what was observed would survive a power failure.
    fn check_durable(&self, observation: &Observation, what: &str) {
        let (per_sector, bytes) = (self.blocks_per_sector(), self.model.sector_bytes);
        let Range { start, end } = observation.sectors;
        let (first, behind) = (start / per_sector * per_sector, end.next_multiple_of(per_sector));
        let mut content = self.disk.durable()[MARGIN_BYTES..][first * bytes..behind * bytes].to_vec();
        if let Some(xts) = &self.xts {
            xts.decrypt_in_place(SectorNumber((first * bytes / 512) as u64), &mut content);
        }
        let observed = &content[(start - first) * bytes..(end - first) * bytes];
        self.model.check(observation, observed, what);
    }
}

/// The fast and simple key of a disk that guards nothing.
fn xts(setup: &Setup, sector_size: SectorSize) -> Xts {
    let bytes: Vec<u8> = (0..if setup.long_key { 64 } else { 32 }).collect();
    let key = VolumeKey::new(&bytes, EqualHalves::Refuse).expect("a key of the right length");
    let iv = IvNumbering { mode: IvMode::Plain64, offset_sectors: 0, large_sectors: false };
    Xts::new(&key, sector_size, iv).expect("a sane cipher")
}

/// A disk of version [`INITIAL`] between two margins.
fn make_disk(model: &Model, xts: Option<&Xts>, faults: Faults) -> SimDisk {
    let mut payload = model.content(model.all(), INITIAL);
    if let Some(xts) = xts {
        xts.encrypt_in_place(SectorNumber(0), &mut payload);
    }
    let margin = [MARGIN; MARGIN_BYTES];
    SimDisk::new([&margin, payload.as_slice(), &margin].concat(), faults)
}

/// A fault happens only above this, so that most disks are sound in most respects.
const FAULTS_FROM: u8 = 235;

fn faults(plan: &FaultPlan) -> Faults {
    let rate = |value: u8, most_often: u32| match value.checked_sub(FAULTS_FROM) {
        None | Some(0) => 0,
        Some(rareness) => u32::from(rareness) + most_often - 1,
    };
    let calls = |value: u8| (value > FAULTS_FROM).then(|| u64::from(value - FAULTS_FROM));
    Faults {
        seed: plan.seed,
        eio_one_in: rate(plan.eio, 1),
        enospc_one_in: rate(plan.enospc, 1),
        sync_failure_one_in: rate(plan.sync_failure, 1),
        // Seldom enough that an engine never runs out of patience.
        interrupt_one_in: rate(plan.interrupt, 16),
        short_one_in: rate(plan.short, 1),
        delay_turns: u32::from(plan.delay_turns % 8),
        volatile_cache: true,
        power_lasts_calls: calls(plan.power_lasts),
        space_bytes: calls(plan.space).map(|kib| kib * 1024),
        ..Faults::default()
    }
}
