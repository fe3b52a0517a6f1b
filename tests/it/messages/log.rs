//! Dirty logs that are not what the front end says.

use super::*;
use crate::harness::frontend::F_LOG_ALL;
use crate::harness::log::Log;

#[test]
fn a_log_that_does_not_fit_its_file_or_the_memory() {
    let mut backend = Serve::encrypted().start();
    let mut frontend = Frontend::connect(backend.socket());
    let log = Log::up_to(128 * MIB);
    let len = 128 * MIB / 4096 / 8;
    for body in [
        [len + 1, 0],
        [len, 1],
        [len, 4096],
        [len, u64::MAX],
        [len, !0xfff],
        [u64::MAX, 0],
        [u64::MAX, u64::MAX],
        [0, 0],
        // Too short for the highest page of the data.
        [DATA_BASE / 4096 / 8, 0],
        [1, 0],
    ] {
        frontend = refused(frontend, &backend, SET_LOG_BASE, &words(&body), &[log.file.as_fd()]);
        backend.assert_alive();
    }
    // One that could be cut off under us.
    let unsealed = memfd(len);
    frontend = refused(frontend, &backend, SET_LOG_BASE, &words(&[len, 0]), &[unsealed.as_fd()]);
    let on_disk = std::fs::File::open(&backend.volume.image).expect("open the image");
    frontend = refused(frontend, &backend, SET_LOG_BASE, &words(&[len, 0]), &[on_disk.as_fd()]);
    for fds in [&[][..], &[log.file.as_fd(), log.file.as_fd()]] {
        frontend = refused(frontend, &backend, SET_LOG_BASE, &words(&[len, 0]), fds);
    }
    log.begin(&frontend);
    frontend.assert_serves(0, 0, 1);
    backend.assert_alive();
}

#[test]
fn memory_that_the_log_does_not_cover() {
    let backend = Serve::encrypted().start();
    let mut frontend = Frontend::connect(backend.socket());
    let log = Log::up_to(128 * MIB);
    log.begin(&frontend);
    let file = memfd(MIB);
    let add = |frontend: &Frontend, base: u64| {
        let body = words(&[0, base, MIB, user_address(base), 0]);
        frontend.wire().ack(ADD_MEM_REG, &body, &[file.as_fd()])
    };
    assert_ne!(add(&frontend, 128 * MIB), 0);
    frontend.assert_serves(0, 0, 1);
    assert_eq!(add(&frontend, 127 * MIB), 0);
    let mut all = frontend.ram.infos();
    all[2].guest_phys_addr = 256 * MIB;
    assert!(frontend.messages.set_mem_table(&all).is_err());
    frontend.assert_serves(0, 0, 2);
    // Without a migration under way it may be anywhere; another one needs a larger log.
    crate::harness::log::end(&frontend);
    assert_eq!(add(&frontend, 128 * MIB), 0);
    assert!(frontend.messages.set_features(frontend.features | F_LOG_ALL).is_err());
    Log::up_to(256 * MIB).begin(&frontend);
    frontend.share_memory();
    frontend.assert_serves(0, 0, 3);
}

#[test]
fn a_used_ring_that_would_be_logged_elsewhere() {
    let backend = Serve::encrypted().start();
    let frontend = Frontend::connect(backend.socket());
    let ring = &frontend.rings[0];
    let with_log =
        |log_addr| vhost::VringConfigData { flags: 1, log_addr: Some(log_addr), ..ring.addresses() };
    Log::up_to(128 * MIB).begin(&frontend);
    assert!(frontend.messages.set_vring_addr(0, &with_log(ring.used + 4096)).is_err());
    frontend.messages.set_vring_addr(0, &with_log(ring.used)).expect("as QEMU does");
    frontend.assert_serves(0, 0, 1);
}
