//! Key material in locked memory.

use std::fmt;
use std::io::{self, ErrorKind, Read};

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use super::KeyKind;
use crate::locked::Locked;

/// Most bytes that a secret may have: room for any volume key or passphrase, and a bound on what is read from
/// whatever a key reference names.
pub const SECRET_BYTES_MAX: usize = 8192;

/// What a random passphrase is made of, 6 bits a character.
const TEXT_ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Key material: at least one byte, alone on locked pages, wiped when dropped. Not cloned, not compared, and
/// `Debug` shows its length and kind only.
pub struct Secret {
    memory: Locked<Buffer>,
    kind: KeyKind,
}

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

/// Who failed while a secret was made: `Locked` itself, or what was to write into it.
enum Filling<E> {
    Lock(io::Error),
    Writer(E),
}

impl<E> From<io::Error> for Filling<E> {
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
        Self::fill(|buffer| {
            let mut filled_bytes = 0;
            while filled_bytes < buffer.len() {
                match source.read(&mut buffer[filled_bytes..]) {
                    Ok(0) => break,
                    Ok(read_bytes) => filled_bytes += read_bytes,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(SecretError::Read(error)),
                }
            }
            Ok(filled_bytes)
        })
    }

    /// Random bytes from the kernel, straight into locked memory.
    ///
    /// # Errors
    /// See [`SecretError`].
    pub fn random(len_bytes: usize) -> Result<Self, SecretError> {
        Self::fill(|buffer| {
            let wanted = buffer.get_mut(..len_bytes).ok_or(SecretError::TooLong)?;
            let mut filled_bytes = 0;
            while filled_bytes < wanted.len() {
                match getrandom(&mut wanted[filled_bytes..], GetRandomFlags::empty()) {
                    Ok(got_bytes) => filled_bytes += got_bytes,
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(SecretError::Read(error.into())),
                }
            }
            Ok(filled_bytes)
        })
    }

    /// Random letters, digits, `-` and `_`: text for machines, with 6 bits of chance in each byte.
    ///
    /// # Errors
    /// See [`SecretError`].
    pub fn random_text(len_bytes: usize) -> Result<Self, SecretError> {
        let mut secret = Self::random(len_bytes)?;
        let Buffer { bytes, filled_bytes } = &mut *secret.memory;
        for byte in &mut bytes[..*filled_bytes] {
            *byte = TEXT_ALPHABET[usize::from(*byte) % TEXT_ALPHABET.len()];
        }
        Ok(secret.of_kind(KeyKind::Passphrase))
    }

    /// Lets `write` put the secret into locked memory and say how many bytes it has. The buffer has one byte more
    /// than a secret may fill, so that too long a source shows itself.
    ///
    /// # Errors
    /// What `write` returns, and see [`SecretError`]; what was written by then is wiped.
    pub fn fill<E>(write: impl FnOnce(&mut [u8]) -> Result<usize, E>) -> Result<Self, E>
    where
        E: From<SecretError>,
    {
        let memory = Locked::new_with(|buffer: &mut Buffer| {
            buffer.filled_bytes = write(&mut buffer.bytes).map_err(Filling::Writer)?;
            match buffer.filled_bytes {
                0 => Err(Filling::Writer(SecretError::Empty.into())),
                1..=SECRET_BYTES_MAX => Ok(()),
                _ => Err(Filling::Writer(SecretError::TooLong.into())),
            }
        });
        match memory {
            Ok(memory) => Ok(Self { memory, kind: KeyKind::Symmetric }),
            Err(Filling::Writer(error)) => Err(error),
            Err(Filling::Lock(error)) => Err(SecretError::Lock(error).into()),
        }
    }

    /// The same bytes, known to be used as `kind`. Unless told so they are [`KeyKind::Symmetric`].
    #[must_use]
    pub fn of_kind(self, kind: KeyKind) -> Self {
        Self { kind, ..self }
    }

    /// What the bytes are used as, as far as their manager knows.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// The secret itself. Whoever copies from here wipes the copy.
    pub fn expose(&self) -> &[u8] {
        &self.memory.bytes[..self.memory.filled_bytes]
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret([redacted], {} bytes, {:?})", self.memory.filled_bytes, self.kind)
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
        assert_eq!(format!("{secret:?}"), "Secret([redacted], 7 bytes, Symmetric)");
    }

    #[test]
    fn random_secrets_differ_and_are_as_long_as_asked() {
        let [one, other] = [(); 2].map(|()| Secret::random(64).unwrap());
        assert_eq!((one.expose().len(), other.expose().len()), (64, 64));
        assert_ne!(one.expose(), other.expose());
        assert_eq!(Secret::random(SECRET_BYTES_MAX).unwrap().expose().len(), SECRET_BYTES_MAX);
        assert!(matches!(Secret::random(0), Err(SecretError::Empty)));
        assert!(matches!(Secret::random(SECRET_BYTES_MAX + 1), Err(SecretError::TooLong)));
        assert!(matches!(Secret::random(SECRET_BYTES_MAX + 2), Err(SecretError::TooLong)));
    }
}
