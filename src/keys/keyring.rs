//! `keyring:NAME`: a key of type `user` in the kernel's session keyring, or in that of the user (keyrings(7)).
//!
//! A way to hand a key over without a file: `keyctl padd user vm1 @s` in a session of its own (`keyctl session`), then
//! `sealblk` in the same session. What the kernel keeps this way is not swapped out in clear, and can be given a time to
//! live.

use linux_keyutils::{KeyError as KeyringError, KeyRing, KeyRingIdentifier};

use super::reference::ManagerName;
use super::scheme::Scheme;
use super::{KeyError, KeyId, KeyManager, Secret, SecretError};

pub(super) const SCHEME: Scheme = Scheme {
    name: "keyring",
    usage: "keyring:NAME",
    takes_profile: false,
    takes_version: false,
    open: |_| Ok(Box::new(Keyrings::of_this_process())),
    administer: None,
};

/// Keys in keyrings, searched in order, and in the keyrings that are linked to these.
pub struct Keyrings {
    rings: &'static [KeyRingIdentifier],
}

impl Keyrings {
    /// The session's keyring, then the user's.
    pub fn of_this_process() -> Self {
        Self { rings: &[KeyRingIdentifier::Session, KeyRingIdentifier::User] }
    }

    /// Those of the thread that asks, which nobody else sees and which end with it.
    #[cfg(test)]
    pub(super) fn of_this_thread() -> Self {
        Self { rings: &[KeyRingIdentifier::Thread] }
    }

    /// The first key called `name`, of those that this process may search for.
    fn search(&self, name: &str) -> Result<linux_keyutils::Key, KeyringError> {
        let mut answer = KeyringError::KeyDoesNotExist;
        for ring in self.rings {
            match KeyRing::from_special_id(*ring, false).and_then(|ring| ring.search(name)) {
                Ok(key) => return Ok(key),
                Err(error) if is_absence(error) => {}
                Err(error) => answer = error,
            }
        }
        Err(answer)
    }
}

impl KeyManager for Keyrings {
    fn fetch(&self, id: &KeyId) -> Result<Secret, KeyError> {
        let refused = |error| refusal(id, error);
        let key = self.search(id.name()).map_err(refused)?;
        let secret = Secret::fill(|buffer| {
            // The kernel says how long the key is, even when it is longer than what it was given to fill.
            key.read(&mut &mut *buffer).map(|bytes| bytes.min(buffer.len())).map_err(ReadError::Keyring)
        });
        secret.map_err(|error| match error {
            ReadError::Keyring(error) => refused(error),
            ReadError::Secret(error) => KeyError::of_secret(ManagerName::new(&SCHEME).key(id), error),
        })
    }
}

enum ReadError {
    Keyring(KeyringError),
    Secret(SecretError),
}

impl From<SecretError> for ReadError {
    fn from(error: SecretError) -> Self {
        Self::Secret(error)
    }
}

/// Whether a keyring answers that it has no such key, or none for us.
fn is_absence(error: KeyringError) -> bool {
    use KeyringError::{AccessDenied, KeyDoesNotExist, KeyringDoesNotExist};
    matches!(error, KeyDoesNotExist | KeyringDoesNotExist | AccessDenied)
}

fn refusal(id: &KeyId, error: KeyringError) -> KeyError {
    let key = ManagerName::new(&SCHEME).key(id);
    match error {
        error if is_absence(error) => KeyError::not_found(
            key,
            "neither the session's nor the user's keyring has a key of type `user` so called that this process may \
             read (see `keyctl show`)",
        ),
        KeyringError::KeyExpired => KeyError::not_found(key, "it has expired; add it again"),
        KeyringError::KeyRevoked => KeyError::not_found(key, "it was revoked; add it again"),
        KeyringError::PermissionDenied | KeyringError::Unknown(libc::ENOSYS) => KeyError::not_allowed(
            key,
            "the kernel has no keyrings, or does not let this process use them (as in many containers)",
            "keep the key elsewhere, or allow the system call keyctl(2)",
        ),
        KeyringError::InvalidDescription | KeyringError::InvalidArguments => KeyError::malformed(
            key,
            "no key can be called so",
            "name it by the description that it was added with (see `keyctl show`)",
        ),
        error => KeyError::unreachable(key, format!("the kernel's keyring answers: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use linux_keyutils::Key;

    use super::*;
    use crate::keys::SECRET_BYTES_MAX;

    fn add(name: &str, bytes: &[u8]) -> Key {
        KeyRing::from_special_id(KeyRingIdentifier::Thread, true).unwrap().add_key(name, bytes).unwrap()
    }

    fn fetch(name: &str) -> Result<Secret, KeyError> {
        Keyrings::of_this_thread().fetch(&KeyId::new(name))
    }

    #[test]
    fn a_key_is_found_by_its_description_in_any_of_the_rings() {
        add("vm 1:disk", b"key of vm1");
        assert_eq!(fetch("vm 1:disk").unwrap().expose(), b"key of vm1");
        let rings = &[KeyRingIdentifier::Session, KeyRingIdentifier::User, KeyRingIdentifier::Thread];
        assert_eq!(Keyrings { rings }.fetch(&KeyId::new("vm 1:disk")).unwrap().expose(), b"key of vm1");
        assert!(matches!(fetch("vm 1"), Err(KeyError::NotFound { .. })));
        let elsewhere = thread::spawn(|| fetch("vm 1:disk")).join().unwrap();
        assert!(matches!(elsewhere, Err(KeyError::NotFound { .. })), "{elsewhere:?}");
    }

    #[test]
    fn a_key_that_may_not_be_read_looks_as_if_there_were_none() {
        let absent = fetch("private").unwrap_err().to_string();
        let key = add("private", b"key of vm1");
        // All but reading and searching, which includes reading.
        key.set_perms(linux_keyutils::KeyPermissions::from_u32(0x3500_0000)).unwrap();
        assert_eq!(fetch("private").unwrap_err().to_string(), absent);
    }

    #[test]
    fn a_key_that_has_ended_says_so() {
        add("revoked", b"key of vm1").revoke().unwrap();
        let error = fetch("revoked").unwrap_err();
        assert!(matches!(error, KeyError::NotFound { .. }), "{error}");
        assert!(error.to_string().contains("revoked; add it again"), "{error}");
    }

    #[test]
    fn lengths_are_bounded() {
        add("longest", &[7; SECRET_BYTES_MAX]);
        assert_eq!(fetch("longest").unwrap().expose(), [7; SECRET_BYTES_MAX]);
        for bytes in [SECRET_BYTES_MAX + 1, SECRET_BYTES_MAX + 2, 20_000] {
            add("endless", &vec![7; bytes]);
            assert!(matches!(fetch("endless"), Err(KeyError::Malformed { .. })), "{bytes}");
        }
    }
}
