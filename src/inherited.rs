//! Descriptors that the process which started this one left open for it, known by their numbers only.
//!
//! A number typed by an operator is not proof that a descriptor may be taken over: it may be closed, or belong
//! to a file that this process opened itself. So the open descriptors are noted before anything else is
//! opened, and each of them is given out once.
#![expect(unsafe_code, reason = "ownership of a descriptor of which only the number is known")]

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use rustix::io::FdFlags;

/// Standard input, output and error belong to the process as a whole and are never given out.
const STANDARD_STREAMS: RawFd = 3;

/// Inherited and not yet given out. The descriptor table is one for the whole process, hence so is this.
static WAITING: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

/// Why a descriptor cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// 0, 1 or 2.
    #[error("descriptor {0} is a standard stream: pass one above 2")]
    StandardStream(RawFd),
    /// Not open when the process started, or taken before.
    #[error("descriptor {0} was not passed to this process, or another option uses it already")]
    NotWaiting(RawFd),
    /// It cannot be kept from being inherited further.
    #[error("descriptor {fd} cannot be marked close-on-exec")]
    CloseOnExec {
        /// The descriptor.
        fd: RawFd,
        /// What the kernel answered.
        source: io::Error,
    },
}

/// Notes which descriptors are open, so that [`take`] can give them out.
///
/// # Errors
/// When `/proc` is not mounted: then there is nothing to take.
///
/// # Safety
/// Nothing in this process owns a descriptor above 2 yet: to be called first in `main`.
pub unsafe fn record() -> io::Result<()> {
    let mut open = BTreeSet::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        open.extend(name.to_str().and_then(|name| name.parse::<RawFd>().ok()));
    }
    // The listing showed the descriptor that it was read through, which is closed by now.
    open.retain(|fd| *fd >= STANDARD_STREAMS && fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_ok());
    for fd in &open {
        // SAFETY: it is open, and nobody in this process knows of it yet who could close it.
        let descriptor = unsafe { BorrowedFd::borrow_raw(*fd) };
        // They were meant for this process, not for those that it may start before it has taken them all.
        // Where that fails, `take` says so.
        let _ = rustix::io::fcntl_setfd(descriptor, FdFlags::CLOEXEC);
    }
    WAITING.lock().unwrap_or_else(PoisonError::into_inner).append(&mut open);
    Ok(())
}

/// Takes over descriptor `fd` from the process that started this one, once.
///
/// # Errors
/// See [`TakeError`].
pub fn take(fd: RawFd) -> Result<OwnedFd, TakeError> {
    if (0..STANDARD_STREAMS).contains(&fd) {
        return Err(TakeError::StandardStream(fd));
    }
    if !WAITING.lock().unwrap_or_else(PoisonError::into_inner).remove(&fd) {
        return Err(TakeError::NotWaiting(fd));
    }
    // SAFETY: `fd` was open before this process owned any descriptor above 2 (contract of `record`, or given
    // up by its owner in `hand_over`), nothing closes descriptors it does not own, and the removal above
    // happens once.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::fcntl_setfd(&owned, FdFlags::CLOEXEC)
        .map_err(|errno| TakeError::CloseOnExec { fd, source: errno.into() })?;
    Ok(owned)
}

/// Makes a descriptor of this process look inherited.
#[cfg(test)]
pub(crate) fn hand_over(fd: OwnedFd) -> RawFd {
    let fd = std::os::fd::IntoRawFd::into_raw_fd(fd);
    WAITING.lock().unwrap_or_else(PoisonError::into_inner).insert(fd);
    fd
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_streams_are_never_given_out() {
        for fd in 0..3 {
            assert!(matches!(take(fd), Err(TakeError::StandardStream(_))));
        }
    }

    #[test]
    fn a_descriptor_of_our_own_is_not_given_out() {
        let ours = fs::File::open("/dev/null").unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&ours);
        assert!(matches!(take(fd), Err(TakeError::NotWaiting(_))));
        assert!(matches!(take(-1), Err(TakeError::NotWaiting(-1))));
    }

    #[test]
    fn a_descriptor_is_given_out_once_and_not_inherited_further() {
        let file = fs::File::open("/dev/null").unwrap();
        rustix::io::fcntl_setfd(&file, FdFlags::empty()).unwrap();
        let fd = hand_over(file.into());
        let taken = take(fd).unwrap();
        assert_eq!(rustix::io::fcntl_getfd(&taken).unwrap(), FdFlags::CLOEXEC);
        assert!(matches!(take(fd), Err(TakeError::NotWaiting(_))));
    }
}
