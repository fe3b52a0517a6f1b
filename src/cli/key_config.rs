//! Where key managers are set up: an option of every command that needs a key.

use std::path::{self, PathBuf};

use clap::{Args, ValueEnum};

use super::tool_error::ToolError;
use crate::keys::{FixedKey, KeyManagers, KeyReference, ManagerName};

/// Where key managers are set up.
#[derive(Debug, Args)]
pub(super) struct KeyConfigArgs {
    /// Key configuration file [default: /etc/sealblk/keys.toml]
    #[arg(long, value_name = "FILE")]
    key_config: Option<PathBuf>,
}

impl KeyConfigArgs {
    /// The key managers of this host.
    pub(super) fn managers(&self) -> Result<KeyManagers, ToolError> {
        self.managers_with(FixedKey::Refuse)
    }

    /// The same, for commands that have a gate for the fixed key.
    pub(super) fn managers_with(&self, fixed_key: FixedKey) -> Result<KeyManagers, ToolError> {
        Ok(KeyManagers::new(self.key_config.as_deref(), fixed_key)?)
    }

    /// The whole path of the file, if it is not the usual one: for whoever is told of it and runs elsewhere.
    pub(super) fn whole_path(&self) -> Result<Option<PathBuf>, ToolError> {
        let whole = |path: &PathBuf| {
            path::absolute(path).map_err(|source| ToolError::File {
                what: "find",
                path: path.clone(),
                source,
            })
        };
        self.key_config.as_ref().map(whole).transpose()
    }
}

/// Whether the fixed key of an OpenStack set-up may be used.
#[derive(Debug, Args)]
pub(super) struct FixedKeyArgs {
    /// Allow something unsafe by name
    #[arg(long, value_name = "GATE")]
    insecure: Vec<KeyGate>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum KeyGate {
    /// Use one key for all volumes of all projects, as the `fixed_key` of OpenStack's files
    FixedKey,
}

impl FixedKeyArgs {
    /// What was said about it.
    pub(super) fn fixed_key(&self) -> FixedKey {
        match self.insecure.contains(&KeyGate::FixedKey) {
            true => FixedKey::Accept,
            false => FixedKey::Refuse,
        }
    }
}

/// The reference to the key that `text` names: ID or ID#VERSION within `manager`, or a whole reference to it, as other
/// commands print them.
pub(super) fn reference_within(manager: &ManagerName, text: &str) -> Result<KeyReference, ToolError> {
    let whole = match text.starts_with(&format!("{manager}:")) {
        true => text.to_owned(),
        false => format!("{manager}:{text}"),
    };
    whole.parse().map_err(|problem| ToolError::Reference { option: "the key's name", problem })
}
