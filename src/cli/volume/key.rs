//! Keys for the commands about volumes: by reference, from any manager that `serve` knows.

use clap::Args;

use super::super::key_config::{FixedKeyArgs, KeyConfigArgs};
use super::super::tool_error::ToolError;
use crate::keys::{KeyReference, Secret};

/// Where key references lead.
#[derive(Debug, Args)]
pub(super) struct KeyArgs {
    #[command(flatten)]
    config: KeyConfigArgs,
    #[command(flatten)]
    gate: FixedKeyArgs,
}

impl KeyArgs {
    /// Fetches the key that `option` names by `reference`.
    pub(super) fn fetch(&self, option: &'static str, reference: &str) -> Result<Secret, ToolError> {
        let reference: KeyReference =
            reference.parse().map_err(|problem| ToolError::Reference { option, problem })?;
        Ok(self.config.managers_with(self.gate.fixed_key())?.source(&reference)?.fetch()?)
    }
}
