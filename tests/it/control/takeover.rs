//! A new process takes over from a running one, under a guest that goes on.

use std::os::unix::net::UnixListener;

use crate::harness::load::Load;
use crate::harness::*;

fn setup(queues: usize) -> Setup {
    Setup { queues, keeps_inflight: true, ..Setup::data(4 << 20) }
}

#[test]
fn taken_over_under_load() {
    let mut backend = Serve::encrypted().queues(2).controlled().start();
    let mut frontend = Frontend::with(backend.socket(), setup(2));
    let mut load = Load::new(&frontend, &backend.volume.original, 11);
    let socket = std::fs::symlink_metadata(backend.socket()).unwrap();
    for round in 0..10 {
        load.fill(&frontend.rings);
        let target = load.answered + 40;
        while load.answered < target {
            load.wait_for_answer(&frontend.rings);
            load.take_answers(&frontend.rings, true);
        }
        let old = backend.take_over(&[]);
        assert!(old.success(), "round {round}: {old}");
        assert_eq!(frontend.inflight.as_ref().unwrap().count(), 0, "what was taken is answered");
        // It is the same socket: whoever connects meanwhile waits in its backlog.
        frontend = frontend.resume(backend.socket());
    }
    load.finish(&frontend.rings);
    drop(frontend);
    let now = std::fs::symlink_metadata(backend.socket()).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::ino(&socket), std::os::unix::fs::MetadataExt::ino(&now));
    backend.terminate();
    assert!(!backend.socket().exists(), "the last one takes the socket away");
    backend.volume.assert_holds(&load.disk());
}

#[test]
fn the_successor_may_be_served_otherwise() {
    let mut backend = Serve::encrypted().controlled().start();
    let frontend = Frontend::with(backend.socket(), setup(1));
    frontend.assert_serves(0, 0, 1);
    // The volume has grown, and the engine is another.
    let image = std::fs::OpenOptions::new().write(true).open(&backend.volume.image).unwrap();
    image.set_len(8 << 20).unwrap();
    assert!(backend.take_over(&["--engine", "blocking"]).success());
    let mut frontend = frontend.resume(backend.socket());
    assert_eq!(frontend.config(0, 8).unwrap(), (8_u64 << 20 >> 9).to_le_bytes());
    frontend.assert_serves(0, (8 << 20 >> 9) - 8, 2);
}

#[test]
fn whatever_fails_before_leaves_the_old_one_serving() {
    let mut backend = Serve::encrypted().controlled().start();
    let frontend = Frontend::with(backend.socket(), setup(1));
    for (args, part) in [
        (&["--key", "file:/nonexistent"][..], "nonexistent"),
        (&["--sector-size", "4096", "--offset", "1"], "not a multiple of the sector size"),
        (&["--logical-block-size", "4096"], "--logical-block-size"),
    ] {
        let refused = backend.try_take_over(args);
        assert!(!refused.status.success(), "{args:?}");
        let stderr = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(stderr.contains(part), "{args:?}: {stderr}");
        backend.assert_alive();
        frontend.assert_serves(0, 0, 1);
    }
    let gone = backend.control_socket();
    std::fs::rename(&gone, gone.with_extension("moved")).unwrap();
    let refused = backend.try_take_over(&[]);
    assert_eq!(refused.status.code(), Some(6));
    frontend.assert_serves(0, 8, 2);
}

#[test]
fn held_requests_go_to_the_successor() {
    let mut backend = Serve::encrypted().args(&["--on-error", "stop"]).controlled().start();
    let frontend = Frontend::with(backend.socket(), setup(1));
    let image = std::fs::OpenOptions::new().write(true).open(&backend.volume.image).unwrap();
    image.set_len(2 << 20).unwrap();
    let read = frontend.prepare(0, &Request::read(3 << 20 >> 9, 4096));
    frontend.rings[0].publish(&[read.head]);
    frontend.rings[0].kick();
    let mut control = backend.control();
    ring::wait_until("nothing is held", || control.done("status")["queues"][0]["held"] == 1);
    drop(control);
    image.set_len(4 << 20).unwrap();
    assert!(backend.take_over(&[]).success());
    let frontend = frontend.resume(backend.socket());
    read.answer(frontend.rings[0].collect(1)[0]).ok();
}

#[test]
fn an_inherited_listener_is_handed_on_and_a_connection_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let mut backend = Serve::encrypted().inherit(listener).controlled().start();
    ring::wait_until("no control socket", || backend.control_socket().exists());
    assert!(backend.take_over(&[]).success());
    Frontend::connect(&path).assert_serves(0, 0, 1);
    backend.terminate();
    assert!(path.exists(), "it is not ours to remove");

    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut backend = Serve::encrypted().inherit(theirs).controlled().start();
    ring::wait_until("no control socket", || backend.control_socket().exists());
    let frontend = Frontend::over(ours, Setup::default());
    let refused = backend.try_take_over(&[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("was inherited"));
    frontend.assert_serves(0, 0, 1);
    backend.assert_alive();
}
