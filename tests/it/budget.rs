//! What a guest can cost: memory, the share of others, lines of the log.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use vhost::VhostBackend;

use crate::harness::frontend::*;
use crate::harness::load::Load;
use crate::harness::log::Log;
use crate::harness::memory::RINGS_BASE;
use crate::harness::request::*;
use crate::harness::ring::wait_until;
use crate::harness::wire::*;
use crate::harness::*;

/// All that a guest reads of its disk.
fn read_disk(backend: &Backend) -> Vec<u8> {
    const PART_BYTES: usize = 512 << 10;
    let frontend = Frontend::connect(backend.socket());
    let parts = (0..backend.volume.original.len() as u64 / 512).step_by(PART_BYTES / 512);
    parts.flat_map(|sector| frontend.run(&Request::read(sector, PART_BYTES)).ok()).collect()
}

fn memory_is_bounded_with_all_queues_busy(serve: Serve) {
    const QUEUES: usize = 64;
    let mut backend = serve.queues(QUEUES).start();
    if backend.volume.is_luks() {
        backend.volume.original = read_disk(&backend);
    }
    let setup = Setup { queues: QUEUES, queue_size: 64, data_bytes: 80 << 20, ..Setup::default() };
    // As much as there may be at once on each of them, requests of up to 64 KiB.
    let frontend = Frontend::with(backend.socket(), setup);
    let mut load = Load::new(&frontend, &backend.volume.original, 7);
    load.fill(&frontend.rings);
    while load.answered < 20 * QUEUES as u64 {
        load.wait_for_answer(&frontend.rings);
        load.take_answers(&frontend.rings, true);
    }
    load.finish(&frontend.rings);
    backend.assert_memory_is_bounded();
    backend.assert_own_memory_is_bounded();
    let peak = backend.peak_memory_bytes().expect("it runs");
    assert!(peak > 8 << 20, "{peak} bytes for a program with {QUEUES} busy queues");
    drop(frontend);
    backend.terminate();
}

#[test]
fn memory_is_bounded_with_all_queues_of_a_plain_disk_busy() {
    memory_is_bounded_with_all_queues_busy(Serve::encrypted().payload_bytes(16 << 20));
}

#[test]
fn memory_is_bounded_with_all_queues_of_a_luks2_disk_busy() {
    memory_is_bounded_with_all_queues_busy(Serve::luks2());
}

#[test]
fn memory_is_bounded_with_all_queues_of_a_luks1_disk_busy() {
    memory_is_bounded_with_all_queues_busy(Serve::luks1());
}

/// Large requests, as many as the ring holds: memory for them is fixed, they wait for it.
#[test]
fn memory_does_not_grow_with_the_size_of_requests() {
    let mut backend = Serve::encrypted().payload_bytes(16 << 20).start();
    let setup = Setup { queue_size: 128, data_bytes: 40 << 20, ..Setup::default() };
    let frontend = Frontend::with(backend.socket(), setup);
    let reads: Vec<Request> = (0..8).map(|i| Request::read(i % 4 * 8192, 4 << 20)).collect();
    for answer in frontend.run_all(0, &reads) {
        assert_eq!(answer.ok().len(), 4 << 20);
    }
    backend.assert_memory_is_bounded();
    drop(frontend);
    backend.terminate();
}

#[test]
fn a_storm_of_kicks_takes_nothing_from_other_queues() {
    let mut backend = Serve::encrypted().queues(2).start();
    let frontend = Frontend::with(backend.socket(), Setup::queues(2));
    frontend.assert_serves(0, 0, 1);
    let over = AtomicBool::new(false);
    let kick = frontend.rings[0].kick.borrow().try_clone().expect("duplicate the eventfd");
    let kicks = std::thread::scope(|scope| {
        let storm = scope.spawn(|| {
            let mut kicks = 0_u64;
            while !over.load(Ordering::Relaxed) {
                kick.write(1).expect("the eventfd takes the kick");
                kicks += 1;
            }
            kicks
        });
        // No longer than without a storm, or these would run into their patience.
        for round in 0..300 {
            frontend.assert_serves(1, 64, round);
        }
        over.store(true, Ordering::Relaxed);
        storm.join().expect("it kicked")
    });
    assert!(kicks > 300, "{kicks} kicks are no storm");
    // Nothing was taken from the stormy queue, and it serves.
    assert_eq!(frontend.rings[0].pending(), 0);
    frontend.assert_serves(0, 0, 2);
    let answers = u64::from(frontend.rings[0].used_idx());
    assert_eq!(answers, 4, "only what was asked for was answered");
    drop(frontend);
    backend.terminate();
}

/// How many lines of the log have this in them.
fn lines(backend: &Backend, what: &str) -> usize {
    backend.stderr().lines().filter(|line| line.contains(what)).count()
}

/// Asserts that a line was written, and at most once every ten seconds in each of so many places.
#[track_caller]
fn assert_throttled(backend: &Backend, what: &str, begun: Instant, places: usize) {
    let most = places * (1 + begun.elapsed().as_secs() as usize / 10);
    let found = lines(backend, what);
    assert!((1..=most).contains(&found), "{found} lines: {}", backend.stderr());
}

#[test]
fn a_driver_that_breaks_its_ring_again_and_again_does_not_fill_the_log() {
    let begun = Instant::now();
    let mut backend = Serve::encrypted().queues(2).start();
    let mut frontend = Frontend::with(backend.socket(), Setup::queues(2));
    for round in 0..40 {
        for queue in 0..2 {
            frontend.rings[queue].set_avail_idx(0x8000);
            frontend.rings[queue].kick();
            // Seen now, or in the turn before the ring is stopped; or too late, now and then.
            frontend.stop_ring(queue);
            frontend.rings[queue].reset();
            frontend.rings[queue].drain_calls();
            frontend.start_ring(queue, 0);
        }
        frontend.assert_serves(round % 2, 0, round as u64);
    }
    drop(frontend);
    backend.terminate();
    assert_throttled(&backend, "the driver broke its ring", begun, 2);
}

#[test]
fn a_front_end_that_is_refused_again_and_again_does_not_fill_the_log() {
    let begun = Instant::now();
    let mut backend = Serve::encrypted().start();
    for _ in 0..4 {
        let mut frontend = Frontend::connect(backend.socket());
        for _ in 0..50 {
            assert!(frontend.set_config(0, &[1]).is_err(), "the capacity cannot be written");
        }
        frontend.assert_serves(0, 0, 1);
    }
    backend.terminate();
    assert_throttled(&backend, "refused a message of the VMM", begun, 1);
}

#[test]
fn a_front_end_that_comes_and_goes_does_not_fill_the_log() {
    let begun = Instant::now();
    let mut backend = Serve::encrypted().start();
    for _ in 0..40 {
        drop(dial(backend.socket()));
    }
    Frontend::connect(backend.socket()).assert_serves(0, 0, 1);
    backend.terminate();
    for what in ["VMM connected", "VMM disconnected"] {
        assert_throttled(&backend, what, begun, 1);
    }
}

#[test]
fn kick_descriptors_that_cannot_be_waited_on_do_not_fill_the_log() {
    const LINE: &str = "a kick descriptor cannot be waited on";
    let begun = Instant::now();
    let mut backend = Serve::encrypted().queues(2).start();
    let mut frontend = Frontend::with(backend.socket(), Setup::queues(2));
    let kick = |frontend: &Frontend, fd: BorrowedFd<'_>| {
        assert_eq!(frontend.wire().ack(SET_VRING_KICK, &words(&[0]), &[fd]), 0);
    };
    // It can be polled, and is ready whenever it is.
    let ready = File::open("/proc/sys/kernel/ostype").expect("every kernel has it");
    for round in 0..40 {
        kick(&frontend, ready.as_fd());
        if round == 0 {
            wait_until("no word of it", || lines(&backend, LINE) > 0);
        }
        // Given up meanwhile, or at least most of them.
        frontend.assert_serves(1, 64, round);
    }
    frontend.stop_ring(0);
    frontend.rings[0].reset();
    frontend.start_ring(0, 0);
    frontend.assert_serves(0, 0, 1);
    drop(frontend);
    backend.terminate();
    assert_throttled(&backend, LINE, begun, 1);
}

#[test]
fn a_front_end_that_takes_its_rings_memory_again_and_again_does_not_fill_the_log() {
    let begun = Instant::now();
    let mut backend = Serve::encrypted().start();
    let mut frontend = Frontend::connect(backend.socket());
    let mut without_rings = frontend.ram.infos();
    without_rings.retain(|region| region.guest_phys_addr != RINGS_BASE);
    for round in 0..20 {
        frontend.messages.set_mem_table(&without_rings).expect("SET_MEM_TABLE");
        frontend.share_memory();
        frontend.assert_serves(0, 0, round);
    }
    drop(frontend);
    backend.terminate();
    assert_throttled(&backend, "took a running ring's memory", begun, 1);
}

#[test]
fn in_flight_regions_that_are_forged_again_and_again_do_not_fill_the_log() {
    let begun = Instant::now();
    let mut backend = Serve::encrypted().start();
    let connect = |backend: &Backend| {
        Frontend::with(backend.socket(), Setup { keeps_inflight: true, ..Setup::default() })
    };
    let mut frontend = connect(&backend);
    for round in 0..20 {
        // A version of nobody's.
        let Inflight { file, .. } = frontend.inflight.as_ref().expect("it is kept");
        file.write_all_at(&[0x77; 2], 8).expect("write to the region");
        frontend = frontend.resume(backend.socket());
        frontend.assert_serves(0, 0, round);
    }
    drop(frontend);
    // For rings that are larger than there are.
    for _ in 0..20 {
        let frontend = connect(&backend);
        let mut wire = frontend.wire();
        wire.send(GET_INFLIGHT_FD, 0, &[&words(&[0, 0])[..], &[1, 0, 0xff, 0xff, 0, 0, 0, 0]].concat(), &[]);
        assert_eq!(wire.reply(), Reply::Closed);
    }
    backend.terminate();
    assert_throttled(&backend, "the in-flight region is not about this ring", begun, 1);
    assert_throttled(&backend, "cannot use the in-flight region", begun, 1);
}

#[test]
fn a_guest_that_leaves_and_comes_back_again_and_again_does_not_fill_the_log() {
    let begun = Instant::now();
    let mut backend = Serve::encrypted().start();
    let mut frontend = Frontend::connect(backend.socket());
    let log = Log::up_to(128 << 20);
    for round in 0..20 {
        log.begin(&frontend);
        let base = frontend.stop_ring(0);
        crate::harness::log::end(&frontend);
        frontend.start_ring(0, base);
        frontend.assert_serves(0, 0, round);
    }
    drop(frontend);
    backend.terminate();
    for what in ["let go of the volume", "the volume is ours"] {
        assert_throttled(&backend, what, begun, 1);
    }
}
