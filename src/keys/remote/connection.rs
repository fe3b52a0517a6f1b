//! One conversation with one server, which ends in time.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::str::FromStr;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use super::super::doctor::{Link, Walk};
use super::super::{KeyError, ManagerName};
use super::{Failure, TlsClient};

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;

/// When a call has to have ended, whatever it consists of.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// A name, or an address without brackets.
    pub host: String,
    /// A TCP port.
    pub port: u16,
}

/// A TLS connection. Reading and writing fail with [`ErrorKind::TimedOut`] at its deadline.
#[derive(Debug)]
pub struct Connection(StreamOwned<ClientConnection, Bounded>);

/// A socket that waits until the deadline, and no longer.
#[derive(Debug)]
struct Bounded {
    socket: TcpStream,
    deadline: Deadline,
}

impl Deadline {
    /// From now on.
    pub fn after(patience: Duration) -> Self {
        Self(Instant::now() + patience)
    }

    /// An equal part of what is left, for the first of `count` attempts.
    #[must_use]
    pub fn share(self, count: usize) -> Self {
        let now = Instant::now();
        let parts = u32::try_from(count.max(1)).unwrap_or(u32::MAX);
        Self(now + self.0.saturating_duration_since(now) / parts)
    }

    /// What is left, more than nothing.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] when it has passed.
    pub fn remaining(self) -> io::Result<Duration> {
        match self.0.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(ErrorKind::TimedOut.into()),
            remaining => Ok(remaining),
        }
    }
}

impl Endpoint {
    /// Reads `HOST`, `HOST:PORT`, `ADDRESS`, `ADDRESS:PORT` or `[ADDRESS]:PORT`; `None` for anything else.
    pub fn parse(text: &str, default_port: u16) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[').map(|rest| rest.split_once(']')) {
            Some(Some((host, ""))) => (host, None),
            Some(Some((host, rest))) => (host, Some(rest.strip_prefix(':')?)),
            Some(None) => return None,
            None if IpAddr::from_str(text).is_ok() => (text, None),
            None => match text.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        let port = match port {
            Some(port) => port.parse().ok().filter(|port| *port != 0)?,
            None => default_port,
        };
        ServerName::try_from(host).ok()?;
        Some(Self { host: host.to_owned(), port })
    }

    /// Its addresses. The resolver keeps no deadline, so it is left behind in a thread of its own when it is late.
    fn resolve(&self, deadline: Deadline) -> io::Result<Vec<SocketAddr>> {
        if let Ok(address) = IpAddr::from_str(&self.host) {
            return Ok(vec![(address, self.port).into()]);
        }
        let (sender, receiver) = mpsc::sync_channel(1);
        let wanted = (self.host.clone(), self.port);
        std::thread::Builder::new().name("resolver".to_owned()).spawn(move || {
            let found = wanted.to_socket_addrs().map(|found| found.take(ADDRESSES_MAX).collect());
            // Whoever asked may have gone.
            let _ = sender.send(found);
        })?;
        receiver.recv_timeout(deadline.remaining()?).map_err(|_| io::Error::from(ErrorKind::TimedOut))?
    }

    fn connect(&self, deadline: Deadline) -> Result<TcpStream, Failure> {
        let addresses = self
            .resolve(deadline)
            .map_err(|error| Failure::of_io(&format!("looking up the name of {self}"), error))?;
        let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
        for address in addresses {
            let connected =
                deadline.remaining().and_then(|remaining| TcpStream::connect_timeout(&address, remaining));
            match connected {
                Ok(socket) => return Ok(socket),
                Err(error) => last = error,
            }
        }
        Err(Failure::of_io(&format!("connecting to {self}"), last))
    }
}

impl Endpoint {
    /// Goes where [`Connection::open`] goes, without TLS if there is no `client`, and tells of every step. Gives the
    /// connection, if it is one of TLS.
    ///
    /// # Errors
    /// See [`KeyError`], about `manager`.
    pub(in crate::keys) fn walk(
        &self,
        client: Option<&TlsClient>,
        deadline: Deadline,
        manager: &ManagerName,
        walk: &mut Walk<'_>,
    ) -> Result<Option<Connection>, KeyError> {
        walk.link(Link::NameResolution, || {
            let doing = format!("looking up the name of {self}");
            let found = self
                .resolve(deadline)
                .map_err(|error| Failure::of_io(&doing, error).about(manager.clone()))?;
            let found: Vec<_> = found.iter().map(|address| address.ip().to_string()).collect();
            Ok(((), format!("{} is {}", self.host, found.join(", "))))
        })?;
        let socket = walk.link(Link::Connection, || {
            let socket = self.connect(deadline).map_err(|failure| failure.about(manager.clone()))?;
            let peer = socket.peer_addr().map_or_else(|_| self.to_string(), |peer| peer.to_string());
            Ok((socket, format!("{peer} takes connections")))
        })?;
        let Some(client) = client else { return Ok(None) };
        walk.link(Link::Tls, || {
            let connection = Connection::over(socket, self, client, deadline)
                .map_err(|failure| failure.about(manager.clone()))?;
            let version = connection.0.conn.protocol_version();
            let version = version.and_then(|version| version.as_str()).unwrap_or("a version of TLS");
            Ok((Some(connection), version.to_owned()))
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Connection {
    /// Connects, and does not return before each side knows who the other is, as far as the server says.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn open(endpoint: &Endpoint, client: &TlsClient, deadline: Deadline) -> Result<Self, Failure> {
        Self::over(endpoint.connect(deadline)?, endpoint, client, deadline)
    }

    fn over(
        socket: TcpStream,
        endpoint: &Endpoint,
        client: &TlsClient,
        deadline: Deadline,
    ) -> Result<Self, Failure> {
        let doing = format!("the TLS handshake with {endpoint}");
        let failed = |error| Failure::of_io(&doing, error);
        socket.set_nodelay(true).map_err(failed)?;
        let name = match &client.server_name {
            Some(name) => name.clone(),
            None => ServerName::try_from(endpoint.host.clone())
                .map_err(|error| Failure::refused(format!("{endpoint}: {error}"), "correct its address"))?,
        };
        let mut tls = ClientConnection::new(Arc::clone(&client.config), name)
            .map_err(|error| failed(io::Error::other(error)))?;
        let mut socket = Bounded { socket, deadline };
        while tls.is_handshaking() {
            tls.complete_io(&mut socket).map_err(failed)?;
        }
        Ok(Self(StreamOwned::new(tls, socket)))
    }
}

impl Read for Connection {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Drop for Connection {
    /// Says goodbye, as far as that takes no waiting.
    fn drop(&mut self) {
        self.0.conn.send_close_notify();
        if self.0.sock.socket.set_nonblocking(true).is_ok() {
            let _ = self.0.conn.write_tls(&mut self.0.sock.socket);
        }
    }
}

impl Bounded {
    fn retried<T>(
        &mut self,
        mut attempt: impl FnMut(&mut TcpStream, Duration) -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            match attempt(&mut self.socket, self.deadline.remaining()?) {
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
                result => return result,
            }
        }
    }
}

impl Read for Bounded {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.retried(|socket, remaining| {
            socket.set_read_timeout(Some(remaining))?;
            socket.read(into)
        })
    }
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.retried(|socket, remaining| {
            socket.set_write_timeout(Some(remaining))?;
            socket.write(bytes)
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_written_as_everywhere() {
        for (text, host, port, shown) in [
            ("kmip1", "kmip1", 5696, "kmip1:5696"),
            ("kmip1.example:15", "kmip1.example", 15, "kmip1.example:15"),
            ("192.0.2.1", "192.0.2.1", 5696, "192.0.2.1:5696"),
            ("192.0.2.1:80", "192.0.2.1", 80, "192.0.2.1:80"),
            ("::1", "::1", 5696, "[::1]:5696"),
            ("[::1]", "::1", 5696, "[::1]:5696"),
            ("[::1]:80", "::1", 80, "[::1]:80"),
        ] {
            let endpoint = Endpoint::parse(text, 5696).unwrap_or_else(|| panic!("{text}"));
            assert_eq!((endpoint.host.as_str(), endpoint.port), (host, port));
            assert_eq!(endpoint.to_string(), shown);
        }
        for text in ["", ":5696", "kmip1:", "kmip1:0", "kmip1:65536", "a b", "[::1", "[::1]5696", "https://x"]
        {
            assert_eq!(Endpoint::parse(text, 5696), None, "{text}");
        }
    }

    #[test]
    fn a_deadline_passes() {
        assert!(Deadline::after(Duration::from_secs(3600)).remaining().unwrap() > Duration::from_secs(3000));
        let passed = Deadline::after(Duration::ZERO).remaining().unwrap_err();
        assert_eq!(passed.kind(), ErrorKind::TimedOut);
    }
}
