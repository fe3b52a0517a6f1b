//! An engine on a memory disk with seeded faults: for tests, for fuzzing, and (without faults) for benches that
//! measure everything but the storage.
//!
//! The faults of system calls (short transfers, interruptions) are dealt with inside, as in every engine; those
//! of the storage (`EIO`, `ENOSPC`, lost writes, delays, another order) reach the caller.

mod disk;

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::tags::Tags;
use super::transfer::{Next, Progress, run_to_end, settle};
use super::wakes::Wakes;
use super::{Completion, Durability, Engine, Op, Tag, Wait, Wake};

use self::disk::State;
pub use self::disk::{Counts, Faults, PIECE_BYTES, SimDisk};

/// Moves bytes to and from a [`SimDisk`].
///
/// Dropped with operations in flight, it drops them: those that have not taken place never will.
pub struct Sim {
    disk: SimDisk,
    tags: Tags,
    /// How many submits there were.
    turn: u64,
    pending: Vec<Pending>,
    finished: VecDeque<Completion>,
    wakes: Wakes,
}

/// An operation that takes its time.
struct Pending {
    tag: Tag,
    op: Op,
    progress: Progress,
    /// The turn of its next step.
    due_turn: u64,
}

impl Sim {
    /// An engine on `disk` for up to `max_ops` operations between start and reaping. Several may share a disk.
    ///
    /// # Errors
    /// When there is no descriptor left for what it sleeps on.
    pub fn new(disk: SimDisk, max_ops: u32) -> io::Result<Self> {
        Ok(Self {
            disk,
            tags: Tags::new(max_ops),
            turn: 0,
            pending: Vec::with_capacity(max_ops as usize),
            finished: VecDeque::with_capacity(max_ops as usize),
            wakes: Wakes::new()?,
        })
    }

    /// Takes each operation that is due one step further, in any order.
    fn run_turn(&mut self) {
        self.turn += 1;
        if self.pending.is_empty() {
            return;
        }
        let mut disk = self.disk.state();
        let mut due = self.pending.iter().filter(|pending| pending.due_turn <= self.turn).count();
        while due > 0 {
            let choice = disk.random().below(due as u64) as usize;
            let is_due = |(_, pending): &(usize, &Pending)| pending.due_turn <= self.turn;
            let position = self.pending.iter().enumerate().filter(is_due).nth(choice);
            let position = position.expect("there are `due` of them").0;
            due -= 1;
            let pending = &mut self.pending[position];
            let result = attempt(&mut disk, &mut pending.op, pending.progress.moved_bytes);
            match settle(&pending.op, &mut pending.progress, result) {
                // The pauses between attempts take no time here.
                Next::Retry { .. } => pending.due_turn = self.turn + 1 + delay(&mut disk),
                Next::Finish(result) => {
                    let Pending { tag, op, .. } = self.pending.swap_remove(position);
                    self.finished.push_back(Completion {
                        tag,
                        slot: op.into_slot(),
                        result,
                        unsynced: false,
                    });
                }
            }
        }
    }
}

impl Engine for Sim {
    fn start(&mut self, tag: Tag, mut op: Op) {
        self.tags.claim(tag);
        op.assert_fits();
        let mut disk = self.disk.state();
        if disk.delay_turns() > 0 {
            let due_turn = self.turn + 1 + delay(&mut disk);
            self.pending.push(Pending { tag, op, progress: Progress::default(), due_turn });
            return;
        }
        let result = run_to_end(&mut op, |_| {}, |op, moved_bytes| attempt(&mut disk, op, moved_bytes));
        self.finished.push_back(Completion { tag, slot: op.into_slot(), result, unsynced: false });
    }

    fn submit(&mut self, wait: Wait) -> io::Result<()> {
        self.run_turn();
        if let Some(limit) = wait.sleeps() {
            while self.finished.is_empty() && !self.pending.is_empty() {
                self.run_turn();
            }
            if self.finished.is_empty() {
                self.wakes.sleep(limit)?;
            }
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

    fn set_volume(&mut self, _volume: Arc<OwnedFd>) -> io::Result<()> {
        Ok(())
    }
}

fn delay(disk: &mut State) -> u64 {
    let turns = u64::from(disk.delay_turns());
    disk.random().below(turns + 1)
}

/// One call for what is left of `op` after its first `moved_bytes`.
fn attempt(disk: &mut State, op: &mut Op, moved_bytes: u32) -> Result<usize, Errno> {
    let moved = moved_bytes as usize;
    match op {
        Op::Read { slot, offset_bytes, len_bytes } => {
            let rest = &mut slot.bytes_mut(*len_bytes as usize)[moved..];
            disk.read(*offset_bytes + u64::from(moved_bytes), rest)
        }
        Op::Write { slot, offset_bytes, len_bytes, durability } => {
            let rest = &slot.bytes(*len_bytes as usize)[moved..];
            let durable = *durability == Durability::Durable;
            disk.write(*offset_bytes + u64::from(moved_bytes), rest, durable)
        }
        Op::Sync => disk.sync(),
        Op::Discard { offset_bytes, len_bytes } => disk.discard(*offset_bytes, *len_bytes),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
