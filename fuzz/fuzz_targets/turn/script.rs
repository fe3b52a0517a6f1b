//! What a fuzz input says: how a disk is set up, and what its guest does.
//!
//! Random bytes have to make a guest that mostly works, or nothing deep is ever reached: what spoils a script
//! is behind a [`Seldom`].

use arbitrary::Arbitrary;

/// True for few values of a byte.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Seldom(u8);

impl Seldom {
    pub fn happens(self) -> bool {
        self.0 >= 240
    }
}

#[derive(Arbitrary, Debug)]
pub struct Script {
    pub setup: Setup,
    pub steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
pub struct Setup {
    /// Two bits: the encryption sector size is 512 bytes, doubled so often. The next two: the guest's blocks are
    /// that, halved so often as far as it goes.
    pub sector_sizes: u8,
    pub encrypted: bool,
    pub long_key: bool,
    pub event_idx: bool,
    pub ring_doublings: u8,
    /// Where the ring's indices start.
    pub first_index: u16,
    pub read_only: Seldom,
    pub discard: bool,
    pub writethrough: bool,
    pub small_slots: u8,
    pub faults: FaultPlan,
}

/// Rates of faults; most values mean none.
#[derive(Arbitrary, Debug)]
pub struct FaultPlan {
    pub seed: u64,
    pub eio: u8,
    pub enospc: u8,
    pub sync_failure: u8,
    pub interrupt: u8,
    pub short: u8,
    pub delay_turns: u8,
    pub power_lasts: u8,
    pub space: u8,
}

#[derive(Arbitrary, Debug)]
pub enum Step {
    Request(RequestPlan),
    RequestAndTurn(RequestPlan),
    /// One turn of the worker; whether the driver wants to be notified.
    Turn(bool),
    /// Turns until everything is answered, then a look at all of memory.
    Drain,
    /// The worker sleeps, and is woken by a kick.
    Sleep,
    /// The queue is stopped and started again.
    Restart,
    Disable(Seldom),
    /// An entry of the available ring that names no descriptor.
    BadHead(u16),
    /// The ring's memory is overwritten: from here on the guest makes no sense.
    Scribble(Seldom, u16, [u8; 6]),
}

#[derive(Arbitrary, Debug)]
pub struct RequestPlan {
    pub operation: Operation,
    /// Lengths of the buffers that the request is cut into.
    pub cuts: Vec<u8>,
    /// Unused bytes between buffers.
    pub gap: u8,
    pub indirect: bool,
    pub empty_buffers: bool,
    /// The head is made available twice.
    pub twice: Seldom,
    pub is_flawed: Seldom,
    possible_flaw: Flaw,
}

impl RequestPlan {
    pub fn flaw(&self) -> Option<Flaw> {
        self.is_flawed.happens().then_some(self.possible_flaw)
    }
}

#[derive(Arbitrary, Clone, Debug)]
pub enum Operation {
    Read(Place),
    Write(Place),
    Flush,
    GetId(u8),
    Discard(Vec<Segment>),
    /// One segment, or more than are allowed.
    WriteZeroes([Segment; 2], Seldom),
    Other(u32),
}

impl Operation {
    /// The segments of a discard or write-zeroes request.
    pub fn segments(&self) -> &[Segment] {
        match self {
            Self::Discard(segments) => segments,
            Self::WriteZeroes(segments, both) => &segments[..if both.happens() { 2 } else { 1 }],
            _ => &[],
        }
    }
}

/// A part of the disk, or a little beyond it.
#[derive(Arbitrary, Clone, Debug)]
pub struct Place {
    pub sector: u16,
    pub sector_count: u8,
    /// Not rounded to the disk's sectors.
    pub unaligned: Seldom,
}

impl Segment {
    pub fn flags(&self) -> u32 {
        u32::from(self.unmap) | if self.unknown_flags.happens() { 0x8000 } else { 0 }
    }
}

#[derive(Arbitrary, Clone, Debug)]
pub struct Segment {
    pub place: Place,
    pub unmap: bool,
    pub unknown_flags: Seldom,
    pub enormous: Seldom,
}

/// What is wrong with the framing of a request.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Flaw {
    /// The last buffers are missing, so many of them.
    Truncated(u8),
    /// One buffer has the wrong direction.
    Flipped(u8),
    /// One buffer is where no memory is.
    Unmapped(u8, Nowhere),
    /// One buffer has another length.
    Resized(u8, u32),
    /// The chain goes on at another descriptor, maybe one of its own.
    Next(u8, u16),
    /// The indirect table says that it goes on, or contains another one, or has this length.
    NestedTable,
    TableAndNext,
    TableLength(u32),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Nowhere {
    Hole,
    Zero,
    Top,
    EndOfRegion,
}
