//! One turn of the worker: everything between a guest's ring and storage but the storage, which is memory here.
//! Time for each 4 KiB request, with the cipher and without, in batches as a guest at that queue depth makes them.
#![allow(missing_docs, reason = "a benchmark has no outside")]

mod guest;

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

use guest::{Guest, InFlight};

fn turns(criterion: &mut Criterion) {
    for (kind, name) in [(0, "read"), (1, "write")] {
        let mut group = criterion.benchmark_group(format!("turn/{name} 4 KiB"));
        for (encrypted, tracking, what) in [
            (true, InFlight::Tracked, "aes-256-xts"),
            (false, InFlight::Tracked, "no cipher"),
            (false, InFlight::Forgotten, "no cipher, not tracked"),
        ] {
            for batch in [1_u16, 32] {
                let mut guest = Guest::new(kind, encrypted, tracking);
                group.throughput(Throughput::Elements(u64::from(batch)));
                group.bench_function(BenchmarkId::new(what, batch), |bencher| {
                    bencher.iter(|| black_box(&mut guest).run(batch));
                });
            }
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(2));
    targets = turns
}
criterion_main!(benches);
