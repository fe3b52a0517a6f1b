//! `sealblk key list` and `sealblk key show`.

use clap::Args;
use comfy_table::{Table, presets};
use serde::Serialize;

use super::ManagerArgs;
use crate::cli::output::{self, printable};
use crate::cli::tool_error::ToolError;
use crate::keys::{KeyKind, KeyMetadata, KeyReference, KeyState, ManagerName};

/// The options of `sealblk key list`.
#[derive(Debug, Args)]
pub(super) struct ListCommand {
    #[command(flatten)]
    manager: ManagerArgs,
    /// Also list what was destroyed
    #[arg(long)]
    all: bool,
}

/// The options of `sealblk key show`.
#[derive(Debug, Args)]
pub(super) struct ShowCommand {
    /// ID, or ID#VERSION
    key: String,
    #[command(flatten)]
    manager: ManagerArgs,
}

/// One key, as `--json` prints it.
#[derive(Debug, Serialize)]
pub(super) struct Shown {
    /// What other commands take.
    reference: KeyReference,
    #[serde(flatten)]
    metadata: KeyMetadata,
}

/// What `key list --json` prints.
#[derive(Debug, Serialize)]
struct Listing {
    key_manager: String,
    keys: Vec<Shown>,
}

impl Shown {
    pub(super) fn new(manager: &ManagerName, metadata: KeyMetadata) -> Self {
        Self { reference: manager.key(&metadata.id), metadata }
    }
}

impl ListCommand {
    pub(super) fn run(&self) -> Result<(), ToolError> {
        let name = self.manager.name()?;
        let keys = self.manager.admin()?.list()?.into_iter();
        let keys = keys.filter(|key| self.all || key.state != KeyState::Destroyed);
        let listing = Listing {
            key_manager: name.to_string(),
            keys: keys.map(|metadata| Shown::new(&name, metadata)).collect(),
        };
        output::print(self.manager.json, &listing, |listing| table(&listing.keys))
    }
}

impl ShowCommand {
    pub(super) fn run(&self) -> Result<(), ToolError> {
        let metadata = self.manager.admin()?.metadata(&self.manager.key_id(&self.key)?)?;
        let shown = Shown::new(&self.manager.name()?, metadata);
        output::print(self.manager.json, &shown, details)
    }
}

fn table(keys: &[Shown]) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(["ID", "VERSION", "NAME", "KIND", "BITS", "STATE", "VOLUME", "CREATED"]);
    for Shown { metadata, .. } in keys {
        table.add_row([
            printable(&metadata.id.to_string()),
            metadata.version.to_string(),
            printable(metadata.name.as_deref().unwrap_or("-")),
            kind(metadata.kind).to_owned(),
            metadata.bits.to_string(),
            metadata.state.to_string(),
            printable(metadata.volume.as_deref().unwrap_or("-")),
            metadata.created.map_or("-".to_owned(), |time| time.to_string()),
        ]);
    }
    table.to_string()
}

/// One key, for people.
pub(super) fn details(shown: &Shown) -> String {
    let Shown { reference, metadata } = shown;
    let mut lines = vec![
        format!("key {}", printable(&reference.to_string())),
        format!("  version {}, {}", metadata.version, metadata.state),
        format!("  {}, {} bits", kind(metadata.kind), metadata.bits),
    ];
    let facts = [
        ("name", metadata.name.clone()),
        ("for volume", metadata.volume.clone()),
        ("created", metadata.created.map(|time| time.to_string())),
    ];
    lines.extend(
        facts
            .into_iter()
            .filter_map(|(what, fact)| fact.map(|fact| format!("  {what} {}", printable(&fact)))),
    );
    lines.join("\n")
}

fn kind(kind: KeyKind) -> &'static str {
    match kind {
        KeyKind::Symmetric => "symmetric",
        KeyKind::Passphrase => "passphrase",
    }
}
