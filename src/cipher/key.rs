//! The volume key.

use std::fmt;

use subtle::ConstantTimeEq;

use super::CipherError;
use crate::locked::Locked;

/// An AES-256 key for each half.
const KEY_BYTES_MAX: usize = 64;

/// The two halves of an AES-XTS key in locked memory: `K1 || K2`, 32 bytes for AES-128 or 64 for AES-256.
///
/// `K1` encrypts data, `K2` makes tweaks. Not cloned, not compared, and `Debug` shows its size only.
pub struct VolumeKey(Locked<KeyBytes>);

/// What to do with a key whose halves are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EqualHalves {
    /// Refuse it, as SP 800-38E's rules for approved modules (FIPS 140-3 IG C.I) demand.
    Refuse,
    /// Take it, to read a volume that was once made with such a key.
    Accept,
}

struct KeyBytes {
    bytes: [u8; KEY_BYTES_MAX],
    len_bytes: usize,
}

impl Default for KeyBytes {
    fn default() -> Self {
        Self { bytes: [0; KEY_BYTES_MAX], len_bytes: 0 }
    }
}

impl VolumeKey {
    /// Copies `bytes` into locked memory. Whoever made `bytes` wipes them.
    ///
    /// # Errors
    /// When `bytes` has neither 32 nor 64 bytes, when its halves are equal and not accepted, or when no
    /// memory can be locked.
    pub fn new(bytes: &[u8], equal_halves: EqualHalves) -> Result<Self, CipherError> {
        if !matches!(bytes.len(), 32 | 64) {
            return Err(CipherError::KeyLength(bytes.len()));
        }
        let (data, tweak) = bytes.split_at(bytes.len() / 2);
        if equal_halves == EqualHalves::Refuse && bool::from(data.ct_eq(tweak)) {
            return Err(CipherError::EqualHalves);
        }
        let key = Locked::new_with(|key: &mut KeyBytes| {
            key.bytes[..bytes.len()].copy_from_slice(bytes);
            key.len_bytes = bytes.len();
            Ok::<(), CipherError>(())
        })?;
        Ok(Self(key))
    }

    /// The size of both halves together, as LUKS counts it: 256 or 512.
    pub fn key_bits(&self) -> usize {
        self.0.len_bytes * 8
    }

    /// `K1` and `K2`, 16 or 32 bytes each.
    pub(super) fn halves(&self) -> (&[u8], &[u8]) {
        self.0.bytes[..self.0.len_bytes].split_at(self.0.len_bytes / 2)
    }
}

impl fmt::Debug for VolumeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VolumeKey([redacted], {} bits)", self.key_bits())
    }
}
