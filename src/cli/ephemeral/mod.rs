//! `sealblk ephemeral`: disks that end with their key. One file for each command; here is what they share.

mod create;
mod destroy;
mod exit;
mod list;
mod serve_options;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

pub(super) use exit::ephemeral_exit;

use super::exit::Exit;
use super::key::ManagerArgs;
use super::tool_error::ToolError;
use crate::ephemeral::{DiskKeys, EphemeralError, Place, PlaceError};

/// The commands of `sealblk ephemeral`.
#[derive(Debug, Args)]
#[command(after_help = Exit::table())]
pub(super) struct EphemeralCommand {
    #[command(subcommand)]
    action: EphemeralAction,
}

#[derive(Debug, Subcommand)]
enum EphemeralAction {
    /// Make a disk with a new key of its own, which is in the key manager only
    Create(create::CreateCommand),
    /// Destroy the key of a disk, and with it the data, then remove the disk
    Destroy(destroy::DestroyCommand),
    /// Compare keys and disks, and name those that have lost each other
    List(list::ListCommand),
}

/// The place of a disk, as JSON has it.
#[derive(Debug, Default, Serialize)]
struct ShownPlace {
    /// The file's whole path.
    file: Option<PathBuf>,
    /// VG/NAME.
    lvm: Option<String>,
}

impl EphemeralCommand {
    pub(super) fn run(self) -> Result<(), ToolError> {
        match self.action {
            EphemeralAction::Create(command) => command.run(),
            EphemeralAction::Destroy(command) => command.run(),
            EphemeralAction::List(command) => command.run(),
        }
    }
}

impl From<&Place> for ShownPlace {
    fn from(place: &Place) -> Self {
        match place {
            Place::File(path) => Self { file: Some(path.clone()), lvm: None },
            Place::Lvm(name) => Self { file: None, lvm: Some(name.to_string()) },
        }
    }
}

/// The keys of the manager that `arguments` choose.
fn disk_keys(arguments: &ManagerArgs) -> Result<DiskKeys, ToolError> {
    Ok(DiskKeys::new(arguments.name()?, arguments.admin()?))
}

/// The place that `--file` or `--lvm` names, if one of them is there.
fn place(file: Option<&PathBuf>, lvm: Option<&String>) -> Result<Option<Place>, EphemeralError> {
    let place = match (file, lvm) {
        (Some(path), _) => Some(Place::file(path)),
        (None, Some(name)) => Some(name.parse().map(Place::Lvm)),
        (None, None) => None,
    };
    place.transpose().map_err(|error: PlaceError| error.into())
}
