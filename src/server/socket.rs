//! The vhost-user socket: made, inherited or connected to, and one front end at a time on it.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{CWD, Mode, RenameFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use super::config::{Confinement, Endpoint};
use super::control::protocol::HandedOver;
use super::peers::Peers;
use super::stop::{Readiness, StopSignal};
use crate::sandbox::{Files, Identity};

/// How long to wait between attempts to connect.
const CONNECT_INTERVAL: Duration = Duration::from_millis(100);

/// The longest path that fits a socket address, with the zero byte that ends it.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Why the socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody answers there.
    #[error("socket {path} is in use by a live process: stop it, or choose another path")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Not ours to remove.
    #[error("{path} exists and is not a socket: choose another path, or remove it")]
    NotASocket {
        /// What is in the way.
        path: PathBuf,
    },
    /// The kernel refuses to make it.
    #[error("cannot listen on socket {path}")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The VMM's socket cannot be connected to, and waiting will not help.
    #[error("cannot connect to socket {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// No socket address is that long.
    #[error("socket path {path} is too long: {} bytes, of at most {SOCKET_PATH_BYTES_MAX}", path.as_os_str().len())]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// The inherited descriptor is something else.
    #[error("the descriptor given with --fd is not a Unix stream socket that listens or is connected")]
    WrongKind,
    /// Who is at the other end of the only connection may not be.
    #[error("the user at the other end of the socket given with --fd is not one of --allow-uid")]
    PeerRefused,
    /// Waiting for front ends failed.
    #[error("waiting for the VMM on the vhost-user socket failed")]
    Wait(#[source] io::Error),
}

/// All sockets of a process.
#[derive(Debug)]
pub(super) struct Sockets {
    /// Where front ends come from.
    pub(super) socket: Socket,
    /// Where operators come from, if they may.
    pub(super) control: Option<ControlSocket>,
}

/// The control socket, which nobody listens to yet: clients wait.
#[derive(Debug)]
pub(super) struct ControlSocket {
    pub(super) listener: UnixListener,
    pub(super) file: SocketFile,
}

impl Sockets {
    /// Makes the sockets, those of front ends last: who connects there finds the other.
    pub(super) fn open(
        endpoint: Endpoint,
        control: Option<PathBuf>,
        confinement: &Confinement,
    ) -> Result<Self, SocketError> {
        let owner = confinement.identity;
        let everybody = !confinement.allowed_uids.is_empty();
        let control = control.map(|path| bind(path, Access { everybody: false, owner })).transpose()?;
        let socket = Socket::open(endpoint, Access { everybody, owner })?;
        Ok(Self { socket, control: control.map(|(listener, file)| ControlSocket { listener, file }) })
    }

    /// What has to stay within reach: the volume, and what sockets need.
    pub(super) fn files(&self, volume: Arc<OwnedFd>, writable: bool) -> Files {
        let files = self.socket.file().into_iter().chain(self.control.as_ref().map(|control| &control.file));
        let vmm_socket = match &self.socket {
            Socket::Connecting { path, .. } => Some(path.clone()),
            _ => None,
        };
        let socket_folders = files.map(|file| file.folder().to_owned()).collect();
        Files { volume: Some(volume), writable, socket_folders, vmm_socket }
    }
}

/// Where front ends come from.
#[derive(Debug)]
pub(super) enum Socket {
    /// They connect to a socket of ours.
    Listening {
        /// Its file, when we have made it. Removed before the socket is closed: until then nobody takes it for
        /// a stale one, and its inode is not used again.
        file: Option<SocketFile>,
        /// The socket.
        listener: UnixListener,
    },
    /// There is only this one.
    Connected(Option<UnixStream>),
    /// We connect to a socket of theirs.
    Connecting {
        /// Where it is.
        path: PathBuf,
        /// Whether this is not the first attempt: then there is a pause before it.
        tried: bool,
    },
}

impl Socket {
    pub(super) fn open(endpoint: Endpoint, access: Access) -> Result<Self, SocketError> {
        match endpoint {
            Endpoint::Connect(path) if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX => {
                Err(SocketError::PathTooLong { path })
            }
            Endpoint::Listen(path) => {
                bind(path, access).map(|(listener, file)| Self::Listening { file: Some(file), listener })
            }
            Endpoint::Inherited(fd) => Self::inherit(fd),
            Endpoint::TakenOver(fd, path) => match (Self::inherit(fd)?, path) {
                (Self::Listening { listener, .. }, Some(path)) => {
                    let file =
                        SocketFile::of(&path).map_err(|source| SocketError::Listen { path, source })?;
                    Ok(Self::Listening { file: Some(file), listener })
                }
                (socket @ Self::Listening { .. }, None) => Ok(socket),
                _ => Err(SocketError::WrongKind),
            },
            Endpoint::TakeOver(_) => unreachable!("start-up has taken over already"),
            Endpoint::Connect(path) => Ok(Self::Connecting { path, tried: false }),
        }
    }

    fn inherit(fd: OwnedFd) -> Result<Self, SocketError> {
        let is_unix = sockopt::socket_domain(&fd) == Ok(AddressFamily::UNIX);
        if !is_unix || sockopt::socket_type(&fd) != Ok(SocketType::STREAM) {
            return Err(SocketError::WrongKind);
        }
        if sockopt::socket_acceptconn(&fd).unwrap_or(false) {
            return Ok(Self::Listening { file: None, listener: UnixListener::from(fd) });
        }
        let stream = UnixStream::from(fd);
        stream.peer_addr().map_err(|_| SocketError::WrongKind)?;
        stream.set_nonblocking(false).map_err(SocketError::Wait)?;
        Ok(Self::Connected(Some(stream)))
    }

    /// Waits for the next front end.
    pub(super) fn next_front_end(
        &mut self,
        stop: &StopSignal,
        peers: &mut Peers,
    ) -> Result<Next, SocketError> {
        match self {
            Self::Connected(stream) => match stream.take() {
                Some(stream) if !peers.admit_front_end(&stream, true) => Err(SocketError::PeerRefused),
                stream => Ok(stream.map_or(Next::Stop, Next::FrontEnd)),
            },
            Self::Listening { listener, file } => loop {
                match stop.wait_for(listener.as_fd()).map_err(SocketError::Wait)? {
                    Readiness::Stop => return Ok(Next::Stop),
                    Readiness::Order => return Ok(Next::Order),
                    Readiness::Ready | Readiness::TimedOut => {}
                }
                match listener.accept() {
                    Ok((stream, _)) if !peers.admit_front_end(&stream, file.is_none()) => {}
                    Ok((stream, _)) => {
                        // An inherited listener may hand down a flag that we do not want.
                        stream.set_nonblocking(false).map_err(SocketError::Wait)?;
                        return Ok(Next::FrontEnd(stream));
                    }
                    // It has gone again, or a process that shares the listener was faster.
                    Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionAborted) => {}
                    Err(error) => return Err(SocketError::Wait(error)),
                }
            },
            Self::Connecting { path, tried } => loop {
                // A VMM that accepts and hangs up again is not called in a circle.
                let pause = if *tried { CONNECT_INTERVAL } else { Duration::ZERO };
                match stop.pause(pause).map_err(SocketError::Wait)? {
                    Readiness::Stop => return Ok(Next::Stop),
                    Readiness::Order => return Ok(Next::Order),
                    Readiness::Ready | Readiness::TimedOut => *tried = true,
                }
                match connect(path) {
                    Ok(stream) if !peers.admit_front_end(&stream, false) => {}
                    Ok(stream) => return Ok(Next::FrontEnd(stream)),
                    Err(error) if is_worth_retrying(&error) => {
                        tracing::debug!(path = %path.display(), %error, "the VMM does not listen yet");
                    }
                    Err(source) => return Err(SocketError::Connect { path: path.clone(), source }),
                }
            },
        }
    }

    /// What a successor has to know of the socket, and the descriptor it gets.
    pub(super) fn description(&self) -> (HandedOver, Option<BorrowedFd<'_>>) {
        match self {
            Self::Listening { file, listener } => {
                let path = file.as_ref().map(|file| file.path.clone());
                (HandedOver::Listening(path), Some(listener.as_fd()))
            }
            Self::Connecting { path, .. } => (HandedOver::Connecting(path.clone()), None),
            Self::Connected(_) => unreachable!("it is not handed over"),
        }
    }

    /// Leaves the socket's file to a successor.
    pub(super) fn leave(&mut self) {
        if let Self::Listening { file: Some(file), .. } = self {
            file.left = true;
        }
    }

    /// The file that was made for it, if one was.
    pub(super) fn file(&self) -> Option<&SocketFile> {
        match self {
            Self::Listening { file, .. } => file.as_ref(),
            _ => None,
        }
    }

    /// Whether another front end may come after the one that has gone.
    pub(super) fn has_more(&self) -> bool {
        !matches!(self, Self::Connected(_))
    }
}

/// What a wait for a front end ended with.
#[derive(Debug)]
pub(super) enum Next {
    /// It is there.
    FrontEnd(UnixStream),
    /// There is an order.
    Order,
    /// None will come: we were told to stop, or the only one has been.
    Stop,
}

/// Who gets at a socket that is made.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Access {
    /// Whoever gets at the folder; who is let in is settled when he connects.
    pub(super) everybody: bool,
    /// Whose the socket is to be.
    pub(super) owner: Option<Identity>,
}

/// Makes a socket that, by default, nobody but this user can connect to. When it appears at its path somebody listens
/// already, and it is whose it is to be: it is made beside its place and moved there.
pub(super) fn bind(path: PathBuf, access: Access) -> Result<(UnixListener, SocketFile), SocketError> {
    if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        return Err(SocketError::PathTooLong { path });
    }
    remove_stale(&path)?;
    let beside = path.with_added_extension("new");
    // A path without room for that is bound where it is, for a moment before somebody listens.
    let first = if beside.as_os_str().len() > SOCKET_PATH_BYTES_MAX { &path } else { &beside };
    if *first != path {
        remove_stale(first)?;
    }
    let listen_error = |source| SocketError::Listen { path: path.clone(), source };
    let (listener, mut file) = listen(first, access).map_err(listen_error)?;
    if *first != path {
        file.move_to(&path).map_err(|source| match source.kind() {
            ErrorKind::AlreadyExists => SocketError::InUse { path: path.clone() },
            _ => listen_error(source),
        })?;
    }
    Ok((listener, file))
}

fn listen(path: &Path, access: Access) -> io::Result<(UnixListener, SocketFile)> {
    // The file is born with mode 0600 or 0666: changing it afterwards would leave a moment.
    let withheld = if access.everybody { 0o111 } else { 0o177 };
    let umask = rustix::process::umask(Mode::from_raw_mode(withheld));
    let listener = UnixListener::bind(path);
    rustix::process::umask(umask);
    let listener = listener?;
    listener.set_nonblocking(true)?;
    let file = SocketFile::of(path)?;
    if let Some(owner) = access.owner {
        std::os::unix::fs::lchown(path, Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok((listener, file))
}

/// Connects without waiting for a place in a full backlog.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Whether somebody listens at `path`, or `None` when nothing is there. Asked with a socket of the wrong type,
/// which the kernel refuses differently for a live socket and a dead one, so that a live one notices nothing.
fn is_live(path: &Path) -> io::Result<Option<bool>> {
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED) => Ok(Some(false)),
        Err(Errno::NOENT) => Ok(None),
        // A stream socket, or (without an error) one that takes datagrams: somebody holds it open.
        Err(Errno::PROTOTYPE) | Ok(()) => Ok(Some(true)),
        Err(errno) => Err(errno.into()),
    }
}

/// The VMM is not there yet, or between two lives.
fn is_worth_retrying(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::WouldBlock | ErrorKind::Interrupted
    )
}

/// Makes way for a new socket: removes one that nobody listens on, and nothing else.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let listen_error = |source| SocketError::Listen { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(listen_error(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(SocketError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match is_live(path).map_err(listen_error)? {
        Some(true) => Err(SocketError::InUse { path: path.to_owned() }),
        Some(false) => fs::remove_file(path).map_err(listen_error),
        None => Ok(()),
    }
}

/// A socket's file, removed with this value unless something else has taken its place.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
    /// It is a successor's.
    left: bool,
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self { path: std::path::absolute(path)?, identity: identity(path)?, left: false })
    }

    /// Moves it to where nothing is.
    fn move_to(&mut self, path: &Path) -> io::Result<()> {
        match rustix::fs::renameat_with(CWD, &self.path, CWD, path, RenameFlags::NOREPLACE) {
            // Some file systems cannot: what was there a moment ago has been looked at.
            Err(Errno::INVAL | Errno::NOSYS) => fs::rename(&self.path, path)?,
            moved => moved?,
        }
        self.path = std::path::absolute(path)?;
        Ok(())
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The folder that it is in.
    pub(super) fn folder(&self) -> &Path {
        self.path.parent().expect("an absolute path of a file has a folder")
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if !self.left
            && identity(&self.path).is_ok_and(|now| now == self.identity)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

/// What tells one file from another that has its name.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}
