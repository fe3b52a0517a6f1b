//! Keys for the commands about volumes: by reference, from any manager that `serve` knows.

use clap::{Args, ValueEnum};

use super::super::key_config::KeyConfigArgs;
use super::super::tool_error::ToolError;
use crate::keys::{FixedKey, KeyReference, Secret};

/// Where key references lead.
#[derive(Debug, Args)]
pub(super) struct KeyArgs {
    #[command(flatten)]
    config: KeyConfigArgs,
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
        Ok(self.config.managers_with(fixed_key)?.source(&reference)?.fetch()?)
    }
}
