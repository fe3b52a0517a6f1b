//! LUKS1 and LUKS2: a header that holds the volume key, encrypted with passphrases.
//!
//! All reading goes through libcryptsetup, which knows every KDF, slot and digest; what it is allowed to do is decided
//! here first. The order is always the same, because whoever controls the storage writes the header:
//!
//! 1. [`HeaderSnapshot`]: the header area is copied once, into a sealed memfd. Nothing else is read from the volume.
//! 2. [`Description`]: what the copy says, after libcryptsetup found it valid.
//! 3. [`Policy::verdict`]: whether that is served. Ciphers and all else are on an allow-list, costs are capped.
//! 4. [`Header::unlock`]: the passphrase is tried, and the volume key checked against the header's digest.
//!
//! IVs count 512-byte units from the beginning of the payload, also where sectors are larger; the payload begins where
//! the header says, which need not be a multiple of anything but 512 bytes (QEMU: sector 4040).

pub mod backup;
mod create;
mod description;
mod display;
mod edit_error;
mod editor;
mod error;
mod expectations;
mod header_file;
mod identity;
mod image;
mod kdf_limits;
mod kdf_turn;
pub mod library;
mod metadata;
mod on_disk;
mod policy;
mod refusal;
mod slot_kdf;
mod snapshot;
mod transfer;
mod unlock;

use std::fs::File;
use std::path::PathBuf;

use tracing::warn;

pub use create::{Extent, HEADER_ROOM_BYTES, MadeHeader, NewHeader};
pub use description::{Argon2, Description, Kdf, KeyDigest, Priority, Segment, Slot, Token};
pub use edit_error::EditError;
pub use editor::{HeaderEditor, Replacement};
pub use error::LuksError;
pub use expectations::{Expectations, ExpectedCipher};
pub use identity::{Luks2Identity, identify};
pub use kdf_limits::KdfLimits;
pub use on_disk::{CopyState, Version};
pub use policy::{Approved, Placement, Policy};
pub use refusal::{Refusal, Refusals};
pub use slot_kdf::SlotKdf;
pub use snapshot::HeaderSnapshot;
pub use unlock::Header;

use header_file::HeaderFile;

use super::{Encryption, FormatError, Unlocked, VolumeFormat, warn_of_size};
use crate::cipher::EqualHalves;
use crate::keys::Secret;

/// A volume with a LUKS header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LuksFormat {
    /// The file or device with the header, if that is not on the volume itself.
    pub header: Option<PathBuf>,
    /// What is demanded of the header.
    pub policy: Policy,
    /// Whether a volume key is accepted whose halves are equal.
    pub equal_halves: EqualHalves,
}

impl LuksFormat {
    /// Reads the header of `volume` (of `volume_bytes`), or the detached one, and says where it lies.
    ///
    /// # Errors
    /// See [`LuksError`].
    pub fn read_header(&self, volume: &File, volume_bytes: u64) -> Result<(Header, Placement), LuksError> {
        let attached = Placement { volume_bytes, detached: false };
        let Some(path) = &self.header else { return Ok((Header::read(volume, volume_bytes)?, attached)) };
        let HeaderFile { file, size_bytes, detached } = HeaderFile::open(path, volume)?;
        Ok((Header::read(&file, size_bytes)?, Placement { detached, ..attached }))
    }
}

impl VolumeFormat for LuksFormat {
    fn unlock(
        &self,
        volume: &File,
        volume_bytes: u64,
        secret: Option<Secret>,
    ) -> Result<Unlocked, FormatError> {
        if volume_bytes == 0 {
            return Err(FormatError::Empty);
        }
        let (header, placement) = self.read_header(volume, volume_bytes)?;
        if let Some(copies) = header.description().copies
            && copies != [CopyState::Good; 2]
        {
            warn!(?copies, "one copy of the LUKS2 header is damaged or old: `cryptsetup repair` mends it");
        }
        let passphrase = secret.ok_or(FormatError::SecretMissing)?;
        let (key, approved) = header.unlock(&self.policy, placement, &passphrase, self.equal_halves)?;
        warn_of_size(&approved.geometry, approved.iv);
        let encryption = Some(Encryption { key, iv: approved.iv });
        Ok(Unlocked { geometry: approved.geometry, encryption, extent: approved.extent })
    }
}

#[cfg(test)]
mod tests;
