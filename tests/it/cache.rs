//! The volatile write cache as the driver sees and sets it.

use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

use crate::harness::frontend::*;
use crate::harness::request::*;
use crate::harness::*;

/// Offset of `writeback` in the virtio-blk config space.
const WRITEBACK: u32 = 32;

#[test]
fn the_driver_turns_the_cache_off_and_on() {
    let backend = Serve::encrypted().start();
    let mut frontend = Frontend::connect(backend.socket());
    for (round, value) in [0, 1, 1, 0, 0, 1].into_iter().enumerate() {
        frontend.set_config(WRITEBACK, &[value]).expect("SET_CONFIG");
        assert_eq!(frontend.config(WRITEBACK, 1).expect("GET_CONFIG"), [value]);
        assert_eq!(frontend.config(0, 60).expect("GET_CONFIG")[32], value);
        frontend.assert_serves(0, 8 * round as u64, round as u64);
        frontend.run(&Request::flush()).ok();
    }
}

#[test]
fn a_disk_served_without_cache_says_so() {
    let backend = Serve::encrypted().args(&["--cache", "writethrough"]).start();
    let mut frontend = Frontend::connect(backend.socket());
    assert_eq!(frontend.config(WRITEBACK, 1).expect("GET_CONFIG"), [0]);
    frontend.assert_serves(0, 0, 1);
    frontend.run(&Request::flush()).ok();
}

#[test]
fn the_cache_mode_outlives_resets_and_connections() {
    // Front ends remember what the driver has set, and neither ask nor tell again.
    let backend = Serve::encrypted().start();
    let mut frontend = Frontend::connect(backend.socket());
    frontend.set_config(WRITEBACK, &[0]).expect("SET_CONFIG");
    frontend.messages.reset_device().expect("RESET_DEVICE");
    assert_eq!(frontend.config(WRITEBACK, 1).expect("GET_CONFIG"), [0], "after a reset");
    drop(frontend);
    let mut next = Frontend::connect(backend.socket());
    assert_eq!(next.config(WRITEBACK, 1).expect("GET_CONFIG"), [0], "after a new connection");
    next.set_config(WRITEBACK, &[1]).expect("SET_CONFIG");
    assert_eq!(next.config(WRITEBACK, 1).expect("GET_CONFIG"), [1]);
}

#[test]
fn writes_that_are_not_to_writeback_are_refused() {
    let backend = Serve::encrypted().start();
    let mut frontend = Frontend::connect(backend.socket());
    let before = frontend.config(0, 60).expect("GET_CONFIG");
    let capacity = 8192u64.to_le_bytes();
    let refused: [(u32, &[u8]); 9] = [
        (0, &capacity),
        (20, &[0, 2, 0, 0]),
        (31, &[0]),
        (31, &[0, 0]),
        (33, &[0]),
        (34, &[1, 0]),
        (60, &[0; 4]),
        (0x200, &[0; 8]),
        (0xfff, &[0]),
    ];
    for (offset, bytes) in refused {
        assert!(frontend.set_config(offset, bytes).is_err(), "{} bytes at {offset}", bytes.len());
        assert_eq!(frontend.config(0, 60).expect("the connection lives"), before);
    }
    frontend.assert_serves(0, 0, 1);
}

#[test]
fn values_that_writeback_cannot_hold() {
    let backend = Serve::encrypted().start();
    let mut frontend = Frontend::connect(backend.socket());
    for value in [2, 0x80, 0xff] {
        // Refused, or taken as "on": never as anything else.
        let taken = frontend.set_config(WRITEBACK, &[value]).is_ok();
        let now = frontend.config(WRITEBACK, 1).expect("the connection lives");
        assert_eq!(now, [1], "value {value:#x}, taken: {taken}");
    }
    frontend.assert_serves(0, 0, 1);
}

#[test]
fn without_config_wce_the_driver_has_no_say() {
    let backend = Serve::encrypted().start();
    let mut frontend = Frontend::with(backend.socket(), Setup::without(F_CONFIG_WCE));
    assert!(frontend.set_config(WRITEBACK, &[0]).is_err(), "CONFIG_WCE was not agreed on");
    assert_eq!(frontend.config(WRITEBACK, 1).expect("the connection lives"), [1]);
    frontend.assert_serves(0, 0, 1);
}

#[test]
fn a_driver_that_cannot_flush_is_told_that_there_is_no_cache() {
    let backend = Serve::encrypted().start();
    let mut frontend = Frontend::with(backend.socket(), Setup::without(F_FLUSH));
    assert_eq!(frontend.config(WRITEBACK, 1).expect("GET_CONFIG"), [0]);
    for i in 0..20 {
        frontend.assert_serves(0, 8 * i, i);
    }
    let flush = frontend.run(&Request::flush());
    assert!([S_OK, S_UNSUPP].contains(&flush.status), "{flush:?}");
}

#[test]
fn turning_the_cache_off_while_writes_run() {
    let mut backend = Serve::encrypted().start();
    let mut frontend = Frontend::with(backend.socket(), Setup { queue_size: 256, ..Setup::data(4 << 20) });
    let mut model = backend.volume.original.clone();
    for round in 0..20u64 {
        let data = pattern(round, 65536);
        let writes: Vec<Prepared> =
            (0..16).map(|i| frontend.prepare(0, &Request::write(i * 128, &data))).collect();
        (0..16usize).for_each(|i| model[i * 65536..(i + 1) * 65536].copy_from_slice(&data));
        let mark = frontend.ram.mark();
        frontend.rings[0].publish(&writes.iter().map(|write| write.head).collect::<Vec<_>>());
        frontend.rings[0].kick();
        frontend.set_config(WRITEBACK, &[(round & 1) as u8]).expect("SET_CONFIG");
        frontend.rings[0].collect(16);
        writes.iter().for_each(|write| assert_eq!(write.status(), S_OK));
        writes.iter().for_each(|write| frontend.rings[0].return_descs(&write.descs));
        frontend.ram.release((mark.0, memory::DATA_BASE));
    }
    assert!(frontend.messages.get_features().is_ok());
    drop(frontend);
    backend.terminate();
    backend.volume.assert_holds(&model);
}
