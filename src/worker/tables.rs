//! Requests and their pieces while they are under way, in tables that are allocated once.

use super::sector_locks::{Access, Number};
use super::syncs::SyncNumber;
use crate::guest::Cursor;
use crate::io::Tag;
use crate::virtio::request::{Request, RequestKind, SectorRange};
use crate::virtio::wire::Status;

/// A request under way.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) request: Request,
    pub(super) plan: Plan,
    /// Pieces that the engine has.
    pub(super) outstanding: u32,
    /// Whether it waits in the backlog to go on.
    pub(super) in_backlog: bool,
    /// The worst that happened so far.
    pub(super) status: Status,
    /// What is to be done about that.
    pub(super) failure: Failure,
    /// Its number in the line for the locks of its next piece.
    pub(super) in_line: Option<Number>,
    /// How many syncs of the volume had failed before its first one began, if it has any.
    pub(super) failures_before: Option<u32>,
}

/// What is to be done about a request that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The guest is told.
    Final,
    /// It may be tried again.
    Repeatable,
}

/// What is left to begin of a request: it is cut into pieces that fit a slot.
#[derive(Debug, Default)]
pub(super) struct Plan {
    range: usize,
    done_bytes: u64,
    pub(super) cursor: Cursor,
    finished: bool,
}

impl Active {
    #[inline(always)]
    fn new(request: Request) -> Self {
        let mut active = Self {
            request,
            plan: Plan::default(),
            outstanding: 0,
            in_backlog: false,
            status: Status::Ok,
            failure: Failure::Final,
            in_line: None,
            failures_before: None,
        };
        active.plan.finished = active.remaining().is_none() && active.request.kind != RequestKind::Flush;
        active
    }

    /// Forgets what came of the request so far: all of it is to begin.
    pub(super) fn begin_again(&mut self) {
        self.plan = Plan::default();
        (self.status, self.failure, self.failures_before) = (Status::Ok, Failure::Final, None);
        self.in_backlog = true;
    }

    /// Whether nothing is left to begin.
    pub(super) fn is_planned(&self) -> bool {
        self.plan.finished
    }

    /// Whether nothing is left at all.
    pub(super) fn is_done(&self) -> bool {
        self.plan.finished && self.outstanding == 0 && !self.in_backlog
    }

    /// Marks the request failed. What was not begun of it never will be.
    pub(super) fn fail(&mut self, status: Status) {
        self.status = status;
        self.plan.finished = true;
    }

    /// The part of the current range that was not begun; `None` when the request has no ranges left.
    pub(super) fn remaining(&self) -> Option<SectorRange> {
        let ranges = match &self.request.kind {
            RequestKind::Read(range) | RequestKind::Write(range) => std::slice::from_ref(range),
            RequestKind::Discard(ranges) | RequestKind::WriteZeroes(ranges) => ranges.as_slice(),
            RequestKind::Flush | RequestKind::GetId => &[],
        };
        let range = ranges.get(self.plan.range)?;
        (range.len_bytes > 0).then(|| SectorRange {
            offset_bytes: range.offset_bytes + self.plan.done_bytes,
            len_bytes: range.len_bytes - self.plan.done_bytes,
        })
    }

    /// Notes that the next `len_bytes` were begun as one piece.
    pub(super) fn began(&mut self, len_bytes: u64) {
        self.outstanding += 1;
        let left = self.remaining().map_or(0, |range| range.len_bytes);
        if len_bytes < left {
            self.plan.done_bytes += len_bytes;
            return;
        }
        self.plan.range += 1;
        self.plan.done_bytes = 0;
        self.plan.finished = self.remaining().is_none();
    }
}

/// What the engine's answer to a piece needs to find its way back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) request: RequestId,
    /// The part of the disk it covers; empty for a flush.
    pub(super) range: SectorRange,
    /// Where its bytes begin in the request's data.
    pub(super) cursor: Cursor,
    /// Of a flush, or a write that is to be durable: its failure may be the only word of an earlier one's.
    pub(super) sync: Option<SyncNumber>,
    /// How its sectors are locked.
    pub(super) lock: Option<Access>,
    /// Whether its sector is still being read, to be written back with a part of it changed.
    pub(super) reads_first: bool,
}

/// A place in the table of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RequestId(u32);

/// A table with a fixed number of places, handed out last in, first out.
#[derive(Debug)]
struct Slab<T> {
    places: Vec<Option<T>>,
    free: Vec<u32>,
}

// Inlined, so that what is large is made and taken apart where it lies, not copied about.
impl<T> Slab<T> {
    fn new(count: u32) -> Self {
        Self { places: (0..count).map(|_| None).collect(), free: (0..count).rev().collect() }
    }

    #[inline(always)]
    fn insert(&mut self, value: T) -> Option<u32> {
        let place = self.free.pop()?;
        self.places[place as usize] = Some(value);
        Some(place)
    }

    #[inline(always)]
    fn remove(&mut self, place: u32) -> T {
        let value = self.places[place as usize].take().expect("only places in use are named");
        self.free.push(place);
        value
    }

    fn used(&self) -> usize {
        self.places.len() - self.free.len()
    }
}

/// The requests under way.
#[derive(Debug)]
pub(super) struct Requests(Slab<Active>);

impl Requests {
    pub(super) fn new(count: u32) -> Self {
        Self(Slab::new(count))
    }

    pub(super) fn is_full(&self) -> bool {
        self.0.free.is_empty()
    }

    pub(super) fn count(&self) -> usize {
        self.0.used()
    }

    #[inline(always)]
    pub(super) fn insert(&mut self, request: Request) -> RequestId {
        RequestId(self.0.insert(Active::new(request)).expect("requests are taken only while there is room"))
    }

    pub(super) fn get(&mut self, id: RequestId) -> &mut Active {
        self.0.places[id.0 as usize].as_mut().expect("only requests under way are named")
    }

    #[inline(always)]
    pub(super) fn remove(&mut self, id: RequestId) -> Active {
        self.0.remove(id.0)
    }
}

/// The pieces that the engine has.
#[derive(Debug)]
pub(super) struct Pieces(Slab<Piece>);

impl Pieces {
    pub(super) fn new(count: u32) -> Self {
        Self(Slab::new(count))
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.0.used()
    }

    pub(super) fn is_full(&self) -> bool {
        self.0.free.is_empty()
    }

    pub(super) fn insert(&mut self, piece: Piece) -> Tag {
        Tag(self.0.insert(piece).expect("pieces are begun only while there is room"))
    }

    pub(super) fn remove(&mut self, tag: Tag) -> Piece {
        self.0.remove(tag.0)
    }
}
