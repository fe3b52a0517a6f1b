//! Many pieces of a disk at a time, each by one thread from its source to its destination.
//!
//! A thread takes the next piece, reads it, turns it and writes it, in its own buffer: while one waits for storage
//! another has the processor. So there are no queues between stages, and never more memory in use than threads have.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use super::error::ConvertError;

/// What is moved at a time: large enough that system calls and NBD requests cost nothing beside it.
pub(super) const PIECE_BYTES: usize = 1 << 20;

/// Threads for each CPU: they mostly wait.
const THREADS_PER_CPU: usize = 2;
/// Fewer would leave storage idle, more would only use memory.
const THREAD_COUNTS: (usize, usize) = (4, 16);

/// How many pieces to have under way at a time.
pub(super) fn thread_count() -> usize {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    (cpus * THREADS_PER_CPU).clamp(THREAD_COUNTS.0, THREAD_COUNTS.1)
}

/// A piece of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) offset_bytes: u64,
    /// At most [`PIECE_BYTES`].
    pub(super) len_bytes: usize,
}

/// Calls `step` for every piece of a disk of `total_bytes`, on one thread for each of `workers`, from the beginning
/// to the end but in no strict order. Ends early, and tells why, after the first failure or when `stop` is set.
pub(super) fn for_each_piece<W: Send>(
    workers: Vec<W>,
    total_bytes: u64,
    stop: &AtomicBool,
    step: impl Fn(&mut W, Piece) -> Result<(), ConvertError> + Sync,
) -> Result<(), ConvertError> {
    let next = AtomicU64::new(0);
    let failure = Mutex::new(None);
    let failed = AtomicBool::new(false);
    let fail = |error| {
        failed.store(true, Ordering::Relaxed);
        failure.lock().expect("no holder panics").get_or_insert(error);
    };
    let work = |mut worker: W| {
        while !failed.load(Ordering::Relaxed) {
            let offset_bytes = next.fetch_add(PIECE_BYTES as u64, Ordering::Relaxed);
            if offset_bytes >= total_bytes {
                return;
            }
            let len_bytes = (total_bytes - offset_bytes).min(PIECE_BYTES as u64) as usize;
            // Whatever the signal broke as well, such as a child of ours, is a consequence.
            let done = step(&mut worker, Piece { offset_bytes, len_bytes });
            if stop.load(Ordering::Relaxed) {
                return fail(ConvertError::Interrupted);
            }
            if let Err(error) = done {
                return fail(error);
            }
        }
    };
    thread::scope(|scope| {
        for worker in workers {
            let spawned =
                thread::Builder::new().name("convert".to_owned()).spawn_scoped(scope, || work(worker));
            if let Err(source) = spawned {
                fail(ConvertError::Descriptors { source });
            }
        }
    });
    failure.into_inner().expect("no holder panics").map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: u64 = PIECE_BYTES as u64;

    #[test]
    fn every_byte_is_in_one_piece() {
        for total_bytes in [0, 1, PIECE - 1, PIECE, 7 * PIECE + 512] {
            let seen = Mutex::new(Vec::new());
            for_each_piece(vec![(); 3], total_bytes, &AtomicBool::new(false), |(), piece| {
                seen.lock().unwrap().push((piece.offset_bytes, piece.len_bytes as u64));
                Ok(())
            })
            .unwrap();
            let mut seen = seen.into_inner().unwrap();
            seen.sort_unstable();
            let end = seen.iter().fold(0, |end, (offset, len)| {
                assert_eq!(*offset, end);
                end + len
            });
            assert_eq!(end, total_bytes);
        }
    }

    #[test]
    fn the_first_failure_ends_it_and_is_told() {
        let pieces = AtomicU64::new(0);
        let error = for_each_piece(vec![()], 1000 * PIECE, &AtomicBool::new(false), |(), piece| {
            pieces.fetch_add(1, Ordering::Relaxed);
            match piece.offset_bytes / PIECE {
                3 => Err(ConvertError::Mismatch { offset_bytes: piece.offset_bytes }),
                _ => Ok(()),
            }
        });
        assert!(matches!(error, Err(ConvertError::Mismatch { offset_bytes }) if offset_bytes == 3 * PIECE));
        assert_eq!(pieces.into_inner(), 4);
    }

    #[test]
    fn a_stop_is_an_interruption_whatever_it_broke() {
        let stop = AtomicBool::new(false);
        let error = for_each_piece(vec![(); 2], 1000 * PIECE, &stop, |(), piece| {
            stop.store(piece.offset_bytes >= 10 * PIECE, Ordering::Relaxed);
            match piece.offset_bytes >= 10 * PIECE {
                true => Err(ConvertError::SameFile),
                false => Ok(()),
            }
        });
        assert!(matches!(error, Err(ConvertError::Interrupted)));
    }
}
