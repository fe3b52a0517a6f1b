//! Requests to Vault, by a token that is given, or that a role's credentials are exchanged for.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::Vault;
use super::record::encoded;
use crate::keys::http::{Answer, HttpClient, HttpError, Method, Request, line_of, parse_json};
use crate::keys::remote::{TlsClient, TlsProfile};
use crate::keys::{KeyError, KeySource, Secret, Subject};

/// Longest answer.
pub(super) const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Room for a request with a secret in it.
const REQUEST_BYTES_MAX: usize = 256 << 10;

/// What is spoken to Vault, until it is dropped.
pub(super) struct Session {
    tls: Option<TlsClient>,
    http: HttpClient,
    token: RefCell<Option<Token>>,
}

/// Lets us in for a while.
struct Token {
    text: Secret,
    renew_at: Option<Instant>,
}

/// A request: method, path behind `/v1/`, JSON.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) path: &'a str,
    pub(super) body: Option<&'a [u8]>,
}

#[derive(Serialize)]
struct Login<'a> {
    role_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret_id: Option<&'a str>,
}

#[derive(Deserialize)]
struct LoginAnswer<'a> {
    #[serde(borrow)]
    auth: Auth<'a>,
}

#[derive(Deserialize)]
struct Auth<'a> {
    client_token: &'a str,
    /// Seconds; 0 of a token that does not end.
    #[serde(default)]
    lease_duration: u64,
}

impl Token {
    fn new(text: Secret, asked_at: Instant, lease_seconds: u64) -> Self {
        // Well before it ends: this machine may be late.
        let renew_at = asked_at.checked_add(Duration::from_secs(lease_seconds / 3 * 2));
        Self { text, renew_at: renew_at.filter(|_| lease_seconds > 0) }
    }

    fn is_fresh(&self) -> bool {
        self.renew_at.is_none_or(|at| Instant::now() < at)
    }
}

impl Session {
    /// Looks through the profile. Connects to nothing yet.
    pub(super) fn new(vault: &Vault) -> Result<Self, KeyError> {
        let profile = &vault.profile;
        vault.credentials()?;
        profile.address.check_clear(&vault.name, profile.plain_http)?;
        let tls = match &profile.tls {
            Some(tls) => Some(tls.client(&vault.name)?),
            // Says what is missing.
            None if profile.address.is_secure() => Some(TlsProfile::default().client(&vault.name)?),
            None => None,
        };
        let http = HttpClient::new(tls.clone(), profile.time_limit());
        Ok(Self { tls, http, token: RefCell::new(None) })
    }

    /// Whom it trusts, where it speaks TLS.
    pub(super) fn tls(&self) -> Option<&TlsClient> {
        self.tls.as_ref()
    }

    /// Sends a request and takes whatever answer comes, but for one that a new token mends.
    pub(super) fn call(&self, vault: &Vault, subject: &Subject, call: &Call<'_>) -> Result<Answer, KeyError> {
        let is_first = self.token.borrow().is_none();
        let answer = self.call_once(vault, subject, call)?;
        // An ended token and a path that is not ours are answered alike.
        if answer.status() != 403 || is_first {
            return Ok(answer);
        }
        self.token.replace(None);
        self.call_once(vault, subject, call)
    }

    /// Makes sure that there is a token that lasts. Says what was done for it.
    pub(super) fn log_in(&self, vault: &Vault) -> Result<&'static str, KeyError> {
        if self.token.borrow().as_ref().is_some_and(Token::is_fresh) {
            return Ok("it has a token for us");
        }
        let (token, done) = match &vault.token {
            Some(source) => self.given(vault, source)?,
            None => (self.by_role(vault)?, "it takes the role's credentials"),
        };
        self.token.replace(Some(token));
        Ok(done)
    }

    fn call_once(&self, vault: &Vault, subject: &Subject, call: &Call<'_>) -> Result<Answer, KeyError> {
        self.log_in(vault)?;
        let token = self.token.borrow();
        self.send(vault, subject, call, token.as_ref().map(|token| &token.text))
    }

    fn send(
        &self,
        vault: &Vault,
        subject: &Subject,
        call: &Call<'_>,
        token: Option<&Secret>,
    ) -> Result<Answer, KeyError> {
        let profile = &vault.profile;
        // Agents and proxies that let us in by themselves ask for the second one.
        let mut headers = vec![("accept", "application/json"), ("x-vault-request", "true")];
        headers.extend(profile.namespace.as_ref().map(|namespace| ("x-vault-namespace", &*namespace.0)));
        self.http
            .send(&Request {
                method: call.method,
                url: &profile.address.join(&format!("/v1/{}", call.path)),
                headers: &headers,
                token: token.map(|token| ("x-vault-token", token)),
                body: call.body,
            })
            .map_err(|error| error.about(subject.clone(), &vault.service()))
    }

    /// A token that the operator gave us, read again each time: an agent may have replaced it.
    fn given(&self, vault: &Vault, source: &KeySource) -> Result<(Token, &'static str), KeyError> {
        let text = source.fetch()?;
        let text = Secret::read_from(vault.text_of(&text)?.as_bytes())
            .map_err(|error| KeyError::of_secret(vault.all(), error))?;
        if !vault.profile.renew_token {
            return Ok((
                Token { text, renew_at: None },
                "a token of ours; the next link shows what it is good for",
            ));
        }
        let call = Call { method: Method::Post, path: "auth/token/renew-self", body: Some(b"{}") };
        let asked_at = Instant::now();
        let answer = self.send(vault, &vault.all(), &call, Some(&text))?;
        match answer.status() {
            200 => {}
            400 | 403 | 404 => {
                return Err(KeyError::not_allowed(
                    vault.all(),
                    format!("{} does not renew the token (HTTP {})", vault.service(), answer.status()),
                    "give it a new one: it has ended, or cannot be renewed (then leave out `renew-token`)",
                ));
            }
            status => return Err(vault.refusal(vault.all(), &call, status)),
        }
        let lease_seconds = vault.with_auth(answer, |auth| Ok(auth.lease_duration))?;
        Ok((Token::new(text, asked_at, lease_seconds), "it renews our token"))
    }

    fn by_role(&self, vault: &Vault) -> Result<Token, KeyError> {
        let secret_id = vault.secret_id.as_ref().map(KeySource::fetch).transpose()?;
        let secret_id = secret_id.as_ref().map(|secret| vault.text_of(secret)).transpose()?;
        let role_id = vault
            .profile
            .role_id
            .as_deref()
            .expect("who has no token has a role: the session was opened with one of them");
        let body = json(&Login { role_id, secret_id });
        let path = format!("auth/{}/login", encoded(&vault.profile.approle_mount));
        let call = Call { method: Method::Post, path: &path, body: Some(&body) };
        let asked_at = Instant::now();
        let answer = self.send(vault, &vault.all(), &call, None)?;
        match answer.status() {
            200 => {}
            400 | 401 | 403 | 404 => {
                return Err(KeyError::not_allowed(
                    vault.all(),
                    format!(
                        "{} does not accept the role's credentials at auth/{} (HTTP {})",
                        vault.service(),
                        vault.profile.approle_mount,
                        answer.status()
                    ),
                    "check `role-id` and `secret-id` (revoked, expired, used up, or of another namespace) and \
                     `approle-mount`",
                ));
            }
            status => return Err(vault.refusal(vault.all(), &call, status)),
        }
        vault.with_auth(answer, |auth| {
            let text = Secret::read_from(auth.client_token.as_bytes());
            let text = text.map_err(|error| KeyError::of_secret(vault.all(), error))?;
            Ok(Token::new(text, asked_at, auth.lease_duration))
        })
    }
}

impl Vault {
    /// What it is called in messages.
    pub(super) fn service(&self) -> String {
        format!("Vault at {}", self.profile.address)
    }

    /// What we are let in by.
    pub(super) fn credentials(&self) -> Result<&'static str, KeyError> {
        match (&self.token, &self.profile.role_id, &self.secret_id) {
            (Some(_), None, None) => Ok("a token"),
            (None, Some(_), Some(_)) => Ok("a role's ID and a secret ID"),
            (None, Some(_), None) => Ok("a role's ID"),
            _ => Err(KeyError::not_allowed(
                self.all(),
                "its profile does not say by what we are let in",
                "name a `token`, or a `role-id` and its `secret-id`, and not both",
            )),
        }
    }

    /// What an answer means that is no success.
    pub(super) fn refusal(&self, subject: impl Into<Subject>, call: &Call<'_>, status: u16) -> KeyError {
        let (service, path) = (self.service(), call.path.split('?').next().unwrap_or_default());
        match status {
            403 => KeyError::not_allowed(
                subject,
                format!("{service} does not allow {} of {path} (HTTP 403)", call.method.name()),
                "check that the token has not ended, and its policies, the namespace and the mounts",
            ),
            // 412: not every node has heard yet of what another one answered. 472 and 473: a standby.
            412 | 429 | 472 | 473 | 500..=599 => KeyError::unreachable(
                subject,
                format!("{service} is sealed, or cannot answer now (HTTP {status})"),
            ),
            _ => KeyError::not_allowed(
                subject,
                format!("{service} does not understand {} of {path} (HTTP {status})", call.method.name()),
                "check the mounts and `kv-version` of its profile",
            ),
        }
    }

    /// A token or a secret ID: one word, without the line end of an editor.
    fn text_of<'s>(&self, secret: &'s Secret) -> Result<&'s str, KeyError> {
        let word = line_of(secret).filter(|line| line.bytes().all(|byte| byte.is_ascii_graphic()));
        word.ok_or_else(|| {
            KeyError::not_allowed(
                self.all(),
                "what we are let in by is not one word",
                "put the token or the secret ID alone where its profile says that it is",
            )
        })
    }

    fn with_auth<T>(
        &self,
        answer: Answer,
        take: impl FnOnce(&Auth<'_>) -> Result<T, KeyError>,
    ) -> Result<T, KeyError> {
        let about = |error: HttpError| error.about(self.all(), &self.service());
        let text = answer.into_text(ANSWER_BYTES_MAX).map_err(about)?;
        take(&parse_json::<LoginAnswer<'_>>(&text).map_err(about)?.auth)
    }
}

/// JSON in memory that is wiped.
pub(super) fn json(value: &impl Serialize) -> Zeroizing<Vec<u8>> {
    let mut body = Zeroizing::new(Vec::with_capacity(REQUEST_BYTES_MAX));
    serde_json::to_writer(&mut *body, value).expect("text and numbers are JSON");
    debug_assert!(body.len() <= REQUEST_BYTES_MAX, "no copy was left behind");
    body
}
