//! A drained disk: nothing under way, everything durable, and a guest that waits.

use serde_json::json;
use vhost::VhostBackend;

use crate::harness::load::Load;
use crate::harness::*;

#[test]
fn a_drained_disk_takes_nothing_until_it_resumes() {
    let mut backend = Serve::encrypted().queues(2).controlled().start();
    let setup = Setup { queues: 2, keeps_inflight: true, ..Setup::data(4 << 20) };
    let frontend = Frontend::with(backend.socket(), setup);
    let mut load = Load::new(&frontend, &backend.volume.original, 7);
    let mut control = backend.control();
    for round in 0..20 {
        load.fill(&frontend.rings);
        assert_eq!(control.done("drain"), json!({"drained": true}));
        let status = control.done("status");
        assert_eq!(status["drained"], true);
        for queue in 0..2 {
            assert_eq!(status["queues"][queue]["state"], "stopped", "round {round}");
            assert_eq!(status["queues"][queue]["in_flight"], 0);
        }
        assert_eq!(frontend.inflight.as_ref().unwrap().count(), 0, "what was taken is answered");
        load.take_answers(&frontend.rings, false);
        let at = [0, 1].map(|queue| frontend.rings[queue].used_idx());
        load.fill(&frontend.rings);
        frontend.rings.iter().for_each(|ring| ring.expect_silence_from(ring.used_idx(), round));
        assert_eq!(at, [0, 1].map(|queue| frontend.rings[queue].used_idx()));
        if round % 3 == 0 {
            control.done("drain");
        }
        assert_eq!(control.done("resume"), json!({"drained": false}));
    }
    load.finish(&frontend.rings);
    drop(frontend);
    backend.terminate();
    backend.volume.assert_holds(&load.disk());
}

#[test]
fn draining_makes_everything_durable() {
    let backend = Serve::encrypted().args(&["--direct", "off"]).controlled().start();
    std::fs::File::open(&backend.volume.image).and_then(|image| image.sync_all()).unwrap();
    let Ok(0) = page_cache::unwritten_pages(&backend.volume.image) else { return };
    let frontend = Frontend::connect(backend.socket());
    frontend.run(&Request::write(0, &pattern(1, 65536))).ok();
    backend.control().done("drain");
    assert_eq!(page_cache::unwritten_pages(&backend.volume.image).unwrap(), 0);
}

#[test]
fn a_front_end_that_comes_while_the_disk_is_drained_waits() {
    let mut backend = Serve::encrypted().controlled().start();
    let mut control = backend.control();
    control.done("drain");
    let setup = Setup { keeps_inflight: true, ..Setup::default() };
    let frontend = Frontend::with(backend.socket(), setup);
    let write = frontend.prepare(0, &Request::write(0, &pattern(9, 4096)));
    frontend.rings[0].publish(&[write.head]);
    frontend.rings[0].kick();
    frontend.rings[0].expect_silence();
    // It goes on waiting through a change of front ends.
    let frontend = frontend.resume(backend.socket());
    frontend.rings[0].expect_silence();
    control.done("resume");
    write.answer(frontend.rings[0].collect(1)[0]).ok();
    frontend.assert_serves(0, 64, 3);
    // SIGTERM ends a drained server, too.
    control.done("drain");
    backend.terminate();
}

#[test]
fn to_the_front_end_a_drained_ring_runs() {
    let backend = Serve::encrypted().controlled().start();
    let mut frontend = Frontend::connect(backend.socket());
    frontend.assert_serves(0, 0, 1);
    let mut control = backend.control();
    control.done("drain");
    let refused = |frontend: &mut Frontend| {
        let size = frontend.messages.set_vring_num(0, 32).is_err();
        let base = frontend.messages.set_vring_base(0, 0).is_err();
        let addresses = frontend.rings[0].addresses();
        let same = frontend.messages.set_vring_addr(0, &addresses).is_ok();
        (size, base, same)
    };
    assert_eq!(refused(&mut frontend), (true, true, true));
    let memory = frontend.ram.infos();
    frontend.messages.set_mem_table(&memory).expect("SET_MEM_TABLE");
    frontend.rings[0].expect_silence();
    control.done("resume");
    frontend.assert_serves(0, 8, 2);
    // Stopped by the front end while it is drained, it stays stopped.
    control.done("drain");
    let base = frontend.stop_ring(0);
    assert_eq!(base, frontend.rings[0].avail_idx());
    control.done("resume");
    let late = frontend.prepare(0, &Request::read(0, 512));
    frontend.rings[0].publish(&[late.head]);
    frontend.rings[0].kick();
    frontend.rings[0].expect_silence();
    frontend.start_ring(0, base);
    late.answer(frontend.rings[0].collect(1)[0]).ok();
}
