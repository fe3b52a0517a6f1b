//! What calls the main thread away from waiting: being told to stop, by a signal or by a queue thread that broke down,
//! and orders of the control socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};

use super::control::orders::{Caller, Inbox, Order};

/// What ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readiness {
    /// The descriptor can be read, or has been closed by its peer.
    Ready,
    /// The time is over.
    TimedOut,
    /// There is an [order](StopSignal::next_order).
    Order,
    /// It is time to stop.
    Stop,
}

/// Becomes readable, and stays so, when the process is to stop, or as long as there are orders.
#[derive(Debug)]
pub(super) struct StopSignal {
    stop: StopWatch,
    inbox: Inbox,
}

/// Whether the process is to stop: for waits that no order ends.
#[derive(Debug)]
pub(super) struct StopWatch {
    /// A byte for each SIGTERM or SIGINT.
    signals: UnixStream,
    /// An eventfd that queue threads signal.
    failure: OwnedFd,
}

impl StopWatch {
    /// Waits for `time`; false if it is time to stop.
    pub(super) fn pause(&self, time: Duration) -> io::Result<bool> {
        Ok(self.poll(&[], Some(time))? != Readiness::Stop)
    }

    /// Waits for the first of `others` in this order, unless it is time to stop.
    fn poll(&self, others: &[(BorrowedFd<'_>, Readiness)], limit: Option<Duration>) -> io::Result<Readiness> {
        let stops = [self.signals.as_fd(), self.failure.as_fd()].map(|fd| (fd, Readiness::Stop));
        let all = || stops.iter().chain(others);
        let mut fds: Vec<_> = all().map(|(fd, _)| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        let limit = limit
            .map(|time| Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) });
        loop {
            match poll(&mut fds, limit.as_ref()) {
                Ok(_) => break,
                // A signal: its byte is in the pipe now.
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let ready = fds.iter().zip(all()).find(|(fd, _)| !fd.revents().is_empty());
        Ok(ready.map_or(Readiness::TimedOut, |(_, (_, readiness))| *readiness))
    }
}

impl StopSignal {
    /// Takes SIGTERM and SIGINT over, and orders.
    pub(super) fn install(inbox: Inbox) -> io::Result<Self> {
        let (signals, sender) = UnixStream::pair()?;
        for signal in [SIGTERM, SIGINT] {
            signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?;
        }
        // Left alone, a file that may not grow any more would end the process; the write is to fail instead.
        signal_hook::flag::register(SIGXFSZ, Arc::default())?;
        Ok(Self { stop: StopWatch { signals, failure: eventfd(0, EventfdFlags::CLOEXEC)? }, inbox })
    }

    /// The same, for a wait elsewhere.
    pub(super) fn watch(&self) -> io::Result<StopWatch> {
        let StopWatch { signals, failure } = &self.stop;
        Ok(StopWatch { signals: signals.try_clone()?, failure: failure.try_clone()? })
    }

    /// A descriptor that a thread signals when it breaks down.
    pub(super) fn failure_descriptor(&self) -> io::Result<OwnedFd> {
        self.stop.failure.try_clone()
    }

    /// Whether a thread has broken down.
    pub(super) fn has_failed(&self) -> bool {
        let mut fds = [PollFd::new(&self.stop.failure, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// The next order of the control socket. It has to be taken, or waits end at once.
    pub(super) fn next_order(&self) -> Option<(Order, Option<Caller>)> {
        self.inbox.take()
    }

    /// Waits until `fd` is readable, or there is an order.
    pub(super) fn wait_for(&self, fd: BorrowedFd<'_>) -> io::Result<Readiness> {
        self.stop.poll(&[(self.inbox.readiness(), Readiness::Order), (fd, Readiness::Ready)], None)
    }

    /// Waits for `time`, or until there is an order.
    pub(super) fn pause(&self, time: Duration) -> io::Result<Readiness> {
        self.stop.poll(&[(self.inbox.readiness(), Readiness::Order)], Some(time))
    }

    /// Waits for `time`, whatever orders there are.
    pub(super) fn pause_undisturbed(&self, time: Duration) -> io::Result<Readiness> {
        self.stop.poll(&[], Some(time))
    }
}
