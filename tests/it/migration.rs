//! While the front end copies the guest's memory to another host, it is told of every page that the disk changes.

use std::ops::Range;

use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

use crate::harness::frontend::{F_EVENT_IDX, F_LOG_ALL, MemoryMessages};
use crate::harness::log::{self, Log, Pages};
use crate::harness::memory::*;
use crate::harness::request::*;
use crate::harness::*;

/// Waits until the queue has done everything that belongs to the answers which are there: an index is published before
/// its page is marked.
fn settle(frontend: &Frontend, ring: usize) {
    frontend.messages.set_vring_call(ring, &frontend.rings[ring].call).expect("SET_VRING_CALL");
}

/// Runs a request and asserts that every byte the device has written lies in a page that is marked, and that no page is
/// marked that it may not write to.
#[track_caller]
fn assert_marked(frontend: &Frontend, log: &Log, ring: usize, request: &Request) -> Pages {
    let mark = frontend.ram.mark();
    let prepared = frontend.prepare(ring, request);
    settle(frontend, ring);
    log.take();
    frontend.ram.watch();
    frontend.run_prepared(ring, &prepared);
    settle(frontend, ring);
    let marked = log.take();
    let granted = [prepared.granted(), vec![frontend.rings[ring].used_area()]].concat();
    frontend.rings[ring].return_descs(&prepared.descs);
    frontend.ram.release(mark);
    assert_eq!(frontend.ram.device_writes_outside(&marked.ranges()), [0; 0], "unmarked, in {request:?}");
    let may_be = Pages::of(&granted);
    assert!(
        may_be.is_superset(&marked),
        "{:?} are marked beside {granted:x?}",
        marked.0.difference(&may_be.0)
    );
    marked
}

/// Every kind of request, data cut and placed in every way, with and without an answer that is a success.
fn requests() -> Vec<Request> {
    let border = NEAR_BASE - 700;
    vec![
        Request::read(8, 4096),
        Request::read(0, 1 << 20).indirect().writable(Cut::Every(60_000)),
        Request::read(0, 16 << 10).indirect().writable(Cut::Every(700)),
        Request::read(3, 512).writable(Cut::One),
        // Over the border of two regions.
        Request::read(40, 8192).data_at(border),
        Request::read(40, 8192).data_at(border).indirect().writable(Cut::Every(512)),
        Request::get_id(20),
        Request::get_id(4096).data_at(border),
        Request::write(100, &pattern(1, 70_000 / 512 * 512)),
        Request::write_zeroes(5, 9),
        Request::flush(),
        Request::discard(0, 8),
        // Beyond the end; of no known type; with a length that is no sector; without header.
        Request::read(1 << 40, 4096),
        Request::new(77, 0, Vec::new(), 4096),
        Request::read(0, 4000),
        Request::read(0, 4096).header(vec![0; 7]),
    ]
}

fn every_write_is_marked(refuse: u64) {
    let backend = Serve::encrypted().queues(2).args(&["--serial", "migrating"]).start();
    let setup = Setup { queues: 2, refuse, ..Setup::data(4 * MIB) };
    let frontend = Frontend::with(backend.socket(), setup);
    let log = Log::up_to(128 * MIB);
    log.begin(&frontend);
    let areas: Vec<Range<u64>> = frontend.rings.iter().map(|ring| ring.used_area()).collect();
    assert_eq!(log.take(), Pages::of(&areas), "each ring is marked when its log begins");
    for ring in [0, 1] {
        for request in requests() {
            assert_marked(&frontend, &log, ring, &request);
        }
    }
}

#[test]
fn every_write_is_marked_and_no_other_page() {
    every_write_is_marked(F_EVENT_IDX);
}

#[test]
fn every_write_is_marked_with_event_index() {
    every_write_is_marked(0);
}

/// A used ring over several pages, gone through more than once.
#[test]
fn used_rings_are_marked_where_they_are_written() {
    let backend = Serve::encrypted().start();
    for refuse in [0, F_EVENT_IDX] {
        let setup = Setup { queue_size: 1024, refuse, ..Setup::default() };
        let frontend = Frontend::with(backend.socket(), setup);
        let (ring, log) = (&frontend.rings[0], Log::up_to(128 * MIB));
        log.begin(&frontend);
        let whole = Pages::of(&[ring.used_area()]);
        assert!(whole.0.len() > 2, "{whole:?}");
        let reads = vec![Request::read(0, 512); 150];
        for _ in 0..15 {
            settle(&frontend, 0);
            log.take();
            frontend.ram.watch();
            let seen = ring.used_seen();
            frontend.run_all(0, &reads);
            settle(&frontend, 0);
            let marked = log.take();
            assert_eq!(frontend.ram.device_writes_outside(&marked.ranges()), [0; 0]);
            let element = |index: u16| ring.used + 4 + 8 * u64::from(index % 1024);
            let written = (0..150).map(|i| element(seen.wrapping_add(i))).map(|at| at..at + 8);
            let event = element(1023) + 8;
            let used: Vec<Range<u64>> = written.chain([ring.used..ring.used + 4, event..event + 2]).collect();
            assert!(
                Pages::of(&used).is_superset(&Pages(&marked.0 & &whole.0)),
                "other pages of the used ring"
            );
        }
    }
}

/// Front ends do not repeat SET_LOG_BASE when memory comes or goes.
#[test]
fn changes_of_the_memory_do_not_end_the_log() {
    const PLUGGED: u64 = 256 * MIB;
    let backend = Serve::encrypted().start();
    for memory in [MemoryMessages::Table, MemoryMessages::Slots] {
        let mut frontend = Frontend::with(backend.socket(), Setup { memory, ..Setup::default() });
        let log = Log::up_to(512 * MIB);
        log.begin(&frontend);
        let old = Request::read(8, 8192).data_at(DATA_BASE + 4096);
        let new = Request::read(8, 8192).data_at(PLUGGED + 4096);
        let check = |frontend: &Frontend, request, base: u64| {
            let marked = assert_marked(frontend, &log, 0, request);
            let data = base + 4096..base + 3 * 4096;
            assert!(marked.is_superset(&Pages::of(&[data])), "{memory:?}: {marked:x?}");
        };
        check(&frontend, &old, DATA_BASE);
        let plugged = Region::new(PLUGGED, MIB);
        frontend.ram.plug(plugged.clone());
        match memory {
            MemoryMessages::Table => frontend.share_memory(),
            MemoryMessages::Slots => frontend.add_region(&plugged.info()),
        }
        check(&frontend, &old, DATA_BASE);
        check(&frontend, &new, PLUGGED);
        frontend.ram.unplug(PLUGGED);
        match memory {
            MemoryMessages::Table => frontend.share_memory(),
            MemoryMessages::Slots => {
                frontend.messages.remove_mem_region(&plugged.info()).expect("REM_MEM_REG")
            }
        }
        check(&frontend, &old, DATA_BASE);
        // What stops and starts a ring, the write cache too, does not end it either.
        frontend.set_config(32, &[0]).expect("SET_CONFIG");
        check(&frontend, &old, DATA_BASE);
        frontend.set_config(32, &[1]).expect("SET_CONFIG");
        let base = frontend.stop_ring(0);
        frontend.start_ring(0, base);
        check(&frontend, &old, DATA_BASE);
    }
}

#[test]
fn a_cancelled_migration_ends_the_log_and_another_begins_one() {
    let backend = Serve::encrypted().start();
    let frontend = Frontend::connect(backend.socket());
    let read = Request::read(8, 8192);
    let logs: Vec<Log> = (0..3).map(|_| Log::up_to(128 * MIB)).collect();
    for (round, log) in logs.iter().enumerate() {
        frontend.run(&read).ok();
        settle(&frontend, 0);
        assert_eq!(log.take(), Pages::of(&[]), "not begun yet");
        // A log alone begins nothing.
        log.set(&frontend).expect("SET_LOG_BASE");
        frontend.run(&read).ok();
        settle(&frontend, 0);
        assert_eq!(log.take(), Pages::of(&[]), "LOG_ALL is not set");
        frontend.messages.set_features(frontend.features | F_LOG_ALL).expect("SET_FEATURES");
        assert_marked(&frontend, log, 0, &read);
        log::end(&frontend);
        log.take();
        frontend.run(&read).ok();
        settle(&frontend, 0);
        for log in &logs[..=round] {
            assert_eq!(log.take(), Pages::of(&[]), "the migration is over");
        }
    }
    // The last log is still good for another one.
    frontend.messages.set_features(frontend.features | F_LOG_ALL).expect("SET_FEATURES");
    assert_marked(&frontend, &logs[2], 0, &read);
}

/// QEMU replaces the log by a larger one when memory is plugged.
#[test]
fn a_log_that_replaces_another_takes_over_at_once() {
    let backend = Serve::encrypted().queues(2).start();
    let frontend = Frontend::with(backend.socket(), Setup::queues(2));
    let (first, second) = (Log::up_to(128 * MIB), Log::up_to(256 * MIB));
    first.begin(&frontend);
    second.set(&frontend).expect("SET_LOG_BASE");
    first.take();
    for ring in [0, 1] {
        assert_marked(&frontend, &second, ring, &Request::read(8, 8192));
    }
    assert_eq!(first.take(), Pages::of(&[]), "it is not ours any more");
}

/// A server may die between a write and its mark. Data is marked before its answer can be seen; of the ring, nobody
/// knows.
#[test]
fn a_successor_marks_the_rings_that_it_takes_over() {
    let mut backend = Serve::encrypted().queues(2).start();
    let setup = Setup { keeps_inflight: true, ..Setup::queues(2) };
    let mut frontend = Frontend::with(backend.socket(), setup);
    let log = Log::up_to(128 * MIB);
    log.begin(&frontend);
    (0..2).for_each(|ring| frontend.assert_serves(ring, 0, 1));
    backend.kill();
    log.take();
    backend.start_again();
    frontend = frontend.resume(backend.socket());
    log.begin(&frontend);
    let areas: Vec<Range<u64>> = frontend.rings.iter().map(|ring| ring.used_area()).collect();
    assert!(log.take().is_superset(&Pages::of(&areas)));
    assert_marked(&frontend, &log, 1, &Request::read(8, 8192));
}
