//! The data path on a simulated disk, under crashes: of the process, whose successor goes on over the same in-flight
//! region, and of the machine, which leaves nothing but what the disk has kept.
//!
//! What runs is the worker's own loop, one for each queue, with the cipher, the ring and the in-flight region. The disk
//! loses what was not flushed, tears and reorders writes, cuts transfers short, interrupts and fails them. A world is
//! decided by its seed: `SEALBLK_TEST_SEED=N` repeats one.
#![allow(missing_docs, unreachable_pub, reason = "a test binary has no outside")]
#![allow(clippy::print_stderr, reason = "a failure says how to repeat it")]

mod guest;
mod model;
mod mortal;
mod world;

use std::env;
use std::panic::{catch_unwind, resume_unwind};
use std::thread;

use world::{Tally, World};

/// Worlds, each of another seed. `SEALBLK_TEST_FIRST_SEED` says where they begin.
const WORLDS: u64 = 800;
/// Crashes in each of them.
const CRASHES: u64 = 25;

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|value| value.parse().expect("a number"))
}

/// One world. If it fails, says which it was.
fn run(seed: u64) -> Tally {
    catch_unwind(|| World::new(seed).run(CRASHES)).unwrap_or_else(|failure| {
        eprintln!("repeat it with: SEALBLK_TEST_SEED={seed} cargo test --test simulator crashes");
        resume_unwind(failure)
    })
}

/// The worlds of these seeds, on all cores.
fn run_all(first: u64, end: u64) -> Tally {
    let threads = thread::available_parallelism().map_or(1, usize::from) as u64;
    thread::scope(|scope| {
        let share = |thread| (first + thread..end).step_by(threads as usize).map(run).sum::<Tally>();
        let shares: Vec<_> = (0..threads).map(|thread| scope.spawn(move || share(thread))).collect();
        let tallies =
            shares.into_iter().map(|share| share.join().unwrap_or_else(|failure| resume_unwind(failure)));
        tallies.sum()
    })
}

#[test]
fn crashes_lose_nothing_that_was_promised() {
    if let Some(seed) = number("SEALBLK_TEST_SEED") {
        println!("world {seed}: {:?}", run(seed));
        return;
    }
    let first = number("SEALBLK_TEST_FIRST_SEED").unwrap_or(0);
    let all = run_all(first, first + WORLDS);
    println!("worlds {first}..{}: {all:?}", first + WORLDS);
    assert_eq!(all.process_crashes + all.power_failures, WORLDS * CRASHES);
    assert!(all.process_crashes > WORLDS && all.power_failures > WORLDS, "{all:?}");
    assert!(all.answers > WORLDS * CRASHES, "the guest was hardly served: {all:?}");
    assert!(all.repeats > all.process_crashes, "nothing was under way when processes died: {all:?}");
    assert!(all.set_back > all.power_failures, "the disk forgot nothing: {all:?}");
    assert!(all.errors > WORLDS, "storage did not fail: {all:?}");
}

#[test]
fn a_seed_repeats_its_world() {
    for seed in 0..20 {
        assert_eq!(run(seed), run(seed), "world {seed}");
    }
}
