//! In the place of the package's own. Every access is in one order, as in the source, which asks for `SeqCst`.

pub(super) use shuttle::sync::Mutex;
pub(super) use shuttle::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
pub(super) use shuttle::sync::mpsc;

pub(super) fn pause() {
    shuttle::thread::yield_now();
}
