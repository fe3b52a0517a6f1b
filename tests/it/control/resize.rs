//! A volume grows, and with it the disk of a guest that goes on meanwhile.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::fd::AsFd;

use serde_json::json;

use crate::harness::ring::{PATIENCE, poll_readable, wait_until};
use crate::harness::wire::{Reply, Wire};
use crate::harness::*;

const MIB: u64 = 1 << 20;

pub(super) fn set_size(backend: &Backend, bytes: u64) {
    OpenOptions::new().write(true).open(&backend.volume.image).unwrap().set_len(bytes).unwrap();
}

pub(super) fn listening() -> Setup {
    Setup { listens: true, ..Setup::default() }
}

/// The next message of the back end: its header.
pub(super) fn heard(frontend: &Frontend) -> [u8; 12] {
    let mut channel = frontend.channel.as_ref().unwrap();
    assert!(poll_readable(channel.as_fd(), PATIENCE), "the back end is silent");
    let mut header = [0; 12];
    channel.read_exact(&mut header).unwrap();
    header
}

fn is_silent(frontend: &Frontend) -> bool {
    !poll_readable(frontend.channel.as_ref().unwrap().as_fd(), std::time::Duration::ZERO)
}

pub(super) fn capacity(frontend: &mut Frontend) -> u64 {
    u64::from_le_bytes(frontend.config(0, 8).unwrap().try_into().unwrap()) * 512
}

/// CONFIG_CHANGE_MSG, version 1, no body.
pub(super) const CONFIG_CHANGE: [u8; 12] = [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn a_disk_grows_while_it_is_used() {
    let mut backend = Serve::encrypted().controlled().start();
    let mut frontend = Frontend::with(backend.socket(), listening());
    let mut control = backend.control();
    let end = 4 * MIB / 512;
    let resized =
        |before, now, told| json!({"before_bytes": before, "capacity_bytes": now, "vmm_told": told});
    assert_eq!(control.done("resize"), resized(4 * MIB, 4 * MIB, false));
    set_size(&backend, 8 * MIB);
    frontend.run(&Request::read(end, 512)).failed(1);
    assert_eq!(control.done("resize"), resized(4 * MIB, 8 * MIB, true));
    assert_eq!(heard(&frontend), CONFIG_CHANGE);
    assert_eq!(capacity(&mut frontend), 8 * MIB);
    assert_eq!(control.done("status")["volume"]["capacity_bytes"], 8 * MIB);
    frontend.assert_serves(0, end - 4, 5);
    frontend.assert_serves(0, 16 * MIB / 2 / 512 - 8, 6);
    frontend.run(&Request::read(8 * MIB / 512, 512)).failed(1);
    assert!(is_silent(&frontend), "it is told once");
    // SIGHUP does the same.
    set_size(&backend, 9 * MIB);
    backend.signal_hangup();
    assert_eq!(heard(&frontend), CONFIG_CHANGE);
    assert_eq!(capacity(&mut frontend), 9 * MIB);
    frontend.assert_serves(0, 9 * MIB / 512 - 8, 7);
    drop(frontend);
    backend.terminate();
    let mut expected = backend.volume.original.clone();
    let image = backend.volume.layout.decrypt(&std::fs::read(&backend.volume.image).unwrap());
    assert_eq!(image.len() as u64, 9 * MIB);
    expected.truncate(4 * MIB as usize - 2048);
    assert!(image.starts_with(&expected), "what was there stays");
    assert!(image[4 * MIB as usize - 2048..].starts_with(&pattern(5, 4096)), "and goes on behind it");
}

#[test]
fn a_disk_in_use_does_not_shrink() {
    let backend = Serve::encrypted().controlled().start();
    let mut frontend = Frontend::with(backend.socket(), listening());
    let mut control = backend.control();
    set_size(&backend, 2 * MIB);
    let (kind, message) = control.failed("resize");
    assert_eq!(kind, "refused");
    assert!(message.contains("shrunk") && message.contains("4194304"), "{message}");
    assert_eq!(capacity(&mut frontend), 4 * MIB);
    frontend.assert_serves(0, 0, 1);
    // Beyond its end there is nothing: an error, and no data.
    frontend.run(&Request::read(3 * MIB / 512, 4096)).failed(1);
    // Half a sector is none.
    set_size(&backend, 5 * MIB + 100);
    let (kind, message) = control.failed("resize");
    assert_eq!(kind, "failed");
    assert!(message.contains("extend the volume by 412 bytes"), "{message}");
    assert!(is_silent(&frontend));
    assert_eq!(capacity(&mut frontend), 4 * MIB);
}

#[test]
fn a_front_end_that_comes_later_sees_the_new_size() {
    let backend = Serve::encrypted().controlled().start();
    set_size(&backend, 6 * MIB);
    let mut control = backend.control();
    assert_eq!(control.done("resize")["vmm_told"], false);
    let mut frontend = Frontend::connect(backend.socket());
    assert_eq!(capacity(&mut frontend), 6 * MIB);
    set_size(&backend, 7 * MIB);
    assert_eq!(control.done("resize")["vmm_told"], false, "it has no channel");
    assert_eq!(capacity(&mut frontend), 7 * MIB);
    frontend.assert_serves(0, 7 * MIB / 512 - 8, 1);
}

#[test]
fn the_offset_of_the_payload_counts() {
    let layout = Layout { offset_sectors: 64, sector_bytes: 4096, ..Layout::encrypted(4 << 20) };
    let backend = Serve::volume(layout).controlled().start();
    let mut frontend = Frontend::with(backend.socket(), listening());
    set_size(&backend, 64 * 512 + 5 * MIB);
    assert_eq!(backend.control().done("resize")["capacity_bytes"], 5 * MIB);
    assert_eq!(capacity(&mut frontend), 5 * MIB);
}

#[test]
fn a_volume_without_a_front_end_that_hears_is_resized_by_sighup_too() {
    let backend = Serve::encrypted().controlled().start();
    set_size(&backend, 6 * MIB);
    backend.signal_hangup();
    let mut control = backend.control();
    wait_until("it does not grow", || control.done("status")["volume"]["capacity_bytes"] == 6 * MIB);
}

#[test]
fn a_channel_that_nobody_reads_holds_nobody_up() {
    let backend = Serve::encrypted().controlled().start();
    let frontend = Frontend::with(backend.socket(), listening());
    frontend.channel.as_ref().unwrap().shutdown(std::net::Shutdown::Both).unwrap();
    set_size(&backend, 6 * MIB);
    assert_eq!(backend.control().done("resize")["vmm_told"], false);
    frontend.assert_serves(0, 6 * MIB / 512 - 8, 1);
}

#[test]
fn what_is_no_channel_ends_the_connection() {
    const SET_BACKEND_REQ_FD: u32 = 21;
    let backend = Serve::encrypted().start();
    let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    let good = || Frontend::with(backend.socket(), listening());
    let cases: [(&[u8], Vec<_>); 4] = [
        (&[], vec![]),
        (&[], vec![file.as_fd()]),
        (&[], vec![socket.as_fd(), socket.as_fd()]),
        (&[0; 8], vec![socket.as_fd()]),
    ];
    for (body, descriptors) in cases {
        let frontend = good();
        let mut wire = frontend.wire();
        wire.send(SET_BACKEND_REQ_FD, wire::NEED_REPLY, body, &descriptors);
        assert_eq!(wire.reply(), Reply::Closed, "{} bytes, {} descriptors", body.len(), descriptors.len());
    }
    // Another good one replaces the first.
    let frontend = good();
    assert_eq!(frontend.wire().ack(SET_BACKEND_REQ_FD, &[], &[socket.as_fd()]), 0);
    frontend.assert_serves(0, 0, 1);
    drop(frontend);
    // Not negotiated, it is no message at all.
    let frontend = Frontend::connect(backend.socket());
    let mut wire: Wire = frontend.wire();
    wire.send(SET_BACKEND_REQ_FD, wire::NEED_REPLY, &[], &[socket.as_fd()]);
    assert_eq!(wire.reply(), Reply::Closed);
    drop(frontend);
    good().assert_serves(0, 8, 2);
}
