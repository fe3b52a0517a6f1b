//! `barbican:UUID`: keys in OpenStack's key manager.
//!
//! Whom to be, and where Keystone is, is in a table `[barbican.PROFILE]` of the key configuration file, or where that table
//! points: `profile`. Keystone gives a token and says where Barbican is (`identity`); the rest is Barbican's
//! API v1 (`session`). A volume that Cinder or Nova encrypted opens by nothing but the UUID of its key
//! (`encryption_key_id`) and the encoding `+openstack`.
//!
//! * Whatever a server says of where a secret is, only the UUID in it is believed.
//! * A secret never changes: there are no versions of it. Another key for a volume is another secret.
//! * Nothing that a server writes into an error is repeated: Barbican's own messages quote the request.
//! * Connections are closed, and the token forgotten, when a key has been fetched.

mod admin;
mod clouds;
mod identity;
mod profile;
mod record;
mod session;
#[cfg(test)]
mod tests;
mod walk;

use std::cell::OnceCell;

use uuid::Uuid;

use self::profile::Setup;
use self::record::{SecretRecord, canonical_uuid};
use self::session::{Call, Session, WITH_CONSUMERS};
use super::doctor::Walk;
use super::http::{Answer, HttpError, Method};
use super::registry::Opening;
use super::scheme::Scheme;
use super::{KeyConfigError, KeyError, KeyId, KeyManager, ManagerName, Secret, Subject};

pub use profile::Profile;

pub(super) const SCHEME: Scheme = Scheme {
    name: "barbican",
    usage: "barbican[@PROFILE]:UUID",
    takes_profile: true,
    takes_version: false,
    open: |opening| Ok(Box::new(Barbican::new(opening)?)),
    administer: Some(|opening| Ok(Box::new(Barbican::new(opening)?))),
};

/// Longest JSON answer, a page of secrets among them.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Barbican, as a profile sets it up.
pub struct Barbican {
    name: ManagerName,
    setup: Setup,
    /// Kept from one operation of a tool to the next.
    session: OnceCell<Session>,
}

impl Barbican {
    /// # Errors
    /// When the profile is missing, or a reference in it leads nowhere.
    pub(super) fn new(opening: &Opening<'_>) -> Result<Self, KeyConfigError> {
        let profile = opening.profile(|config| &config.barbican)?;
        Ok(Self { name: opening.name(), setup: Setup::new(opening, profile)?, session: OnceCell::new() })
    }

    fn new_session(&self) -> Result<Session, KeyError> {
        Session::new(&self.name, &self.setup)
    }

    /// For tools, which may do one thing after the other.
    fn session(&self) -> Result<&Session, KeyError> {
        if let Some(session) = self.session.get() {
            return Ok(session);
        }
        let session = self.new_session()?;
        Ok(self.session.get_or_init(|| session))
    }

    fn fetch_with(&self, session: &Session, id: &KeyId) -> Result<Secret, KeyError> {
        let record = self.record(session, id)?;
        self.payload(session, id, &record)
    }

    /// The secret that a key is called after.
    fn uuid(&self, id: &KeyId) -> Result<Uuid, KeyError> {
        // No other manager's version counts here: a secret has one.
        match canonical_uuid(id.name()) {
            Some(uuid) if id.version().is_none_or(|version| version == 1) => Ok(uuid),
            _ => Err(self.absent(id)),
        }
    }

    /// What is known of a secret.
    fn record(&self, session: &Session, id: &KeyId) -> Result<SecretRecord, KeyError> {
        let uuid = self.uuid(id)?;
        let subject = Subject::from(self.name.key(id));
        let path = format!("/secrets/{}", uuid.hyphenated());
        let headers = [("accept", "application/json"), WITH_CONSUMERS];
        let call = Call { method: Method::Get, path: &path, headers: &headers, body: None };
        let answer = session.call(&subject, &call)?;
        match answer.status() {
            200 => {}
            // To those who may not see a secret, it is as if there were none.
            403 | 404 => return Err(self.absent(id)),
            status => return Err(refusal(subject, &session.service(), &call, status)),
        }
        let record: SecretRecord = answer
            .into_json(ANSWER_BYTES_MAX)
            .map_err(|error| error.about(subject.clone(), &session.service()))?;
        match record.uuid() == Some(uuid) {
            true => Ok(record),
            false => Err(HttpError::NotHttp.about(subject, &session.service())),
        }
    }

    fn absent(&self, id: &KeyId) -> KeyError {
        KeyError::not_found(
            self.name.key(id),
            "there is no such secret, or it is another project's, or not for these credentials; check its UUID, the \
             project, the user's role (member) and the secret's ACL",
        )
    }

    fn payload(&self, session: &Session, id: &KeyId, record: &SecretRecord) -> Result<Secret, KeyError> {
        let key = || Subject::from(self.name.key(id));
        let malformed = |problem: &str, remedy| KeyError::malformed(key(), problem, remedy);
        let kind = record.kind().ok_or_else(|| {
            malformed("it is a certificate or belongs to a key pair", "name a symmetric key or a passphrase")
        })?;
        let accept = match record.content_type() {
            None => return Err(KeyError::not_found(key(), "its secret is there, and nothing in it yet")),
            Some(content) if content == "application/octet-stream" || content.starts_with("text/plain") => {
                content
            }
            Some(_) => {
                return Err(malformed(
                    "its payload is neither bytes nor text",
                    "store it again as one of them",
                ));
            }
        };
        let path = format!("/secrets/{}/payload", self.uuid(id)?.hyphenated());
        let call = Call { method: Method::Get, path: &path, headers: &[("accept", accept)], body: None };
        let answer = session.call(&key(), &call)?;
        match answer.status() {
            200 => {}
            404 => return Err(self.absent(id)),
            status => return Err(refusal(key(), &session.service(), &call, status)),
        }
        let secret = answer.into_secret().map_err(|error| error.about(key(), &session.service()))?;
        Ok(secret.of_kind(kind))
    }
}

impl KeyManager for Barbican {
    fn fetch(&self, id: &KeyId) -> Result<Secret, KeyError> {
        // Before anybody is asked.
        self.uuid(id)?;
        match self.session.get() {
            Some(session) => self.fetch_with(session, id),
            // Whoever only fetches goes on to other things, for a long time: neither token nor connection is kept.
            None => self.fetch_with(&self.new_session()?, id),
        }
    }

    fn note_use(&self, id: &KeyId, volume: &str) -> Result<(), KeyError> {
        if self.setup.profile.register_consumers { self.register(id, volume) } else { Ok(()) }
    }

    fn diagnose(&self, id: &KeyId, walk: &mut Walk<'_>) -> Result<Secret, KeyError> {
        self.walk(id, walk)
    }
}

/// What an answer means that is no success, where it can mean one thing only.
fn refusal(subject: impl Into<Subject>, service: &str, call: &Call<'_>, status: u16) -> KeyError {
    let method = call.method.name();
    let path = call.path.split('?').next().unwrap_or_default();
    let refused = |problem: String, remedy: &str| (problem, remedy.to_owned());
    let (problem, remedy) = match status {
        401 => refused(
            format!("{service} does not take Keystone's token for {method} {path} (HTTP 401)"),
            "if it is an application credential with access rules, let them allow /v1 and that path, for service \
             key-manager",
        ),
        403 => refused(
            format!("{service} does not allow {method} {path} (HTTP 403)"),
            "give the user the role member in that project",
        ),
        408 | 429 | 500..=599 => {
            return KeyError::unreachable(subject, format!("{service} cannot answer now (HTTP {status})"));
        }
        413 => refused(format!("{service} takes no secret of that length"), "make a shorter one"),
        _ => refused(
            format!("{service} does not understand {method} {path} (HTTP {status})"),
            "check the endpoint, and that it is Barbican of release Queens or later",
        ),
    };
    KeyError::not_allowed(subject, problem, remedy)
}

/// What an answer says, if it is one of `wanted`.
fn expect(
    answer: Answer,
    wanted: &[u16],
    subject: &Subject,
    service: &str,
    call: &Call<'_>,
) -> Result<Answer, KeyError> {
    match wanted.contains(&answer.status()) {
        true => Ok(answer),
        false => Err(refusal(subject.clone(), service, call, answer.status())),
    }
}
