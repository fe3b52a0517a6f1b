//! Before something is done that cannot be undone.

use std::io::{self, IsTerminal, Write};

use super::tool_error::ToolError;

/// Answers questions in advance.
#[derive(Debug, clap::Args)]
pub(super) struct ConfirmArgs {
    /// Answer every question with yes
    #[arg(long)]
    yes: bool,
}

impl ConfirmArgs {
    /// Asks whether `consequence` is wanted: on a terminal, or else by `--yes`.
    pub(super) fn confirm(&self, consequence: &str) -> Result<(), ToolError> {
        if self.yes {
            return Ok(());
        }
        if !io::stdin().is_terminal() {
            return Err(ToolError::Unconfirmed { question: consequence.to_owned() });
        }
        let mut stderr = io::stderr();
        let mut answer = String::new();
        let asked = write!(stderr, "{consequence}. Type yes to go on: ")
            .and_then(|()| stderr.flush())
            .and_then(|()| io::stdin().read_line(&mut answer));
        match asked {
            Ok(_) if answer.trim() == "yes" => Ok(()),
            _ => Err(ToolError::Declined),
        }
    }
}
