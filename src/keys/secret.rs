//! Key material in locked memory.

use std::fmt;
use std::io::{self, ErrorKind, Read};

use crate::locked::Locked;

/// Most bytes that a secret may have: room for any volume key or passphrase, and a bound on what is read from
/// whatever a key reference names.
pub const SECRET_BYTES_MAX: usize = 8192;

/// Key material: at least one byte, alone on locked pages, wiped when dropped. Not cloned, not compared, and
/// `Debug` shows its length only.
pub struct Secret(Locked<Buffer>);

/// Has one byte more than a secret may fill, so that too long a source shows itself.
struct Buffer {
    bytes: [u8; SECRET_BYTES_MAX + 1],
    filled_bytes: usize,
}

/// Why a source did not make a secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Nothing before the end of the source.
    #[error("it is empty")]
    Empty,
    /// More than [`SECRET_BYTES_MAX`].
    #[error("it is longer than {SECRET_BYTES_MAX} bytes")]
    TooLong,
    /// The source failed.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// No locked memory.
    #[error("memory for it cannot be locked (see the limit `ulimit -l`)")]
    Lock(#[source] io::Error),
}

impl From<io::Error> for SecretError {
    fn from(error: io::Error) -> Self {
        Self::Lock(error)
    }
}

impl Secret {
    /// Reads `source` to its end, straight into locked memory.
    ///
    /// `source` must not buffer what passes through it, or it keeps a copy.
    ///
    /// # Errors
    /// See [`SecretError`]; what was read by then is wiped.
    pub fn read_from(mut source: impl Read) -> Result<Self, SecretError> {
        Locked::new_with(|buffer: &mut Buffer| {
            while buffer.filled_bytes < buffer.bytes.len() {
                match source.read(&mut buffer.bytes[buffer.filled_bytes..]) {
                    Ok(0) => break,
                    Ok(read_bytes) => buffer.filled_bytes += read_bytes,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(SecretError::Read(error)),
                }
            }
            match buffer.filled_bytes {
                0 => Err(SecretError::Empty),
                1..=SECRET_BYTES_MAX => Ok(()),
                _ => Err(SecretError::TooLong),
            }
        })
        .map(Self)
    }

    /// The secret itself. Whoever copies from here wipes the copy.
    pub fn expose(&self) -> &[u8] {
        &self.0.bytes[..self.0.filled_bytes]
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret([redacted], {} bytes)", self.0.filled_bytes)
    }
}

impl Default for Buffer {
    fn default() -> Self {
        Self { bytes: [0; SECRET_BYTES_MAX + 1], filled_bytes: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes one at a time, interrupted before each, as a slow pipe under signals would.
    struct Dribble(Vec<u8>, bool);

    impl Read for Dribble {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(ErrorKind::Interrupted.into());
            }
            if self.0.is_empty() {
                return Ok(0);
            }
            into[0] = self.0.remove(0);
            Ok(1)
        }
    }

    #[test]
    fn short_and_interrupted_reads_are_put_together() {
        let secret = Secret::read_from(Dribble((0..=255).collect(), false)).unwrap();
        assert!(secret.expose().iter().copied().eq(0..=255));
    }

    #[test]
    fn length_is_bounded_on_both_sides() {
        assert!(matches!(Secret::read_from(io::empty()), Err(SecretError::Empty)));
        let longest = Secret::read_from(io::repeat(7).take(SECRET_BYTES_MAX as u64)).unwrap();
        assert_eq!(longest.expose().len(), SECRET_BYTES_MAX);
        assert!(matches!(Secret::read_from(io::repeat(7)), Err(SecretError::TooLong)));
    }

    #[test]
    fn debug_shows_no_byte_of_it() {
        let secret = Secret::read_from(&b"hunter2"[..]).unwrap();
        assert_eq!(format!("{secret:?}"), "Secret([redacted], 7 bytes)");
    }
}
