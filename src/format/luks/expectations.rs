//! What the operator knows of a volume, so that another header in its place is noticed.

use std::fmt;
use std::str::FromStr;

use base16ct::lower;
use uuid::Uuid;

use super::description::{Description, Segment};
use super::on_disk::Version;
use super::refusal::Refusal;
use crate::cipher::{CipherError, CipherSpec};

/// What the operator knows of the volume, to notice another one in its place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expectations {
    /// `--format luks1` or `luks2`.
    pub version: Option<Version>,
    /// `--expect-uuid`.
    pub uuid: Option<Uuid>,
    /// `--expect-cipher`.
    pub cipher: Option<ExpectedCipher>,
    /// `--expect-header-digest`: SHA-256 of the header area.
    pub header_digest: Option<[u8; 32]>,
}

/// A cipher, and the volume key's length if that is known too: `aes-xts-plain64` or `aes-xts-plain64:512`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedCipher {
    /// In dm-crypt's notation.
    pub name: String,
    /// Both halves of the XTS key.
    pub key_bits: Option<u32>,
}

impl fmt::Display for ExpectedCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key_bits {
            Some(bits) => write!(f, "{}:{bits}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

impl FromStr for ExpectedCipher {
    type Err = CipherError;

    fn from_str(text: &str) -> Result<Self, CipherError> {
        let (name, bits) = match text.split_once(':') {
            Some((name, bits)) => (name, Some(bits)),
            None => (text, None),
        };
        name.parse::<CipherSpec>()?;
        let key_bits = match bits.map(str::parse) {
            None => None,
            Some(Ok(bits @ (256 | 512))) => Some(bits),
            Some(_) => return Err(CipherError::UnknownSpec(text.to_owned())),
        };
        Ok(Self { name: name.to_owned(), key_bits })
    }
}

impl Expectations {
    pub(super) fn check(&self, header: &Description, refusals: &mut Vec<Refusal>) {
        if let Some(expected) = self.version.filter(|expected| *expected != header.version) {
            refusals.push(Refusal::Version { found: header.version, expected });
        }
        if let Some(expected) = self.uuid
            && Uuid::try_parse(&header.uuid) != Ok(expected)
        {
            refusals.push(Refusal::Uuid { found: header.uuid.clone(), expected });
        }
        if let Some(expected) = &self.cipher {
            let is_expected = |segment: &Segment| {
                segment.cipher.as_deref() == Some(&expected.name)
                    && expected.key_bits.is_none_or(|bits| segment.key_bits == Some(bits.into()))
            };
            for segment in header.segments.iter().filter(|segment| !is_expected(segment)) {
                let bits = segment.key_bits.map_or(String::new(), |bits| format!(":{bits}"));
                let found = segment.cipher.as_deref().unwrap_or("none").to_owned() + &bits;
                refusals.push(Refusal::ExpectedCipher { found, expected: expected.clone() });
            }
        }
        if let Some(expected) = self.header_digest.map(|digest| lower::encode_string(&digest))
            && expected != header.header_digest
        {
            refusals.push(Refusal::HeaderDigest { found: header.header_digest.clone(), expected });
        }
    }
}
