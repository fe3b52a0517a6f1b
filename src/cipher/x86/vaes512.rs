//! VAES on the 512-bit registers of AVX-512: four blocks in each vector. AMD from Zen 4 on, Intel's servers from Ice
//! Lake on.

use std::arch::x86_64::*;

use super::keys::KeySchedule;
use super::pipeline;
use super::vector::{IN_FLIGHT, Tweak, Vector, Way};
use crate::cipher::Run;
use crate::cipher::iv::Positions;

/// Whether this CPU has what [`crypt`] needs.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("vaes")
        && is_x86_feature_detected!("vpclmulqdq")
}

/// [`pipeline::crypt`] with these instructions.
///
/// # Safety
/// As there, and [`is_available`].
#[target_feature(enable = "avx512f,avx512bw,bmi2,vaes,vpclmulqdq")]
pub(super) unsafe fn crypt<W: Way, const ROUNDS: usize>(keys: &KeySchedule<ROUNDS>, run: Run) {
    // SAFETY: the caller's promise.
    unsafe { pipeline::crypt::<__m512i, W, ROUNDS>(keys, run) }
}

/// [`pipeline::run_aes`] with these instructions.
///
/// # Safety
/// [`is_available`].
#[target_feature(enable = "avx512f,avx512bw,bmi2,vaes,vpclmulqdq")]
pub(super) unsafe fn run_aes(count: usize) -> usize {
    // SAFETY: the caller's promise.
    unsafe { pipeline::run_aes::<__m512i>(count) }
}

/// The end of a multiplication by a power of `x`: the words are `shifted` on their own, and what each lost is
/// `carry`. A low word's carry belongs into the high word, a high word's comes back times `x^7 + x^2 + x + 1`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,vpclmulqdq")]
fn add_carry(shifted: __m512i, carry: __m512i) -> __m512i {
    let reduced = _mm512_clmulepi64_epi128::<0x01>(carry, _mm512_set1_epi64(0x87));
    _mm512_xor_si512(_mm512_xor_si512(shifted, _mm512_bslli_epi128::<8>(carry)), reduced)
}

impl Vector for __m512i {
    const BLOCKS: usize = 4;

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn broadcast(block: *const __m128i) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm512_broadcast_i32x4(block.read()) }
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_si512(to.cast(), self) }
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn xor(self, other: Self) -> Self {
        _mm512_xor_si512(self, other)
    }

    #[inline]
    #[target_feature(enable = "avx512f,vaes")]
    unsafe fn encrypt(self, key: Self) -> Self {
        _mm512_aesenc_epi128(self, key)
    }
    #[inline]
    #[target_feature(enable = "avx512f,vaes")]
    unsafe fn encrypt_last(self, key: Self) -> Self {
        _mm512_aesenclast_epi128(self, key)
    }
    #[inline]
    #[target_feature(enable = "avx512f,vaes")]
    unsafe fn decrypt(self, key: Self) -> Self {
        _mm512_aesdec_epi128(self, key)
    }
    #[inline]
    #[target_feature(enable = "avx512f,vaes")]
    unsafe fn decrypt_last(self, key: Self) -> Self {
        _mm512_aesdeclast_epi128(self, key)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn ivs(sectors: Positions, layout: &[u8; 16]) -> Self {
        let [one, two, three] = [1, 2, 3].map(|i| sectors.step.wrapping_mul(i).cast_signed());
        let first = _mm512_set1_epi64(sectors.first.cast_signed());
        let positions = _mm512_add_epi64(first, _mm512_set_epi64(three, three, two, two, one, one, 0, 0));
        let numbers = _mm512_srlv_epi64(positions, _mm512_set1_epi64(sectors.shift.into()));
        // SAFETY: `layout` is 16 bytes.
        let layout = _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(layout.as_ptr().cast()) });
        _mm512_shuffle_epi8(numbers, layout)
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,vpclmulqdq")]
    unsafe fn spread(tweak: Tweak) -> Self {
        let tweak = _mm_set_epi64x(tweak.high.cast_signed(), tweak.low.cast_signed());
        let all = _mm512_broadcast_i32x4(tweak);
        let left = _mm512_set_epi64(3, 3, 2, 2, 1, 1, 0, 0);
        let right = _mm512_set_epi64(61, 61, 62, 62, 63, 63, 64, 64);
        let carry = _mm512_srlv_epi64(all, right);
        add_carry(_mm512_sllv_epi64(all, left), carry)
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,vpclmulqdq")]
    unsafe fn times_x_to(self, power: u32) -> Self {
        let left = _mm512_set1_epi64(power.into());
        let right = _mm512_set1_epi64((64 - power).into());
        let carry = _mm512_srlv_epi64(self, right);
        add_carry(_mm512_sllv_epi64(self, left), carry)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn fence(vectors: &mut [Self; IN_FLIGHT], tweak: &mut Tweak) {
        #[cfg(not(miri))]
        {
            let [a, b, c, d, e, f, g, h] = vectors;
            // SAFETY: no instruction at all.
            unsafe {
                std::arch::asm!(
                    "/* {} {} {} {} {} {} {} {} {} {} */",
                    inout(zmm_reg) *a, inout(zmm_reg) *b, inout(zmm_reg) *c, inout(zmm_reg) *d,
                    inout(zmm_reg) *e, inout(zmm_reg) *f, inout(zmm_reg) *g, inout(zmm_reg) *h,
                    inout(reg) tweak.low, inout(reg) tweak.high,
                    options(nostack, preserves_flags),
                );
            }
        }
        #[cfg(miri)]
        let _ = (vectors, tweak);
    }
}
