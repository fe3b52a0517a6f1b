//! `sealblk key rotate`: a new version of a key, or another key for a LUKS volume.

use clap::{ArgGroup, Args};

use super::ManagerArgs;
use super::list::{Shown, details};
use crate::cli::key_config::FixedKeyArgs;
use crate::cli::output;
use crate::cli::tool_error::ToolError;
use crate::cli::volume::VolumeRotation;

/// The options of `sealblk key rotate`.
#[derive(Debug, Args)]
#[command(
    override_usage = "sealblk key rotate KEY [OPTIONS]\n       \
                      sealblk key rotate --volume PATH --key REFERENCE [--new-key REFERENCE] [OPTIONS]",
    mut_arg("insecure", |insecure| insecure.requires("volume")),
    group(ArgGroup::new("what").args(["which", "volume"]).required(true))
)]
pub(super) struct RotateCommand {
    /// ID of a key that is to have a new version in its key manager, whatever it opens
    #[arg(value_name = "KEY")]
    which: Option<String>,
    #[command(flatten)]
    manager: ManagerArgs,
    #[command(flatten)]
    rotation: VolumeRotation,
    #[command(flatten)]
    gate: FixedKeyArgs,
}

impl RotateCommand {
    pub(super) fn run(&self) -> Result<(), ToolError> {
        let Some(key) = &self.which else {
            return self.rotation.run(&self.manager.managers_with(&self.gate)?, self.manager.json);
        };
        let metadata = self.manager.admin()?.rotate(&self.manager.key_id(key)?)?;
        let shown = Shown::new(&self.manager.name()?, metadata);
        output::print(self.manager.json, &shown, details)
    }
}
