//! The implementations of AES-XTS, and which of them a volume gets.

use std::fmt;
use std::str::FromStr;

use aes::{Aes128, Aes256};

use super::portable;
#[cfg(target_arch = "x86_64")]
use super::x86;
use super::{CipherError, Direction, Run, VolumeKey};
use crate::locked::Locked;

/// For error messages.
pub(super) const CHOICES: &str = "auto, vaes512, vaes256, aesni and portable";

/// Which implementation does the work. All of them give the same bytes, in times that depend on neither key nor data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KernelChoice {
    /// The one to prefer of those that this CPU can run
    #[default]
    Auto,
    /// VAES on the 512-bit registers of AVX-512
    Vaes512,
    /// VAES on 256-bit registers
    Vaes256,
    /// AES-NI
    Aesni,
    /// The `aes` crate, on any CPU
    Portable,
}

impl KernelChoice {
    /// Every kernel, in the order in which [`Auto`](Self::Auto), which is not among them, tries them.
    ///
    /// Of the first two, on the one core with both that they were measured on (Zen 4, which works on 512 bits in two
    /// halves): alone on the core, 256 bits are 5 % faster on runs of 4 KiB and both the same on 64 KiB; when the
    /// core's other thread is busy, 512 bits are 13-16 % faster, as they take half the instructions. Hosts are busy.
    pub const KERNELS: [Self; 4] = [Self::Vaes512, Self::Vaes256, Self::Aesni, Self::Portable];

    /// Whether this CPU can run it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Auto | Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            _ => self.x86_width().is_some(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// What [`Auto`](Self::Auto) chooses on this CPU.
    pub fn preferred() -> Self {
        let mut available = Self::KERNELS.into_iter().filter(|kernel| kernel.is_available());
        available.next().expect("the portable kernel runs everywhere")
    }

    /// What the CPU must have.
    fn needs(self) -> &'static str {
        match self {
            Self::Auto | Self::Portable => "nothing",
            Self::Vaes512 => "VAES, VPCLMULQDQ, AVX512F, AVX512BW and BMI2",
            Self::Vaes256 => "VAES, VPCLMULQDQ, AVX2 and BMI2",
            Self::Aesni => "AES-NI, PCLMULQDQ, AVX and BMI2",
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn x86_width(self) -> Option<x86::Width> {
        match self {
            Self::Vaes512 => x86::Width::vaes512(),
            Self::Vaes256 => x86::Width::vaes256(),
            Self::Aesni => x86::Width::aesni(),
            Self::Auto | Self::Portable => None,
        }
    }
}

impl fmt::Display for KernelChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Auto => "auto",
            Self::Vaes512 => "vaes512",
            Self::Vaes256 => "vaes256",
            Self::Aesni => "aesni",
            Self::Portable => "portable",
        })
    }
}

impl FromStr for KernelChoice {
    type Err = CipherError;
    fn from_str(name: &str) -> Result<Self, CipherError> {
        match name {
            "auto" => Ok(Self::Auto),
            "vaes512" => Ok(Self::Vaes512),
            "vaes256" => Ok(Self::Vaes256),
            "aesni" => Ok(Self::Aesni),
            "portable" => Ok(Self::Portable),
            _ => Err(CipherError::UnknownKernel(name.to_owned())),
        }
    }
}

/// An implementation with its key schedule. Chosen once per volume, matched once per run of sectors.
pub(super) struct Kernel {
    choice: KernelChoice,
    keys: Keys,
}

enum Keys {
    PortableAes128(Locked<portable::KeySchedule<Aes128>>),
    PortableAes256(Locked<portable::KeySchedule<Aes256>>),
    #[cfg(target_arch = "x86_64")]
    X86Aes128(x86::Width, Locked<x86::KeySchedule<10>>),
    #[cfg(target_arch = "x86_64")]
    X86Aes256(x86::Width, Locked<x86::KeySchedule<14>>),
}

impl Kernel {
    /// Expands `key` for the kernel of that name.
    ///
    /// # Errors
    /// When the CPU cannot run it, or when no memory can be locked.
    pub(super) fn resolve(key: &VolumeKey, choice: KernelChoice) -> Result<Self, CipherError> {
        let choice = match choice {
            KernelChoice::Auto => KernelChoice::preferred(),
            named => named,
        };
        Ok(Self { choice, keys: Keys::expand(key, choice)? })
    }

    /// Which one it is: never [`KernelChoice::Auto`].
    pub(super) fn choice(&self) -> KernelChoice {
        self.choice
    }

    /// # Safety
    /// As for [`Xts::encrypt`](super::Xts::encrypt), for the sectors of `run`.
    pub(super) unsafe fn crypt(&self, direction: Direction, run: Run) {
        // SAFETY: the caller's promise.
        unsafe {
            match &self.keys {
                Keys::PortableAes128(keys) => keys.crypt(direction, run),
                Keys::PortableAes256(keys) => keys.crypt(direction, run),
                #[cfg(target_arch = "x86_64")]
                Keys::X86Aes128(width, keys) => width.crypt(keys, direction, run),
                #[cfg(target_arch = "x86_64")]
                Keys::X86Aes256(width, keys) => width.crypt(keys, direction, run),
            }
        }
    }
}

impl Keys {
    fn expand(key: &VolumeKey, kernel: KernelChoice) -> Result<Self, CipherError> {
        let (data, tweak) = key.halves();
        let is_aes_128 = data.len() == 16;
        match kernel {
            KernelChoice::Auto | KernelChoice::Portable if is_aes_128 => {
                Ok(Self::PortableAes128(portable::KeySchedule::locked(data, tweak)?))
            }
            KernelChoice::Auto | KernelChoice::Portable => {
                Ok(Self::PortableAes256(portable::KeySchedule::locked(data, tweak)?))
            }
            #[cfg(target_arch = "x86_64")]
            KernelChoice::Vaes512 | KernelChoice::Vaes256 | KernelChoice::Aesni => {
                let missing = CipherError::KernelUnavailable { kernel, needs: kernel.needs() };
                let width = kernel.x86_width().ok_or(missing)?;
                if is_aes_128 {
                    Ok(Self::X86Aes128(width, x86::KeySchedule::locked(width, data, tweak)?))
                } else {
                    Ok(Self::X86Aes256(width, x86::KeySchedule::locked(width, data, tweak)?))
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            KernelChoice::Vaes512 | KernelChoice::Vaes256 | KernelChoice::Aesni => {
                Err(CipherError::KernelUnavailable { kernel, needs: kernel.needs() })
            }
        }
    }
}
