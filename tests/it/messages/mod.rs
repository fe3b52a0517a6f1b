//! A front end that misbehaves: wrong numbers, wrong memory, wrong messages, half messages.

mod connections;
mod inflight;
mod log;
mod memory;
mod rings;

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::fs::MemfdFlags;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

use crate::harness::memory::*;
use crate::harness::request::*;
use crate::harness::ring::*;
use crate::harness::wire::*;
use crate::harness::*;

/// A message that must be refused and must not cost the connection.
#[track_caller]
pub fn nack(frontend: &Frontend, code: u32, body: &[u8], fds: &[BorrowedFd<'_>]) {
    assert_ne!(frontend.wire().ack(code, body, fds), 0, "message {code} with {body:02x?} was accepted");
    assert!(frontend.messages.get_features().is_ok(), "the connection lives");
}

/// A message that must be refused, with a reply or by closing the connection. Gives a front end that is connected.
#[track_caller]
pub fn refused(
    frontend: Frontend,
    backend: &Backend,
    code: u32,
    body: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Frontend {
    let mut wire = frontend.wire();
    wire.send(code, NEED_REPLY, body, fds);
    match wire.reply() {
        Reply::Message(answered, value) if answered == code && value.len() == 8 => {
            assert_ne!(value, [0; 8], "message {code} with {body:02x?} was accepted");
            frontend
        }
        Reply::Closed => frontend.resume(backend.socket()),
        other => panic!("message {code} with {body:02x?}: {other:?}"),
    }
}

pub fn memfd(len: u64) -> OwnedFd {
    let fd = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC).expect("memfd");
    rustix::fs::ftruncate(&fd, len).expect("size the memfd");
    fd
}
