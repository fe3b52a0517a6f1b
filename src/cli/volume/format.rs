//! `sealblk format`: makes a LUKS volume.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::Serialize;
use uuid::Uuid;

use super::super::confirm::ConfirmArgs;
use super::super::exit::Exit;
use super::super::output;
use super::super::resolve::{ConfigError, impossible};
use super::super::tool_error::ToolError;
use super::kdf::KdfArgs;
use super::key::KeyArgs;
use super::preallocate::preallocate;
use super::size::ByteSize;
use super::{VolumeArgs, target};
use crate::cipher::{CipherSpec, EqualHalves, IvMode};
use crate::format::luks::{
    Description, EditError, Extent, Header, Kdf, LuksError, MadeHeader, NewHeader, Placement, Policy,
    Version, backup,
};
use crate::format::new_file::NewFile;
use crate::format::plain::KeySize;
use crate::format::signature::{self, Contents};
use crate::geometry::SectorSize;
use crate::keys::Secret;
use crate::server::config::VolumeConfig;
use crate::server::volume_file::{OpenedVolume, open_volume, smallest_sector};

/// Room for a label in a LUKS2 header, less the zero that ends it.
const LABEL_BYTES_MAX: usize = 47;

/// The options of `sealblk format`.
#[derive(Debug, Args)]
#[command(
    override_usage = "sealblk format VOLUME --size SIZE --key REFERENCE [OPTIONS]",
    after_help = Exit::table()
)]
pub(in super::super) struct FormatCommand {
    #[command(flatten)]
    target: VolumeArgs,
    /// Size of the disk that the guest sees, as 10G: the file is larger by the header (16 MiB for LUKS2, 2 MiB for
    /// LUKS1). For a new or empty file; a device, or a file with a size, is used whole
    #[arg(long)]
    size: Option<ByteSize>,
    /// Version of LUKS
    #[arg(long, default_value = "luks2")]
    r#type: LuksType,
    /// Key that opens the volume, by reference: file:PATH or fd:N, say. It becomes the passphrase of key slot 0; the
    /// volume key is drawn at random
    #[arg(long, value_name = "REFERENCE")]
    key: String,
    #[command(flatten)]
    keys: KeyArgs,
    /// aes-xts-plain64 or aes-xts-plain
    #[arg(long, default_value = "aes-xts-plain64")]
    cipher: String,
    /// Both halves of the XTS key: 256 (AES-128) or 512 (AES-256) bits
    #[arg(long, value_name = "BITS", default_value_t = 512)]
    key_size: u32,
    /// Encryption sector size, which is the guest's block size: 512, 1024, 2048 or 4096 bytes, or auto: the smallest
    /// that the storage can write, 512 nearly everywhere. 4096 is faster, and nothing for guests that boot by BIOS
    #[arg(long, value_name = "BYTES", default_value = "auto")]
    sector_size: String,
    #[command(flatten)]
    kdf: KdfArgs,
    /// Label of the volume (LUKS2), up to 47 bytes
    #[arg(long)]
    label: Option<String>,
    /// UUID of the volume [default: random]
    #[arg(long)]
    uuid: Option<Uuid>,
    /// Allocate the storage of a file now instead of when it is written
    #[arg(long)]
    preallocate: bool,
    /// Overwrite a volume that holds data or a known signature
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    confirm: ConfirmArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LuksType {
    Luks1,
    Luks2,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Formatted<'a> {
    volume: &'a Path,
    header: Option<&'a Path>,
    r#type: Version,
    uuid: &'a str,
    label: Option<&'a str>,
    cipher: &'a str,
    key_bits: u64,
    sector_bytes: u32,
    payload_offset_bytes: u64,
    payload_bytes: u64,
    slot: u32,
    kdf: Option<&'a Kdf>,
    header_digest: &'a str,
}

/// What options alone say of the header.
struct Choice {
    version: Version,
    iv_mode: IvMode,
    key_size: KeySize,
    /// None: the smallest that storage can write.
    sector_size: Option<SectorSize>,
}

/// A volume whose header is about to be written: a new file, or one that is there.
enum Place {
    New(NewFile),
    Present(OpenedVolume),
}

impl FormatCommand {
    pub(in super::super) fn run(self) -> Result<(), ToolError> {
        let choice = self.choice()?;
        let place = self.place()?;
        let detached = match &self.target.header {
            Some(path) => Some(begin_new(path)?),
            None => None,
        };
        let sector_size = choice.sector_size.unwrap_or_else(|| smallest_sector(place.file()));
        let extent = self.extent(&place, sector_size)?;
        let key = self.keys.fetch("--key", &self.key)?;
        let wanted = NewHeader {
            version: choice.version,
            iv_mode: choice.iv_mode,
            key_size: choice.key_size,
            sector_size,
            label: self.label.clone(),
            subsystem: None,
            uuid: self.uuid,
            kdf: self.kdf.resolve(&key, choice.version)?,
            extent,
        };
        let made = wanted.make(&key)?;
        let payload_bytes = self.payload_bytes(&place, &made)?;
        let placement = Placement {
            volume_bytes: made.payload_offset_bytes.saturating_add(payload_bytes),
            detached: detached.is_some(),
        };
        Policy::default().verdict(made.header.description(), placement).map_err(LuksError::Refused)?;
        self.write(place, detached, &made, placement)?;
        let header = self.verify(&key, placement)?;
        self.report(header.description(), placement.volume_bytes - made.payload_offset_bytes)
    }

    /// What options alone say of the header, checked.
    fn choice(&self) -> Result<Choice, ConfigError> {
        let version = match self.r#type {
            LuksType::Luks1 => Version::Luks1,
            LuksType::Luks2 => Version::Luks2,
        };
        let iv_mode = match self.cipher.parse() {
            Ok(CipherSpec { iv_mode: mode @ (IvMode::Plain64 | IvMode::Plain) }) => mode,
            _ => return Err(impossible("--cipher", &self.cipher, "aes-xts-plain64 or aes-xts-plain")),
        };
        let key_size = KeySize::from_bits(self.key_size)
            .ok_or_else(|| impossible("--key-size", self.key_size, "256 or 512 bits"))?;
        let asked = match self.sector_size.as_str() {
            "auto" => None,
            bytes => Some(bytes.parse().ok().and_then(SectorSize::new).ok_or_else(|| {
                impossible("--sector-size", bytes, "512, 1024, 2048 or 4096 bytes, or auto")
            })?),
        };
        let sector_size = match version {
            Version::Luks1 => Some(SectorSize::BYTES_512),
            Version::Luks2 => asked,
        };
        if asked.is_some() && asked != sector_size {
            return Err(impossible("--sector-size", &self.sector_size, "LUKS1 has sectors of 512 bytes"));
        }
        match &self.label {
            Some(label) if version == Version::Luks1 => Err(impossible("--label", label, "LUKS1 has none")),
            Some(label) if label.is_empty() || label.len() > LABEL_BYTES_MAX => {
                Err(impossible("--label", label, "1 to 47 bytes"))
            }
            _ => Ok(Choice { version, iv_mode, key_size, sector_size }),
        }
    }

    /// Opens the volume, or begins a new file. What it holds is looked at before anything else.
    fn place(&self) -> Result<Place, ToolError> {
        let path = &self.target.volume;
        if !path.exists() {
            if self.size.is_none() {
                return Err(ConfigError::Missing("--size SIZE (the file is not there yet)").into());
            }
            return begin_new(path).map(Place::New);
        }
        let config = VolumeConfig { path: path.clone(), read_only: false, direct: false };
        let present = open_volume(&config)?;
        target::claim(&present)?;
        if present.is_block_device && self.preallocate {
            return Err(impossible("--preallocate", "", "it is for files, not for devices").into());
        }
        let contents = signature::examine(&present.file, present.size_bytes)
            .map_err(|source| ToolError::File { what: "read", path: path.clone(), source })?;
        if contents != Contents::Zeroes {
            if !self.force {
                return Err(ToolError::HoldsData { path: path.clone(), contents });
            }
            self.confirm.confirm(&format!("{} holds {contents}, which will be lost", path.display()))?;
        }
        Ok(Place::Present(present))
    }

    /// What the header is for. The size of an empty file is not settled yet.
    fn extent(&self, place: &Place, sector_size: SectorSize) -> Result<Extent, ToolError> {
        let detached = self.target.header.is_some();
        Ok(match place {
            Place::Present(present) if present.size_bytes > 0 => match detached {
                true => Extent::Detached(present.size_bytes),
                false => Extent::Volume(present.size_bytes),
            },
            _ => {
                let bytes = self.size.ok_or(ConfigError::Missing("--size SIZE (the file is empty)"))?.0;
                if bytes == 0 || bytes > (i64::MAX as u64) / 2 {
                    return Err(impossible("--size", bytes, "more than nothing, and less than 4 EiB").into());
                }
                if !bytes.is_multiple_of(sector_size.bytes().into()) {
                    let possible = format!("a multiple of the sector size, {} bytes", sector_size.bytes());
                    return Err(impossible("--size", bytes, &possible).into());
                }
                if detached { Extent::Detached(bytes) } else { Extent::Payload(bytes) }
            }
        })
    }

    /// Bytes that the guest is going to see.
    fn payload_bytes(&self, place: &Place, made: &MadeHeader) -> Result<u64, ToolError> {
        let Place::Present(present) = place else { return Ok(self.size.map_or(0, |size| size.0)) };
        if present.size_bytes == 0 {
            return Ok(self.size.map_or(0, |size| size.0));
        }
        let payload_bytes = present.size_bytes - made.payload_offset_bytes;
        match self.size {
            Some(ByteSize(asked_bytes)) if asked_bytes != payload_bytes => {
                Err(ToolError::Size { path: self.target.volume.clone(), asked_bytes, payload_bytes })
            }
            _ => Ok(payload_bytes),
        }
    }

    /// Writes volume and header. New files get their names only now, the header's last.
    fn write(
        &self,
        place: Place,
        detached: Option<NewFile>,
        made: &MadeHeader,
        placement: Placement,
    ) -> Result<(), ToolError> {
        let path = &self.target.volume;
        let failed = |source| ToolError::File { what: "write", path: path.clone(), source };
        let file = place.file();
        let is_device = matches!(&place, Place::Present(present) if present.is_block_device);
        if !is_device {
            file.set_len(placement.volume_bytes).map_err(failed)?;
        }
        if self.force {
            signature::wipe(file).map_err(failed)?;
        }
        if self.preallocate {
            preallocate(file, placement.volume_bytes).map_err(failed)?;
        }
        match &detached {
            Some(header) => {
                let area_bytes = made.header.snapshot().area_bytes();
                let failed = |source| header_failed(&self.target.header, source);
                header.file().set_len(area_bytes).map_err(failed)?;
                backup::put(header.file(), &made.header, 0)?;
            }
            None => backup::put(file, &made.header, made.payload_offset_bytes)?,
        }
        match place {
            Place::New(new) => publish(new, path)?,
            Place::Present(present) => present.file.sync_all().map_err(failed)?,
        }
        match (detached, &self.target.header) {
            (Some(header), Some(path)) => publish(header, path),
            _ => Ok(()),
        }
    }

    /// Opens what was written, from storage and with the key, as `serve` would.
    fn verify(&self, key: &Secret, placement: Placement) -> Result<Header, ToolError> {
        let target = self.target.open_beside_others(false)?;
        let header = target.read_header()?;
        if target.placement() != placement {
            return Err(EditError::Verification("the volume's size").into());
        }
        header.unlock(&Policy::default(), placement, key, EqualHalves::Refuse)?;
        Ok(header)
    }

    fn report(&self, header: &Description, payload_bytes: u64) -> Result<(), ToolError> {
        let (segment, slot) = match (&header.segments[..], &header.slots[..]) {
            ([segment], [slot]) => (segment, slot),
            _ => return Err(EditError::Verification("the header").into()),
        };
        let formatted = Formatted {
            volume: &self.target.volume,
            header: self.target.header.as_deref(),
            r#type: header.version,
            uuid: &header.uuid,
            label: header.label.as_deref(),
            cipher: segment.cipher.as_deref().unwrap_or_default(),
            key_bits: segment.key_bits.unwrap_or(0),
            sector_bytes: segment.sector_bytes,
            payload_offset_bytes: segment.offset_bytes,
            payload_bytes,
            slot: slot.id,
            kdf: slot.kdf.as_ref(),
            header_digest: &header.header_digest,
        };
        output::print(self.target.json, &formatted, Formatted::text)
    }
}

impl Formatted<'_> {
    fn text(&self) -> String {
        let kdf = self.kdf.map(ToString::to_string).unwrap_or_default();
        format!(
            "{}: {} volume {}\n  the guest sees {} in blocks of {} bytes\n  {} with a key of {} bits; \
             the key given opens slot {} ({kdf})",
            output::printable(&self.volume.display().to_string()),
            self.r#type,
            self.uuid,
            output::bytes(self.payload_bytes),
            self.sector_bytes,
            self.cipher,
            self.key_bits,
            self.slot,
        )
    }
}

impl Place {
    fn file(&self) -> &File {
        match self {
            Self::New(new) => new.file(),
            Self::Present(present) => &present.file,
        }
    }
}

fn begin_new(path: &Path) -> Result<NewFile, ToolError> {
    NewFile::create(path).map_err(|source| ToolError::new_file(path, source))
}

fn publish(new: NewFile, path: &Path) -> Result<(), ToolError> {
    new.publish().map(|_| ()).map_err(|source| ToolError::new_file(path, source))
}

fn header_failed(path: &Option<PathBuf>, source: io::Error) -> ToolError {
    ToolError::File { what: "write", path: path.clone().unwrap_or_default(), source }
}
