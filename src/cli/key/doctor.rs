//! `sealblk key doctor`.

use clap::Args;
use serde::Serialize;

use super::KeyConfigArgs;
use crate::cli::key_config::FixedKeyArgs;
use crate::cli::output::{self, printable};
use crate::cli::tool_error::ToolError;
use crate::keys::KeyReference;
use crate::keys::doctor::{self, Broken, Link, Step, Told};

/// The options of `sealblk key doctor`.
#[derive(Debug, Args)]
pub(super) struct DoctorCommand {
    /// The key, as `--key` of serve names it
    #[arg(value_name = "REFERENCE")]
    key: String,
    #[command(flatten)]
    config: KeyConfigArgs,
    #[command(flatten)]
    gate: FixedKeyArgs,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// What `key doctor --json` prints.
#[derive(Debug, Serialize)]
struct Diagnosis {
    reference: String,
    /// Whether the key can be fetched.
    ok: bool,
    /// What was looked at, in order. What does not hold was passed over: there is another server.
    links: Vec<Step>,
    /// What does not.
    broken: Option<BrokenLink>,
}

#[derive(Debug, Serialize)]
struct BrokenLink {
    link: Link,
    of: String,
    problem: String,
    exit_code: u8,
}

/// The link that does not hold.
struct Found {
    link: Link,
    of: String,
    error: ToolError,
}

impl DoctorCommand {
    /// Fails as the broken link does: its line stands among the results then, and as the error.
    pub(super) fn run(self) -> Result<(), ToolError> {
        let mut links = Vec::new();
        let result = self.walk(&mut links);
        let broken = result.as_ref().err().map(|found| BrokenLink {
            link: found.link,
            of: found.of.clone(),
            problem: Told(&found.error).to_string(),
            exit_code: found.error.exit() as u8,
        });
        let diagnosis = Diagnosis { reference: self.key.clone(), ok: broken.is_none(), links, broken };
        output::print(self.json, &diagnosis, table)?;
        result.map_err(|found| found.error)
    }

    fn walk(&self, links: &mut Vec<Step>) -> Result<(), Box<Found>> {
        let whole = || self.key.split(['+', ':']).next().unwrap_or_default().to_owned();
        let step = |link, found: &str| Step { link, of: whole(), holds: true, found: found.to_owned() };
        let reference: KeyReference = self.key.parse().map_err(|problem| {
            let error = ToolError::Reference { option: "the key's name", problem };
            Box::new(Found { link: Link::Reference, of: whole(), error })
        })?;
        links.push(step(Link::Reference, "it is written as references are"));
        let source = self
            .config
            .managers_with(self.gate.fixed_key())
            .and_then(|managers| Ok(managers.source(&reference)?))
            .map_err(|error| Box::new(Found { link: Link::Configuration, of: whole(), error }))?;
        links.push(step(Link::Configuration, "its manager is set up"));
        doctor::diagnose(&source, |step| links.push(step))
            .map_err(|Broken { link, of, error }| Box::new(Found { link, of, error: error.into() }))
    }
}

fn table(diagnosis: &Diagnosis) -> String {
    let line = |verdict: &str, link: Link, of: &str, text: &str| {
        let (link, of) = (link.to_string(), printable(of));
        format!("{verdict:<6} {link:<15} {of}: {}", printable(text))
    };
    let verdict = |step: &Step| if step.holds { "ok" } else { "down" };
    let mut lines: Vec<String> =
        diagnosis.links.iter().map(|step| line(verdict(step), step.link, &step.of, &step.found)).collect();
    match &diagnosis.broken {
        Some(broken) => lines.push(line("BROKEN", broken.link, &broken.of, &broken.problem)),
        None => lines.push("The key can be fetched.".to_owned()),
    }
    lines.join("\n")
}
