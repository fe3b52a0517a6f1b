//! `--logical-block-size`: a disk whose blocks are smaller than the sectors that are encrypted.

use crate::harness::memory::MIB;
use crate::harness::request::*;
use crate::harness::ring::Ring;
use crate::harness::*;

const SECTOR_BYTES: usize = 4096;
const BLOCK_BYTES: usize = 512;
const BLOCKS_PER_SECTOR: u64 = (SECTOR_BYTES / BLOCK_BYTES) as u64;

/// 4096-byte sectors behind 512-byte blocks.
fn serve() -> Serve {
    Serve::encrypted().sector_bytes(SECTOR_BYTES).args(&["--logical-block-size", "512", "--discard", "pass"])
}

/// Puts `data` at `sector` of the model.
fn store(model: &mut [u8], sector: u64, data: &[u8]) {
    model[sector as usize * 512..][..data.len()].copy_from_slice(data);
}

#[test]
fn the_guest_is_told_both_sizes() {
    for (sector, block, exponent, per_sector) in
        [(4096, "512", 3, 8), (4096, "2048", 1, 2), (4096, "4096", 0, 1), (1024, "512", 1, 2)]
    {
        let backend = Serve::encrypted()
            .sector_bytes(sector)
            .args(&["--logical-block-size", block, "--discard", "pass"])
            .start();
        let mut frontend = Frontend::connect(backend.socket());
        let config = frontend.config(0, 60).expect("GET_CONFIG");
        let word = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().expect("4 bytes"));
        assert_eq!(word(20).to_string(), block, "blk_size");
        assert_eq!(config[24], exponent, "physical_block_exp");
        assert_eq!(config[25], 0, "alignment_offset");
        assert_eq!(config[26..28], [per_sector, 0], "min_io_size");
        assert_eq!(word(44) as usize, sector / 512, "discard_sector_alignment");
    }
}

/// Blocks at the begin, in the middle and at the end of a sector, over the border of two, and long ranges with
/// and without whole ends.
const RANGES: [(u64, u64); 14] = [
    (0, 1),
    (8, 1),
    (12, 1),
    (15, 1),
    (17, 6),
    (31, 2),
    (33, 14),
    (40, 8),
    (47, 9),
    (48, 9),
    (101, 2047),
    (104, 2051),
    (2209, 600),
    (8191, 1),
];

#[test]
fn every_range_of_blocks_is_read_and_written() {
    for args in [&["--direct", "on"], &["--direct", "off"], &["--engine", "blocking"]] {
        let mut backend = serve().args(args).start();
        let setup = Setup { queue_size: 256, ..Setup::data(24 * MIB) };
        let frontend = Frontend::with(backend.socket(), setup);
        let mut model = backend.volume.original.clone();
        for (seed, (sector, count)) in (0..).zip(RANGES) {
            let data = pattern(100 + seed, count as usize * 512);
            frontend.run(&Request::write(sector, &data).readable(Cut::At(vec![16, 100]))).ok();
            store(&mut model, sector, &data);
            let (from, more) = (sector.saturating_sub(1), usize::from(sector > 0));
            let read = frontend.run(&Request::read(from, data.len() + 512 * more)).ok();
            assert!(
                read == model[from as usize * 512..][..read.len()],
                "{count} blocks at {sector}, {args:?}"
            );
        }
        for (sector, count) in RANGES {
            frontend.run(&Request::write_zeroes(sector, count as u32)).ok();
            store(&mut model, sector, &vec![0; count as usize * 512]);
            let read = frontend.run(&Request::read(sector, 512)).ok();
            assert_eq!(read, [0; 512], "{count} blocks at {sector}, {args:?}");
        }
        drop(frontend);
        backend.terminate();
        backend.volume.assert_holds(&model);
    }
}

#[test]
fn a_discard_leaves_what_is_no_whole_sector() {
    let mut backend = serve().start();
    let frontend = Frontend::connect(backend.socket());
    let original = backend.volume.original.clone();
    for (sector, count) in [(1, 7), (9, 13), (31, 2), (1003, 2000)] {
        frontend.run(&Request::discard(sector, count)).ok();
    }
    // Whole sectors among them: 1008 to 2999.
    for (from, to) in [(0, 1008), (3000, 8192)] {
        for at in (from..to).step_by(64) {
            let len = (to - at).min(64) as usize * 512;
            let read = frontend.run(&Request::read(at, len)).ok();
            assert!(read == original[at as usize * 512..][..len], "from {at} on");
        }
    }
    assert!(frontend.run(&Request::read(1008, 4096)).ok() != original[1008 * 512..1016 * 512]);
    frontend.run(&Request::write(1011, &[7; 512])).ok();
    assert_eq!(frontend.run(&Request::read(1011, 512)).ok(), [7; 512]);
    drop(frontend);
    backend.terminate();
}

#[test]
fn requests_off_the_smaller_grid_fail() {
    let backend = Serve::encrypted().sector_bytes(4096).args(&["--logical-block-size", "1024"]).start();
    let frontend = Frontend::connect(backend.socket());
    for (sector, len) in [(1, 1024), (0, 512), (2, 1536), (0, 100), (8191, 1024)] {
        frontend.run(&Request::read(sector, len)).failed(S_IOERR);
        frontend.run(&Request::write(sector, &pattern(1, len))).failed(S_IOERR);
    }
    frontend.run(&Request::write_zeroes(1, 2)).failed(S_IOERR);
    let data = pattern(3, 1024);
    frontend.run(&Request::write(6, &data)).ok();
    assert!(frontend.run(&Request::read(6, 1024)).ok() == data);
}

/// Four queues, each with writes of its own blocks among those of the others, all made available at once.
struct Contest {
    backend: Backend,
    frontend: Frontend,
    model: Vec<u8>,
    random: Random,
    round: u64,
}

const QUEUES: usize = 4;
/// Writes of each queue in a round.
const DEPTH: usize = 8;
/// So many blocks are written in a round: all blocks of four sectors.
const BLOCKS: u64 = (QUEUES * DEPTH) as u64;

impl Contest {
    fn new(args: &[&str]) -> Self {
        let backend = serve().queues(QUEUES).args(args).start();
        let setup = Setup { queues: QUEUES, ..Setup::data(32 * MIB) };
        let frontend = Frontend::with(backend.socket(), setup);
        let model = backend.volume.original.clone();
        Self { backend, frontend, model, random: Random::new(5), round: 0 }
    }

    /// The writes of a round, by queue: every block of four sectors is written or zeroed once, by any queue.
    fn writes(&mut self, first: u64) -> Vec<Vec<Prepared>> {
        let mut blocks: Vec<u64> = (0..BLOCKS).collect();
        for i in (1..blocks.len()).rev() {
            blocks.swap(i, self.random.below(i as u64 + 1) as usize);
        }
        self.round += 1;
        let mut prepare = |queue: usize, block: u64| {
            let sector = first + block;
            let zero = self.random.below(4) == 0;
            let data = if zero { vec![0; 512] } else { pattern(self.round << 32 | block, 512) };
            store(&mut self.model, sector, &data);
            let request = if zero { Request::write_zeroes(sector, 1) } else { Request::write(sector, &data) };
            self.frontend.prepare(queue, &request)
        };
        blocks
            .chunks(DEPTH)
            .enumerate()
            .map(|(queue, blocks)| blocks.iter().map(|block| prepare(queue, *block)).collect())
            .collect()
    }

    /// Makes everything available and kicks every queue.
    fn fire(&self, writes: &[Vec<Prepared>]) {
        for (ring, writes) in self.frontend.rings.iter().zip(writes) {
            ring.publish(&writes.iter().map(|write| write.head).collect::<Vec<_>>());
        }
        self.frontend.rings.iter().for_each(|ring| ring.kick());
    }

    /// Waits for all answers, which are successes, and gives the descriptors back.
    fn settle(&self, writes: &[Vec<Prepared>]) {
        for (ring, writes) in self.frontend.rings.iter().zip(writes) {
            ring.collect(writes.len());
            for write in writes {
                assert_eq!(write.status(), S_OK);
                ring.return_descs(&write.descs);
            }
        }
    }

    fn check(&self, first: u64) {
        let read = self.frontend.run(&Request::read(first, BLOCKS as usize * 512)).ok();
        let expected = &self.model[first as usize * 512..][..read.len()];
        let wrong: Vec<usize> =
            (0..BLOCKS as usize).filter(|i| read[i * 512..][..512] != expected[i * 512..][..512]).collect();
        assert!(wrong.is_empty(), "round {}: blocks {wrong:?} of those at {first} differ", self.round);
    }

    fn end(mut self) {
        drop(self.frontend);
        self.backend.terminate();
        self.backend.volume.assert_holds(&self.model);
    }
}

#[test]
fn queues_keep_each_others_blocks_in_the_same_sectors() {
    for args in [&["--direct", "on"], &["--direct", "off"], &["--cache", "writethrough"]] {
        let mut contest = Contest::new(args);
        for round in 0..100 {
            let first = round % 3 * BLOCKS_PER_SECTOR;
            let mark = contest.frontend.ram.mark();
            let writes = contest.writes(first);
            contest.fire(&writes);
            contest.settle(&writes);
            contest.frontend.ram.release(mark);
            contest.check(first);
        }
        contest.end();
    }
}

/// One queue writes a whole sector while three others write a block of it each.
#[test]
fn a_whole_sector_and_parts_of_it_at_once() {
    let mut contest = Contest::new(&[]);
    for round in 0..200u64 {
        let first = round % 5 * BLOCKS_PER_SECTOR;
        let mark = contest.frontend.ram.mark();
        let whole = pattern(1000 + round, SECTOR_BYTES);
        let parts: Vec<(u64, Vec<u8>)> =
            (1..4).map(|i| (first + 2 * i, pattern(2000 + 10 * round + i, 512))).collect();
        let mut requests = vec![Request::write(first, &whole)];
        requests.extend(parts.iter().map(|(sector, data)| Request::write(*sector, data)));
        let writes: Vec<Vec<Prepared>> = (0..QUEUES)
            .map(|queue| vec![contest.frontend.prepare(queue, &requests[(queue + round as usize) % QUEUES])])
            .collect();
        contest.fire(&writes);
        contest.settle(&writes);
        contest.frontend.ram.release(mark);
        let read = contest.frontend.run(&Request::read(first, SECTOR_BYTES)).ok();
        for (block, found) in read.chunks(512).enumerate() {
            let part = parts.iter().find(|(sector, _)| *sector == first + block as u64);
            let is_part = part.is_some_and(|(_, data)| data == found);
            assert!(is_part || found == &whole[block * 512..][..512], "round {round}: block {block}");
        }
        store(&mut contest.model, first, &read);
    }
    contest.end();
}

#[test]
fn rings_stop_while_they_wait_for_each_other() {
    let mut contest = Contest::new(&[]);
    for round in 0..40 {
        let first = round % 3 * BLOCKS_PER_SECTOR;
        let mark = contest.frontend.ram.mark();
        let writes = contest.writes(first);
        contest.fire(&writes);
        let order = [[0, 1, 2, 3], [3, 1, 0, 2]][round as usize % 2];
        let bases = order.map(|index| (index, contest.frontend.stop_ring(index)));
        for (index, base) in bases {
            let ring = &contest.frontend.rings[index];
            assert_eq!(ring.used_idx(), base, "what was taken is answered, what was not is left");
        }
        for (index, base) in bases {
            contest.frontend.start_ring(index, base);
        }
        contest.frontend.rings.iter().for_each(|ring| ring.kick());
        let answered = |ring: &Ring| ring.collect_by_polling(DEPTH).len() == DEPTH;
        assert!(contest.frontend.rings.iter().all(answered));
        for (ring, writes) in contest.frontend.rings.iter().zip(&writes) {
            for write in writes {
                assert_eq!(write.status(), S_OK);
                ring.return_descs(&write.descs);
            }
        }
        contest.frontend.ram.release(mark);
        contest.check(first);
    }
    contest.end();
}
