//! `sealblk ephemeral list`.

use std::path::PathBuf;

use clap::Args;
use comfy_table::{Table, presets};
use serde::Serialize;

use super::serve_options::ServeOptions;
use super::{ShownPlace, disk_keys};
use crate::cli::key::ManagerArgs;
use crate::cli::output::{self, printable};
use crate::cli::tool_error::ToolError;
use crate::ephemeral::{self, DiskState, ListedDisk};

/// The options of `sealblk ephemeral list`.
#[derive(Debug, Args)]
pub(super) struct ListCommand {
    /// Look for disks without a key among the files of this folder, too; may be repeated
    #[arg(long, value_name = "PATH")]
    folder: Vec<PathBuf>,
    #[command(flatten)]
    manager: ManagerArgs,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Listed {
    key_manager: String,
    disks: Vec<Shown>,
    /// Why logical volumes could not be looked through.
    lvm_problem: Option<String>,
}

#[derive(Debug, Serialize)]
struct Shown {
    uuid: String,
    #[serde(flatten)]
    place: ShownPlace,
    /// The file or device, if it is there.
    path: Option<PathBuf>,
    format: Option<String>,
    key: Option<String>,
    state: &'static str,
    /// Why the disk cannot be looked at.
    problem: Option<String>,
    /// For a disk that is whole.
    serve: Option<ServeOptions>,
    #[serde(skip)]
    place_text: String,
}

impl ListCommand {
    pub(super) fn run(&self) -> Result<(), ToolError> {
        let key_config = self.manager.key_config_path()?;
        let listing = ephemeral::list(&disk_keys(&self.manager)?, &self.folder)?;
        let shown = |disk: ListedDisk| Shown::new(disk, key_config.as_ref());
        let listed = Listed {
            key_manager: self.manager.name()?.to_string(),
            disks: listing.disks.into_iter().map(shown).collect(),
            lvm_problem: listing.lvm_problem,
        };
        output::print(self.manager.json, &listed, Listed::text)
    }
}

impl Shown {
    fn new(disk: ListedDisk, key_config: Option<&PathBuf>) -> Self {
        let state = word(&disk.state);
        let serve = match (&disk.state, &disk.path, disk.format, &disk.key) {
            (DiskState::Whole, Some(path), Some(format), Some(key)) => {
                Some(ServeOptions::new(path, format, disk.uuid, key.clone(), key_config.cloned()))
            }
            _ => None,
        };
        Self {
            uuid: disk.uuid.to_string(),
            place: (&disk.place).into(),
            path: disk.path,
            format: disk.format.map(|format| format.to_string()),
            key: disk.key.map(|key| key.to_string()),
            state,
            problem: match disk.state {
                DiskState::Unknown(problem) => Some(problem),
                _ => None,
            },
            serve,
            place_text: disk.place.to_string(),
        }
    }
}

/// What a state is called.
fn word(state: &DiskState) -> &'static str {
    match state {
        DiskState::Whole => "whole",
        DiskState::Unfinished => "unfinished",
        DiskState::NoDisk => "no-disk",
        DiskState::KeyDestroyed => "key-destroyed",
        DiskState::NoKey => "no-key",
        DiskState::Unknown(_) => "unknown",
    }
}

impl Listed {
    fn text(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(["UUID", "STATE", "FORMAT", "DISK", "KEY"]);
        for disk in &self.disks {
            table.add_row([
                disk.uuid.clone(),
                disk.state.to_owned(),
                disk.format.clone().unwrap_or("-".to_owned()),
                printable(&disk.place_text),
                printable(disk.key.as_deref().unwrap_or("-")),
            ]);
        }
        let problems = self.disks.iter().filter_map(|disk| Some((&disk.place_text, disk.problem.as_ref()?)));
        let mut lines = vec![table.to_string()];
        lines.extend(problems.map(|(place, problem)| printable(&format!("{place}: {problem}"))));
        lines.extend(
            self.lvm_problem
                .iter()
                .map(|problem| printable(&format!("logical volumes were not looked through: {problem}"))),
        );
        lines.join("\n")
    }
}
