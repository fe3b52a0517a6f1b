//! One turn of the worker: everything between a guest's ring and storage but the storage, which is memory here.
//! Time for each request, with the cipher and without, in batches as a guest at that queue depth makes them. Requests of
//! 512 bytes are hardly copied, so what they take is what the worker does with any request.
//!
//! With `--count JOB BATCHES` it runs that many batches of one job and measures nothing: `scripts/count-instructions`
//! looks on. `--jobs` lists them.
#![allow(missing_docs, reason = "a benchmark has no outside")]

mod guest;

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};

use guest::{Guest, InFlight};

/// What the worker does with each request, and how many come at once.
#[derive(Clone, Copy, Debug)]
struct Job {
    /// As virtio-blk numbers kinds.
    kind: u32,
    len_bytes: u32,
    encrypted: bool,
    tracking: InFlight,
    batch: u16,
}

impl Job {
    fn all() -> impl Iterator<Item = Self> {
        const VARIANTS: [(u32, bool, InFlight); 4] = [
            (4096, true, InFlight::Tracked),
            (4096, false, InFlight::Tracked),
            (4096, false, InFlight::Forgotten),
            (512, false, InFlight::Tracked),
        ];
        [0, 1].into_iter().flat_map(|kind| {
            VARIANTS.into_iter().flat_map(move |(len_bytes, encrypted, tracking)| {
                [1, 32].map(|batch| Self { kind, len_bytes, encrypted, tracking, batch })
            })
        })
    }

    fn group(self) -> &'static str {
        match (self.kind, self.len_bytes) {
            (0, 4096) => "turn/read 4 KiB",
            (0, _) => "turn/read 512 B",
            (_, 4096) => "turn/write 4 KiB",
            _ => "turn/write 512 B",
        }
    }

    fn what(self) -> &'static str {
        match (self.encrypted, self.tracking) {
            (true, _) => "aes-256-xts",
            (false, InFlight::Tracked) => "no cipher",
            (false, InFlight::Forgotten) => "no cipher, not tracked",
        }
    }

    fn name(self) -> String {
        format!("{}/{}/{}", self.group(), self.what(), self.batch)
    }

    fn guest(self) -> Guest {
        Guest::new(self.kind, self.len_bytes, self.encrypted, self.tracking)
    }
}

fn measure(criterion: &mut Criterion) {
    for job in Job::all() {
        let mut guest = job.guest();
        let mut group = criterion.benchmark_group(job.group());
        group.throughput(Throughput::Elements(u64::from(job.batch)));
        group.bench_function(BenchmarkId::new(job.what(), job.batch), |bencher| {
            bencher.iter(|| black_box(&mut guest).run(job.batch));
        });
        group.finish();
    }
}

fn count(name: &str, batches: u32) {
    let job = Job::all().find(|job| job.name() == name).expect("one of the jobs that --jobs lists");
    let mut guest = job.guest();
    for _ in 0..batches {
        black_box(&mut guest).run(job.batch);
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--jobs"] => Job::all().for_each(|job| println!("{}", job.name())),
        ["--count", name, batches] => count(name, batches.parse().expect("a number of batches")),
        _ => {
            let criterion = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(2));
            let mut criterion = criterion.configure_from_args();
            measure(&mut criterion);
            criterion.final_summary();
        }
    }
}
