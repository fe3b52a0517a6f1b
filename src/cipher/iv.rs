//! From a sector's number to its IV, as dm-crypt does it, and the names of ciphers.

use std::fmt;
use std::str::FromStr;

use super::CipherError;
use crate::geometry::{SectorNumber, SectorSize};

/// For error messages.
pub(super) const SUPPORTED_MODES: &str = "plain64, plain and plain64be";
/// For error messages.
pub(super) const SUPPORTED_SPECS: &str = "aes-xts-plain64, aes-xts-plain and aes-xts-plain64be";

/// What every cipher specification that we know begins with.
const SPEC_PREFIX: &str = "aes-xts-";

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

/// A cipher specification in dm-crypt's notation, such as `aes-xts-plain64`. The key's length, not the
/// name, tells AES-128 from AES-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CipherSpec {
    /// How a sector's number becomes its IV.
    pub iv_mode: IvMode,
}

/// The IVs of consecutive sectors, without end: numbers wrap at 2^64.
#[derive(Clone, Copy, Debug)]
pub(super) struct IvSequence {
    mode: IvMode,
    /// The next sector's position plus the offset, in 512-byte units.
    position: u64,
    /// From one sector to the next, in 512-byte units.
    step: u64,
    /// From the position to the number: not 0 with `large_sectors` only.
    shift: u32,
}

/// Where consecutive sectors lie: sector `i` has the number `(first + i * step) >> shift`.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub(super) struct Positions {
    pub(super) first: u64,
    pub(super) step: u64,
    pub(super) shift: u32,
}

impl IvNumbering {
    /// The IVs of the sector at `first` and all that follow it.
    pub(super) fn sequence(self, sector_size: SectorSize, first: SectorNumber) -> IvSequence {
        let step = sector_size.units();
        IvSequence {
            mode: self.mode,
            position: first.0.wrapping_add(self.offset_sectors),
            step,
            shift: if self.large_sectors { step.trailing_zeros() } else { 0 },
        }
    }
}

impl IvSequence {
    /// The next sector's position and its distance to the one after it; the sequence goes on `count` sectors later.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn skip(&mut self, count: u64) -> Positions {
        let positions = Positions { first: self.position, step: self.step, shift: self.shift };
        self.position = self.position.wrapping_add(self.step.wrapping_mul(count));
        positions
    }

    /// For each byte of an IV, which byte of the sector's number it is, little endian; none if the top bit is set.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn layout(&self) -> &'static [u8; 16] {
        const NONE: u8 = 0x80;
        match self.mode {
            IvMode::Plain => {
                &[0, 1, 2, 3, NONE, NONE, NONE, NONE, NONE, NONE, NONE, NONE, NONE, NONE, NONE, NONE]
            }
            IvMode::Plain64 => &[0, 1, 2, 3, 4, 5, 6, 7, NONE, NONE, NONE, NONE, NONE, NONE, NONE, NONE],
            IvMode::Plain64Be => &[NONE, NONE, NONE, NONE, NONE, NONE, NONE, NONE, 7, 6, 5, 4, 3, 2, 1, 0],
        }
    }

    /// The next sector's IV.
    pub(super) fn next_iv(&mut self) -> [u8; 16] {
        let number = self.position >> self.shift;
        self.position = self.position.wrapping_add(self.step);
        match self.mode {
            IvMode::Plain => u128::from(number & u64::from(u32::MAX)).to_le_bytes(),
            IvMode::Plain64 => u128::from(number).to_le_bytes(),
            IvMode::Plain64Be => u128::from(number).to_be_bytes(),
        }
    }
}

impl fmt::Display for IvMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Plain => "plain",
            Self::Plain64 => "plain64",
            Self::Plain64Be => "plain64be",
        })
    }
}

impl FromStr for IvMode {
    type Err = CipherError;
    fn from_str(name: &str) -> Result<Self, CipherError> {
        match name {
            "plain" => Ok(Self::Plain),
            "plain64" => Ok(Self::Plain64),
            "plain64be" => Ok(Self::Plain64Be),
            _ => Err(CipherError::UnknownIvMode(name.to_owned())),
        }
    }
}

impl fmt::Display for CipherSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SPEC_PREFIX}{}", self.iv_mode)
    }
}

impl FromStr for CipherSpec {
    type Err = CipherError;
    fn from_str(spec: &str) -> Result<Self, CipherError> {
        let iv_mode = spec.strip_prefix(SPEC_PREFIX).and_then(|mode| mode.parse().ok());
        iv_mode.map(|iv_mode| Self { iv_mode }).ok_or_else(|| CipherError::UnknownSpec(spec.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBER: u64 = 0x1122_3344_5566_7788;

    fn ivs(numbering: IvNumbering, sector_size: SectorSize, first: u64) -> [[u8; 16]; 3] {
        let mut sequence = numbering.sequence(sector_size, SectorNumber(first));
        std::array::from_fn(|_| sequence.next_iv())
    }

    fn numbering(mode: IvMode) -> IvNumbering {
        IvNumbering { mode, offset_sectors: 0, large_sectors: false }
    }

    #[test]
    fn each_mode_lays_the_number_out_as_dm_crypt_does() {
        let [plain, ..] = ivs(numbering(IvMode::Plain), SectorSize::BYTES_512, NUMBER);
        assert_eq!(plain, [0x88, 0x77, 0x66, 0x55, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let [plain64, ..] = ivs(numbering(IvMode::Plain64), SectorSize::BYTES_512, NUMBER);
        assert_eq!(plain64, [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0, 0, 0, 0, 0, 0, 0, 0]);
        let [plain64be, ..] = ivs(numbering(IvMode::Plain64Be), SectorSize::BYTES_512, NUMBER);
        assert_eq!(plain64be, [0, 0, 0, 0, 0, 0, 0, 0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88]);
    }

    /// Numbers of three consecutive sectors.
    fn numbers(large_sectors: bool, offset_sectors: u64, sector_bytes: u32, first: u64) -> [u64; 3] {
        let numbering = IvNumbering { mode: IvMode::Plain64, offset_sectors, large_sectors };
        let sector_size = SectorSize::new(sector_bytes).unwrap();
        ivs(numbering, sector_size, first).map(|iv| u64::from_le_bytes(iv[..8].try_into().unwrap()))
    }

    #[test]
    fn numbers_count_512_byte_units_unless_sectors_are_large() {
        assert_eq!(numbers(false, 0, 512, 5), [5, 6, 7]);
        assert_eq!(numbers(false, 0, 4096, 16), [16, 24, 32]);
        assert_eq!(numbers(false, 8, 4096, 16), [24, 32, 40]);
        assert_eq!(numbers(true, 0, 512, 5), [5, 6, 7]);
        assert_eq!(numbers(true, 0, 1024, 16), [8, 9, 10]);
        assert_eq!(numbers(true, 8, 4096, 16), [3, 4, 5]);
    }

    #[test]
    fn numbers_wrap_at_2_to_the_64() {
        assert_eq!(numbers(false, u64::MAX, 512, 0), [u64::MAX, 0, 1]);
        assert_eq!(numbers(false, u64::MAX - 7, 4096, 8), [0, 8, 16]);
        assert_eq!(numbers(true, u64::MAX - 7, 4096, 0), [u64::MAX >> 3, 0, 1]);
    }

    #[test]
    fn plain_wraps_at_2_to_the_32() {
        let [last, first, ..] =
            ivs(numbering(IvMode::Plain), SectorSize::BYTES_512, u64::from(u32::MAX) | 7 << 32);
        assert_eq!(last[..5], [0xff, 0xff, 0xff, 0xff, 0]);
        assert_eq!(first, [0; 16]);
    }

    #[test]
    fn specs_are_read_and_written_in_dm_crypts_notation() {
        for (name, iv_mode) in [
            ("aes-xts-plain64", IvMode::Plain64),
            ("aes-xts-plain", IvMode::Plain),
            ("aes-xts-plain64be", IvMode::Plain64Be),
        ] {
            assert_eq!(name.parse::<CipherSpec>().unwrap(), CipherSpec { iv_mode });
            assert_eq!(CipherSpec { iv_mode }.to_string(), name);
            assert_eq!(iv_mode.to_string().parse::<IvMode>().unwrap(), iv_mode);
        }
    }

    #[test]
    fn an_unknown_spec_is_refused_with_the_list_of_known_ones() {
        for spec in
            ["", "aes", "aes-cbc-essiv:sha256", "aes-xts-plain65", "AES-XTS-plain64", "aes-xts-plain64 "]
        {
            let error = spec.parse::<CipherSpec>().unwrap_err();
            assert_eq!(
                error.to_string(),
                format!(
                    "unknown cipher `{spec}`: supported are aes-xts-plain64, aes-xts-plain and aes-xts-plain64be"
                )
            );
        }
        let error = "essiv".parse::<IvMode>().unwrap_err();
        assert_eq!(error.to_string(), "unknown IV mode `essiv`: supported are plain64, plain and plain64be");
    }
}
