//! No format: the payload lies on the volume as the guest wrote it. Behind a named gate, for tests,
//! measurements and data that need no protection.

use std::fs::File;

use super::{FormatError, PayloadExtent, Unlocked, VolumeFormat, payload_geometry};
use crate::geometry::SectorSize;
use crate::keys::Secret;

/// A volume that is not encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnencryptedFormat {
    /// The guest's block size.
    pub sector_size: SectorSize,
    /// Begin of the payload, in 512-byte sectors.
    pub offset_sectors: u64,
}

impl VolumeFormat for UnencryptedFormat {
    fn unlock(&self, _: &File, volume_bytes: u64, secret: Option<Secret>) -> Result<Unlocked, FormatError> {
        if secret.is_some() {
            return Err(FormatError::SecretUnused);
        }
        let geometry = payload_geometry(volume_bytes, self.offset_sectors, self.sector_size)?;
        Ok(Unlocked { geometry, encryption: None, extent: PayloadExtent::WholeVolume })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::Geometry;

    #[test]
    fn passes_through_and_takes_no_key() {
        let format = UnencryptedFormat { sector_size: SectorSize::BYTES_512, offset_sectors: 2 };
        let volume = tempfile::tempfile().unwrap();
        let unlocked = format.unlock(&volume, 10_240, None).unwrap();
        let expected =
            Geometry { sector_size: SectorSize::BYTES_512, payload_offset_bytes: 1024, capacity_bytes: 9216 };
        assert_eq!(unlocked.geometry, expected);
        assert!(unlocked.encryption.is_none());
        let secret = Secret::read_from(&b"k"[..]).unwrap();
        assert!(matches!(format.unlock(&volume, 10_240, Some(secret)), Err(FormatError::SecretUnused)));
    }
}
