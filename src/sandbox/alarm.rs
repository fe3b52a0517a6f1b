//! The last words of a thread that the filter of system calls has stopped.
#![expect(unsafe_code, reason = "a signal handler, and a field of what it is told")]

use std::io;

use signal_hook::consts::SIGSYS;

const BEGIN: &[u8] = b"sealblk: serving the disk failed: the sandbox has stopped system call ";
const END: &[u8] = b", which no thread of this process has any use for; was it taken over?\n";

/// The most digits of a number of 32 bits.
const DIGITS_MAX: usize = 10;

/// Ends the process with exit code 1 and a line that tells the number of the system call, when a thread tries one that
/// it may not use. The call itself was not carried out, whatever becomes of this signal: a thread that blocks or
/// ignores it is killed by the kernel.
///
/// # Errors
/// When the kernel refuses the handler.
pub fn report_violations() -> io::Result<()> {
    let action = |info: &libc::siginfo_t| {
        // SAFETY: for SIGSYS the kernel fills in the address of the instruction at byte 16, and behind it the number.
        let number = unsafe { (&raw const *info).cast::<i32>().add(6).read() };
        let mut digits = [0; DIGITS_MAX];
        let number = decimal(number.unsigned_abs(), &mut digits);
        // SAFETY: all are async-signal-safe and touch nothing of this process but its standard error.
        unsafe {
            for part in [BEGIN, number, END] {
                libc::write(libc::STDERR_FILENO, part.as_ptr().cast(), part.len());
            }
            libc::_exit(1);
        }
    };
    // SAFETY: the action does not unwind, allocate, lock or return.
    unsafe { signal_hook_registry::register_sigaction(SIGSYS, action) }?;
    Ok(())
}

/// The digits of a number, at the end of `space`.
fn decimal(mut number: u32, space: &mut [u8; DIGITS_MAX]) -> &[u8] {
    let mut start = DIGITS_MAX;
    loop {
        start -= 1;
        space[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 || start == 0 {
            return &space[start..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_without_allocating() {
        for number in [0, 7, 10, 257, u32::MAX] {
            assert_eq!(decimal(number, &mut [0; DIGITS_MAX]), number.to_string().as_bytes());
        }
    }
}
