//! Rings that cannot be: sizes, indices, addresses, descriptors.

use super::*;

#[test]
fn ring_sizes_that_no_ring_has() {
    let backend = Serve::encrypted().args(&["--queue-size", "256"]).start();
    let mut frontend = Frontend::connect(backend.socket());
    let base = frontend.stop_ring(0);
    for size in [0, 3, 5, 63, 65, 100, 255, 257, 512, 1024, 32768, 32769, 65535, 65536, 1 << 31, u32::MAX] {
        nack(&frontend, SET_VRING_NUM, &vring_state(0, size), &[]);
    }
    frontend.start_ring(0, base);
    frontend.assert_serves(0, 0, 1);
}

#[test]
fn bases_beyond_sixteen_bits() {
    let backend = Serve::encrypted().start();
    let mut frontend = Frontend::connect(backend.socket());
    let base = frontend.stop_ring(0);
    for bad in [0x1_0000, 0x8000_0000, u32::MAX] {
        nack(&frontend, SET_VRING_BASE, &vring_state(0, bad), &[]);
    }
    frontend.start_ring(0, base);
    frontend.assert_serves(0, 0, 1);
}

#[test]
fn queues_that_do_not_exist() {
    let backend = Serve::encrypted().queues(2).start();
    let frontend = Frontend::with(backend.socket(), Setup::queues(2));
    for queue in [2, 3, 254, 255, 256, 65536, u32::MAX] {
        for (code, value) in
            [(SET_VRING_NUM, 64), (SET_VRING_BASE, 0), (SET_VRING_ENABLE, 1), (SET_VRING_ENABLE, 0)]
        {
            nack(&frontend, code, &vring_state(queue, value), &[]);
        }
    }
    let kick = eventfd();
    let kick = fd::borrow(&kick);
    for queue in [2u64, 254] {
        nack(&frontend, SET_VRING_KICK, &words(&[queue]), &[kick]);
        nack(&frontend, SET_VRING_CALL, &words(&[queue]), &[kick]);
    }
    frontend.assert_serves(0, 0, 1);
    frontend.assert_serves(1, 8, 1);
}

#[test]
fn get_vring_base_of_a_queue_that_does_not_exist() {
    let mut backend = Serve::encrypted().start();
    let frontend = Frontend::connect(backend.socket());
    let mut wire = frontend.wire();
    wire.send(GET_VRING_BASE, 0, &vring_state(7, 0), &[]);
    // There is no way to refuse a question: anything but silence for ever.
    assert_ne!(wire.reply(), Reply::Silence);
    drop((wire, frontend));
    backend.assert_alive();
    Frontend::connect(backend.socket()).assert_serves(0, 0, 1);
}

#[test]
fn rings_outside_memory() {
    let backend = Serve::encrypted().start();
    let mut frontend = Frontend::connect(backend.socket());
    let base = frontend.stop_ring(0);
    let (desc, used, avail) = (RINGS_BASE, RINGS_BASE + 0x2000, RINGS_BASE + 0x1000);
    let outside = [0, HOLE_BASE, HOLE_BASE - 16, DATA_BASE + (1 << 20), 1 << 62, !0xfff];
    for bad in outside.map(|address| address.wrapping_add(user_address(0)) & !0xf) {
        for which in 0..3 {
            let mut addresses = [desc, used, avail].map(user_address);
            addresses[which] = bad;
            frontend = refused(frontend, &backend, SET_VRING_ADDR, &vring_addr(0, addresses), &[]);
            // A new connection starts its rings; stop this one again for the next try.
            frontend.stop_ring(0);
        }
    }
    frontend.start_ring(0, base.max(frontend.rings[0].used_idx()));
    frontend.assert_serves(0, 0, 1);
}

/// The body of SET_VRING_ADDR: descriptor table, used ring, available ring.
fn vring_addr(index: u32, [desc, used, avail]: [u64; 3]) -> Vec<u8> {
    [&index.to_le_bytes()[..], &[0; 4], &words(&[desc, used, avail, 0])].concat()
}

#[test]
fn rings_off_their_alignment() {
    let backend = Serve::encrypted().start();
    let mut frontend = Frontend::connect(backend.socket());
    let places = [RINGS_BASE + 0x8000, RINGS_BASE + 0xa000, RINGS_BASE + 0x9000];
    for (which, shift) in [(0, 8), (0, 1), (1, 2), (1, 1), (2, 1)] {
        frontend.stop_ring(0);
        let mut addresses = places.map(user_address);
        addresses[which] += shift;
        frontend = refused(frontend, &backend, SET_VRING_ADDR, &vring_addr(0, addresses), &[]);
    }
    let base = frontend.stop_ring(0);
    frontend.start_ring(0, base);
    frontend.assert_serves(0, 0, 1);
}

#[test]
fn rings_that_overlap_hurt_only_their_guest() {
    let mut backend = Serve::encrypted().start();
    let mut frontend = Frontend::connect(backend.socket());
    frontend.stop_ring(0);
    let same = [user_address(frontend.rings[0].desc_table); 3];
    let mut wire = frontend.wire();
    if wire.ack(SET_VRING_ADDR, &vring_addr(0, same), &[]) == 0 {
        let ring = &frontend.rings[0];
        frontend.messages.set_vring_kick(0, &ring.kick.borrow()).expect("SET_VRING_KICK");
        let _ = frontend.messages.set_vring_enable(0, true);
        ring.publish(&[0, 1, 2]);
        ring.kick();
        std::thread::sleep(SILENCE);
        frontend.stop_ring(0);
    }
    backend.assert_alive();
    frontend.rings[0].reset();
    frontend.start_ring(0, 0);
    frontend.assert_serves(0, 0, 1);
}

#[test]
fn kick_descriptors_that_are_no_eventfd() {
    let mut backend = Serve::encrypted().start();
    let frontend = Frontend::connect(backend.socket());
    let null = File::open("/dev/null").expect("open /dev/null");
    let regular = memfd(4096);
    let (socket, _other) = UnixStream::pair().expect("socket pair");
    for fd in [null.as_fd(), regular.as_fd(), socket.as_fd()] {
        let mut wire = frontend.wire();
        wire.send(SET_VRING_KICK, NEED_REPLY, &words(&[0]), &[fd]);
        assert_ne!(wire.reply(), Reply::Silence);
        std::thread::sleep(Duration::from_millis(20));
        backend.assert_alive();
    }
    drop(frontend);
    Frontend::connect(backend.socket()).assert_serves(0, 0, 1);
    let busy = backend.cpu_ticks();
    std::thread::sleep(Duration::from_millis(500));
    assert!(backend.cpu_ticks() - busy < 30, "an idle server burns CPU after a strange kick descriptor");
}

/// What a program is killed by, unless it has seen to that: a write to what nobody reads.
#[test]
fn call_descriptors_that_nobody_reads() {
    let mut backend = Serve::encrypted().start();
    let mut frontend = Frontend::connect(backend.socket());
    let (pipe_reader, pipe) = std::io::pipe().expect("a pipe");
    let (socket, socket_reader) = UnixStream::pair().expect("socket pair");
    drop((pipe_reader, socket_reader));
    for fd in [pipe.as_fd(), socket.as_fd()] {
        let mut wire = frontend.wire();
        wire.send(SET_VRING_CALL, NEED_REPLY, &words(&[0]), &[fd]);
        assert_ne!(wire.reply(), Reply::Silence);
        let read = frontend.prepare(0, &Request::read(0, 512));
        frontend.rings[0].publish(&[read.head]);
        frontend.rings[0].kick();
        frontend.rings[0].collect_by_polling(1);
        backend.assert_alive();
    }
    frontend.rings[0].call = eventfd();
    frontend.messages.set_vring_call(0, &frontend.rings[0].call).expect("SET_VRING_CALL");
    frontend.assert_serves(0, 0, 1);
}
