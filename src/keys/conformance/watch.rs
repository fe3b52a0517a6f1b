//! Looks for key bytes in whatever is said about them.

use std::error::Error;
use std::fmt::Debug;

use base64ct::{Base64Unpadded, Encoding};

use crate::keys::KeyError;

/// Text, so that whatever shows part of it can be searched for it.
pub const KEY: &[u8; 64] = b"Th1sIsTh3FirstHalfOfTheSecretKey+Th1sIsIts0therHalf,f1lledUpToIt";

/// So few bytes in a row are found already. A multiple of three, so that each begins a group of Base64.
const PART_BYTES: usize = 6;

/// Asserts that the `Debug` of something shows no part of [`KEY`].
#[track_caller]
pub fn assert_hidden_in_debug(value: &impl Debug) {
    assert_hidden(&format!("{value:?} {value:#?}"));
}

/// Asserts that neither an error nor what caused it shows any part of [`KEY`].
#[track_caller]
pub fn assert_hidden_in_error(error: &KeyError) {
    assert_hidden_in_debug(error);
    let mut cause: Option<&dyn Error> = Some(error);
    while let Some(error) = cause {
        assert_hidden(&error.to_string());
        cause = error.source();
    }
}

#[track_caller]
fn assert_hidden(text: &str) {
    for part in KEY.chunks_exact(PART_BYTES) {
        let listed = format!("{part:?}");
        for shown in [
            str::from_utf8(part).expect("it is text"),
            &base16ct::lower::encode_string(part),
            &base16ct::upper::encode_string(part),
            &Base64Unpadded::encode_string(part),
            listed.trim_matches(['[', ']']),
        ] {
            assert!(!text.contains(shown), "key bytes show in: {text}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_bytes_are_found_however_they_are_written() {
        let shows = |text: String| std::panic::catch_unwind(|| assert_hidden(&text)).is_err();
        let middle = &KEY[20..40];
        assert!(shows(format!("key {} refused", str::from_utf8(middle).expect("text"))));
        assert!(shows(base16ct::lower::encode_string(middle)));
        assert!(shows(base16ct::upper::encode_string(middle)));
        assert!(shows(format!("{middle:?}")));
        assert!(shows(Base64Unpadded::encode_string(KEY)));
        assert!(!shows("key file:/run/keys/vm1 refused: it is empty".to_owned()));
    }
}
