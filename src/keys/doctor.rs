//! `sealblk key doctor`: the way to a key, one link after the other, as far as it holds.
//!
//! A manager that is more than one step away tells of its steps: [`KeyManager::diagnose`](super::KeyManager::diagnose).
//! What it does is what fetching does, in the same order, with more words.

use std::fmt;

use serde::Serialize;

use super::{KeyError, KeyKind, KeySource, Secret};

/// What a way to a key consists of. Not every way has every link, and some have one twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Link {
    /// What the operator wrote can be understood.
    Reference,
    /// The key configuration file can be read and has the profile.
    Configuration,
    /// The secrets, certificates and files that the profile names can be used.
    Credentials,
    /// The library that the manager is reached by is there.
    Library,
    /// The name of a server's host is known.
    NameResolution,
    /// The server takes a connection.
    Connection,
    /// Both sides accept each other.
    Tls,
    /// The server lets us in.
    Authentication,
    /// The key is there, in a state in which it may be used.
    KeyState,
    /// We may have its bytes.
    Permission,
    /// The bytes make a key.
    Length,
}

/// One link that was looked at.
#[derive(Debug, Serialize)]
pub struct Step {
    /// Which one.
    pub link: Link,
    /// Whose, where a way leads over several managers: `keystore@prod`, say.
    pub of: String,
    /// Whether it holds. One that does not may be passed over: there is another server.
    pub holds: bool,
    /// What was found.
    pub found: String,
}

/// Walks the way to a key and tells of every link that holds.
pub struct Walk<'a> {
    tell: &'a mut dyn FnMut(Step),
    of: String,
    at: Link,
}

/// Where the way to a key ends.
#[derive(Debug)]
pub struct Broken {
    /// The link that does not hold.
    pub link: Link,
    /// Whose it is.
    pub of: String,
    /// Why.
    pub error: KeyError,
}

impl Walk<'_> {
    /// Looks at one link. `check` says what it found, beside what it is for.
    ///
    /// # Errors
    /// That of `check`. Whoever walks goes no further then.
    pub fn link<T>(
        &mut self,
        link: Link,
        check: impl FnOnce() -> Result<(T, String), KeyError>,
    ) -> Result<T, KeyError> {
        self.at = link;
        let (value, found) = check()?;
        (self.tell)(Step { link, of: self.of.clone(), holds: true, found });
        Ok(value)
    }

    /// Tells of a link that does not hold, and that there is a way around it.
    #[cfg(feature = "kmip")]
    pub(super) fn pass_over(&mut self, error: &KeyError) {
        let found = format!("{}; the next server is asked", Told(error));
        (self.tell)(Step { link: self.at, of: self.of.clone(), holds: false, found });
    }

    /// Says which link was at fault, where that is known only from what went wrong.
    #[cfg(any(feature = "kmip", feature = "libvirt"))]
    pub(super) fn blame(&mut self, link: Link) {
        self.at = link;
    }

    /// Walks to another key first, on which this one depends.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub(super) fn by_way_of(&mut self, source: &KeySource) -> Result<Secret, KeyError> {
        let of = std::mem::replace(&mut self.of, source.reference().manager().to_string());
        let secret = source.walk(self)?;
        self.of = of;
        Ok(secret)
    }
}

/// Walks to the key of `source`. `tell` hears of every link that holds, as it is found out.
///
/// # Errors
/// The link that does not.
pub fn diagnose(source: &KeySource, mut tell: impl FnMut(Step)) -> Result<(), Broken> {
    let of = source.reference().manager().to_string();
    let mut walk = Walk { tell: &mut tell, of, at: Link::KeyState };
    match source.walk(&mut walk) {
        Ok(_) => Ok(()),
        Err(error) => Err(Broken { link: walk.at, of: walk.of, error }),
    }
}

/// An error with its causes, in one line.
pub struct Told<'a>(pub &'a dyn std::error::Error);

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// What is said of key bytes: never the bytes.
pub(super) fn length(secret: &Secret) -> String {
    let bytes = secret.expose().len();
    match secret.kind() {
        KeyKind::Symmetric => format!("{bytes} bytes ({} bits)", bytes * 8),
        KeyKind::Passphrase => format!("{bytes} bytes, a passphrase"),
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reference => "reference",
            Self::Configuration => "configuration",
            Self::Credentials => "credentials",
            Self::Library => "library",
            Self::NameResolution => "name-resolution",
            Self::Connection => "connection",
            Self::Tls => "tls",
            Self::Authentication => "authentication",
            Self::KeyState => "key-state",
            Self::Permission => "permission",
            Self::Length => "length",
        })
    }
}
