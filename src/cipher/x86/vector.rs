//! What the kernels need of a vector register, whatever its width.

use std::arch::x86_64::__m128i;

use super::keys::{KeySchedule, RoundKeys};
#[cfg(doc)]
use crate::cipher::iv::IvSequence;
use crate::cipher::iv::Positions;

/// Vectors that go through the AES rounds together, as the rounds of one vector wait for each other and those of
/// different vectors do not.
///
/// An AES round takes 3 to 5 cycles and a core starts one or two each cycle, so four would do if the core looked far
/// enough ahead; its scheduler does not. On Zen 3, four vectors of 256 bits reach 86-89 % of what the AES units can
/// do and eight reach 98-99 %.
pub(super) const IN_FLIGHT: usize = 8;

/// A vector register that holds AES blocks.
///
/// # Safety
/// All functions are only called on a CPU that has the instructions of the implementation. They inline into
/// whichever function enables these, and only there they cost nothing.
pub(super) trait Vector: Copy {
    /// 16-byte blocks in one vector.
    const BLOCKS: usize;

    /// The same round key for each block.
    unsafe fn broadcast(block: *const __m128i) -> Self;
    /// From any address.
    unsafe fn load(from: *const u8) -> Self;
    /// To any address.
    unsafe fn store(self, to: *mut u8);
    /// Bit by bit.
    unsafe fn xor(self, other: Self) -> Self;

    /// One round of encryption.
    unsafe fn encrypt(self, key: Self) -> Self;
    /// The last round of encryption.
    unsafe fn encrypt_last(self, key: Self) -> Self;
    /// One round of decryption.
    unsafe fn decrypt(self, key: Self) -> Self;
    /// The last round of decryption.
    unsafe fn decrypt_last(self, key: Self) -> Self;

    /// The IVs of as many sectors as there are blocks. `layout` is that of [`IvSequence::layout`].
    ///
    /// From scalar IVs, the vector would have to wait until they have all reached the cache.
    unsafe fn ivs(sectors: Positions, layout: &[u8; 16]) -> Self;
    /// `tweak`, `tweak * x`, `tweak * x^2`, ... in the vector's blocks, in GF(2^128).
    unsafe fn spread(tweak: Tweak) -> Self;
    /// Each block times `x^power`, with `power` below 57.
    unsafe fn times_x_to(self, power: u32) -> Self;

    /// Emits no instruction. Whatever the compiler knows of these values and of memory, it has to forget here, so
    /// that instructions written before stay before, and those after stay after.
    ///
    /// Left alone, LLVM sees eight independent chains, schedules them one after another, and spills what does not
    /// fit: 70-74 % of what the AES units can do, instead of 92-98 % with a fence after each round.
    unsafe fn fence(vectors: &mut [Self; IN_FLIGHT], tweak: &mut Tweak);
}

/// An element of GF(2^128) in two integer registers.
#[derive(Clone, Copy)]
pub(super) struct Tweak {
    pub(super) low: u64,
    pub(super) high: u64,
}

/// Encryption or decryption, as a type, so that each gets its own machine code.
pub(super) trait Way {
    /// Those keys of the schedule that this direction takes.
    fn data_keys<const ROUNDS: usize>(keys: &KeySchedule<ROUNDS>) -> &RoundKeys;
    /// One round.
    ///
    /// # Safety
    /// As for [`Vector`].
    unsafe fn round<V: Vector>(state: V, key: V) -> V;
    /// The last round.
    ///
    /// # Safety
    /// As for [`Vector`].
    unsafe fn last_round<V: Vector>(state: V, key: V) -> V;
}

pub(super) struct Encrypt;
pub(super) struct Decrypt;

impl Way for Encrypt {
    #[inline(always)]
    fn data_keys<const ROUNDS: usize>(keys: &KeySchedule<ROUNDS>) -> &RoundKeys {
        &keys.encrypt
    }
    #[inline(always)]
    unsafe fn round<V: Vector>(state: V, key: V) -> V {
        // SAFETY: the caller's promise.
        unsafe { state.encrypt(key) }
    }
    #[inline(always)]
    unsafe fn last_round<V: Vector>(state: V, key: V) -> V {
        // SAFETY: the caller's promise.
        unsafe { state.encrypt_last(key) }
    }
}

impl Way for Decrypt {
    #[inline(always)]
    fn data_keys<const ROUNDS: usize>(keys: &KeySchedule<ROUNDS>) -> &RoundKeys {
        &keys.decrypt
    }
    #[inline(always)]
    unsafe fn round<V: Vector>(state: V, key: V) -> V {
        // SAFETY: the caller's promise.
        unsafe { state.decrypt(key) }
    }
    #[inline(always)]
    unsafe fn last_round<V: Vector>(state: V, key: V) -> V {
        // SAFETY: the caller's promise.
        unsafe { state.decrypt_last(key) }
    }
}

impl Tweak {
    /// Times `x`.
    ///
    /// In assembly because LLVM makes SHLD of every way to write it in Rust, six micro-operations on AMD's cores
    /// instead of one: 75 % of the speed. These five are off the vector units and run beside the AES rounds, the
    /// carry mask apart from the shift, so that a chain of doublings takes 2.5 cycles each. The polynomial is in a
    /// register because its top bit is that of a byte: as a constant it would take four bytes in each instruction.
    ///
    /// # Safety
    /// The CPU has BMI2.
    #[cfg(not(miri))]
    #[inline(always)]
    pub(super) unsafe fn double(&mut self) {
        // SAFETY: changes nothing but its operands and the flags.
        unsafe {
            std::arch::asm!(
                "sarx {mask}, {high}, {count}",
                "and {mask:e}, {polynomial:e}",
                "add {low}, {low}",
                "adc {high}, {high}",
                "xor {low}, {mask}",
                mask = out(reg) _,
                low = inout(reg) self.low,
                high = inout(reg) self.high,
                count = in(reg) 63_u64,
                polynomial = in(reg) 0x87_u64,
                options(pure, nomem, nostack),
            );
        }
    }

    /// As above, for an interpreter that knows no assembly.
    #[cfg(miri)]
    pub(super) unsafe fn double(&mut self) {
        *self = self.times_x_to(1);
    }

    /// Times `x^power`, with `power` from 1 to 57.
    #[inline(always)]
    pub(super) fn times_x_to(self, power: u32) -> Self {
        let carry = self.high >> (64 - power);
        Self {
            low: (self.low << power) ^ carry ^ (carry << 1) ^ (carry << 2) ^ (carry << 7),
            high: (self.high << power) | (self.low >> (64 - power)),
        }
    }
}

/// Makes the compiler forget where a pointer came from, so that it cannot prove that what it points to stays the
/// same: loads then stay where they are written instead of moving out of the loop into registers that are not there.
#[cfg_attr(not(miri), expect(clippy::pointers_in_nomem_asm_block, reason = "the pointer is not followed"))]
#[inline(always)]
pub(super) fn forget_origin<T>(pointer: *const T) -> *const T {
    #[cfg(not(miri))]
    {
        let mut pointer = pointer;
        // SAFETY: no instruction at all.
        unsafe {
            std::arch::asm!("/* {0} */", inout(reg) pointer, options(pure, nomem, nostack, preserves_flags));
        }
        pointer
    }
    #[cfg(miri)]
    pointer
}

/// Brings the cache line of `src` near, to be read, and that of `dst`, to be written. Nothing is read, so that no
/// address is wrong.
#[inline(always)]
pub(super) fn fetch(src: *const u8, dst: *const u8) {
    #[cfg(not(miri))]
    // SAFETY: hints.
    unsafe {
        std::arch::asm!(
            "prefetcht0 [{src}]",
            "prefetchw [{dst}]",
            src = in(reg) src,
            dst = in(reg) dst,
            options(nostack, preserves_flags),
        );
    }
    #[cfg(miri)]
    let _ = (src, dst);
}
