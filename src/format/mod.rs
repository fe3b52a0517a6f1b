//! What lies on a volume: where its payload is and how that is encrypted. Start-up only; the data path never
//! hears of formats.
//!
//! [`VolumeFormat`] is one of the project's three joints. The format is always declared by the operator,
//! never probed from bytes that a guest can write.

pub mod header_lock;
pub mod luks;
pub mod new_file;
pub mod passphrase;
pub mod plain;
pub mod signature;
pub mod unencrypted;

use std::fs::File;

use tracing::warn;

use crate::cipher::{CipherError, IvMode, IvNumbering, VolumeKey};
use crate::geometry::{Geometry, SECTOR_BYTES, SectorSize};
use crate::keys::Secret;

/// Most bytes that IEEE 1619 advises to encrypt under one key: 2^36 cipher blocks of 16 bytes.
const ADVISED_BYTES_PER_KEY: u64 = 1 << 40;

/// 512-byte units after which the `plain` IV, 32 bits wide, begins again.
const PLAIN_IV_PERIOD_SECTORS: u64 = 1 << 32;

/// A volume made ready for the data path.
#[derive(Debug)]
pub struct Unlocked {
    /// Where the payload lies.
    pub geometry: Geometry,
    /// How it is encrypted; `None` for a volume that is not.
    pub encryption: Option<Encryption>,
    /// How far it reaches when the volume grows.
    pub extent: PayloadExtent,
}

/// How far a payload reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadExtent {
    /// To the end of the volume, wherever that is.
    WholeVolume,
    /// As far as the header says.
    Fixed,
}

/// The key of an unlocked volume and what its cipher needs beside it.
#[derive(Debug)]
pub struct Encryption {
    /// Both halves of the XTS key.
    pub key: VolumeKey,
    /// Which IV each sector gets.
    pub iv: IvNumbering,
}

/// Reads a volume's layout and turns the secret it is locked with into its key.
pub trait VolumeFormat {
    /// Unlocks `volume`, whose size is `volume_bytes`. For `plain` the secret is the volume key itself, or a
    /// passphrase that is hashed to one; for formats with a header it is a passphrase.
    ///
    /// # Errors
    /// See [`FormatError`]; none of them names secret bytes.
    fn unlock(
        &self,
        volume: &File,
        volume_bytes: u64,
        secret: Option<Secret>,
    ) -> Result<Unlocked, FormatError>;
}

/// Why a volume cannot be served as the declared format.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// There is nothing to serve.
    #[error("the volume is empty")]
    Empty,
    /// `--offset` leaves nothing of the volume.
    #[error(
        "the payload would begin at sector {offset_sectors} (--offset), but the volume ends at byte {volume_bytes}"
    )]
    OffsetBeyondEnd {
        /// Begin of the payload, in 512-byte sectors.
        offset_sectors: u64,
        /// Size of the volume.
        volume_bytes: u64,
    },
    /// The payload does not divide into sectors.
    #[error(
        "the payload of {payload_bytes} bytes is not a multiple of the sector size, {sector_bytes} bytes; \
         extend the volume by {missing_bytes} bytes or correct --sector-size or --offset"
    )]
    PartialSector {
        /// From the offset to the end of the volume.
        payload_bytes: u64,
        /// The encryption sector size.
        sector_bytes: u32,
        /// What the last sector lacks.
        missing_bytes: u64,
    },
    /// IVs would begin inside an encryption sector.
    #[error(
        "--skip {skip_sectors} is not a multiple of the {units} 512-byte units in a sector of {sector_bytes} bytes"
    )]
    SkipInsideSector {
        /// What the first sector's number is to be.
        skip_sectors: u64,
        /// 512-byte units in one encryption sector.
        units: u64,
        /// The encryption sector size.
        sector_bytes: u32,
    },
    /// The format needs a secret and got none.
    #[error("the volume is encrypted: name its key with --key")]
    SecretMissing,
    /// The format has no use for a secret and got one.
    #[error("the volume is not encrypted (--format none), so --key has no meaning")]
    SecretUnused,
    /// Not as many bytes as the cipher takes.
    #[error("the key has {actual_bytes} bytes, --key-size {} needs {expected_bytes}{hint}", .expected_bytes * 8)]
    KeyLength {
        /// What was fetched.
        actual_bytes: usize,
        /// What is needed.
        expected_bytes: usize,
        /// What the difference suggests; empty or beginning with a separator.
        hint: &'static str,
    },
    /// It has the right length, but is most likely something else.
    #[error(
        "the key is {bytes} hexadecimal digits, not random bytes: if it is a passphrase name its hash with \
         --plain-hash (ripemd160, sha256, ...), if it stands for a key say so (file+hex:PATH), and only if it is \
         the key itself pass --plain-hash none"
    )]
    KeyIsText {
        /// How many digits.
        bytes: usize,
    },
    /// The right length, but not fit to be a key.
    #[error("the key cannot be used")]
    UnfitKey(#[from] CipherError),
    /// The LUKS header, or a passphrase for it.
    #[error(transparent)]
    Luks(#[from] luks::LuksError),
}

/// Cuts the volume from `offset_sectors` (of 512 bytes) to its end into whole sectors.
fn payload_geometry(
    volume_bytes: u64,
    offset_sectors: u64,
    sector_size: SectorSize,
) -> Result<Geometry, FormatError> {
    if volume_bytes == 0 {
        return Err(FormatError::Empty);
    }
    let beyond_end = FormatError::OffsetBeyondEnd { offset_sectors, volume_bytes };
    let Some(payload_offset_bytes) = offset_sectors.checked_mul(SECTOR_BYTES) else { return Err(beyond_end) };
    let capacity_bytes = match volume_bytes.checked_sub(payload_offset_bytes) {
        None | Some(0) => return Err(beyond_end),
        Some(capacity_bytes) => capacity_bytes,
    };
    let sector_bytes = sector_size.bytes();
    let beyond_last_sector = capacity_bytes % u64::from(sector_bytes);
    if beyond_last_sector != 0 {
        let missing_bytes = u64::from(sector_bytes) - beyond_last_sector;
        return Err(FormatError::PartialSector {
            payload_bytes: capacity_bytes,
            sector_bytes,
            missing_bytes,
        });
    }
    Ok(Geometry { sector_size, payload_offset_bytes, capacity_bytes })
}

/// The geometry of a payload that reaches to the end of its volume, which has `volume_bytes` now.
///
/// # Errors
/// When the volume ends before the payload begins, or inside a sector.
pub fn geometry_in(geometry: &Geometry, volume_bytes: u64) -> Result<Geometry, FormatError> {
    payload_geometry(volume_bytes, geometry.payload_offset_bytes / SECTOR_BYTES, geometry.sector_size)
}

/// Warns of a volume that is larger than its key or its IVs are good for.
fn warn_of_size(geometry: &Geometry, iv: IvNumbering) {
    if geometry.capacity_bytes > ADVISED_BYTES_PER_KEY {
        warn!(
            capacity_bytes = geometry.capacity_bytes,
            advised_bytes = ADVISED_BYTES_PER_KEY,
            "the volume holds more than is advised to encrypt under one AES-XTS key"
        );
    }
    let end_sectors = iv.offset_sectors.saturating_add(geometry.capacity_sectors());
    if iv.mode == IvMode::Plain && end_sectors > PLAIN_IV_PERIOD_SECTORS {
        warn!("IVs of aes-xts-plain repeat after 2 TiB: prefer aes-xts-plain64 for a volume of this size");
    }
}
