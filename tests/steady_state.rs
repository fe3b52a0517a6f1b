//! Once a queue has warmed up, serving requests allocates nothing.
#![allow(missing_docs, reason = "a test binary has no outside")]

#[path = "../benches/turn/guest.rs"]
mod guest;

use guest::{Guest, InFlight};

#[test]
fn serving_requests_allocates_nothing() {
    for (kind, name) in [(0, "read"), (1, "write"), (4, "flush"), (8, "get-id")] {
        for tracking in [InFlight::Tracked, InFlight::Forgotten] {
            let mut guest = Guest::new(kind, 4096, true, tracking);
            guest.run(64);
            let allocations = allocation_counter::measure(|| (0..100).for_each(|_| guest.run(48)));
            assert_eq!(allocations.count_total, 0, "{name}, {tracking:?}: {allocations:?}");
        }
    }
}

#[test]
fn an_allocation_would_be_noticed() {
    let allocations =
        allocation_counter::measure(|| drop(std::hint::black_box(Vec::<u8>::with_capacity(100))));
    assert_eq!(allocations.count_total, 1);
}
