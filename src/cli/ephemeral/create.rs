//! `sealblk ephemeral create`.

use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args, ValueEnum};
use serde::Serialize;

use super::serve_options::ServeOptions;
use super::{ShownPlace, disk_keys, place};
use crate::cli::key::ManagerArgs;
use crate::cli::output::{self, printable};
use crate::cli::resolve::{ConfigError, impossible};
use crate::cli::tool_error::ToolError;
use crate::cli::volume::ByteSize;
use crate::ephemeral::{self, CreatedDisk, NewDisk, NewFormat};
use crate::geometry::SectorSize;

/// The options of `sealblk ephemeral create`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("place").args(["file", "lvm"]).required(true)))]
pub(super) struct CreateCommand {
    /// Make the disk as this new file
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// Make the disk as this new logical volume
    #[arg(long, value_name = "VG/NAME")]
    lvm: Option<String>,
    /// Size of the disk that the guest sees, as 20G; LVM rounds up. For LUKS2 the disk takes 16 MiB more
    #[arg(long)]
    size: ByteSize,
    /// What to put on the disk
    #[arg(long, default_value = "luks2")]
    format: FormatName,
    /// Encryption sector size, which is the guest's block size: 512, 1024, 2048 or 4096 bytes, or auto: the smallest
    /// that the storage can write (plain on LVM: 512)
    #[arg(long, value_name = "BYTES", default_value = "auto")]
    sector_size: String,
    #[command(flatten)]
    manager: ManagerArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FormatName {
    /// LUKS2: the key opens a volume key of its own
    Luks2,
    /// No header: the key itself encrypts
    Plain,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Created<'a> {
    uuid: String,
    #[serde(flatten)]
    place: ShownPlace,
    /// The file or device.
    path: &'a Path,
    format: String,
    sector_bytes: u32,
    payload_bytes: u64,
    key: String,
    serve: ServeOptions,
}

impl CreateCommand {
    pub(super) fn run(&self) -> Result<(), ToolError> {
        let wanted = NewDisk {
            place: place(self.file.as_ref(), self.lvm.as_ref())?.expect("clap wants one of them"),
            size_bytes: self.size_bytes()?,
            kind: match self.format {
                FormatName::Luks2 => NewFormat::Luks2,
                FormatName::Plain => NewFormat::Plain,
            },
            sector_size: self.sector_size()?,
        };
        let CreatedDisk { association, path, key, geometry } =
            ephemeral::create(&disk_keys(&self.manager)?, &wanted)?;
        let created = Created {
            uuid: association.uuid.to_string(),
            place: (&association.place).into(),
            path: &path,
            format: association.format.to_string(),
            sector_bytes: geometry.sector_size.bytes(),
            payload_bytes: geometry.capacity_bytes,
            key: key.to_string(),
            serve: ServeOptions::new(
                &path,
                association.format,
                association.uuid,
                key,
                self.manager.key_config_path()?,
            ),
        };
        output::print(self.manager.json, &created, Created::text)
    }

    fn size_bytes(&self) -> Result<u64, ConfigError> {
        match self.size {
            ByteSize(bytes) if bytes > 0 && bytes <= (i64::MAX as u64) / 2 => Ok(bytes),
            ByteSize(bytes) => Err(impossible("--size", bytes, "more than nothing, and less than 4 EiB")),
        }
    }

    fn sector_size(&self) -> Result<Option<SectorSize>, ConfigError> {
        match self.sector_size.as_str() {
            "auto" => Ok(None),
            bytes => {
                bytes.parse().ok().and_then(SectorSize::new).map(Some).ok_or_else(|| {
                    impossible("--sector-size", bytes, "512, 1024, 2048 or 4096 bytes, or auto")
                })
            }
        }
    }
}

impl Created<'_> {
    fn text(&self) -> String {
        format!(
            "{}: ephemeral disk {} ({})\n  the guest sees {} in blocks of {} bytes\n  its key is {}; whoever destroys \
             it destroys the data\nserve it with\n  {}",
            printable(&self.path.display().to_string()),
            self.uuid,
            self.format,
            output::bytes(self.payload_bytes),
            self.sector_bytes,
            printable(&self.key),
            printable(&self.serve.command_line()),
        )
    }
}
