//! The channel on which a front end hears from us unasked (`VHOST_USER_SET_BACKEND_REQ_FD`).
//!
//! `vhost` has no message for a changed configuration space, and does not give the channel out. So the one message that
//! hands it over is received here, before `vhost` sees it.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketType, recvmsg,
    send, sockopt,
};
use vhost::vhost_user::message::{BackendReq, FrontendReq};

/// Bytes of a message's header: request, flags, size of the body.
const HEADER_BYTES: usize = 12;
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;
/// More descriptors than come with the message; those that are too many are closed.
const DESCRIPTORS_MAX: usize = 8;

/// Where a front end takes messages of ours.
#[derive(Debug)]
pub(super) struct BackendChannel(OwnedFd);

impl BackendChannel {
    /// Receives the message that hands the channel over, which has arrived whole. Returns also whether it asks for an
    /// acknowledgement.
    ///
    /// # Errors
    /// When it is none.
    pub(super) fn receive(stream: &UnixStream) -> io::Result<(Self, bool)> {
        let mut header = [0; HEADER_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            stream,
            &mut [IoSliceMut::new(&mut header)],
            &mut control,
            RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC,
        )?;
        let descriptors: Vec<OwnedFd> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            })
            .flatten()
            .collect();
        let invalid = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("four bytes"));
        if received.bytes != HEADER_BYTES || word(4) & 3 != VERSION || word(8) != 0 {
            return Err(invalid("SET_BACKEND_REQ_FD is not a bare header of version 1"));
        }
        let Ok([channel]) = <[OwnedFd; 1]>::try_from(descriptors) else {
            return Err(invalid("SET_BACKEND_REQ_FD comes with one descriptor"));
        };
        let is_stream = sockopt::socket_domain(&channel) == Ok(AddressFamily::UNIX)
            && sockopt::socket_type(&channel) == Ok(SocketType::STREAM);
        if !is_stream {
            return Err(invalid("the descriptor of SET_BACKEND_REQ_FD is not a Unix stream socket"));
        }
        Ok((Self(channel), word(4) & NEED_REPLY != 0))
    }

    /// Tells the front end that the configuration space has changed. Returns whether the message was sent.
    pub(super) fn tell_of_config_change(&self) -> bool {
        let header = [BackendReq::CONFIG_CHANGE_MSG as u32, VERSION, 0].map(u32::to_ne_bytes);
        let told = send_whole(&self.0, header.as_flattened());
        if !told {
            tracing::warn!("the VMM does not read what it is told");
        }
        told
    }
}

/// Acknowledges the message that handed the channel over.
pub(super) fn acknowledge(stream: &UnixStream) {
    let request = FrontendReq::SET_BACKEND_REQ_FD as u32;
    let words = [request, VERSION | REPLY, size_of::<u64>() as u32, 0, 0].map(u32::to_ne_bytes);
    // Who does not get it has gone; the next look at the connection says so.
    send_whole(stream, words.as_flattened());
}

/// Sends without waiting for room: there was some when the message was received, and a front end that reads nothing
/// is told nothing.
fn send_whole(socket: impl std::os::fd::AsFd, bytes: &[u8]) -> bool {
    send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) == Ok(bytes.len())
}
