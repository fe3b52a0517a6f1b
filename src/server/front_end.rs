//! One front end after the other, from its connection to its end, and the orders that come meanwhile.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhost::vhost_user::message::FrontendReq;
use vhost::vhost_user::{BackendReqHandler, Error as VhostUserError};

use super::arrival::{self, Arrival};
use super::backend_channel::BackendChannel;
use super::control::orders::Caller;
use super::device::Device;
use super::error::ServeError;
use super::operator;
use super::peers::Peers;
use super::session::Session;
use super::socket::{Next, Socket};
use super::stop::StopSignal;
use crate::worker::QueueThread;

/// What front ends are served with.
#[derive(Debug)]
pub(super) struct Reception<'a> {
    pub(super) device: &'a Device,
    pub(super) threads: &'a [QueueThread],
    pub(super) stop: &'a StopSignal,
    /// Whether the socket can be given to a successor.
    pub(super) hands_over: bool,
}

/// Why serving is over.
#[derive(Debug)]
pub(super) enum End {
    /// The front end has disconnected, or broke the protocol.
    Disconnected,
    /// It is time to stop.
    Stop,
    /// The control socket said so; somebody waits for the end.
    Shutdown(Caller),
    /// A successor takes over; it waits for the socket.
    TakeOver(Caller),
}

impl Reception<'_> {
    /// Serves front ends until it is time to stop, or until there will be no more of them; with `once`, until the
    /// first has gone.
    pub(super) fn serve(
        &self,
        socket: &mut Socket,
        peers: &mut Peers,
        once: bool,
    ) -> Result<End, ServeError> {
        loop {
            let end = match socket.next_front_end(self.stop, peers)? {
                Next::FrontEnd(stream) => self.receive(stream)?,
                Next::Stop => return Ok(End::Stop),
                Next::Order => match operator::obey_next(self, None) {
                    Some(end) => end,
                    None => continue,
                },
            };
            match end {
                End::Disconnected if !once && socket.has_more() => {}
                End::TakeOver(caller) => {
                    if operator::hand_over(self.device, socket, caller) {
                        return Ok(End::Stop);
                    }
                }
                end => return Ok(end),
            }
        }
    }

    /// Serves one front end, and says so.
    pub(super) fn receive(&self, stream: UnixStream) -> Result<End, ServeError> {
        self.device.complaints().connected();
        self.device.set_connected(true);
        let end = self.serve_front_end(stream);
        self.device.set_connected(false);
        self.device.complaints().disconnected();
        end
    }

    /// Serves one front end.
    fn serve_front_end(&self, stream: UnixStream) -> Result<End, ServeError> {
        let session = Arc::new(Mutex::new(Session::new(self.device, self.threads)));
        let end = self.exchange(stream, &session).map_err(ServeError::Session);
        let ended = locked(&session).end();
        // A queue thread that is gone has set the stop signal off: the loop of front ends ends there.
        Ok(if ended.is_err() { End::Stop } else { end? })
    }

    /// Follows messages and orders until either ends the connection.
    fn exchange(&self, stream: UnixStream, session: &Arc<Mutex<Session<'_>>>) -> io::Result<End> {
        let watched = stream.try_clone()?;
        let mut messages = BackendReqHandler::from_stream(stream, Arc::clone(session));
        loop {
            match arrival::next_message(&watched, self.stop)? {
                Arrival::Whole => {}
                Arrival::Order => match operator::obey_next(self, Some(&mut locked(session))) {
                    Some(end) => return Ok(end),
                    None => continue,
                },
                Arrival::Stop => return Ok(End::Stop),
                Arrival::Stuck => {
                    self.device.complaints().ended(&"it began a message and did not finish it");
                    return Ok(End::Disconnected);
                }
            }
            let request = arrival::request_name(&watched);
            tracing::debug!(request, "message of the VMM");
            if arrival::request(&watched) == Some(FrontendReq::SET_BACKEND_REQ_FD)
                && locked(session).expects_channel()
            {
                match BackendChannel::receive(&watched) {
                    Ok((channel, asks)) => locked(session).set_channel(channel, asks, &watched),
                    Err(error) => {
                        self.device.complaints().ended(&error);
                        return Ok(End::Disconnected);
                    }
                }
                continue;
            }
            match messages.handle_request() {
                // What has started a ring may have taken a larger volume.
                Ok(()) => drop(locked(session).tell_of_growth()),
                Err(VhostUserError::Disconnected) => return Ok(End::Disconnected),
                // The front end has been told, if it asked to be.
                Err(VhostUserError::ReqHandlerError(error)) => {
                    self.device.complaints().refused(&request, &error)
                }
                Err(error) => {
                    self.device.complaints().ended(&error);
                    return Ok(End::Disconnected);
                }
            }
        }
    }
}

fn locked<'l, 's>(session: &'l Mutex<Session<'s>>) -> MutexGuard<'l, Session<'s>> {
    session.lock().unwrap_or_else(PoisonError::into_inner)
}
