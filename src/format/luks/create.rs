//! New headers.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use libcryptsetup_rs::consts::flags::CryptVolumeKey;
use libcryptsetup_rs::consts::vals::EncryptionFormat;
use libcryptsetup_rs::{
    CryptDevice, CryptInit, CryptParamsLuks1, CryptParamsLuks1Ref, CryptParamsLuks2, CryptParamsLuks2Ref,
    Either, LibcryptErr,
};
use uuid::Uuid;

use super::edit_error::EditError;
use super::kdf_turn::KdfTurn;
use super::library;
use super::on_disk::Version;
use super::slot_kdf::{HASH, SlotKdf};
use super::snapshot::new_memory;
use super::unlock::Header;
use crate::cipher::IvMode;
use crate::format::plain::KeySize;
use crate::geometry::{SECTOR_BYTES, SectorSize};
use crate::keys::Secret;
use crate::locked::wipe_dead_stack;

/// Room for the header that cryptsetup makes by default: 16 MiB for LUKS2, 2 MiB for LUKS1.
pub const HEADER_ROOM_BYTES: u64 = 16 << 20;

/// A header to be made.
#[derive(Clone, Debug)]
pub struct NewHeader {
    /// LUKS1 or LUKS2.
    pub version: Version,
    /// `plain64` or `plain`.
    pub iv_mode: IvMode,
    /// Length of the volume key, which libcryptsetup draws.
    pub key_size: KeySize,
    /// The encryption sector size; 512 for LUKS1.
    pub sector_size: SectorSize,
    /// LUKS2: a label.
    pub label: Option<String>,
    /// LUKS2: what the volume belongs to.
    pub subsystem: Option<String>,
    /// The UUID; drawn if there is none.
    pub uuid: Option<Uuid>,
    /// How the first slot makes its key.
    pub kdf: SlotKdf,
    /// What the header is for.
    pub extent: Extent,
}

/// Where header and payload are to lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// A payload of this size behind the header.
    Payload(u64),
    /// Header and payload share a volume of this size.
    Volume(u64),
    /// The header lies elsewhere, and the payload fills a volume of this size.
    Detached(u64),
}

/// A header that was made, in memory.
#[derive(Debug)]
pub struct MadeHeader {
    /// The header, read back.
    pub header: Header,
    /// Where the payload begins on the volume.
    pub payload_offset_bytes: u64,
}

impl NewHeader {
    /// Makes the header, with one slot that `passphrase` opens. Areas are as large as cryptsetup makes them.
    ///
    /// # Errors
    /// When libcryptsetup refuses, for a volume too small, say.
    pub fn make(&self, passphrase: &Secret) -> Result<MadeHeader, EditError> {
        let (volume_bytes, detached) = match self.extent {
            Extent::Payload(bytes) => (bytes.saturating_add(HEADER_ROOM_BYTES), false),
            Extent::Volume(bytes) => (bytes, false),
            Extent::Detached(bytes) => (bytes, true),
        };
        let volume = memory_of(volume_bytes).map_err(EditError::Memory)?;
        let header = match detached {
            true => memory_of(HEADER_ROOM_BYTES).map_err(EditError::Memory)?,
            false => volume.try_clone().map_err(EditError::Memory)?,
        };
        let mut device = library::call(|| self.format(&header, &volume, detached))
            .map_err(|source| EditError::Library { what: "make the header", source })?;
        let payload_offset_bytes = device.status_handle().get_data_offset() * SECTOR_BYTES;
        let turn = self.kdf.is_memory_hard().then(KdfTurn::wait);
        let added = library::call(|| {
            device.keyslot_handle().add_by_key(None, None, passphrase.expose(), CryptVolumeKey::empty())
        });
        drop(turn);
        drop(device);
        wipe_dead_stack();
        added.map_err(|source| EditError::Library { what: "make the key slot", source })?;
        let header_bytes = header.metadata().map_err(EditError::Memory)?.len();
        let header = Header::read(&header, header_bytes)?;
        if let Extent::Volume(volume_bytes) = self.extent
            && payload_offset_bytes >= volume_bytes
        {
            return Err(EditError::TooSmall { volume_bytes, payload_offset_bytes });
        }
        Ok(MadeHeader { header, payload_offset_bytes })
    }

    fn format(&self, header: &File, volume: &File, detached: bool) -> Result<CryptDevice, LibcryptErr> {
        let (header_path, volume_path) = (path_of(header), path_of(volume));
        let paths = match detached {
            true => Either::Right((header_path.as_path(), volume_path.as_path())),
            false => Either::Left(volume_path.as_path()),
        };
        let data_device = detached.then(|| volume_path.clone());
        let mut device = CryptInit::init_with_data_device(paths)?;
        let pbkdf = self.kdf.parameters();
        let mode = match self.iv_mode {
            IvMode::Plain64 => "xts-plain64",
            IvMode::Plain => "xts-plain",
            IvMode::Plain64Be => "xts-plain64be",
        };
        let key = Either::Right(self.key_size.bytes());
        match self.version {
            Version::Luks1 => {
                device.settings_handle().set_pbkdf_type(&pbkdf)?;
                let parameters = CryptParamsLuks1 { hash: HASH.to_owned(), data_alignment: 0, data_device };
                let mut parameters: CryptParamsLuks1Ref<'_> = (&parameters).try_into()?;
                device.context_handle().format(
                    EncryptionFormat::Luks1,
                    ("aes", mode),
                    self.uuid,
                    key,
                    Some(&mut parameters),
                )?;
            }
            Version::Luks2 => {
                let parameters = CryptParamsLuks2 {
                    pbkdf: Some(pbkdf),
                    integrity: None,
                    integrity_params: None,
                    data_alignment: 0,
                    data_device,
                    sector_size: self.sector_size.bytes(),
                    label: self.label.clone(),
                    subsystem: self.subsystem.clone(),
                };
                let mut parameters: CryptParamsLuks2Ref<'_> = (&parameters).try_into()?;
                device.context_handle().format(
                    EncryptionFormat::Luks2,
                    ("aes", mode),
                    self.uuid,
                    key,
                    Some(&mut parameters),
                )?;
            }
        }
        Ok(device)
    }
}

/// A file in memory that is one hole.
fn memory_of(bytes: u64) -> io::Result<File> {
    let memory = new_memory()?.0;
    memory.set_len(bytes)?;
    Ok(memory)
}

fn path_of(memory: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", memory.as_raw_fd()))
}
