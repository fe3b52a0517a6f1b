//! VAES on 256-bit registers: two blocks in each vector. AMD from Zen 3 on, Intel from Ice Lake and Alder Lake on.

use std::arch::x86_64::*;

use super::keys::KeySchedule;
use super::pipeline;
use super::vector::{IN_FLIGHT, Tweak, Vector, Way};
use crate::cipher::Run;
use crate::cipher::iv::Positions;

/// Whether this CPU has what [`crypt`] needs.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("vaes")
        && is_x86_feature_detected!("vpclmulqdq")
}

/// [`pipeline::crypt`] with these instructions.
///
/// # Safety
/// As there, and [`is_available`].
#[target_feature(enable = "avx2,bmi2,vaes,vpclmulqdq")]
pub(super) unsafe fn crypt<W: Way, const ROUNDS: usize>(keys: &KeySchedule<ROUNDS>, run: Run) {
    // SAFETY: the caller's promise.
    unsafe { pipeline::crypt::<__m256i, W, ROUNDS>(keys, run) }
}

/// [`pipeline::run_aes`] with these instructions.
///
/// # Safety
/// [`is_available`].
#[target_feature(enable = "avx2,bmi2,vaes,vpclmulqdq")]
pub(super) unsafe fn run_aes(count: usize) -> usize {
    // SAFETY: the caller's promise.
    unsafe { pipeline::run_aes::<__m256i>(count) }
}

/// The end of a multiplication by a power of `x`: the words are `shifted` on their own, and what each lost is
/// `carry`. A low word's carry belongs into the high word, a high word's comes back times `x^7 + x^2 + x + 1`.
#[inline]
#[target_feature(enable = "avx2,vpclmulqdq")]
fn add_carry(shifted: __m256i, carry: __m256i) -> __m256i {
    let reduced = _mm256_clmulepi64_epi128::<0x01>(carry, _mm256_set1_epi64x(0x87));
    _mm256_xor_si256(_mm256_xor_si256(shifted, _mm256_bslli_epi128::<8>(carry)), reduced)
}

impl Vector for __m256i {
    const BLOCKS: usize = 2;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn broadcast(block: *const __m128i) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_broadcastsi128_si256(block.read()) }
    }
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_si256(to.cast(), self) }
    }
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn xor(self, other: Self) -> Self {
        _mm256_xor_si256(self, other)
    }

    #[inline]
    #[target_feature(enable = "vaes")]
    unsafe fn encrypt(self, key: Self) -> Self {
        _mm256_aesenc_epi128(self, key)
    }
    #[inline]
    #[target_feature(enable = "vaes")]
    unsafe fn encrypt_last(self, key: Self) -> Self {
        _mm256_aesenclast_epi128(self, key)
    }
    #[inline]
    #[target_feature(enable = "vaes")]
    unsafe fn decrypt(self, key: Self) -> Self {
        _mm256_aesdec_epi128(self, key)
    }
    #[inline]
    #[target_feature(enable = "vaes")]
    unsafe fn decrypt_last(self, key: Self) -> Self {
        _mm256_aesdeclast_epi128(self, key)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn ivs(sectors: Positions, layout: &[u8; 16]) -> Self {
        let step = sectors.step.cast_signed();
        let first = _mm256_set1_epi64x(sectors.first.cast_signed());
        let positions = _mm256_add_epi64(first, _mm256_set_epi64x(step, step, 0, 0));
        let numbers = _mm256_srl_epi64(positions, _mm_cvtsi32_si128(sectors.shift.cast_signed()));
        // SAFETY: `layout` is 16 bytes.
        let layout = _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(layout.as_ptr().cast()) });
        _mm256_shuffle_epi8(numbers, layout)
    }
    #[inline]
    #[target_feature(enable = "avx2,vpclmulqdq")]
    unsafe fn spread(tweak: Tweak) -> Self {
        let tweak = _mm_set_epi64x(tweak.high.cast_signed(), tweak.low.cast_signed());
        let both = _mm256_broadcastsi128_si256(tweak);
        let left = _mm256_set_epi64x(1, 1, 0, 0);
        let right = _mm256_set_epi64x(63, 63, 64, 64);
        let carry = _mm256_srlv_epi64(both, right);
        add_carry(_mm256_sllv_epi64(both, left), carry)
    }
    #[inline]
    #[target_feature(enable = "avx2,vpclmulqdq")]
    unsafe fn times_x_to(self, power: u32) -> Self {
        let carry = _mm256_srl_epi64(self, _mm_cvtsi32_si128(64 - power.cast_signed()));
        add_carry(_mm256_sll_epi64(self, _mm_cvtsi32_si128(power.cast_signed())), carry)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn fence(vectors: &mut [Self; IN_FLIGHT], tweak: &mut Tweak) {
        #[cfg(not(miri))]
        {
            let [a, b, c, d, e, f, g, h] = vectors;
            // SAFETY: no instruction at all.
            unsafe {
                std::arch::asm!(
                    "/* {} {} {} {} {} {} {} {} {} {} */",
                    inout(ymm_reg) *a, inout(ymm_reg) *b, inout(ymm_reg) *c, inout(ymm_reg) *d,
                    inout(ymm_reg) *e, inout(ymm_reg) *f, inout(ymm_reg) *g, inout(ymm_reg) *h,
                    inout(reg) tweak.low, inout(reg) tweak.high,
                    options(nostack, preserves_flags),
                );
            }
        }
        #[cfg(miri)]
        let _ = (vectors, tweak);
    }
}
