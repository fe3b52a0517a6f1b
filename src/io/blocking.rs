//! The engine that does one thing at a time, in [`start`](Engine::start): for kernels where io_uring is missing
//! or forbidden, and as the reference that the others are compared with.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use rustix::fs::FallocateFlags;
use rustix::io::{Errno, ReadWriteFlags};

use super::dsync::keeps_dsync;
use super::tags::Tags;
use super::transfer::run_to_end;
use super::wakes::Wakes;
use super::{Completion, Durability, Engine, Op, Tag, Wait, Wake};

/// Moves bytes with `pread` and `pwrite`, one operation after the other.
///
/// Unlike the other engines' its `start` waits for the storage, and returns with the completion queued.
pub struct Blocking {
    volume: Arc<OwnedFd>,
    /// Durable writes are synced by a system call of their own.
    syncs_apart: bool,
    tags: Tags,
    finished: VecDeque<Completion>,
    wakes: Wakes,
}

impl Blocking {
    /// An engine on `volume` for up to `max_ops` operations between start and reaping.
    ///
    /// # Errors
    /// When there is no descriptor left for what it sleeps on.
    pub fn new(volume: Arc<OwnedFd>, max_ops: u32) -> io::Result<Self> {
        Ok(Self {
            syncs_apart: !keeps_dsync(&volume),
            volume,
            tags: Tags::new(max_ops),
            finished: VecDeque::with_capacity(max_ops as usize),
            wakes: Wakes::new()?,
        })
    }

    /// Does one thing, but for the sync apart.
    fn run(&self, op: &mut Op) -> io::Result<()> {
        let (volume, syncs_apart) = (self.volume.as_fd(), self.syncs_apart);
        run_to_end(op, thread::sleep, |op, moved_bytes| attempt(volume, op, moved_bytes, syncs_apart))
    }
}

impl Engine for Blocking {
    fn start(&mut self, tag: Tag, mut op: Op) {
        self.tags.claim(tag);
        op.assert_fits();
        let moved = self.run(&mut op);
        let is_durable = matches!(op, Op::Write { durability: Durability::Durable, .. });
        let syncs = moved.is_ok() && is_durable && self.syncs_apart;
        let result = if syncs { self.run(&mut Op::Sync) } else { moved };
        let unsynced = syncs && result.is_err();
        self.finished.push_back(Completion { tag, slot: op.into_slot(), result, unsynced });
    }

    fn submit(&mut self, wait: Wait) -> io::Result<()> {
        if let Some(limit) = wait.sleeps()
            && self.finished.is_empty()
        {
            self.wakes.sleep(limit)?;
        }
        Ok(())
    }

    fn reap(&mut self) -> Option<Completion> {
        let completion = self.finished.pop_front()?;
        self.tags.release(completion.tag);
        Some(completion)
    }

    fn watch(&mut self, wake: Wake, fd: Option<OwnedFd>) -> io::Result<()> {
        Ok(self.wakes.set(wake, fd)?)
    }

    fn set_volume(&mut self, volume: Arc<OwnedFd>) -> io::Result<()> {
        self.syncs_apart = !keeps_dsync(&volume);
        self.volume = volume;
        Ok(())
    }
}

/// One system call for what is left of `op` after its first `moved_bytes`.
fn attempt(volume: BorrowedFd<'_>, op: &mut Op, moved_bytes: u32, syncs_apart: bool) -> Result<usize, Errno> {
    let moved = moved_bytes as usize;
    match op {
        Op::Read { slot, offset_bytes, len_bytes } => {
            let rest = &mut slot.bytes_mut(*len_bytes as usize)[moved..];
            rustix::io::pread(volume, rest, *offset_bytes + u64::from(moved_bytes))
        }
        Op::Write { slot, offset_bytes, len_bytes, durability } => {
            let rest = IoSlice::new(&slot.bytes(*len_bytes as usize)[moved..]);
            let flags = match durability {
                Durability::Durable if !syncs_apart => ReadWriteFlags::DSYNC,
                Durability::Durable | Durability::Volatile => ReadWriteFlags::empty(),
            };
            rustix::io::pwritev2(volume, &[rest], *offset_bytes + u64::from(moved_bytes), flags)
        }
        Op::Sync => rustix::fs::fdatasync(volume).map(|()| 0),
        Op::Discard { offset_bytes, len_bytes } => {
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(volume, hole, *offset_bytes, *len_bytes).map(|()| 0)
        }
    }
}

#[cfg(test)]
#[path = "blocking_tests.rs"]
mod tests;
