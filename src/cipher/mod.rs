//! AES-XTS (IEEE 1619-2018, NIST SP 800-38E) over whole sectors, many at once.
//!
//! `C_j = E(K1, P_j xor T_j) xor T_j` with `T_0 = E(K2, iv)` and `T_{j+1} = T_j * x` in GF(2^128), where `iv`
//! comes from the sector's number ([`IvNumbering`]) exactly as dm-crypt makes it. The standard's bound of
//! 2^20 blocks for one data unit is far above any [`SectorSize`]. XTS gives confidentiality of data at rest;
//! it authenticates nothing.
//!
//! Source and destination are raw pointers because one of them is usually guest memory, to which no Rust
//! reference may exist: the guest may change it at any time. Each source byte is read once and each
//! destination byte written once.
#![expect(unsafe_code, reason = "sources and destinations are raw pointers: guest memory")]

mod iv;
mod kernel;
mod key;
mod portable;
mod units;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::fmt;
use std::io;

use crate::geometry::{SectorNumber, SectorSize};

pub use iv::{CipherSpec, IvMode, IvNumbering};
pub use kernel::KernelChoice;
pub use key::{EqualHalves, KeyFingerprint, VolumeKey};
pub use units::AesUnits;

use iv::IvSequence;
use kernel::Kernel;

/// Why a key or a cipher is refused. No message holds key bytes.
#[derive(Debug, thiserror::Error)]
pub enum CipherError {
    /// Neither 32 nor 64 bytes.
    #[error("a volume key for AES-XTS has 32 bytes (AES-128) or 64 bytes (AES-256), this one has {0}")]
    KeyLength(usize),
    /// `K1 == K2`, which NIST forbids: it takes away the proof that XTS is secure.
    #[error(
        "both halves of the volume key are equal, but XTS needs two independent keys: make a new key from \
         random bytes, or open this volume all the same with `--insecure equal-key-halves`"
    )]
    EqualHalves,
    /// The IV offset would cut a sector.
    #[error(
        "the IV offset of {offset_sectors} 512-byte sectors is not a multiple of the encryption sector size \
         ({sector_bytes} bytes)"
    )]
    IvOffset {
        /// What was asked for.
        offset_sectors: u64,
        /// What it must be a multiple of.
        sector_bytes: u32,
    },
    /// A cipher that is not one of ours.
    #[error("unknown cipher `{0}`: supported are {list}", list = iv::SUPPORTED_SPECS)]
    UnknownSpec(String),
    /// An IV mode that is not one of ours.
    #[error("unknown IV mode `{0}`: supported are {list}", list = iv::SUPPORTED_MODES)]
    UnknownIvMode(String),
    /// A kernel that is not one of ours.
    #[error("unknown cipher kernel `{0}`: there are {list}", list = kernel::CHOICES)]
    UnknownKernel(String),
    /// A kernel that was asked for by name, on a machine that is too old for it or of another kind.
    #[error("this CPU cannot run the cipher kernel `{kernel}`, which needs {needs}: use `auto`")]
    KernelUnavailable {
        /// What was asked for.
        kernel: KernelChoice,
        /// What the CPU would have to have.
        needs: &'static str,
    },
    /// Another process has handed over something else than a key.
    #[error("what was handed over cannot be read as a key")]
    HandedOver(#[source] io::Error),
    /// The kernel gave no locked memory.
    #[error("no locked memory for key material (is the limit on locked memory, `ulimit -l`, high enough?)")]
    Lock(#[from] io::Error),
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Encrypt,
    Decrypt,
}

/// A contiguous run of whole sectors to be turned, as the kernels take it.
#[derive(Clone, Copy)]
struct Run {
    src: *const u8,
    dst: *mut u8,
    sector_count: usize,
    /// A multiple of the AES block of 16 bytes.
    sector_bytes: usize,
    /// Starts with the IV of the first sector.
    ivs: IvSequence,
}

/// A volume's cipher: key schedule, sector size and IV rule, made once and shared by its queue threads.
///
/// One call for many sectors is much faster than many calls for one each.
pub struct Xts {
    kernel: Kernel,
    sector_size: SectorSize,
    iv: IvNumbering,
}

impl Xts {
    /// Expands `key` into locked memory, with the kernel to prefer on this CPU.
    ///
    /// # Errors
    /// When the IV offset is not a multiple of the sector size, or when no memory can be locked.
    pub fn new(key: &VolumeKey, sector_size: SectorSize, iv: IvNumbering) -> Result<Self, CipherError> {
        Self::with_kernel(key, sector_size, iv, KernelChoice::Auto)
    }

    /// As [`new`](Self::new), with a kernel of choice.
    ///
    /// # Errors
    /// As there; and when this CPU cannot run that kernel.
    pub fn with_kernel(
        key: &VolumeKey,
        sector_size: SectorSize,
        iv: IvNumbering,
        kernel: KernelChoice,
    ) -> Result<Self, CipherError> {
        if !iv.offset_sectors.is_multiple_of(sector_size.units()) {
            return Err(CipherError::IvOffset {
                offset_sectors: iv.offset_sectors,
                sector_bytes: sector_size.bytes(),
            });
        }
        Ok(Self { kernel: Kernel::resolve(key, kernel)?, sector_size, iv })
    }

    /// Encrypts `sector_count` consecutive sectors, the first of which is `first` (in 512-byte units, as
    /// every sector number).
    ///
    /// # Safety
    /// `src` is valid for reads and `dst` for writes of `sector_count` sectors; they are equal or do not
    /// overlap. The bytes behind them may be changed by others meanwhile (guest memory): the result is then
    /// unspecified, nothing worse.
    pub unsafe fn encrypt(&self, first: SectorNumber, src: *const u8, dst: *mut u8, sector_count: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.kernel.crypt(Direction::Encrypt, self.run(first, src, dst, sector_count)) }
    }

    /// Decrypts `sector_count` consecutive sectors, the first of which is `first` (in 512-byte units, as
    /// every sector number).
    ///
    /// # Safety
    /// As for [`encrypt`](Self::encrypt).
    pub unsafe fn decrypt(&self, first: SectorNumber, src: *const u8, dst: *mut u8, sector_count: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.kernel.crypt(Direction::Decrypt, self.run(first, src, dst, sector_count)) }
    }

    /// Encrypts the sectors in `data`, the first of which is `first`.
    ///
    /// # Panics
    /// When `data` is not a whole number of sectors.
    pub fn encrypt_in_place(&self, first: SectorNumber, data: &mut [u8]) {
        self.crypt_in_place(Direction::Encrypt, first, data);
    }

    /// Decrypts the sectors in `data`, the first of which is `first`.
    ///
    /// # Panics
    /// When `data` is not a whole number of sectors.
    pub fn decrypt_in_place(&self, first: SectorNumber, data: &mut [u8]) {
        self.crypt_in_place(Direction::Decrypt, first, data);
    }

    /// Encrypts the sectors in `src`, the first of which is `first`, to `dst`.
    ///
    /// # Panics
    /// When the two are not equally long, or not a whole number of sectors.
    pub fn encrypt_to(&self, first: SectorNumber, src: &[u8], dst: &mut [u8]) {
        self.crypt_to(Direction::Encrypt, first, src, dst);
    }

    /// Decrypts the sectors in `src`, the first of which is `first`, to `dst`.
    ///
    /// # Panics
    /// When the two are not equally long, or not a whole number of sectors.
    pub fn decrypt_to(&self, first: SectorNumber, src: &[u8], dst: &mut [u8]) {
        self.crypt_to(Direction::Decrypt, first, src, dst);
    }

    /// The sector size that this cipher was made for.
    pub fn sector_size(&self) -> SectorSize {
        self.sector_size
    }

    /// The kernel that does the work: never [`KernelChoice::Auto`].
    pub fn kernel(&self) -> KernelChoice {
        self.kernel.choice()
    }

    fn crypt_to(&self, direction: Direction, first: SectorNumber, src: &[u8], dst: &mut [u8]) {
        assert_eq!(src.len(), dst.len(), "as many sectors come out as go in");
        let sector_count = self.whole_sectors(src.len());
        // SAFETY: both are borrowed, hence apart, and exactly `sector_count` sectors long.
        unsafe { self.kernel.crypt(direction, self.run(first, src.as_ptr(), dst.as_mut_ptr(), sector_count)) }
    }

    fn crypt_in_place(&self, direction: Direction, first: SectorNumber, data: &mut [u8]) {
        let sector_count = self.whole_sectors(data.len());
        // One pointer for both sides: a second one taken from `data` would end the first one's right to it.
        let start = data.as_mut_ptr();
        // SAFETY: `data` is exclusively borrowed and exactly `sector_count` sectors long; both sides are
        // equal.
        unsafe { self.kernel.crypt(direction, self.run(first, start, start, sector_count)) }
    }

    fn whole_sectors(&self, len_bytes: usize) -> usize {
        let sector_bytes = self.sector_size.bytes() as usize;
        assert!(len_bytes.is_multiple_of(sector_bytes), "only whole sectors are encrypted");
        len_bytes / sector_bytes
    }

    fn run(&self, first: SectorNumber, src: *const u8, dst: *mut u8, sector_count: usize) -> Run {
        let sector_bytes = self.sector_size.bytes() as usize;
        Run { src, dst, sector_count, sector_bytes, ivs: self.iv.sequence(self.sector_size, first) }
    }
}

impl fmt::Debug for Xts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Xts")
            .field("kernel", &self.kernel())
            .field("sector_size", &self.sector_size)
            .field("iv", &self.iv)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
