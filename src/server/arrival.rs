//! Waiting for a whole message, so that a front end which stops in the middle of one holds nobody up.
//!
//! `vhost` reads a message with blocking system calls and begins again when one times out. It is therefore
//! called only once everything it will read has arrived.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, recv};

use vhost::vhost_user::message::FrontendReq;

use super::stop::{Readiness, StopSignal};

/// How long the rest of a message may take once it has begun.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often to look whether it has arrived.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// Bytes of a message's header: request, flags, size of the body.
const HEADER_BYTES: usize = 12;
/// Longest body that `vhost` reads; it refuses a message that claims more when it sees the header.
const BODY_BYTES_MAX: u64 = 4096;

/// What a wait for a message ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// A message is there, or the end of the connection: reading it does not block.
    Whole,
    /// It has begun and its rest does not come, or the answers to those before it are not read.
    Stuck,
    /// Nothing has begun, and there is an order.
    Order,
    /// It is time to stop.
    Stop,
}

/// Waits for the next message, any time for its first byte and a few seconds for the others, or for an order.
pub(super) fn next_message(stream: &UnixStream, stop: &StopSignal) -> io::Result<Arrival> {
    match stop.wait_for(stream.as_fd())? {
        Readiness::Stop => return Ok(Arrival::Stop),
        Readiness::Order => return Ok(Arrival::Order),
        Readiness::Ready | Readiness::TimedOut => {}
    }
    let deadline = Instant::now() + PATIENCE;
    while !(has_arrived(stream)? && has_room(stream)) {
        if Instant::now() >= deadline {
            return Ok(Arrival::Stuck);
        }
        if stop.pause_undisturbed(LOOK_INTERVAL)? == Readiness::Stop {
            return Ok(Arrival::Stop);
        }
    }
    Ok(Arrival::Whole)
}

/// What the message that has arrived asks for, in the protocol's words.
pub(super) fn request_name(stream: &UnixStream) -> String {
    match request_code(stream) {
        Some(code) => FrontendReq::try_from(code)
            .map_or_else(|_| format!("unknown ({code})"), |name| format!("{name:?}")),
        None => "end of connection".to_owned(),
    }
}

/// What the message that has arrived asks for, if it is known.
pub(super) fn request(stream: &UnixStream) -> Option<FrontendReq> {
    FrontendReq::try_from(request_code(stream)?).ok()
}

fn request_code(stream: &UnixStream) -> Option<u32> {
    let mut code = [0; 4];
    let seen = recv(stream, &mut code, RecvFlags::PEEK | RecvFlags::DONTWAIT);
    matches!(seen, Ok((_, 4))).then(|| u32::from_ne_bytes(code))
}

/// Whether an answer can be sent without waiting for the front end to read earlier ones.
fn has_room(stream: &UnixStream) -> bool {
    readiness(stream, PollFlags::OUT)
}

/// Whether all bytes of the message that has begun are there, or none will come any more.
fn has_arrived(stream: &UnixStream) -> io::Result<bool> {
    let mut header = [0; HEADER_BYTES];
    // Looking without a place for descriptors leaves them with the bytes they came with.
    let (_, seen) = match recv(stream, &mut header, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok(seen) => seen,
        // Reading for good will say the same.
        Err(error) if error != rustix::io::Errno::AGAIN => return Ok(true),
        Err(_) => return Ok(false),
    };
    if seen < HEADER_BYTES {
        // Nothing at all is the end of the stream.
        return Ok(seen == 0 || is_closed(stream));
    }
    let body_bytes = u64::from(u32::from_ne_bytes(header[8..].try_into().expect("four bytes")));
    let there_bytes = rustix::io::ioctl_fionread(stream)?;
    Ok(body_bytes > BODY_BYTES_MAX || there_bytes >= HEADER_BYTES as u64 + body_bytes || is_closed(stream))
}

/// Whether the front end has closed its end: what has not arrived never will.
fn is_closed(stream: &UnixStream) -> bool {
    readiness(stream, PollFlags::RDHUP)
}

/// Whether any of `events`, or the end of the connection, can be seen on the stream now.
fn readiness(stream: &UnixStream, events: PollFlags) -> bool {
    let mut fds = [PollFd::new(stream, events)];
    let now = Timespec::default();
    poll(&mut fds, Some(&now)).is_ok()
        && fds[0].revents().intersects(events | PollFlags::HUP | PollFlags::ERR)
}
