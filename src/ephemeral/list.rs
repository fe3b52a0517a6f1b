//! Keys and disks side by side: which belong together, and which have lost their other half.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::association::{Association, DiskFormat};
use super::disk::{self, Disk, Found};
use super::error::{EphemeralError, told};
use super::keys::{DiskKeys, Record};
use super::lvm::{self, LogicalVolume, LvmError};
use super::place::Place;
use crate::keys::KeyReference;

/// An ephemeral disk, or what there is of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedDisk {
    /// What its key and the disk itself say.
    pub uuid: Uuid,
    /// Where it is, or where its key says that it was.
    pub place: Place,
    /// The file or device, if it is there.
    pub path: Option<PathBuf>,
    /// What lies on it, if a key tells.
    pub format: Option<DiskFormat>,
    /// Its key; also one that is destroyed.
    pub key: Option<KeyReference>,
    /// How it stands.
    pub state: DiskState,
}

/// How a disk stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskState {
    /// Key and disk are there.
    Whole,
    /// Key and logical volume are there, but it has no header: its making was interrupted.
    Unfinished,
    /// The key is there, the disk is not.
    NoDisk,
    /// The disk is there, and its key is destroyed.
    KeyDestroyed,
    /// The disk is there, and this manager has no key for it.
    NoKey,
    /// The key is there; its disk cannot be looked at.
    Unknown(String),
}

/// All that was found.
#[derive(Debug)]
pub struct Listing {
    /// In the order in which their keys were made; then those without a key.
    pub disks: Vec<ListedDisk>,
    /// Why logical volumes were not looked through, where LVM is installed or needed.
    pub lvm_problem: Option<String>,
}

/// Compares the keys of `keys` with the disks at the places that their records name, with all logical volumes, and with
/// the files in `folders` (not in folders within).
///
/// # Errors
/// When the keys cannot be listed, or a folder cannot be read.
pub fn list(keys: &DiskKeys, folders: &[PathBuf]) -> Result<Listing, EphemeralError> {
    let records = keys.records()?;
    let volumes = lvm::volumes(None);
    let elsewhere = found_elsewhere(&volumes, folders)?;
    let mut disks: Vec<ListedDisk> =
        records.iter().flat_map(|record| listed(keys, record, &volumes, &elsewhere)).collect();
    let known: HashSet<Uuid> = records.iter().map(|record| record.association.uuid).collect();
    let unknown = elsewhere.into_iter().filter(|disk| !known.contains(&disk.uuid));
    disks.extend(unknown.map(|Disk { uuid, place, path }| {
        let (path, state) = (Some(path), DiskState::NoKey);
        ListedDisk { uuid, place, path, format: None, key: None, state }
    }));
    let needs_lvm =
        records.iter().any(|record| matches!(record.association.place, Place::Lvm(_)) && !record.destroyed);
    let lvm_problem = match volumes {
        Ok(_) => None,
        Err(LvmError::Missing { .. }) if !needs_lvm => None,
        Err(error) => Some(told(&error)),
    };
    Ok(Listing { disks, lvm_problem })
}

/// What the record of a key comes to: its disk and copies of that, or the lack of one. Nothing, where key and disk are
/// gone.
fn listed(
    keys: &DiskKeys,
    record: &Record,
    volumes: &Result<Vec<LogicalVolume>, LvmError>,
    elsewhere: &[Disk],
) -> Vec<ListedDisk> {
    let Association { uuid, format, place } = &record.association;
    let of_key = |place: &Place, path: Option<&PathBuf>, state| ListedDisk {
        uuid: *uuid,
        place: place.clone(),
        path: path.cloned(),
        format: Some(*format),
        key: Some(keys.reference(&record.id)),
        state,
    };
    let seen = sight(place, volumes);
    let at_its_place = match &seen {
        Ok(Found::Disk(disk)) if disk.uuid == *uuid => Some(disk),
        _ => None,
    };
    // Renamed, or copied.
    let others = elsewhere.iter().filter(|disk| disk.uuid == *uuid && disk.place != *place);
    let disks = at_its_place.into_iter().chain(others);
    let listed: Vec<ListedDisk> = disks
        .map(|disk| {
            let state = if record.destroyed { DiskState::KeyDestroyed } else { state_of(disk, *format) };
            of_key(&disk.place, Some(&disk.path), state)
        })
        .collect();
    match seen {
        _ if record.destroyed || !listed.is_empty() => listed,
        Err(problem) => vec![of_key(place, None, DiskState::Unknown(problem))],
        Ok(_) => vec![of_key(place, None, DiskState::NoDisk)],
    }
}

fn state_of(disk: &Disk, format: DiskFormat) -> DiskState {
    match disk.is_finished(format) {
        Ok(true) => DiskState::Whole,
        Ok(false) => DiskState::Unfinished,
        Err(error) => DiskState::Unknown(told(&error)),
    }
}

fn sight(place: &Place, volumes: &Result<Vec<LogicalVolume>, LvmError>) -> Result<Found, String> {
    match (place, volumes) {
        (Place::File(_), _) => disk::look(place).map_err(|error| told(&error)),
        (Place::Lvm(_), Err(error)) => Err(told(error)),
        (Place::Lvm(name), Ok(volumes)) => {
            let volume = volumes.iter().find(|volume| volume.name == *name);
            Ok(volume.cloned().map_or(Found::Nothing, Found::from))
        }
    }
}

/// Every disk among the logical volumes and in `folders`.
fn found_elsewhere(
    volumes: &Result<Vec<LogicalVolume>, LvmError>,
    folders: &[PathBuf],
) -> Result<Vec<Disk>, EphemeralError> {
    let volumes = volumes.iter().flatten().cloned().map(Found::from);
    let mut disks: Vec<Disk> = volumes.filter_map(Found::into_disk).collect();
    for folder in folders {
        let failed = |source| EphemeralError::File { what: "read", path: folder.clone(), source };
        for path in files(folder).map_err(failed)? {
            // A name that no disk can have.
            let Ok(place) = Place::file(&path) else { continue };
            if let Found::Disk(found) = disk::look(&place)?
                && !disks.contains(&found)
            {
                disks.push(found);
            }
        }
    }
    Ok(disks)
}

/// The files in `folder`, by name.
fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}
