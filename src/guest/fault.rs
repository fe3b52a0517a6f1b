//! What happens when guest memory vanishes under us: a front end may truncate a file that it shares, and touching
//! the pages that are gone raises SIGBUS.
#![expect(unsafe_code, reason = "a signal handler")]

use std::io;

use signal_hook::consts::SIGBUS;

const MESSAGE: &[u8] =
    b"sealblk: serving the disk failed: guest memory vanished, the VMM has truncated a file \
    that it shares (SIGBUS)\n";

/// Ends the process with exit code 1 and one clear line, instead of a crash without a word. There is one process
/// for each disk, so nobody else's is concerned.
///
/// # Errors
/// When the kernel refuses the handler.
pub fn end_on_memory_fault() -> io::Result<()> {
    let action = || {
        // SAFETY: both are async-signal-safe and touch nothing of this process but its standard error.
        unsafe {
            libc::write(libc::STDERR_FILENO, MESSAGE.as_ptr().cast(), MESSAGE.len());
            libc::_exit(1);
        }
    };
    // SAFETY: the action does not unwind, allocate, lock or return.
    unsafe { signal_hook::low_level::register(SIGBUS, action) }?;
    Ok(())
}
