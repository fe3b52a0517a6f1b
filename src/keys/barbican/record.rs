//! What Barbican says of a secret, and what that means here.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::keys::{KeyId, KeyKind, KeyMetadata, KeyState};

/// What we register as, where a secret says who uses it.
pub(super) const SERVICE: &str = "sealblk";

/// What it is used for.
const VOLUME: &str = "volume";

/// Longest identifier of a consumer: there is no more room for it in Barbican's database.
const RESOURCE_ID_CHARS_MAX: usize = 36;

/// A secret, without its payload.
#[derive(Debug, Deserialize)]
pub(super) struct SecretRecord {
    secret_ref: String,
    name: Option<String>,
    secret_type: Option<String>,
    bit_length: Option<u32>,
    status: String,
    created: Option<String>,
    content_types: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub(super) consumers: Vec<Consumer>,
}

/// Who uses a secret, and for what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Consumer {
    pub(super) service: String,
    pub(super) resource_type: String,
    pub(super) resource_id: String,
}

/// A page of secrets.
#[derive(Debug, Deserialize)]
pub(super) struct Page {
    pub(super) secrets: Vec<SecretRecord>,
    pub(super) total: u64,
}

/// An order for a new secret.
#[derive(Debug, Deserialize)]
pub(super) struct Order {
    pub(super) status: String,
    pub(super) secret_ref: Option<String>,
}

/// The identifier at the end of a reference. Nothing else of it is taken: its host is what the server believes to be called.
pub(super) fn uuid_of(reference: &str) -> Option<Uuid> {
    canonical_uuid(reference.trim_end_matches('/').rsplit('/').next()?)
}

/// A UUID as Barbican writes it: hyphenated, in lower case.
pub(super) fn canonical_uuid(text: &str) -> Option<Uuid> {
    let uuid = Uuid::try_parse(text).ok()?;
    (uuid.hyphenated().to_string() == text.to_ascii_lowercase()).then_some(uuid)
}

impl Consumer {
    /// That we use it for `volume`. What is too long for one of them is told by several, in parts: `volume.1` and so on.
    pub(super) fn of_volume(volume: &str) -> Vec<Self> {
        let chars: Vec<char> = volume.chars().collect();
        let parts = chars.chunks(RESOURCE_ID_CHARS_MAX);
        let is_whole = parts.len() == 1;
        let consumer = |(index, part): (usize, &[char])| Self {
            service: SERVICE.to_owned(),
            resource_type: if is_whole { VOLUME.to_owned() } else { format!("{VOLUME}.{}", index + 1) },
            resource_id: part.iter().collect(),
        };
        parts.enumerate().map(consumer).collect()
    }

    /// Which part of a volume's name it tells, from 1; 0 if it tells all of it.
    fn part(&self) -> Option<u32> {
        let number = self.resource_type.strip_prefix(VOLUME)?;
        if number.is_empty() { Some(0) } else { number.strip_prefix('.')?.parse().ok() }
    }
}

impl SecretRecord {
    pub(super) fn uuid(&self) -> Option<Uuid> {
        uuid_of(&self.secret_ref)
    }

    pub(super) fn has_name(&self, name: &str) -> bool {
        self.name.as_deref() == Some(name)
    }

    /// What its payload is used as; `None` for certificates and keys of key pairs.
    pub(super) fn kind(&self) -> Option<KeyKind> {
        match self.secret_type.as_deref() {
            Some("passphrase") => Some(KeyKind::Passphrase),
            Some("symmetric" | "opaque") | None => Some(KeyKind::Symmetric),
            Some(_) => None,
        }
    }

    /// What Barbican calls what it is.
    pub(super) fn type_name(&self) -> &str {
        self.secret_type.as_deref().unwrap_or("opaque")
    }

    /// The type in which its payload is to be asked for; `None` while it has none.
    pub(super) fn content_type(&self) -> Option<&str> {
        self.content_types.as_ref()?.get("default").map(String::as_str)
    }

    /// What it is as a key; `None` if it is none.
    pub(super) fn metadata(&self) -> Option<KeyMetadata> {
        let uuid = self.uuid()?.hyphenated().to_string();
        Some(KeyMetadata {
            // A secret without a name is called by its UUID.
            name: self.name.clone().filter(|name| *name != uuid),
            id: KeyId::new(uuid),
            version: 1,
            kind: self.kind()?,
            bits: self.bit_length.unwrap_or(0),
            state: self.state(),
            volume: self.volume(),
            created: self.created.as_deref().and_then(time),
        })
    }

    /// The volume that it is used for: ours, or else somebody else's.
    fn volume(&self) -> Option<String> {
        let of_others = || {
            let mut consumers = self.consumers.iter();
            consumers.find(|consumer| consumer.part() == Some(0)).map(|consumer| consumer.resource_id.clone())
        };
        let ours = self.consumers.iter().filter(|consumer| consumer.service == SERVICE);
        let mut parts: Vec<(u32, &str)> =
            ours.filter_map(|consumer| Some((consumer.part()?, &*consumer.resource_id))).collect();
        parts.sort_unstable();
        match parts.first() {
            None => of_others(),
            Some((0, whole)) => Some((*whole).to_owned()),
            Some(_) => Some(parts.into_iter().map(|(_, part)| part).collect()),
        }
    }

    fn state(&self) -> KeyState {
        match (self.status.as_str(), self.content_type()) {
            ("ACTIVE", Some(_)) => KeyState::Active,
            ("ACTIVE" | "PENDING", _) => KeyState::PreActive,
            _ => KeyState::Deactivated,
        }
    }
}

/// A time in UTC, with or without saying so.
fn time(text: &str) -> Option<Timestamp> {
    text.parse().ok().or_else(|| TimeZone::UTC.to_timestamp(text.parse::<DateTime>().ok()?).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "0b1c2d3e-4f50-4617-8293-a4b5c6d7e8f9";

    fn record(fields: &str) -> SecretRecord {
        let text = format!(
            r#"{{"secret_ref": "http://else.where/v1/secrets/{UUID}", "status": "ACTIVE", {fields}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn only_the_uuid_of_a_reference_is_taken() {
        for reference in
            [format!("https://evil.example/v1/secrets/{UUID}"), UUID.to_owned(), format!("x/{UUID}/")]
        {
            assert_eq!(uuid_of(&reference).unwrap().hyphenated().to_string(), UUID, "{reference}");
        }
        for reference in
            ["", "/", "https://x/v1/secrets/", "https://x/0b1c2d3e4f5046178293a4b5c6d7e8f9", "../acl"]
        {
            assert_eq!(uuid_of(reference), None, "{reference}");
        }
        assert_eq!(canonical_uuid(&format!("{{{UUID}}}")), None);
        assert_eq!(canonical_uuid(&format!("urn:uuid:{UUID}")), None);
    }

    #[test]
    fn a_secret_becomes_a_key() {
        let key = record(
            r#""name": "vm1", "secret_type": "symmetric", "bit_length": 512, "created": "2026-01-02T03:04:05.678901",
               "content_types": {"default": "application/octet-stream"},
               "consumers": [{"service": "cinder", "resource_type": "volume", "resource_id": "other"},
                             {"service": "sealblk", "resource_type": "volume", "resource_id": "vm1.img"}]"#,
        )
        .metadata()
        .unwrap();
        assert_eq!(
            (key.id, key.name.as_deref(), key.kind, key.bits),
            (KeyId::new(UUID), Some("vm1"), KeyKind::Symmetric, 512)
        );
        assert_eq!((key.state, key.volume.as_deref()), (KeyState::Active, Some("vm1.img")));
        assert_eq!(key.created.unwrap().to_string(), "2026-01-02T03:04:05.678901Z");
    }

    #[test]
    fn a_long_name_of_a_volume_is_told_in_parts() {
        for volume in ["vm1.img", &"\u{e9}".repeat(36), &"/dev/disks/\u{e9}vm1".repeat(17), &"x".repeat(255)]
        {
            let mut consumers = Consumer::of_volume(volume);
            let fits = |consumer: &Consumer| consumer.resource_id.chars().count() <= RESOURCE_ID_CHARS_MAX;
            assert!(consumers.iter().all(fits), "{volume}");
            consumers.reverse();
            let others = Consumer { service: "cinder".to_owned(), ..Consumer::of_volume("other").remove(0) };
            consumers.insert(0, others);
            let key = record(&format!("\"consumers\": {}", serde_json::to_string(&consumers).unwrap()));
            assert_eq!(key.metadata().unwrap().volume.as_deref(), Some(volume));
        }
    }

    #[test]
    fn what_is_no_key_is_none() {
        assert_eq!(record(r#""secret_type": "certificate""#).metadata(), None);
        let empty = record(r#""secret_type": "passphrase", "name": null"#);
        assert_eq!(empty.metadata().unwrap().state, KeyState::PreActive);
    }
}
