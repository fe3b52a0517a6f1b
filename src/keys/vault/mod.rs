//! `vault:PATH`: keys in a KV store of HashiCorp Vault or OpenBao, in the clear there or encrypted under a transit key.
//!
//! A record is JSON as OpenStack's castellan writes it: `type` (`symmetric` or `passphrase`, say) and `value`, hexadecimal
//! text of the bytes. Under a transit key, `ciphertext` takes the place of `value`: the store alone then opens nothing. Of a
//! record that is none of these, the field that the profile names is the key as it stands, so that whatever `vault kv put`
//! wrote can be named with an encoding.
//!
//! Version 2 of the KV engine has versions, which are those of a reference. Version 1 has none: keys there are not rotated.
//!
//! * Nothing that a server writes into an error is repeated.
//! * Connections are closed, and the token forgotten, when a key has been fetched.

mod admin;
mod notes;
mod profile;
mod record;
mod session;
#[cfg(test)]
mod tests;

use std::cell::OnceCell;

use self::profile::KvVersion;
use self::record::Stored;
use self::session::Session;
use super::doctor::{Link, Walk};
use super::registry::Opening;
use super::scheme::Scheme;
use super::{KeyConfigError, KeyError, KeyId, KeyManager, KeySource, ManagerName, Secret, Subject};

pub use profile::Profile;

pub(super) const SCHEME: Scheme = Scheme {
    name: "vault",
    usage: "vault[@PROFILE]:PATH[#VERSION]",
    takes_profile: true,
    takes_version: true,
    open: |opening| Ok(Box::new(Vault::new(opening)?)),
    administer: Some(|opening| Ok(Box::new(Vault::new(opening)?))),
};

/// Vault, as a profile sets it up.
pub struct Vault {
    name: ManagerName,
    profile: Profile,
    token: Option<KeySource>,
    secret_id: Option<KeySource>,
    /// Kept from one operation of a tool to the next.
    session: OnceCell<Session>,
}

impl Vault {
    /// # Errors
    /// When the profile is missing, or a reference in it leads nowhere.
    pub(super) fn new(opening: &Opening<'_>) -> Result<Self, KeyConfigError> {
        let profile = opening.profile(|config| &config.vault)?;
        let source =
            |reference: &Option<_>| reference.as_ref().map(|reference| opening.source(reference)).transpose();
        Ok(Self {
            name: opening.name(),
            token: source(&profile.token)?,
            secret_id: source(&profile.secret_id)?,
            profile: profile.clone(),
            session: OnceCell::new(),
        })
    }

    /// For tools, which may do one thing after the other.
    fn session(&self) -> Result<&Session, KeyError> {
        if let Some(session) = self.session.get() {
            return Ok(session);
        }
        let session = Session::new(self)?;
        Ok(self.session.get_or_init(|| session))
    }

    /// The manager as a whole, for errors.
    fn all(&self) -> Subject {
        self.name.clone().into()
    }

    fn key(&self, id: &KeyId) -> Subject {
        self.name.key(id).into()
    }

    fn absent(&self, id: &KeyId) -> KeyError {
        KeyError::not_found(
            self.name.key(id),
            format!(
                "there is nothing at that path, or not in that version; check it, and `mount` ({}) and `kv-version` of the \
                 profile",
                self.profile.mount
            ),
        )
    }

    /// Refuses what is no path of a record: it could lead out of the mount.
    fn check_path(&self, id: &KeyId) -> Result<(), KeyError> {
        let is_name = |part: &str| !part.is_empty() && part != "." && part != "..";
        let is_path = id.name().split('/').all(is_name) && !id.name().contains(char::is_control);
        // Version 1 of the engine has one version of everything.
        let is_there = match self.profile.kv_version {
            KvVersion::One => id.version().is_none_or(|version| version == 1),
            KvVersion::Two => true,
        };
        if is_path && is_there { Ok(()) } else { Err(self.absent(id)) }
    }

    fn fetch_with(&self, session: &Session, id: &KeyId) -> Result<Secret, KeyError> {
        let text = self.read(session, id)?.ok_or_else(|| self.absent(id))?;
        match self.stored(id, &text)? {
            Stored::Key(secret) => Ok(secret),
            Stored::Wrapped(kind, ciphertext) => self.unwrap_key(session, id, kind, &ciphertext),
        }
    }
}

impl KeyManager for Vault {
    fn fetch(&self, id: &KeyId) -> Result<Secret, KeyError> {
        // Before anybody is asked.
        self.check_path(id)?;
        match self.session.get() {
            Some(session) => self.fetch_with(session, id),
            // Whoever only fetches goes on to other things, for a long time: neither token nor connection is kept.
            None => self.fetch_with(&Session::new(self)?, id),
        }
    }

    fn diagnose(&self, id: &KeyId, walk: &mut Walk<'_>) -> Result<Secret, KeyError> {
        walk.link(Link::Reference, || Ok((self.check_path(id)?, "it is a path".to_owned())))?;
        let session = walk.link(Link::Credentials, || {
            let session = Session::new(self)?;
            let found = format!("{}, for Vault at {}", self.credentials()?, self.profile.address);
            Ok((session, found))
        })?;
        self.profile.address.walk(session.tls(), self.profile.time_limit(), &self.name, walk)?;
        walk.link(Link::Authentication, || Ok(((), session.log_in(self)?.to_owned())))?;
        let text = walk.link(Link::Permission, || {
            Ok((self.read(&session, id)?, format!("we may read {} there", self.profile.mount)))
        })?;
        let stored = walk.link(Link::KeyState, || {
            let stored = self.stored(id, &text.ok_or_else(|| self.absent(id))?)?;
            let found = match &stored {
                Stored::Key(_) => "its record holds it",
                Stored::Wrapped(..) => "its record holds it encrypted under a transit key",
            };
            Ok((stored, found.to_owned()))
        })?;
        match stored {
            Stored::Key(secret) => Ok(secret),
            Stored::Wrapped(kind, ciphertext) => walk.link(Link::Permission, || {
                let secret = self.unwrap_key(&session, id, kind, &ciphertext)?;
                Ok((secret, "the transit key decrypts it for us".to_owned()))
            }),
        }
    }
}
