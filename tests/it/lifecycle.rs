//! Rings start, stop and move; front ends come and go; memory appears and disappears. Requests go on.

use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

use crate::harness::frontend::*;
use crate::harness::memory::*;
use crate::harness::request::*;
use crate::harness::ring::*;
use crate::harness::wire::dial;
use crate::harness::*;

#[test]
fn a_stopped_ring_continues_where_it_was() {
    let backend = Serve::encrypted().start();
    let mut frontend = Frontend::connect(backend.socket());
    for round in 0..5u16 {
        for _ in 0..3 {
            frontend.run(&Request::read(0, 4096)).ok();
        }
        let base = frontend.stop_ring(0);
        assert_eq!(base, 3 * (round + 1));
        frontend.rings[0].kick();
        frontend.start_ring(0, base);
    }
    frontend.assert_serves(0, 8, 1);
}

#[test]
fn get_vring_base_waits_for_requests_in_flight() {
    let mut backend = Serve::encrypted().payload_bytes(32 << 20).start();
    let mut frontend = Frontend::with(backend.socket(), Setup { queue_size: 256, ..Setup::data(40 * MIB) });
    let mut model = backend.volume.original.clone();
    let writes: Vec<Prepared> = (0..16usize)
        .map(|i| {
            let data = pattern(500 + i as u64, 1 << 20);
            model[i << 20..(i + 1) << 20].copy_from_slice(&data);
            frontend.prepare(0, &Request::write((i << 20) as u64 / 512, &data))
        })
        .collect();
    frontend.rings[0].publish(&writes.iter().map(|write| write.head).collect::<Vec<_>>());
    frontend.rings[0].kick();
    let base = frontend.stop_ring(0);
    let ring = &frontend.rings[0];
    assert_eq!(ring.used_idx(), base, "what was taken was answered before the reply");
    let answered: Vec<Used> = ring.collect_by_polling(usize::from(base));
    ring.expect_silence();
    for used in &answered {
        let write = writes.iter().find(|write| u32::from(write.head) == used.head).expect("a head of ours");
        assert_eq!(write.status(), S_OK);
    }
    frontend.start_ring(0, base);
    frontend.rings[0].kick();
    frontend.rings[0].collect_by_polling(16 - usize::from(base));
    drop(frontend);
    backend.terminate();
    backend.volume.assert_holds(&model);
}

#[test]
fn reset_device_begins_anew() {
    let backend = Serve::encrypted().queues(2).start();
    let mut frontend = Frontend::with(backend.socket(), Setup::queues(2));
    for round in 0..5 {
        frontend.assert_serves(0, 8 * round, round);
        frontend.assert_serves(1, 8 * round + 800, round);
        frontend.messages.reset_device().expect("RESET_DEVICE");
        frontend.rings.iter().for_each(Ring::reset);
        frontend.share_memory();
        (0..2).for_each(|index| frontend.start_ring(index, 0));
    }
    frontend.assert_serves(1, 0, 9);
}

#[test]
fn front_ends_come_and_go() {
    let mut backend = Serve::encrypted().start();
    for round in 0..20 {
        let frontend = Frontend::connect(backend.socket());
        frontend.assert_serves(0, 8 * round, round);
        // Gone at once, with the socket as the only farewell.
        drop(frontend);
        assert!(backend.socket().exists(), "the socket stays");
    }
    // A connection that says nothing does not count.
    drop(dial(backend.socket()));
    Frontend::connect(backend.socket()).assert_serves(0, 0, 1);
    backend.terminate();
}

#[test]
fn a_guest_outlives_its_connection() {
    let backend = Serve::encrypted().start();
    let mut frontend = Frontend::connect(backend.socket());
    for round in 0..5 {
        frontend.assert_serves(0, 8 * round, round);
        frontend = frontend.resume(backend.socket());
        frontend.assert_serves(0, 8 * round, round + 100);
    }
}

#[test]
fn disconnect_with_requests_in_flight() {
    let mut backend = Serve::encrypted().payload_bytes(16 << 20).start();
    for round in 0..10u64 {
        let frontend = Frontend::with(backend.socket(), Setup { queue_size: 256, ..Setup::data(24 * MIB) });
        let data = pattern(round, 1 << 20);
        let writes: Vec<Prepared> =
            (0..16).map(|i| frontend.prepare(0, &Request::write(i * 2048, &data))).collect();
        frontend.rings[0].publish(&writes.iter().map(|write| write.head).collect::<Vec<_>>());
        frontend.rings[0].kick();
        drop(frontend);
    }
    let frontend = Frontend::connect(backend.socket());
    frontend.assert_serves(0, 0, 1);
    drop(frontend);
    backend.terminate();
}

#[test]
fn the_second_front_end_waits_for_the_first() {
    let backend = Serve::encrypted().start();
    let first = Frontend::connect(backend.socket());
    let path = backend.socket().to_path_buf();
    let second = std::thread::spawn(move || {
        let frontend = Frontend::connect(&path);
        frontend.assert_serves(0, 64, 2);
        Instant::now()
    });
    let patience = Instant::now() + Duration::from_millis(200);
    while Instant::now() < patience {
        first.assert_serves(0, 0, 1);
    }
    assert!(!second.is_finished(), "one front end at a time");
    let gone = Instant::now();
    drop(first);
    assert!(second.join().expect("the second front end is served") >= gone);
}

#[test]
fn once_means_once() {
    let mut backend = Serve::encrypted().args(&["--once"]).start();
    let frontend = Frontend::connect(backend.socket());
    frontend.assert_serves(0, 0, 1);
    drop(frontend);
    let status = backend.wait();
    assert!(status.success(), "{status}");
}

#[test]
fn an_inherited_listening_socket() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).expect("bind");
    let mut backend = Serve::encrypted().inherit(listener).start();
    for round in 0..3 {
        Frontend::connect(&path).assert_serves(0, 8 * round, round);
    }
    backend.terminate();
    assert!(path.exists(), "a socket that somebody else made is not removed");
}

#[test]
fn an_inherited_connected_socket() {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("socket pair");
    let mut backend = Serve::encrypted().inherit(theirs).start();
    let frontend = Frontend::over(ours, Setup::default());
    frontend.assert_serves(0, 0, 1);
    drop(frontend);
    let status = backend.wait();
    assert!(status.success(), "nobody else can come: {status}");
}

#[test]
fn client_mode_connects_and_comes_back() {
    let mut backend = Serve::encrypted().connecting().start();
    // It starts before anybody listens.
    std::thread::sleep(Duration::from_millis(150));
    backend.assert_alive();
    for round in 0..3 {
        let listener = UnixListener::bind(backend.socket()).expect("bind");
        let waiting = poll_readable(std::os::fd::AsFd::as_fd(&listener), PATIENCE);
        assert!(waiting, "the server connects, round {round}");
        let (stream, _) = listener.accept().expect("accept");
        drop(listener);
        std::fs::remove_file(backend.socket()).expect("remove our own socket");
        let frontend = Frontend::over(stream, Setup::default());
        frontend.assert_serves(0, 8 * round, round);
    }
    backend.terminate();
}

#[test]
fn sigterm_with_requests_in_flight_keeps_what_was_acknowledged() {
    for round in 0..5u64 {
        let mut backend = Serve::encrypted().payload_bytes(16 << 20).start();
        let frontend = Frontend::with(backend.socket(), Setup { queue_size: 256, ..Setup::data(24 * MIB) });
        let mut model = backend.volume.original.clone();
        let blocks: Vec<Vec<u8>> = (0..16).map(|i| pattern(900 + round * 16 + i, 1 << 20)).collect();
        let writes: Vec<Prepared> = blocks
            .iter()
            .enumerate()
            .map(|(i, data)| frontend.prepare(0, &Request::write(i as u64 * 2048, data)))
            .collect();
        frontend.rings[0].publish(&writes.iter().map(|write| write.head).collect::<Vec<_>>());
        frontend.rings[0].kick();
        std::thread::sleep(Duration::from_millis(round * 3));
        backend.signal_term();
        let status = backend.wait();
        assert!(status.success(), "{status}");
        let answered: Vec<u32> =
            std::iter::from_fn(|| frontend.rings[0].pop_used()).map(|used| used.head).collect();
        let now = backend.volume.plaintext();
        for (i, (data, write)) in blocks.iter().zip(&writes).enumerate() {
            let range = i << 20..(i + 1) << 20;
            if answered.contains(&u32::from(write.head)) {
                assert_eq!(write.status(), S_OK);
                assert!(now[range.clone()] == **data, "acknowledged write {i} is on the volume");
            } else {
                assert_eq!(write.status(), S_UNTOUCHED, "a status without an answer");
            }
            model[range.clone()].copy_from_slice(&now[range]);
        }
        backend.volume.assert_holds(&model);
    }
}

#[test]
fn sigterm_without_a_front_end() {
    let mut backend = Serve::encrypted().start();
    backend.terminate();
    assert!(!backend.socket().exists(), "a server removes its socket");
}

#[test]
fn memory_slots_come_and_go_while_requests_run() {
    let backend = Serve::encrypted().start();
    let setup = Setup { memory: MemoryMessages::Slots, ..Setup::default() };
    let mut frontend = Frontend::with(backend.socket(), setup);
    let base = DATA_BASE + (1 << 30);
    for round in 0..10u64 {
        let load = frontend.prepare(0, &Request::read(0, 65536));
        frontend.rings[0].publish(&[load.head]);
        frontend.rings[0].kick();
        let slot = base + round * 4 * MIB;
        frontend.ram.plug(Region::new(slot, 64 << 10));
        let info = frontend.ram.region(slot).info();
        frontend.add_region(&info);
        load.answer(frontend.rings[0].collect(1)[0]).ok();
        let data = pattern(round, 4096);
        frontend.run(&Request::write(8 * round, &data).data_at(slot + 100)).ok();
        assert_eq!(frontend.run(&Request::read(8 * round, 4096).data_at(slot + 8192)).ok(), data);
        frontend.messages.remove_mem_region(&info).expect("REM_MEM_REG");
        let gone = frontend.run(&Request::read(8 * round, 4096).data_at(slot + 8192));
        assert_eq!((gone.status, gone.used_len), (S_IOERR, 1), "removed memory is out of reach");
        frontend.ram.unplug(slot);
        frontend.rings[0].return_descs(&load.descs);
    }
    frontend.assert_serves(0, 0, 3);
}

#[test]
fn set_mem_table_again_while_requests_run() {
    let mut backend = Serve::encrypted().start();
    let mut frontend = Frontend::with(backend.socket(), Setup { queue_size: 256, ..Setup::data(4 * MIB) });
    let reads: Vec<Prepared> = (0..16).map(|i| frontend.prepare(0, &Request::read(i * 128, 65536))).collect();
    let heads: Vec<u16> = reads.iter().map(|read| read.head).collect();
    for round in 0..30 {
        frontend.rings[0].publish(&heads);
        frontend.rings[0].kick();
        frontend.share_memory();
        for used in frontend.rings[0].collect(16) {
            let (i, read) =
                reads.iter().enumerate().find(|(_, r)| u32::from(r.head) == used.head).expect("ours");
            let data = read.answer(used).ok();
            assert!(data == backend.volume.original[i * 65536..(i + 1) * 65536], "round {round}, read {i}");
            read.forget();
        }
    }
    backend.assert_alive();
}

#[test]
fn a_disabled_ring_holds_its_requests() {
    let backend = Serve::encrypted().start();
    let mut frontend = Frontend::connect(backend.socket());
    let read = frontend.prepare(0, &Request::read(0, 4096));
    for _ in 0..10 {
        frontend.messages.set_vring_enable(0, false).expect("disable");
        frontend.rings[0].publish(&[read.head]);
        frontend.rings[0].kick();
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(frontend.rings[0].pending(), 0);
        frontend.messages.set_vring_enable(0, true).expect("enable");
        read.answer(frontend.rings[0].collect(1)[0]).ok();
    }
}

#[test]
fn a_kick_before_the_ring_is_enabled_is_not_lost() {
    let backend = Serve::encrypted().start();
    let ram = GuestRam::new(1 << 20);
    let rings = vec![Ring::new(&ram, 0, 64)];
    let mut frontend = Frontend::begin(dial(backend.socket()), Setup::default(), ram, rings);
    frontend.share_memory();
    frontend.configure_ring(0, 0);
    let read = frontend.prepare(0, &Request::read(0, 4096));
    let ring = &frontend.rings[0];
    ring.publish(&[read.head]);
    frontend.messages.set_vring_call(0, &ring.call).expect("SET_VRING_CALL");
    frontend.messages.set_vring_kick(0, &ring.kick.borrow()).expect("SET_VRING_KICK");
    ring.kick();
    ring.expect_silence();
    frontend.messages.set_vring_enable(0, true).expect("SET_VRING_ENABLE");
    read.answer(frontend.rings[0].collect(1)[0]).ok();
}

#[test]
fn a_new_kick_descriptor_on_a_running_ring() {
    let backend = Serve::encrypted().start();
    let frontend = Frontend::connect(backend.socket());
    for round in 0..5 {
        frontend.assert_serves(0, 0, round);
        let new = eventfd();
        frontend.messages.set_vring_kick(0, &new).expect("SET_VRING_KICK");
        *frontend.rings[0].kick.borrow_mut() = new;
        frontend.assert_serves(0, 8, round);
    }
}

#[test]
fn a_new_call_descriptor_on_a_running_ring() {
    let backend = Serve::encrypted().start();
    let mut frontend = Frontend::connect(backend.socket());
    for round in 0..5 {
        frontend.assert_serves(0, 0, round);
        frontend.rings[0].call = eventfd();
        frontend.messages.set_vring_call(0, &frontend.rings[0].call).expect("SET_VRING_CALL");
        frontend.assert_serves(0, 8, round);
    }
}

#[test]
fn four_queues_at_once() {
    let mut backend = Serve::encrypted().queues(4).payload_bytes(16 << 20).start();
    let frontend = Frontend::with(backend.socket(), Setup { queue_size: 128, ..Setup::queues(4) });
    let mut model = backend.volume.original.clone();
    for round in 0..20usize {
        let mut writes = Vec::new();
        for queue in 0..4usize {
            for i in 0..8usize {
                let at = ((queue * 8 + i) * 20 + round) * 8192;
                let data = pattern((round * 32 + queue * 8 + i) as u64, 8192);
                model[at..at + 8192].copy_from_slice(&data);
                writes.push((queue, Request::write(at as u64 / 512, &data)));
            }
        }
        let mark = frontend.ram.mark();
        let prepared: Vec<(usize, Prepared)> =
            writes.iter().map(|(q, w)| (*q, frontend.prepare(*q, w))).collect();
        for ring in &frontend.rings {
            let heads =
                prepared.iter().filter(|(q, _)| *q == ring.index).map(|(_, p)| p.head).collect::<Vec<_>>();
            ring.publish(&heads);
        }
        frontend.rings.iter().for_each(Ring::kick);
        for ring in &frontend.rings {
            assert_eq!(ring.collect(8).len(), 8);
        }
        for (queue, write) in &prepared {
            assert_eq!(write.status(), S_OK);
            frontend.rings[*queue].return_descs(&write.descs);
        }
        frontend.ram.release(mark);
    }
    drop(frontend);
    backend.terminate();
    backend.volume.assert_holds(&model);
}
