//! Guest memory that is not what the front end says.

use super::*;

/// The body of ADD_MEM_REG and REM_MEM_REG.
fn slot(base: u64, len: u64, user: u64, file_offset: u64) -> Vec<u8> {
    words(&[0, base, len, user, file_offset])
}

/// The body of SET_MEM_TABLE.
fn table(regions: &[[u64; 4]]) -> Vec<u8> {
    let mut body = [(regions.len() as u32).to_le_bytes(), [0; 4]].concat();
    regions.iter().for_each(|region| body.extend(words(region)));
    body
}

const SPARE: u64 = DATA_BASE + (4 << 30);

#[test]
fn a_region_larger_than_its_file() {
    let mut backend = Serve::encrypted().start();
    let mut frontend = Frontend::connect(backend.socket());
    let file = memfd(64 << 10);
    for (len, offset) in [(128 << 10, 0), (64 << 10, 4096), (4096, 64 << 10), (1 << 40, 0), (4096, !0xfff)] {
        let body = slot(SPARE, len, user_address(SPARE), offset);
        frontend = refused(frontend, &backend, ADD_MEM_REG, &body, &[file.as_fd()]);
        // Had it been taken, touching it would be the end of the process.
        let read = Request::read(0, 4096).data_at(DATA_BASE);
        frontend.run(&read).ok();
    }
    let whole = frontend.ram.infos();
    let [first, ..] = &whole[..] else { panic!("regions") };
    let long =
        table(&[[first.guest_phys_addr, first.memory_size * 2, first.userspace_addr, first.mmap_offset]]);
    let region = frontend.ram.region(RINGS_BASE);
    frontend = refused(frontend, &backend, SET_MEM_TABLE, &long, &[region.fd()]);
    backend.assert_alive();
    frontend.share_memory();
    frontend.assert_serves(0, 0, 1);
}

/// That VM's service ends, with a word and an exit code, not by a signal. Another disk's process notices nothing.
#[test]
fn a_file_that_shrinks_after_it_was_mapped() {
    let mut backend = Serve::encrypted().start();
    let frontend = Frontend::connect(backend.socket());
    let mut other = Serve::encrypted().start();
    let file = memfd(64 << 10);
    let body = slot(SPARE, 64 << 10, user_address(SPARE), 0);
    assert_eq!(frontend.wire().ack(ADD_MEM_REG, &body, &[file.as_fd()]), 0);
    rustix::fs::ftruncate(&file, 0).expect("shrink the memfd");
    let (ram, ring) = (&frontend.ram, &frontend.rings[0]);
    let (at, status) = (ram.alloc(16, 16), ram.alloc(1, 1));
    ram.write(at, &header(T_IN, 0, 0));
    ring.set_chain(0, &[Desc::readable(at, 16), Desc::writable(SPARE, 4096), Desc::writable(status, 1)]);
    ring.publish(&[0]);
    ring.kick();
    let status = backend.wait();
    assert_eq!(status.code(), Some(1), "{status}");
    wait_until("no word of it", || backend.stderr().contains("guest memory vanished"));
    Frontend::connect(other.socket()).assert_serves(0, 0, 1);
    other.terminate();
}

#[test]
fn regions_that_overlap() {
    let backend = Serve::encrypted().start();
    let mut frontend = Frontend::connect(backend.socket());
    let file = memfd(4 << 20);
    for base in [RINGS_BASE, RINGS_BASE + 4096, NEAR_BASE - 4096, HOLE_BASE - 4096, DATA_BASE - 4096] {
        let body = slot(base, 1 << 20, user_address(SPARE), 0);
        frontend = refused(frontend, &backend, ADD_MEM_REG, &body, &[file.as_fd()]);
        frontend.assert_serves(0, 0, 1);
    }
    let twice = table(&[[SPARE, 1 << 20, SPARE, 0], [SPARE + 4096, 1 << 20, SPARE + (1 << 30), 0]]);
    frontend = refused(frontend, &backend, SET_MEM_TABLE, &twice, &[file.as_fd(), file.as_fd()]);
    frontend.share_memory();
    frontend.assert_serves(0, 0, 1);
}

#[test]
fn regions_at_the_end_of_the_world() {
    let backend = Serve::encrypted().start();
    let mut frontend = Frontend::connect(backend.socket());
    let file = memfd(1 << 20);
    for (base, len, user) in [
        (u64::MAX - 4095, 8192, user_address(SPARE)),
        (!0xfff, 1 << 20, user_address(SPARE)),
        (SPARE, 1 << 20, !0xfff),
        (SPARE, u64::MAX, user_address(SPARE)),
        (SPARE, 0, user_address(SPARE)),
    ] {
        let body = slot(base, len, user, 0);
        frontend = refused(frontend, &backend, ADD_MEM_REG, &body, &[file.as_fd()]);
    }
    frontend.assert_serves(0, 0, 1);
}

#[test]
fn regions_without_end() {
    let backend = Serve::encrypted().start();
    let mut frontend = Frontend::connect(backend.socket());
    let most = frontend.messages.get_max_mem_slots().expect("GET_MAX_MEM_SLOTS");
    assert!((8..=4096).contains(&most), "a limit that protects, and lets a guest grow: {most}");
    let file = memfd(4096);
    let add = |frontend: &Frontend, i: u64| {
        let base = SPARE + i * 0x10_0000;
        frontend.wire().ack(ADD_MEM_REG, &slot(base, 4096, user_address(base), 0), &[file.as_fd()])
    };
    let already = frontend.ram.infos().len() as u64;
    for i in 0..most - already {
        assert_eq!(add(&frontend, i), 0, "slot {i} of {most}");
    }
    for i in most..most + 3 {
        assert_ne!(add(&frontend, i), 0, "slot {i} of {most}");
    }
    frontend.assert_serves(0, 0, 1);
}

#[test]
fn removing_what_is_not_there() {
    let backend = Serve::encrypted().start();
    let frontend = Frontend::connect(backend.socket());
    for (base, len) in [(SPARE, 4096), (RINGS_BASE, 4096), (RINGS_BASE + 4096, 4096), (0, 0)] {
        let mut wire = frontend.wire();
        wire.send(REM_MEM_REG, NEED_REPLY, &slot(base, len, user_address(base), 0), &[]);
        match wire.reply() {
            Reply::Message(REM_MEM_REG, value) => {
                assert_ne!(value, [0; 8], "removed {len} bytes at {base:#x}")
            }
            Reply::Closed => return Frontend::connect(backend.socket()).assert_serves(0, 0, 1),
            other => panic!("{other:?}"),
        }
    }
    frontend.assert_serves(0, 0, 1);
}

#[test]
fn memory_tables_of_the_wrong_shape() {
    let mut backend = Serve::encrypted().start();
    let file = memfd(1 << 20);
    let fd = file.as_fd();
    let one = [SPARE, 1 << 20, user_address(SPARE), 0];
    let mut says_two = table(&[one]);
    says_two[0] = 2;
    let many: Vec<[u64; 4]> =
        (0..33).map(|i| [SPARE + i * 0x10_0000, 4096, SPARE + i * 0x10_0000, 0]).collect();
    let cases: [(Vec<u8>, usize); 7] = [
        (table(&[]), 0),
        (table(&[one]), 0),
        (table(&[one]), 2),
        (says_two, 1),
        (table(&[one])[..20].to_vec(), 1),
        (table(&many), 33),
        (table(&[one]), 40),
    ];
    for (i, (body, fds)) in cases.into_iter().enumerate() {
        let frontend = Frontend::connect(backend.socket());
        let frontend = refused(frontend, &backend, SET_MEM_TABLE, &body, &vec![fd; fds]);
        drop(frontend);
        backend.assert_alive();
        Frontend::connect(backend.socket()).assert_serves(0, 8 * i as u64, 1);
    }
}
