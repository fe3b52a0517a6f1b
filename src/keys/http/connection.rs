//! A connection that wipes behind itself.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, NextTimeout, Transport};
use zeroize::Zeroizing;

use super::super::remote::TlsClient;
use super::HttpError;

/// Most that is received before it is read. Header lines have to fit.
const INPUT_BYTES: usize = 128 << 10;

/// Most that is sent at once.
const OUTPUT_BYTES: usize = 32 << 10;

/// Opens connections.
pub(super) struct Connector {
    tls: Option<TlsClient>,
}

/// An open connection.
struct Connection {
    socket: TcpStream,
    tls: Option<ClientConnection>,
    buffers: WipedBuffers,
}

/// A socket on which everything ends at one moment, however little arrives at a time.
struct Until<'a> {
    socket: &'a TcpStream,
    deadline: Option<Instant>,
}

/// What is on its way between the connection and its user.
struct WipedBuffers {
    input: Zeroizing<Vec<u8>>,
    filled_bytes: usize,
    consumed_bytes: usize,
    made_progress: bool,
    output: Zeroizing<Vec<u8>>,
    scratch: Zeroizing<Vec<u8>>,
}

impl Connector {
    pub(super) fn new(tls: Option<TlsClient>) -> Self {
        Self { tls }
    }

    fn tls(&self, details: &ConnectionDetails<'_>) -> Result<ClientConnection, HttpError> {
        let client = self.tls.as_ref().ok_or(HttpError::TlsNotSetUp)?;
        let name = match &client.server_name {
            Some(name) => name.clone(),
            None => {
                let host = details.uri.host().unwrap_or_default();
                let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
                ServerName::try_from(host).map_err(|_| HttpError::UnknownHost)?
            }
        };
        ClientConnection::new(Arc::clone(&client.config), name)
            .map_err(|error| HttpError::Io(io::Error::other(error)))
    }
}

impl ureq::unversioned::transport::Connector for Connector {
    type Out = Box<dyn Transport>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _: Option<()>,
    ) -> Result<Option<Self::Out>, ureq::Error> {
        let tls = match details.needs_tls() {
            true => Some(self.tls(details).map_err(other)?),
            false => None,
        };
        let deadline = deadline(details.timeout);
        let socket = open(details, deadline).map_err(other)?;
        socket.set_nodelay(true)?;
        let mut connection = Connection { socket, tls, buffers: WipedBuffers::new() };
        connection.shake_hands(deadline).map_err(other)?;
        Ok(Some(Box::new(connection)))
    }
}

/// A socket to the first of the host's addresses that takes one.
fn open(details: &ConnectionDetails<'_>, deadline: Option<Instant>) -> Result<TcpStream, HttpError> {
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for (tried, address) in details.addrs.iter().enumerate() {
        // Those that are left share the time that is left.
        let untried = u32::try_from(details.addrs.len() - tried).unwrap_or(u32::MAX);
        let result = match remaining(deadline).map_err(HttpError::Io)? {
            Some(time) => TcpStream::connect_timeout(address, time / untried),
            None => TcpStream::connect(address),
        };
        match result {
            Ok(socket) => return Ok(socket),
            Err(error) => failure = error,
        }
    }
    Err(HttpError::Io(as_late(failure)))
}

impl Connection {
    fn shake_hands(&mut self, deadline: Option<Instant>) -> Result<(), HttpError> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        let mut until = Until { socket: &self.socket, deadline };
        while tls.is_handshaking() {
            tls.complete_io(&mut until).map_err(|error| HttpError::Io(as_late(error)))?;
        }
        Ok(())
    }
}

impl Transport for Connection {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        let output = &self.buffers.output[..amount];
        let mut until = Until { socket: &self.socket, deadline: deadline(timeout) };
        match &mut self.tls {
            Some(tls) => {
                let mut stream = rustls::Stream::new(tls, &mut until);
                stream.write_all(output).and_then(|()| stream.flush())
            }
            None => until.write_all(output),
        }
        .map_err(|error| timed_out(error, timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        let mut until = Until { socket: &self.socket, deadline: deadline(timeout) };
        let input = self.buffers.input_append_buf();
        let received_bytes = match &mut self.tls {
            Some(tls) => rustls::Stream::new(tls, &mut until).read(input),
            None => until.read(input),
        }
        .map_err(|error| timed_out(error, timeout))?;
        self.buffers.input_appended(received_bytes);
        Ok(received_bytes > 0)
    }

    fn is_open(&mut self) -> bool {
        // Something to read, or the end, before anything was asked: of no use any more.
        let mut byte = [0];
        let probed = self.socket.set_nonblocking(true).and_then(|()| self.socket.peek(&mut byte));
        let is_silent = probed.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        is_silent && self.socket.set_nonblocking(false).is_ok()
    }

    fn is_tls(&self) -> bool {
        self.tls.is_some()
    }
}

impl Until<'_> {
    fn time(&self) -> io::Result<Option<Duration>> {
        remaining(self.deadline)
    }
}

impl Read for Until<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(self.time()?)?;
        let mut socket = self.socket;
        socket.read(into)
    }
}

impl Write for Until<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(self.time()?)?;
        let mut socket = self.socket;
        socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl WipedBuffers {
    fn new() -> Self {
        let zeroes = |len_bytes| Zeroizing::new(vec![0; len_bytes]);
        Self {
            input: zeroes(INPUT_BYTES),
            filled_bytes: 0,
            consumed_bytes: 0,
            made_progress: false,
            output: zeroes(OUTPUT_BYTES),
            scratch: zeroes(OUTPUT_BYTES),
        }
    }
}

impl Buffers for WipedBuffers {
    fn output(&mut self) -> &mut [u8] {
        &mut self.output
    }

    fn input(&self) -> &[u8] {
        &self.input[self.consumed_bytes..self.filled_bytes]
    }

    fn input_append_buf(&mut self) -> &mut [u8] {
        self.input.copy_within(self.consumed_bytes..self.filled_bytes, 0);
        self.filled_bytes -= self.consumed_bytes;
        self.consumed_bytes = 0;
        &mut self.input[self.filled_bytes..]
    }

    fn input_appended(&mut self, amount: usize) {
        self.filled_bytes += amount;
    }

    fn input_consume(&mut self, amount: usize) {
        self.made_progress = amount > 0;
        self.consumed_bytes += amount;
    }

    fn tmp_and_output(&mut self) -> (&mut [u8], &mut [u8]) {
        (&mut self.scratch, &mut self.output)
    }

    fn can_use_input(&self) -> bool {
        self.made_progress && self.consumed_bytes < self.filled_bytes
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connection")
    }
}

fn other(error: HttpError) -> ureq::Error {
    ureq::Error::Other(Box::new(error))
}

fn timed_out(error: io::Error, timeout: NextTimeout) -> ureq::Error {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => ureq::Error::Timeout(timeout.reason),
        _ => ureq::Error::Io(error),
    }
}

/// A socket says that it would block where its time is over.
fn as_late(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { error }
}

fn deadline(timeout: NextTimeout) -> Option<Instant> {
    if timeout.after.is_not_happening() { None } else { Instant::now().checked_add(*timeout.after) }
}

/// The time until `deadline`: never zero, which would mean "no limit" to a socket.
fn remaining(deadline: Option<Instant>) -> io::Result<Option<Duration>> {
    let Some(deadline) = deadline else { return Ok(None) };
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
        time => Ok(Some(time)),
    }
}
