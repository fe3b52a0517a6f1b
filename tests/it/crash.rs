//! The server is killed at any moment, and started again. Nothing that was acknowledged is lost, nothing is done twice
//! over something newer, and everything is answered.

use std::time::{Duration, Instant};

use crate::harness::frontend::F_EVENT_IDX;
use crate::harness::load::Load;
use crate::harness::memory::MIB;
use crate::harness::seed::{number, seed};
use crate::harness::*;

/// How often the server dies in each test. `SEALBLK_TEST_KILLS` changes it.
const KILLS: u64 = 100;

/// Kills the server so often while the guest is busy, then lets it end and looks at every sector.
fn kill_under_load(queues: usize) {
    let seed = seed();
    let kills = number("SEALBLK_TEST_KILLS").unwrap_or(KILLS);
    let mut backend = Serve::encrypted().payload_bytes(8 << 20).queues(queues).start();
    let refuse = if queues == 1 { F_EVENT_IDX } else { 0 };
    let setup = Setup { queues, refuse, keeps_inflight: true, ..Setup::data(queues as u64 * 2 * MIB) };
    let mut frontend = Frontend::with(backend.socket(), setup);
    let mut load = Load::new(&frontend, &backend.volume.original, seed);
    let mut found_in_flight = 0;
    for kill in 0..kills {
        load.fill(&frontend.rings);
        let target = load.answered + load.below(300);
        while load.answered < target {
            load.wait_for_answer(&frontend.rings);
            load.take_answers(&frontend.rings, true);
        }
        // Not always just after an answer.
        let moment = Instant::now() + Duration::from_micros(load.below(300));
        while Instant::now() < moment {
            std::hint::spin_loop();
        }
        backend.kill();
        found_in_flight += frontend.inflight.as_ref().expect("it is kept").count();
        load.take_answers(&frontend.rings, kill % 2 == 0);
        backend.start_again();
        let guess = load.below(3);
        frontend = frontend.resume_at(backend.socket(), |ring| match guess {
            0 => ring.used_idx(),
            1 => ring.avail_idx(),
            _ => 0x1234,
        });
        if kill % 16 == 15 {
            load.finish(&frontend.rings);
        }
    }
    load.finish(&frontend.rings);
    println!(
        "{kills} kills, {} answers, {} out of order, {found_in_flight} requests in flight at a kill",
        load.answered, load.overtakings
    );
    assert!(found_in_flight as u64 > 2 * kills, "the server had nothing to do when it was killed");
    assert!(load.overtakings > kills, "requests were answered in order, which is too easy");
    load.fill(&frontend.rings);
    backend.terminate();
    assert_eq!(frontend.inflight.as_ref().expect("it is kept").count(), 0, "SIGTERM answers what was taken");
    backend.start_again();
    frontend = frontend.resume(backend.socket());
    load.finish(&frontend.rings);
    drop(frontend);
    backend.terminate();
    backend.volume.assert_holds(&load.disk());
}

#[test]
fn killed_under_load_with_one_queue() {
    kill_under_load(1);
}

#[test]
fn killed_under_load_with_four_queues() {
    kill_under_load(4);
}
