//! Managed objects: what is asked for them, and what is found in the answers.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::super::{KeyKind, KeyState, SECRET_BYTES_MAX, Secret, SecretError};
use super::session::{Operation, Session, Stop, text};
use super::tag;
use super::ttlv::{Item, Writer};

/// The application namespace of what we note on objects of ours.
const NAMESPACE: &str = "sealblk";

/// That of the name for people, on its own so that a server can look for it.
const NAME_NAMESPACE: &str = "sealblk-name";

/// Longest note that is taken.
const RECORD_BYTES_MAX: usize = 4096;

const AES: u32 = 3;
const ENCRYPT_AND_DECRYPT: u32 = 0x4 | 0x8;
const FORMAT_RAW: u32 = 1;
const FORMAT_OPAQUE: u32 = 2;
const FORMAT_TRANSPARENT: u32 = 7;
const TYPE_SYMMETRIC_KEY: u32 = 2;
const TYPE_SECRET_DATA: u32 = 7;
const TYPE_OPAQUE_OBJECT: u32 = 8;
const SECRET_PASSWORD: u32 = 1;
const SECRET_SEED: u32 = 2;
const REVOKED_CESSATION: u32 = 6;

/// What we note on an object that we make: which part of which version of which key it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) version: u32,
    /// From 1.
    pub(super) part: u32,
    /// How many objects together are the key.
    pub(super) parts: u32,
    /// Of all parts.
    pub(super) bits: u32,
    pub(super) is_text: bool,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) volume: Option<String>,
    pub(super) made: Made,
}

impl Record {
    pub(super) fn kind(&self) -> KeyKind {
        if self.is_text { KeyKind::Passphrase } else { KeyKind::Symmetric }
    }
}

/// When, to the nanosecond: servers count seconds, and keys are listed in the order of creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Made(pub(super) Timestamp);

impl TryFrom<String> for Made {
    type Error = jiff::Error;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

impl From<Made> for String {
    fn from(made: Made) -> Self {
        made.0.to_string()
    }
}

/// What a server says of an object.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) identifier: String,
    pub(super) object_type: Option<u32>,
    pub(super) bits: Option<u32>,
    pub(super) state: Option<KeyState>,
    pub(super) created: Option<Timestamp>,
    pub(super) name: Option<String>,
    pub(super) groups: Vec<String>,
    pub(super) record: Option<Record>,
}

impl Found {
    const ATTRIBUTES: [&str; 7] = [
        "Object Type",
        "Cryptographic Length",
        "State",
        "Initial Date",
        "Name",
        "Object Group",
        "Application Specific Information",
    ];

    /// Whether it can be a key of a volume.
    pub(super) fn may_be_key(&self) -> bool {
        matches!(self.object_type, Some(TYPE_SYMMETRIC_KEY | TYPE_SECRET_DATA | TYPE_OPAQUE_OBJECT))
    }

    pub(super) fn is_destroyed(&self) -> bool {
        self.state == Some(KeyState::Destroyed)
    }

    pub(super) fn read(payload: Item<'_>) -> Result<Self, Stop> {
        let mut found = Self {
            identifier: text(payload, tag::UNIQUE_IDENTIFIER)?,
            object_type: None,
            bits: None,
            state: None,
            created: None,
            name: None,
            groups: Vec::new(),
            record: None,
        };
        for attribute in payload.items().filter(|item| item.tag() == tag::ATTRIBUTE) {
            let name = attribute.find(tag::ATTRIBUTE_NAME).and_then(Item::text);
            if let (Some(name), Some(value)) = (name, attribute.find(tag::ATTRIBUTE_VALUE)) {
                found.note(name, value);
            }
        }
        Ok(found)
    }

    fn note(&mut self, name: &str, value: Item<'_>) {
        match name {
            "Object Type" => self.object_type = value.number(),
            "Cryptographic Length" => self.bits = value.number(),
            "State" => {
                self.state = value.number().map(|state| match state {
                    1 => KeyState::PreActive,
                    2 => KeyState::Active,
                    5 | 6 => KeyState::Destroyed,
                    _ => KeyState::Deactivated,
                });
            }
            "Initial Date" => {
                self.created = value.date_time().and_then(|seconds| Timestamp::from_second(seconds).ok());
            }
            "Name" if self.name.is_none() => {
                self.name = value.find(tag::NAME_VALUE).and_then(Item::text).map(str::to_owned);
            }
            "Object Group" => self.groups.extend(value.text().map(str::to_owned)),
            "Application Specific Information" => {
                let part = |tag| value.find(tag).and_then(Item::text);
                if part(tag::APPLICATION_NAMESPACE) == Some(NAMESPACE) {
                    let note = part(tag::APPLICATION_DATA).filter(|note| note.len() <= RECORD_BYTES_MAX);
                    self.record = note.and_then(|note| serde_json::from_str(note).ok());
                }
            }
            _ => {}
        }
    }
}

/// An object to be made.
pub(super) struct Wanted<'a> {
    pub(super) record: &'a Record,
    /// What all objects of the key have in common.
    pub(super) group: &'a str,
    /// Bits of this object.
    pub(super) bits: u32,
}

impl Wanted<'_> {
    fn write_attributes(&self, writer: &mut Writer<'_>, is_symmetric_key: bool) {
        writer.structure(tag::TEMPLATE_ATTRIBUTE, |writer| {
            if is_symmetric_key {
                attribute(writer, "Cryptographic Algorithm", |w| w.enumeration(tag::ATTRIBUTE_VALUE, AES));
                attribute(writer, "Cryptographic Length", |w| w.integer(tag::ATTRIBUTE_VALUE, self.bits));
            }
            attribute(writer, "Cryptographic Usage Mask", |w| {
                w.integer(tag::ATTRIBUTE_VALUE, ENCRYPT_AND_DECRYPT);
            });
            if let Some(name) = &self.record.name {
                let title = self.title(name);
                attribute(writer, "Name", |w| {
                    w.structure(tag::ATTRIBUTE_VALUE, |w| {
                        w.text(tag::NAME_VALUE, &title);
                        w.enumeration(tag::NAME_TYPE, 1);
                    });
                });
            }
            attribute(writer, "Object Group", |w| w.text(tag::ATTRIBUTE_VALUE, self.group));
            let note = serde_json::to_string(self.record).expect("numbers and text are JSON");
            information(writer, 0, NAMESPACE, &note);
            if let Some(name) = &self.record.name {
                information(writer, 1, NAME_NAMESPACE, name);
            }
        });
    }

    /// What people see at the server, where each object has a name of its own. That the halves of an XTS key are two
    /// keys with names that tell so is what the KMIP Usage Guide advises.
    fn title(&self, name: &str) -> String {
        let Record { version, part, parts, .. } = *self.record;
        let version = if version == 1 { String::new() } else { format!("#{version}") };
        let part = if parts == 1 { String::new() } else { format!("-xts-{part}") };
        format!("{name}{version}{part}")
    }

    /// Lets the server make a key.
    pub(super) fn create(&self, session: &mut Session) -> Result<String, Stop> {
        let write = |writer: &mut Writer<'_>| {
            writer.enumeration(tag::OBJECT_TYPE, TYPE_SYMMETRIC_KEY);
            self.write_attributes(writer, true);
        };
        session.ask(Operation::Create, write, |payload| text(payload, tag::UNIQUE_IDENTIFIER))
    }

    /// Gives the server a key.
    pub(super) fn register(&self, session: &mut Session, key: &[u8]) -> Result<String, Stop> {
        let is_symmetric_key = !self.record.is_text && is_aes_length(self.bits);
        let write = |writer: &mut Writer<'_>| {
            if is_symmetric_key {
                writer.enumeration(tag::OBJECT_TYPE, TYPE_SYMMETRIC_KEY);
                self.write_attributes(writer, true);
                writer.structure(tag::SYMMETRIC_KEY, |writer| {
                    writer.structure(tag::KEY_BLOCK, |writer| {
                        writer.enumeration(tag::KEY_FORMAT_TYPE, FORMAT_RAW);
                        writer.structure(tag::KEY_VALUE, |w| w.bytes(tag::KEY_MATERIAL, key));
                        writer.enumeration(tag::CRYPTOGRAPHIC_ALGORITHM, AES);
                        writer.integer(tag::CRYPTOGRAPHIC_LENGTH, self.bits);
                    });
                });
            } else {
                let what = if self.record.is_text { SECRET_PASSWORD } else { SECRET_SEED };
                writer.enumeration(tag::OBJECT_TYPE, TYPE_SECRET_DATA);
                self.write_attributes(writer, false);
                writer.structure(tag::SECRET_DATA, |writer| {
                    writer.enumeration(tag::SECRET_DATA_TYPE, what);
                    writer.structure(tag::KEY_BLOCK, |writer| {
                        writer.enumeration(tag::KEY_FORMAT_TYPE, FORMAT_OPAQUE);
                        writer.structure(tag::KEY_VALUE, |w| w.bytes(tag::KEY_MATERIAL, key));
                    });
                });
            }
        };
        session.ask(Operation::Register, write, |payload| text(payload, tag::UNIQUE_IDENTIFIER))
    }
}

/// Whether a symmetric key may be so long: an AES key, or both halves of an XTS key as servers that know it take it.
pub(super) fn is_aes_length(bits: u32) -> bool {
    matches!(bits, 128 | 192 | 256 | 512)
}

fn attribute(writer: &mut Writer<'_>, name: &str, value: impl FnOnce(&mut Writer<'_>)) {
    writer.structure(tag::ATTRIBUTE, |writer| {
        writer.text(tag::ATTRIBUTE_NAME, name);
        value(writer);
    });
}

/// The attribute that an object may have several of, of which each after the first has to be numbered.
fn information(writer: &mut Writer<'_>, index: u32, namespace: &str, data: &str) {
    attribute(writer, "Application Specific Information", |writer| {
        if index > 0 {
            writer.integer(tag::ATTRIBUTE_INDEX, index);
        }
        writer.structure(tag::ATTRIBUTE_VALUE, |writer| {
            writer.text(tag::APPLICATION_NAMESPACE, namespace);
            writer.text(tag::APPLICATION_DATA, data);
        });
    });
}

/// The key bytes of an object.
pub(super) fn get(session: &mut Session, identifier: &str) -> Result<Secret, Stop> {
    let read = |payload: Item<'_>| is_about(payload, identifier).and_then(|()| material(payload));
    session.ask(Operation::Get, |w| w.text(tag::UNIQUE_IDENTIFIER, identifier), read)
}

/// Whether an answer is about what was asked for: another key is worse than none.
fn is_about(payload: Item<'_>, identifier: &str) -> Result<(), Stop> {
    match payload.find(tag::UNIQUE_IDENTIFIER).and_then(Item::text) {
        Some(found) if found == identifier => Ok(()),
        _ => Err(Stop::Malformed("it is about another object".to_owned())),
    }
}

/// The key bytes in the answer to a Get.
pub(super) fn material(payload: Item<'_>) -> Result<Secret, Stop> {
    let malformed = |problem: &str| Stop::Malformed(problem.to_owned());
    let object = [tag::SYMMETRIC_KEY, tag::SECRET_DATA, tag::OPAQUE_OBJECT]
        .into_iter()
        .find_map(|tag| payload.find(tag))
        .ok_or_else(|| malformed("the object is neither a symmetric key nor secret or opaque data"))?;
    let bytes = if object.tag() == tag::OPAQUE_OBJECT {
        object.find(tag::OPAQUE_DATA_VALUE).and_then(Item::bytes)
    } else {
        let block = object.find(tag::KEY_BLOCK).ok_or_else(|| malformed("the key is missing in it"))?;
        if block.find(tag::KEY_WRAPPING_DATA).is_some() {
            return Err(malformed("the key is wrapped in another"));
        }
        let material = block.find(tag::KEY_VALUE).and_then(|value| value.find(tag::KEY_MATERIAL));
        match block.find(tag::KEY_FORMAT_TYPE).and_then(Item::number) {
            Some(FORMAT_RAW | FORMAT_OPAQUE) => material.and_then(Item::bytes),
            Some(FORMAT_TRANSPARENT) => material.and_then(|item| item.find(tag::KEY)).and_then(Item::bytes),
            _ => return Err(malformed("the key is in a format for something else than symmetric keys")),
        }
    };
    let bytes = bytes.ok_or_else(|| malformed("the key bytes are missing in it"))?;
    let is_text = object.find(tag::SECRET_DATA_TYPE).and_then(Item::number) == Some(SECRET_PASSWORD);
    let secret = Secret::fill(|buffer| {
        if bytes.len() > SECRET_BYTES_MAX {
            return Err(Stop::Secret(SecretError::TooLong));
        }
        buffer[..bytes.len()].copy_from_slice(bytes);
        Ok(bytes.len())
    })?;
    Ok(secret.of_kind(if is_text { KeyKind::Passphrase } else { KeyKind::Symmetric }))
}

/// What the server says of an object.
pub(super) fn attributes(session: &mut Session, identifier: &str) -> Result<Found, Stop> {
    let write = |writer: &mut Writer<'_>| {
        writer.text(tag::UNIQUE_IDENTIFIER, identifier);
        for name in Found::ATTRIBUTES {
            writer.text(tag::ATTRIBUTE_NAME, name);
        }
    };
    let read = |payload: Item<'_>| is_about(payload, identifier).and_then(|()| Found::read(payload));
    session.ask(Operation::GetAttributes, write, read)
}

/// The objects of a group.
pub(super) fn locate_group(session: &mut Session, group: &str) -> Result<Vec<String>, Stop> {
    let write =
        |writer: &mut Writer<'_>| attribute(writer, "Object Group", |w| w.text(tag::ATTRIBUTE_VALUE, group));
    session.ask(Operation::Locate, write, identifiers)
}

/// The objects that we gave a name.
pub(super) fn locate_name(session: &mut Session, name: &str) -> Result<Vec<String>, Stop> {
    session.ask(Operation::Locate, |writer| information(writer, 0, NAME_NAMESPACE, name), identifiers)
}

/// Every object that this client may see.
pub(super) fn locate_all(session: &mut Session) -> Result<Vec<String>, Stop> {
    session.ask(Operation::Locate, |_| {}, identifiers)
}

/// The identifiers in the answer to a Locate.
pub(super) fn identifiers(payload: Item<'_>) -> Result<Vec<String>, Stop> {
    let found = payload.items().filter(|item| item.tag() == tag::UNIQUE_IDENTIFIER);
    Ok(found.filter_map(Item::text).map(str::to_owned).collect())
}

/// Lets a new object be used.
pub(super) fn activate(session: &mut Session, identifier: &str) -> Result<(), Stop> {
    session.ask(Operation::Activate, |w| w.text(tag::UNIQUE_IDENTIFIER, identifier), |_| Ok(()))
}

/// Destroys an object, which must not be active for that.
pub(super) fn destroy(session: &mut Session, found: &Found) -> Result<(), Stop> {
    let identifier = found.identifier.as_str();
    if found.state == Some(KeyState::Active) {
        let write = |writer: &mut Writer<'_>| {
            writer.text(tag::UNIQUE_IDENTIFIER, identifier);
            writer.structure(tag::REVOCATION_REASON, |w| {
                w.enumeration(tag::REVOCATION_REASON_CODE, REVOKED_CESSATION);
            });
        };
        session.ask(Operation::Revoke, write, |_| Ok(()))?;
    }
    session.ask(Operation::Destroy, |w| w.text(tag::UNIQUE_IDENTIFIER, identifier), |_| Ok(()))
}
