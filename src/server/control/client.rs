//! The client's end of the control socket.

use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::super::config::Endpoint;
use super::protocol::{ANSWER_BYTES_MAX, Answer, Command, Fault, HandedOver, Outcome, Request, VERSION};
use crate::cipher::VolumeKey;

/// Why a command did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody is there.
    #[error("cannot connect to control socket {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// Somebody was, and has gone, or does not speak the protocol.
    #[error("no answer from control socket {path}")]
    NoAnswer {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The server says no.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// A connection to a server.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// [`ControlError::Connect`]
    pub fn connect(path: &Path) -> Result<Self, ControlError> {
        let path = path.to_owned();
        match UnixStream::connect(&path) {
            Ok(stream) => Ok(Self { path, stream: BufReader::new(stream) }),
            Err(source) => Err(ControlError::Connect { path, source }),
        }
    }

    /// Gives a command and waits for what comes of it, for as long as that takes.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn ask(&mut self, command: Command) -> Result<Value, ControlError> {
        match self.exchange(command) {
            Ok(Outcome::Result(result)) => Ok(result),
            Ok(Outcome::Error(fault)) => Err(fault.into()),
            Err(source) => Err(ControlError::NoAnswer { path: self.path.clone(), source }),
        }
    }

    /// Hands the key back to a server that has none, and waits until it serves again.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn ask_with_key(&mut self, key: &VolumeKey) -> Result<Value, ControlError> {
        let exchanged = key.to_sealed().and_then(|copy| {
            self.send_with(Command::ResumeKey, copy.descriptor())?;
            self.receive()
        });
        match exchanged {
            Ok(Outcome::Result(result)) => Ok(result),
            Ok(Outcome::Error(fault)) => Err(fault.into()),
            Err(source) => Err(ControlError::NoAnswer { path: self.path.clone(), source }),
        }
    }

    /// Reads a result of the server's.
    ///
    /// # Errors
    /// When it is something else.
    pub fn understand<T: DeserializeOwned>(&self, result: &Value) -> Result<T, ControlError> {
        T::deserialize(result)
            .map_err(|error| ControlError::NoAnswer { path: self.path.clone(), source: error.into() })
    }

    fn send(&mut self, command: Command) -> io::Result<()> {
        let mut line = serde_json::to_vec(&Request::new(command))?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line)
    }

    fn send_with(&mut self, command: Command, descriptor: &OwnedFd) -> io::Result<()> {
        let mut line = serde_json::to_vec(&Request::new(command))?;
        line.push(b'\n');
        let descriptors = [descriptor.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)), "there is room for one");
        let sent = sendmsg(self.stream.get_ref(), &[IoSlice::new(&line)], &mut control, SendFlags::NOSIGNAL)?;
        if sent == line.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    fn exchange(&mut self, command: Command) -> io::Result<Outcome> {
        self.send(command)?;
        self.receive()
    }

    fn receive(&mut self) -> io::Result<Outcome> {
        let mut answer = Vec::new();
        self.stream.by_ref().take(ANSWER_BYTES_MAX as u64).read_until(b'\n', &mut answer)?;
        if answer.last() != Some(&b'\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let answer: Answer = serde_json::from_slice(&answer)?;
        match answer.version {
            VERSION => Ok(answer.outcome),
            other => Err(io::Error::other(format!("it speaks version {other}, this is version {VERSION}"))),
        }
    }

    /// Waits until the server has ended.
    ///
    /// # Errors
    /// When it says something more instead.
    pub fn wait_for_end(mut self) -> Result<(), ControlError> {
        let ended = match self.stream.fill_buf() {
            Ok([]) => return Ok(()),
            Ok(_) => io::ErrorKind::InvalidData.into(),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => error,
        };
        Err(ControlError::NoAnswer { path: self.path, source: ended })
    }
}

/// How long a server may take to end once it has handed over.
const END_PATIENCE: Duration = Duration::from_secs(60);

/// Takes over from the server behind the control socket `path`, and waits until it has ended. Returns what it had.
///
/// # Errors
/// See [`ControlError`]. After an error the server may serve on.
pub(in crate::server) fn take_over(path: &Path) -> Result<Endpoint, ControlError> {
    let mut client = Client::connect(path)?;
    let no_answer = |source| ControlError::NoAnswer { path: path.to_owned(), source };
    let stream = client.stream.get_ref().try_clone().map_err(no_answer)?;
    client.send(Command::TakeOver).map_err(no_answer)?;
    let (line, descriptor) = receive(&stream).map_err(no_answer)?;
    let answer: Answer = serde_json::from_slice(&line).map_err(|error| no_answer(error.into()))?;
    let result = match answer.outcome {
        Outcome::Result(result) => result,
        Outcome::Error(fault) => return Err(fault.into()),
    };
    let endpoint = match (client.understand(&result)?, descriptor) {
        (HandedOver::Listening(file), Some(descriptor)) => Endpoint::TakenOver(descriptor, file),
        (HandedOver::Connecting(path), None) => Endpoint::Connect(path),
        _ => {
            return Err(no_answer(io::Error::other(
                "a socket was announced and did not come, or the reverse",
            )));
        }
    };
    stream.set_read_timeout(Some(END_PATIENCE)).map_err(no_answer)?;
    client.wait_for_end()?;
    Ok(endpoint)
}

/// Receives one line and the descriptor that comes with it, if any.
fn receive(stream: &UnixStream) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let (mut line, mut descriptor) = (Vec::new(), None);
    while line.last() != Some(&b'\n') {
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(stream, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?.bytes;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                descriptor = descriptors.last().or(descriptor);
            }
        }
        if received == 0 || line.len() + received > ANSWER_BYTES_MAX {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.extend_from_slice(&bytes[..received]);
    }
    Ok((line, descriptor))
}
