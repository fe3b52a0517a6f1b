//! The keys of ephemeral disks, in one key manager.

use std::fmt;

use super::association::{Association, DiskFormat};
use super::error::EphemeralError;
use crate::keys::{
    KeyAdmin, KeyError, KeyId, KeyKind, KeyMetadata, KeyReference, KeySpec, KeyState, ManagerName, Secret,
};

/// For LUKS2 the key is a passphrase of that many random bits, for a plain volume both halves of its XTS key.
const LUKS_KEY_BITS: u32 = 256;
const PLAIN_KEY_BITS: u32 = 512;

/// A key manager that keeps a key for each disk.
pub struct DiskKeys {
    name: ManagerName,
    admin: Box<dyn KeyAdmin>,
}

/// A key that says which disk it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) association: Association,
    pub(super) id: KeyId,
    /// Whether the bytes are gone, and only the record is left.
    pub(super) destroyed: bool,
}

impl DiskKeys {
    /// The keys in `admin`, which is called `name`.
    pub fn new(name: ManagerName, admin: Box<dyn KeyAdmin>) -> Self {
        Self { name, admin }
    }

    /// What the manager is called.
    pub fn manager(&self) -> &ManagerName {
        &self.name
    }

    /// What `serve` calls the key `id`.
    pub(super) fn reference(&self, id: &KeyId) -> KeyReference {
        self.name.key(id)
    }

    /// Makes a new random key that is for this disk.
    pub(super) fn create(&self, association: &Association) -> Result<KeyId, EphemeralError> {
        let bits = match association.format {
            DiskFormat::Luks2 => LUKS_KEY_BITS,
            DiskFormat::Plain(_) => PLAIN_KEY_BITS,
        };
        let place = association.place.clone();
        let volume =
            association.record().map_err(|excess_bytes| EphemeralError::TooLong { place, excess_bytes })?;
        let spec = KeySpec { name: None, kind: KeyKind::Symmetric, bits, volume: Some(volume) };
        Ok(self.admin.create(&spec)?.id)
    }

    /// Every key that is for an ephemeral disk, and the records of those that are destroyed, in the order of creation.
    pub(super) fn records(&self) -> Result<Vec<Record>, EphemeralError> {
        let mut records = Vec::new();
        for key in self.admin.list()? {
            if let Some(association) = key.volume.as_deref().and_then(|volume| volume.parse().ok()) {
                let destroyed = self.is_destroyed(&key)?;
                records.push(Record { association, id: key.id, destroyed });
            }
        }
        Ok(records)
    }

    /// Whether no version is left. What is listed is the newest, which may have been destroyed alone.
    fn is_destroyed(&self, newest: &KeyMetadata) -> Result<bool, EphemeralError> {
        if newest.state != KeyState::Destroyed {
            return Ok(false);
        }
        for version in 1..newest.version {
            match self.admin.metadata(&newest.id.clone().with_version(version)) {
                Ok(older) if older.state != KeyState::Destroyed => return Ok(false),
                // What the manager has forgotten is gone.
                Ok(_) | Err(KeyError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    pub(super) fn fetch(&self, id: &KeyId) -> Result<Secret, EphemeralError> {
        Ok(self.admin.fetch(id)?)
    }

    /// Destroys the key with all its versions. Where that was done before it is done again, and may finish what was
    /// interrupted.
    pub(super) fn destroy(&self, id: &KeyId) -> Result<(), EphemeralError> {
        Ok(self.admin.destroy(id)?)
    }
}

impl fmt::Debug for DiskKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DiskKeys({})", self.name)
    }
}
