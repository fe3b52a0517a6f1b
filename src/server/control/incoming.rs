//! What a client sends, with the descriptor that may come with it.

use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// Most descriptors that are looked at; the kernel closes those that are too many.
const DESCRIPTORS_MAX: usize = 4;

/// A client's connection, to be read from.
#[derive(Debug)]
pub(super) struct Incoming<'s> {
    stream: &'s UnixStream,
    descriptor: Option<OwnedFd>,
}

impl<'s> Incoming<'s> {
    pub(super) fn new(stream: &'s UnixStream) -> Self {
        Self { stream, descriptor: None }
    }

    /// The last descriptor that came with what was read so far, once.
    pub(super) fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptor.take()
    }
}

impl Read for Incoming<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut bytes = [IoSliceMut::new(into)];
            match recvmsg(self.stream, &mut bytes, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(Errno::INTR) => {}
                other => break other?.bytes,
            }
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                // All but the last are closed here.
                self.descriptor = descriptors.last().or(self.descriptor.take());
            }
        }
        Ok(received)
    }
}
