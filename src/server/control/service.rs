//! The server's end of the control socket: a thread that takes clients in, and one for each client.
//!
//! A client is trusted as far as its user is, since the socket has mode 0600, and no further: what it sends is
//! bounded, what it does not read is not kept, and nobody but its own thread waits for it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::incoming::Incoming;
use super::orders::{Caller, Desk, Order};
use super::protocol::{Answer, Command, Fault, FaultKind, REQUEST_BYTES_MAX, Request, Status};
use crate::sandbox::{Role, Sandbox, SandboxError};
use crate::server::device::Device;
use crate::server::error::ServeError;
use crate::server::peers::Peers;
use crate::server::socket::{ControlSocket, SocketError, SocketFile};
use crate::worker::QueueWatcher;

/// Most clients at once; one more is told so and let go.
const CLIENTS_MAX: usize = 16;
/// How long a client may take to read an answer.
const WRITE_PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait when no more connections can be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What clients see, and where their orders go.
#[derive(Debug)]
pub(in crate::server) struct Service {
    pub(in crate::server) device: Arc<Device>,
    pub(in crate::server) queues: Vec<QueueWatcher>,
    pub(in crate::server) desk: Desk,
}

impl Service {
    /// Serves the clients of a socket until the process ends, on a thread in the sandbox. The socket's file goes with
    /// the result.
    pub(in crate::server) fn start(
        self,
        socket: ControlSocket,
        peers: Peers,
        sandbox: Sandbox,
    ) -> Result<SocketFile, ServeError> {
        let ControlSocket { listener, file } = socket;
        let path = file.path().to_owned();
        let (report, confined) = mpsc::channel::<Result<(), SandboxError>>();
        let started = listener.set_nonblocking(false).and_then(|()| {
            let body = move || {
                let confined = sandbox.confine(Role::Control);
                let refused = confined.is_err();
                if report.send(confined).is_ok() && !refused {
                    Arc::new(self).take_clients_in(&listener, peers);
                }
            };
            thread::Builder::new().name("control".to_owned()).spawn(body)
        });
        started.map_err(|source| SocketError::Listen { path, source })?;
        confined.recv().map_err(|gone| ServeError::Session(io::Error::other(gone)))??;
        Ok(file)
    }

    fn take_clients_in(self: Arc<Self>, listener: &UnixListener, mut peers: Peers) {
        let clients = Arc::new(AtomicUsize::new(0));
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) if !peers.admit_operator(&stream) => continue,
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a client of the control socket");
                    thread::sleep(ACCEPT_PAUSE);
                    continue;
                }
            };
            let place = Place::take(&clients);
            let service = Arc::clone(&self);
            let body = move || {
                if let Err(error) = service.serve(&stream, place.is_free()) {
                    tracing::debug!(%error, "a client of the control socket is gone");
                }
            };
            if let Err(error) = thread::Builder::new().name("control-client".to_owned()).spawn(body) {
                tracing::warn!(%error, "cannot serve a client of the control socket");
            }
        }
    }

    fn serve(&self, stream: &UnixStream, has_place: bool) -> io::Result<()> {
        stream.set_write_timeout(Some(WRITE_PATIENCE))?;
        if !has_place {
            let message = format!("{CLIENTS_MAX} clients are connected already");
            return send(stream, None, Err(Fault::refused(message)));
        }
        let mut reader = BufReader::new(Incoming::new(stream));
        loop {
            let line = match read_line(&mut reader)? {
                Line::Whole(line) => line,
                Line::End => return Ok(()),
                Line::TooLong => {
                    let message = format!("a request has at most {REQUEST_BYTES_MAX} bytes");
                    return send(stream, None, Err(Fault { kind: FaultKind::Request, message }));
                }
            };
            match Request::parse(&line) {
                Ok(request) => self.obey(request, stream, reader.get_mut().take_descriptor())?,
                Err(answer) => (&*stream).write_all(&answer.line())?,
            }
        }
    }

    fn obey(&self, request: Request, stream: &UnixStream, descriptor: Option<OwnedFd>) -> io::Result<()> {
        let order = match request.command {
            Command::Status => {
                let status = serde_json::to_value(self.status()).map_err(io::Error::from)?;
                return send(stream, request.id, Ok(status));
            }
            Command::Flush => {
                let flushed = self.device.sync().map(|()| json!({})).map_err(Fault::failed);
                return send(stream, request.id, flushed);
            }
            Command::Retry => {
                // The main thread may be waiting for just this.
                let retried: u32 = self.queues.iter().map(QueueWatcher::retry).sum();
                tracing::info!(retried, "requests that storage had failed are tried again");
                return send(stream, request.id, Ok(json!({ "retried": retried })));
            }
            Command::Limit(limits) => {
                self.device.set_limits(limits);
                let settled = self.device.limits();
                tracing::info!(?settled, "what the guest may ask for is limited as the operator said");
                return send(stream, request.id, Ok(serde_json::to_value(settled).map_err(io::Error::from)?));
            }
            Command::Drain => Order::Drain,
            Command::Resume => Order::Resume,
            Command::Suspend => Order::Suspend,
            Command::ResumeKey => Order::ResumeKey,
            Command::Resize => Order::Resize,
            Command::TakeOver => Order::TakeOver,
            Command::Shutdown => Order::Shutdown,
        };
        let (caller, answered) = Caller::new(stream.try_clone()?, request.id);
        self.desk.give(order, caller.with_descriptor(descriptor));
        // The main thread has ended when it does not answer, or this client does not read.
        answered.recv().map_err(|_| io::ErrorKind::ConnectionAborted.into())
    }

    fn status(&self) -> Status {
        Status {
            sealblk: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            vmm_connected: self.device.is_connected(),
            drained: self.device.is_drained(),
            suspended: self.device.is_suspended(),
            limits: self.device.limits(),
            volume: self.device.status(),
            queues: self.queues.iter().map(QueueWatcher::view).collect(),
        }
    }
}

fn send(mut stream: &UnixStream, id: Option<Value>, outcome: Result<Value, Fault>) -> io::Result<()> {
    stream.write_all(&Answer::new(id, outcome).line())
}

/// What was read of a line.
enum Line {
    Whole(Vec<u8>),
    TooLong,
    /// There is none any more; half a line counts as none.
    End,
}

fn read_line(reader: &mut impl BufRead) -> io::Result<Line> {
    let mut line = Vec::new();
    reader.take(REQUEST_BYTES_MAX as u64).read_until(b'\n', &mut line)?;
    Ok(match line.last() {
        Some(b'\n') => Line::Whole(line),
        _ if line.len() == REQUEST_BYTES_MAX => Line::TooLong,
        _ => Line::End,
    })
}

/// One of the places for clients, or the lack of one.
struct Place {
    clients: Arc<AtomicUsize>,
    number: usize,
}

impl Place {
    fn take(clients: &Arc<AtomicUsize>) -> Self {
        Self { number: clients.fetch_add(1, Ordering::Relaxed), clients: Arc::clone(clients) }
    }

    fn is_free(&self) -> bool {
        self.number < CLIENTS_MAX
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.clients.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &[u8]) -> Vec<Result<Vec<u8>, &'static str>> {
        let mut reader = BufReader::with_capacity(16, bytes);
        let mut lines = Vec::new();
        loop {
            match read_line(&mut reader).unwrap() {
                Line::Whole(line) => lines.push(Ok(line)),
                Line::TooLong => return [lines, vec![Err("too long")]].concat(),
                Line::End => return lines,
            }
        }
    }

    #[test]
    fn lines_are_whole_and_of_bounded_length() {
        assert_eq!(lines(b"a\n\nbc\n"), [Ok(b"a\n".to_vec()), Ok(b"\n".to_vec()), Ok(b"bc\n".to_vec())]);
        assert_eq!(lines(b"a\nb"), [Ok(b"a\n".to_vec())]);
        let fits = [vec![b'x'; REQUEST_BYTES_MAX - 1], b"\n".to_vec()].concat();
        assert_eq!(lines(&fits), [Ok(fits.clone())]);
        assert_eq!(lines(&vec![b'x'; REQUEST_BYTES_MAX]), [Err("too long")]);
    }

    #[test]
    fn places_are_given_back() {
        let clients = Arc::new(AtomicUsize::new(0));
        let mut places: Vec<_> = (0..CLIENTS_MAX).map(|_| Place::take(&clients)).collect();
        assert!(places.iter().all(Place::is_free));
        assert!(!Place::take(&clients).is_free());
        places.pop();
        assert!(Place::take(&clients).is_free());
    }
}
