//! A terminal that nobody sits at.

use std::fs::File;
use std::io::Write;
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::Stdio;

/// Both ends of a pseudo-terminal.
pub(super) struct Terminal {
    person: File,
    program: OwnedFd,
}

impl Terminal {
    #[expect(unsafe_code, reason = "no library here has this call")]
    pub(super) fn open() -> Self {
        let (mut person, mut program) = (-1, -1);
        let null = std::ptr::null_mut();
        // SAFETY: both pointers lead to integers; what is null is left alone.
        let result =
            unsafe { libc::openpty(&raw mut person, &raw mut program, null, null.cast(), null.cast()) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        // SAFETY: both descriptors are new, and nobody else's.
        unsafe { Self { person: File::from_raw_fd(person), program: OwnedFd::from_raw_fd(program) } }
    }

    /// The end for a program's standard input or output.
    pub(super) fn end(&self) -> Stdio {
        self.program.try_clone().unwrap().into()
    }

    pub(super) fn types(&self, text: &str) {
        (&self.person).write_all(text.as_bytes()).unwrap();
    }
}
