//! Sleeping until a watched eventfd is signalled, for the engines whose kernel or nature has no better way.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;

use super::Wake;

/// The watched descriptors and the epoll set that sleeps on them.
///
/// Edge-triggered: each signal ends one wait and nothing has to be read, so the counter stays as it is. A
/// signal that comes while nobody waits ends the next wait.
pub(super) struct Wakes {
    epoll: OwnedFd,
    watched: [Option<OwnedFd>; Wake::COUNT],
    events: Vec<Event>,
}

impl Wakes {
    pub(super) fn new() -> rustix::io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            watched: [const { None }; Wake::COUNT],
            events: Vec::with_capacity(Wake::COUNT),
        })
    }

    /// Replaces the descriptor watched as `wake`. One that is signalled already ends the next wait.
    pub(super) fn set(&mut self, wake: Wake, fd: Option<OwnedFd>) -> rustix::io::Result<()> {
        let watched = &mut self.watched[wake as usize];
        if let Some(old) = watched.take() {
            // Closing it would not do: the other side holds the same file description.
            epoll::delete(&self.epoll, old)?;
        }
        if let Some(fd) = &fd {
            epoll::add(&self.epoll, fd, EventData::new_u64(wake as u64), EventFlags::IN | EventFlags::ET)?;
        }
        *watched = fd;
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.watched.iter().all(Option::is_none)
    }

    /// Sleeps until a watched descriptor is signalled, no longer than `limit`. May return early.
    pub(super) fn sleep(&mut self, limit: Option<Duration>) -> rustix::io::Result<()> {
        assert!(limit.is_some() || !self.is_empty(), "nothing could ever end this wait");
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        self.wait(limit.as_ref()).map(|_| ())
    }

    /// The descriptor that is readable while there is something to [consume](Self::consume).
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Forgets the signals that there were so far. Says whether there were any.
    pub(super) fn consume(&mut self) -> rustix::io::Result<bool> {
        self.wait(Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))
    }

    fn wait(&mut self, timeout: Option<&Timespec>) -> rustix::io::Result<bool> {
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), timeout) {
            Ok(count) => Ok(count > 0),
            Err(Errno::INTR) => Ok(false),
            Err(errno) => Err(errno),
        }
    }
}
