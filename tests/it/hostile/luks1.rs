//! The catalogue on a LUKS1 volume: what of it concerns the payload's bounds.
#![allow(clippy::duplicate_mod, reason = "the same cases, on each kind of volume")]

#[path = "blk_ranges.rs"]
mod blk_ranges;

use crate::harness::Serve;

/// What is under attack: a disk of 4 MiB.
fn serve() -> Serve {
    Serve::luks1()
}
