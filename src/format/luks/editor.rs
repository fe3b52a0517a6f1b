//! Key slots of a volume, changed while it may be in use.
//!
//! Each change is made on a copy in memory, then written in an order that is safe at every moment
//! ([`Transfer::updating`]), then read back and tried. Two programs are kept from changing the header at the same
//! time by [`header_lock`]; what does not know of that lock is noticed by comparing the header on the volume with what
//! was read from it, just before writing.

use std::fs::{File, TryLockError};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use libcryptsetup_rs::CryptDevice;
use libcryptsetup_rs::consts::flags::CryptActivate;

use super::description::{Description, Kdf, Slot};
use super::edit_error::EditError;
use super::error::LuksError;
use super::image::HeaderImage;
use super::kdf_turn::KdfTurn;
use super::library::{self, LibraryError};
use super::policy::{Placement, Policy};
use super::slot_kdf::SlotKdf;
use super::transfer::Transfer;
use super::unlock::Header;
use crate::format::header_lock;
use crate::keys::Secret;
use crate::locked::wipe_dead_stack;

/// How long a lock of another program is waited for. It takes them milliseconds to write a header, but making a
/// slot's key may take seconds.
const PATIENCE: Duration = Duration::from_secs(10);
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// What the area of a removed slot begins with, before random bytes: a slot that the header still names is known by it
/// to open nothing. The key material of no other begins so, but by a chance of 2^-128.
const REMOVED: &[u8; 16] = b"a removed slot\n\0";

/// What [`HeaderEditor::replace_key`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replacement {
    /// The slot that the new key opens.
    pub slot: u32,
    /// Whether that slot was made now.
    pub added: bool,
    /// Slots that are gone.
    pub removed: Vec<u32>,
}

/// A header that is ours to change.
#[derive(Debug)]
pub struct HeaderEditor {
    device: File,
    header: Header,
    policy: Policy,
    placement: Placement,
    payload_offset_bytes: u64,
}

impl HeaderEditor {
    /// Claims the header on `device`, a volume or detached header open for reading and writing, and judges it by
    /// `policy`: what is not served is not changed either.
    ///
    /// # Errors
    /// When another program is changing the header; when it is not valid, or not served.
    pub fn open(device: File, policy: &Policy, placement: Placement) -> Result<Self, EditError> {
        let deadline = Instant::now() + PATIENCE;
        while !header_lock::claim(&device).map_err(EditError::Write)? {
            if Instant::now() >= deadline {
                return Err(EditError::Busy { who: "it stays locked" });
            }
            thread::sleep(RETRY_INTERVAL);
        }
        let header = read(&device)?;
        let approved = policy.verdict(header.description(), placement).map_err(LuksError::Refused)?;
        let payload_offset_bytes = match placement.detached {
            true => u64::MAX,
            false => approved.geometry.payload_offset_bytes,
        };
        Ok(Self { device, header, policy: policy.clone(), placement, payload_offset_bytes })
    }

    /// What the header says now.
    pub fn description(&self) -> &Description {
        self.header.description()
    }

    /// The slots that `passphrase` opens, each tried by itself.
    ///
    /// # Errors
    /// When a slot cannot be tried.
    pub fn slots_opened_by(&self, passphrase: &Secret) -> Result<Vec<u32>, EditError> {
        let candidates = self.description().slots.iter().filter(|slot| slot.digest.is_some());
        let mut device = self.header.snapshot().load().map_err(LuksError::Unlock)?;
        let mut opened = Vec::new();
        for slot in candidates {
            if opens(&mut device, slot, passphrase)? {
                opened.push(slot.id);
            }
        }
        Ok(opened)
    }

    /// Adds a slot for `new`, in `wanted` or the first that is free. `present` opens one that there is.
    ///
    /// # Errors
    /// See [`EditError`]; the header is unchanged, except after [`EditError::Verification`].
    pub fn add(
        &mut self,
        present: &Secret,
        new: &Secret,
        wanted: Option<u32>,
        kdf: SlotKdf,
    ) -> Result<u32, EditError> {
        let slots = &self.description().slots;
        if let Some(slot) = wanted.filter(|slot| slots.iter().any(|present| present.id == *slot)) {
            return Err(EditError::SlotInUse(slot));
        }
        let (image, slot) = self.with_slot(present, new, wanted, kdf)?;
        self.commit(&image)?;
        match self.slots_opened_by(new)?.contains(&slot) {
            true => Ok(slot),
            false => Err(EditError::Verification("the new key slot")),
        }
    }

    /// The header with a slot more, and which that is.
    fn with_slot(
        &self,
        present: &Secret,
        new: &Secret,
        wanted: Option<u32>,
        kdf: SlotKdf,
    ) -> Result<(HeaderImage, u32), EditError> {
        let memory_hard = self.description().slots.iter().any(is_memory_hard) || kdf.is_memory_hard();
        let image = self.image()?;
        let mut device = image.load().map_err(LuksError::Unlock)?;
        let turn = memory_hard.then(KdfTurn::wait);
        let added = library::call(|| {
            device.settings_handle().set_pbkdf_type(&kdf.parameters())?;
            device.keyslot_handle().add_by_passphrase(wanted, present.expose(), new.expose())
        });
        drop(turn);
        drop(device);
        wipe_dead_stack();
        let slot = added.map_err(|error| why_not_added(wanted, error))?;
        Ok((image, slot))
    }

    /// Removes `slots` and destroys their key material.
    ///
    /// # Errors
    /// See [`EditError`]; the header is unchanged, except after [`EditError::Verification`].
    pub fn remove(&mut self, slots: &[u32]) -> Result<(), EditError> {
        self.check_removal(slots)?;
        self.commit(&self.without_slots(slots)?)?;
        match self.description().slots.iter().any(|slot| slots.contains(&slot.id)) {
            false => Ok(()),
            true => Err(EditError::Verification("the removed key slot")),
        }
    }

    /// Lets `new` open the volume in place of `present`: there is a slot for `new`, tried, before those of `present` go.
    /// Cut off anywhere, it is finished by being called again.
    ///
    /// # Errors
    /// See [`EditError`]; [`LuksError::WrongKey`] when neither key opens the volume.
    pub fn replace_key(
        &mut self,
        present: &Secret,
        new: &Secret,
        kdf: SlotKdf,
    ) -> Result<Replacement, EditError> {
        let of_new = self.slots_opened_by(new)?;
        let mut removed = self.slots_opened_by(present)?;
        removed.retain(|slot| !of_new.contains(slot));
        let slot = match (of_new.first(), removed.is_empty()) {
            (Some(slot), _) => *slot,
            (None, true) => return Err(LuksError::WrongKey("").into()),
            (None, false) => self.add(present, new, None, kdf)?,
        };
        removed.extend(self.half_removed_slots()?);
        if !removed.is_empty() {
            self.remove(&removed)?;
        }
        Ok(Replacement { slot, added: of_new.is_empty(), removed })
    }

    /// Whether `slots` are there, and not all that open the volume.
    ///
    /// # Errors
    /// [`EditError::NoSuchSlot`] or [`EditError::LastSlot`].
    pub fn check_removal(&self, slots: &[u32]) -> Result<(), EditError> {
        let present = &self.description().slots;
        if let Some(slot) = slots.iter().find(|slot| !present.iter().any(|present| present.id == **slot)) {
            return Err(EditError::NoSuchSlot(*slot));
        }
        let dead = self.half_removed_slots()?;
        let stays = |slot: &Slot| !slots.contains(&slot.id) && !dead.contains(&slot.id);
        let left = present.iter().any(|slot| slot.digest.is_some() && stays(slot));
        match slots.first() {
            Some(slot) if !left => Err(EditError::LastSlot(*slot)),
            _ => Ok(()),
        }
    }

    /// Slots whose removal was cut off between the end of their key material and that of their entry in the header.
    fn half_removed_slots(&self) -> Result<Vec<u32>, EditError> {
        let memory = self.header.snapshot().memory();
        let mut found = Vec::new();
        for slot in &self.description().slots {
            let mut start = [0; REMOVED.len()];
            memory.read_exact_at(&mut start, slot.area_offset_bytes).map_err(EditError::Memory)?;
            if start == *REMOVED {
                found.push(slot.id);
            }
        }
        Ok(found)
    }

    /// The header with `slots` gone.
    fn without_slots(&self, slots: &[u32]) -> Result<HeaderImage, EditError> {
        let image = self.image()?;
        let mut device = image.load().map_err(LuksError::Unlock)?;
        for slot in slots {
            library::call(|| device.keyslot_handle().destroy(*slot))
                .map_err(|source| EditError::Library { what: "remove the key slot", source })?;
        }
        for slot in self.description().slots.iter().filter(|slot| slots.contains(&slot.id)) {
            image.write(REMOVED, slot.area_offset_bytes).map_err(EditError::Memory)?;
        }
        Ok(image)
    }

    fn image(&self) -> Result<HeaderImage, EditError> {
        HeaderImage::copy_of(self.header.snapshot()).map_err(EditError::Memory)
    }

    /// Writes `image` to the device, which has what was read from it until now. What would not be served is not
    /// written: a slot whose KDF costs too much, say.
    fn commit(&mut self, image: &HeaderImage) -> Result<(), EditError> {
        let after = image.header()?;
        self.policy.verdict(after.description(), self.placement).map_err(LuksError::Refused)?;
        let before = self.image()?;
        let transfer = Transfer::updating(&before, image).map_err(EditError::Memory)?;
        let whole_device = self.lock_device()?;
        // Pages are written whole, so one that holds a piece of a served payload must not be.
        if !whole_device && transfer.end_bytes() > self.payload_offset_bytes {
            return Err(EditError::Busy {
                who: "it is being served, and its payload begins too near to its key slots",
            });
        }
        let written = self.write_unless_changed(&transfer, image);
        if whole_device {
            // It is closed soon in any case.
            let _ = self.device.unlock();
        }
        written
    }

    fn write_unless_changed(&mut self, transfer: &Transfer, image: &HeaderImage) -> Result<(), EditError> {
        if read(&self.device)?.snapshot().digest() != self.header.snapshot().digest() {
            return Err(EditError::ChangedMeanwhile);
        }
        transfer.apply(image, &self.device).map_err(EditError::Write)?;
        self.header = read(&self.device)?;
        Ok(())
    }

    /// Takes the device's `flock` (true), so that nobody begins to serve it or to change it, or finds that it is
    /// being served (false), which does not matter.
    fn lock_device(&self) -> Result<bool, EditError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.device.try_lock() {
                Ok(()) => return Ok(true),
                Err(TryLockError::Error(error)) => return Err(EditError::Write(error)),
                Err(TryLockError::WouldBlock) => {}
            }
            if header_lock::is_served(&self.device).map_err(EditError::Write)? {
                return Ok(false);
            }
            if Instant::now() >= deadline {
                return Err(EditError::Busy { who: "it stays locked, and not by `sealblk serve`" });
            }
            thread::sleep(RETRY_INTERVAL);
        }
    }
}

fn read(device: &File) -> Result<Header, LuksError> {
    let device_bytes = (&mut &*device).seek(SeekFrom::End(0)).map_err(LuksError::Read)?;
    Header::read(device, device_bytes)
}

/// What it means that libcryptsetup did not add a slot.
fn why_not_added(wanted: Option<u32>, source: LibraryError) -> EditError {
    let full = wanted.is_none() && matches!(source.errno(), Some(libc::EINVAL | libc::ENOSPC));
    match source.errno() {
        Some(libc::EPERM) => LuksError::WrongKey("").into(),
        _ if full => EditError::NoFreeSlot,
        _ => EditError::Library { what: "add the key slot", source },
    }
}

fn is_memory_hard(slot: &Slot) -> bool {
    slot.kdf.as_ref().and_then(Kdf::argon2).is_some()
}

/// Whether `passphrase` opens `slot`. Its key must match the digest, and is not kept.
fn opens(device: &mut CryptDevice, slot: &Slot, passphrase: &Secret) -> Result<bool, EditError> {
    let turn = is_memory_hard(slot).then(KdfTurn::wait);
    let opened = library::call(|| {
        let mut handle = device.activate_handle();
        handle.activate_by_passphrase(None, Some(slot.id), passphrase.expose(), CryptActivate::empty())
    });
    drop(turn);
    wipe_dead_stack();
    match opened {
        Ok(_) => Ok(true),
        Err(error) if error.errno() == Some(libc::EPERM) => Ok(false),
        Err(error) => Err(LuksError::Unlock(error).into()),
    }
}

#[cfg(test)]
#[path = "editor_tests.rs"]
mod tests;
