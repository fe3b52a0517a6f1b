//! What the operator has done to a disk that a front end uses.

use std::os::unix::net::UnixStream;

use vhost::vhost_user::message::VhostUserProtocolFeatures;

use super::super::backend_channel::{self, BackendChannel};
use super::super::rings::StartError;
use super::Session;
use crate::worker::WorkerGone;

impl Session<'_> {
    /// Stops the rings by the operator's order, once what was taken is answered.
    pub(in crate::server) fn halt(&mut self) -> Result<(), WorkerGone> {
        self.rings.halt()
    }

    /// Lets the rings run again.
    pub(in crate::server) fn proceed(&mut self) -> Result<(), StartError> {
        self.rings.proceed(&self.memory)
    }

    /// Whether the front end may hand over a channel of its own for what we have to say.
    pub(in crate::server) fn expects_channel(&self) -> bool {
        self.acked_protocol.contains(VhostUserProtocolFeatures::BACKEND_REQ)
    }

    /// Takes such a channel, and acknowledges it on `stream` if the front end asks for that.
    pub(in crate::server) fn set_channel(
        &mut self,
        channel: BackendChannel,
        asks: bool,
        stream: &UnixStream,
    ) {
        self.channel = Some(channel);
        if asks && self.acked_protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            backend_channel::acknowledge(stream);
        }
    }

    /// Tells the front end to read the configuration space again, if the disk has grown. Returns whether it was told.
    pub(in crate::server) fn tell_of_growth(&mut self) -> bool {
        let capacity_bytes = self.device.capacity_bytes();
        let has_grown = std::mem::replace(&mut self.told_bytes, capacity_bytes) != capacity_bytes;
        has_grown
            && self.acked_protocol.contains(VhostUserProtocolFeatures::CONFIG)
            && self.channel.as_ref().is_some_and(BackendChannel::tell_of_config_change)
    }
}
