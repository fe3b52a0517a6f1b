//! From a header and a passphrase to the volume key.

use tracing::info;

use super::description::{Description, Kdf};
use super::error::LuksError;
use super::kdf_turn::KdfTurn;
use super::library;
use super::policy::{Approved, Placement, Policy};
use super::snapshot::HeaderSnapshot;
use crate::cipher::{EqualHalves, VolumeKey};
use crate::keys::Secret;
use crate::locked::{Locked, wipe_dead_stack};

/// An AES-256 key for each half.
const KEY_BYTES_MAX: usize = 64;

/// A header area in memory, valid to libcryptsetup, and described. Not judged: that is [`Policy::verdict`].
#[derive(Debug)]
pub struct Header {
    snapshot: HeaderSnapshot,
    description: Description,
}

/// Where libcryptsetup puts the key.
struct KeyBuffer([u8; KEY_BYTES_MAX]);

impl Header {
    /// Copies the header of `source` (a volume or detached header of `source_bytes`) to memory and reads it.
    ///
    /// # Errors
    /// When there is none, or none that is valid.
    pub fn read(source: &std::fs::File, source_bytes: u64) -> Result<Self, LuksError> {
        let snapshot = HeaderSnapshot::take(source, source_bytes)?;
        let version = snapshot.version();
        let mut device = snapshot.load().map_err(|source| LuksError::Load { version, source })?;
        let description = Description::of(&snapshot, &mut device)?;
        Ok(Self { snapshot, description })
    }

    /// The copy that everything else was read from.
    pub fn snapshot(&self) -> &HeaderSnapshot {
        &self.snapshot
    }

    /// What the header says.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Judges the header by `policy`, then opens a slot with `passphrase` and checks the volume key it holds
    /// against the header's digest.
    ///
    /// Argon2 takes as much memory as the header says and the policy allows; only one process of the host does
    /// that at a time.
    ///
    /// # Errors
    /// [`LuksError::Refused`] before the passphrase is tried, [`LuksError::WrongKey`] after.
    pub fn unlock(
        &self,
        policy: &Policy,
        placement: Placement,
        passphrase: &Secret,
        equal_halves: EqualHalves,
    ) -> Result<(VolumeKey, Approved), LuksError> {
        let approved = policy.verdict(&self.description, placement).map_err(LuksError::Refused)?;
        let mut tried = self.description.slots_tried(policy.slot);
        let memory_hard = tried.any(|slot| slot.kdf.as_ref().and_then(Kdf::argon2).is_some());
        let turn = memory_hard.then(KdfTurn::wait);
        let key = self.volume_key(policy.slot, approved.key_bytes, passphrase, equal_halves);
        drop(turn);
        Ok((key?, approved))
    }

    fn volume_key(
        &self,
        slot: Option<u32>,
        key_bytes: usize,
        passphrase: &Secret,
        equal_halves: EqualHalves,
    ) -> Result<VolumeKey, LuksError> {
        let mut buffer =
            Locked::new(|| KeyBuffer([0; KEY_BYTES_MAX])).map_err(crate::cipher::CipherError::Lock)?;
        let buffer = &mut buffer.0[..key_bytes];
        let mut device = self.snapshot.load().map_err(LuksError::Unlock)?;
        let opened =
            library::call(|| device.volume_key_handle().get(slot, buffer, Some(passphrase.expose())));
        // What the KDF and the cipher of the slot left there.
        wipe_dead_stack();
        let (opened_slot, opened_bytes) = opened.map_err(|error| match error.errno() {
            Some(libc::EPERM) => LuksError::WrongKey(hint(passphrase)),
            _ => LuksError::Unlock(error),
        })?;
        // Checked by the library already; but these are the bytes that data is going to be encrypted with.
        library::call(|| device.volume_key_handle().verify(&buffer[..opened_bytes]))
            .map_err(LuksError::WrongVolumeKey)?;
        info!(slot = opened_slot, uuid = self.description.uuid, "volume unlocked");
        Ok(VolumeKey::new(&buffer[..opened_bytes], equal_halves)?)
    }
}

/// What usually lies behind a key that opens nothing.
fn hint(passphrase: &Secret) -> &'static str {
    if passphrase.expose().ends_with(b"\n") { "; it ends with a newline: is that part of it?" } else { "" }
}
