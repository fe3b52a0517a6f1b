//! The socket itself: lines, limits, what is told and what never is.

use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use crate::harness::*;

#[test]
fn status_tells_what_the_queues_have_done() {
    let backend = Serve::encrypted().queues(2).args(&["--discard", "pass"]).controlled().start();
    let mut control = backend.control();
    let status = control.done("status");
    assert_eq!(status["pid"], backend.pid());
    assert_eq!((&status["vmm_connected"], &status["drained"]), (&json!(false), &json!(false)));
    let volume = &status["volume"];
    assert_eq!(volume["path"], backend.volume.image.to_str().unwrap());
    assert_eq!((&volume["capacity_bytes"], &volume["sector_bytes"]), (&json!(4 << 20), &json!(512)));
    assert_eq!((&volume["encrypted"], &volume["sync_failed"]), (&json!(true), &json!(false)));
    assert_eq!(status["queues"][1]["state"], "stopped");

    let frontend = Frontend::with(backend.socket(), Setup::queues(2));
    frontend.run(&Request::write(0, &pattern(1, 8192))).ok();
    frontend.run(&Request::read(0, 4096)).ok();
    frontend.run(&Request::read(1 << 40, 512)).failed(1);
    frontend.run_on(1, &Request::flush()).ok();
    frontend.run_on(1, &Request::write_zeroes(8, 8)).ok();
    frontend.run_on(1, &Request::discard(8, 4)).ok();
    frontend.run_on(1, &Request::get_id(20)).ok();
    let status = control.done("status");
    assert_eq!(status["vmm_connected"], true);
    let nothing = || json!({"requests": 0, "bytes": 0, "errors": 0});
    let first = json!({
        "state": "running", "in_flight": 0, "held": 0, "last_error": null, "refused": 1,
        "read": {"requests": 1, "bytes": 4096, "errors": 0},
        "write": {"requests": 1, "bytes": 8192, "errors": 0},
        "flush": nothing(), "discard": nothing(), "write_zeroes": nothing(), "get_id": nothing(),
    });
    let second = json!({
        "state": "running", "in_flight": 0, "held": 0, "last_error": null, "refused": 0,
        "read": nothing(), "write": nothing(),
        "flush": {"requests": 1, "bytes": 0, "errors": 0},
        "discard": {"requests": 1, "bytes": 2048, "errors": 0},
        "write_zeroes": {"requests": 1, "bytes": 4096, "errors": 0},
        "get_id": {"requests": 1, "bytes": 0, "errors": 0},
    });
    assert_eq!(status["queues"], json!([first, second]));
}

#[test]
fn a_broken_ring_shows() {
    let backend = Serve::encrypted().controlled().start();
    let frontend = Frontend::connect(backend.socket());
    frontend.rings[0].set_avail_idx(1000);
    frontend.rings[0].kick();
    let mut control = backend.control();
    ring::wait_until("the ring is not broken", || control.done("status")["queues"][0]["state"] == "broken");
}

#[test]
fn clients_are_bounded_and_so_are_their_lines() {
    let backend = Serve::encrypted().controlled().start();
    let mode = std::fs::metadata(backend.control_socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut clients: Vec<Control> = (0..16).map(|_| backend.control()).collect();
    clients.iter_mut().for_each(|client| drop(client.done("status")));
    let (kind, message) = backend.control().failed("status");
    assert_eq!((kind.as_str(), message.as_str()), ("refused", "16 clients are connected already"));
    clients.pop();
    ring::wait_until("no place is given back", || {
        let mut client = backend.control();
        client.begin("status");
        client.answer().is_some_and(|answer| answer.get("result").is_some())
    });
    let mut client = clients.pop().unwrap();
    for line in ["nonsense\n", "{\"command\":\"status\",\"more\":1}\n", "\n", "[1]\n", "\u{0}\n"] {
        client.send(line.as_bytes());
        assert_eq!(client.answer().unwrap()["error"]["kind"], "request", "{line:?}");
    }
    client.send(b"{\"id\":\"mine\",\"command\":\"status\"}\n{\"id\":2,\"command\":\"flush\"}\n");
    assert_eq!(client.answer().unwrap()["id"], "mine");
    assert_eq!(client.answer().unwrap(), json!({"version": 1, "id": 2, "result": {}}));
    client.send(&[b'x'; 4096]);
    assert_eq!(client.answer().unwrap()["error"]["message"], "a request has at most 4096 bytes");
    assert!(client.answer().is_none());
    Frontend::connect(backend.socket()).assert_serves(0, 0, 1);
}

#[test]
fn who_does_not_read_answers_holds_nobody_up() {
    let backend = Serve::encrypted().controlled().start();
    let frontend = Frontend::connect(backend.socket());
    let mut deaf = backend.control();
    // Each is answered by the main thread; the answers fill the socket, and then it is cut off.
    let mut sent = 0;
    while deaf.try_send(b"{\"command\":\"resume\"}\n") {
        sent += 1;
        assert!(sent < 1_000_000, "it is never cut off");
    }
    frontend.assert_serves(0, 0, 1);
    drop(frontend);
    let second = Frontend::connect(backend.socket());
    second.assert_serves(0, 8, 2);
    assert_eq!(backend.control().done("status")["vmm_connected"], true);
}

#[test]
fn flush_makes_durable_what_was_written() {
    let backend = Serve::encrypted().args(&["--direct", "off"]).controlled().start();
    std::fs::File::open(&backend.volume.image).and_then(|image| image.sync_all()).unwrap();
    let Ok(0) = page_cache::unwritten_pages(&backend.volume.image) else { return };
    let frontend = Frontend::connect(backend.socket());
    frontend.run(&Request::write(0, &pattern(1, 65536))).ok();
    assert!(page_cache::unwritten_pages(&backend.volume.image).unwrap() > 0);
    assert_eq!(backend.control().done("flush"), json!({}));
    assert_eq!(page_cache::unwritten_pages(&backend.volume.image).unwrap(), 0);
}

#[test]
fn shutdown_ends_the_process_and_takes_its_sockets_away() {
    for connected in [false, true] {
        let mut backend = Serve::encrypted().controlled().start();
        let frontend = connected.then(|| Frontend::connect(backend.socket()));
        if let Some(frontend) = &frontend {
            frontend.run(&Request::write(0, &pattern(1, 4096))).ok();
        }
        let mut control = backend.control();
        assert_eq!(control.done("shutdown"), json!({}));
        assert!(control.answer().is_none(), "then the connection ends");
        assert!(backend.wait().success());
        assert!(backend.stderr().contains("all writes are durable"));
        assert!(!backend.socket().exists() && !backend.control_socket().exists());
    }
}
