//! Samples, and what is made of them.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use super::contender::{Direction, Prepared, Worker};
use super::openssl::OpensslError;

/// Bytes of one sample at least: some ten microseconds, against which reading the clock is nothing.
const SAMPLE_BYTES_MIN: usize = 128 << 10;

/// On all cores, each has a buffer of its own up to this length, which fits into its caches; longer ones are shared
/// out, so that many cores do not need much memory.
const OWN_BUFFER_BYTES_MAX: usize = 1 << 20;

/// Shared-out buffers are multiples of every sector size.
const SHARE_STEP_BYTES: usize = 4096;

/// How often all cores are measured for each figure; the fastest counts.
const ALL_CORES_TRIES: u32 = 3;

/// What one contender does in one case, in 10^9 bytes a second.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Speeds {
    pub(super) encrypt_gb_per_s: f64,
    pub(super) decrypt_gb_per_s: f64,
}

impl Speeds {
    fn of(&mut self, direction: Direction) -> &mut f64 {
        match direction {
            Direction::Encrypt => &mut self.encrypt_gb_per_s,
            Direction::Decrypt => &mut self.decrypt_gb_per_s,
        }
    }
}

/// The most that `sample` does in a nanosecond, of whatever it returns the number of.
pub(super) fn fastest(time: Duration, mut sample: impl FnMut() -> usize) -> f64 {
    let mut best: f64 = 0.0;
    let start = Instant::now();
    while best == 0.0 || start.elapsed() < time {
        best = best.max(rate(&mut sample));
    }
    best
}

fn rate(sample: impl FnOnce() -> usize) -> f64 {
    let start = Instant::now();
    let done = sample();
    done as f64 / start.elapsed().as_nanos().max(1) as f64
}

/// Where data comes from and goes to.
struct Buffers {
    src: Vec<u8>,
    dst: Vec<u8>,
}

impl Buffers {
    /// Not of zeroes, which might all be the same page of memory.
    fn new(len_bytes: usize) -> Self {
        Self { src: vec![0x5a; len_bytes], dst: vec![0xa5; len_bytes] }
    }

    /// Once through the buffer, or more often through a short one. Returns how many bytes that were.
    fn sample(&mut self, worker: &mut Worker<'_>, direction: Direction) -> usize {
        let passes = SAMPLE_BYTES_MIN.div_ceil(self.src.len());
        for _ in 0..passes {
            worker.crypt(direction, &self.src, &mut self.dst);
        }
        passes * self.src.len()
    }
}

/// The speed of each on one core. They take turns, until each could have had its `time` for both figures.
pub(super) fn one_core(
    prepared: &[Prepared<'_>],
    buffer_bytes: usize,
    time: Duration,
) -> Result<Vec<Speeds>, OpensslError> {
    let mut workers = prepared.iter().map(Prepared::worker).collect::<Result<Vec<_>, _>>()?;
    let mut buffers = Buffers::new(buffer_bytes);
    let mut speeds = vec![Speeds::default(); workers.len()];
    let time = time.saturating_mul(2 * u32::try_from(workers.len()).expect("a handful of contenders"));
    let start = Instant::now();
    loop {
        for (worker, speeds) in workers.iter_mut().zip(&mut speeds) {
            for direction in Direction::BOTH {
                let speed = rate(|| buffers.sample(worker, direction));
                *speeds.of(direction) = speeds.of(direction).max(speed);
            }
        }
        if start.elapsed() >= time {
            return Ok(speeds);
        }
    }
}

/// The speed of each on all cores at once, taken together.
pub(super) fn all_cores(
    prepared: &[Prepared<'_>],
    buffer_bytes: usize,
    time: Duration,
    cores: usize,
) -> Result<Vec<Speeds>, OpensslError> {
    let buffer_bytes = match buffer_bytes {
        ..=OWN_BUFFER_BYTES_MAX => buffer_bytes,
        _ => (buffer_bytes / cores / SHARE_STEP_BYTES).max(1) * SHARE_STEP_BYTES,
    };
    // All of them before the first thread starts: one that failed later would leave the others waiting for it.
    let mut workers = Vec::new();
    for _ in 0..cores {
        workers.push(prepared.iter().map(Prepared::worker).collect::<Result<Vec<_>, _>>()?);
    }
    let barrier = Barrier::new(cores);
    let one_core = |workers| one_of_all_cores(workers, buffer_bytes, time / ALL_CORES_TRIES, &barrier);
    let by_core: Vec<Vec<[Speeds; ALL_CORES_TRIES as usize]>> = thread::scope(|scope| {
        let one_core = &one_core;
        let threads: Vec<_> =
            workers.into_iter().map(|workers| scope.spawn(move || one_core(workers))).collect();
        threads.into_iter().map(|thread| thread.join().expect("measuring does not panic")).collect()
    });
    let sums = |contender: usize, speed: fn(&Speeds) -> f64| {
        let tries = 0..ALL_CORES_TRIES as usize;
        let sum = |index: usize| by_core.iter().map(|core| speed(&core[contender][index])).sum::<f64>();
        tries.map(sum).fold(0.0, f64::max)
    };
    let speeds = |contender| Speeds {
        encrypt_gb_per_s: sums(contender, |speeds| speeds.encrypt_gb_per_s),
        decrypt_gb_per_s: sums(contender, |speeds| speeds.decrypt_gb_per_s),
    };
    Ok((0..prepared.len()).map(speeds).collect())
}

/// What one core of all does: for each worker, the average speeds of each try, begun by all cores at once.
fn one_of_all_cores(
    workers: Vec<Worker<'_>>,
    buffer_bytes: usize,
    time: Duration,
    barrier: &Barrier,
) -> Vec<[Speeds; ALL_CORES_TRIES as usize]> {
    let mut buffers = Buffers::new(buffer_bytes);
    let measure = |mut worker: Worker<'_>| {
        let mut tries = [Speeds::default(); ALL_CORES_TRIES as usize];
        for speeds in &mut tries {
            for direction in Direction::BOTH {
                barrier.wait();
                *speeds.of(direction) = rate(|| {
                    let start = Instant::now();
                    let mut done = 0;
                    while done == 0 || start.elapsed() < time {
                        done += buffers.sample(&mut worker, direction);
                    }
                    done
                });
            }
        }
        tries
    };
    workers.into_iter().map(measure).collect()
}
