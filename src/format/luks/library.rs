//! libcryptsetup, which does all work on LUKS headers, and what it has to say.
#![expect(unsafe_code, reason = "libcryptsetup passes its messages as C strings")]

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Once;

use libcryptsetup_rs::consts::vals::{CryptLogLevel, EncryptionFormat};
use libcryptsetup_rs::{CryptDevice, CryptInit, LibcryptErr, set_log_callback};
use tracing::debug;

/// Messages kept for an error, and the most of each.
const MESSAGES_MAX: usize = 4;
const MESSAGE_BYTES_MAX: usize = 300;

thread_local! {
    /// The error messages of the call that this thread is in.
    static MESSAGES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// What libcryptsetup answered instead of doing what it was asked.
#[derive(Debug)]
pub struct LibraryError {
    answer: LibcryptErr,
    messages: Vec<String>,
}

impl LibraryError {
    /// The error number, if it gave one: `EPERM` means that a passphrase opens no slot.
    pub fn errno(&self) -> Option<i32> {
        match &self.answer {
            LibcryptErr::IOError(error) => error.raw_os_error(),
            _ => None,
        }
    }
}

impl fmt::Display for LibraryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.messages[..], &self.answer) {
            ([], LibcryptErr::IOError(error)) => write!(f, "libcryptsetup answers: {error}"),
            ([], answer) => write!(f, "libcryptsetup answers: {answer}"),
            (messages, _) => write!(f, "libcryptsetup says: {}", messages.join(" ")),
        }
    }
}

impl std::error::Error for LibraryError {}

/// Makes one call, or a few, with what the library says about them collected for the error.
///
/// # Errors
/// The call's own, with its messages.
pub fn call<T>(calls: impl FnOnce() -> Result<T, LibcryptErr>) -> Result<T, LibraryError> {
    static CALLBACK: Once = Once::new();
    // Without it the library prints to standard output and standard error.
    CALLBACK.call_once(|| set_log_callback::<()>(Some(collect), None));
    MESSAGES.with_borrow_mut(Vec::clear);
    calls().map_err(|answer| LibraryError { answer, messages: MESSAGES.with_borrow_mut(std::mem::take) })
}

/// Opens the header in `memory` (a memfd), under a name that no other process can bend to something else.
///
/// # Errors
/// When the library finds no valid header of this version there.
pub fn load(memory: &File, version: EncryptionFormat) -> Result<CryptDevice, LibraryError> {
    let path = PathBuf::from(format!("/proc/self/fd/{}", memory.as_raw_fd()));
    call(|| {
        let mut device = CryptInit::init(&path)?;
        device.context_handle().load::<()>(Some(version), None)?;
        Ok(device)
    })
}

/// The library's log. It never writes secrets there; paths and bytes of headers it may.
///
/// # Safety
/// `message` is a C string, or null.
unsafe extern "C" fn collect(level: c_int, message: *const c_char, _: *mut c_void) {
    if message.is_null() {
        return;
    }
    // SAFETY: not null, hence a C string that lives as long as this call.
    let message = unsafe { CStr::from_ptr(message) }.to_bytes();
    let message = String::from_utf8_lossy(&message[..message.len().min(MESSAGE_BYTES_MAX)]);
    let message = message.trim();
    debug!(level, message, "libcryptsetup");
    if CryptLogLevel::try_from(level).is_ok_and(|level| level == CryptLogLevel::Error) {
        // Not borrowed twice: the library is not called from here. A panic would abort, so none is possible.
        MESSAGES.with(|messages| {
            if let Ok(mut messages) = messages.try_borrow_mut()
                && messages.len() < MESSAGES_MAX
            {
                messages.push(message.to_owned());
            }
        });
    }
}

impl From<LibcryptErr> for LibraryError {
    fn from(answer: LibcryptErr) -> Self {
        Self { answer, messages: Vec::new() }
    }
}

/// For tests and callers that need an `io::Error` of the same number.
impl From<LibraryError> for io::Error {
    fn from(error: LibraryError) -> Self {
        match error.errno() {
            Some(errno) => Self::from_raw_os_error(errno),
            None => Self::other(error),
        }
    }
}
