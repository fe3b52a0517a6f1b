//! `sealblk convert`: its options, and the hidden command that it starts for images.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use indicatif::HumanBytes;
use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};

use super::exit::{CliError, Exit};
use super::log::{self, LogLevel};
use super::progress::TerminalProgress;
use super::resolve::ConfigError;
use super::volume::ByteSize;
use crate::cipher::EqualHalves;
use crate::convert::{
    ConvertConfig, DestinationConfig, DestinationFormat, ImageFormat, ImageSource, ImageTool, Overwrite,
    Report, SourceConfig, SourceFormat, Unwritten, convert,
};
use crate::format::luks::{Expectations, LuksFormat, Policy, Version};
use crate::geometry::SectorSize;
use crate::keys::{FixedKey, KeyManagers, KeySource};

mod ends;
mod exit;

pub(super) use exit::convert_exit;

use ends::{DestinationOptions, EndOptions, LUKS_OPTIONS, LUKS_SOURCE_OPTIONS, PLAIN_OPTIONS, SourceOptions};

/// Options of `sealblk convert`.
#[derive(Debug, Args)]
#[command(after_help = Exit::table())]
pub(super) struct ConvertCommand {
    /// What to read: a file or block device, which nobody may be writing to
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// What to make: a new file, or a block device
    #[arg(value_name = "DST")]
    destination: PathBuf,
    /// What lies in SRC; never guessed
    #[arg(long, value_name = "FORMAT")]
    from: FromFormat,
    /// What DST is to be
    #[arg(long, value_name = "FORMAT", default_value = "luks2")]
    to: ToFormat,
    /// Size of the new disk, such as 20G, if it is to be larger than the old one; the rest is zeroes
    #[arg(long)]
    size: Option<ByteSize>,
    /// Read both ends again when all is written, and compare
    #[arg(long)]
    verify: bool,
    /// Replace DST if it is a file (when the new one is complete), overwrite it if it is a device
    #[arg(long)]
    force: bool,
    /// Leave out what was never written in an encrypted SRC: saves space, shows which parts are unused, and those
    /// read as other random bytes than before
    #[arg(long)]
    sparse: bool,
    /// Let an image take content from other files that it names (backing file, data file, extents)
    #[arg(long)]
    allow_linked_files: bool,
    /// File with the profiles of key managers [default: /etc/sealblk/keys.toml]
    #[arg(long, value_name = "FILE")]
    key_config: Option<PathBuf>,
    /// Allow something unsafe by name; may be repeated
    #[arg(long, value_name = "GATE")]
    insecure: Vec<ConvertGate>,
    /// Print the result in JSON
    #[arg(long)]
    json: bool,
    /// How much to log, on standard error [default: warn]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<LogLevel>,

    #[command(flatten)]
    source_options: SourceOptions,
    #[command(flatten)]
    destination_options: DestinationOptions,
}

/// What can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FromFormat {
    /// The disk's content as it is
    #[value(alias = "none")]
    Raw,
    /// LUKS1 or LUKS2, as its header says
    Luks,
    /// LUKS1
    Luks1,
    /// LUKS2
    Luks2,
    /// dm-crypt's plain mode: encrypted, without a header
    Plain,
    /// QEMU's image format
    Qcow2,
    /// QEMU's former enhanced format
    Qed,
    /// VirtualBox
    Vdi,
    /// Hyper-V
    Vhdx,
    /// Virtual PC and Azure (VHD)
    Vpc,
    /// VMware
    Vmdk,
}

impl FromFormat {
    fn image(self) -> Option<ImageFormat> {
        match self {
            Self::Raw | Self::Luks | Self::Luks1 | Self::Luks2 | Self::Plain => None,
            Self::Qcow2 => Some(ImageFormat::Qcow2),
            Self::Qed => Some(ImageFormat::Qed),
            Self::Vdi => Some(ImageFormat::Vdi),
            Self::Vhdx => Some(ImageFormat::Vhdx),
            Self::Vpc => Some(ImageFormat::Vpc),
            Self::Vmdk => Some(ImageFormat::Vmdk),
        }
    }
}

/// What can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ToFormat {
    /// LUKS2
    Luks2,
    /// LUKS1
    Luks1,
    /// dm-crypt's plain mode: encrypted, without a header
    Plain,
    /// The disk's content as it is: not encrypted
    #[value(alias = "none")]
    Raw,
}

/// What is refused unless the operator names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ConvertGate {
    /// Accept an old source's key whose two halves are equal
    EqualKeyHalves,
    /// Use one key for all volumes of all projects, as the `fixed_key` of OpenStack's files
    FixedKey,
}

impl ConvertCommand {
    pub(super) fn run(self) -> Result<(), CliError> {
        log::start(self.log_level.unwrap_or(LogLevel::Warn));
        let config = self.config()?;
        let stop = stop_on_signals().map_err(CliError::Signals)?;
        let progress = TerminalProgress::default();
        let started = Instant::now();
        let report = convert(config, &progress, &stop);
        progress.clear();
        self.tell(&report?, started.elapsed())
    }

    fn config(&self) -> Result<ConvertConfig, CliError> {
        let (source, destination) = (self.source_options.of_end(), self.destination_options.of_end());
        let fixed_key = match self.insecure.contains(&ConvertGate::FixedKey) {
            true => FixedKey::Accept,
            false => FixedKey::Refuse,
        };
        let managers = KeyManagers::new(self.key_config.as_deref(), fixed_key).map_err(ConfigError::from)?;
        let (source_format, source_key) = self.source(&source, &managers)?;
        let (format, key) = self.destination(&destination, &managers)?;
        let overwrite = if self.force { Overwrite::Allow } else { Overwrite::Refuse };
        Ok(ConvertConfig {
            source: SourceConfig { path: self.source.clone(), format: source_format, key: source_key },
            destination: DestinationConfig {
                path: self.destination.clone(),
                format,
                sector_size: destination.sector_size,
                key,
                overwrite,
            },
            size_bytes: self.size.map(|size| size.0),
            unwritten: if self.sparse { Unwritten::Skip } else { Unwritten::Read },
            verify: self.verify,
        })
    }

    fn source(
        &self,
        end: &EndOptions<'_>,
        managers: &KeyManagers,
    ) -> Result<(SourceFormat, Option<KeySource>), CliError> {
        if self.allow_linked_files && self.from.image().is_none() {
            return Err(CliError::Usage(
                "--allow-linked-files has no meaning: only images name files".to_owned(),
            ));
        }
        let equal_halves = match self.insecure.contains(&ConvertGate::EqualKeyHalves) {
            true => EqualHalves::Accept,
            false => EqualHalves::Refuse,
        };
        let version = match self.from {
            FromFormat::Raw => {
                end.only(&["offset"], "raw")?;
                return Ok((SourceFormat::Raw { offset_sectors: end.offset_sectors() }, None));
            }
            FromFormat::Plain => {
                end.only(PLAIN_OPTIONS, "plain")?;
                let (format, key) = (end.plain_format(equal_halves)?, end.key(managers)?);
                return Ok((SourceFormat::Volume(Box::new(format)), Some(key)));
            }
            FromFormat::Luks => None,
            FromFormat::Luks1 => Some(Version::Luks1),
            FromFormat::Luks2 => Some(Version::Luks2),
            _ => {
                let format = self.from.image().expect("all others are images");
                end.only(&[], format.name())?;
                let image = ImageSource { format, linked_files: self.allow_linked_files };
                return Ok((SourceFormat::Image(image), None));
            }
        };
        end.only(LUKS_SOURCE_OPTIONS, "luks")?;
        let expect = Expectations { version, ..Expectations::default() };
        let policy = Policy { kdf: self.source_options.kdf_limits(), expect, slot: end.key_slot };
        let format = LuksFormat { header: end.header.map(Path::to_owned), policy, equal_halves };
        Ok((SourceFormat::Volume(Box::new(format)), Some(end.key(managers)?)))
    }

    fn destination(
        &self,
        end: &EndOptions<'_>,
        managers: &KeyManagers,
    ) -> Result<(DestinationFormat, Option<KeySource>), CliError> {
        let version = match self.to {
            ToFormat::Raw => {
                end.only(&[], "raw")?;
                return Ok((DestinationFormat::Raw, None));
            }
            ToFormat::Plain => {
                end.only(PLAIN_OPTIONS, "plain")?;
                let format = end.plain_format(EqualHalves::Refuse)?;
                return Ok((DestinationFormat::Plain(format), Some(end.key(managers)?)));
            }
            ToFormat::Luks1 => Version::Luks1,
            ToFormat::Luks2 => Version::Luks2,
        };
        end.only(LUKS_OPTIONS, "luks")?;
        Ok((DestinationFormat::Luks(end.luks_destination(version)?), Some(end.key(managers)?)))
    }

    /// Tells what was done, on standard output.
    fn tell(&self, report: &Report, took: Duration) -> Result<(), CliError> {
        let seconds = took.as_secs_f64();
        let destination = self.destination.display();
        if self.json {
            let result = serde_json::json!({
                "destination": destination.to_string(),
                "source_bytes": report.source_bytes,
                "disk_bytes": report.disk_bytes,
                "sector_bytes": report.sector_size.map(SectorSize::bytes),
                "read_bytes": report.read_bytes,
                "verified": report.verified,
                "seconds": seconds,
            });
            return super::print(&result.to_string());
        }
        let verified = if report.verified { ", verified" } else { "" };
        let size = HumanBytes(report.disk_bytes);
        let sectors =
            report.sector_size.map(|size| format!(", in encrypted sectors of {} bytes", size.bytes()));
        let sectors = sectors.unwrap_or_default();
        super::print(&format!("{destination}: a disk of {size}{sectors}, made in {seconds:.1} s{verified}"))
    }
}

/// Becomes set at the first signal; the second ends the process, should something hang.
fn stop_on_signals() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, Exit::Failure as i32, Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    // Left alone, a file that may not grow any more would end the process; the write is to fail instead.
    signal_hook::flag::register(SIGXFSZ, Arc::default())?;
    Ok(stop)
}

/// The hidden command that becomes a program of QEMU's.
#[derive(Debug, Args)]
pub(super) struct ImageToolCommand {
    /// The process that asks
    #[arg(long)]
    parent: i32,
    /// Hand standard output on as a listening socket
    #[arg(long)]
    listen: bool,
    /// Do without the confinement
    #[arg(long)]
    linked_files: bool,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

impl ImageToolCommand {
    pub(super) fn run(self) -> Result<(), CliError> {
        let program = self.command.first().map(|program| program.display().to_string()).unwrap_or_default();
        let tool = ImageTool {
            parent: self.parent,
            listen: self.listen,
            linked_files: self.linked_files,
            command: self.command,
        };
        Err(CliError::ImageTool { program, source: tool.exec() })
    }
}
