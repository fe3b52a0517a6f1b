//! Volume keys made from passphrases the way of cryptsetup's plain mode, where no header holds them.
//!
//! cryptsetup does so with whatever comes on its standard input, `--key-file=-` included, which is how Nova sets up
//! its encrypted LVM disks and os-brick its `plain` volumes: there the passphrase is the managed key in lower-case
//! hexadecimal. The hash is nowhere noted down, and cryptsetup's default changed: ripemd160 before 2.7.0, sha256 since.

use ripemd::Ripemd160;
use sha1::Sha1;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use zeroize::Zeroize;

use super::FormatError;
use crate::cipher::{CipherError, EqualHalves, VolumeKey};
use crate::locked::{Locked, wipe_dead_stack};

/// An AES-256 key for each half.
const KEY_BYTES_MAX: usize = 64;

/// The hashes of `cryptsetup open --type plain --hash`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "a hash has no more to be said of than its name")]
pub enum PassphraseHash {
    Ripemd160,
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

struct KeyBuffer([u8; KEY_BYTES_MAX]);

impl PassphraseHash {
    /// The first `key_bytes` bytes of `H(P) || H("A" P) || H("AA" P) || ...`, at most 64.
    ///
    /// # Errors
    /// When the result is not fit to be a key, or no memory can be locked for it.
    pub(super) fn volume_key(
        self,
        passphrase: &[u8],
        key_bytes: usize,
        equal_halves: EqualHalves,
    ) -> Result<VolumeKey, FormatError> {
        let mut buffer = Locked::new(|| KeyBuffer([0; KEY_BYTES_MAX])).map_err(CipherError::Lock)?;
        let key = &mut buffer.0[..key_bytes];
        match self {
            Self::Ripemd160 => expand::<Ripemd160>(passphrase, key),
            Self::Sha1 => expand::<Sha1>(passphrase, key),
            Self::Sha224 => expand::<Sha224>(passphrase, key),
            Self::Sha256 => expand::<Sha256>(passphrase, key),
            Self::Sha384 => expand::<Sha384>(passphrase, key),
            Self::Sha512 => expand::<Sha512>(passphrase, key),
        }
        wipe_dead_stack();
        Ok(VolumeKey::new(key, equal_halves)?)
    }
}

fn expand<H: Digest>(passphrase: &[u8], key: &mut [u8]) {
    for (round, piece) in key.chunks_mut(<H as Digest>::output_size()).enumerate() {
        let mut hash = H::new();
        for _ in 0..round {
            hash.update(b"A");
        }
        hash.update(passphrase);
        let mut digest = hash.finalize();
        piece.copy_from_slice(&digest[..piece.len()]);
        digest.as_mut_slice().zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A managed key of the bytes 0 to 31, as Nova and os-brick hand it to cryptsetup.
    const PASSPHRASE: &[u8] = b"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    fn expanded<H: Digest>(key_bytes: usize) -> String {
        let mut key = [0; KEY_BYTES_MAX];
        expand::<H>(PASSPHRASE, &mut key[..key_bytes]);
        base16ct::lower::encode_string(&key[..key_bytes])
    }

    /// What libcryptsetup answers to `crypt_volume_key_get` on a device of type PLAIN.
    #[test]
    fn keys_are_those_of_cryptsetup() {
        let ripemd160 = "543317950f1817f3fc5152532a196b15d5e426136cd2393a8710011f6844a477\
                         6d9fbc2fcddf5831ce433343688a0949d77b08cb412f2578fe45bf31c34783ee";
        let sha256 = "6c86c6aac5fb24bcf5d9939cb7d7d5645ce39418f449e03b262dd4fa14b4b92b\
                      38299db37ecf9ebd94c76caaac1229820fd0cf214f14ce1fc343adc0180db026";
        assert_eq!(expanded::<Ripemd160>(64), ripemd160);
        assert_eq!(expanded::<Sha256>(64), sha256);
        assert_eq!(expanded::<Ripemd160>(32), ripemd160[..64]);
        assert_eq!(expanded::<Sha256>(32), sha256[..64]);
    }

    #[test]
    fn every_hash_makes_keys_of_both_lengths() {
        use PassphraseHash::*;
        for hash in [Ripemd160, Sha1, Sha224, Sha256, Sha384, Sha512] {
            for key_bytes in [32, 64] {
                let key = hash.volume_key(PASSPHRASE, key_bytes, EqualHalves::Refuse).unwrap();
                assert_eq!(key.key_bits(), key_bytes * 8, "{hash:?}");
            }
        }
    }
}
