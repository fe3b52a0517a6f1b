//! The key schedule of the x86-64 kernels, made with the CPU's own AES instructions: no table, no branch on
//! key bytes.

use std::arch::x86_64::*;
use std::io;

use super::Width;
use crate::locked::Locked;

/// Round keys of AES-256, which has the most.
const ROUND_KEYS_MAX: usize = 15;

/// The round keys of one direction, in the order in which they are used.
pub(super) type RoundKeys = [__m128i; ROUND_KEYS_MAX];

/// `K1` and `K2` of AES with `ROUNDS` rounds (10 or 14), expanded. One word of 16 bytes for each round key: the
/// kernels spread it over a wider vector as they load it, which takes no longer than a plain load.
#[repr(C, align(64))]
pub(crate) struct KeySchedule<const ROUNDS: usize> {
    pub(super) encrypt: RoundKeys,
    pub(super) decrypt: RoundKeys,
    pub(super) tweak: RoundKeys,
}

impl<const ROUNDS: usize> KeySchedule<ROUNDS> {
    /// Expands both keys, each as long as `ROUNDS` wants it, into locked memory. The CPU has AES-NI: there is a
    /// `Width`.
    pub(crate) fn locked(_: Width, data_key: &[u8], tweak_key: &[u8]) -> io::Result<Locked<Self>> {
        // SAFETY: a CPU with any width of vectors has AES-NI.
        Locked::new(|| unsafe { Self::expand(data_key, tweak_key) })
    }

    /// Expands both keys.
    #[target_feature(enable = "aes")]
    pub(super) fn expand(data_key: &[u8], tweak_key: &[u8]) -> Self {
        let encrypt = expand::<ROUNDS>(data_key);
        Self { encrypt, decrypt: invert::<ROUNDS>(&encrypt), tweak: expand::<ROUNDS>(tweak_key) }
    }
}

/// The key expansion of FIPS 197, section 5.2.
#[target_feature(enable = "aes")]
fn expand<const ROUNDS: usize>(key: &[u8]) -> RoundKeys {
    let key_words = key.len() / 4;
    assert_eq!(key_words + 6, ROUNDS, "the key's length chose the number of rounds");
    let mut words = [0_u32; 4 * ROUND_KEYS_MAX];
    for (word, bytes) in words.iter_mut().zip(key.chunks_exact(4)) {
        *word = u32::from_le_bytes(bytes.try_into().expect("chunks of four bytes"));
    }
    let mut round_constant = 1_u32;
    for i in key_words..4 * (ROUNDS + 1) {
        let mut word = words[i - 1];
        if i % key_words == 0 {
            word = substitute(word.rotate_right(8)) ^ round_constant;
            // Twice itself in GF(2^8); which constants there are is no secret.
            round_constant = (round_constant << 1) ^ ((round_constant >> 7) * 0x11b);
        } else if key_words > 6 && i % key_words == 4 {
            word = substitute(word);
        }
        words[i] = words[i - key_words] ^ word;
    }
    let mut round_keys = [_mm_setzero_si128(); ROUND_KEYS_MAX];
    for (round_key, words) in round_keys.iter_mut().zip(words.chunks_exact(4)) {
        let [a, b, c, d] = [words[0], words[1], words[2], words[3]].map(u32::cast_signed);
        *round_key = _mm_set_epi32(d, c, b, a);
    }
    round_keys
}

/// The S-box on each byte of `word`. AESENCLAST with a zero key is SubBytes and ShiftRows, and shifting rows of
/// four equal columns changes nothing.
#[target_feature(enable = "aes")]
fn substitute(word: u32) -> u32 {
    let columns = _mm_set1_epi32(word.cast_signed());
    _mm_cvtsi128_si32(_mm_aesenclast_si128(columns, _mm_setzero_si128())).cast_unsigned()
}

/// The round keys of the equivalent inverse cipher (FIPS 197, section 5.3.5), which AESDEC computes.
#[target_feature(enable = "aes")]
fn invert<const ROUNDS: usize>(encrypt: &RoundKeys) -> RoundKeys {
    let mut decrypt = [_mm_setzero_si128(); ROUND_KEYS_MAX];
    decrypt[0] = encrypt[ROUNDS];
    for i in 1..ROUNDS {
        decrypt[i] = _mm_aesimc_si128(encrypt[ROUNDS - i]);
    }
    decrypt[ROUNDS] = encrypt[0];
    decrypt
}
