//! The eventfds that end a wait, polled through the ring.
//!
//! Edge-triggered: each signal posts one completion and nothing has to be read, so that the other side finds
//! its eventfd as it left it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::{IoUring, cqueue, opcode, types};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;

use super::super::Wake;
use super::super::wakes::Wakes;
use super::{Event, push};
use crate::throttle::Throttle;

/// How often in a row a descriptor may refuse to be polled.
const MAX_FAILURES: usize = 10;

/// What is watched, and how.
pub(super) enum Watches {
    /// A poll for each descriptor, which goes on after a signal.
    Multishot {
        polls: [Poll; Wake::COUNT],
        /// Polls that are being cancelled.
        retired: Vec<Retired>,
    },
    /// Where polls end with the first signal (before Linux 5.13), and would find it again and again: one poll
    /// for an epoll set, which is edge-triggered itself.
    ThroughEpoll {
        wakes: Wakes,
        poll: Poll,
        /// There was a signal that the caller may not have seen to: it must not sleep yet.
        signalled: bool,
    },
}

/// A poll and what it is for.
#[derive(Default)]
pub(super) struct Poll {
    fd: Option<OwnedFd>,
    /// Tells the completions of this descriptor's poll from those of earlier ones.
    generation: u32,
    /// The poll is in the submission queue or in the kernel.
    armed: bool,
    /// How often in a row the poll ended with an error.
    failures: usize,
    /// Of the lines that tell of descriptors that were given up, those before this one included.
    complaints: Throttle,
}

/// A poll that is on its way out.
pub(super) struct Retired {
    event: Event,
    cancel_sent: bool,
    /// Open until the kernel has let go of it.
    _fd: OwnedFd,
}

impl Watches {
    pub(super) fn new(multishot: bool) -> io::Result<Self> {
        Ok(if multishot {
            Self::Multishot { polls: Default::default(), retired: Vec::new() }
        } else {
            Self::ThroughEpoll { wakes: Wakes::new()?, poll: Poll::default(), signalled: false }
        })
    }

    /// Replaces what is watched as `wake`, from the next [`push`](Self::push) on.
    pub(super) fn set(&mut self, wake: Wake, fd: Option<OwnedFd>) -> io::Result<()> {
        if let Some(fd) = &fd {
            probe(fd)?;
        }
        match self {
            Self::ThroughEpoll { wakes, .. } => wakes.set(wake, fd)?,
            Self::Multishot { polls, retired } => {
                let poll = &mut polls[wake as usize];
                let generation = poll.generation.wrapping_add(1);
                let complaints = std::mem::take(&mut poll.complaints);
                let new = Poll { fd, generation, complaints, ..Poll::default() };
                let old = std::mem::replace(poll, new);
                if let (true, Some(fd)) = (old.armed, old.fd) {
                    let event = Event::Poll { index: wake as usize, generation: old.generation };
                    retired.push(Retired { event, cancel_sent: false, _fd: fd });
                }
            }
        }
        Ok(())
    }

    /// Whether anything watched can post a completion.
    pub(super) fn armed(&self) -> bool {
        match self {
            Self::Multishot { polls, .. } => polls.iter().any(|poll| poll.armed),
            Self::ThroughEpoll { wakes, poll, .. } => poll.armed && !wakes.is_empty(),
        }
    }

    /// Whether a signal was noticed that no completion will tell of. Says so once.
    pub(super) fn take_signalled(&mut self) -> bool {
        match self {
            Self::Multishot { .. } => false,
            Self::ThroughEpoll { signalled, .. } => std::mem::take(signalled),
        }
    }

    /// Cancels retired polls and arms those that are not. Says whether the submission queue had room for all.
    pub(super) fn push(&mut self, ring: &mut IoUring) -> io::Result<bool> {
        match self {
            Self::Multishot { polls, retired } => {
                for retired in retired.iter_mut().filter(|retired| !retired.cancel_sent) {
                    // Not POLL_REMOVE: that one fails when the descriptor was signalled just now.
                    let cancel = opcode::AsyncCancel::new(retired.event.encode()).build();
                    // SAFETY: the entry points to nothing.
                    if !unsafe { push(ring, cancel, Event::Ignored) } {
                        return Ok(false);
                    }
                    retired.cancel_sent = true;
                }
                for (index, poll) in polls.iter_mut().enumerate() {
                    if !poll.arm(index, true, ring)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Self::ThroughEpoll { wakes, poll, signalled } => {
                if poll.fd.is_none() {
                    poll.fd = Some(wakes.as_fd().try_clone_to_owned()?);
                }
                if !poll.armed {
                    // Some of these came after the poll's report, perhaps after the caller's last look.
                    *signalled |= wakes.consume()?;
                }
                poll.arm(0, false, ring)
            }
        }
    }

    /// A poll has something to say: a signal, its end, or both.
    pub(super) fn reported(&mut self, index: usize, generation: u32, cqe: &cqueue::Entry) {
        let ended = !cqueue::more(cqe.flags());
        let (poll, retired) = match self {
            Self::Multishot { polls, retired } => (&mut polls[index], Some(retired)),
            Self::ThroughEpoll { poll, .. } => (poll, None),
        };
        if generation == poll.generation {
            // A poll that was to go on and ends at once, time after time, has nothing to wait for: its peer is
            // closed, say.
            let failed = cqe.result() < 0 || (ended && retired.is_some());
            poll.failures = if failed { poll.failures + 1 } else { 0 };
            // To be armed again by the next submit. A signal in between is not lost: the poll then finds it.
            poll.armed &= !ended;
        } else if let (true, Some(retired)) = (ended, retired) {
            let event = Event::Poll { index, generation };
            retired.retain(|retired| retired.event != event);
        }
    }
}

/// Whether waiting for the descriptor makes sense: files and some devices are always ready, signalled never.
fn probe(fd: &OwnedFd) -> io::Result<()> {
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    match epoll::add(&epoll, fd, EventData::new_u64(0), EventFlags::IN) {
        Err(Errno::PERM) => Err(io::Error::new(io::ErrorKind::InvalidInput, "not an eventfd")),
        other => Ok(other?),
    }
}

impl Poll {
    /// Says whether there was room.
    fn arm(&mut self, index: usize, multishot: bool, ring: &mut IoUring) -> io::Result<bool> {
        let Some(fd) = self.fd.as_ref().filter(|_| !self.armed) else { return Ok(true) };
        if self.failures > MAX_FAILURES {
            if index == Wake::Control as usize {
                return Err(io::Error::other("the kernel refuses to poll the control descriptor"));
            }
            // The front end's own doing: its kicks are not heard any more, and nobody else is concerned.
            if let Some(not_shown_before) = self.complaints.admit() {
                tracing::warn!(not_shown_before, "a kick descriptor cannot be waited on; ignoring it");
            }
            self.fd = None;
            return Ok(true);
        }
        let entry =
            opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), libc::POLLIN as u32).multi(multishot).build();
        // SAFETY: the entry points to nothing.
        self.armed = unsafe { push(ring, entry, Event::Poll { index, generation: self.generation }) };
        Ok(self.armed)
    }
}
