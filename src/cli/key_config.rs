//! Where key managers are set up: an option of every command that needs a key.

use std::path::{self, PathBuf};

use clap::Args;

use super::tool_error::ToolError;
use crate::keys::{FixedKey, KeyManagers};

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
