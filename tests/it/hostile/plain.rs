//! The catalogue on a volume without a header.
#![allow(clippy::duplicate_mod, reason = "the same cases, on each kind of volume")]

#[path = "blk.rs"]
mod blk;
#[path = "blk_ranges.rs"]
mod blk_ranges;
#[path = "chains.rs"]
mod chains;
#[path = "indices.rs"]
mod indices;
#[path = "indirect.rs"]
mod indirect;
#[path = "state.rs"]
mod state;

use crate::harness::Serve;

/// What is under attack: a disk of 4 MiB.
fn serve() -> Serve {
    Serve::encrypted()
}
