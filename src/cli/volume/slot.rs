//! `sealblk slot`: the keys of a LUKS volume, changed while it may be in use.

use std::path::Path;

use clap::{ArgGroup, Args, Subcommand};
use comfy_table::{Table, presets};
use serde::Serialize;

use super::super::confirm::ConfirmArgs;
use super::super::exit::Exit;
use super::super::output;
use super::super::tool_error::ToolError;
use super::VolumeArgs;
use super::kdf::KdfArgs;
use super::key::KeyArgs;
use super::target::Target;
use crate::format::luks::{
    Description, EditError, HeaderEditor, LuksError, Policy, Replacement, Slot, Version,
};

const LUKS1_SLOTS: usize = 8;
const LUKS2_SLOTS: usize = 32;

/// The commands of `sealblk slot`.
#[derive(Debug, Args)]
#[command(after_help = Exit::table())]
pub(in super::super) struct SlotCommand {
    #[command(subcommand)]
    action: SlotAction,
}

#[derive(Debug, Subcommand)]
enum SlotAction {
    /// Show the key slots; needs no key
    List(ListCommand),
    /// Let a further key open the volume
    Add(AddCommand),
    /// Let another key open the volume in place of the present one
    Change(ChangeCommand),
    /// Let a key no longer open the volume
    Remove(RemoveCommand),
}

#[derive(Debug, Args)]
struct ListCommand {
    #[command(flatten)]
    target: VolumeArgs,
}

#[derive(Debug, Args)]
struct AddCommand {
    #[command(flatten)]
    target: VolumeArgs,
    /// A key that opens the volume now
    #[arg(long, value_name = "REFERENCE")]
    key: String,
    /// The key to add
    #[arg(long, value_name = "REFERENCE")]
    new_key: String,
    /// Number of the new slot [default: the first that is free]
    #[arg(long, value_name = "N")]
    slot: Option<u32>,
    #[command(flatten)]
    keys: KeyArgs,
    #[command(flatten)]
    kdf: KdfArgs,
}

#[derive(Debug, Args)]
struct ChangeCommand {
    #[command(flatten)]
    target: VolumeArgs,
    /// The key to give up
    #[arg(long, value_name = "REFERENCE")]
    key: String,
    /// The key to put in its place
    #[arg(long, value_name = "REFERENCE")]
    new_key: String,
    #[command(flatten)]
    keys: KeyArgs,
    #[command(flatten)]
    kdf: KdfArgs,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").args(["slot", "key"]).required(true)))]
struct RemoveCommand {
    #[command(flatten)]
    target: VolumeArgs,
    /// Number of the slot to remove
    #[arg(long, value_name = "N")]
    slot: Option<u32>,
    /// Remove every slot that this key opens
    #[arg(long, value_name = "REFERENCE")]
    key: Option<String>,
    /// Remove nothing unless this key opens a slot that stays
    #[arg(long, value_name = "REFERENCE")]
    keep_key: Option<String>,
    #[command(flatten)]
    keys: KeyArgs,
    #[command(flatten)]
    confirm: ConfirmArgs,
}

/// What `slot list --json` prints.
#[derive(Debug, Serialize)]
struct Listing<'a> {
    volume: &'a Path,
    slots: &'a [Slot],
    slots_max: usize,
    header_digest: &'a str,
}

/// What `--json` prints of a change.
#[derive(Debug, Serialize)]
struct Changed<'a> {
    volume: &'a Path,
    /// The slot that the new key opens.
    slot: Option<u32>,
    /// Whether that slot was made by this command.
    added: bool,
    /// Slots that are gone.
    removed: Vec<u32>,
    /// SHA-256 of the header as it is now.
    header_digest: &'a str,
}

impl SlotCommand {
    pub(in super::super) fn run(self) -> Result<(), ToolError> {
        match self.action {
            SlotAction::List(command) => command.run(),
            SlotAction::Add(command) => command.run(),
            SlotAction::Change(command) => command.run(),
            SlotAction::Remove(command) => command.run(),
        }
    }
}

impl ListCommand {
    fn run(&self) -> Result<(), ToolError> {
        let header = self.target.open_beside_others(false)?.read_header()?;
        let Description { slots, version, header_digest, .. } = header.description();
        let slots_max = match version {
            Version::Luks1 => LUKS1_SLOTS,
            Version::Luks2 => LUKS2_SLOTS,
        };
        let listing = Listing { volume: &self.target.volume, slots, slots_max, header_digest };
        output::print(self.target.json, &listing, |listing| {
            let mut table = Table::new();
            table.load_style(presets::NOTHING).set_header(["SLOT", "KEY BITS", "KDF", "PRIORITY", "OPENS"]);
            for slot in listing.slots {
                let opens = if slot.digest.is_some() { "the volume" } else { "something else" };
                table.add_row([
                    slot.id.to_string(),
                    slot.key_bits.to_string(),
                    slot.kdf.as_ref().map_or("none".to_owned(), |kdf| output::printable(&kdf.to_string())),
                    slot.priority.to_string(),
                    opens.to_owned(),
                ]);
            }
            table.to_string()
        })
    }
}

impl AddCommand {
    fn run(&self) -> Result<(), ToolError> {
        let target = self.target.open_beside_others(true)?;
        let key = self.keys.fetch("--key", &self.key)?;
        let new_key = self.keys.fetch("--new-key", &self.new_key)?;
        let mut editor = target.edit()?;
        let kdf = self.kdf.resolve(&new_key, editor.description().version)?;
        // Asked for again after it was done: that is done.
        let present = editor.slots_opened_by(&new_key)?.first().copied().filter(|_| self.slot.is_none());
        let slot = match present {
            Some(_) if editor.slots_opened_by(&key)?.is_empty() => return Err(LuksError::WrongKey("").into()),
            Some(slot) => slot,
            None => editor.add(&key, &new_key, self.slot, kdf)?,
        };
        self.target.report(&editor, Some(slot), present.is_none(), Vec::new())
    }
}

impl ChangeCommand {
    fn run(&self) -> Result<(), ToolError> {
        let target = self.target.open_beside_others(true)?;
        let key = self.keys.fetch("--key", &self.key)?;
        let new_key = self.keys.fetch("--new-key", &self.new_key)?;
        let mut editor = target.edit()?;
        let kdf = self.kdf.resolve(&new_key, editor.description().version)?;
        let Replacement { slot, added, removed } = editor.replace_key(&key, &new_key, kdf)?;
        self.target.report(&editor, Some(slot), added, removed)
    }
}

impl RemoveCommand {
    fn run(&self) -> Result<(), ToolError> {
        let target = self.target.open_beside_others(true)?;
        let key = self.key.as_deref().map(|key| self.keys.fetch("--key", key)).transpose()?;
        let keep_key = self.keep_key.as_deref().map(|key| self.keys.fetch("--keep-key", key)).transpose()?;
        let mut editor = target.edit()?;
        let slots = match (self.slot, key) {
            (Some(slot), _) => vec![slot],
            (None, Some(key)) => editor.slots_opened_by(&key)?,
            (None, None) => Vec::new(),
        };
        if slots.is_empty() {
            return Err(LuksError::WrongKey("").into());
        }
        if let Some(keep_key) = keep_key {
            let kept = editor.slots_opened_by(&keep_key)?;
            if kept.iter().all(|slot| slots.contains(slot)) {
                return Err(EditError::NothingKept.into());
            }
        }
        editor.check_removal(&slots)?;
        let list = slots.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
        let path = self.target.volume.display();
        self.confirm
            .confirm(&format!("Key slot {list} of {path} will be destroyed, and its key open nothing"))?;
        editor.remove(&slots)?;
        self.target.report(&editor, None, false, slots)
    }
}

impl Target {
    /// Claims the header. The keys have been fetched by then: that may take its time.
    pub(super) fn edit(self) -> Result<HeaderEditor, ToolError> {
        let placement = self.placement();
        Ok(HeaderEditor::open(self.into_header_file(), &Policy::default(), placement)?)
    }
}

impl VolumeArgs {
    fn report(
        &self,
        editor: &HeaderEditor,
        slot: Option<u32>,
        added: bool,
        removed: Vec<u32>,
    ) -> Result<(), ToolError> {
        let header_digest = &editor.description().header_digest;
        let changed = Changed { volume: &self.volume, slot, added, removed, header_digest };
        output::print(self.json, &changed, Changed::text)
    }
}

impl Changed<'_> {
    fn text(&self) -> String {
        let mut said = Vec::new();
        said.extend(self.slot.map(|slot| match self.added {
            true => format!("the new key opens slot {slot}"),
            false => format!("the new key opened slot {slot} before"),
        }));
        said.extend(self.removed.iter().map(|slot| format!("slot {slot} is removed")));
        format!("{}\nheader digest {}", said.join("\n"), self.header_digest)
    }
}
