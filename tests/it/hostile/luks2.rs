//! The catalogue on a LUKS2 volume with sectors of 4096 bytes.
#![allow(clippy::duplicate_mod, reason = "the same cases, on each kind of volume")]

#[path = "catalogue.rs"]
mod catalogue;

use crate::harness::Serve;

/// What is under attack: a disk of 4 MiB.
fn serve() -> Serve {
    Serve::luks2()
}
