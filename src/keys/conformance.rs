//! What every key manager has to do, as suites that each of them runs: this one for fetching, [`admin`] for the rest.
//!
//! Compiled into tests only, and with the feature `key-server-tests`, for those against real servers.
//!
//! A suite is given a closure that makes a subject: a manager over a store of its own, and ways to change that store
//! from outside. Each function is one promise of the trait, and panics when it is broken; `run_all` checks them all.

pub mod admin;
#[cfg(test)]
mod local;
#[cfg(test)]
mod model;
pub mod watch;

use watch::{KEY, assert_hidden_in_debug, assert_hidden_in_error};

use super::{KeyError, KeyId, KeyManager, SECRET_BYTES_MAX};

/// Puts key bytes somewhere.
pub type Put<Answer> = Box<dyn FnMut(&[u8]) -> Answer>;

/// A manager under test.
pub struct Subject {
    /// The manager, over a store without keys.
    pub manager: Box<dyn KeyManager>,
    /// What its references begin with, to be found in its errors.
    pub name: String,
    /// Puts a key into the store by other means than the manager, and says what it is called; `None` when the store
    /// takes no such key. A later key may take the place of an earlier one.
    pub put: Put<Option<KeyId>>,
    /// What no key is called.
    pub missing: KeyId,
    /// Puts a key there that the manager must not give us.
    pub put_foreign: Option<Put<KeyId>>,
    /// Names that no key can have.
    pub impossible: Vec<KeyId>,
    /// Makes the store fail for the key that it names, in a way that may pass.
    pub fail: Option<Box<dyn FnMut() -> KeyId>>,
    /// Whether a key can be fetched more than once.
    pub is_lasting: bool,
    /// Longest key.
    pub bytes_max: usize,
}

/// Runs every check. `make` is called once for each.
///
/// # Panics
/// When the manager breaks a promise.
pub fn run_all(make: impl Fn() -> Subject) {
    gives_the_bytes_that_were_put_there(make());
    finds_nothing_where_there_is_nothing(make());
    hides_keys_of_others(make());
    refuses_what_can_be_no_key(make());
    refuses_names_that_no_key_has(make());
    tells_an_outage_from_an_answer(make());
}

/// Any bytes of any length, the same ones each time, as often as the source allows.
pub fn gives_the_bytes_that_were_put_there(mut subject: Subject) {
    let every_byte: Vec<u8> = (0..=255).collect();
    let longest = vec![0xa5; subject.bytes_max];
    for bytes in [&KEY[..], b"\n", b"\0", b" key\r\n", &every_byte, &longest] {
        let id = (subject.put)(bytes).expect("the store takes any key");
        let secret =
            subject.manager.fetch(&id).unwrap_or_else(|error| panic!("{} bytes: {error}", bytes.len()));
        assert!(secret.expose() == bytes, "not the {} bytes that were put there", bytes.len());
        assert_hidden_in_debug(&secret);
        match subject.manager.fetch(&id) {
            Ok(again) => assert!(subject.is_lasting && again.expose() == bytes, "not the same bytes again"),
            Err(error) => {
                assert!(!subject.is_lasting && is_not_found(&error), "the second time: {error}");
                assert_hidden_in_error(&error);
            }
        }
    }
}

/// A key that does not exist is not found, by a message that names manager and key.
pub fn finds_nothing_where_there_is_nothing(mut subject: Subject) {
    (subject.put)(KEY).expect("the store takes any key");
    let error = subject.manager.fetch(&subject.missing).expect_err("there is no such key");
    assert!(is_not_found(&error), "{error}");
    let named = format!("key {}:{} ", subject.name, subject.missing);
    assert!(error.to_string().contains(&named), "no `{named}` in: {error}");
    assert_hidden_in_error(&error);
}

/// A key of somebody else is answered as one that does not exist.
pub fn hides_keys_of_others(mut subject: Subject) {
    let Some(put_foreign) = &mut subject.put_foreign else { return };
    let foreign = put_foreign(KEY);
    let hidden = subject.manager.fetch(&foreign).expect_err("it is somebody else's");
    let absent = subject.manager.fetch(&subject.missing).expect_err("there is no such key");
    assert!(is_not_found(&hidden), "{hidden}");
    let renamed = hidden.to_string().replace(&foreign.to_string(), &subject.missing.to_string());
    assert_eq!(renamed, absent.to_string(), "the two can be told apart");
    assert_hidden_in_error(&hidden);
}

/// Nothing at all, and more than a secret may have.
pub fn refuses_what_can_be_no_key(mut subject: Subject) {
    let overlong = KEY.repeat(SECRET_BYTES_MAX / KEY.len() + 1);
    for bytes in [&b""[..], &overlong, &overlong.repeat(10)] {
        let Some(id) = (subject.put)(bytes) else { continue };
        let error = subject.manager.fetch(&id).expect_err("that is no key");
        assert!(matches!(error, KeyError::Malformed { .. }), "{} bytes: {error}", bytes.len());
        assert_hidden_in_error(&error);
    }
}

/// What is called in a way in which nothing can be is refused, or at least not found.
pub fn refuses_names_that_no_key_has(mut subject: Subject) {
    (subject.put)(KEY).expect("the store takes any key");
    for id in &subject.impossible {
        let error = subject.manager.fetch(id).expect_err("nothing is called so");
        assert!(!matches!(error, KeyError::Unreachable { .. }), "trying again does not help: {error}");
        assert_hidden_in_error(&error);
    }
}

/// A store that fails is unreachable: not empty, and not full of malformed keys.
pub fn tells_an_outage_from_an_answer(mut subject: Subject) {
    let Some(fail) = &mut subject.fail else { return };
    let id = fail();
    for _ in 0..2 {
        let error = subject.manager.fetch(&id).expect_err("the store fails");
        assert!(matches!(error, KeyError::Unreachable { .. }), "{error}");
        assert_hidden_in_error(&error);
    }
}

fn is_not_found(error: &KeyError) -> bool {
    matches!(error, KeyError::NotFound { .. })
}
