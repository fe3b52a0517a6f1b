//! `sealblk key audit`: who did what with which key, as a keystore wrote it down.

use std::io::{self, Write};

use clap::Args;

use super::ManagerArgs;
use crate::cli::output::printable;
use crate::cli::tool_error::ToolError;
use crate::keys::keystore::AuditEntry;

/// The options of `sealblk key audit`.
#[derive(Debug, Args)]
#[command(after_help = "With --json each entry is an object on a line of its own.")]
pub(super) struct AuditCommand {
    #[command(flatten)]
    manager: ManagerArgs,
    /// Begin after the entry of this number
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    after: u64,
    /// Only entries about this key: ID, or ID#VERSION
    #[arg(long, value_name = "ID")]
    key: Option<String>,
}

impl AuditCommand {
    pub(super) fn run(&self) -> Result<(), ToolError> {
        let key = self.key.as_deref().map(|text| self.manager.key_id(text)).transpose()?;
        let is_about = |entry: &AuditEntry| match &key {
            None => true,
            Some(id) => {
                entry.key.is_some_and(|key| key.to_string() == id.name())
                    && (id.version().is_none() || entry.version == id.version())
            }
        };
        // Collected first: the keystore is not kept from wiping its log for as long as somebody reads.
        let mut text = String::new();
        self.manager.managers()?.keystore(&self.manager.name()?)?.with(|keystore| {
            keystore.each_audit_entry(self.after, |entry| {
                if is_about(&entry) {
                    text += &self.line(&entry);
                    text.push('\n');
                }
            })
        })?;
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(ToolError::Output)
    }

    fn line(&self, entry: &AuditEntry) -> String {
        if self.manager.json {
            return serde_json::to_string(entry).expect("entries have string keys only");
        }
        let key = entry.key.map_or("-".to_owned(), |key| match entry.version {
            Some(version) => format!("{key}#{version}"),
            None => key.to_string(),
        });
        let detail =
            entry.detail.as_deref().map_or(String::new(), |detail| format!("  {}", printable(detail)));
        format!(
            "{:>6}  {}  {:<10}  {:<18}  {:<11}  {key}{detail}",
            entry.seq,
            entry.time,
            entry.principal.to_string(),
            entry.event.name(),
            entry.outcome.name()
        )
    }
}
