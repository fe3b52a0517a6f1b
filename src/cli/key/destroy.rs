//! `sealblk key destroy`.

use clap::Args;
use serde::Serialize;

use super::ManagerArgs;
use crate::cli::confirm::ConfirmArgs;
use crate::cli::output::{self, printable};
use crate::cli::tool_error::ToolError;
use crate::keys::KeyReference;

/// The options of `sealblk key destroy`.
#[derive(Debug, Args)]
pub(super) struct DestroyCommand {
    /// ID of a key, which loses all its versions, or ID#VERSION
    key: String,
    #[command(flatten)]
    manager: ManagerArgs,
    #[command(flatten)]
    confirm: ConfirmArgs,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Destroyed {
    reference: KeyReference,
    destroyed: bool,
}

impl DestroyCommand {
    pub(super) fn run(&self) -> Result<(), ToolError> {
        let reference = self.manager.reference(&self.key)?;
        let admin = self.manager.admin()?;
        // Asked first, so that nobody confirms the end of a key that is not there.
        let metadata = admin.metadata(reference.id())?;
        let name = metadata.name.map_or(String::new(), |name| format!(" ({})", printable(&name)));
        let what = match reference.id().version() {
            Some(_) => "version",
            None => "key, with all its versions,",
        };
        self.confirm.confirm(&format!(
            "the {what} {}{name} will be destroyed, and with it whatever only it opens",
            printable(&reference.to_string())
        ))?;
        admin.destroy(reference.id())?;
        let destroyed = Destroyed { reference, destroyed: true };
        output::print(self.manager.json, &destroyed, |destroyed| {
            format!("destroyed {}", printable(&destroyed.reference.to_string()))
        })
    }
}
