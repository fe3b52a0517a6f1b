//! The one thing about file descriptors that has no safe form here.
#![expect(unsafe_code, reason = "vmm-sys-util's EventFd offers its descriptor only as a number")]

use std::os::fd::{AsRawFd, BorrowedFd};

/// Borrows the descriptor that `owner` keeps open.
pub fn borrow(owner: &impl AsRawFd) -> BorrowedFd<'_> {
    // SAFETY: `owner` is borrowed for as long as the result lives, and its descriptor stays open that long.
    unsafe { BorrowedFd::borrow_raw(owner.as_raw_fd()) }
}
