//! The ways to be told to stop: a signal, or a queue thread that broke down.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};

/// What ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readiness {
    /// The descriptor can be read, or has been closed by its peer.
    Ready,
    /// The time is over.
    TimedOut,
    /// It is time to stop.
    Stop,
}

/// Becomes readable, and stays so, when the process is to stop.
#[derive(Debug)]
pub(super) struct StopSignal {
    /// A byte for each SIGTERM or SIGINT.
    signals: UnixStream,
    /// An eventfd that queue threads signal.
    failure: OwnedFd,
}

impl StopSignal {
    /// Takes SIGTERM and SIGINT over.
    pub(super) fn install() -> io::Result<Self> {
        let (signals, sender) = UnixStream::pair()?;
        for signal in [SIGTERM, SIGINT] {
            signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?;
        }
        // Left alone, a file that may not grow any more would end the process; the write is to fail instead.
        signal_hook::flag::register(SIGXFSZ, Arc::default())?;
        Ok(Self { signals, failure: eventfd(0, EventfdFlags::CLOEXEC)? })
    }

    /// A descriptor that a thread signals when it breaks down.
    pub(super) fn failure_descriptor(&self) -> io::Result<OwnedFd> {
        self.failure.try_clone()
    }

    /// Whether a thread has broken down.
    pub(super) fn has_failed(&self) -> bool {
        let mut fds = [PollFd::new(&self.failure, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// Waits until `fd` is readable, for at most `limit`.
    pub(super) fn wait_for(&self, fd: BorrowedFd<'_>, limit: Option<Duration>) -> io::Result<Readiness> {
        let mut fds = [
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&self.failure, PollFlags::IN),
            PollFd::from_borrowed_fd(fd, PollFlags::IN),
        ];
        self.poll(&mut fds, limit)
    }

    /// Waits for `time`, or until it is time to stop.
    pub(super) fn wait(&self, time: Duration) -> io::Result<Readiness> {
        let mut fds = [PollFd::new(&self.signals, PollFlags::IN), PollFd::new(&self.failure, PollFlags::IN)];
        self.poll(&mut fds, Some(time))
    }

    fn poll(&self, fds: &mut [PollFd<'_>], limit: Option<Duration>) -> io::Result<Readiness> {
        let limit = limit
            .map(|time| Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) });
        loop {
            match poll(fds, limit.as_ref()) {
                Ok(0) => return Ok(Readiness::TimedOut),
                Ok(_) => break,
                // A signal: its byte is in the pipe now.
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let stop = fds[..2].iter().any(|fd| !fd.revents().is_empty());
        Ok(if stop { Readiness::Stop } else { Readiness::Ready })
    }
}
