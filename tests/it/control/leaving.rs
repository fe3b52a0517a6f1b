//! What an operator, or storage, does to a disk while its guest is being migrated.

use serde_json::json;

use super::resize::{CONFIG_CHANGE, capacity, heard, listening, set_size};
use crate::harness::log::{self, Log, Pages};
use crate::harness::memory::*;
use crate::harness::request::Prepared;
use crate::harness::ring::{Ring, wait_until};
use crate::harness::wire::dial;
use crate::harness::*;

/// A server that waits for the guest of `source`.
fn destination(source: &Backend) -> Backend {
    Serve::volume(source.volume.layout.clone())
        .behind(&source.volume.image)
        .args(&["--incoming", "--incoming-timeout", "0"])
        .controlled()
        .start()
}

/// A front end that has started no ring yet.
fn arriving(target: &Backend, setup: Setup) -> Frontend {
    let ram = GuestRam::new(setup.data_bytes);
    let rings = (0..setup.queues).map(|index| Ring::new(&ram, index, setup.queue_size)).collect();
    let mut frontend = Frontend::begin(dial(target.socket()), setup, ram, rings);
    frontend.share_memory();
    frontend
}

fn offer(frontend: &Frontend, request: &Request) -> Prepared {
    let prepared = frontend.prepare(0, request);
    frontend.rings[0].publish(&[prepared.head]);
    frontend.rings[0].kick();
    prepared
}

#[test]
fn a_drained_guest_leaves_and_arrives() {
    let source = Serve::encrypted().controlled().start();
    let target = destination(&source);
    let mut frontend = Frontend::connect(source.socket());
    frontend.run(&Request::write(0, &pattern(1, 4096))).ok();
    source.control().done("drain");
    let late = offer(&frontend, &Request::read(0, 4096));
    Log::up_to(128 * MIB).begin(&frontend);
    let base = frontend.stop_ring(0);
    assert_eq!(base + 1, frontend.rings[0].avail_idx(), "what came since is not taken");
    // Nothing is left here to go on.
    assert_eq!(source.control().done("resume"), json!({"drained": false}));
    assert_eq!(source.control().done("status")["queues"][0]["state"], "stopped");
    frontend.rings[0].expect_silence();

    let frontend = frontend.resume_at(target.socket(), |_| base);
    assert!(late.answer(frontend.rings[0].collect(1)[0]).ok() == pattern(1, 4096));
    // The source's drain did not come along.
    assert_eq!(target.control().done("status")["drained"], false);
}

#[test]
fn a_drained_destination_takes_the_volume_when_it_resumes() {
    let mut source = Serve::encrypted().controlled().start();
    let target = destination(&source);
    target.control().done("drain");
    let mut frontend = Frontend::connect(source.socket());
    Log::up_to(128 * MIB).begin(&frontend);
    let base = frontend.stop_ring(0);
    let mut arrived = arriving(&target, Setup::default());
    arrived.start_ring(0, 0);
    let read = offer(&arrived, &Request::read(0, 512));
    arrived.rings[0].expect_silence();
    // It did not take anything yet: the guest can still go on where it was, and then not there.
    log::end(&frontend);
    frontend.start_ring(0, base);
    frontend.assert_serves(0, 0, 1);
    let (kind, _) = target.control().failed("resume");
    assert_eq!(kind, "failed");
    drop(frontend);
    source.terminate();
    target.control().done("resume");
    read.answer(arrived.rings[0].collect(1)[0]).ok();
}

#[test]
fn what_is_held_is_answered_before_the_guest_leaves() {
    let source = Serve::encrypted().args(&["--on-error", "stop"]).controlled().start();
    let target = destination(&source);
    let setup = || Setup { keeps_inflight: true, ..Setup::default() };
    let mut frontend = Frontend::with(source.socket(), setup());
    set_size(&source, 2 * MIB);
    let log = Log::up_to(128 * MIB);
    log.begin(&frontend);
    let mut control = source.control();
    let read = offer(&frontend, &Request::read(3 * MIB / 512, 4096));
    wait_until("nothing is held", || control.done("status")["queues"][0]["held"] == 1);
    log.take();
    assert_eq!(frontend.inflight.as_ref().unwrap().count(), 1);
    frontend.ram.watch();
    assert_eq!(frontend.stop_ring(0), 1);
    read.answer(frontend.rings[0].collect(1)[0]).failed(1);
    let marked = log.take();
    assert_eq!(frontend.ram.device_writes_outside(&marked.ranges()), [0; 0], "the answer is marked");
    assert!(marked.is_superset(&Pages::of(&[frontend.rings[0].used_area()])));
    assert_eq!(frontend.inflight.as_ref().unwrap().count(), 0, "nobody repeats it");
    assert_eq!(control.done("status")["queues"][0]["held"], 0);
    assert_eq!(control.done("retry")["retried"], 0);

    set_size(&source, 4 * MIB);
    let arrived = Frontend::with(target.socket(), setup());
    arrived.assert_serves(0, 0, 1);
}

#[test]
fn a_disk_that_grew_on_the_way_is_as_large_where_it_arrives() {
    let source = Serve::encrypted().controlled().start();
    let target = destination(&source);
    let mut frontend = Frontend::with(source.socket(), listening());
    let mut arrived = arriving(&target, listening());
    let log = Log::up_to(128 * MIB);
    log.begin(&frontend);
    set_size(&source, 8 * MIB);
    assert_eq!(source.control().done("resize")["vmm_told"], true);
    assert_eq!(heard(&frontend), CONFIG_CHANGE);
    let end = 8 * MIB / 512;
    log.take();
    let data = pattern(7, 4096);
    frontend.run(&Request::write(end - 8, &data)).ok();
    assert!(log.take().is_superset(&Pages::of(&[frontend.rings[0].used_area()])), "the log goes on");
    assert_eq!(capacity(&mut arrived), 4 * MIB, "as large as the volume was");
    let base_there = frontend.stop_ring(0);

    arrived.start_ring(0, 0);
    assert_eq!(heard(&arrived), CONFIG_CHANGE);
    assert_eq!(capacity(&mut arrived), 8 * MIB);
    assert!(arrived.run(&Request::read(end - 8, 4096)).ok() == data);
    arrived.run(&Request::read(end, 512)).failed(1);
    assert_eq!(target.control().done("status")["volume"]["capacity_bytes"], 8 * MIB);

    // There and back again, extended by nobody's order and by no whole sector at first.
    Log::up_to(128 * MIB).begin(&arrived);
    let base = arrived.stop_ring(0);
    set_size(&source, 9 * MIB + 100);
    log::end(&arrived);
    arrived.start_ring(0, base);
    assert_eq!(capacity(&mut arrived), 8 * MIB);
    wait_until("it is not said why", || target.stderr().contains("the disk keeps its size"));
    Log::up_to(128 * MIB).begin(&arrived);
    arrived.stop_ring(0);
    set_size(&source, 9 * MIB);
    log::end(&frontend);
    frontend.start_ring(0, base_there);
    assert_eq!(heard(&frontend), CONFIG_CHANGE);
    assert_eq!(capacity(&mut frontend), 9 * MIB);
    frontend.assert_serves(0, 9 * MIB / 512 - 8, 8);
}
