//! `sealblk header`: the header of a LUKS volume saved to a file, and brought back.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::super::confirm::ConfirmArgs;
use super::super::exit::Exit;
use super::super::output;
use super::super::tool_error::ToolError;
use super::VolumeArgs;
use super::target::Target;
use crate::format::luks::{Header, LuksError, Policy, Version, backup};
use crate::format::new_file::NewFile;
use crate::format::signature::{self, Contents};

/// The commands of `sealblk header`.
#[derive(Debug, Args)]
#[command(after_help = Exit::table())]
pub(in super::super) struct HeaderCommand {
    #[command(subcommand)]
    action: HeaderAction,
}

#[derive(Debug, Subcommand)]
enum HeaderAction {
    /// Save header and key slots to a new file. Whoever has that and a key that opened it can read the volume, even
    /// when the key was removed from the volume since
    Backup(BackupCommand),
    /// Replace header and key slots by those of a backup
    Restore(RestoreCommand),
}

#[derive(Debug, Args)]
struct BackupCommand {
    #[command(flatten)]
    target: VolumeArgs,
    /// File to make, with mode 0600
    backup: PathBuf,
}

#[derive(Debug, Args)]
struct RestoreCommand {
    #[command(flatten)]
    target: VolumeArgs,
    /// File made by `sealblk header backup` or `cryptsetup luksHeaderBackup`
    backup: PathBuf,
    /// Restore a backup that seems to be of another volume, or onto something that is no LUKS volume
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    confirm: ConfirmArgs,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Done<'a> {
    volume: &'a Path,
    backup: &'a Path,
    r#type: Version,
    uuid: &'a str,
    bytes: u64,
    header_digest: &'a str,
}

impl HeaderCommand {
    pub(in super::super) fn run(self) -> Result<(), ToolError> {
        match self.action {
            HeaderAction::Backup(command) => command.run(),
            HeaderAction::Restore(command) => command.run(),
        }
    }
}

impl BackupCommand {
    fn run(&self) -> Result<(), ToolError> {
        let header = self.target.open_beside_others(false)?.read_header()?;
        let failed = |source| ToolError::new_file(&self.backup, source);
        let file = NewFile::create(&self.backup).map_err(failed)?;
        backup::save(&header, file.file()).map_err(failed)?;
        file.publish().map_err(failed)?;
        report(&self.target, &self.backup, &header, "saved to")
    }
}

impl RestoreCommand {
    fn run(&self) -> Result<(), ToolError> {
        let saved = backup::load(&self.backup)?;
        let target = self.target.open_alone()?;
        self.check(&saved, &target)?;
        let path = self.target.volume.display();
        self.confirm.confirm(&format!(
            "The header of {path} will be replaced: keys added since the backup will open nothing, keys removed \
             since will open it again"
        ))?;
        let restored = backup::restore(&target.header_device().file, &saved)?;
        report(&self.target, &self.backup, &restored, "restored from")
    }

    /// Whether the backup is one of this volume, as far as can be told.
    fn check(&self, saved: &Header, target: &Target) -> Result<(), ToolError> {
        if self.force {
            return Ok(());
        }
        Policy::default().verdict(saved.description(), target.placement()).map_err(LuksError::Refused)?;
        if let Ok(present) = target.read_header() {
            return Ok(backup::check_fit(saved.description(), present.description())?);
        }
        let device = target.header_device();
        let path = || self.target.header.as_ref().unwrap_or(&self.target.volume).clone();
        let contents = signature::examine(&device.file, device.size_bytes)
            .map_err(|source| ToolError::File { what: "read", path: path(), source })?;
        match contents {
            Contents::Signature(_) if !contents.is_luks() => {
                Err(ToolError::HoldsData { path: path(), contents })
            }
            _ => Ok(()),
        }
    }
}

fn report(target: &VolumeArgs, backup: &Path, header: &Header, what: &str) -> Result<(), ToolError> {
    let description = header.description();
    let done = Done {
        volume: &target.volume,
        backup,
        r#type: description.version,
        uuid: &description.uuid,
        bytes: header.snapshot().area_bytes(),
        header_digest: &description.header_digest,
    };
    output::print(target.json, &done, |done| {
        let path = |path: &Path| output::printable(&path.display().to_string());
        format!(
            "{}: header of {} volume {} {what} {}",
            path(done.volume),
            done.r#type,
            done.uuid,
            path(done.backup)
        )
    })
}
