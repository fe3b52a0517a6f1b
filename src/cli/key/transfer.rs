//! `sealblk key import` and `sealblk key export`: the only ways in which key bytes cross the border of a key manager.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::ManagerArgs;
use super::create::SpecArgs;
use super::list::{Shown, details};
use crate::cli::key_config::FixedKeyArgs;
use crate::cli::output::{self, printable};
use crate::cli::tool_error::ToolError;
use crate::format::new_file::NewFile;
use crate::keys::{KeyReference, Secret};

/// The options of `sealblk key import`.
#[derive(Debug, Args)]
pub(super) struct ImportCommand {
    #[command(flatten)]
    manager: ManagerArgs,
    /// The key to copy: file:PATH, fd:N or any other reference
    #[arg(long, value_name = "REFERENCE")]
    from: String,
    #[command(flatten)]
    gate: FixedKeyArgs,
    #[command(flatten)]
    spec: SpecArgs,
}

/// The options of `sealblk key export`.
#[derive(Debug, Args)]
pub(super) struct ExportCommand {
    /// ID, or ID#VERSION
    key: String,
    #[command(flatten)]
    manager: ManagerArgs,
    /// New file for the raw bytes, or `-` for standard output if that is a pipe
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
}

/// What `key export --json` prints.
#[derive(Debug, Serialize)]
struct Exported<'a> {
    reference: KeyReference,
    file: &'a Path,
    bytes: usize,
}

impl ImportCommand {
    pub(super) fn run(self) -> Result<(), ToolError> {
        let reference: KeyReference =
            self.from.parse().map_err(|problem| ToolError::Reference { option: "--from", problem })?;
        let managers = self.manager.managers_with(&self.gate)?;
        let admin = managers.admin(&self.manager.name()?)?;
        let material = managers.source(&reference)?.fetch()?;
        let bits = u32::try_from(material.expose().len() * 8).expect("secrets are small");
        let metadata = admin.store(&self.spec.of_bits(bits), &material)?;
        let shown = Shown::new(&self.manager.name()?, metadata);
        output::print(self.manager.json, &shown, details)
    }
}

impl ExportCommand {
    pub(super) fn run(&self) -> Result<(), ToolError> {
        let reference = self.manager.reference(&self.key)?;
        let to_pipe = self.to.as_os_str() == "-";
        if to_pipe && io::stdout().is_terminal() {
            return Err(ToolError::KeyOnTerminal);
        }
        let fetch =
            || -> Result<Secret, ToolError> { Ok(self.manager.managers()?.source(&reference)?.fetch()?) };
        if to_pipe {
            let material = fetch()?;
            // Not through the standard library's buffer, which would keep a copy.
            let unbuffered = io::stdout().as_fd().try_clone_to_owned().map(File::from);
            return unbuffered
                .and_then(|mut stdout| stdout.write_all(material.expose()))
                .map_err(ToolError::Output);
        }
        // Begun first: a name that is taken is found out before a key has left its manager.
        let new = NewFile::create(&self.to).map_err(|source| ToolError::new_file(&self.to, source))?;
        let material = fetch()?;
        new.file()
            .write_all(material.expose())
            .and_then(|()| new.publish())
            .map_err(|source| ToolError::new_file(&self.to, source))?;
        let exported = Exported { reference, file: &self.to, bytes: material.expose().len() };
        output::print(self.manager.json, &exported, |exported| {
            format!(
                "{} bytes of {} written to {}",
                exported.bytes,
                printable(&exported.reference.to_string()),
                printable(&exported.file.display().to_string())
            )
        })
    }
}
