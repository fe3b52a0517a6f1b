//! How what a manager keeps becomes the key: as it is, or decoded first.

use super::KeyKind;
use super::secret::{SECRET_BYTES_MAX, Secret, SecretError};

/// What is done to the payload of a key. Always declared, never guessed from how the bytes look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// The payload is the key.
    Raw,
    /// The payload is hexadecimal text of the key, in either case.
    Hex,
    /// The payload is Base64 text of the key: the standard alphabet, padded.
    Base64,
    /// The payload is a key as OpenStack keeps it: a passphrase is taken as it is, and anything else becomes the
    /// passphrase that Nova, Cinder and os-brick make of it, its lower-case hexadecimal text.
    OpenStack,
}

/// Why a payload cannot be decoded. Shows nothing of it.
#[derive(Debug, thiserror::Error)]
pub(super) enum DecodeError {
    /// Not the text that it was declared to be.
    #[error("it is no {0}")]
    NotText(&'static str),
    /// Nothing but white space, or too long when decoded, or no memory.
    #[error(transparent)]
    Secret(#[from] SecretError),
}

impl Encoding {
    const ALL: [Self; 4] = [Self::Raw, Self::Hex, Self::Base64, Self::OpenStack];

    /// As it is written in a reference.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Hex => "hex",
            Self::Base64 => "base64",
            Self::OpenStack => "openstack",
        }
    }

    pub(super) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name() == name)
    }

    pub(super) fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }

    /// Makes the key from what the manager gave. White space between digits is passed over, because the tools
    /// that write such text break and end its lines.
    ///
    /// # Errors
    /// See [`DecodeError`].
    pub(super) fn decode(self, payload: Secret) -> Result<Secret, DecodeError> {
        let kind = payload.kind();
        let decoded = match self {
            Self::Raw => payload,
            Self::OpenStack if kind == KeyKind::Passphrase => payload,
            Self::OpenStack => hexadecimal(&payload)?.of_kind(KeyKind::Passphrase),
            Self::Hex => {
                let text = without_white_space(&payload)?;
                Secret::fill(|into| match base16ct::mixed::decode(text.expose(), into) {
                    Ok(bytes) => Ok(bytes.len()),
                    Err(_) => Err(DecodeError::NotText("hexadecimal text")),
                })?
            }
            Self::Base64 => {
                use base64ct::{Base64, Encoding as _};
                let text = without_white_space(&payload)?;
                let not_text = || DecodeError::NotText("Base64 text (standard alphabet, padded with `=`)");
                Secret::fill(|into| match Base64::decode(text.expose(), into) {
                    Ok(bytes) => Ok(bytes.len()),
                    Err(_) => Err(not_text()),
                })?
            }
        };
        Ok(decoded)
    }
}

fn hexadecimal(payload: &Secret) -> Result<Secret, DecodeError> {
    Secret::fill(|into| match base16ct::lower::encode(payload.expose(), into) {
        Ok(digits) => Ok(digits.len()),
        Err(_) => Err(SecretError::TooLong.into()),
    })
}

fn without_white_space(payload: &Secret) -> Result<Secret, DecodeError> {
    Secret::fill(|into| {
        let kept = payload.expose().iter().filter(|byte| !byte.is_ascii_whitespace());
        let places = into[..SECRET_BYTES_MAX].iter_mut();
        Ok(places.zip(kept).map(|(place, byte)| *place = *byte).count())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(encoding: Encoding, payload: &[u8]) -> Result<Vec<u8>, DecodeError> {
        let payload = Secret::read_from(payload).unwrap();
        encoding.decode(payload).map(|secret| secret.expose().to_vec())
    }

    #[test]
    fn raw_bytes_stay_as_they_are() {
        assert_eq!(decode(Encoding::Raw, b" 0a\n").unwrap(), b" 0a\n");
    }

    #[test]
    fn text_is_decoded_whatever_its_lines_look_like() {
        for text in ["00ff10", "00FF10\n", "00 fF\n10\r\n"] {
            assert_eq!(decode(Encoding::Hex, text.as_bytes()).unwrap(), [0, 255, 16], "{text}");
        }
        for text in ["AP8Q/w==", "AP8Q/w==\n", "AP8Q\n/w==\n"] {
            assert_eq!(decode(Encoding::Base64, text.as_bytes()).unwrap(), [0, 255, 16, 255], "{text}");
        }
    }

    #[test]
    fn what_is_no_such_text_is_refused_without_showing_it() {
        for (encoding, text) in [
            (Encoding::Hex, "00ff1"),
            (Encoding::Hex, "s3cret"),
            (Encoding::Hex, "0x00"),
            (Encoding::Base64, "s3cret"),
            (Encoding::Base64, "AP8Q_w=="),
            (Encoding::Base64, "AP8Q/w"),
            (Encoding::Base64, "\u{e9}AP8"),
        ] {
            let error = decode(encoding, text.as_bytes()).unwrap_err();
            assert!(matches!(error, DecodeError::NotText(_)), "{text}: {error}");
            assert!(!format!("{error} {error:?}").contains(text));
        }
        for encoding in [Encoding::Hex, Encoding::Base64] {
            let error = decode(encoding, b" \n\t").unwrap_err();
            assert!(matches!(error, DecodeError::Secret(SecretError::Empty)), "{error}");
        }
    }

    #[test]
    fn openstack_spells_out_all_but_passphrases() {
        let key = Secret::read_from(&[0xde, 0xad, 0x00][..]).unwrap();
        let passphrase = Encoding::OpenStack.decode(key).unwrap();
        assert_eq!((passphrase.expose(), passphrase.kind()), (&b"dead00"[..], KeyKind::Passphrase));

        let text = Secret::read_from(&b"Tr0ub4dor\n"[..]).unwrap().of_kind(KeyKind::Passphrase);
        assert_eq!(Encoding::OpenStack.decode(text).unwrap().expose(), b"Tr0ub4dor\n");
    }

    #[test]
    fn lengths_are_bounded_before_and_after() {
        let longest = [0xab; SECRET_BYTES_MAX / 2];
        assert_eq!(decode(Encoding::OpenStack, &longest).unwrap().len(), SECRET_BYTES_MAX);
        let error = decode(Encoding::OpenStack, &[0xab; SECRET_BYTES_MAX / 2 + 1]).unwrap_err();
        assert!(matches!(error, DecodeError::Secret(SecretError::TooLong)), "{error}");
        assert_eq!(decode(Encoding::Hex, &[b'a'; SECRET_BYTES_MAX]).unwrap(), longest.map(|_| 0xaa));
        assert_eq!(decode(Encoding::Raw, &[b'a'; SECRET_BYTES_MAX]).unwrap().len(), SECRET_BYTES_MAX);
    }
}
