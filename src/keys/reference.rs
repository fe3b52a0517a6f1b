//! How keys are called: `SCHEME[@PROFILE][+ENCODING]:ID`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::encoding::Encoding;
use super::scheme::{self, Scheme};

/// The profile that a reference without `@PROFILE` means.
const DEFAULT_PROFILE: &str = "default";

/// Longest name of a profile.
const PROFILE_BYTES_MAX: usize = 64;

/// Names one key: for example `file:/run/keys/vm1`, `credential+base64:vm1` or `keystore@prod:vm1#2`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyReference {
    manager: ManagerName,
    encoding: Encoding,
    id: KeyId,
}

/// Names one key manager: a scheme, and for those that can be set up in several ways, which of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagerName {
    scheme: &'static Scheme,
    profile: Option<String>,
}

/// What a key is called within its manager: a name, and a version where the manager counts them. Not secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyId {
    name: String,
    version: Option<u32>,
}

impl KeyReference {
    /// The manager to ask.
    pub fn manager(&self) -> &ManagerName {
        &self.manager
    }

    /// What the payload is turned from into the key.
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// What the manager calls the key.
    pub fn id(&self) -> &KeyId {
        &self.id
    }

    /// That version of the same key.
    #[must_use]
    pub fn with_version(&self, version: u32) -> Self {
        Self { id: self.id.clone().with_version(version), ..self.clone() }
    }

    /// Whether both may name versions of one key. Profiles do not tell keys apart: two may lead to one keystore.
    pub fn may_share_key_with(&self, other: &Self) -> bool {
        let schemes = [self.manager.scheme, other.manager.scheme];
        schemes[0] == schemes[1] && schemes[0].takes_version && self.id.name == other.id.name
    }
}

impl ManagerName {
    /// The manager of `scheme` that needs no profile, or its default one.
    pub(super) fn new(scheme: &'static Scheme) -> Self {
        Self { scheme, profile: None }
    }

    /// The kind of manager.
    pub(super) fn scheme(&self) -> &'static Scheme {
        self.scheme
    }

    /// Which profile of the key configuration file sets it up. Of meaning for schemes that take profiles only.
    pub fn profile(&self) -> &str {
        self.profile.as_deref().unwrap_or(DEFAULT_PROFILE)
    }

    /// A key of this manager, for messages and for the tools.
    pub fn key(&self, id: &KeyId) -> KeyReference {
        KeyReference { manager: self.clone(), encoding: Encoding::Raw, id: id.clone() }
    }
}

impl KeyId {
    /// The key `name`, whatever its newest version is.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), version: None }
    }

    /// That version of the same key.
    #[must_use]
    pub fn with_version(self, version: u32) -> Self {
        Self { version: Some(version), ..self }
    }

    /// The name, without a version.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The version that is meant, if not the newest.
    pub fn version(&self) -> Option<u32> {
        self.version
    }
}

impl fmt::Display for KeyReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.manager.fmt(f)?;
        if self.encoding != Encoding::Raw {
            write!(f, "+{}", self.encoding.name())?;
        }
        write!(f, ":{}", self.id)
    }
}

impl fmt::Display for ManagerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.scheme.name)?;
        match &self.profile {
            Some(profile) => write!(f, "@{profile}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match self.version {
            Some(version) => write!(f, "#{version}"),
            None => Ok(()),
        }
    }
}

impl Serialize for KeyReference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for KeyId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyReference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl FromStr for KeyReference {
    type Err = ReferenceError;

    fn from_str(reference: &str) -> Result<Self, ReferenceError> {
        let (head, id) = reference.split_once(':').ok_or(ReferenceError::NoScheme)?;
        let (manager, encoding) = match head.split_once('+') {
            Some((manager, encoding)) => (manager, Some(encoding)),
            None => (head, None),
        };
        let manager: ManagerName = manager.parse()?;
        let encoding = match encoding {
            Some(name) => Encoding::from_name(name).ok_or(ReferenceError::UnknownEncoding)?,
            None => Encoding::Raw,
        };
        let id = key_id(manager.scheme, id)?;
        Ok(Self { manager, encoding, id })
    }
}

impl FromStr for ManagerName {
    type Err = ReferenceError;

    fn from_str(name: &str) -> Result<Self, ReferenceError> {
        let (scheme, profile) = match name.split_once('@') {
            Some((scheme, profile)) => (scheme, Some(profile)),
            None => (name, None),
        };
        let scheme =
            Scheme::from_name(scheme).ok_or_else(|| ReferenceError::UnknownScheme(presentable(scheme)))?;
        match profile {
            Some(_) if !scheme.takes_profile => return Err(ReferenceError::NoProfiles(scheme.usage)),
            Some(profile) if !is_profile_name(profile) => return Err(ReferenceError::ProfileName),
            _ => {}
        }
        Ok(Self { scheme, profile: profile.map(str::to_owned) })
    }
}

/// What stands behind the colon.
fn key_id(scheme: &'static Scheme, text: &str) -> Result<KeyId, ReferenceError> {
    let (name, version) = match text.rsplit_once('#').filter(|_| scheme.takes_version) {
        Some((name, version)) => (name, Some(self::version(version).ok_or(ReferenceError::Version)?)),
        None => (text, None),
    };
    if name.is_empty() {
        return Err(ReferenceError::NoId(scheme.usage));
    }
    if name.contains('\0') {
        return Err(ReferenceError::NulInId);
    }
    Ok(KeyId { name: name.to_owned(), version })
}

/// A version, written in one way only: `2`, not `+2` or `02`.
fn version(text: &str) -> Option<u32> {
    text.parse::<u32>().ok().filter(|version| *version > 0 && version.to_string() == text)
}

/// Whether a key configuration file may have a profile of this name: one that needs no quotes in TOML.
pub(super) fn is_profile_name(name: &str) -> bool {
    (1..=PROFILE_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

/// Why text does not name a key. Never shows the text itself: it may be a key, given where a reference to one
/// was asked for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// No colon in it.
    #[error("a key is named by reference, {}; the key itself must not be given", scheme::usages())]
    NoScheme,
    /// No such key manager.
    #[error("unknown key manager{0}: the known ones are {known}", known = scheme::usages())]
    UnknownScheme(String),
    /// Nothing after the colon.
    #[error("nothing follows the colon: write {0}")]
    NoId(&'static str),
    /// A zero byte, which no kernel or server takes.
    #[error("there is a zero byte in the reference")]
    NulInId,
    /// A profile for a manager that has none.
    #[error("there is nothing to choose a profile of: write {0}")]
    NoProfiles(&'static str),
    /// Not what a profile can be called.
    #[error("a profile is named by 1 to {PROFILE_BYTES_MAX} letters, digits, `-` and `_`")]
    ProfileName,
    /// No such encoding.
    #[error("unknown encoding of the key: the known ones are {}", Encoding::names())]
    UnknownEncoding,
    /// Not a version.
    #[error("what follows `#` is the version of a key: a number from 1")]
    Version,
}

/// `scheme` quoted for a message when it looks like one, or nothing: it may be part of a key.
fn presentable(scheme: &str) -> String {
    let short_word =
        scheme.len() <= 12 && scheme.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    if short_word { format!(" `{scheme}`") } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<KeyReference, ReferenceError> {
        text.parse()
    }

    #[test]
    fn references_survive_a_round_trip() {
        for text in [
            "file:/run/keys/vm1",
            "file:relative:with:colons",
            "file:/run/keys/vm1#2",
            "file+hex:/run/keys/a@b+c",
            "fd:5",
            "fd+openstack:5",
            "credential+base64:vm1",
            "nested@prod+openstack:a@b+c:d#17",
        ] {
            let reference = parse(text).unwrap();
            assert_eq!(reference.to_string(), text);
            assert_eq!(parse(&reference.to_string()), Ok(reference));
        }
        assert_eq!(parse("file+raw:/x").unwrap().to_string(), "file:/x");
    }

    #[test]
    fn versions_of_one_key_are_told_from_other_keys() {
        let shares = |one, other| parse(one).unwrap().may_share_key_with(&parse(other).unwrap());
        let version = parse("nested@prod+hex:vm1").unwrap().with_version(3);
        assert_eq!(version.to_string(), "nested@prod+hex:vm1#3");
        assert!(shares("nested:vm1", "nested:vm1"));
        assert!(shares("nested:vm1#1", "nested@prod+hex:vm1#2"));
        assert!(!shares("nested:vm1", "nested:vm2"));
        assert!(!shares("nested:vm1", "file:vm1"));
        // Where keys have no versions, two names are two keys as far as anybody can tell.
        assert!(!shares("file:vm1", "file+hex:vm1"));
    }

    #[test]
    fn a_number_sign_is_a_version_only_where_keys_have_versions() {
        let id = |text| parse(&format!("nested:{text}")).map(|reference| reference.id);
        assert_eq!(id("vm1#2"), Ok(KeyId::new("vm1").with_version(2)));
        assert_eq!(id("a#b#4294967295"), Ok(KeyId::new("a#b").with_version(u32::MAX)));
        for text in ["vm1#", "vm1#0", "vm1#02", "vm1#+2", "vm1#-1", "vm1#two", "vm1#4294967296"] {
            assert_eq!(id(text), Err(ReferenceError::Version), "{text}");
        }
        assert_eq!(id("#2"), Err(ReferenceError::NoId(scheme::NESTED.usage)));
        assert_eq!(parse("file:vm1#2").unwrap().id(), &KeyId::new("vm1#2"));
    }

    #[test]
    fn a_bad_reference_is_answered_with_the_known_ones() {
        for (text, scheme) in
            [("vaultt:kv/vm1", " `vaultt`"), ("FILE:/x", ""), (":/x", " ``"), ("@p:x", " ``")]
        {
            let error = parse(text).unwrap_err();
            assert_eq!(error, ReferenceError::UnknownScheme(scheme.to_owned()));
            assert!(error.to_string().contains("file:PATH, fd:N"), "{error}");
        }
        let error = parse("file+hexx:/x").unwrap_err();
        assert!(error.to_string().ends_with("raw, hex, base64, openstack"), "{error}");
        assert_eq!(parse("file+:/x"), Err(ReferenceError::UnknownEncoding));
        assert_eq!(parse("file:"), Err(ReferenceError::NoId("file:PATH")));
        assert_eq!(parse("file:a\0b"), Err(ReferenceError::NulInId));
        assert_eq!(parse("file@prod:/x"), Err(ReferenceError::NoProfiles("file:PATH")));
        // The order is fixed, so that there is one way to write a reference.
        assert_eq!(parse("file+hex@prod:/x"), Err(ReferenceError::UnknownEncoding));
    }

    #[test]
    fn profiles_are_named_as_toml_tables_are() {
        for name in ["prod", "eu-1_b", &"x".repeat(64)] {
            assert!(is_profile_name(name));
        }
        for name in ["", "a.b", "a b", "é", "a/b", &"x".repeat(65)] {
            assert!(!is_profile_name(name), "{name}");
        }
    }

    #[test]
    fn a_key_given_instead_of_a_reference_is_not_repeated() {
        for key in [
            "00112233445566778899aabbccddeeff",
            "00112233445566778899aabbccddeeff:0011",
            "c2VjcmV0:x",
            "c2VjcmV0+c2VjcmV0:x",
            "file+c2VjcmV0:x",
            "file@c2VjcmV0:x",
            "c2VjcmV0@c2VjcmV0",
        ] {
            let error = parse(key).unwrap_err().to_string();
            assert!(!error.contains("0011") && !error.contains("c2V"), "{error}");
        }
    }
}
