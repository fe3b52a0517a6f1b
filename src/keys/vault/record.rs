//! What lies at a path, and how it becomes a key.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64ct::{Base64, Encoding as _};
use serde::Deserialize;
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use super::Vault;
use super::profile::KvVersion;
use super::session::{ANSWER_BYTES_MAX, Call, Session, json};
use crate::keys::http::{HttpError, Method, parse_json, path_segment};
use crate::keys::{KeyError, KeyId, KeyKind, Secret, SecretError};

/// A key as it is kept.
pub(super) enum Stored {
    /// As it is.
    Key(Secret),
    /// Encrypted under a transit key: text that opens nothing by itself.
    Wrapped(KeyKind, String),
}

/// Any answer of Vault.
#[derive(Deserialize)]
pub(super) struct Envelope<T> {
    pub(super) data: T,
}

/// The fields of a record, each as it is written. No copy of a key is made outside the text that it is in.
pub(super) type Fields<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;

#[derive(Deserialize)]
struct Versioned<'a> {
    /// `null` once the version was deleted.
    #[serde(borrow)]
    data: Option<Fields<'a>>,
}

#[derive(Deserialize)]
struct Plaintext<'a> {
    plaintext: &'a str,
}

/// A path, each part of it encoded by itself.
pub(super) fn encoded(path: &str) -> String {
    path.split('/').map(path_segment).collect::<Vec<_>>().join("/")
}

impl Vault {
    /// Where the record of a key is.
    pub(super) fn record_path(&self, name: &str) -> String {
        let (mount, name) = (encoded(&self.profile.mount), encoded(name));
        match self.profile.kv_version {
            KvVersion::One => format!("{mount}/{name}"),
            KvVersion::Two => format!("{mount}/data/{name}"),
        }
    }

    /// Reads the record of a key, in memory that is wiped; `None` where there is nothing.
    pub(super) fn read(&self, session: &Session, id: &KeyId) -> Result<Option<Zeroizing<Vec<u8>>>, KeyError> {
        let version = match (self.profile.kv_version, id.version()) {
            (KvVersion::Two, Some(version)) => format!("?version={version}"),
            _ => String::new(),
        };
        let path = self.record_path(id.name()) + &version;
        let call = Call { method: Method::Get, path: &path, body: None };
        let answer = session.call(self, &self.key(id), &call)?;
        match answer.status() {
            200 => {
                let text = answer.into_text(ANSWER_BYTES_MAX);
                text.map(Some).map_err(|error| error.about(self.key(id), &self.service()))
            }
            404 => Ok(None),
            status => Err(self.refusal(self.key(id), &call, status)),
        }
    }

    /// The record in what was read.
    pub(super) fn fields<'a>(&self, id: &KeyId, text: &'a [u8]) -> Result<Fields<'a>, KeyError> {
        let about = |error: HttpError| error.about(self.key(id), &self.service());
        match self.profile.kv_version {
            KvVersion::One => Ok(parse_json::<Envelope<Fields<'_>>>(text).map_err(about)?.data),
            KvVersion::Two => {
                let record: Envelope<Versioned<'_>> = parse_json(text).map_err(about)?;
                record.data.data.ok_or_else(|| self.absent(id))
            }
        }
    }

    /// The key in what was read.
    pub(super) fn stored(&self, id: &KeyId, text: &[u8]) -> Result<Stored, KeyError> {
        let fields = self.fields(id, text)?;
        let malformed = |problem: String, remedy: &str| KeyError::malformed(self.key(id), problem, remedy);
        let kind = match plain_text(&fields, "type") {
            Some("passphrase") => Some(KeyKind::Passphrase),
            Some("symmetric" | "opaque") => Some(KeyKind::Symmetric),
            Some("certificate" | "private" | "public") if fields.contains_key("value") => {
                return Err(malformed(
                    "it is a certificate or belongs to a key pair".to_owned(),
                    "name a symmetric key or a passphrase",
                ));
            }
            _ => None,
        };
        if let Some(ciphertext) = plain_text(&fields, "ciphertext") {
            return Ok(Stored::Wrapped(kind.unwrap_or(KeyKind::Symmetric), ciphertext.to_owned()));
        }
        if let (Some(kind), Some(value)) = (kind, plain_text(&fields, "value")) {
            let not_hex = || {
                malformed(
                    "its value is not the hexadecimal text that records of its type have".to_owned(),
                    "store it again, or leave out `type`",
                )
            };
            let secret = self.filled(id, |into| {
                base16ct::mixed::decode(value, into).map(<[u8]>::len).map_err(|_| not_hex())
            })?;
            return Ok(Stored::Key(secret.of_kind(kind)));
        }
        let field = self.profile.field.as_str();
        let value = fields.get(field).map(|value| value.get()).filter(|value| value.starts_with('"'));
        let value = value.ok_or_else(|| {
            malformed(format!("its record has no text `{field}`"), "name the right `field` in its profile")
        })?;
        self.filled(id, |into| Ok(unescape(value, into))).map(Stored::Key)
    }

    /// Has a key decrypted by the transit key.
    pub(super) fn unwrap_key(
        &self,
        session: &Session,
        id: &KeyId,
        kind: KeyKind,
        ciphertext: &str,
    ) -> Result<Secret, KeyError> {
        let Some(transit_key) = &self.profile.transit_key else {
            return Err(KeyError::not_allowed(
                self.key(id),
                "it is encrypted under a transit key",
                "name that as `transit-key` in its profile",
            ));
        };
        let path = format!("{}/decrypt/{}", encoded(&self.profile.transit_mount), path_segment(transit_key));
        let body = json(&BTreeMap::from([("ciphertext", ciphertext)]));
        let call = Call { method: Method::Post, path: &path, body: Some(&body) };
        let answer = session.call(self, &self.key(id), &call)?;
        match answer.status() {
            200 => {}
            400 => {
                return Err(KeyError::malformed(
                    self.key(id),
                    "the transit key does not decrypt it",
                    "name the transit key that it was made with, and let that decrypt what is as old",
                ));
            }
            status => return Err(self.refusal(self.key(id), &call, status)),
        }
        let about = |error: HttpError| error.about(self.key(id), &self.service());
        let text = answer.into_text(ANSWER_BYTES_MAX).map_err(about)?;
        let answer: Envelope<Plaintext<'_>> = parse_json(&text).map_err(about)?;
        let secret = self.filled(id, |into| {
            let decoded = Base64::decode(answer.data.plaintext, into);
            decoded.map(<[u8]>::len).map_err(|_| HttpError::NotHttp.about(self.key(id), &self.service()))
        })?;
        Ok(secret.of_kind(kind))
    }

    /// A secret that `write` puts into locked memory, whose size is checked there.
    fn filled(
        &self,
        id: &KeyId,
        write: impl FnOnce(&mut [u8]) -> Result<usize, KeyError>,
    ) -> Result<Secret, KeyError> {
        /// Who failed.
        enum Filling {
            Secret(SecretError),
            Writer(KeyError),
        }
        impl From<SecretError> for Filling {
            fn from(error: SecretError) -> Self {
                Self::Secret(error)
            }
        }
        Secret::fill(|into| write(into).map_err(Filling::Writer)).map_err(|filling| match filling {
            Filling::Secret(error) => KeyError::of_secret(self.key(id), error),
            Filling::Writer(error) => error,
        })
    }
}

/// A field that is text without escapes, as it is.
pub(super) fn plain_text<'a>(fields: &Fields<'a>, name: &str) -> Option<&'a str> {
    serde_json::from_str(fields.get(name)?.get()).ok()
}

/// Writes what a JSON text stands for into `into`, and says how long it is; all of `into` where it does not fit. A parser
/// would leave a copy of it behind.
fn unescape(json: &str, into: &mut [u8]) -> usize {
    let mut rest = &json[1..json.len() - 1];
    let mut filled_bytes = 0;
    while let Some(next) = rest.chars().next() {
        let (meant, written_bytes) = match next {
            '\\' => escaped(rest),
            next => (next, next.len_utf8()),
        };
        let Some(room) = into.get_mut(filled_bytes..filled_bytes + meant.len_utf8()) else {
            return into.len();
        };
        filled_bytes += meant.encode_utf8(room).len();
        rest = &rest[written_bytes..];
    }
    filled_bytes
}

/// The character that an escape at the beginning of `text` stands for, and how long it is there. What was parsed as JSON
/// has no other escapes, except halves of surrogate pairs.
fn escaped(text: &str) -> (char, usize) {
    let unit = |at: usize| u16::from_str_radix(text.get(at..at + 4)?, 16).ok();
    match text.as_bytes().get(1) {
        Some(b'n') => ('\n', 2),
        Some(b'r') => ('\r', 2),
        Some(b't') => ('\t', 2),
        Some(b'b') => ('\u{8}', 2),
        Some(b'f') => ('\u{c}', 2),
        Some(b'u') => {
            let pair = unit(2).zip(unit(8).filter(|_| text.get(6..8) == Some("\\u")));
            let pair =
                pair.and_then(|(high, low)| char::decode_utf16([high, low]).next()?.ok().zip(Some(high)));
            match pair {
                Some((meant, high)) if !(0xd800..0xdc00).contains(&high) => (meant, 6),
                Some((meant, _)) => (meant, 12),
                None => (unit(2).and_then(|unit| char::from_u32(unit.into())).unwrap_or('\u{fffd}'), 6),
            }
        }
        other => (other.map_or('\\', |byte| char::from(*byte)), 2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_what_a_parser_makes_of_it() {
        for text in [
            "plain",
            "",
            "\"\\/\n\r\t\u{8}\u{c}\u{0}\u{1f}",
            "a&b<c>d",
            "\u{e9}\u{20ac}\u{1f511}",
            &"\u{e9}".repeat(3000),
        ] {
            let plain = serde_json::to_string(text).unwrap();
            let units: String = text.encode_utf16().map(|unit| format!("\\u{unit:04X}")).collect();
            for json in [plain, format!("\"{units}\""), format!("\"\\/{units}x\"")] {
                let meant: String = serde_json::from_str(&json).unwrap();
                let mut into = vec![0; 8193];
                let filled_bytes = unescape(&json, &mut into);
                assert_eq!(str::from_utf8(&into[..filled_bytes]).unwrap(), meant, "{json}");
            }
        }
        assert_eq!(unescape("\"abc\"", &mut [0; 2]), 2, "too long: all of it is filled");
        for halves in [r#""\ud83d""#, r#""\udd11x""#, r#""\ud83d\ud83d""#] {
            unescape(halves, &mut [0; 64]);
        }
    }
}
