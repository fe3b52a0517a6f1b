//! How much the guest may ask for, from the start and changed under way.

use serde_json::{Value, json};

use crate::harness::ring::wait_until;
use crate::harness::*;

/// Three times the burst of these tests, and what a ring has descriptors for.
const OFFERED: usize = 24;
const BURST: usize = 8;

/// Makes flushes available.
fn offer(frontend: &Frontend, ring: usize) {
    let heads: Vec<u16> = (0..OFFERED).map(|_| frontend.prepare(ring, &Request::flush()).head).collect();
    frontend.rings[ring].publish(&heads);
    frontend.rings[ring].kick();
}

fn limit(limits: &Value) -> String {
    json!({"command": {"limit": limits}}).to_string()
}

#[test]
fn a_limited_disk_answers_the_burst_and_the_rest_in_time() {
    let limits = ["--limit-iops", "1", "--limit-iops-burst", "8", "--limit-bytes", "10M"];
    let mut backend = Serve::encrypted().args(&limits).controlled().start();
    let frontend = Frontend::with(backend.socket(), Setup::default());
    let mut control = backend.control();
    let bytes = json!({"per_second": 10 << 20, "burst": 1 << 20});
    let shown = control.done("status")["limits"].clone();
    assert_eq!(shown, json!({"requests": {"per_second": 1, "burst": 8}, "bytes": bytes}));

    offer(&frontend, 0);
    let ring = &frontend.rings[0];
    ring.collect(BURST);
    assert!(usize::from(ring.pending()) < OFFERED - BURST, "the rest waits");
    assert_eq!(control.done("status")["queues"][0]["in_flight"], 0, "in the ring, not here");

    // Who drains waits for nothing but storage, and what waits in the ring is not lost.
    assert_eq!(control.done("drain"), json!({"drained": true}));
    control.done("resume");
    let faster = json!({"requests": {"per_second": 1_000_000}});
    control.send(format!("{}\n", limit(&faster)).as_bytes());
    let settled = json!({"requests": {"per_second": 1_000_000, "burst": 100_000}, "bytes": null});
    assert_eq!(control.answer().expect("an answer")["result"], settled);
    ring.collect(OFFERED - BURST);
    control.send(format!("{}\n", limit(&json!({}))).as_bytes());
    assert_eq!(control.answer().expect("an answer")["result"], json!({"requests": null, "bytes": null}));
    frontend.assert_serves(0, 0, 1);
    drop(frontend);
    backend.terminate();
}

#[test]
fn queues_share_the_limit_of_their_disk() {
    let mut backend =
        Serve::encrypted().queues(2).args(&["--limit-iops", "1", "--limit-iops-burst", "8"]).start();
    let frontend = Frontend::with(backend.socket(), Setup::queues(2));
    (0..2).for_each(|ring| offer(&frontend, ring));
    let answered = || frontend.rings.iter().map(|ring| usize::from(ring.pending())).sum::<usize>();
    wait_until("the burst", || answered() >= BURST);
    assert!(answered() < OFFERED, "{} are answered", answered());
    drop(frontend);
    backend.terminate();
}

#[test]
fn bytes_are_limited_as_well() {
    let limits = ["--limit-bytes", "4K", "--limit-bytes-burst", "16K"];
    let mut backend = Serve::encrypted().args(&limits).start();
    let frontend = Frontend::with(backend.socket(), Setup::default());
    let writes: Vec<u16> =
        (0..16).map(|n| frontend.prepare(0, &Request::write(8 * n, &pattern(n, 4096))).head).collect();
    let ring = &frontend.rings[0];
    ring.publish(&writes);
    ring.kick();
    wait_until("the burst", || ring.pending() >= 4);
    assert!(ring.pending() < 16);
    drop(frontend);
    backend.terminate();
}
