//! `sealblk ephemeral destroy`.

use std::path::PathBuf;

use clap::{ArgGroup, Args};
use serde::Serialize;
use uuid::Uuid;

use super::{ShownPlace, disk_keys, place};
use crate::cli::confirm::ConfirmArgs;
use crate::cli::key::ManagerArgs;
use crate::cli::output::{self, printable};
use crate::cli::tool_error::ToolError;
use crate::ephemeral::{Destroyed, Doomed, Place, Remains, Target};
use crate::keys::KeyReference;

/// The options of `sealblk ephemeral destroy`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("target").args(["file", "lvm", "uuid"]).required(true)))]
pub(super) struct DestroyCommand {
    /// The disk is, or was, this file
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// The disk is, or was, this logical volume
    #[arg(long, value_name = "VG/NAME")]
    lvm: Option<String>,
    /// The disk of this UUID, at the place that its key names
    #[arg(long)]
    uuid: Option<Uuid>,
    /// Destroy the key and leave the disk alone, even if it is in use or out of reach
    #[arg(long)]
    key_only: bool,
    #[command(flatten)]
    manager: ManagerArgs,
    #[command(flatten)]
    confirm: ConfirmArgs,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    /// Keys that were destroyed now.
    keys_destroyed: Vec<KeyReference>,
    /// Keys that had been destroyed before.
    keys_gone_before: Vec<KeyReference>,
    /// Whether any key of the disk was known, so that its data is gone.
    data_gone: bool,
    /// The disk that was removed, if one was.
    removed: Option<ShownPlace>,
    /// Why none was.
    note: Option<&'static str>,
}

impl DestroyCommand {
    pub(super) fn run(&self) -> Result<(), ToolError> {
        let target = match (place(self.file.as_ref(), self.lvm.as_ref())?, self.uuid) {
            (Some(place), _) => Target::At(place),
            (None, uuid) => Target::Uuid(uuid.expect("clap wants one of them")),
        };
        let remains = if self.key_only { Remains::Leave } else { Remains::Remove };
        let keys = disk_keys(&self.manager)?;
        let doomed = Doomed::find(&keys, &target, remains)?;
        if let Some(question) = question(&doomed) {
            self.confirm.confirm(&question)?;
        }
        let Destroyed { keys, keys_gone_before, disk, note } = doomed.destroy()?;
        let report = Report {
            data_gone: !keys.is_empty() || !keys_gone_before.is_empty(),
            keys_destroyed: keys,
            keys_gone_before,
            removed: disk.as_ref().map(ShownPlace::from),
            note,
        };
        output::print(self.manager.json, &report, |report| report.text(disk.as_ref()))
    }
}

/// What is going to be lost. Nothing, where all of it is gone.
fn question(doomed: &Doomed<'_>) -> Option<String> {
    let keys = doomed.living_keys();
    let disk = doomed.disk().map(|place| printable(&place.to_string()));
    match (keys.is_empty(), disk) {
        (true, None) => None,
        (true, Some(disk)) => Some(format!("{disk}, for which there is no key any more, will be removed")),
        (false, disk) => {
            let removal = disk.map_or(String::new(), |disk| format!(", and {disk} will be removed"));
            Some(format!(
                "the key {} will be destroyed, and with it all data on its disk and on every copy of that{removal}",
                list(&keys)
            ))
        }
    }
}

fn list(keys: &[KeyReference]) -> String {
    printable(&keys.iter().map(KeyReference::to_string).collect::<Vec<_>>().join(", "))
}

impl Report {
    fn text(&self, disk: Option<&Place>) -> String {
        let mut lines = Vec::new();
        if !self.keys_destroyed.is_empty() {
            lines.push(format!(
                "destroyed the key {}: the data is gone for good, whatever becomes of the disk and of copies",
                list(&self.keys_destroyed)
            ));
        }
        if !self.keys_gone_before.is_empty() {
            lines.push(format!("the key {} was destroyed before", list(&self.keys_gone_before)));
        }
        if !self.data_gone {
            lines.push("there was no key of the disk in this key manager".to_owned());
        }
        lines.extend(disk.map(|disk| format!("removed {}", printable(&disk.to_string()))));
        lines.extend(self.note.map(|note| format!("no disk was removed: {note}")));
        lines.join("\n")
    }
}
