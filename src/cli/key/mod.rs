//! Keys in a key manager: made, looked at, moved, rotated and destroyed. One file for each command; here is what they
//! share.

mod audit;
mod create;
mod destroy;
mod doctor;
mod list;
mod rotate;
mod transfer;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::exit::Exit;
pub(super) use super::key_config::KeyConfigArgs;
use super::key_config::{FixedKeyArgs, reference_within};
use super::tool_error::ToolError;
use crate::keys::{KeyAdmin, KeyId, KeyManagers, KeyReference, ManagerName};

/// The commands of `sealblk key`.
#[derive(Debug, Args)]
#[command(after_help = Exit::table())]
pub(super) struct KeyCommand {
    #[command(subcommand)]
    action: KeyAction,
}

#[derive(Debug, Subcommand)]
enum KeyAction {
    /// Make a new random key inside the key manager
    Create(create::CreateCommand),
    /// List the keys of the key manager
    List(list::ListCommand),
    /// Show what is known of one key
    Show(list::ShowCommand),
    /// Make a new version of a key, or give a LUKS volume another key
    Rotate(rotate::RotateCommand),
    /// Destroy a key for good
    Destroy(destroy::DestroyCommand),
    /// Copy an existing key into the key manager
    Import(transfer::ImportCommand),
    /// Copy a key out of the key manager, to a file or a pipe
    Export(transfer::ExportCommand),
    /// Show the audit log of a keystore
    Audit(audit::AuditCommand),
    /// Walk the way to a key, and say which link of it is broken
    Doctor(doctor::DoctorCommand),
}

/// Which key manager is meant, and how results are printed.
#[derive(Debug, Args)]
pub(super) struct ManagerArgs {
    /// The key manager: a scheme, or SCHEME@PROFILE of the key configuration file
    #[arg(long, value_name = "NAME", default_value = "keystore")]
    key_manager: String,
    #[command(flatten)]
    config: KeyConfigArgs,
    /// Print the result as JSON
    #[arg(long)]
    pub(super) json: bool,
}

impl KeyCommand {
    pub(super) fn run(self) -> Result<(), ToolError> {
        match self.action {
            KeyAction::Create(command) => command.run(),
            KeyAction::List(command) => command.run(),
            KeyAction::Show(command) => command.run(),
            KeyAction::Rotate(command) => command.run(),
            KeyAction::Destroy(command) => command.run(),
            KeyAction::Import(command) => command.run(),
            KeyAction::Export(command) => command.run(),
            KeyAction::Audit(command) => command.run(),
            KeyAction::Doctor(command) => command.run(),
        }
    }
}

impl ManagerArgs {
    /// The key managers of this host.
    pub(super) fn managers(&self) -> Result<KeyManagers, ToolError> {
        self.config.managers()
    }

    /// The same, for commands that have a gate for the fixed key.
    fn managers_with(&self, gate: &FixedKeyArgs) -> Result<KeyManagers, ToolError> {
        self.config.managers_with(gate.fixed_key())
    }

    /// See [`KeyConfigArgs::whole_path`].
    pub(super) fn key_config_path(&self) -> Result<Option<PathBuf>, ToolError> {
        self.config.whole_path()
    }

    /// What the chosen manager is called.
    pub(super) fn name(&self) -> Result<ManagerName, ToolError> {
        self.key_manager.parse().map_err(|problem| ToolError::Reference { option: "--key-manager", problem })
    }

    /// The chosen manager.
    pub(super) fn admin(&self) -> Result<Box<dyn KeyAdmin>, ToolError> {
        Ok(self.managers()?.admin(&self.name()?)?)
    }

    /// See [`reference_within`].
    pub(super) fn reference(&self, text: &str) -> Result<KeyReference, ToolError> {
        reference_within(&self.name()?, text)
    }

    /// The same as what the manager calls it.
    pub(super) fn key_id(&self, text: &str) -> Result<KeyId, ToolError> {
        Ok(self.reference(text)?.id().clone())
    }
}
