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
}

#[cfg(test)]
mod tests;
