//! The volume key.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;

use hmac::{Hmac, KeyInit, Mac};
use rustix::rand::{GetRandomFlags, getrandom};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::CipherError;
use crate::locked::{Locked, SealedCopy, read_sealed, wipe_dead_stack};

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

    /// Takes a key over that another process has handed over.
    ///
    /// # Errors
    /// When it is not a sealed memory file, and as for [`new`](Self::new).
    pub fn from_sealed(file: OwnedFd, equal_halves: EqualHalves) -> Result<Self, CipherError> {
        let received = Locked::new_with(|key: &mut KeyBytes| {
            key.len_bytes = read_sealed(file, &mut key.bytes).map_err(CipherError::HandedOver)?;
            Ok::<(), CipherError>(())
        })?;
        Self::new(&received.bytes[..received.len_bytes], equal_halves)
    }

    /// A copy for another process.
    ///
    /// # Errors
    /// When there is no memory for it that can be locked.
    pub fn to_sealed(&self) -> io::Result<SealedCopy> {
        SealedCopy::of(&self.0.bytes[..self.0.len_bytes])
    }

    /// What tells this key from every other one, and nothing else of it.
    ///
    /// # Errors
    /// When the kernel has no random bytes.
    pub fn fingerprint(&self) -> io::Result<KeyFingerprint> {
        let mut salt = [0; SALT_BYTES];
        let got_bytes = getrandom(&mut salt, GetRandomFlags::empty())?;
        assert_eq!(got_bytes, SALT_BYTES, "so few bytes are not cut short");
        let digest = digest(&salt, self);
        wipe_dead_stack();
        Ok(KeyFingerprint { salt, digest })
    }

    /// `K1` and `K2`, 16 or 32 bytes each.
    pub(super) fn halves(&self) -> (&[u8], &[u8]) {
        self.0.bytes[..self.0.len_bytes].split_at(self.0.len_bytes / 2)
    }
}

const SALT_BYTES: usize = 32;

/// HMAC-SHA256 of a volume key under a random salt: knows the key again without holding it. The key has as many random
/// bits as the digest, so that the one cannot be found from the other.
pub struct KeyFingerprint {
    salt: [u8; SALT_BYTES],
    digest: [u8; 32],
}

impl KeyFingerprint {
    /// Whether this is the fingerprint of `key`.
    pub fn matches(&self, key: &VolumeKey) -> bool {
        let digest = digest(&self.salt, key);
        wipe_dead_stack();
        digest.ct_eq(&self.digest).into()
    }
}

impl fmt::Debug for KeyFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyFingerprint")
    }
}

/// Keeps what it leaves on the stack below its caller's frame.
#[inline(never)]
fn digest(salt: &[u8], key: &VolumeKey) -> [u8; 32] {
    let mut hmac = Hmac::<Sha256>::new_from_slice(salt).expect("HMAC takes keys of any length");
    hmac.update(&key.0.bytes[..key.0.len_bytes]);
    hmac.finalize().into_bytes().into()
}

impl fmt::Debug for VolumeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VolumeKey([redacted], {} bits)", self.key_bits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(fill: u8, len_bytes: usize) -> VolumeKey {
        let bytes: Vec<u8> = (0..len_bytes).map(|i| fill ^ i as u8).collect();
        VolumeKey::new(&bytes, EqualHalves::Refuse).unwrap()
    }

    #[test]
    fn a_key_is_known_again_by_its_fingerprint() {
        let fingerprint = key(7, 64).fingerprint().unwrap();
        assert!(fingerprint.matches(&key(7, 64)));
        assert!(!fingerprint.matches(&key(8, 64)) && !fingerprint.matches(&key(7, 32)));
        assert_ne!(fingerprint.digest, key(7, 64).fingerprint().unwrap().digest, "salted");
    }

    #[test]
    fn a_key_goes_from_one_process_to_another_whole() {
        for len_bytes in [32, 64] {
            let copy = key(9, len_bytes).to_sealed().unwrap();
            let file = copy.descriptor().try_clone().unwrap();
            let other = VolumeKey::from_sealed(file, EqualHalves::Refuse).unwrap();
            assert_eq!(other.halves(), key(9, len_bytes).halves());
        }
        let odd = SealedCopy::of(&[1; 33]).unwrap().descriptor().try_clone().unwrap();
        let error = VolumeKey::from_sealed(odd, EqualHalves::Refuse).unwrap_err();
        assert!(matches!(error, CipherError::KeyLength(33)));
    }
}
