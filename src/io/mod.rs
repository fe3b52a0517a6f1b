//! Moving bytes between our own buffers and the backing volume.
//!
//! An [`Engine`] is one of the project's three joints. Its contract is *whole or an error*: short transfers,
//! `EINTR`, `EAGAIN` and a full submission queue are settled inside the engine (by one function, in
//! `transfer.rs`), so that nothing above it ever sees half a transfer.
//!
//! | engine | moves bytes by | for |
//! |---|---|---|
//! | [`uring`] | io_uring, one ring for each queue thread | service |
//! | [`blocking`] | `pread`/`pwrite`, one at a time | kernels without io_uring; the reference |
//! | [`sim`] | a memory disk with seeded faults | tests, fuzzing, benches |
//!
//! All three pass the same [`conformance`] suite.

pub mod blocking;
pub mod conformance;
mod dsync;
pub mod sim;
pub mod slots;
mod tags;
#[cfg(test)]
mod test_volumes;
mod transfer;
pub mod uring;
mod wakes;

pub use slots::{PoolShape, Slot, SlotPool};

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Names one operation from [`Engine::start`] to its [`Completion`]. The caller chooses it, below the
/// `max_ops` that the engine was made for, and does not use it again before the completion was reaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag(pub u32);

/// When a write's completion may be reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// As soon as the storage has taken it; a later [`Op::Sync`] makes it durable.
    Volatile,
    /// Only once it would survive a power failure (`RWF_DSYNC`).
    Durable,
}

/// One operation on the backing volume. Offsets count from the volume's first byte and, like lengths, are
/// multiples of the block size that the volume was opened with.
#[derive(Debug)]
pub enum Op {
    /// Fill the first `len_bytes` of the slot from `offset_bytes`.
    Read {
        /// Where the bytes go. The engine's until it comes back in the completion.
        slot: Slot,
        /// Position on the volume.
        offset_bytes: u64,
        /// At most the slot's capacity, never 0.
        len_bytes: u32,
    },
    /// Store the first `len_bytes` of the slot at `offset_bytes`. After an error any part of it may be stored.
    ///
    /// A [`Durability::Durable`] write that fails counts as a failed [`Op::Sync`] besides: the kernel may have
    /// used up its one report of the loss of an earlier write.
    Write {
        /// Where the bytes come from. The engine's until it comes back in the completion.
        slot: Slot,
        /// Position on the volume.
        offset_bytes: u64,
        /// At most the slot's capacity, never 0.
        len_bytes: u32,
        /// When the completion may be reported.
        durability: Durability,
    },
    /// Make every write whose completion was reaped before this call durable (`fdatasync`). An error is final:
    /// data may be lost for good, and a later sync that succeeds says nothing about it.
    Sync,
    /// Give the range back to the storage; what it reads as afterwards is not promised. A file gets a hole; a
    /// block device zeroes the range, unmapping it where it can (`fallocate` with `PUNCH_HOLE` for both). The
    /// error is [`io::ErrorKind::Unsupported`] where the storage can do neither.
    Discard {
        /// Position on the volume.
        offset_bytes: u64,
        /// Length of the range, never 0.
        len_bytes: u64,
    },
}

impl Op {
    /// # Panics
    /// When a transfer is empty or longer than its slot: the kernel would go on into the next slot.
    fn assert_fits(&self) {
        if let Op::Read { slot, len_bytes, .. } | Op::Write { slot, len_bytes, .. } = self {
            let len_bytes = *len_bytes as usize;
            assert!(
                (1..=slot.capacity_bytes()).contains(&len_bytes),
                "{len_bytes} bytes to move, with a slot of {}",
                slot.capacity_bytes()
            );
        }
    }

    fn into_slot(self) -> Option<Slot> {
        match self {
            Op::Read { slot, .. } | Op::Write { slot, .. } => Some(slot),
            Op::Sync | Op::Discard { .. } => None,
        }
    }
}

/// The end of one operation: whole, or an error.
#[derive(Debug)]
#[must_use]
pub struct Completion {
    /// What [`Engine::start`] was given.
    pub tag: Tag,
    /// The slot of a read or write, back in the caller's hands.
    pub slot: Option<Slot>,
    /// `Ok` means that every byte was moved. A failed read leaves the slot's content undefined: it must not
    /// reach the guest. A read past the end of the volume is [`io::ErrorKind::UnexpectedEof`].
    pub result: io::Result<()>,
    /// With an error of a durable write: every byte was moved, and what failed was to make them durable. As with
    /// [`Op::Sync`] that may be word of an earlier write's loss.
    pub unsynced: bool,
}

/// Whether [`Engine::submit`] returns at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Hand over what was started, look for completions, return.
    No,
    /// Sleep until there is a completion to reap or a watched descriptor was signalled. May return early.
    ForEvent,
    /// As [`ForEvent`](Self::ForEvent), but no longer than until then.
    Until(Instant),
}

impl Wait {
    /// Whether it sleeps at all, and how long at most.
    fn sleeps(self) -> Option<Option<Duration>> {
        match self {
            Self::No => None,
            Self::ForEvent => Some(None),
            Self::Until(end) => Some(Some(end.saturating_duration_since(Instant::now()))),
        }
    }
}

/// A descriptor that ends a [`Wait::ForEvent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The guest's notification of new requests.
    Kick,
    /// A command from the control thread.
    Control,
}

impl Wake {
    const COUNT: usize = 2;
}

/// Moves bytes between slots and the backing volume, for one thread.
///
/// The caller promises valid tags, aligned, in-range operations, and to go on calling `submit` while anything
/// is in flight: a transfer that storage cut short goes on there. The engine promises one completion for each
/// operation started, whole or an error, in any order; that it holds on to a slot for exactly as long as the
/// kernel might touch it, across its own drop too (it waits, and leaks what it cannot wait for); that an
/// operation refused for the moment is tried for half a second before the refusal is an error; and that
/// `start` makes at most one system call ([`blocking`] alone works off the operation in it). It promises
/// nothing about operations that overlap, nor that operations in flight at its drop take place.
///
/// A queue thread's turn is: take requests and `start` them, `submit`, `reap` until `None`. What it looks at
/// after the last `reap` and before the next `submit` (its ring, its commands) it may rely on being woken for: a
/// signal after the look ends the next wait. One that a `reap` has come across does not.
pub trait Engine {
    /// Accepts an operation. It may begin at once or at the next [`submit`](Self::submit).
    ///
    /// # Panics
    /// When the tag is in use or out of range, or the length is 0 or more than the slot holds: going on would
    /// move the wrong bytes.
    fn start(&mut self, tag: Tag, op: Op);
    /// Hands over everything started so far and sleeps, if it is to: one system call for both,
    /// none when there is nothing to do.
    ///
    /// # Errors
    /// The engine is of no further use.
    ///
    /// # Panics
    /// When asked to sleep without end although nothing is in flight and nothing is watched.
    fn submit(&mut self, wait: Wait) -> io::Result<()>;
    /// Takes one finished operation, if there is any. Makes no system call.
    fn reap(&mut self) -> Option<Completion>;
    /// Sets, or with `None` clears, the eventfd that ends a wait as `wake`. One that was signalled before ends
    /// the next wait. The engine neither consumes the eventfd's counter nor changes its flags: the other side
    /// shares them.
    ///
    /// # Errors
    /// When the descriptor is a file, which is never signalled.
    fn watch(&mut self, wake: Wake, fd: Option<OwnedFd>) -> io::Result<()>;
    /// Moves on to another open file of the same volume. Nothing is in flight.
    ///
    /// # Errors
    /// The engine is of no further use.
    fn set_volume(&mut self, volume: Arc<OwnedFd>) -> io::Result<()>;
}
