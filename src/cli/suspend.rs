//! `sealblk suspend` and `sealblk resume`: taking a served disk's key away, and bringing it back.

use std::path::PathBuf;

use clap::Args;
use serde_json::Value;

use super::exit::{CliError, Exit};
use super::output;
use super::serve::ServeOptions;
use crate::server::control::client::Client;
use crate::server::control::protocol::Command;
use crate::server::startup;

/// The options of `sealblk suspend`.
#[derive(Debug, Args)]
#[command(after_help = Exit::table())]
pub(super) struct SuspendCommand {
    /// The control socket that `serve --control-socket` has made
    #[arg(value_name = "SOCKET")]
    socket: PathBuf,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

/// The options of `sealblk resume`.
#[derive(Debug, Args)]
#[command(
    override_usage = "sealblk resume SOCKET --blk-file PATH --key REFERENCE [OPTIONS OF serve]",
    after_help = Exit::table()
)]
pub(super) struct ResumeCommand {
    /// The control socket that `serve --control-socket` has made
    #[arg(value_name = "SOCKET")]
    served: PathBuf,
    #[command(flatten)]
    options: ServeOptions,
    /// Read options from the TOML file that `serve` was given; those that have nothing to do with the key are ignored
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

impl SuspendCommand {
    pub(super) fn run(self) -> Result<(), CliError> {
        let result = Client::connect(&self.socket)?.ask(Command::Suspend)?;
        let text =
            "suspended: everything is durable, the key is wiped, and no queue runs until `sealblk resume`";
        Ok(output::print(self.json, &result, |_: &Value| text.to_owned())?)
    }
}

impl ResumeCommand {
    pub(super) fn run(self) -> Result<(), CliError> {
        let options = match &self.config {
            Some(path) => ServeOptions::from_file(path)?.overridden_by(self.options),
            None => self.options,
        };
        super::log::start(options.log_level.unwrap_or(super::log::LogLevel::Warn));
        // Nobody is asked for a key that cannot be handed over.
        let mut client = Client::connect(&self.served)?;
        let key = startup::fetch_volume_key(&options.resolve_key()?)?;
        let result = client.ask_with_key(&key)?;
        Ok(output::print(self.json, &result, |_: &Value| "the key is back, and the queues run".to_owned())?)
    }
}
