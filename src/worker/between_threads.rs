//! What threads meet by. A model checker puts its own in the place of this file, to try every order in which they may
//! meet (`scripts/check-data-path`): files that it checks take these from here.

use std::time::Duration;

pub(super) use std::sync::Mutex;
pub(super) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
pub(super) use std::sync::mpsc;

/// How often a thread that nobody wakes looks again.
const LOOKS_EVERY: Duration = Duration::from_millis(1);

/// What a thread that nobody wakes does between two looks.
pub(super) fn pause() {
    std::thread::sleep(LOOKS_EVERY);
}
