//! `kmip[@PROFILE]:ID[#VERSION]`: keys on a KMIP server, over TLS with certificates on both sides.
//!
//! A key that is made here is one managed object for each of its versions, or two where the server makes no keys for
//! both halves of XTS at once. What they are of each other is noted on them: they share an object group, which is
//! what references name (`sealblk-UUID`), and carry a note in "Application Specific Information". Any other ID is
//! a server's unique identifier, of a key that somebody else has put there.
//!
//! Of the protocol only what that takes is spoken, in a codec of its own: key bytes stay in one locked
//! buffer between the connection and the [`Secret`].

mod object;
mod operations;
mod session;
mod tag;
mod ttlv;
mod walk;

use std::time::Duration;

use serde::Deserialize;
pub use session::read_any_answer;

use super::doctor::Walk;
use super::reference::ManagerName;
use super::registry::Opening;
use super::remote::{Deadline, Endpoint, Failure, TlsClient, TlsProfile};
use super::scheme::Scheme;
use super::{KeyAdmin, KeyConfigError, KeyError, KeyId, KeyManager, KeyMetadata, KeySpec, Secret, Subject};
use session::{Reason, Session, Stop};

pub(super) const SCHEME: Scheme = Scheme {
    name: "kmip",
    usage: "kmip[@PROFILE]:ID[#VERSION]",
    takes_profile: true,
    takes_version: true,
    open: |opening| Ok(Box::new(KmipManager::new(opening)?)),
    administer: Some(|opening| Ok(Box::new(KmipManager::new(opening)?))),
};

/// Where KMIP servers listen (IANA).
const DEFAULT_PORT: u16 = 5696;

/// Servers of one profile.
const SERVERS_MAX: usize = 16;

/// A table `[kmip.PROFILE]` of the key configuration file.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Profile {
    /// `HOST[:PORT]` of each server, all with the same keys, in the order in which they are asked.
    servers: Servers,
    /// Whom to trust, and who we are.
    tls: TlsProfile,
    /// How long one operation may take in all.
    #[serde(default = "default_timeout")]
    timeout_seconds: Timeout,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Vec<String>")]
struct Servers(Vec<Endpoint>);

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "u64")]
struct Timeout(Duration);

impl TryFrom<Vec<String>> for Servers {
    type Error = String;

    fn try_from(texts: Vec<String>) -> Result<Self, String> {
        if texts.is_empty() || texts.len() > SERVERS_MAX {
            return Err(format!("1 to {SERVERS_MAX} servers make a profile"));
        }
        let parse = |text: &String| Endpoint::parse(text, DEFAULT_PORT);
        let endpoints = texts.iter().map(|text| parse(text).ok_or("a server is written HOST[:PORT]"));
        Ok(Self(endpoints.collect::<Result<_, _>>()?))
    }
}

impl TryFrom<u64> for Timeout {
    type Error = &'static str;

    fn try_from(seconds: u64) -> Result<Self, Self::Error> {
        if (1..=600).contains(&seconds) {
            Ok(Self(Duration::from_secs(seconds)))
        } else {
            Err("a server is given 1 to 600 seconds")
        }
    }
}

fn default_timeout() -> Timeout {
    Timeout(Duration::from_secs(10))
}

/// The servers of a profile. Connects for each operation, and says goodbye after it.
#[derive(Debug)]
pub struct KmipManager {
    name: ManagerName,
    profile: Profile,
}

/// Whether what is asked can be asked again of another server, once one has failed in the middle of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    None,
    Some,
}

impl KmipManager {
    /// # Errors
    /// When the profile is missing.
    pub(super) fn new(opening: &Opening<'_>) -> Result<Self, KeyConfigError> {
        let profile = opening.profile(|config| &config.kmip)?.clone();
        Ok(Self { name: opening.name(), profile })
    }

    /// Runs `work` with the first server that can be reached. Those after it are for when it cannot: what one server
    /// refuses, all do.
    fn with<T>(
        &self,
        id: Option<&KeyId>,
        effect: Effect,
        mut work: impl FnMut(&mut Session) -> Result<T, Stop>,
    ) -> Result<T, KeyError> {
        let client = self.profile.tls.client(&self.name)?;
        let deadline = Deadline::after(self.profile.timeout_seconds.0);
        let servers = &self.profile.servers.0;
        let mut failures = Vec::new();
        for (index, server) in servers.iter().enumerate() {
            let is_last = index + 1 == servers.len();
            match self.attempt(server, &client, deadline.share(servers.len() - index), &mut work) {
                Ok(value) => return Ok(value),
                Err((connected, Stop::Failed(Failure::Unreachable { problem, cause })))
                    if !is_last && (!connected || effect == Effect::None) =>
                {
                    tracing::warn!(manager = %self.name, %problem, "trying the next KMIP server");
                    failures.push(match cause {
                        Some(cause) => format!("{problem} ({cause})"),
                        None => problem,
                    });
                }
                Err((_, stop)) => return Err(self.failed(stop, id, failures)),
            }
        }
        unreachable!("a profile has servers, and the last one's answer is final")
    }

    /// The same with one server. An error says whether there was a connection.
    fn attempt<T>(
        &self,
        server: &Endpoint,
        client: &TlsClient,
        deadline: Deadline,
        work: &mut impl FnMut(&mut Session) -> Result<T, Stop>,
    ) -> Result<T, (bool, Stop)> {
        let mut session = Session::open(server, client, deadline).map_err(|stop| (false, stop))?;
        work(&mut session).map_err(|stop| (true, stop))
    }

    fn failed(&self, stop: Stop, id: Option<&KeyId>, failures: Vec<String>) -> KeyError {
        let subject = || match id {
            Some(id) => Subject::from(self.name.key(id)),
            None => self.name.clone().into(),
        };
        match stop {
            Stop::Failed(Failure::Unreachable { problem, cause }) => {
                let problem = [failures, vec![problem]].concat().join("; ");
                Failure::Unreachable { problem, cause }.about(subject())
            }
            Stop::Failed(failure) => failure.about(subject()),
            Stop::Absent => KeyError::not_found(
                subject(),
                "the server has no such key, or not for the client whose certificate was shown",
            ),
            Stop::NotAllowed { problem, remedy } => KeyError::not_allowed(subject(), problem, remedy),
            Stop::Unfit { problem, remedy } => KeyError::malformed(subject(), problem, remedy),
            Stop::Refused(Reason(0x100)) => {
                KeyError::unreachable(subject(), "the server reports a failure of its own")
            }
            Stop::Refused(reason) => KeyError::not_allowed(
                subject(),
                format!("the server refuses: {reason}"),
                "see the server's log, and what this client may do there",
            ),
            Stop::Malformed(problem) => KeyError::malformed(
                subject(),
                format!("the server's answer cannot be used: {problem}"),
                "see whether that is a KMIP server, and the right one",
            ),
            Stop::Secret(error) => KeyError::of_secret(subject(), error),
        }
    }
}

impl KeyManager for KmipManager {
    fn fetch(&self, id: &KeyId) -> Result<Secret, KeyError> {
        self.with(Some(id), Effect::None, |session| operations::fetch(session, id))
    }

    fn diagnose(&self, id: &KeyId, walk: &mut Walk<'_>) -> Result<Secret, KeyError> {
        self.walk(id, walk)
    }
}

impl KeyAdmin for KmipManager {
    fn create(&self, spec: &KeySpec) -> Result<KeyMetadata, KeyError> {
        self.with(None, Effect::Some, |session| operations::create(session, spec))
    }

    fn store(&self, spec: &KeySpec, material: &Secret) -> Result<KeyMetadata, KeyError> {
        self.with(None, Effect::Some, |session| operations::store(session, spec, material))
    }

    fn list(&self) -> Result<Vec<KeyMetadata>, KeyError> {
        self.with(None, Effect::None, operations::list)
    }

    fn metadata(&self, id: &KeyId) -> Result<KeyMetadata, KeyError> {
        self.with(Some(id), Effect::None, |session| operations::metadata(session, id))
    }

    fn rotate(&self, id: &KeyId) -> Result<KeyMetadata, KeyError> {
        self.with(Some(id), Effect::Some, |session| operations::rotate(session, id))
    }

    fn destroy(&self, id: &KeyId) -> Result<(), KeyError> {
        self.with(Some(id), Effect::Some, |session| operations::destroy(session, id))
    }
}
