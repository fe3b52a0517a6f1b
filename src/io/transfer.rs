//! "Whole or an error": what follows from the result of one system call.
//!
//! Storage may move less than it was asked to, or ask to be asked again. [`settle`] is the one place that
//! decides what to do about it; every engine calls it after each attempt at an operation.

use std::io;
use std::time::Duration;

use rustix::io::Errno;

use super::{Durability, Op};

/// Transfers go on from a multiple of this, the smallest block of any storage (`O_DIRECT` needs that).
const BLOCK_BYTES: u32 = 512;

/// How long to wait before each further attempt at an operation whose last one moved nothing. When the list
/// is used up the storage's answer is final: a little more than half a second after the first attempt.
pub(super) const PAUSES: [Duration; 10] = {
    let mut pauses = [Duration::ZERO; 10];
    let mut i = 1;
    while i < pauses.len() {
        pauses[i] = Duration::from_millis(1 << (i - 1));
        i += 1;
    }
    pauses
};

/// How far an operation has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Bytes that need not be moved again.
    pub(super) moved_bytes: u32,
    /// Attempts since the last one that moved something.
    idle_attempts: usize,
}

/// What to do after an attempt.
#[derive(Debug)]
pub(super) enum Next {
    /// The operation is over: report this.
    Finish(io::Result<()>),
    /// Try again, from [`Progress::moved_bytes`] on, after waiting for `PAUSES[pause]`.
    Retry {
        /// Index into [`PAUSES`].
        pause: usize,
    },
}

/// Decides what follows when an attempt at `op` returned `result`: the number of bytes moved, or an error.
pub(super) fn settle(op: &Op, progress: &mut Progress, result: Result<usize, Errno>) -> Next {
    let moved = match result {
        Ok(moved) => u32::try_from(moved).unwrap_or(u32::MAX),
        Err(errno) if may_retry(op, errno) => return progress.retry_idle().unwrap_or(fail(errno)),
        Err(errno) => return fail(errno),
    };
    let (len_bytes, stalled) = match op {
        Op::Read { len_bytes, .. } => (*len_bytes, io::ErrorKind::UnexpectedEof),
        Op::Write { len_bytes, .. } => (*len_bytes, io::ErrorKind::WriteZero),
        Op::Sync | Op::Discard { .. } => return Next::Finish(Ok(())),
    };
    let missing = len_bytes - progress.moved_bytes;
    if moved >= missing {
        return Next::Finish(Ok(()));
    }
    let whole_blocks = moved - moved % BLOCK_BYTES;
    if whole_blocks == 0 {
        // Less than a block, or nothing: the volume ends here (a read) or has no room left (a write).
        return Next::Finish(Err(stalled.into()));
    }
    *progress = Progress { moved_bytes: progress.moved_bytes + whole_blocks, idle_attempts: 0 };
    Next::Retry { pause: 0 }
}

impl Progress {
    fn retry_idle(&mut self) -> Option<Next> {
        let pause = self.idle_attempts;
        self.idle_attempts += 1;
        (pause < PAUSES.len()).then_some(Next::Retry { pause })
    }
}

fn fail(errno: Errno) -> Next {
    Next::Finish(Err(errno.into()))
}

/// Whether an attempt that ended with `errno` may be repeated without hiding anything.
///
/// `EINTR` and `EAGAIN` say that nothing was tried. `ENOMEM` and `EBUSY` say that the storage lacks resources
/// just now, unless the attempt includes a sync: there they may be the only report that data written earlier
/// was lost, which the kernel gives once. A repetition would then succeed and hide the loss.
fn may_retry(op: &Op, errno: Errno) -> bool {
    let syncs = matches!(op, Op::Sync | Op::Write { durability: Durability::Durable, .. });
    match errno {
        Errno::INTR | Errno::AGAIN => true,
        Errno::NOMEM | Errno::BUSY => !syncs,
        _ => false,
    }
}

/// Repeats `attempt` until `op` is whole or has failed, sleeping the pauses here: for engines that have
/// nothing else to do meanwhile. `attempt` is told how many bytes were moved before it.
pub(super) fn run_to_end(
    op: &mut Op,
    sleep: impl Fn(Duration),
    mut attempt: impl FnMut(&mut Op, u32) -> Result<usize, Errno>,
) -> io::Result<()> {
    let mut progress = Progress::default();
    loop {
        let result = attempt(op, progress.moved_bytes);
        match settle(op, &mut progress, result) {
            Next::Finish(result) => return result,
            Next::Retry { pause } => sleep(PAUSES[pause]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::SlotPool;
    use crate::io::slots::PoolShape;
    use std::cell::RefCell;

    fn op(durability: Option<Durability>, len_bytes: u32) -> Op {
        let mut pool = SlotPool::new(PoolShape { small_count: 1, large_count: 0 }).unwrap();
        let slot = pool.take(len_bytes as usize).unwrap();
        match durability {
            None => Op::Read { slot, offset_bytes: 0, len_bytes },
            Some(durability) => Op::Write { slot, offset_bytes: 0, len_bytes, durability },
        }
    }

    /// Runs `op` against scripted results. Returns its end, the position of each attempt, and the pauses.
    fn script(mut op: Op, results: &[Result<usize, Errno>]) -> (io::Result<()>, Vec<u32>, Vec<Duration>) {
        let (mut results, mut positions) = (results.iter(), Vec::new());
        let pauses = RefCell::new(Vec::new());
        let end = run_to_end(
            &mut op,
            |pause| pauses.borrow_mut().push(pause),
            |_, moved| {
                positions.push(moved);
                *results.next().expect("no more attempts than scripted")
            },
        );
        assert!(results.next().is_none(), "every scripted result is used");
        (end, positions, pauses.into_inner())
    }

    #[test]
    fn short_transfers_go_on_at_the_next_whole_block() {
        let (end, positions, _) = script(op(None, 8192), &[Ok(4096), Ok(1000), Ok(8192 - 4096 - 512)]);
        end.unwrap();
        assert_eq!(positions, [0, 4096, 4608]);
        let (end, positions, _) = script(op(Some(Durability::Durable), 1024), &[Ok(512), Ok(512)]);
        end.unwrap();
        assert_eq!(positions, [0, 512]);
    }

    #[test]
    fn no_progress_is_the_end_of_the_volume_or_of_its_room() {
        for stalled in [0, 1, 511] {
            let (end, ..) = script(op(None, 8192), &[Ok(4096), Ok(stalled)]);
            assert_eq!(end.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
            let (end, ..) = script(op(Some(Durability::Volatile), 8192), &[Ok(stalled)]);
            assert_eq!(end.unwrap_err().kind(), io::ErrorKind::WriteZero);
        }
    }

    #[test]
    fn a_transient_error_is_retried_a_bounded_number_of_times() {
        for errno in [Errno::INTR, Errno::AGAIN, Errno::NOMEM, Errno::BUSY] {
            let (end, positions, pauses) = script(op(None, 512), &[Err(errno); PAUSES.len() + 1]);
            assert_eq!(end.unwrap_err().raw_os_error(), Some(errno.raw_os_error()));
            assert_eq!(positions.len(), PAUSES.len() + 1);
            assert_eq!(pauses, PAUSES);
            assert_eq!(pauses.iter().sum::<Duration>(), Duration::from_millis(511));
        }
    }

    #[test]
    fn progress_starts_the_count_anew() {
        let mut results = vec![Err(Errno::AGAIN); PAUSES.len()];
        results.push(Ok(512));
        results.extend_from_slice(&[Err(Errno::AGAIN); PAUSES.len()]);
        results.push(Ok(512));
        let (end, ..) = script(op(None, 1024), &results);
        end.unwrap();
    }

    #[test]
    fn an_error_that_may_report_a_lost_write_is_final() {
        for errno in [Errno::NOMEM, Errno::BUSY, Errno::IO, Errno::NOSPC] {
            for op in [Op::Sync, op(Some(Durability::Durable), 512)] {
                let (end, ..) = script(op, &[Err(errno)]);
                assert_eq!(end.unwrap_err().raw_os_error(), Some(errno.raw_os_error()));
            }
        }
        let (end, ..) = script(Op::Sync, &[Err(Errno::INTR), Ok(0)]);
        end.unwrap();
        let (end, ..) = script(op(Some(Durability::Volatile), 512), &[Err(Errno::NOMEM), Ok(512)]);
        end.unwrap();
    }

    #[test]
    fn everything_else_is_returned_as_it_is() {
        for errno in [Errno::IO, Errno::NOSPC, Errno::BADF, Errno::INVAL, Errno::FBIG, Errno::OPNOTSUPP] {
            let (end, ..) = script(op(None, 512), &[Err(errno)]);
            assert_eq!(end.unwrap_err().raw_os_error(), Some(errno.raw_os_error()));
            let (end, ..) = script(Op::Discard { offset_bytes: 0, len_bytes: 512 }, &[Err(errno)]);
            assert!(end.is_err());
        }
    }
}
