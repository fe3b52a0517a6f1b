//! How a new slot is to make its key from a passphrase, and at what cost.

use libcryptsetup_rs::CryptPbkdfType;
use libcryptsetup_rs::consts::flags::CryptPbkdf;
use libcryptsetup_rs::consts::vals::CryptKdf;

use super::on_disk::Version;
use crate::keys::Secret;

/// The hash of PBKDF2 and of the header's digest.
pub(super) const HASH: &str = "sha256";

/// The KDF of a new slot with its costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotKdf {
    /// PBKDF2 with HMAC-SHA-256.
    Pbkdf2 {
        /// At least 1000.
        iterations: u32,
    },
    /// Argon2id.
    Argon2id {
        /// At least 4.
        passes: u32,
        /// At least 32; no more than the machine has is used.
        memory_kib: u32,
        /// 1 to 4.
        threads: u32,
    },
}

impl SlotKdf {
    /// For keys that a key manager drew: stretching 256 random bits makes them no harder to guess, so the least that
    /// the format allows.
    pub const RANDOM_KEY: Self = Self::Pbkdf2 { iterations: 1000 };

    /// For passphrases: about a second on one core, in memory of which a host has enough for one unlock at a time
    /// (which is as many as there are). Fixed rather than measured, so that a volume does not depend on the
    /// machine, or its load, of the moment when it was made.
    pub const PASSPHRASE: Self = Self::Argon2id { passes: 4, memory_kib: 256 << 10, threads: 4 };

    /// The same where there is no Argon2, in LUKS1 (OWASP advises 600 000 and more).
    pub const PASSPHRASE_LUKS1: Self = Self::Pbkdf2 { iterations: 2_000_000 };

    /// What suits `secret`, by the look of it.
    pub fn suited_to(secret: &Secret, version: Version) -> Self {
        match (looks_random(secret.expose()), version) {
            (true, _) => Self::RANDOM_KEY,
            (false, Version::Luks2) => Self::PASSPHRASE,
            (false, Version::Luks1) => Self::PASSPHRASE_LUKS1,
        }
    }

    /// Whether it takes memory of which a host may not have enough for several at once.
    pub(super) fn is_memory_hard(self) -> bool {
        matches!(self, Self::Argon2id { .. })
    }

    pub(super) fn parameters(self) -> CryptPbkdfType {
        let (type_, iterations, max_memory_kb, parallel_threads) = match self {
            Self::Pbkdf2 { iterations } => (CryptKdf::Pbkdf2, iterations, 0, 0),
            Self::Argon2id { passes, memory_kib, threads } => {
                (CryptKdf::Argon2Id, passes, memory_kib, threads)
            }
        };
        CryptPbkdfType {
            type_,
            hash: Some(HASH.to_owned()),
            time_ms: 0,
            iterations,
            max_memory_kb,
            parallel_threads,
            flags: CryptPbkdf::NO_BENCHMARK,
        }
    }
}

/// Whether `key` looks like 256 random bits or more: raw bytes, or those as hexadecimal or base64 text, as key
/// managers hand them out. Whatever else is text counts as a passphrase that somebody thought of. To be wrong about
/// a random key costs a second at each unlock; a passphrase passes for random only if it is written in 64
/// hexadecimal digits, or in 43 letters and digits without a space, or is not text at all.
fn looks_random(key: &[u8]) -> bool {
    let text = key.strip_suffix(b"\n").unwrap_or(key);
    let has = |class: fn(&u8) -> bool| text.iter().any(class);
    let all = |class: fn(&u8) -> bool| text.iter().all(class);
    let different = |least: usize| {
        let mut seen = [false; 256];
        text.iter().for_each(|byte| seen[usize::from(*byte)] = true);
        seen.iter().filter(|seen| **seen).count() >= least
    };
    if all(u8::is_ascii_hexdigit) {
        return text.len() >= 64 && different(9);
    }
    if all(|byte| byte.is_ascii_alphanumeric() || b"+/-_=".contains(byte)) {
        let mixed = has(u8::is_ascii_digit) && has(u8::is_ascii_uppercase) && has(u8::is_ascii_lowercase);
        return text.len() >= 43 && mixed && different(16);
    }
    let is_text = str::from_utf8(key).is_ok_and(|text| !text.chars().any(|c| c.is_control() && c != '\n'));
    !is_text && key.len() >= 32 && different(16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random<const N: usize>() -> [u8; N] {
        let mut bytes = [0; N];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).unwrap();
        bytes
    }

    #[test]
    fn random_keys_are_recognised_in_every_dress() {
        for _ in 0..500 {
            let (key, long) = (random::<32>(), random::<64>());
            assert!(looks_random(&key) && looks_random(&long));
            let mut dressed = vec![
                base16ct::lower::encode_string(&key),
                base16ct::upper::encode_string(&long),
                <base64ct::Base64 as base64ct::Encoding>::encode_string(&long),
                <base64ct::Base64Url as base64ct::Encoding>::encode_string(&long),
            ];
            dressed.push(dressed[0].clone() + "\n");
            for text in dressed {
                assert!(looks_random(text.as_bytes()), "{text}");
            }
        }
    }

    #[test]
    fn passphrases_are_not_taken_for_random_keys() {
        let mut half_random = random::<64>();
        half_random[8..].fill(0);
        for key in [
            &b"hunter2"[..],
            b"correct horse battery staple and a good deal more of it, with 1 Digit",
            b"correcthorsebatterystapleandmanymorelowercaselettersoftheevening",
            "Ein sehr langer Satz mit Umlauten: \u{e4}\u{f6}\u{fc}, der auch nicht zufaellig ist.\n"
                .as_bytes(),
            &[b'a'; 64],
            b"0123456701234567012345670123456701234567012345670123456701234567",
            &[0; 64],
            &half_random,
            &random::<31>(),
            b"00112233445566778899aabbccddeeff",
        ] {
            assert!(!looks_random(key), "{}", String::from_utf8_lossy(key));
        }
    }
}
