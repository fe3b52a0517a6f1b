//! `sealblk inspect`: what a volume is, and whether it would be served.

use std::path::Path;

use clap::Args;
use serde::Serialize;

use super::super::exit::Exit;
use super::super::output;
use super::super::tool_error::ToolError;
use super::VolumeArgs;
use crate::format::luks::{Approved, CopyState, Description, Header, LuksError, Policy};
use crate::format::signature::{self, Contents};

/// The options of `sealblk inspect`.
#[derive(Debug, Args)]
#[command(after_help = Exit::table())]
pub(in super::super) struct InspectCommand {
    #[command(flatten)]
    target: VolumeArgs,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Inspection<'a> {
    volume: &'a Path,
    header: Option<&'a Path>,
    volume_bytes: u64,
    /// `luks1`, `luks2`, `damaged-luks` or `none`.
    r#type: String,
    /// Without a valid header: what libblkid takes the volume for, if anything.
    signature: Option<String>,
    luks: Option<&'a Description>,
    /// What the guest would see; none if the volume would not be served.
    payload: Option<Payload>,
    /// Whether `serve --format luks` would serve it with the right key.
    servable: bool,
    /// Why not.
    refusals: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Payload {
    offset_bytes: u64,
    bytes: u64,
    sector_bytes: u32,
}

impl InspectCommand {
    pub(in super::super) fn run(self) -> Result<(), ToolError> {
        let target = self.target.open_beside_others(false)?;
        let read = target.read_header();
        let verdict = |header: &Header| {
            let verdict = Policy::default().verdict(header.description(), target.placement());
            verdict.map_err(|refusals| refusals.0.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let (header, verdict) = match &read {
            Ok(header) => (Some(header), verdict(header)),
            Err(error) => (None, Err(vec![one_line(error)])),
        };
        let signature = match (&read, target.header_device()) {
            (Ok(_), _) => None,
            (Err(_), device) => {
                let contents = signature::examine(&device.file, device.size_bytes).map_err(|source| {
                    ToolError::File { what: "read", path: self.target.volume.clone(), source }
                })?;
                Some(contents)
            }
        };
        let inspection = Inspection {
            volume: &self.target.volume,
            header: self.target.header.as_deref(),
            volume_bytes: target.placement().volume_bytes,
            r#type: match &read {
                Ok(header) => header.description().version.to_string().to_lowercase(),
                Err(LuksError::NotLuks(_)) => "none".to_owned(),
                Err(_) => "damaged-luks".to_owned(),
            },
            signature: match &signature {
                Some(Contents::Signature(name)) => Some(name.clone()),
                _ => None,
            },
            luks: header.map(Header::description),
            payload: verdict.as_ref().ok().map(Payload::of),
            servable: verdict.is_ok(),
            refusals: verdict.err().unwrap_or_default(),
        };
        output::print(self.target.json, &inspection, |inspection| inspection.text(signature.as_ref()))
    }
}

impl Payload {
    fn of(approved: &Approved) -> Self {
        let geometry = approved.geometry;
        Self {
            offset_bytes: geometry.payload_offset_bytes,
            bytes: geometry.capacity_bytes,
            sector_bytes: geometry.sector_size.bytes(),
        }
    }
}

impl Inspection<'_> {
    fn text(&self, contents: Option<&Contents>) -> String {
        let mut lines = vec![
            ("volume", output::printable(&self.volume.display().to_string())),
            ("size", output::bytes(self.volume_bytes)),
        ];
        if let Some(header) = self.header {
            lines.push(("header", output::printable(&header.display().to_string())));
        }
        match (self.luks, contents) {
            (Some(header), _) => lines.extend(described(header)),
            (None, Some(contents)) => lines.push(("contents", self.without_header(contents))),
            (None, None) => {}
        }
        if let Some(payload) = &self.payload {
            lines.push((
                "guest sees",
                format!("{}, from byte {}", output::bytes(payload.bytes), payload.offset_bytes),
            ));
        }
        lines.push((
            "servable",
            match self.servable {
                true => "yes, with the right key".to_owned(),
                false => format!("no: {}", output::printable(&self.refusals.join("; "))),
            },
        ));
        lines.iter().map(|(name, value)| format!("{name:<13} {value}\n")).collect()
    }

    /// What a volume may be that has no valid header.
    fn without_header(&self, contents: &Contents) -> String {
        let damaged = if self.r#type == "none" { "no LUKS header" } else { "damaged LUKS header" };
        match contents {
            Contents::Zeroes => format!("{damaged}: zeroes, at both ends at least"),
            Contents::Signature(name) => format!("{damaged}: {}", output::printable(name)),
            Contents::UnknownData => {
                format!(
                    "{damaged}: data without a known signature, such as a plain (headerless) encrypted volume"
                )
            }
        }
    }
}

fn described(header: &Description) -> Vec<(&'static str, String)> {
    let text = |text: &Option<String>| text.as_deref().map(output::printable);
    let mut lines = vec![("type", header.version.to_string()), ("uuid", output::printable(&header.uuid))];
    lines.extend(text(&header.label).map(|label| ("label", label)));
    lines.extend(text(&header.subsystem).map(|subsystem| ("subsystem", subsystem)));
    for segment in &header.segments {
        let cipher = text(&segment.cipher).unwrap_or_else(|| "none".to_owned());
        let bits = segment.key_bits.map_or("?".to_owned(), |bits| bits.to_string());
        lines.push((
            "cipher",
            format!("{cipher}, key of {bits} bits, sectors of {} bytes", segment.sector_bytes),
        ));
    }
    for slot in &header.slots {
        lines.push(("key slot", format!("{}: {}", slot.id, slot.summary())));
    }
    for token in &header.tokens {
        lines.push((
            "token",
            format!("{}: {}, slots {:?}", token.id, output::printable(&token.kind), token.slots),
        ));
    }
    let words = |words: &[String]| output::printable(&words.join(", "));
    if !header.requirements.is_empty() {
        lines.push(("requirements", words(&header.requirements)));
    }
    if !header.flags.is_empty() {
        lines.push(("flags", words(&header.flags)));
    }
    if let Some(copies) = header.copies.filter(|copies| *copies != [CopyState::Good; 2]) {
        lines.push(("copies", format!("{}, {}", copies[0], copies[1])));
    }
    lines.push(("digest", header.header_digest.clone()));
    lines
}

fn one_line(error: &LuksError) -> String {
    let mut line = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        line += &format!(": {error}");
        cause = error.source();
    }
    line
}
