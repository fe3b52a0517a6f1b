//! What has to be said of either end of a conversion: the same options with `--src-` and `--dst-` before them.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::cipher::{CipherSpec, EqualHalves, IvMode};
use crate::cli::exit::CliError;
use crate::cli::resolve::ConfigError;
use crate::cli::serve::PlainHash;
use crate::convert::LuksDestination;
use crate::format::luks::{KdfLimits, Version};
use crate::format::plain::{KeySize, PlainFormat, PlainSecret};
use crate::geometry::SectorSize;
use crate::keys::{KeyManagers, KeyReference, KeySource};

const SOURCE: &str = "Source";
const DESTINATION: &str = "Destination";

/// Options of a plain volume.
pub(super) const PLAIN_OPTIONS: &[&str] =
    &["key", "cipher", "key-size", "plain-hash", "sector-size", "offset", "skip", "iv-large-sectors"];
/// Options of a LUKS volume that is read.
pub(super) const LUKS_SOURCE_OPTIONS: &[&str] = &["key", "key-slot", "header"];
/// Options of a LUKS volume that is made.
pub(super) const LUKS_OPTIONS: &[&str] = &["key", "cipher", "key-size", "sector-size", "header", "label"];

/// How to read SRC.
#[derive(Debug, Args)]
pub(super) struct SourceOptions {
    /// Key of an encrypted volume, by reference: file:PATH or fd:N, say. For LUKS it is the passphrase, for plain the
    /// volume key itself
    #[arg(long, value_name = "REFERENCE", help_heading = SOURCE)]
    src_key: Option<String>,
    /// LUKS: try the passphrase on this key slot only [default: on all]
    #[arg(long, value_name = "N", help_heading = SOURCE)]
    src_key_slot: Option<u32>,
    /// LUKS: the file or device with its header, if that is not on SRC
    #[arg(long, value_name = "PATH", help_heading = SOURCE)]
    src_header: Option<PathBuf>,
    /// plain: aes-xts-plain64, aes-xts-plain or aes-xts-plain64be [default: aes-xts-plain64]
    #[arg(long, value_name = "CIPHER", help_heading = SOURCE)]
    src_cipher: Option<CipherSpec>,
    /// plain: both halves of the XTS key, 256 or 512 bits [default: 512]
    #[arg(long, value_name = "BITS", value_parser = key_size, help_heading = SOURCE)]
    src_key_size: Option<KeySize>,
    /// plain: the key is a passphrase, made into a volume key with this hash (cryptsetup took ripemd160 before 2.7,
    /// sha256 since); `none`: it is the volume key even if it looks like text
    #[arg(long, value_name = "HASH", help_heading = SOURCE)]
    src_plain_hash: Option<PlainHash>,
    /// plain: encryption sector size, 512, 1024, 2048 or 4096 bytes [default: 512]
    #[arg(long, value_name = "BYTES", value_parser = sector_size, help_heading = SOURCE)]
    src_sector_size: Option<SectorSize>,
    /// plain, raw: begin of the disk's content, in sectors of 512 bytes [default: 0]
    #[arg(long, value_name = "SECTORS", help_heading = SOURCE)]
    src_offset: Option<u64>,
    /// plain: number of the first sector's IV, in sectors of 512 bytes [default: 0]
    #[arg(long, value_name = "SECTORS", help_heading = SOURCE)]
    src_skip: Option<u64>,
    /// plain: count IVs in encryption sectors instead of 512-byte sectors
    #[arg(long, help_heading = SOURCE)]
    src_iv_large_sectors: bool,
    /// LUKS: most memory that Argon2 may take, in MiB [default: 1024]
    #[arg(long, value_name = "MIB", help_heading = SOURCE)]
    kdf_memory_max: Option<u32>,
    /// LUKS: most memory that Argon2 may go through, passes times memory over all slots tried, in GiB [default: 128]
    #[arg(long, value_name = "GIB", help_heading = SOURCE)]
    kdf_work_max: Option<u32>,
    /// LUKS: most threads of Argon2 [default: 4]
    #[arg(long, value_name = "COUNT", help_heading = SOURCE)]
    kdf_threads_max: Option<u32>,
    /// LUKS: most iterations of PBKDF2 over all slots tried [default: 100000000]
    #[arg(long, value_name = "COUNT", help_heading = SOURCE)]
    kdf_iterations_max: Option<u32>,
}

/// How to write DST.
#[derive(Debug, Args)]
pub(super) struct DestinationOptions {
    /// Key of an encrypted volume, by reference: file:PATH or fd:N, say. For LUKS it is the passphrase, for plain the
    /// volume key itself
    #[arg(long, value_name = "REFERENCE", help_heading = DESTINATION)]
    dst_key: Option<String>,
    /// LUKS: put the header into this new file
    #[arg(long, value_name = "PATH", help_heading = DESTINATION)]
    dst_header: Option<PathBuf>,
    /// LUKS2: a label for the volume
    #[arg(long, value_name = "TEXT", help_heading = DESTINATION)]
    dst_label: Option<String>,
    /// aes-xts-plain64 or aes-xts-plain; plain also aes-xts-plain64be [default: aes-xts-plain64]
    #[arg(long, value_name = "CIPHER", help_heading = DESTINATION)]
    dst_cipher: Option<CipherSpec>,
    /// Both halves of the XTS key, 256 or 512 bits [default: 512]
    #[arg(long, value_name = "BITS", value_parser = key_size, help_heading = DESTINATION)]
    dst_key_size: Option<KeySize>,
    /// plain: the key is a passphrase, made into a volume key with this hash (cryptsetup took ripemd160 before 2.7,
    /// sha256 since); `none`: it is the volume key even if it looks like text
    #[arg(long, value_name = "HASH", help_heading = DESTINATION)]
    dst_plain_hash: Option<PlainHash>,
    /// Encryption sector size: 512, 1024, 2048 or 4096 bytes; LUKS1 has 512 [default: that of an encrypted source,
    /// else 512]
    #[arg(long, value_name = "BYTES", value_parser = sector_size, help_heading = DESTINATION)]
    dst_sector_size: Option<SectorSize>,
    /// plain: begin of the disk's content, in sectors of 512 bytes [default: 0]
    #[arg(long, value_name = "SECTORS", help_heading = DESTINATION)]
    dst_offset: Option<u64>,
    /// plain: number of the first sector's IV, in sectors of 512 bytes [default: 0]
    #[arg(long, value_name = "SECTORS", help_heading = DESTINATION)]
    dst_skip: Option<u64>,
    /// plain: count IVs in encryption sectors instead of 512-byte sectors
    #[arg(long, help_heading = DESTINATION)]
    dst_iv_large_sectors: bool,
}

/// The options of one end, whichever.
pub(super) struct EndOptions<'a> {
    /// What the names of its options begin with.
    prefix: &'static str,
    key: Option<&'a str>,
    pub(super) key_slot: Option<u32>,
    pub(super) header: Option<&'a Path>,
    label: Option<&'a str>,
    cipher: Option<CipherSpec>,
    key_size: Option<KeySize>,
    plain_hash: Option<PlainHash>,
    pub(super) sector_size: Option<SectorSize>,
    offset_sectors: Option<u64>,
    skip_sectors: Option<u64>,
    iv_large_sectors: bool,
}

impl SourceOptions {
    pub(super) fn of_end(&self) -> EndOptions<'_> {
        EndOptions {
            prefix: "--src-",
            key: self.src_key.as_deref(),
            key_slot: self.src_key_slot,
            header: self.src_header.as_deref(),
            label: None,
            cipher: self.src_cipher,
            key_size: self.src_key_size,
            plain_hash: self.src_plain_hash,
            sector_size: self.src_sector_size,
            offset_sectors: self.src_offset,
            skip_sectors: self.src_skip,
            iv_large_sectors: self.src_iv_large_sectors,
        }
    }
}

impl SourceOptions {
    pub(super) fn kdf_limits(&self) -> KdfLimits {
        let default = KdfLimits::default();
        KdfLimits {
            memory_mib: self.kdf_memory_max.unwrap_or(default.memory_mib),
            work_gib: self.kdf_work_max.unwrap_or(default.work_gib),
            threads: self.kdf_threads_max.unwrap_or(default.threads),
            iterations: self.kdf_iterations_max.unwrap_or(default.iterations),
        }
    }
}

impl DestinationOptions {
    pub(super) fn of_end(&self) -> EndOptions<'_> {
        EndOptions {
            prefix: "--dst-",
            key: self.dst_key.as_deref(),
            key_slot: None,
            header: self.dst_header.as_deref(),
            label: self.dst_label.as_deref(),
            cipher: self.dst_cipher,
            key_size: self.dst_key_size,
            plain_hash: self.dst_plain_hash,
            sector_size: self.dst_sector_size,
            offset_sectors: self.dst_offset,
            skip_sectors: self.dst_skip,
            iv_large_sectors: self.dst_iv_large_sectors,
        }
    }
}

impl EndOptions<'_> {
    /// The key of an end that has to have one.
    pub(super) fn key(&self, managers: &KeyManagers) -> Result<KeySource, CliError> {
        let usage = |error: String| CliError::Usage(format!("{}key{error}", self.prefix));
        let reference =
            self.key.ok_or_else(|| usage(" REFERENCE is required for an encrypted volume".to_owned()))?;
        // What was given may be a key instead of its name: it is not repeated.
        let reference: KeyReference = reference.parse().map_err(|error| usage(format!(": {error}")))?;
        managers.source(&reference).map_err(|error| ConfigError::from(error).into())
    }

    /// Refuses every option that was given and is not among `meant`, for an end in `format`.
    pub(super) fn only(&self, meant: &[&str], format: &str) -> Result<(), CliError> {
        let given = [
            ("key", self.key.is_some()),
            ("key-slot", self.key_slot.is_some()),
            ("header", self.header.is_some()),
            ("label", self.label.is_some()),
            ("cipher", self.cipher.is_some()),
            ("key-size", self.key_size.is_some()),
            ("plain-hash", self.plain_hash.is_some()),
            ("sector-size", self.sector_size.is_some()),
            ("offset", self.offset_sectors.is_some()),
            ("skip", self.skip_sectors.is_some()),
            ("iv-large-sectors", self.iv_large_sectors),
        ];
        match given.iter().find(|(name, given)| *given && !meant.contains(name)) {
            None => Ok(()),
            Some((name, _)) => {
                Err(CliError::Usage(format!("{}{name} has no meaning with format {format}", self.prefix)))
            }
        }
    }

    pub(super) fn offset_sectors(&self) -> u64 {
        self.offset_sectors.unwrap_or(0)
    }

    pub(super) fn plain_format(&self, equal_halves: EqualHalves) -> Result<PlainFormat, CliError> {
        let sector_size = self.sector_size.unwrap_or(SectorSize::BYTES_512);
        if self.iv_large_sectors && sector_size == SectorSize::BYTES_512 {
            let prefix = self.prefix;
            let text = format!(
                "{prefix}iv-large-sectors changes nothing with sectors of 512 bytes, see {prefix}sector-size"
            );
            return Err(CliError::Usage(text));
        }
        let format = PlainFormat {
            cipher: self.cipher.unwrap_or(CipherSpec { iv_mode: IvMode::Plain64 }),
            key_size: self.key_size.unwrap_or(KeySize::Bits512),
            secret: self.plain_hash.map_or(PlainSecret::Key, PlainHash::secret),
            sector_size,
            iv_large_sectors: self.iv_large_sectors,
            offset_sectors: self.offset_sectors(),
            skip_sectors: self.skip_sectors.unwrap_or(0),
            equal_halves,
        };
        format.check().map_err(|error| CliError::Usage(format!("{}skip: {error}", self.prefix)))?;
        Ok(format)
    }
}

impl EndOptions<'_> {
    pub(super) fn luks_destination(&self, version: Version) -> Result<LuksDestination, CliError> {
        let refused = |text: &str| Err(CliError::Usage(format!("{}{text}", self.prefix)));
        let cipher = self.cipher.unwrap_or(CipherSpec { iv_mode: IvMode::Plain64 });
        if cipher.iv_mode == IvMode::Plain64Be {
            return refused("cipher aes-xts-plain64be has no meaning with LUKS");
        }
        if version == Version::Luks1 {
            if self.label.is_some() {
                return refused("label has no meaning with LUKS1, which has no labels");
            }
            if self.sector_size.is_some_and(|size| size != SectorSize::BYTES_512) {
                return refused("sector-size has no meaning with LUKS1, whose sectors have 512 bytes");
            }
        }
        Ok(LuksDestination {
            version,
            iv_mode: cipher.iv_mode,
            key_size: self.key_size.unwrap_or(KeySize::Bits512),
            sector_size: self.sector_size.unwrap_or(SectorSize::BYTES_512),
            label: self.label.map(str::to_owned),
            header_path: self.header.map(Path::to_owned),
        })
    }
}

fn key_size(bits: &str) -> Result<KeySize, String> {
    let size = bits.parse().ok().and_then(KeySize::from_bits);
    size.ok_or_else(|| "a key has 256 (AES-128) or 512 (AES-256) bits".to_owned())
}

fn sector_size(bytes: &str) -> Result<SectorSize, String> {
    let size = bytes.parse().ok().and_then(SectorSize::new);
    size.ok_or_else(|| "a sector has 512, 1024, 2048 or 4096 bytes".to_owned())
}
