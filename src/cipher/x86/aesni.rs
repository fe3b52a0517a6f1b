//! AES-NI: one block in each vector. For CPUs without VAES: Intel before Ice Lake, AMD before Zen 3.

use std::arch::x86_64::*;

use super::keys::KeySchedule;
use super::pipeline;
use super::vector::{IN_FLIGHT, Tweak, Vector, Way};
use crate::cipher::Run;
use crate::cipher::iv::Positions;

/// Whether this CPU has what [`crypt`] needs.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("aes")
        && is_x86_feature_detected!("avx")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("pclmulqdq")
}

/// [`pipeline::crypt`] with these instructions.
///
/// # Safety
/// As there, and [`is_available`].
#[target_feature(enable = "aes,avx,bmi2,pclmulqdq")]
pub(super) unsafe fn crypt<W: Way, const ROUNDS: usize>(keys: &KeySchedule<ROUNDS>, run: Run) {
    // SAFETY: the caller's promise.
    unsafe { pipeline::crypt::<__m128i, W, ROUNDS>(keys, run) }
}

/// [`pipeline::run_aes`] with these instructions.
///
/// # Safety
/// [`is_available`].
#[target_feature(enable = "aes,avx,bmi2,pclmulqdq")]
pub(super) unsafe fn run_aes(count: usize) -> usize {
    // SAFETY: the caller's promise.
    unsafe { pipeline::run_aes::<__m128i>(count) }
}

impl Vector for __m128i {
    const BLOCKS: usize = 1;

    #[inline]
    #[target_feature(enable = "avx")]
    unsafe fn broadcast(block: *const __m128i) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm_load_si128(block) }
    }
    #[inline]
    #[target_feature(enable = "avx")]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm_loadu_si128(from.cast()) }
    }
    #[inline]
    #[target_feature(enable = "avx")]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { _mm_storeu_si128(to.cast(), self) }
    }
    #[inline]
    #[target_feature(enable = "avx")]
    unsafe fn xor(self, other: Self) -> Self {
        _mm_xor_si128(self, other)
    }

    #[inline]
    #[target_feature(enable = "aes,avx")]
    unsafe fn encrypt(self, key: Self) -> Self {
        _mm_aesenc_si128(self, key)
    }
    #[inline]
    #[target_feature(enable = "aes,avx")]
    unsafe fn encrypt_last(self, key: Self) -> Self {
        _mm_aesenclast_si128(self, key)
    }
    #[inline]
    #[target_feature(enable = "aes,avx")]
    unsafe fn decrypt(self, key: Self) -> Self {
        _mm_aesdec_si128(self, key)
    }
    #[inline]
    #[target_feature(enable = "aes,avx")]
    unsafe fn decrypt_last(self, key: Self) -> Self {
        _mm_aesdeclast_si128(self, key)
    }

    #[inline]
    #[target_feature(enable = "avx")]
    unsafe fn ivs(sectors: Positions, layout: &[u8; 16]) -> Self {
        let numbers = _mm_set1_epi64x((sectors.first >> sectors.shift).cast_signed());
        // SAFETY: `layout` is 16 bytes.
        _mm_shuffle_epi8(numbers, unsafe { _mm_loadu_si128(layout.as_ptr().cast()) })
    }
    #[inline]
    #[target_feature(enable = "avx")]
    unsafe fn spread(tweak: Tweak) -> Self {
        _mm_set_epi64x(tweak.high.cast_signed(), tweak.low.cast_signed())
    }
    #[inline]
    #[target_feature(enable = "avx,pclmulqdq")]
    unsafe fn times_x_to(self, power: u32) -> Self {
        let left = _mm_cvtsi32_si128(power.cast_signed());
        let carry = _mm_srl_epi64(self, _mm_cvtsi32_si128(64 - power.cast_signed()));
        let shifted = _mm_xor_si128(_mm_sll_epi64(self, left), _mm_bslli_si128::<8>(carry));
        _mm_xor_si128(shifted, _mm_clmulepi64_si128::<0x01>(carry, _mm_set1_epi64x(0x87)))
    }

    #[inline]
    #[target_feature(enable = "avx")]
    unsafe fn fence(vectors: &mut [Self; IN_FLIGHT], tweak: &mut Tweak) {
        #[cfg(not(miri))]
        {
            let [a, b, c, d, e, f, g, h] = vectors;
            // SAFETY: no instruction at all.
            unsafe {
                std::arch::asm!(
                    "/* {} {} {} {} {} {} {} {} {} {} */",
                    inout(xmm_reg) *a, inout(xmm_reg) *b, inout(xmm_reg) *c, inout(xmm_reg) *d,
                    inout(xmm_reg) *e, inout(xmm_reg) *f, inout(xmm_reg) *g, inout(xmm_reg) *h,
                    inout(reg) tweak.low, inout(reg) tweak.high,
                    options(nostack, preserves_flags),
                );
            }
        }
        #[cfg(miri)]
        let _ = (vectors, tweak);
    }
}
