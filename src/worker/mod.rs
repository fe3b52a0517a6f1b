//! One queue's loop: it takes requests from a virtqueue, moves their bytes between guest and volume through the
//! cipher, and answers them. Everything it touches is its own, but for the table of `sector_locks` on a disk whose
//! blocks are smaller than its sectors, and what `syncs` know of each other; nothing in a turn blocks or allocates.
//!
//! ```text
//! pop -> parse -> begin -> start        submit        reap -> finish -> complete -> publish
//! Head   Request  Active   Op{slot}  -> (engine) ->  Completion        Done        notify once
//! ```
//!
//! A request that is larger than a slot goes in pieces, a few at a time, so that memory is fixed and a large
//! request does not keep small ones waiting. A part of a sector is a piece of its own (`parts`): it is read, changed
//! and written back.

mod attendance;
mod between_threads;
mod commands;
mod doubts;
mod held;
pub mod monitor;
mod parts;
mod peers;
mod queue;
pub mod rate_limits;
mod recovery;
mod sector_locks;
mod spin;
mod syncs;
mod tables;
pub mod thread;
pub mod volume;

pub use monitor::{Monitor, QueueState, QueueView, Tally};
pub use peers::MAX_WORKERS;
pub use queue::{QueueError, QueueSetup};
pub use thread::{QueueThread, QueueWatcher, WorkerGone};
pub use volume::{OnError, Volume};

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use held::Held;
use queue::Queue;
use recovery::Repeats;
use sector_locks::Locker;
use spin::Spin;
use syncs::{OwnSyncs, SyncNumber};
use tables::{Active, Failure, Piece, Pieces, RequestId, Requests};

use crate::guest::{Cursor, GuestBuffer};
use crate::io::{Completion, Durability, Engine, Op, SlotPool, Wait};
use crate::virtio::Chain;
use crate::virtio::request::{self, DiskView, Parsed, Refusal, Request, RequestKind, SectorRange};
use crate::virtio::wire::{self, Status};

/// Most requests of one queue that are under way at once.
const MAX_REQUESTS: u32 = 256;
/// Most requests taken in one turn: storage is not kept waiting while a full ring is encrypted, nor is the driver, which
/// makes new ones meanwhile. Were it all that a driver has in the air, each would wait for the other.
const MAX_TAKEN_PER_TURN: usize = 16;
/// Operations that are handed to the kernel without waiting for more.
const SUBMIT_BATCH: usize = 16;
/// Pieces of this size are handed over by themselves, and looked after at once: when storage answers right away, their
/// bytes are still in this CPU's cache.
const LARGE_PIECE_BYTES: u64 = 64 << 10;
/// Most pieces of one request that are under way at once, or begun in one turn.
const MAX_PIECES_PER_REQUEST: u32 = 8;
/// Operations without a slot (flushes, discards) that may be under way at once.
const MAX_SLOTLESS_OPS: u32 = 64;

/// What a queue serves.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The volume, with its cipher.
    pub volume: Arc<Volume>,
    /// What requests are checked against.
    pub view: DiskView,
    /// The answer to `VIRTIO_BLK_T_GET_ID`, padded with zeroes.
    pub serial: [u8; wire::ID_BYTES],
}

/// The loop of one queue, with everything that belongs to it.
#[derive(Debug)]
pub struct Worker<E> {
    disk: Disk,
    monitor: Arc<Monitor>,
    engine: E,
    slots: SlotPool,
    queue: Option<Queue>,
    repeats: Repeats,
    held: Held,
    requests: Requests,
    pieces: Pieces,
    /// Requests with something left to begin, in turn.
    backlog: VecDeque<RequestId>,
    chain: Chain,
    spare_data: Vec<GuestBuffer>,
    spin: Spin,
    /// When to take requests again, if the limits of the disk do not admit any now.
    resume_at: Option<Instant>,
    /// Operations that the engine was given and not yet told to hand over, and whether a turn ended with some.
    unsubmitted_ops: usize,
    unsubmitted_turns: usize,
    /// Operations under way that have no slot.
    slotless_ops: u32,
    /// For volumes whose sectors may be changed in part.
    locker: Option<Locker>,
    /// This worker's number among those of the volume.
    number: usize,
    syncs: OwnSyncs,
    /// Requests that have synced well, and wait for the syncs beside them to end as well.
    doubted: VecDeque<(RequestId, SyncNumber)>,
}

/// How many operations an engine for a worker over `slots` must be able to hold.
pub fn max_ops(slots: &SlotPool) -> u32 {
    u32::try_from(slots.slot_count()).expect("a pool has some hundred slots") + MAX_SLOTLESS_OPS
}

impl<E: Engine> Worker<E> {
    /// A worker without a queue. The engine holds [`max_ops`] operations.
    pub fn new(disk: Disk, engine: E, slots: SlotPool) -> Self {
        let pieces = Pieces::new(max_ops(&slots));
        let number = disk.volume.peers().join();
        let locker = disk.volume.locks().map(|locks| Locker::new(Arc::clone(locks), number));
        let syncs = OwnSyncs::new(Arc::clone(disk.volume.syncs()), number, max_ops(&slots));
        Self {
            disk,
            monitor: Arc::default(),
            engine,
            slots,
            queue: None,
            repeats: Repeats::default(),
            held: Held::default(),
            requests: Requests::new(MAX_REQUESTS),
            pieces,
            backlog: VecDeque::with_capacity(MAX_REQUESTS as usize),
            chain: Chain::new(),
            spare_data: Vec::with_capacity(MAX_REQUESTS as usize),
            spin: Spin::default(),
            resume_at: None,
            unsubmitted_ops: 0,
            unsubmitted_turns: 0,
            slotless_ops: 0,
            locker,
            number,
            syncs,
            doubted: VecDeque::with_capacity(MAX_REQUESTS as usize),
        }
    }

    /// One turn: answers what is finished, begins what is new. Returns whether there was anything to do; if not,
    /// [`wait`](Self::wait) comes next, which hands over to the engine what this turn did not.
    ///
    /// # Errors
    /// When the engine is of no further use.
    pub fn turn(&mut self) -> io::Result<bool> {
        let finished = self.finish_completed() | self.end_doubts();
        let published = self.publish();
        let repeated = self.advance_repeats() | self.retry_if_told();
        let taken = self.take_requests();
        let began = self.begin_backlog()?;
        if taken || began {
            self.monitor.set_in_flight(self.requests.count());
        }
        let busy = finished || published || repeated || taken || began;
        if busy {
            self.spin.found_work();
            // A few operations wait for the next turn: it may be the last before the wait, which hands them over
            // and sleeps in one system call.
            if self.unsubmitted_turns > 0 || self.unsubmitted_ops >= SUBMIT_BATCH {
                self.submit(Wait::No)?;
            } else if self.unsubmitted_ops > 0 {
                self.unsubmitted_turns = 1;
            }
        }
        Ok(busy)
    }

    /// Waits until there may be something to do, after a turn that had nothing. Looks again for a moment first, in
    /// the ring and at storage, since sleeping and waking cost more than a short wait, on both sides: a driver that
    /// finds us awake does not have to kick.
    ///
    /// # Errors
    /// When the engine is of no further use.
    pub fn wait(&mut self) -> io::Result<()> {
        if self.queue.is_some() && self.resume_at.is_none() && self.spin.goes_on() {
            self.submit(Wait::No)?;
            std::hint::spin_loop();
            return Ok(());
        }
        self.sleep()
    }

    /// Sleeps until there may be something to do, after a turn that had nothing.
    ///
    /// # Errors
    /// When the engine is of no further use.
    pub fn sleep(&mut self) -> io::Result<()> {
        // A full table takes nothing, nor does a queue that repeats or holds requests, or one at its limit: what ends
        // that wakes us.
        if let Some(queue) = &mut self.queue
            && !self.requests.is_full()
            && !self.repeats.going_on
            && self.held.is_empty()
            && self.resume_at.is_none()
            && queue.enable_notification()
        {
            queue.disable_notification();
            return Ok(());
        }
        self.submit(self.resume_at.map_or(Wait::ForEvent, Wait::Until))?;
        if let Some(queue) = &mut self.queue {
            queue.disable_notification();
        }
        Ok(())
    }

    fn submit(&mut self, wait: Wait) -> io::Result<()> {
        (self.unsubmitted_turns, self.unsubmitted_ops) = (0, 0);
        self.engine.submit(wait)
    }

    /// Takes new requests from the ring while there is room for them, a few each turn.
    fn take_requests(&mut self) -> bool {
        let mut taken = false;
        let now = self.disk.volume.limits().now();
        self.resume_at = None;
        for _ in 0..MAX_TAKEN_PER_TURN {
            if self.requests.is_full() || !self.held.is_empty() || self.queue.is_none() {
                break;
            }
            // What a predecessor took is not held up, or whoever stops the queue would wait for the limit.
            if !self.repeats.going_on {
                self.resume_at = now.and_then(|now| self.disk.volume.limits().refuses_until(now));
            }
            if self.resume_at.is_some() {
                break;
            }
            let Some(queue) = &mut self.queue else { break };
            let next = if self.repeats.going_on {
                queue.pop_repeat(&mut self.chain)
            } else {
                queue.pop(&mut self.chain)
            };
            let Some(head) = next else { break };
            taken = true;
            let memory = queue.memory();
            let data = self.spare_data.pop().unwrap_or_else(|| GuestBuffer::new(memory.clone()));
            let parsed = request::parse(head, &self.chain, data, memory, &self.disk.view);
            if let Some(now) = now {
                self.disk.volume.limits().charge(now, parsed.kind());
            }
            match parsed {
                Parsed::Request(request) => self.begin(request),
                Parsed::Refused(refusal) => self.refuse(refusal),
            }
        }
        taken
    }

    /// Starts on a valid request.
    fn begin(&mut self, request: Request) {
        let is_flush = request.kind == RequestKind::Flush;
        let id = self.requests.insert(request);
        let active = self.requests.get(id);
        if is_flush && self.disk.volume.has_sync_failed() {
            active.fail(Status::IoError);
        }
        if active.is_done() {
            return self.answer(id);
        }
        active.in_backlog = true;
        if is_flush && self.repeats.going_on {
            self.repeats.held_flushes.push(id);
        } else {
            self.backlog.push_back(id);
        }
    }

    /// Goes on with every request that has something left to begin. Those that found no room for more keep their
    /// turn, and those that went on queue up behind them: no request starves.
    fn begin_backlog(&mut self) -> io::Result<bool> {
        let (mut began, mut kept) = (false, 0);
        for _ in 0..self.backlog.len() {
            let Some(id) = self.backlog.remove(kept) else { break };
            let mut went_on = false;
            // Those that end at once make room for more; others are to have their turn.
            for _ in 0..MAX_PIECES_PER_REQUEST {
                let Some(len_bytes) = self.begin_piece(id) else { break };
                went_on = true;
                if len_bytes >= LARGE_PIECE_BYTES {
                    self.submit(Wait::No)?;
                    self.finish_completed();
                }
            }
            began |= went_on;
            let active = self.requests.get(id);
            if !active.is_planned() {
                if went_on {
                    self.backlog.push_back(id);
                } else {
                    self.backlog.insert(kept, id);
                    kept += 1;
                }
                continue;
            }
            active.in_backlog = false;
            if active.in_line.is_some() {
                self.leave_line(id);
            }
            if self.requests.get(id).is_done() {
                self.end(id);
                began = true;
            }
        }
        Ok(began)
    }

    /// Hands the next piece of a request to the engine. Returns its length; `None` when there is none, or no room for
    /// it, or when others have its sectors.
    fn begin_piece(&mut self, id: RequestId) -> Option<u64> {
        let active = self.requests.get(id);
        if active.is_planned() || active.outstanding >= MAX_PIECES_PER_REQUEST || self.pieces.is_full() {
            return None;
        }
        let volume = &self.disk.volume;
        let piece = parts::next_piece(volume, id, active, self.slots.largest_bytes() as u64);
        let op = match active.request.kind {
            RequestKind::Flush | RequestKind::Discard(_) if self.slotless_ops >= MAX_SLOTLESS_OPS => {
                return None;
            }
            RequestKind::Flush => Op::Sync,
            RequestKind::Discard(_) => {
                if !parts::lock(&mut self.locker, active, &piece) {
                    return None;
                }
                let SectorRange { offset_bytes, len_bytes } = piece.range;
                Op::Discard { offset_bytes: volume.backing_offset(offset_bytes), len_bytes }
            }
            _ => {
                let sectors = volume.sectors_of(piece.range);
                let slot = self.slots.take(sectors.len_bytes as usize)?;
                if !parts::lock(&mut self.locker, active, &piece) {
                    self.slots.put(slot);
                    return None;
                }
                parts::transfer(volume, active, &piece, slot, sectors)
            }
        };
        if matches!(op, Op::Sync | Op::Discard { .. }) {
            self.slotless_ops += 1;
        }
        active.began(piece.range.len_bytes);
        let len_bytes = piece.range.len_bytes;
        self.start(piece, op);
        Some(len_bytes)
    }

    /// Hands one operation of a piece to the engine.
    #[inline]
    fn start(&mut self, mut piece: Piece, op: Op) {
        if matches!(op, Op::Sync | Op::Write { durability: Durability::Durable, .. }) {
            self.begin_sync(&mut piece);
        }
        let tag = self.pieces.insert(piece);
        self.engine.start(tag, op);
        self.unsubmitted_ops += 1;
    }

    /// Takes what the engine has finished.
    fn finish_completed(&mut self) -> bool {
        let mut finished = false;
        // Bounded by the pieces under way: nothing is begun here, but for the write of a piece that read first.
        while let Some(completion) = self.engine.reap() {
            self.finish(completion);
            finished = true;
        }
        finished
    }

    /// Ends one piece, and with the last one its request.
    fn finish(&mut self, completion: Completion) {
        let piece = self.pieces.remove(completion.tag);
        if piece.reads_first && completion.result.is_ok() {
            return self.write_back(piece, completion.slot);
        }
        self.unlock(&piece);
        let failed = completion.result.is_err();
        let volume = &self.disk.volume;
        let active = self.requests.get(piece.request);
        active.outstanding -= 1;
        let mut slot = completion.slot;
        match (completion.result, &active.request.kind, &mut slot) {
            (Ok(()), RequestKind::Read(_), Some(slot)) => {
                let (range, data, mut cursor) = (piece.range, &active.request.data, piece.cursor);
                if volume.is_whole(range) {
                    volume.decrypt(slot, range.first(), range.len_bytes as usize, data, &mut cursor);
                } else {
                    volume.decrypt_part(slot, range, data, &mut cursor);
                }
            }
            (Ok(()), ..) => {}
            (Err(error), RequestKind::Discard(_), _) if error.kind() == io::ErrorKind::Unsupported => {
                active.fail(Status::Unsupported);
            }
            (Err(error), kind, _) => {
                let sync_failed = *kind == RequestKind::Flush || completion.unsynced;
                let failure = volume.judge_failure(sync_failed, piece.sync.is_some());
                // One piece that must not be repeated is enough.
                if failure == Failure::Final || active.status == Status::Ok {
                    active.failure = failure;
                }
                if let Some(queue) = &mut self.queue {
                    let read = RequestKind::Read(piece.range);
                    queue.report_io_error(if piece.reads_first { &read } else { kind }, piece.range, &error);
                }
                active.fail(Status::IoError);
            }
        }
        match slot {
            Some(slot) => self.slots.put(slot),
            None => self.slotless_ops -= 1,
        }
        if let Some(sync) = piece.sync {
            self.syncs.end(sync, failed);
        }
        if active.is_done() {
            self.end(piece.request);
        }
    }

    /// Ends a request that nothing is left of: answers it, or holds it to be tried again. One that has synced may have
    /// to wait.
    fn end(&mut self, id: RequestId) {
        if self.requests.get(id).failures_before.is_none() || self.is_believed(id) {
            self.end_believed(id);
        }
    }

    fn end_believed(&mut self, id: RequestId) {
        if self.requests.get(id).failure == Failure::Repeatable && self.held.keeps() {
            return self.hold(id);
        }
        self.answer(id);
    }

    /// Answers a request that nothing is left of.
    fn answer(&mut self, id: RequestId) {
        let Active { request, status: outcome, .. } = self.requests.remove(id);
        let Request { head, status, kind, data } = request;
        let Some(queue) = &mut self.queue else {
            unreachable!("a queue with requests under way is not removed")
        };
        self.monitor.count(&kind, outcome);
        if kind == RequestKind::Flush && outcome == Status::IoError {
            self.disk.volume.syncs().tell();
        }
        let data_bytes = match (outcome, &kind) {
            (Status::Ok, RequestKind::Read(_)) => data.len_bytes() as u32,
            (Status::Ok, RequestKind::GetId) => {
                data.copy_out(&mut Cursor::default(), &self.disk.serial) as u32
            }
            _ => 0,
        };
        status.write(queue.memory(), outcome);
        // Also of one that failed: pieces of it may have arrived.
        queue.log_written(status, kind.fills_data().then_some(&data));
        queue.complete(head, data_bytes + 1);
        self.spare_data.push(data);
    }

    /// Answers a request that is not valid.
    fn refuse(&mut self, refusal: Refusal) {
        let Some(queue) = &mut self.queue else { unreachable!("refused requests come from a queue") };
        let written_bytes = match refusal.answer {
            Some((address, status)) => {
                address.write(queue.memory(), status);
                queue.log_written(address, None);
                1
            }
            None => 0,
        };
        self.monitor.count_refused();
        queue.complete(refusal.head, written_bytes);
        self.spare_data.push(refusal.data);
    }

    /// Shows the guest what was completed.
    fn publish(&mut self) -> bool {
        // Before the guest can know of it.
        self.monitor.set_in_flight(self.requests.count());
        self.queue.as_mut().is_some_and(Queue::publish)
    }
}

#[cfg(test)]
mod tests;
