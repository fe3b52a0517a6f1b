//! Moving bytes between our own buffers and the backing volume.
//!
//! An [`Engine`] is one of the project's three joints. Its contract is *whole or an error*: short transfers,
//! `EINTR`, `EAGAIN` and a full submission queue are settled inside the engine, so that nothing above it ever
//! sees half a transfer.
//!
//! | engine | moves bytes by | for |
//! |---|---|---|
//! | [`uring`] | io_uring, one ring a queue thread | service |
//! | [`blocking`] | `pread`/`pwrite`, one at a time | kernels without io_uring; the reference |
//! | [`sim`] | a memory disk with seeded faults | tests, fuzzing, benches |
//!
//! All three pass the same [`conformance`] suite.

pub mod blocking;
pub mod conformance;
pub mod sim;
pub mod slots;
pub mod uring;

pub use slots::{Slot, SlotPool};

use std::io;
use std::os::fd::OwnedFd;

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
    /// Store the first `len_bytes` of the slot at `offset_bytes`.
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
    /// Make every write whose completion was reaped before this call durable (`fdatasync`).
    Sync,
    /// Give the range back to the storage; what it reads as afterwards is not promised.
    Discard {
        /// Position on the volume.
        offset_bytes: u64,
        /// Length of the range, never 0.
        len_bytes: u64,
    },
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
}

/// Whether [`Engine::submit`] returns at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Hand over what was started, look for completions, return.
    No,
    /// Sleep until there is a completion to reap or a watched descriptor was signalled. May return early.
    ForEvent,
}

/// A descriptor that ends a [`Wait::ForEvent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The guest's notification of new requests.
    Kick,
    /// A command from the control thread.
    Control,
}

/// Moves bytes between slots and the backing volume, for one thread.
///
/// The caller promises valid tags and aligned, in-range operations. The engine promises one completion for
/// each operation started, whole or an error, in any order; that it holds on to a slot for exactly as long as
/// the kernel might touch it, across its own drop too (it waits, and leaks what it cannot wait for); and that
/// `start` never blocks for longer than one system call. It promises nothing about operations that overlap.
pub trait Engine {
    /// Accepts an operation. It may begin at once or at the next [`submit`](Self::submit).
    fn start(&mut self, tag: Tag, op: Op);
    /// Hands over everything started so far and, with [`Wait::ForEvent`], sleeps: one system call for both.
    /// An error means that the engine is of no further use.
    fn submit(&mut self, wait: Wait) -> io::Result<()>;
    /// Takes one finished operation, if there is any. Makes no system call.
    fn reap(&mut self) -> Option<Completion>;
    /// Sets, or with `None` clears, the eventfd that ends a wait as `wake`. The engine never consumes more of
    /// an eventfd's counter than it needs to, and never changes its flags: the other side shares them.
    fn watch(&mut self, wake: Wake, fd: Option<OwnedFd>) -> io::Result<()>;
}
