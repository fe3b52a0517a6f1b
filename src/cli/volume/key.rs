//! Keys for the commands about volumes: by reference, from any manager that `serve` knows.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::super::tool_error::ToolError;
use crate::keys::{FixedKey, KeyManagers, KeyReference, Secret};

/// Where key references lead.
#[derive(Debug, Args)]
pub(super) struct KeyArgs {
    /// File with the profiles of key managers [default: /etc/sealblk/keys.toml]
    #[arg(long, value_name = "FILE")]
    key_config: Option<PathBuf>,
    /// Allow something unsafe by name
    #[arg(long, value_name = "GATE")]
    insecure: Vec<KeyGate>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum KeyGate {
    /// Use one key for all volumes of all projects, as the `fixed_key` of OpenStack's files
    FixedKey,
}

impl KeyArgs {
    /// Fetches the key that `option` names by `reference`.
    pub(super) fn fetch(&self, option: &'static str, reference: &str) -> Result<Secret, ToolError> {
        let fixed_key = match self.insecure.contains(&KeyGate::FixedKey) {
            true => FixedKey::Accept,
            false => FixedKey::Refuse,
        };
        let reference: KeyReference =
            reference.parse().map_err(|problem| ToolError::Reference { option, problem })?;
        let managers = KeyManagers::new(self.key_config.as_deref(), fixed_key)?;
        Ok(managers.source(&reference)?.fetch()?)
    }
}
