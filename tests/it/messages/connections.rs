//! Connections that speak nonsense, stop half-way, or come and go.

use super::*;

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    let mut backend = Serve::encrypted().start();
    Frontend::connect(backend.socket()).assert_serves(0, 0, 1);
    let before = backend.open_files().len();
    let file = memfd(4096);
    for round in 0..20 {
        let mut wire = Wire::connect(backend.socket());
        wire.send(GET_FEATURES, 0, &[], &[file.as_fd(); 8]);
        // Answered or not, they must not stay.
        let _ = wire.reply();
        wire.send(SET_OWNER, 0, &[], &[file.as_fd(); 3]);
        drop(wire);
        Frontend::connect(backend.socket()).assert_serves(0, 0, round);
    }
    let after = backend.open_files();
    assert!(after.len() <= before + 4, "{before} descriptors open before, now {after:?}");
    backend.terminate();
}

#[test]
fn reconnecting_leaks_nothing() {
    let backend = Serve::encrypted().queues(2).start();
    let maps = |backend: &Backend| {
        let text = std::fs::read_to_string(format!("/proc/{}/maps", backend.pid())).expect("proc");
        text.lines().filter(|line| line.contains("guest-ram")).count()
    };
    for round in 0..3 {
        Frontend::with(backend.socket(), Setup::queues(2)).assert_serves(1, 0, round);
    }
    let before = backend.open_files().len();
    for round in 0..30 {
        Frontend::with(backend.socket(), Setup::queues(2)).assert_serves(1, 0, round);
    }
    // The last disconnect is noticed when a new front end is answered.
    let mut wire = Wire::connect(backend.socket());
    wire.send(GET_FEATURES, 0, &[], &[]);
    assert!(matches!(wire.reply(), Reply::Message(GET_FEATURES, _)));
    let after = backend.open_files();
    assert!(after.len() <= before + 4, "{before} descriptors open before, now {after:?}");
    assert_eq!(maps(&backend), 0, "guest memory stays mapped after its front end is gone");
}

#[test]
fn messages_that_do_not_exist() {
    let mut backend = Serve::encrypted().start();
    for code in [0, 45, 46, 100, 0x7fff_ffff, u32::MAX] {
        let frontend = Frontend::connect(backend.socket());
        let mut wire = frontend.wire();
        wire.send(code, NEED_REPLY, &[0; 8], &[]);
        match wire.reply() {
            Reply::Message(answered, value) => {
                assert_eq!((answered, value == [0; 8]), (code, false), "an unknown message was accepted");
            }
            Reply::Closed => {}
            Reply::Silence => panic!("message {code} asked for a reply and got silence"),
        }
        drop((wire, frontend));
        backend.assert_alive();
        Frontend::connect(backend.socket()).assert_serves(0, 0, 1);
    }
}

#[test]
fn bytes_that_are_no_message() {
    let mut backend = Serve::encrypted().start();
    let cases: [Vec<u8>; 8] = [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0; 4096],
        vec![0xff; 4096],
        message(SET_FEATURES, 0, u32::MAX).to_vec(),
        message(SET_CONFIG, 0, 4096 + 1).to_vec(),
        [&message(GET_FEATURES, 0, 0)[..4], &[0; 8]].concat(),
        [&message(GET_FEATURES, REPLY, 0)[..], &[0; 8]].concat(),
        pattern(5, 65536),
    ];
    for bytes in cases {
        let mut wire = Wire::connect(backend.socket());
        wire.send_bytes(&bytes);
        assert_ne!(wire.reply(), Reply::Silence, "{:02x?}...", &bytes[..12]);
        drop(wire);
        backend.assert_alive();
        Frontend::connect(backend.socket()).assert_serves(0, 0, 1);
    }
}

#[test]
fn bodies_of_the_wrong_length() {
    let mut backend = Serve::encrypted().start();
    let codes = [
        SET_FEATURES,
        SET_PROTOCOL_FEATURES,
        SET_VRING_NUM,
        SET_VRING_BASE,
        SET_VRING_ADDR,
        SET_VRING_KICK,
        SET_VRING_ENABLE,
        GET_CONFIG,
        SET_CONFIG,
        ADD_MEM_REG,
        GET_FEATURES,
        RESET_DEVICE,
    ];
    for code in codes {
        for len in [1, 7, 9, 200] {
            let frontend = Frontend::connect(backend.socket());
            let mut wire = frontend.wire();
            wire.send(code, NEED_REPLY, &vec![0xff; len], &[]);
            assert_ne!(wire.reply(), Reply::Silence, "message {code} with {len} bytes");
            drop((wire, frontend));
            backend.assert_alive();
        }
    }
    Frontend::connect(backend.socket()).assert_serves(0, 0, 1);
}

#[test]
fn half_a_message_and_then_silence() {
    let mut backend = Serve::encrypted().start();
    let halves = [message(GET_FEATURES, 0, 0)[..5].to_vec(), message(SET_FEATURES, 0, 8).to_vec()];
    let mut stuck = Vec::new();
    for half in halves {
        let mut stream: UnixStream = dial(backend.socket());
        stream.write_all(&half).expect("the socket takes a few bytes");
        stuck.push(stream);
        // It stays connected and says no more: the next one must get its turn all the same.
        let (path, done) = (backend.socket().to_path_buf(), std::sync::mpsc::channel());
        let sender = done.0;
        std::thread::spawn(move || {
            Frontend::connect(&path).assert_serves(0, 0, 1);
            sender.send(()).expect("the test waits");
        });
        done.1.recv_timeout(Duration::from_secs(25)).expect("the next front end is served");
    }
    backend.assert_alive();
}

#[test]
fn many_connections_wait_in_line() {
    let mut backend = Serve::encrypted().start();
    let silent: Vec<UnixStream> = (0..50).map(|_| dial(backend.socket())).collect();
    drop(silent);
    Frontend::connect(backend.socket()).assert_serves(0, 0, 1);
    backend.terminate();
}

#[test]
fn messages_in_the_wrong_order() {
    let mut backend = Serve::encrypted().start();
    let state = vring_state(0, 1);
    let orders: [&[(u32, &[u8])]; 5] = [
        &[(SET_VRING_ENABLE, &state)],
        &[(GET_VRING_BASE, &state)],
        &[(SET_VRING_NUM, &state), (SET_VRING_ENABLE, &state)],
        &[(RESET_DEVICE, &[]), (SET_OWNER, &[]), (SET_OWNER, &[])],
        &[(GET_CONFIG, &[0; 12]), (SET_CONFIG, &[0; 12])],
    ];
    for order in orders {
        let mut wire = Wire::connect(backend.socket());
        for (code, body) in order {
            wire.send(*code, 0, body, &[]);
        }
        wire.send(GET_FEATURES, 0, &[], &[]);
        assert_ne!(wire.reply(), Reply::Silence, "{order:?}");
        drop(wire);
        backend.assert_alive();
        Frontend::connect(backend.socket()).assert_serves(0, 0, 1);
    }
}
