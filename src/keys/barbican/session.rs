//! Requests to Barbican, with a token that is asked for when it is needed, and again when it ends.

use std::cell::RefCell;

use super::identity::{self, Identity, Token};
use super::profile::{Settings, Setup};
use crate::keys::http::{Answer, HttpClient, Method, Request, ServiceUrl};
use crate::keys::remote::{TlsClient, TlsProfile};
use crate::keys::{KeyError, ManagerName, Subject};

/// A version of the API whose secrets name their consumers. A server that knows no such header goes without.
pub(super) const WITH_CONSUMERS: (&str, &str) = ("openstack-api-version", "key-manager 1.1");

/// A version whose secrets cannot be deleted while they have consumers.
pub(super) const KEEPS_CONSUMED: (&str, &str) = ("openstack-api-version", "key-manager 1.2");

/// What is spoken to Keystone and Barbican, until it is dropped.
pub(super) struct Session {
    manager: ManagerName,
    may_be_clear: bool,
    settings: Settings,
    keystone: ServiceUrl,
    tls: Option<TlsClient>,
    http: HttpClient,
    state: RefCell<Option<State>>,
}

/// Let in, and where to.
struct State {
    token: Token,
    barbican: ServiceUrl,
}

/// A request to Barbican.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) method: Method,
    /// Behind the version of the API, beginning with a slash.
    pub(super) path: &'a str,
    pub(super) headers: &'a [(&'static str, &'a str)],
    pub(super) body: Option<&'a [u8]>,
}

impl Session {
    /// Reads what the profile names. Connects to nothing yet.
    pub(super) fn new(manager: &ManagerName, setup: &Setup) -> Result<Self, KeyError> {
        let settings = setup.settings(manager)?;
        let keystone = identity::url(manager, &settings)?;
        let refused = |problem: &str, remedy: &str| KeyError::not_allowed(manager.clone(), problem, remedy);
        if settings.text("verify") == Some("false") || settings.text("insecure").is_some_and(is_true) {
            return Err(refused(
                "its settings say not to look at certificates",
                "name the CA instead, as `ca` in the table `tls` of its profile",
            ));
        }
        keystone.check_clear(manager, setup.profile.plain_http)?;
        let tls = match (&setup.profile.tls, settings.text("cacert")) {
            (Some(tls), _) => Some(tls.client(manager)?),
            (None, Some(_)) => Some(
                TlsProfile::from_paths(settings.text("cacert"), settings.text("cert"), settings.text("key"))
                    .map_err(|problem| {
                        refused(&format!("cacert, cert or key: {problem}"), "name whole paths")
                    })?
                    .client(manager)?,
            ),
            // Says what is missing.
            (None, None) if keystone.is_secure() => Some(TlsProfile::default().client(manager)?),
            (None, None) => None,
        };
        let http = HttpClient::new(tls.clone(), setup.time_limit());
        Ok(Self {
            manager: manager.clone(),
            may_be_clear: setup.profile.plain_http,
            settings,
            keystone,
            tls,
            http,
            state: RefCell::new(None),
        })
    }

    /// Sends a request and takes whatever answer comes, but for one that a new token mends.
    pub(super) fn call(&self, subject: &Subject, call: &Call<'_>) -> Result<Answer, KeyError> {
        let is_first = self.state.borrow().is_none();
        let answer = self.call_once(subject, call)?;
        if answer.status() != 401 || is_first {
            return Ok(answer);
        }
        // The token ended early: revoked, or Keystone's keys were replaced.
        self.state.replace(None);
        self.call_once(subject, call)
    }

    /// What Barbican is called in messages.
    pub(super) fn service(&self) -> String {
        match &*self.state.borrow() {
            Some(state) => format!("Barbican at {}", state.barbican),
            None => "Barbican".to_owned(),
        }
    }

    /// Asks for a token, if there is none that lasts. Says where Barbican is.
    pub(super) fn log_in(&self) -> Result<ServiceUrl, KeyError> {
        let mut state = self.state.borrow_mut();
        if let Some(State { token, barbican }) = &*state
            && token.is_fresh()
        {
            return Ok(barbican.clone());
        }
        let identity = Identity { manager: &self.manager, settings: &self.settings, url: &self.keystone };
        let token = identity.token(&self.http)?;
        let barbican = self.barbican(&token)?;
        *state = Some(State { token, barbican: barbican.clone() });
        Ok(barbican)
    }

    /// Keystone, as the settings have it.
    pub(super) fn keystone(&self) -> &ServiceUrl {
        &self.keystone
    }

    /// Whom it trusts, where it speaks TLS.
    pub(super) fn tls(&self) -> Option<&TlsClient> {
        self.tls.as_ref()
    }

    /// What it is let in by.
    pub(super) fn credentials(&self) -> &'static str {
        match self.settings.secret("application_credential_secret") {
            Some(_) => "an application credential",
            None => "a user's password",
        }
    }

    fn call_once(&self, subject: &Subject, call: &Call<'_>) -> Result<Answer, KeyError> {
        let barbican = self.log_in()?;
        let state = self.state.borrow();
        let token = &state.as_ref().expect("logged in just now").token.text;
        self.http
            .send(&Request {
                method: call.method,
                url: &barbican.join(call.path),
                headers: call.headers,
                token: Some(("x-auth-token", token)),
                body: call.body,
            })
            .map_err(|error| error.about(subject.clone(), &format!("Barbican at {barbican}")))
    }

    fn barbican(&self, token: &Token) -> Result<ServiceUrl, KeyError> {
        let refused = |problem: String| {
            let remedy = "correct `region` and `interface` of its profile, or name the `endpoint`";
            KeyError::not_allowed(self.manager.clone(), problem, remedy)
        };
        let url = match (self.settings.text("key_manager_endpoint_override"), &token.endpoint) {
            (Some(url), _) => url.to_owned(),
            (None, Ok(url)) => url.clone(),
            (None, Err(problem)) => return Err(refused(problem.clone())),
        };
        let url = ServiceUrl::try_from(url)
            .map_err(|problem| refused(format!("where Barbican is makes no sense: {problem}")))?
            .ending_in("/v1");
        url.check_clear(&self.manager, self.may_be_clear)?;
        Ok(url)
    }
}

fn is_true(text: &str) -> bool {
    matches!(text.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on")
}
