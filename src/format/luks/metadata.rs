//! The JSON of a LUKS2 header, as far as it matters here. libcryptsetup parsed and validated it; this reads its answer.

use std::collections::BTreeMap;

use libcryptsetup_rs::CryptDevice;
use serde::{Deserialize, Deserializer, de};

use super::error::LuksError;
use super::library;
use super::on_disk::Version;

/// The five objects of the specification's section 3.
#[derive(Debug, Deserialize)]
pub(super) struct Metadata {
    pub(super) keyslots: BTreeMap<u32, Keyslot>,
    pub(super) tokens: BTreeMap<u32, TokenObject>,
    pub(super) segments: BTreeMap<u32, SegmentObject>,
    pub(super) digests: BTreeMap<u32, DigestObject>,
    pub(super) config: Config,
}

#[derive(Debug, Deserialize)]
pub(super) struct Keyslot {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) key_size: u32,
    #[serde(default)]
    pub(super) priority: Option<u32>,
    pub(super) area: Area,
    #[serde(default)]
    pub(super) kdf: Option<KdfObject>,
    #[serde(default)]
    pub(super) af: Option<AntiForensic>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Area {
    #[serde(default)]
    pub(super) encryption: Option<String>,
    #[serde(default)]
    pub(super) key_size: Option<u32>,
    #[serde(deserialize_with = "decimal")]
    pub(super) offset: u64,
    #[serde(deserialize_with = "decimal")]
    pub(super) size: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct AntiForensic {
    pub(super) stripes: u32,
    pub(super) hash: String,
}

/// One of the KDFs; which fields there are depends on its type.
#[derive(Debug, Deserialize)]
pub(super) struct KdfObject {
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) hash: Option<String>,
    #[serde(default)]
    pub(super) iterations: Option<u32>,
    #[serde(default)]
    pub(super) time: Option<u32>,
    #[serde(default)]
    pub(super) memory: Option<u32>,
    #[serde(default)]
    pub(super) cpus: Option<u32>,
}

#[derive(Debug, Deserialize)]
pub(super) struct TokenObject {
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(default, deserialize_with = "numbers")]
    pub(super) keyslots: Vec<u32>,
}

#[derive(Debug, Deserialize)]
pub(super) struct SegmentObject {
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(deserialize_with = "decimal")]
    pub(super) offset: u64,
    #[serde(deserialize_with = "decimal_or_dynamic")]
    pub(super) size: Option<u64>,
    #[serde(default, deserialize_with = "decimal")]
    pub(super) iv_tweak: u64,
    #[serde(default)]
    pub(super) encryption: Option<String>,
    #[serde(default)]
    pub(super) sector_size: Option<u32>,
    #[serde(default)]
    pub(super) integrity: Option<Integrity>,
    #[serde(default)]
    pub(super) flags: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Integrity {
    #[serde(rename = "type")]
    pub(super) kind: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct DigestObject {
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(deserialize_with = "numbers")]
    pub(super) keyslots: Vec<u32>,
    #[serde(deserialize_with = "numbers")]
    pub(super) segments: Vec<u32>,
    #[serde(default)]
    pub(super) hash: Option<String>,
    #[serde(default)]
    pub(super) iterations: Option<u32>,
    /// In Base64.
    #[serde(default)]
    pub(super) digest: Option<String>,
    /// In Base64.
    #[serde(default)]
    pub(super) salt: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Config {
    #[serde(rename = "json_size", deserialize_with = "decimal")]
    pub(super) json_bytes: u64,
    #[serde(rename = "keyslots_size", deserialize_with = "decimal")]
    pub(super) keyslots_bytes: u64,
    #[serde(default)]
    pub(super) flags: Vec<String>,
    #[serde(default)]
    pub(super) requirements: Option<Requirements>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Requirements {
    #[serde(default)]
    pub(super) mandatory: Vec<String>,
}

impl Metadata {
    /// What `device`, a loaded LUKS2 header, holds.
    pub(super) fn of(device: &mut CryptDevice) -> Result<Self, LuksError> {
        let version = Version::Luks2;
        let json = library::call(|| device.status_handle().dump_json())
            .map_err(|source| LuksError::Load { version, source })?;
        serde_json::from_value(json)
            .map_err(|error| LuksError::Invalid { version, what: format!("in its metadata, {error}") })
    }
}

/// JSON's numbers hold 53 bits only, so the specification writes larger ones as text.
fn decimal<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| de::Error::custom(format_args!("{text:?} is no number of bytes or sectors")))
}

fn decimal_or_dynamic<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(deserializer)?;
    match text.as_str() {
        "dynamic" => Ok(None),
        _ => text.parse().map(Some).map_err(|_| de::Error::custom(format_args!("{text:?} is no size"))),
    }
}

/// Names of other objects, which are numbers as text.
fn numbers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u32>, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    names
        .iter()
        .map(|name| name.parse().map_err(|_| de::Error::custom(format_args!("{name:?} is no number"))))
        .collect()
}
