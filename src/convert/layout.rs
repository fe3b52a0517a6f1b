//! What lies where in the destination: header, payload, and the cipher between.

use std::fs::File;
use std::path::PathBuf;

use super::error::{ConvertError, End};
use super::source::{Backing, VolumeSource, cipher_of};
use crate::cipher::{EqualHalves, IvMode, Xts};
use crate::format::luks::{Extent, Header, NewHeader, Placement, Policy, SlotKdf, Version};
use crate::format::plain::{KeySize, PlainFormat};
use crate::format::{Encryption, FormatError, Unlocked, VolumeFormat};
use crate::geometry::{SECTOR_BYTES, SectorSize};
use crate::keys::Secret;

/// What the destination is to be.
#[derive(Debug)]
pub enum DestinationFormat {
    /// The disk's content as it is.
    Raw,
    /// dm-crypt's plain mode.
    Plain(PlainFormat),
    /// LUKS1 or LUKS2.
    Luks(LuksDestination),
}

/// A LUKS volume to be made.
#[derive(Debug)]
pub struct LuksDestination {
    /// LUKS1 or LUKS2.
    pub version: Version,
    /// `plain64` or `plain`.
    pub iv_mode: IvMode,
    /// Length of the volume key.
    pub key_size: KeySize,
    /// The encryption sector size.
    pub sector_size: SectorSize,
    /// LUKS2: a label.
    pub label: Option<String>,
    /// The file with the header, if that is not to be on the volume itself.
    pub header_path: Option<PathBuf>,
}

/// A destination that is settled, and not there yet.
#[derive(Debug)]
pub(super) struct Layout {
    /// Where the payload begins.
    pub(super) payload_offset_bytes: u64,
    /// Size of the disk: whole sectors.
    pub(super) capacity_bytes: u64,
    /// What the payload is encrypted with, if it is.
    pub(super) xts: Option<Xts>,
    /// The header, if there is one.
    pub(super) header: Option<Header>,
    /// Where it goes, if not on the volume itself.
    pub(super) header_path: Option<PathBuf>,
}

impl DestinationFormat {
    /// The same, with sectors of `size` where sectors are encrypted.
    pub(super) fn with_sector_size(&mut self, size: SectorSize) {
        match self {
            Self::Raw => {}
            Self::Plain(plain) => plain.sector_size = size,
            // LUKS1 knows no other.
            Self::Luks(luks) if luks.version == Version::Luks1 => luks.sector_size = SectorSize::BYTES_512,
            Self::Luks(luks) => luks.sector_size = size,
        }
    }

    fn sector_bytes(&self) -> u64 {
        match self {
            Self::Raw => SECTOR_BYTES,
            Self::Plain(plain) => plain.sector_size.bytes().into(),
            Self::Luks(luks) => luks.sector_size.bytes().into(),
        }
    }
}

impl Layout {
    /// Settles where the content of a disk of at least `disk_bytes` goes, and with which key. A volume key for LUKS
    /// is drawn, and `secret` becomes the passphrase of its only slot.
    pub(super) fn new(
        format: &DestinationFormat,
        disk_bytes: u64,
        secret: Option<&Secret>,
    ) -> Result<Self, ConvertError> {
        let capacity_bytes = whole_sectors(disk_bytes, format.sector_bytes())?;
        match format {
            DestinationFormat::Raw => Ok(Self {
                payload_offset_bytes: 0,
                capacity_bytes,
                xts: None,
                header: None,
                header_path: None,
            }),
            DestinationFormat::Plain(plain) => Self::plain(plain, capacity_bytes, secret),
            DestinationFormat::Luks(luks) => luks.layout(capacity_bytes, required(secret)?),
        }
    }

    fn plain(
        format: &PlainFormat,
        capacity_bytes: u64,
        secret: Option<&Secret>,
    ) -> Result<Self, ConvertError> {
        let end = End::Destination;
        let volume_bytes = format
            .offset_sectors
            .checked_mul(SECTOR_BYTES)
            .and_then(|offset_bytes| offset_bytes.checked_add(capacity_bytes))
            .ok_or(ConvertError::SizeTooLarge)?;
        // The format reads nothing from a volume.
        let nothing = File::open("/dev/null").map_err(|source| ConvertError::Descriptors { source })?;
        let unlocked = format
            .unlock(&nothing, volume_bytes, copied(secret)?)
            .map_err(|source| ConvertError::Format { end, source })?;
        Ok(Self {
            payload_offset_bytes: unlocked.geometry.payload_offset_bytes,
            capacity_bytes,
            xts: cipher_of(&unlocked, end)?,
            header: None,
            header_path: None,
        })
    }

    /// Size of the volume.
    pub(super) fn end_bytes(&self) -> u64 {
        self.payload_offset_bytes.saturating_add(self.capacity_bytes)
    }

    /// Reads the finished payload on `volume` as somebody would who has nothing but header and key.
    pub(super) fn read_back(
        &self,
        format: &DestinationFormat,
        volume: Backing,
        secret: Option<&Secret>,
    ) -> Result<VolumeSource, ConvertError> {
        // A device may go on behind the payload, and need not end with a whole sector.
        let volume = Backing { size_bytes: self.end_bytes(), ..volume };
        match (format, &self.header) {
            (DestinationFormat::Plain(plain), _) => {
                VolumeSource::unlock(volume, plain, copied(secret)?, End::Destination)
            }
            (_, Some(header)) => {
                let snapshot = header.snapshot();
                let header = Header::read(snapshot.memory(), snapshot.area_bytes())
                    .map_err(|error| ConvertError::Header { source: error.into() })?;
                let unlocked = self.unlock(&header, required(secret)?)?;
                VolumeSource::of_unlocked(volume, &unlocked, End::Destination)
            }
            (_, None) => Ok(VolumeSource::unencrypted(volume, 0, self.capacity_bytes)),
        }
    }

    fn unlock(&self, header: &Header, secret: &Secret) -> Result<Unlocked, ConvertError> {
        let placement = Placement { volume_bytes: self.end_bytes(), detached: self.header_path.is_some() };
        let (key, approved) = header
            .unlock(&Policy::default(), placement, secret, EqualHalves::Refuse)
            .map_err(|error| ConvertError::Header { source: error.into() })?;
        Ok(Unlocked {
            geometry: approved.geometry,
            encryption: Some(Encryption { key, iv: approved.iv }),
            extent: approved.extent,
        })
    }
}

impl LuksDestination {
    fn layout(&self, capacity_bytes: u64, secret: &Secret) -> Result<Layout, ConvertError> {
        let new = NewHeader {
            version: self.version,
            iv_mode: self.iv_mode,
            key_size: self.key_size,
            sector_size: self.sector_size,
            label: self.label.clone(),
            subsystem: None,
            uuid: None,
            kdf: SlotKdf::suited_to(secret, self.version),
            extent: match self.header_path {
                Some(_) => Extent::Detached(capacity_bytes),
                None => Extent::Payload(capacity_bytes),
            },
        };
        let made = new.make(secret).map_err(|source| ConvertError::Header { source })?;
        let mut layout = Layout {
            payload_offset_bytes: made.payload_offset_bytes,
            capacity_bytes,
            xts: None,
            header: None,
            header_path: self.header_path.clone(),
        };
        let unlocked = layout.unlock(&made.header, secret)?;
        layout.xts = cipher_of(&unlocked, End::Destination)?;
        layout.header = Some(made.header);
        Ok(layout)
    }
}

fn required(secret: Option<&Secret>) -> Result<&Secret, ConvertError> {
    let source = FormatError::SecretMissing;
    secret.ok_or(ConvertError::Format { end: End::Destination, source })
}

/// A second one: a key from a descriptor can be fetched once only.
fn copied(secret: Option<&Secret>) -> Result<Option<Secret>, ConvertError> {
    Ok(secret.map(|secret| Secret::read_from(secret.expose())).transpose()?)
}

/// `disk_bytes` and as many zeroes as fill the last sector.
fn whole_sectors(disk_bytes: u64, sector_bytes: u64) -> Result<u64, ConvertError> {
    let rounded = disk_bytes.checked_next_multiple_of(sector_bytes);
    // File offsets are signed.
    rounded.filter(|bytes| i64::try_from(*bytes).is_ok()).ok_or(ConvertError::SizeTooLarge)
}
