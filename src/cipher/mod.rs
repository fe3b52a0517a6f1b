//! AES-XTS (IEEE 1619-2018, NIST SP 800-38E) over whole sectors, many at once.
//!
//! `C_j = E(K1, P_j xor T_j) xor T_j` with `T_0 = E(K2, iv)` and `T_{j+1} = T_j * x` in GF(2^128).
//! XTS gives confidentiality of data at rest; it authenticates nothing.
//!
//! Source and destination are raw pointers because one of them is usually guest memory, to which no Rust
//! reference may exist: the guest may change it at any time. Each source byte is read once and each
//! destination byte written once.

mod portable;

use crate::geometry::{SectorNumber, SectorSize};
use crate::locked::Locked;

/// How a sector's number becomes the 16-byte IV, in dm-crypt's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IvMode {
    /// The low 32 bits of the number, little endian, then zeroes; repeats every 2 TiB of 512-byte sectors.
    Plain,
    /// The number as 64 bits, little endian, then zeroes.
    Plain64,
    /// Eight zero bytes, then the number as 64 bits, big endian.
    Plain64Be,
}

/// Which number each sector gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IvNumbering {
    /// How the number becomes an IV.
    pub mode: IvMode,
    /// Added to every number, in 512-byte units (cryptsetup's `--skip`, dm-crypt's `iv_offset`). A multiple
    /// of the sector size.
    pub offset_sectors: u64,
    /// Count in encryption sectors instead of 512-byte units (dm-crypt's `iv_large_sectors`).
    pub large_sectors: bool,
}

/// The two halves of an AES-XTS key in locked memory: `K1 || K2`, 32 bytes for AES-128 or 64 for AES-256.
pub struct VolumeKey(#[expect(dead_code, reason = "skeleton")] Locked<Vec<u8>>);

/// A volume's cipher: key schedule, sector size and IV rule, made once and shared by its queue threads.
pub struct Xts;

impl Xts {
    /// Encrypts `sector_count` consecutive sectors, the first of which is `first` (in 512-byte units, as
    /// every sector number).
    ///
    /// # Safety
    /// `src` is valid for reads and `dst` for writes of `sector_count` sectors; they are equal or do not overlap.
    /// The bytes behind them may be changed by others meanwhile (guest memory): the result is then
    /// unspecified, nothing worse.
    #[expect(unsafe_code, reason = "skeleton")]
    pub unsafe fn encrypt(&self, _first: SectorNumber, _src: *const u8, _dst: *mut u8, _sector_count: usize) {}

    /// The sector size that this cipher was made for.
    pub fn sector_size(&self) -> SectorSize {
        SectorSize::BYTES_512
    }
}
