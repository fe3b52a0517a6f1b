//! The catalogue on a volume without a header.
#![allow(clippy::duplicate_mod, reason = "the same cases, on each kind of volume")]

#[path = "catalogue.rs"]
mod catalogue;

use crate::harness::Serve;

/// What is under attack: a disk of 4 MiB.
fn serve() -> Serve {
    Serve::encrypted()
}
