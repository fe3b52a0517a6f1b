//! AES-XTS with the AES instructions of x86-64, on vectors of three widths.
//!
//! [`pipeline`] is the algorithm, [`vector`] what it needs of a vector, and each width a file that gives it that.

mod aesni;
mod keys;
mod pipeline;
mod vaes256;
mod vaes512;
mod vector;

use super::{Direction, Run};
use vector::{Decrypt, Encrypt};

pub(super) use keys::KeySchedule;

/// The vectors that a kernel works on. A value stands for a CPU that has been asked whether it has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Width(Vectors);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vectors {
    Aesni,
    Vaes256,
    Vaes512,
}

impl Width {
    /// 128 bits, with AES-NI.
    pub(super) fn aesni() -> Option<Self> {
        aesni::is_available().then_some(Self(Vectors::Aesni))
    }

    /// 256 bits, with VAES.
    pub(super) fn vaes256() -> Option<Self> {
        vaes256::is_available().then_some(Self(Vectors::Vaes256))
    }

    /// 512 bits, with VAES and AVX-512.
    pub(super) fn vaes512() -> Option<Self> {
        vaes512::is_available().then_some(Self(Vectors::Vaes512))
    }

    /// Turns the sectors of `run`.
    ///
    /// # Safety
    /// As for [`Xts::encrypt`](super::Xts::encrypt), for the sectors of `run`, which are multiples of 512 bytes.
    pub(super) unsafe fn crypt<const ROUNDS: usize>(
        self,
        keys: &KeySchedule<ROUNDS>,
        direction: Direction,
        run: Run,
    ) {
        // SAFETY: the caller's promise; and the CPU has these vectors, or there would be no such `self`.
        unsafe {
            match (self.0, direction) {
                (Vectors::Aesni, Direction::Encrypt) => aesni::crypt::<Encrypt, ROUNDS>(keys, run),
                (Vectors::Aesni, Direction::Decrypt) => aesni::crypt::<Decrypt, ROUNDS>(keys, run),
                (Vectors::Vaes256, Direction::Encrypt) => vaes256::crypt::<Encrypt, ROUNDS>(keys, run),
                (Vectors::Vaes256, Direction::Decrypt) => vaes256::crypt::<Decrypt, ROUNDS>(keys, run),
                (Vectors::Vaes512, Direction::Encrypt) => vaes512::crypt::<Encrypt, ROUNDS>(keys, run),
                (Vectors::Vaes512, Direction::Decrypt) => vaes512::crypt::<Decrypt, ROUNDS>(keys, run),
            }
        }
    }

    /// Bytes in one vector.
    pub(super) fn vector_bytes(self) -> usize {
        match self.0 {
            Vectors::Aesni => 16,
            Vectors::Vaes256 => 32,
            Vectors::Vaes512 => 64,
        }
    }

    /// At least `count` AES instructions with nothing else to do. Returns how many they were.
    pub(super) fn run_aes(self, count: usize) -> usize {
        // SAFETY: the CPU has these vectors, or there would be no such `self`.
        unsafe {
            match self.0 {
                Vectors::Aesni => aesni::run_aes(count),
                Vectors::Vaes256 => vaes256::run_aes(count),
                Vectors::Vaes512 => vaes512::run_aes(count),
            }
        }
    }
}

/// Takes `count` cycles, rounded up to tens: additions that wait for each other. Not of constants, which the newest
/// cores add up before they execute anything.
#[cfg(not(miri))]
pub(super) fn run_cycles(count: usize) {
    let mut sum = 0_u64;
    for _ in 0..count.div_ceil(10) {
        // SAFETY: changes nothing but its operands and the flags.
        unsafe {
            std::arch::asm!(
                ".rept 10",
                "add {sum}, {one}",
                ".endr",
                sum = inout(reg) sum,
                one = in(reg) 1_u64,
                options(nomem, nostack),
            );
        }
    }
}

#[cfg(miri)]
pub(super) fn run_cycles(_: usize) {}

#[cfg(test)]
mod tests;
