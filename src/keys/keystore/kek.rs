//! Key-encryption keys: what is derived from each, and which of those at hand a row needs.

use std::io;
use std::sync::Arc;

use aes_gcm::aead::{AeadInOut, KeyInit, inout::InOutBuf};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use rustix::rand::{GetRandomFlags, getrandom};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

use super::super::{Secret, SecretError};
use super::canonical::Canonical;
use super::error::KeystoreError;
use crate::locked::{Locked, wipe_dead_stack};

/// Least length of a key-encryption key. It is taken as random: nothing is stretched.
pub const KEK_BYTES_MIN: usize = 32;

pub(super) const SALT_BYTES: usize = 32;
pub(super) const CHECK_BYTES: usize = 32;
pub(super) const SEAL_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;

/// Labels of HKDF's `info` (RFC 5869), one for each use.
const WRAP_LABEL: &[u8] = b"sealblk keystore 1: wrap";
const SEAL_LABEL: &[u8] = b"sealblk keystore 1: seal";
const CHECK_LABEL: &[u8] = b"sealblk keystore 1: check";

/// Key material as it lies in the file: AES-256-GCM, the tag after the ciphertext.
pub(super) struct Wrapped {
    pub(super) nonce: [u8; NONCE_BYTES],
    pub(super) ciphertext: Vec<u8>,
}

/// Why wrapped key material stays wrapped.
#[derive(Debug)]
pub(super) enum UnwrapError {
    /// Another key wrapped it, or nonce, ciphertext or associated data are not what they were.
    Forged,
    /// There is no memory for it.
    Memory(SecretError),
}

impl From<SecretError> for UnwrapError {
    fn from(error: SecretError) -> Self {
        match error {
            // Nothing empty is ever wrapped.
            SecretError::Empty | SecretError::TooLong => Self::Forged,
            error => Self::Memory(error),
        }
    }
}

/// What one key-encryption key is good for in one keystore: `HKDF-SHA-256[salt, label](KEK)`.
pub(super) struct KekKeys(Locked<Derived>);

struct Derived {
    wrap: Aes256Gcm,
    seal: [u8; SEAL_BYTES],
    check: [u8; CHECK_BYTES],
}

impl Drop for Derived {
    fn drop(&mut self) {
        self.seal.zeroize();
    }
}

impl KekKeys {
    /// # Errors
    /// When no memory can be locked.
    pub(super) fn derive(kek: &Secret, salt: &[u8; SALT_BYTES]) -> Result<Self, KeystoreError> {
        let derive = || {
            let hkdf = Hkdf::<Sha256>::new(Some(salt), kek.expose());
            let mut derived = [const { [0; 32] }; 3].map(Zeroizing::new);
            for (label, key) in [WRAP_LABEL, SEAL_LABEL, CHECK_LABEL].into_iter().zip(&mut derived) {
                hkdf.expand(label, &mut key[..]).expect("HKDF gives 255 blocks, and this is one");
            }
            let [wrap, seal, check] = &derived;
            Derived { wrap: Aes256Gcm::new((&**wrap).into()), seal: **seal, check: **check }
        };
        Locked::new(derive).map(Self).map_err(no_memory)
    }

    /// Tells this key-encryption key from others, and tells nothing else about it.
    pub(super) fn check_value(&self) -> [u8; CHECK_BYTES] {
        self.0.check
    }

    /// Encrypts `material` under a fresh random nonce, bound to `facts`.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub(super) fn wrap(&self, material: &[u8], facts: &Canonical) -> Result<Wrapped, KeystoreError> {
        let nonce: [u8; NONCE_BYTES] = random_bytes()?;
        let mut ciphertext = vec![0; material.len()];
        let tag = encrypt(&self.0.wrap, &nonce, facts, material, &mut ciphertext);
        wipe_dead_stack();
        ciphertext.extend_from_slice(&tag);
        Ok(Wrapped { nonce, ciphertext })
    }

    /// Decrypts into locked memory what [`wrap`](Self::wrap) encrypted.
    ///
    /// # Errors
    /// See [`UnwrapError`].
    pub(super) fn unwrap_key(&self, wrapped: &Wrapped, facts: &Canonical) -> Result<Secret, UnwrapError> {
        let (ciphertext, tag) =
            wrapped.ciphertext.split_last_chunk::<TAG_BYTES>().ok_or(UnwrapError::Forged)?;
        Secret::fill(|buffer| {
            let material = buffer.get_mut(..ciphertext.len()).ok_or(UnwrapError::Forged)?;
            let result = decrypt(&self.0.wrap, &wrapped.nonce, facts, ciphertext, tag, material);
            wipe_dead_stack();
            result.map(|()| ciphertext.len())
        })
    }

    /// A code that only who has the key-encryption key can make for these facts.
    pub(super) fn seal(&self, facts: &Canonical) -> [u8; SEAL_BYTES] {
        authenticate(&self.0.seal, facts)
    }
}

/// Keeps what the cipher leaves on the stack below the caller's frame, where [`wipe_dead_stack`] reaches it.
#[inline(never)]
fn encrypt(
    cipher: &Aes256Gcm,
    nonce: &[u8; NONCE_BYTES],
    facts: &Canonical,
    material: &[u8],
    ciphertext: &mut [u8],
) -> [u8; TAG_BYTES] {
    let buffer = InOutBuf::new(material, ciphertext).expect("both are of one length");
    let tag = cipher.encrypt_inout_detached(&Nonce::from(*nonce), facts.as_bytes(), buffer);
    tag.expect("keys are far shorter than what GCM can take").into()
}

/// As [`encrypt`]; `material` is written only if all is genuine.
#[inline(never)]
fn decrypt(
    cipher: &Aes256Gcm,
    nonce: &[u8; NONCE_BYTES],
    facts: &Canonical,
    ciphertext: &[u8],
    tag: &[u8; TAG_BYTES],
    material: &mut [u8],
) -> Result<(), UnwrapError> {
    let buffer = InOutBuf::new(ciphertext, material).expect("both are of one length");
    cipher
        .decrypt_inout_detached(&Nonce::from(*nonce), facts.as_bytes(), buffer, &Tag::from(*tag))
        .map_err(|_| UnwrapError::Forged)
}

/// HMAC-SHA-256 of the facts. Its state is wiped by the library.
pub(super) fn authenticate(key: &[u8], facts: &Canonical) -> [u8; SEAL_BYTES] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(facts.as_bytes());
    mac.finalize().into_bytes().into()
}

/// Compares without telling by its duration where the difference is.
pub(super) fn are_equal(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

/// Random bytes that need not be kept secret: salts, nonces, identifiers.
pub(super) fn random_bytes<const N: usize>() -> Result<[u8; N], KeystoreError> {
    const { assert!(N <= 256, "the kernel gives up to 256 bytes at once, uninterrupted") };
    let mut bytes = [0; N];
    let filled = getrandom(&mut bytes, GetRandomFlags::empty())
        .map_err(|errno| KeystoreError::io("the system gives no random numbers", errno))?;
    assert_eq!(filled, N, "see getrandom(2)");
    Ok(bytes)
}

fn no_memory(error: io::Error) -> KeystoreError {
    KeystoreError::Memory(SecretError::Lock(error))
}

/// A row of the table `kek`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct KekRow {
    pub(super) id: i64,
    pub(super) state: KekState,
    pub(super) salt: [u8; SALT_BYTES],
    pub(super) check_value: [u8; CHECK_BYTES],
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum KekState {
    /// Wraps what is written.
    Active,
    /// Unwraps what a rotation has not reached yet.
    Retiring,
    /// Nothing is wrapped under it any more.
    Retired,
}

impl KekState {
    const ALL: [Self; 3] = [Self::Active, Self::Retiring, Self::Retired];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Retiring => "retiring",
            Self::Retired => "retired",
        }
    }

    pub(super) fn from_name(name: &str) -> Result<Self, KeystoreError> {
        let known = Self::ALL.into_iter().find(|state| state.name() == name);
        known.ok_or_else(|| KeystoreError::damaged("a KEK is in an unknown state"))
    }
}

/// The key-encryption keys at hand.
pub(super) struct Keyring {
    given: Vec<Secret>,
    /// By the number of the row that they belong to.
    known: Vec<(i64, Arc<KekKeys>)>,
}

impl Keyring {
    /// # Errors
    /// When one of them is too short.
    pub(super) fn new(given: Vec<Secret>) -> Result<Self, KeystoreError> {
        for kek in &given {
            check_length(kek)?;
        }
        Ok(Self { given, known: Vec::new() })
    }

    /// # Errors
    /// When it is too short.
    pub(super) fn add(&mut self, kek: Secret) -> Result<(), KeystoreError> {
        check_length(&kek)?;
        self.given.push(kek);
        Ok(())
    }

    /// The row for the key-encryption key that was added last, as a new one.
    ///
    /// # Errors
    /// When the system fails.
    pub(super) fn row_for_last(&self, id: i64) -> Result<KekRow, KeystoreError> {
        let kek = self.given.last().expect("one was added before");
        let salt = random_bytes()?;
        let check_value = KekKeys::derive(kek, &salt)?.check_value();
        Ok(KekRow { id, state: KekState::Active, salt, check_value })
    }

    /// The one of `rows` that belongs to the key-encryption key that was added last.
    ///
    /// # Errors
    /// When no memory can be locked.
    pub(super) fn row_of_last<'a>(&self, rows: &'a [KekRow]) -> Result<Option<&'a KekRow>, KeystoreError> {
        let kek = self.given.last().expect("one was added before");
        for row in rows {
            if fits(&KekKeys::derive(kek, &row.salt)?, row) {
                return Ok(Some(row));
            }
        }
        Ok(None)
    }

    /// The keys for `row`, if what was given has its check value.
    ///
    /// # Errors
    /// When no memory can be locked.
    pub(super) fn keys(&mut self, row: &KekRow) -> Result<Option<Arc<KekKeys>>, KeystoreError> {
        let known = self.known.iter().find(|(id, keys)| *id == row.id && fits(keys, row));
        if let Some((_, keys)) = known {
            return Ok(Some(keys.clone()));
        }
        for kek in &self.given {
            let keys = KekKeys::derive(kek, &row.salt)?;
            if fits(&keys, row) {
                let keys = Arc::new(keys);
                self.known.push((row.id, keys.clone()));
                return Ok(Some(keys));
            }
        }
        Ok(None)
    }
}

fn fits(keys: &KekKeys, row: &KekRow) -> bool {
    are_equal(&keys.check_value(), &row.check_value)
}

fn check_length(kek: &Secret) -> Result<(), KeystoreError> {
    match kek.expose().len() {
        KEK_BYTES_MIN.. => Ok(()),
        short => Err(KeystoreError::short_kek(short)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kek(fill: u8, length_bytes: usize) -> Secret {
        Secret::read_from(&vec![fill; length_bytes][..]).unwrap()
    }

    fn facts(text: &str) -> Canonical {
        Canonical::new("test").text(text)
    }

    /// Computed with Python's `hmac` and `cryptography`, as the documentation of the file says.
    #[test]
    fn derivation_wrapping_and_seals_are_as_documented() {
        let keys = KekKeys::derive(&kek(7, 40), &[9; SALT_BYTES]).unwrap();
        let hex = |bytes: &[u8]| base16ct::lower::encode_string(bytes);
        assert_eq!(hex(&keys.check_value()), CHECK_EXPECTED);
        assert_eq!(hex(&keys.seal(&facts("a"))), SEAL_EXPECTED);
        let mut ciphertext = vec![0; 5];
        let tag = encrypt(&keys.0.wrap, &[3; NONCE_BYTES], &facts("a"), b"hello", &mut ciphertext);
        ciphertext.extend_from_slice(&tag);
        assert_eq!(hex(&ciphertext), WRAPPED_EXPECTED);
    }

    const CHECK_EXPECTED: &str = "9285dd3062d641147ddeeac3114baef5a7fe8760ff12d5fe3dbd7e40b7bd14fd";
    const SEAL_EXPECTED: &str = "1eec7c5cd571d12ea09f12273d892e61b7f472da0f3ec85ccfaff54d8badb896";
    const WRAPPED_EXPECTED: &str = "3ef1c103e9c3ede506aeea230d57a845e1bcad2c3a";

    #[test]
    fn only_the_same_kek_nonce_and_facts_unwrap() {
        let keys = KekKeys::derive(&kek(1, 32), &[0; SALT_BYTES]).unwrap();
        let wrapped = keys.wrap(b"material", &facts("a")).unwrap();
        assert_eq!(keys.unwrap_key(&wrapped, &facts("a")).unwrap().expose(), b"material");
        let is_forged = |keys: &KekKeys, wrapped: &Wrapped, text: &str| {
            matches!(keys.unwrap_key(wrapped, &facts(text)), Err(UnwrapError::Forged))
        };
        assert!(is_forged(&keys, &wrapped, "b"));
        assert!(is_forged(&KekKeys::derive(&kek(2, 32), &[0; SALT_BYTES]).unwrap(), &wrapped, "a"));
        assert!(is_forged(&KekKeys::derive(&kek(1, 32), &[1; SALT_BYTES]).unwrap(), &wrapped, "a"));
        let with = |nonce, ciphertext: &[u8]| Wrapped { nonce, ciphertext: ciphertext.to_vec() };
        assert!(is_forged(&keys, &with([0; NONCE_BYTES], &wrapped.ciphertext), "a"));
        for length in [0, TAG_BYTES - 1, TAG_BYTES, wrapped.ciphertext.len() - 1] {
            assert!(is_forged(&keys, &with(wrapped.nonce, &wrapped.ciphertext[..length]), "a"), "{length}");
        }
        assert!(is_forged(&keys, &with(wrapped.nonce, &[0; 100_000]), "a"));
        let again = keys.wrap(b"material", &facts("a")).unwrap();
        assert!(again.nonce != wrapped.nonce && again.ciphertext != wrapped.ciphertext);
    }
}
