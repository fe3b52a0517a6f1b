//! A new disk: first its key, then what the key is for.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::association::{Association, DiskFormat};
use super::disk::{self, Found, SUBSYSTEM};
use super::error::EphemeralError;
use super::keys::DiskKeys;
use super::lvm;
use super::place::{LvName, Place};
use crate::cipher::{CipherSpec, EqualHalves, IvMode};
use crate::format::VolumeFormat;
use crate::format::luks::{
    Extent, HEADER_ROOM_BYTES, LuksFormat, MadeHeader, NewHeader, Policy, SlotKdf, Version, backup,
};
use crate::format::new_file::NewFile;
use crate::format::plain::{KeySize, PlainFormat, PlainSecret};
use crate::geometry::{Geometry, SectorSize};
use crate::keys::{KeyId, KeyReference};
use crate::server::config::VolumeConfig;
use crate::server::volume_file::{open_beside_others, open_volume, smallest_sector};

/// A disk that is wanted.
#[derive(Clone, Debug)]
pub struct NewDisk {
    /// Where it is to lie; nothing may be there.
    pub place: Place,
    /// What the guest is to see, or a little more where LVM rounds up.
    pub size_bytes: u64,
    /// What is to lie on it.
    pub kind: NewFormat,
    /// The encryption sector size; none for the smallest that the storage can write.
    pub sector_size: Option<SectorSize>,
}

/// What can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewFormat {
    /// LUKS2, with a volume key of its own that the disk's key opens.
    Luks2,
    /// Without a header: the disk's key encrypts.
    Plain,
}

/// A disk that was made.
#[derive(Debug)]
pub struct CreatedDisk {
    /// What it is.
    pub association: Association,
    /// The file or device.
    pub path: PathBuf,
    /// Its key, as `serve` takes it.
    pub key: KeyReference,
    /// What the guest is going to see.
    pub geometry: Geometry,
}

/// Makes a disk with a key of its own, which is in no other place than `keys`.
///
/// Interrupted anywhere, it leaves at most a key without a disk, or a logical volume that is not finished, and
/// [`list`](super::list) names both.
///
/// # Errors
/// See [`EphemeralError`]. What was made by then is taken back, but for [`EphemeralError::NotUndone`].
pub fn create(keys: &DiskKeys, wanted: &NewDisk) -> Result<CreatedDisk, EphemeralError> {
    match &wanted.place {
        Place::File(path) => create_file(keys, wanted, path),
        Place::Lvm(name) => create_lvm(keys, wanted, name),
    }
}

fn create_file(keys: &DiskKeys, wanted: &NewDisk, path: &Path) -> Result<CreatedDisk, EphemeralError> {
    let new = NewFile::create(path).map_err(|source| EphemeralError::new_file(path.to_owned(), source))?;
    let sector_size = wanted.sector_size(smallest_sector(new.file()))?;
    if !wanted.size_bytes.is_multiple_of(sector_size.bytes().into()) {
        return Err(EphemeralError::Size {
            size_bytes: wanted.size_bytes,
            sector_bytes: sector_size.bytes(),
        });
    }
    let association = wanted.association(sector_size);
    let failed = |source| EphemeralError::File { what: "write", path: path.to_owned(), source };
    if wanted.kind == NewFormat::Plain && !disk::mark_plain(new.file(), association.uuid).map_err(failed)? {
        return Err(EphemeralError::NoAttributes { path: path.to_owned() });
    }
    let making = Making::begin(keys, association)?;
    let fill = || {
        let payload_offset_bytes = match wanted.kind {
            NewFormat::Plain => 0,
            NewFormat::Luks2 => {
                let made = making.make_header(sector_size, Extent::Payload(wanted.size_bytes))?;
                new.file().set_len(made.payload_offset_bytes).map_err(failed)?;
                backup::put(new.file(), &made.header, made.payload_offset_bytes)?;
                made.payload_offset_bytes
            }
        };
        new.file().set_len(payload_offset_bytes + wanted.size_bytes).map_err(failed)?;
        new.publish().map_err(|source| EphemeralError::new_file(path.to_owned(), source))?;
        Ok(path.to_owned())
    };
    let filled = fill();
    making.finish(filled)
}

fn create_lvm(keys: &DiskKeys, wanted: &NewDisk, name: &LvName) -> Result<CreatedDisk, EphemeralError> {
    if lvm::volume(name)?.is_some() {
        return Err(EphemeralError::Exists { place: wanted.place.clone() });
    }
    // The record of a plain disk's key tells its sectors, and is made before there is a device to ask.
    let asked = match wanted.kind {
        NewFormat::Plain => wanted.sector_size.or(Some(SectorSize::BYTES_512)),
        NewFormat::Luks2 => wanted.sector_size,
    };
    let wanted = &NewDisk { sector_size: asked, ..wanted.clone() };
    let making = Making::begin(keys, wanted.association(asked.unwrap_or(SectorSize::BYTES_512)))?;
    let fill = || {
        let room_bytes = match wanted.kind {
            NewFormat::Plain => 0,
            NewFormat::Luks2 => HEADER_ROOM_BYTES,
        };
        let path = lvm::create(name, wanted.size_bytes + room_bytes, making.association.uuid)?.path;
        let device = open_volume(&VolumeConfig { path: path.clone(), read_only: false, direct: false })?;
        let sector_size = wanted.sector_size(smallest_sector(&device.file))?;
        if wanted.kind == NewFormat::Luks2 {
            let made = making.make_header(sector_size, Extent::Volume(device.size_bytes))?;
            backup::put(&device.file, &made.header, made.payload_offset_bytes)?;
        }
        Ok(path)
    };
    let filled = fill();
    making.finish(filled)
}

impl NewDisk {
    /// The encryption sector size, where storage can write no less than `least`.
    fn sector_size(&self, least: SectorSize) -> Result<SectorSize, EphemeralError> {
        match self.sector_size {
            Some(asked) if asked.bytes() < least.bytes() => {
                Err(EphemeralError::SectorsTooSmall { place: self.place.clone(), least_bytes: least.bytes() })
            }
            asked => Ok(asked.unwrap_or(least)),
        }
    }

    /// The same disk with a new UUID.
    fn association(&self, sector_size: SectorSize) -> Association {
        let format = match self.kind {
            NewFormat::Luks2 => DiskFormat::Luks2,
            NewFormat::Plain => DiskFormat::Plain(sector_size),
        };
        Association { format, uuid: Uuid::new_v4(), place: self.place.clone() }
    }
}

/// A disk that has its key and is not finished.
struct Making<'a> {
    keys: &'a DiskKeys,
    association: Association,
    id: KeyId,
}

impl<'a> Making<'a> {
    fn begin(keys: &'a DiskKeys, association: Association) -> Result<Self, EphemeralError> {
        let id = keys.create(&association)?;
        Ok(Self { keys, association, id })
    }

    /// A header that the key opens, as it would be served.
    fn make_header(&self, sector_size: SectorSize, extent: Extent) -> Result<MadeHeader, EphemeralError> {
        let header = NewHeader {
            version: Version::Luks2,
            iv_mode: IvMode::Plain64,
            key_size: KeySize::Bits512,
            sector_size,
            label: None,
            subsystem: Some(SUBSYSTEM.to_owned()),
            uuid: Some(self.association.uuid),
            kdf: SlotKdf::RANDOM_KEY,
            extent,
        };
        Ok(header.make(&self.keys.fetch(&self.id)?)?)
    }

    /// Opens what was made as `serve` would, with the key as the manager gives it out. What does not open is taken back.
    fn finish(self, filled: Result<PathBuf, EphemeralError>) -> Result<CreatedDisk, EphemeralError> {
        let opened = filled.and_then(|path| Ok((self.open(&path)?, path)));
        match opened {
            Ok((geometry, path)) => {
                let key = self.keys.reference(&self.id);
                Ok(CreatedDisk { association: self.association, path, key, geometry })
            }
            Err(error) => Err(self.undo(error)),
        }
    }

    fn open(&self, path: &Path) -> Result<Geometry, EphemeralError> {
        let volume = open_beside_others(path, false)?;
        let key = self.keys.fetch(&self.id)?;
        let format = volume_format(self.association.format);
        let unlocked = format.unlock(&volume.file, volume.size_bytes, Some(key));
        Ok(unlocked.map_err(EphemeralError::Format)?.geometry)
    }

    /// The key goes first here too.
    fn undo(self, error: EphemeralError) -> EphemeralError {
        let take_back = || {
            self.keys.destroy(&self.id)?;
            match disk::look(&self.association.place)? {
                Found::Disk(disk) if disk.uuid == self.association.uuid => disk.claim()?.remove(),
                _ => Ok(()),
            }
        };
        match take_back() {
            Ok(()) => error,
            Err(_) => EphemeralError::NotUndone {
                uuid: self.association.uuid,
                key: self.keys.reference(&self.id),
                source: Box::new(error),
            },
        }
    }
}

/// What `serve` is told of a disk by [`CreatedDisk`].
fn volume_format(format: DiskFormat) -> Box<dyn VolumeFormat> {
    match format {
        DiskFormat::Luks2 => Box::new(LuksFormat {
            header: None,
            policy: Policy::default(),
            equal_halves: EqualHalves::Refuse,
        }),
        DiskFormat::Plain(sector_size) => Box::new(PlainFormat {
            cipher: CipherSpec { iv_mode: IvMode::Plain64 },
            key_size: KeySize::Bits512,
            secret: PlainSecret::Key,
            sector_size,
            iv_large_sectors: false,
            offset_sectors: 0,
            skip_sectors: 0,
            equal_halves: EqualHalves::Refuse,
        }),
    }
}
