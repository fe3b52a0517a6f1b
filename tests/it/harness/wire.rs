//! vhost-user messages as bytes: right, wrong and half.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use super::ring::{PATIENCE, poll_readable};

pub const VERSION: u32 = 1;
pub const REPLY: u32 = 1 << 2;
pub const NEED_REPLY: u32 = 1 << 3;

pub const GET_FEATURES: u32 = 1;
pub const SET_FEATURES: u32 = 2;
pub const SET_OWNER: u32 = 3;
pub const SET_MEM_TABLE: u32 = 5;
pub const SET_LOG_BASE: u32 = 6;
pub const SET_VRING_NUM: u32 = 8;
pub const SET_VRING_ADDR: u32 = 9;
pub const SET_VRING_BASE: u32 = 10;
pub const GET_VRING_BASE: u32 = 11;
pub const SET_VRING_KICK: u32 = 12;
pub const SET_VRING_CALL: u32 = 13;
pub const SET_PROTOCOL_FEATURES: u32 = 16;
pub const SET_VRING_ENABLE: u32 = 18;
pub const GET_CONFIG: u32 = 24;
pub const SET_CONFIG: u32 = 25;
pub const GET_INFLIGHT_FD: u32 = 31;
pub const SET_INFLIGHT_FD: u32 = 32;
pub const RESET_DEVICE: u32 = 34;
pub const ADD_MEM_REG: u32 = 37;
pub const REM_MEM_REG: u32 = 38;

/// What the other side did within bounds.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// A message with this code and body.
    Message(u32, Vec<u8>),
    /// It closed the connection.
    Closed,
    /// Nothing.
    Silence,
}

/// A connection on which any bytes can be sent.
pub struct Wire {
    stream: UnixStream,
}

impl Wire {
    /// Connects.
    pub fn connect(socket: &Path) -> Self {
        Self::over(dial(socket))
    }

    /// Uses a connection.
    pub fn over(stream: UnixStream) -> Self {
        Self { stream }
    }

    /// Sends bytes as they are. The other side may have closed already: that is for [`Self::reply`] to find.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Sends a message with `flags` beside the version.
    pub fn send(&mut self, code: u32, flags: u32, body: &[u8], fds: &[BorrowedFd<'_>]) {
        let bytes = [&message(code, flags, body.len() as u32)[..], body].concat();
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)), "room for 64 descriptors");
        }
        let sent =
            rustix::net::sendmsg(&self.stream, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL);
        // As in `send_bytes`.
        let _ = sent;
    }

    /// Waits for the next message.
    pub fn reply(&mut self) -> Reply {
        self.reply_within(PATIENCE)
    }

    /// Waits for the next message for so long.
    pub fn reply_within(&mut self, timeout: Duration) -> Reply {
        if !poll_readable(self.stream.as_fd(), timeout) {
            return Reply::Silence;
        }
        let mut header = [0; 12];
        if self.stream.read_exact(&mut header).is_err() {
            return Reply::Closed;
        }
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        let mut body = vec![0; word(8) as usize];
        if self.stream.read_exact(&mut body).is_err() {
            return Reply::Closed;
        }
        assert_eq!(word(4) & (3 | REPLY), VERSION | REPLY, "flags of a reply");
        Reply::Message(word(0), body)
    }

    /// Sends a message that asks for an acknowledgement, and returns it: 0 means accepted.
    pub fn ack(&mut self, code: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> u64 {
        self.send(code, NEED_REPLY, body, fds);
        match self.reply() {
            Reply::Message(answered, body) if answered == code && body.len() == 8 => {
                u64::from_le_bytes(body.try_into().expect("8 bytes"))
            }
            other => panic!("message {code} wants an acknowledgement, got {other:?}"),
        }
    }
}

/// Connects to a server whose socket is there; it may still be between making it and listening on it.
pub fn dial(socket: &Path) -> UnixStream {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return stream,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => panic!("connect to {}: {error}", socket.display()),
        }
    }
}

/// A message header.
pub fn message(code: u32, flags: u32, len: u32) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&code.to_le_bytes());
    bytes[4..8].copy_from_slice(&(flags | VERSION).to_le_bytes());
    bytes[8..].copy_from_slice(&len.to_le_bytes());
    bytes
}

/// The body of SET_VRING_NUM, SET_VRING_BASE, GET_VRING_BASE and SET_VRING_ENABLE.
pub fn vring_state(index: u32, value: u32) -> Vec<u8> {
    [index.to_le_bytes(), value.to_le_bytes()].concat()
}

/// Little-endian words in a row.
pub fn words(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
