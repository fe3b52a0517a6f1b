//! The end of a disk: first its key, and with it the data wherever copies of it may be, then the disk.

use uuid::Uuid;

use super::disk::{self, ClaimedDisk, Disk, Found};
use super::error::EphemeralError;
use super::keys::{DiskKeys, Record};
use super::place::Place;
use crate::keys::KeyReference;

/// What is to be destroyed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The disk that lies there, or the key of one that did.
    At(Place),
    /// The disk of this UUID, by its key.
    Uuid(Uuid),
}

/// What becomes of the disk itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remains {
    /// It is removed.
    Remove,
    /// It is not even looked at: it may be in use, or out of reach.
    Leave,
}

/// A disk that is about to be destroyed. Until it is dropped nobody can begin to serve it.
#[derive(Debug)]
pub struct Doomed<'a> {
    keys: &'a DiskKeys,
    records: Vec<Record>,
    disk: Option<ClaimedDisk>,
    note: Option<&'static str>,
}

/// What was destroyed.
#[derive(Debug)]
pub struct Destroyed {
    /// Keys whose bytes are gone now.
    pub keys: Vec<KeyReference>,
    /// Keys whose bytes were gone before.
    pub keys_gone_before: Vec<KeyReference>,
    /// The disk that was removed.
    pub disk: Option<Place>,
    /// Why no disk was removed.
    pub note: Option<&'static str>,
}

impl<'a> Doomed<'a> {
    /// Finds key and disk, and locks the disk. Nothing has changed yet.
    ///
    /// # Errors
    /// See [`EphemeralError`]: when there is neither, when it is not clear which key is meant, when the disk is in use.
    pub fn find(keys: &'a DiskKeys, target: &Target, remains: Remains) -> Result<Self, EphemeralError> {
        let records = keys.records()?;
        let mut doomed = match target {
            Target::Uuid(uuid) => Self::by_uuid(keys, records, *uuid, remains)?,
            Target::At(place) => Self::by_place(keys, records, place, remains)?,
        };
        doomed.records.sort_by_key(|record| record.destroyed);
        Ok(doomed)
    }

    fn by_uuid(
        keys: &'a DiskKeys,
        mut records: Vec<Record>,
        uuid: Uuid,
        remains: Remains,
    ) -> Result<Self, EphemeralError> {
        records.retain(|record| record.association.uuid == uuid);
        let Some(record) = records.first() else {
            return Err(EphemeralError::NoKey { manager: keys.manager().clone(), uuid });
        };
        let found = look(&record.association.place, remains)?;
        match found {
            Sight::Of(Found::Disk(disk)) if disk.uuid == uuid => Self::with_disk(keys, records, disk),
            Sight::Of(Found::Nothing) => Ok(Self::without_disk(keys, records, "there was none at its place")),
            Sight::Of(_) => Ok(Self::without_disk(keys, records, "something else lies at its place")),
            Sight::Averted => Ok(Self::without_disk(keys, records, "it was not to be removed")),
        }
    }

    fn by_place(
        keys: &'a DiskKeys,
        mut records: Vec<Record>,
        place: &Place,
        remains: Remains,
    ) -> Result<Self, EphemeralError> {
        let (missing, note) = match look(place, remains)? {
            Sight::Of(Found::Disk(disk)) => {
                check_mark(&records, &disk)?;
                records.retain(|record| record.association.uuid == disk.uuid);
                return Self::with_disk(keys, records, disk);
            }
            Sight::Of(Found::Nothing) => (true, "there was none"),
            Sight::Of(Found::Other) => (false, "what lies there is something else"),
            Sight::Averted => (true, "it was not to be removed"),
        };
        records.retain(|record| record.association.place == *place);
        let (place, manager) = (place.clone(), keys.manager().clone());
        if records.is_empty() {
            return Err(match missing {
                true => EphemeralError::NothingThere { place, manager },
                false => EphemeralError::NotEphemeral { place, manager },
            });
        }
        let alive = records.iter().filter(|record| !record.destroyed);
        let uuids: Vec<Uuid> = alive.map(|record| record.association.uuid).collect();
        match uuids[..] {
            // All were destroyed before; whatever was interrupted is finished.
            [] => {}
            [uuid] => records.retain(|record| record.association.uuid == uuid),
            _ => return Err(EphemeralError::Ambiguous { place, uuids }),
        }
        Ok(Self::without_disk(keys, records, note))
    }

    fn with_disk(keys: &'a DiskKeys, records: Vec<Record>, disk: Disk) -> Result<Self, EphemeralError> {
        Ok(Self { keys, records, disk: Some(disk.claim()?), note: None })
    }

    fn without_disk(keys: &'a DiskKeys, records: Vec<Record>, note: &'static str) -> Self {
        Self { keys, records, disk: None, note: Some(note) }
    }

    /// The keys that are going to be destroyed, but for those that are already.
    pub fn living_keys(&self) -> Vec<KeyReference> {
        let alive = self.records.iter().filter(|record| !record.destroyed);
        alive.map(|record| self.keys.reference(&record.id)).collect()
    }

    /// The disk that is going to be removed.
    pub fn disk(&self) -> Option<&Place> {
        self.disk.as_ref().map(ClaimedDisk::place)
    }

    /// Destroys the keys, then removes the disk.
    ///
    /// # Errors
    /// See [`EphemeralError`]. Until [`EphemeralError::NotRemoved`] the disk is as it was; it can be repeated.
    pub fn destroy(self) -> Result<Destroyed, EphemeralError> {
        let keys = self.living_keys();
        for record in &self.records {
            self.keys.destroy(&record.id)?;
        }
        let gone = self.records.iter().filter(|record| record.destroyed);
        let keys_gone_before = gone.map(|record| self.keys.reference(&record.id)).collect();
        let disk = self.disk.as_ref().map(|disk| disk.place().clone());
        if let Some(claimed) = self.disk {
            let place = claimed.place().clone();
            claimed
                .remove()
                .map_err(|error| EphemeralError::NotRemoved { place, source: Box::new(error) })?;
        }
        Ok(Destroyed { keys, keys_gone_before, disk, note: self.note })
    }
}

/// Refuses a disk that lies where another is due, unless it is due there itself: anybody who can write to the storage can
/// write a mark, and must not choose which key is destroyed and which is kept.
fn check_mark(records: &[Record], disk: &Disk) -> Result<(), EphemeralError> {
    let here = || records.iter().filter(|record| record.association.place == disk.place);
    if here().any(|record| record.association.uuid == disk.uuid) {
        return Ok(());
    }
    match here().find(|record| !record.destroyed) {
        None => Ok(()),
        Some(record) => Err(EphemeralError::Mismatch {
            place: disk.place.clone(),
            uuid: disk.uuid,
            expected: record.association.uuid,
        }),
    }
}

/// What was seen of a place, if it was looked at.
enum Sight {
    Of(Found),
    Averted,
}

fn look(place: &Place, remains: Remains) -> Result<Sight, EphemeralError> {
    match remains {
        Remains::Remove => disk::look(place).map(Sight::Of),
        Remains::Leave => Ok(Sight::Averted),
    }
}
