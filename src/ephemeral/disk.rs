//! Disks that are there: recognised by the mark that each carries, and removed.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{XattrFlags, fgetxattr, fsetxattr};
use rustix::io::Errno;
use uuid::Uuid;

use super::association::DiskFormat;
use super::error::EphemeralError;
use super::lvm::{self, LogicalVolume};
use super::place::Place;
use crate::format::luks::identify;
use crate::format::new_file::folder_of;
use crate::server::config::VolumeConfig;
use crate::server::volume_file::{OpenedVolume, VolumeError, open_beside_others, open_volume};

/// The subsystem in the LUKS2 header of an ephemeral disk.
pub(super) const SUBSYSTEM: &str = "sealblk-ephemeral";

/// The extended attribute of a file that is a plain disk: its UUID.
const ATTRIBUTE: &str = "user.sealblk.ephemeral";

/// What lies at a place.
#[derive(Debug)]
pub(super) enum Found {
    Nothing,
    Disk(Disk),
    /// No ephemeral disk.
    Other,
}

/// A disk that carries a mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Disk {
    pub(super) uuid: Uuid,
    pub(super) place: Place,
    /// The file or device.
    pub(super) path: PathBuf,
}

/// A disk that nobody else has open.
#[derive(Debug)]
pub(super) struct ClaimedDisk {
    disk: Disk,
    volume: OpenedVolume,
}

/// Looks for a disk at `place`.
pub(super) fn look(place: &Place) -> Result<Found, EphemeralError> {
    match place {
        Place::File(path) => look_at_file(path),
        Place::Lvm(name) => Ok(lvm::volume(name)?.map_or(Found::Nothing, Found::from)),
    }
}

fn look_at_file(path: &Path) -> Result<Found, EphemeralError> {
    let failed = |source| VolumeError::Open { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(failed(error).into()),
        Ok(found) if !found.is_file() => return Ok(Found::Other),
        Ok(_) => {}
    }
    let OpenedVolume { file, size_bytes, .. } = open_beside_others(path, false)?;
    Ok(match mark_of(&file, size_bytes).map_err(failed)? {
        Some(uuid) => Found::Disk(Disk { uuid, place: Place::File(path.to_owned()), path: path.to_owned() }),
        None => Found::Other,
    })
}

impl Found {
    pub(super) fn into_disk(self) -> Option<Disk> {
        match self {
            Self::Disk(disk) => Some(disk),
            Self::Nothing | Self::Other => None,
        }
    }
}

impl From<LogicalVolume> for Found {
    fn from(volume: LogicalVolume) -> Self {
        match volume.disk {
            Some(uuid) => Self::Disk(Disk { uuid, place: Place::Lvm(volume.name), path: volume.path }),
            None => Self::Other,
        }
    }
}

/// The UUID that a file is marked with as an ephemeral disk.
fn mark_of(file: &File, size_bytes: u64) -> io::Result<Option<Uuid>> {
    if let Some(header) = identify(file, size_bytes)?.filter(|header| header.subsystem == SUBSYSTEM) {
        return Ok(Some(header.uuid));
    }
    let mut value = [0; uuid::fmt::Hyphenated::LENGTH];
    match fgetxattr(file, ATTRIBUTE, &mut value) {
        Ok(length) => Ok(value.get(..length).and_then(|text| Uuid::try_parse_ascii(text).ok())),
        // RANGE: longer than a UUID.
        Err(Errno::NODATA | Errno::NOTSUP | Errno::RANGE) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Marks a file as the plain disk `uuid`. False where the file system has no extended attributes.
pub(super) fn mark_plain(file: &File, uuid: Uuid) -> io::Result<bool> {
    match fsetxattr(file, ATTRIBUTE, uuid.to_string().as_bytes(), XattrFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::NOTSUP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl Disk {
    /// Whether its making was finished. Files appear when they are; a logical volume is there before its header.
    pub(super) fn is_finished(&self, format: DiskFormat) -> Result<bool, EphemeralError> {
        if format != DiskFormat::Luks2 || matches!(self.place, Place::File(_)) {
            return Ok(true);
        }
        let opened = open_beside_others(&self.path, false).map_err(|error| self.not_opened(error))?;
        let header = identify(&opened.file, opened.size_bytes)
            .map_err(|source| VolumeError::Open { path: self.path.clone(), source })?;
        Ok(header.is_some_and(|header| header.uuid == self.uuid))
    }

    /// Locks the disk, so that nobody begins to serve it.
    pub(super) fn claim(self) -> Result<ClaimedDisk, EphemeralError> {
        let config = VolumeConfig { path: self.path.clone(), read_only: false, direct: false };
        let volume = open_volume(&config).map_err(|error| self.not_opened(error))?;
        let claimed = ClaimedDisk { disk: self, volume };
        claimed.check()?;
        Ok(claimed)
    }

    /// Why a disk that is there cannot be opened. What LVM knows of and has no device for is switched off.
    fn not_opened(&self, error: VolumeError) -> EphemeralError {
        match (&self.place, error) {
            (Place::Lvm(_), VolumeError::Open { source, .. }) if source.kind() == ErrorKind::NotFound => {
                EphemeralError::Inactive { place: self.place.clone() }
            }
            (_, error) => error.into(),
        }
    }
}

impl ClaimedDisk {
    pub(super) fn place(&self) -> &Place {
        &self.disk.place
    }

    /// Removes the file or the logical volume, if it is still the one that was claimed.
    pub(super) fn remove(self) -> Result<(), EphemeralError> {
        self.check()?;
        let Self { disk, volume } = self;
        match &disk.place {
            Place::File(path) => remove_file(path),
            Place::Lvm(name) => {
                // LVM removes nothing that anybody has open.
                drop(volume);
                Ok(lvm::remove(name)?)
            }
        }
    }

    /// Whether the place still leads to the disk with this UUID.
    fn check(&self) -> Result<(), EphemeralError> {
        let changed = || EphemeralError::ChangedMeanwhile { place: self.disk.place.clone() };
        match look(&self.disk.place)? {
            Found::Disk(disk) if disk == self.disk => {}
            _ => return Err(changed()),
        }
        if matches!(self.disk.place, Place::Lvm(_)) {
            return Ok(());
        }
        let failed = |source| VolumeError::Open { path: self.disk.path.clone(), source };
        let (claimed, there) = (self.volume.file.metadata(), fs::symlink_metadata(&self.disk.path));
        let (claimed, there) = (claimed.map_err(failed)?, there.map_err(failed)?);
        match (claimed.dev(), claimed.ino()) == (there.dev(), there.ino()) {
            true => Ok(()),
            false => Err(changed()),
        }
    }
}

/// Removes a file for good. One that is not there any more is no failure.
pub(super) fn remove_file(path: &Path) -> Result<(), EphemeralError> {
    let removed = match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    };
    removed.and_then(|()| File::open(folder_of(path))?.sync_all()).map_err(|source| EphemeralError::File {
        what: "remove",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, symlink};

    use super::*;

    fn marked_file(path: &Path) -> Uuid {
        let uuid = Uuid::new_v4();
        assert!(
            mark_plain(&File::create(path).unwrap(), uuid).unwrap(),
            "the tests need extended attributes"
        );
        uuid
    }

    #[test]
    fn a_disk_is_known_by_its_mark() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let place = Place::File(path.clone());
        assert!(matches!(look(&place), Ok(Found::Nothing)));
        let uuid = marked_file(&path);
        assert!(matches!(look(&place), Ok(Found::Disk(disk)) if disk.uuid == uuid && disk.place == place));
        symlink(&path, folder.path().join("link")).unwrap();
        for other in ["link", "", "link/x"] {
            let place = Place::File(folder.path().join(other));
            assert!(!matches!(look(&place), Ok(Found::Disk(_))), "{other}");
        }
        for value in ["", "not a UUID", "8e5b1a4e-2f0c-4f0e-9d54-3a0d1f6a7b11 and more"] {
            let file = File::create(&path).unwrap();
            file.write_all_at(&[7; 8192], 0).unwrap();
            fsetxattr(&file, ATTRIBUTE, value.as_bytes(), XattrFlags::empty()).unwrap();
            assert!(matches!(look(&place), Ok(Found::Other)), "{value}");
        }
    }

    #[test]
    fn what_took_the_place_of_a_claimed_disk_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let claim = || match look(&Place::File(path.clone())) {
            Ok(Found::Disk(disk)) => disk.claim().unwrap(),
            found => panic!("{found:?}"),
        };
        let uuid = marked_file(&path);
        let claimed = claim();
        fs::rename(&path, folder.path().join("moved")).unwrap();
        assert!(mark_plain(&File::create(&path).unwrap(), uuid).unwrap());
        assert!(matches!(claimed.remove(), Err(EphemeralError::ChangedMeanwhile { .. })));
        assert!(path.exists());
        claim().remove().unwrap();
        assert!(!path.exists());
        remove_file(&path).unwrap();
    }
}
