//! What Vault knows of a key, beside its bytes.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;

use super::record::{Fields, plain_text};
use crate::keys::{KeyId, KeyKind, KeyMetadata, KeyState};

/// The notes of ours, as they are called in custom metadata and in records.
pub(super) const NOTES: [&str; 4] = ["type", "bit_length", "name", "volume"];

/// The metadata of a record, as version 2 of the KV engine has it.
#[derive(Deserialize)]
pub(super) struct Notes {
    created_time: Option<String>,
    pub(super) current_version: u32,
    versions: BTreeMap<u32, Version>,
    custom_metadata: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct Version {
    created_time: Option<String>,
    #[serde(default)]
    deletion_time: String,
    #[serde(default)]
    destroyed: bool,
}

impl Version {
    fn is_gone(&self) -> bool {
        // May be in the future, where the mount forgets versions after a while.
        let is_past = |time: Timestamp| time <= Timestamp::now();
        self.destroyed || (!self.deletion_time.is_empty() && self.deletion_time.parse().map_or(true, is_past))
    }
}

impl Notes {
    /// The same of a record of version 1 of the engine, which has them in itself.
    pub(super) fn of_record(fields: &Fields<'_>) -> Self {
        let created_time = plain_text(fields, "created_time").map(str::to_owned);
        let note = |name: &str| {
            let value = fields.get(name)?.get();
            // Numbers as they are; text, which is not secret here, by a parser.
            serde_json::from_str::<String>(value)
                .ok()
                .or_else(|| Some(value.to_owned()).filter(|_| value != "null"))
        };
        Self {
            created_time: created_time.clone(),
            current_version: 1,
            versions: BTreeMap::from([(
                1,
                Version { created_time, deletion_time: String::new(), destroyed: false },
            )]),
            custom_metadata: Some(
                NOTES.into_iter().filter_map(|name| Some((name.to_owned(), note(name)?))).collect(),
            ),
        }
    }

    /// When the first version was made.
    pub(super) fn first_time(&self) -> Option<Timestamp> {
        time(self.created_time.as_deref())
    }

    pub(super) fn has_version(&self, number: u32) -> bool {
        self.versions.contains_key(&number)
    }

    fn note(&self, name: &str) -> Option<String> {
        self.custom_metadata.as_ref()?.get(name).cloned()
    }

    /// What the newest version, or the one that `id` names, is as a key; `None` if there is none.
    pub(super) fn metadata(&self, id: &KeyId) -> Option<KeyMetadata> {
        let number = id.version().unwrap_or(self.current_version);
        let version = self.versions.get(&number)?;
        let state = match version.is_gone() {
            true => KeyState::Destroyed,
            false if number == self.current_version => KeyState::Active,
            false => KeyState::Deactivated,
        };
        let kind = match self.note("type").as_deref() {
            Some("passphrase") => KeyKind::Passphrase,
            _ => KeyKind::Symmetric,
        };
        Some(KeyMetadata {
            id: KeyId::new(id.name()),
            version: number,
            name: self.note("name"),
            kind,
            // Not noted by others than us.
            bits: self.note("bit_length").and_then(|bits| bits.parse().ok()).unwrap_or(0),
            state,
            volume: self.note("volume"),
            created: time(version.created_time.as_deref()),
        })
    }
}

fn time(text: Option<&str>) -> Option<Timestamp> {
    text?.parse().ok()
}
