//! `--on-error stop`: requests that storage fails are held until the operator has them tried again.
//!
//! The storage that fails is a file that was cut short: what lies behind its end cannot be read until it is as long as
//! before.

use std::fs::OpenOptions;

use crate::harness::request::Prepared;
use crate::harness::ring::wait_until;
use crate::harness::*;

const BYTES: u64 = 4 << 20;
/// A sector that is cut off.
const LOST: u64 = 3 << 20 >> 9;

fn set_len(backend: &Backend, bytes: u64) {
    OpenOptions::new().write(true).open(&backend.volume.image).unwrap().set_len(bytes).unwrap();
}

/// A disk half of which cannot be read now.
fn half_a_disk(args: &[&str], setup: Setup) -> (Backend, Frontend, Control) {
    let backend = Serve::encrypted().args(&["--on-error", "stop"]).args(args).controlled().start();
    let frontend = Frontend::with(backend.socket(), setup);
    set_len(&backend, BYTES / 2);
    let control = backend.control();
    (backend, frontend, control)
}

fn offer(frontend: &Frontend, request: &Request) -> Prepared {
    let prepared = frontend.prepare(0, request);
    frontend.rings[0].publish(&[prepared.head]);
    frontend.rings[0].kick();
    prepared
}

fn wait_for_held(control: &mut Control, count: u64) {
    wait_until("nothing is held", || control.done("status")["queues"][0]["held"] == count);
}

fn held_and_retried(engine: &str) {
    let (mut backend, frontend, mut control) = half_a_disk(&["--engine", engine], Setup::default());
    let read = offer(&frontend, &Request::read(LOST, 4096));
    wait_for_held(&mut control, 1);
    let queue = control.done("status")["queues"][0].clone();
    assert_eq!((&queue["state"], &queue["in_flight"]), (&"held".into(), &1.into()));
    let error = queue["last_error"].as_str().unwrap();
    assert!(error.starts_with(&format!("read of 4096 bytes at byte {}: ", LOST * 512)), "{error}");
    // The queue rests: what comes now is not begun, whatever it is.
    let write = offer(&frontend, &Request::write(0, &pattern(2, 4096)));
    frontend.rings[0].expect_silence();
    // Tried again in vain, it is held again. Meanwhile the queue runs.
    assert_eq!(control.done("retry")["retried"], 1);
    write.answer(frontend.rings[0].collect(1)[0]).ok();
    wait_for_held(&mut control, 1);
    let write = offer(&frontend, &Request::write(8, &pattern(3, 4096)));
    frontend.rings[0].expect_silence();
    let (kind, message) = control.failed("drain");
    assert_eq!(kind, "refused");
    assert!(message.contains("1 requests") && message.contains("retry"), "{message}");
    // A flush does not need the queue.
    control.done("flush");
    set_len(&backend, BYTES);
    assert_eq!(control.done("retry")["retried"], 1);
    let used = frontend.rings[0].collect(2);
    let of = |prepared: &Prepared| used.iter().find(|used| used.head == u32::from(prepared.head)).unwrap();
    // A hole of the file.
    let hole = backend.volume.layout.decrypt(&vec![0; BYTES as usize]);
    assert_eq!(read.answer(*of(&read)).ok(), hole[LOST as usize * 512..][..4096]);
    write.answer(*of(&write)).ok();
    assert_eq!(control.done("retry")["retried"], 0);
    assert_eq!(control.done("status")["queues"][0]["state"], "running");
    frontend.assert_serves(0, 64, 3);
    control.done("drain");
    drop(frontend);
    backend.terminate();
    assert_eq!(backend.stderr().matches("storage failed a request, which is held").count(), 2);
}

#[test]
fn held_requests_are_tried_again_uring() {
    held_and_retried("uring");
}

#[test]
fn held_requests_are_tried_again_blocking() {
    held_and_retried("blocking");
}

#[test]
fn a_request_in_pieces_is_tried_again_whole() {
    let (backend, frontend, mut control) = half_a_disk(&[], Setup::data(4 << 20));
    // Half of it can be read.
    let start = BYTES / 4 / 512;
    let read = offer(&frontend, &Request::read(start, 2 << 20));
    wait_for_held(&mut control, 1);
    set_len(&backend, BYTES);
    control.done("retry");
    let read = read.answer(frontend.rings[0].collect(1)[0]).ok();
    let (there, hole) = read.split_at(1 << 20);
    assert!(there == &backend.volume.original[start as usize * 512..][..1 << 20]);
    assert!(hole == &backend.volume.layout.decrypt(&vec![0; BYTES as usize])[2 << 20..][..1 << 20]);
}

#[test]
fn a_ring_that_the_front_end_stops_does_not_wait_for_storage() {
    let (backend, mut frontend, mut control) = half_a_disk(&[], Setup::default());
    let read = offer(&frontend, &Request::read(LOST, 4096));
    wait_for_held(&mut control, 1);
    let base = frontend.stop_ring(0);
    assert_eq!(base, 1);
    read.answer(frontend.rings[0].collect(1)[0]).failed(1);
    assert_eq!(control.done("status")["queues"][0]["held"], 0);
    frontend.start_ring(0, base);
    frontend.assert_serves(0, 0, 1);
    // It holds again afterwards.
    let read = offer(&frontend, &Request::read(LOST, 4096));
    wait_for_held(&mut control, 1);
    set_len(&backend, BYTES);
    control.done("retry");
    read.answer(frontend.rings[0].collect(1)[0]).ok();
}

#[test]
fn sigterm_leaves_held_requests_to_the_successor() {
    let setup = Setup { keeps_inflight: true, ..Setup::default() };
    let (mut backend, mut frontend, mut control) = half_a_disk(&[], setup);
    let read = offer(&frontend, &Request::read(LOST, 4096));
    wait_for_held(&mut control, 1);
    let late = offer(&frontend, &Request::read(0, 512));
    drop(control);
    backend.terminate();
    assert_eq!(frontend.inflight.as_ref().unwrap().count(), 1, "the region has it still");
    frontend.rings[0].expect_silence();
    set_len(&backend, BYTES);
    backend.start_again();
    frontend = frontend.resume(backend.socket());
    let used = frontend.rings[0].collect(2);
    assert_eq!(used[0].head, u32::from(read.head), "it is repeated before anything new");
    read.answer(used[0]).ok();
    late.answer(used[1]).ok();
}

#[test]
fn without_a_region_sigterm_answers_held_requests() {
    let (mut backend, frontend, mut control) = half_a_disk(&[], Setup::default());
    let read = offer(&frontend, &Request::read(LOST, 4096));
    wait_for_held(&mut control, 1);
    backend.terminate();
    read.answer(frontend.rings[0].collect(1)[0]).failed(1);
}

#[test]
fn by_default_the_guest_is_told() {
    let backend = Serve::encrypted().controlled().start();
    let frontend = Frontend::connect(backend.socket());
    set_len(&backend, BYTES / 2);
    frontend.run(&Request::read(LOST, 4096)).failed(1);
    frontend.assert_serves(0, 0, 1);
    let status = backend.control().done("status");
    assert_eq!(
        (&status["queues"][0]["held"], &status["queues"][0]["read"]["errors"]),
        (&0.into(), &1.into())
    );
}
