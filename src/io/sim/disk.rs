//! A disk in memory that fails on demand, the same way for the same seed.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::io::Errno;

/// The piece that a power failure keeps or loses as a whole.
pub const PIECE_BYTES: usize = 512;

/// What goes wrong. The rates are "one call in so many", 0 for never; the default is a perfect disk that
/// answers at once, in order, and is never without power.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// The same seed and the same calls give the same faults.
    pub seed: u64,
    /// A read, write or discard fails with `EIO`.
    pub eio_one_in: u32,
    /// A read, write or discard that touches one of these byte ranges fails with `EIO`, always.
    pub bad_ranges: Vec<Range<u64>>,
    /// A write fails with `ENOSPC`.
    pub enospc_one_in: u32,
    /// Room for the bytes written so far, on a thinly provisioned disk: a write to a piece that was not
    /// written before and exceeds this is cut short, or fails with `ENOSPC`.
    pub space_bytes: Option<u64>,
    /// A sync, or a durable write, fails with `EIO`. What it should have made durable may or may not be; like
    /// a kernel after a failed write-back, the disk then holds it for clean, and no later sync saves it.
    pub sync_failure_one_in: u32,
    /// A call is interrupted: `EINTR`, `EAGAIN`, and (but for syncs and durable writes) `ENOMEM` or `EBUSY`.
    pub interrupt_one_in: u32,
    /// A read or write moves less than was asked for, but at least one byte.
    pub short_one_in: u32,
    /// Each step of an operation takes place up to this many submits later, in any order. At 0 an operation
    /// takes place when it is started.
    pub delay_turns: u32,
    /// Writes are lost at a [`SimDisk::crash`] unless they were synced; otherwise each write is durable at once.
    pub volatile_cache: bool,
    /// The power fails after this many calls: from then on each one fails with `EIO` and leaves no trace.
    pub power_lasts_calls: Option<u64>,
}

/// How many calls reached the disk, by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Reads that moved something.
    pub reads: u64,
    /// Writes that moved something.
    pub writes: u64,
    /// Syncs that succeeded.
    pub syncs: u64,
    /// Discards that succeeded.
    pub discards: u64,
    /// Reads and writes that moved less than was asked for.
    pub short: u64,
    /// Calls that were interrupted.
    pub interrupted: u64,
    /// Calls that failed for good.
    pub failed: u64,
}

/// A disk in memory, shared by the engines of several queues and by the test that looks at it.
#[derive(Clone, Debug)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

impl SimDisk {
    /// A disk that contains `content`, all of it durable.
    ///
    /// # Panics
    /// When the length is not a multiple of [`PIECE_BYTES`].
    pub fn new(content: Vec<u8>, faults: Faults) -> Self {
        assert!(content.len().is_multiple_of(PIECE_BYTES), "a disk consists of whole pieces");
        let state = State {
            written: vec![false; if faults.space_bytes.is_some() { content.len() / PIECE_BYTES } else { 0 }],
            durable: if faults.volatile_cache { content.clone() } else { Vec::new() },
            live: content,
            unsynced: BTreeMap::new(),
            random: Random::new(faults.seed),
            counts: Counts::default(),
            calls: 0,
            used_bytes: 0,
            faults,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// What a read would see now.
    pub fn live(&self) -> Vec<u8> {
        self.state().live.clone()
    }

    /// What is certain to survive a power failure now.
    pub fn durable(&self) -> Vec<u8> {
        let state = self.state();
        if state.faults.volatile_cache { state.durable.clone() } else { state.live.clone() }
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        self.state().counts
    }

    /// Replaces the faults, from the next call on. The seed and the kind of cache stay as they were.
    pub fn set_faults(&self, faults: Faults) {
        let mut state = self.state();
        let (seed, volatile_cache) = (state.faults.seed, state.faults.volatile_cache);
        let thin_pieces = if faults.space_bytes.is_some() { state.live.len() / PIECE_BYTES } else { 0 };
        state.written.resize(thin_pieces, false);
        state.calls = 0;
        state.faults = Faults { seed, volatile_cache, ..faults };
    }

    /// Cuts the disk short, as when its backing file is truncated. Reads end there, writes beyond it fail.
    ///
    /// # Panics
    /// When the length is not a multiple of [`PIECE_BYTES`] or longer than the disk.
    pub fn truncate(&self, len_bytes: usize) {
        let mut state = self.state();
        assert!(len_bytes.is_multiple_of(PIECE_BYTES) && len_bytes <= state.live.len(), "{len_bytes} bytes");
        state.live.truncate(len_bytes);
        if state.faults.volatile_cache {
            state.durable.truncate(len_bytes);
        }
        state.unsynced.split_off(&(len_bytes / PIECE_BYTES));
    }

    /// The power fails and comes back. Of what was written to each piece since it was last synced, one version
    /// survives, or none; the pieces are independent of each other. Engines made before must be dropped first:
    /// operations in flight die with the power.
    pub fn crash(&self) {
        let mut guard = self.state();
        let state = &mut *guard;
        for (piece, versions) in std::mem::take(&mut state.unsynced) {
            // The first choice is the content before all of them.
            let survivor = state.random.below(versions.len() as u64 + 1) as usize;
            if survivor > 0 {
                state.durable[piece_range(piece)].copy_from_slice(&versions[survivor - 1][..]);
            }
        }
        if state.faults.volatile_cache {
            state.live.clone_from(&state.durable);
        }
        state.calls = 0;
        state.faults.power_lasts_calls = None;
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // A test that panicked elsewhere leaves the disk as it was between two calls.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The disk's content and its calls, which behave like system calls: short, interrupted, failing.
#[derive(Debug)]
pub(super) struct State {
    live: Vec<u8>,
    /// Unused without a volatile cache.
    durable: Vec<u8>,
    /// By number of the piece: each content since its last sync, oldest first. The last one is live.
    unsynced: BTreeMap<usize, Vec<[u8; PIECE_BYTES]>>,
    /// Pieces that take up space. Unused on a disk that is not thin.
    written: Vec<bool>,
    used_bytes: u64,
    faults: Faults,
    random: Random,
    counts: Counts,
    calls: u64,
}

impl State {
    pub(super) fn delay_turns(&self) -> u32 {
        self.faults.delay_turns
    }

    pub(super) fn random(&mut self) -> &mut Random {
        &mut self.random
    }

    pub(super) fn read(&mut self, offset_bytes: u64, into: &mut [u8]) -> Result<usize, Errno> {
        self.may_fail(offset_bytes, into.len() as u64, false)?;
        let start = usize::try_from(offset_bytes).unwrap_or(usize::MAX).min(self.live.len());
        let available = into.len().min(self.live.len() - start);
        let moved = self.cut_short(available);
        into[..moved].copy_from_slice(&self.live[start..start + moved]);
        self.counts.reads += u64::from(moved > 0);
        self.counts.short += u64::from(moved < into.len());
        Ok(moved)
    }

    pub(super) fn write(&mut self, offset_bytes: u64, from: &[u8], durable: bool) -> Result<usize, Errno> {
        self.may_fail(offset_bytes, from.len() as u64, durable)?;
        let start = usize::try_from(offset_bytes).unwrap_or(usize::MAX);
        let room = self.room(start, from.len());
        if room == 0 || self.one_in(self.faults.enospc_one_in) {
            return Err(self.failed(Errno::NOSPC));
        }
        let moved = self.cut_short(room);
        // A device works in whole blocks: a call that reports part of one has not changed that one.
        let changed = moved - moved % PIECE_BYTES;
        self.store(start, &from[..changed]);
        self.counts.writes += 1;
        self.counts.short += u64::from(moved < from.len());
        if durable {
            let pieces = start / PIECE_BYTES..(start + changed) / PIECE_BYTES;
            let versions: Vec<usize> = self.unsynced.range(pieces).map(|(&piece, _)| piece).collect();
            self.settle_pieces(&versions)?;
        }
        Ok(moved)
    }

    pub(super) fn sync(&mut self) -> Result<usize, Errno> {
        self.may_fail(0, 0, true)?;
        let pieces: Vec<usize> = self.unsynced.keys().copied().collect();
        self.settle_pieces(&pieces)?;
        self.counts.syncs += 1;
        Ok(0)
    }

    pub(super) fn discard(&mut self, offset_bytes: u64, len_bytes: u64) -> Result<usize, Errno> {
        self.may_fail(offset_bytes, len_bytes, false)?;
        let end = offset_bytes.saturating_add(len_bytes).min(self.live.len() as u64) as usize;
        let start = usize::try_from(offset_bytes).unwrap_or(usize::MAX).min(end);
        // Nobody may count on what is there now.
        let noise: Vec<u8> = (start..end).map(|_| self.random.next() as u8).collect();
        self.store(start, &noise);
        self.counts.discards += 1;
        Ok(0)
    }

    /// The faults that keep a call from doing anything.
    fn may_fail(&mut self, offset_bytes: u64, len_bytes: u64, syncs: bool) -> Result<(), Errno> {
        self.calls += 1;
        if self.faults.power_lasts_calls.is_some_and(|calls| self.calls > calls) {
            return Err(self.failed(Errno::IO));
        }
        if self.one_in(self.faults.interrupt_one_in) {
            self.counts.interrupted += 1;
            let errnos = [Errno::INTR, Errno::AGAIN, Errno::NOMEM, Errno::BUSY];
            return Err(errnos[self.random.below(if syncs { 2 } else { 4 }) as usize]);
        }
        let end = offset_bytes.saturating_add(len_bytes);
        let bad = self.faults.bad_ranges.iter().any(|bad| bad.start < end && offset_bytes < bad.end);
        if bad || (len_bytes > 0 && self.one_in(self.faults.eio_one_in)) {
            return Err(self.failed(Errno::IO));
        }
        Ok(())
    }

    fn failed(&mut self, errno: Errno) -> Errno {
        self.counts.failed += 1;
        errno
    }

    fn one_in(&mut self, rate: u32) -> bool {
        rate > 0 && self.random.below(u64::from(rate)) == 0
    }

    fn cut_short(&mut self, len_bytes: usize) -> usize {
        // The smallest short count is a piece: nothing can go on from less (a real device moves blocks).
        if len_bytes > PIECE_BYTES && self.one_in(self.faults.short_one_in) {
            PIECE_BYTES + self.random.below((len_bytes - PIECE_BYTES) as u64) as usize
        } else {
            len_bytes
        }
    }

    /// How much of a write there is room for: the disk ends somewhere, and may be thin.
    fn room(&mut self, start: usize, len_bytes: usize) -> usize {
        let end = start.saturating_add(len_bytes).min(self.live.len());
        let Some(space_bytes) = self.faults.space_bytes else { return end.saturating_sub(start) };
        for piece in start / PIECE_BYTES..end / PIECE_BYTES {
            if !self.written[piece] {
                if self.used_bytes + PIECE_BYTES as u64 > space_bytes {
                    return piece * PIECE_BYTES - start;
                }
                self.used_bytes += PIECE_BYTES as u64;
                self.written[piece] = true;
            }
        }
        end.saturating_sub(start)
    }

    fn store(&mut self, start: usize, content: &[u8]) {
        self.live[start..start + content.len()].copy_from_slice(content);
        if !self.faults.volatile_cache {
            return;
        }
        assert!(start.is_multiple_of(PIECE_BYTES), "writes start on a piece");
        for (i, version) in content.as_chunks().0.iter().enumerate() {
            self.unsynced.entry(start / PIECE_BYTES + i).or_default().push(*version);
        }
    }

    /// Makes the given pieces durable, or fails and takes them for clean all the same.
    fn settle_pieces(&mut self, pieces: &[usize]) -> Result<(), Errno> {
        let fails = self.one_in(self.faults.sync_failure_one_in);
        for &piece in pieces {
            let versions = self.unsynced.remove(&piece);
            let last = versions.as_ref().and_then(|versions| versions.last()).expect("listed by the caller");
            if !fails || self.random.below(2) == 0 {
                self.durable[piece_range(piece)].copy_from_slice(&last[..]);
            }
        }
        if fails { Err(self.failed(Errno::IO)) } else { Ok(()) }
    }
}

fn piece_range(piece: usize) -> Range<usize> {
    piece * PIECE_BYTES..(piece + 1) * PIECE_BYTES
}

/// SplitMix64: small, seeded, good enough to choose faults.
#[derive(Debug)]
pub(super) struct Random {
    state: u64,
}

impl Random {
    fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0. The bias does not matter here.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
