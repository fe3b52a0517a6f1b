//! `sealblk keystore`: an embedded keystore as a whole, and who may do what with its keys.

mod access;
mod user;

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use serde::Serialize;

use super::exit::Exit;
use super::key_config::{KeyConfigArgs, reference_within};
use super::output;
use super::tool_error::ToolError;
use crate::keys::keystore::{AuditAnchor, KeystoreManager};
use crate::keys::{KeyReference, ManagerName};

pub use user::PrincipalNameError;

/// The commands of `sealblk keystore`.
#[derive(Debug, Args)]
#[command(after_help = Exit::table())]
pub(super) struct KeystoreCommand {
    #[command(subcommand)]
    action: KeystoreAction,
}

#[derive(Debug, Subcommand)]
enum KeystoreAction {
    /// Make the new, empty keystore that a profile describes
    Init(KeystoreArgs),
    /// Check the file, every key and the audit log
    Verify(VerifyCommand),
    /// Move every key from the profile's kek-before to its kek, while the keystore is in use
    RotateKek(KeystoreArgs),
    /// Copy the keystore as it is now, while it is in use
    Copy(CopyCommand),
    /// Give a principal rights to a key
    Grant(access::GrantCommand),
    /// Take rights to a key away from a principal
    Revoke(access::RevokeCommand),
    /// Show who may do what with a key
    Access(access::AccessCommand),
}

/// Which keystore is meant.
#[derive(Debug, Args)]
struct KeystoreArgs {
    /// The keystore: `keystore`, or keystore@PROFILE of the key configuration file
    #[arg(long, value_name = "NAME", default_value = "keystore")]
    key_manager: String,
    #[command(flatten)]
    config: KeyConfigArgs,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct VerifyCommand {
    #[command(flatten)]
    keystore: KeystoreArgs,
    /// Anchor that an earlier check printed: shows whether the keystore was replaced by an older copy since
    #[arg(long, value_name = "SEQ:CODE")]
    anchor: Option<AuditAnchor>,
}

#[derive(Debug, Args)]
struct CopyCommand {
    /// New file, in a folder that only its owner can get at
    to: PathBuf,
    #[command(flatten)]
    keystore: KeystoreArgs,
}

#[derive(Debug, Serialize)]
struct Initialised<'a> {
    keystore: &'a str,
    initialised: bool,
}

#[derive(Debug, Serialize)]
struct Checked<'a> {
    keystore: &'a str,
    keys: u64,
    versions: u64,
    anchor: String,
}

#[derive(Debug, Serialize)]
struct Rewrapped<'a> {
    keystore: &'a str,
    rewrapped_keys: u64,
}

#[derive(Debug, Serialize)]
struct Copied<'a> {
    keystore: &'a str,
    file: &'a Path,
}

impl KeystoreCommand {
    pub(super) fn run(self) -> Result<(), ToolError> {
        match self.action {
            KeystoreAction::Init(keystore) => keystore.initialise(),
            KeystoreAction::Verify(command) => command.run(),
            KeystoreAction::RotateKek(keystore) => keystore.rotate_kek(),
            KeystoreAction::Copy(command) => command.run(),
            KeystoreAction::Grant(command) => command.run(),
            KeystoreAction::Revoke(command) => command.run(),
            KeystoreAction::Access(command) => command.run(),
        }
    }
}

impl KeystoreArgs {
    fn open(&self) -> Result<KeystoreManager, ToolError> {
        Ok(self.config.managers()?.keystore(&self.name()?)?)
    }

    fn name(&self) -> Result<ManagerName, ToolError> {
        self.key_manager.parse().map_err(|problem| ToolError::Reference { option: "--key-manager", problem })
    }

    /// See [`reference_within`].
    fn reference(&self, key: &str) -> Result<KeyReference, ToolError> {
        reference_within(&self.name()?, key)
    }

    fn initialise(&self) -> Result<(), ToolError> {
        self.open()?.initialise()?;
        let made = Initialised { keystore: &self.key_manager, initialised: true };
        output::print(self.json, &made, |made| format!("{} is ready, and empty", made.keystore))
    }

    fn rotate_kek(&self) -> Result<(), ToolError> {
        let keystore = self.open()?;
        let bar = if io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        bar.enable_steady_tick(Duration::from_millis(100));
        let rotation = keystore.rotate_kek(|keys| bar.set_message(format!("{keys} keys moved")))?;
        bar.finish_and_clear();
        let rewrapped = Rewrapped { keystore: &self.key_manager, rewrapped_keys: rotation.rewrapped_keys };
        output::print(self.json, &rewrapped, |rewrapped| {
            format!(
                "{}: {} keys moved to the profile's kek; kek-before can go",
                rewrapped.keystore, rewrapped.rewrapped_keys
            )
        })
    }
}

impl VerifyCommand {
    fn run(&self) -> Result<(), ToolError> {
        let verified = self.keystore.open()?.with(|keystore| keystore.verify(self.anchor.as_ref()))?;
        let checked = Checked {
            keystore: &self.keystore.key_manager,
            keys: verified.keys,
            versions: verified.versions,
            anchor: verified.end.to_string(),
        };
        output::print(self.keystore.json, &checked, |checked| {
            format!(
                "{} is in order: {} keys with {} versions\n  anchor for the next check, to be kept elsewhere: {}",
                checked.keystore, checked.keys, checked.versions, checked.anchor
            )
        })
    }
}

impl CopyCommand {
    fn run(&self) -> Result<(), ToolError> {
        self.keystore.open()?.with(|keystore| keystore.copy_to(&self.to))?;
        let copied = Copied { keystore: &self.keystore.key_manager, file: &self.to };
        output::print(self.keystore.json, &copied, |copied| {
            format!("{} copied to {}", copied.keystore, output::printable(&copied.file.display().to_string()))
        })
    }
}
