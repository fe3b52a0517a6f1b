//! Random work through drivers that other people wrote, against a model in memory.

use std::time::{Duration, Instant};

use crate::harness::driver::*;
use crate::harness::*;

/// Requests in flight on each queue.
const DEPTH: usize = 8;
/// Largest request, and size of a slot's buffer.
const SLOT_BYTES: usize = 128 << 10;
/// The part of the disk that one slot works on, alone.
const AREA_BYTES: usize = 512 << 10;
const DURATION: Duration = Duration::from_millis(1500);

/// What the disk must hold. Discarded sectors hold nothing that one could rely on.
struct Model {
    bytes: Vec<u8>,
    known: Vec<bool>,
}

/// One slot: at most one request in flight, inside an area of its own.
struct Worker {
    slot: usize,
    in_flight: Option<Op>,
}

impl Model {
    fn record(&mut self, op: Op, written: &[u8]) {
        match op {
            Op::Write { offset, len } => self.set(offset, len, |i| written[i], true),
            Op::Zero { offset, len } => self.set(offset, len as usize, |_| 0, true),
            Op::Discard { offset, len } => self.set(offset, len as usize, |_| 0, false),
            Op::Read { .. } | Op::Flush => {}
        }
    }

    fn set(&mut self, offset: u64, len: usize, byte: impl Fn(usize) -> u8, known: bool) {
        let start = offset as usize;
        for i in 0..len {
            self.bytes[start + i] = byte(i);
        }
        self.known[start / 512..(start + len) / 512].fill(known);
    }

    fn assert_read(&self, offset: u64, data: &[u8], seed: u64) {
        for (i, sector) in data.chunks(512).enumerate() {
            let at = offset as usize + i * 512;
            let expected = &self.bytes[at..at + 512];
            assert!(
                !self.known[at / 512] || sector == expected,
                "seed {seed:#x}: sector {} differs",
                at / 512
            );
        }
    }
}

fn choose(random: &mut Random, slot: usize, sector_bytes: usize) -> Op {
    let sector = sector_bytes as u64;
    let sectors = 1 + random.below((SLOT_BYTES / sector_bytes) as u64);
    let sectors = if random.below(2) == 0 { 1 + sectors % 8 } else { sectors };
    let last = AREA_BYTES as u64 / sector - sectors;
    let offset = (slot * AREA_BYTES) as u64 + random.below(last + 1) * sector;
    let len = sectors * sector;
    match random.below(20) {
        0..8 => Op::Read { offset, len: len as usize },
        8..16 => Op::Write { offset, len: len as usize },
        16 | 17 => Op::Zero { offset, len },
        18 => Op::Discard { offset, len },
        _ => Op::Flush,
    }
}

/// Runs random requests on all queues at once and compares every read, then the whole volume, with the model.
fn work(driver: &mut dyn Driver, model: &mut Model, queues: usize, sector_bytes: usize, seed: u64) {
    let mut random = Random::new(seed);
    let mut workers: Vec<Worker> = (0..queues * DEPTH).map(|slot| Worker { slot, in_flight: None }).collect();
    let mut written: Vec<Vec<u8>> = vec![Vec::new(); workers.len()];
    let (deadline, mut completed) = (Instant::now() + DURATION, 0);
    loop {
        let more = Instant::now() < deadline;
        for worker in workers.iter_mut().filter(|worker| more && worker.in_flight.is_none()) {
            let op = choose(&mut random, worker.slot, sector_bytes);
            match op {
                Op::Write { len, .. } => {
                    written[worker.slot] = pattern(random.next(), len);
                    driver.fill(worker.slot, &written[worker.slot]);
                }
                Op::Read { len, .. } => driver.fill(worker.slot, &vec![0xbb; len]),
                _ => {}
            }
            worker.in_flight = Some(op);
            driver.submit(worker.slot / DEPTH, worker.slot, op);
        }
        for queue in 0..queues {
            if workers[queue * DEPTH..(queue + 1) * DEPTH].iter().all(|worker| worker.in_flight.is_none()) {
                continue;
            }
            for (slot, result) in driver.complete(queue) {
                let op = workers[slot].in_flight.take().expect("a completion for a request in flight");
                assert_eq!(result, 0, "seed {seed:#x}: {op:?}");
                if let Op::Read { offset, len } = op {
                    model.assert_read(offset, &driver.content(slot, len), seed);
                }
                model.record(op, &written[slot]);
                completed += 1;
            }
        }
        if !more && workers.iter().all(|worker| worker.in_flight.is_none()) {
            break;
        }
    }
    assert!(completed > 100, "only {completed} requests in {DURATION:?}");
}

fn served(queues: usize, sector_bytes: usize, args: &[&str]) -> (Backend, Model) {
    let payload_bytes = queues * DEPTH * AREA_BYTES;
    let serve = Serve::encrypted().payload_bytes(payload_bytes).sector_bytes(sector_bytes).queues(queues);
    let backend = serve.args(&["--discard", "pass"]).args(args).start();
    let model = Model { bytes: backend.volume.original.clone(), known: vec![true; payload_bytes / 512] };
    (backend, model)
}

fn verdict(mut backend: Backend, model: &Model) {
    backend.terminate();
    let now = backend.volume.plaintext();
    assert_eq!(now.len(), model.bytes.len());
    model.assert_read(0, &now, 0);
}

fn with_virtio_driver(queues: usize, sector_bytes: usize, event_idx: bool, seed: u64) {
    let args = &[];
    let (backend, mut model) = served(queues, sector_bytes, args);
    let mut driver =
        VirtioDriver::connect(backend.socket(), queues, 64, queues * DEPTH, SLOT_BYTES, event_idx);
    work(&mut driver, &mut model, queues, sector_bytes, seed);
    drop(driver);
    verdict(backend, &model);
}

fn with_blkio(queues: usize, sector_bytes: usize, args: &[&str], seed: u64) {
    let (backend, mut model) = served(queues, sector_bytes, args);
    let mut driver = BlkioDriver::connect(backend.socket(), queues, queues * DEPTH, SLOT_BYTES);
    assert_eq!(driver.capacity(), model.bytes.len() as u64);
    work(&mut driver, &mut model, queues, sector_bytes, seed);
    drop(driver);
    verdict(backend, &model);
}

#[test]
fn virtio_driver_on_one_queue() {
    with_virtio_driver(1, 512, true, 0x11);
}

#[test]
fn virtio_driver_on_four_queues() {
    with_virtio_driver(4, 512, true, 0x44);
}

#[test]
fn virtio_driver_without_event_idx() {
    with_virtio_driver(2, 4096, false, 0x22);
}

#[test]
fn blkio_on_one_queue() {
    with_blkio(1, 4096, &[], 0x111);
}

#[test]
fn blkio_on_four_queues() {
    with_blkio(4, 512, &[], 0x444);
}

#[test]
fn blkio_in_blocks_smaller_than_sectors() {
    let (backend, mut model) = served(2, 4096, &["--logical-block-size", "512"]);
    let mut driver = BlkioDriver::connect(backend.socket(), 2, 2 * DEPTH, SLOT_BYTES);
    work(&mut driver, &mut model, 2, 512, 0x555);
    drop(driver);
    verdict(backend, &model);
}

#[test]
fn the_blocking_engine() {
    with_blkio(2, 512, &["--engine", "blocking"], 0x77);
}

#[test]
fn through_the_page_cache() {
    with_blkio(2, 4096, &["--direct", "off"], 0x88);
}

#[test]
fn writethrough() {
    with_blkio(2, 512, &["--cache", "writethrough"], 0x99);
}

#[test]
fn one_driver_after_another() {
    let (backend, mut model) = served(1, 512, &[]);
    for seed in 0..3 {
        let mut driver = VirtioDriver::connect(backend.socket(), 1, 64, DEPTH, SLOT_BYTES, true);
        driver.fill(0, &pattern(seed, 4096));
        driver.submit(0, 0, Op::Write { offset: seed * 8192, len: 4096 });
        assert_eq!(driver.complete(0), [(0, 0)]);
        model.record(Op::Write { offset: seed * 8192, len: 4096 }, &pattern(seed, 4096));
        drop(driver);
        let mut driver = BlkioDriver::connect(backend.socket(), 1, DEPTH, SLOT_BYTES);
        driver.submit(0, 1, Op::Read { offset: seed * 8192, len: 4096 });
        assert_eq!(driver.complete(0), [(1, 0)]);
        assert_eq!(driver.content(1, 4096), pattern(seed, 4096));
    }
    verdict(backend, &model);
}
