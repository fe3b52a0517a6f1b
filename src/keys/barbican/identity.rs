//! Keystone, Identity API v3: credentials become a token, which says for how long, and where the key manager is.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::profile::Settings;
use crate::keys::http::{HttpClient, HttpError, Method, Request, ServiceUrl, line_of};
use crate::keys::{KeyError, ManagerName, Secret};

/// Longest answer: room for the catalogue of a large cloud.
const ANSWER_BYTES_MAX: usize = 2 << 20;

/// Room for a request, all characters of a password escaped.
const REQUEST_BYTES_MAX: usize = 64 << 10;

/// A token is replaced so long before it ends.
const RENEW_BEFORE: Duration = Duration::from_secs(60);

/// What a token is used for, if not for the service of OpenStack that keeps keys.
const SERVICE_TYPE: &str = "key-manager";

/// Lets us in for a while.
pub(super) struct Token {
    pub(super) text: Secret,
    renew_at: Option<Instant>,
    /// Where the key manager is, as the catalogue says.
    pub(super) endpoint: Result<String, String>,
}

/// Keystone, and who we are there.
pub(super) struct Identity<'a> {
    pub(super) manager: &'a ManagerName,
    pub(super) settings: &'a Settings,
    pub(super) url: &'a ServiceUrl,
}

impl Token {
    pub(super) fn is_fresh(&self) -> bool {
        self.renew_at.is_none_or(|at| Instant::now() < at)
    }
}

/// The URL of Identity v3, as the settings give it, with or without `/v3`.
pub(super) fn url(manager: &ManagerName, settings: &Settings) -> Result<ServiceUrl, KeyError> {
    let refused = |problem: &str, remedy| KeyError::not_allowed(manager.clone(), problem, remedy);
    let text = settings
        .text("auth_url")
        .ok_or_else(|| refused("nothing says where Keystone is", "give its profile an `auth-url`"))?;
    let url = ServiceUrl::try_from(text.to_owned())
        .map_err(|problem| refused(&format!("where Keystone is makes no sense: {problem}"), "correct it"))?;
    if url.to_string().ends_with("/v2.0") {
        return Err(refused("Keystone is to be spoken to by version 2.0", "name the URL of version 3"));
    }
    Ok(url.ending_in("/v3"))
}

impl Identity<'_> {
    /// Asks for a token.
    pub(super) fn token(&self, http: &HttpClient) -> Result<Token, KeyError> {
        let body = self.request()?;
        let asked_at = Instant::now();
        let service = format!("Keystone at {}", self.url);
        let answer = http
            .send(&Request {
                method: Method::Post,
                url: &self.url.join("/auth/tokens"),
                headers: &[("accept", "application/json")],
                token: None,
                body: Some(&body),
            })
            .map_err(|error| error.about(self.manager.clone(), &service))?;
        if !matches!(answer.status(), 200 | 201) {
            return Err(self.refusal(answer.status(), &service));
        }
        let text = answer.header("x-subject-token").map(|token| Secret::read_from(token.as_bytes()));
        let text = match text {
            Some(Ok(token)) => token,
            Some(Err(error)) => return Err(KeyError::of_secret(self.manager.clone(), error)),
            None => return Err(HttpError::NotHttp.about(self.manager.clone(), &service)),
        };
        let answer: TokenAnswer = answer
            .into_json(ANSWER_BYTES_MAX)
            .map_err(|error| error.about(self.manager.clone(), &service))?;
        Ok(Token { text, renew_at: answer.token.renew_at(asked_at), endpoint: self.endpoint(&answer.token) })
    }

    fn refusal(&self, status: u16, service: &str) -> KeyError {
        let refused = |problem: &str, remedy| {
            KeyError::not_allowed(
                self.manager.clone(),
                format!("{service} {problem} (HTTP {status})"),
                remedy,
            )
        };
        match status {
            401 => refused(
                "does not accept the credentials",
                "check them: revoked, expired, or of another domain or project",
            ),
            403 => refused("lets nobody in by these credentials", "ask whoever runs it"),
            // So it answers an application credential that was deleted.
            404 if self.is_by_password() == Some(false) => refused(
                "knows no such application credential, or no Identity API v3 there",
                "check the credential, which may have been revoked, and `auth-url`",
            ),
            404 => refused("knows no Identity API v3 there", "correct `auth-url`"),
            429 | 500..=599 => KeyError::unreachable(
                self.manager.clone(),
                format!("{service} cannot answer now (HTTP {status})"),
            ),
            _ => refused("does not understand the credentials", "check the profile"),
        }
    }

    /// The body of the request, in memory that is wiped.
    fn request(&self) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let request = match self.is_by_password() {
            Some(true) => self.by_password()?,
            Some(false) => self.by_application_credential()?,
            None => {
                return Err(self.incomplete(
                    "its kind of credentials is not known here",
                    "use an application credential, or a user's password",
                ));
            }
        };
        let mut body = Zeroizing::new(Vec::with_capacity(REQUEST_BYTES_MAX));
        serde_json::to_writer(&mut *body, &AuthRequest { auth: request })
            .map_err(|_| self.incomplete("its password is no text", "Keystone takes UTF-8 only"))?;
        debug_assert!(body.len() <= REQUEST_BYTES_MAX, "no copy was left behind");
        Ok(body)
    }

    /// Whether a user's password is what lets us in, or an application credential; `None` if it is neither.
    fn is_by_password(&self) -> Option<bool> {
        match self.settings.text("auth_type") {
            Some("v3applicationcredential") => Some(false),
            Some("password" | "v3password") => Some(true),
            Some(_) => None,
            None => Some(
                self.settings.text("application_credential_id").is_none()
                    && self.settings.text("application_credential_name").is_none(),
            ),
        }
    }

    fn by_application_credential(&self) -> Result<Auth<'_>, KeyError> {
        let who = self.named(
            ["application_credential_id", "application_credential_name"],
            || Ok(OfUser { user: self.user()? }),
            ["it names no application credential", "give its profile an `application-credential-id`"],
        )?;
        let credential = ApplicationCredential { who, secret: self.secret("application_credential_secret")? };
        let identity = IdentityMethod {
            methods: ["application_credential"],
            password: None,
            application_credential: Some(credential),
        };
        Ok(Auth { identity, scope: None })
    }

    fn by_password(&self) -> Result<Auth<'_>, KeyError> {
        let user = UserWithPassword { who: self.user()?, password: self.secret("password")? };
        let project = self.named(
            ["project_id", "project_name"],
            || Ok(InDomain { domain: self.domain("project_domain_id", "project_domain_name") }),
            ["it names no project", "give its profile a `project-name`"],
        )?;
        let identity = IdentityMethod {
            methods: ["password"],
            password: Some(Password { user }),
            application_credential: None,
        };
        Ok(Auth { identity, scope: Some(Scope { project }) })
    }

    fn user(&self) -> Result<Named<'_, InDomain<'_>>, KeyError> {
        self.named(
            ["user_id", "username"],
            || Ok(InDomain { domain: self.domain("user_domain_id", "user_domain_name") }),
            ["it names no user", "give its profile a `user-name`"],
        )
    }

    /// What the settings `id` or `name` say; an error of `problem` and `remedy` if they say nothing.
    fn named<Within>(
        &self,
        [id, name]: [&'static str; 2],
        within: impl FnOnce() -> Result<Within, KeyError>,
        [problem, remedy]: [&str; 2],
    ) -> Result<Named<'_, Within>, KeyError> {
        match (self.settings.text(id), self.settings.text(name)) {
            (Some(id), _) => Ok(Named::ById { id }),
            (None, Some(name)) => Ok(Named::ByName { name, within: within()? }),
            (None, None) => Err(self.incomplete(problem, remedy)),
        }
    }

    /// A domain, which OpenStack's tools take to be `default` if nothing is said.
    fn domain(&self, id: &'static str, name: &'static str) -> Domain<'_> {
        match (self.settings.text(id), self.settings.text(name)) {
            (None, Some(name)) => Domain::Name(name),
            (id, _) => Domain::Id(id.unwrap_or("default")),
        }
    }

    /// A secret as text. One line end at its end is the editor's, not the password's.
    fn secret(&self, name: &'static str) -> Result<&str, KeyError> {
        let spoken = name.replace('_', "-");
        let secret = self.settings.secret(name).ok_or_else(|| {
            self.incomplete(
                &format!("nothing says what its {spoken} is"),
                "name it by a reference in its profile, such as file:/etc/sealblk/secret",
            )
        })?;
        line_of(secret)
            .ok_or_else(|| self.incomplete(&format!("its {spoken} is no text"), "Keystone takes UTF-8 only"))
    }

    fn incomplete(&self, problem: &str, remedy: &str) -> KeyError {
        KeyError::not_allowed(self.manager.clone(), problem, remedy)
    }

    /// Where the catalogue has the key manager, or why nowhere.
    fn endpoint(&self, token: &TokenBody) -> Result<String, String> {
        let interface = self.settings.text("interface").unwrap_or("public");
        let region = self.settings.text("region_name");
        let mut services = token.catalog.iter().filter(|service| service.kind == SERVICE_TYPE);
        services
            .by_ref()
            .flat_map(|service| &service.endpoints)
            .find(|endpoint| {
                let is_there = region.is_none() || region == endpoint.region_id.as_deref();
                is_there && endpoint.interface == interface
            })
            .map(|endpoint| endpoint.url.clone())
            .ok_or_else(|| {
                let there = region.map(|region| format!(" in region {region}")).unwrap_or_default();
                format!("Keystone's catalogue has no {interface} endpoint of a {SERVICE_TYPE} service{there}")
            })
    }
}

impl TokenBody {
    /// When to ask for another one. Reckoned from Keystone's own clock, which need not agree with ours.
    fn renew_at(&self, asked_at: Instant) -> Option<Instant> {
        let time = |text: &Option<String>| text.as_ref()?.parse::<Timestamp>().ok();
        let life = time(&self.expires_at)?.duration_since(time(&self.issued_at)?);
        let life = Duration::try_from(life).unwrap_or_default();
        asked_at.checked_add(life.saturating_sub(RENEW_BEFORE.min(life / 2)))
    }
}

#[derive(Serialize)]
struct AuthRequest<'a> {
    auth: Auth<'a>,
}

#[derive(Serialize)]
struct Auth<'a> {
    identity: IdentityMethod<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<Scope<'a>>,
}

#[derive(Serialize)]
struct IdentityMethod<'a> {
    methods: [&'static str; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<Password<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    application_credential: Option<ApplicationCredential<'a>>,
}

#[derive(Serialize)]
struct Password<'a> {
    user: UserWithPassword<'a>,
}

#[derive(Serialize)]
struct UserWithPassword<'a> {
    #[serde(flatten)]
    who: Named<'a, InDomain<'a>>,
    password: &'a str,
}

#[derive(Serialize)]
struct ApplicationCredential<'a> {
    #[serde(flatten)]
    who: Named<'a, OfUser<'a>>,
    secret: &'a str,
}

#[derive(Serialize)]
struct Scope<'a> {
    project: Named<'a, InDomain<'a>>,
}

/// A user, a project or an application credential: by its ID, or by its name and where that is its name.
#[derive(Serialize)]
#[serde(untagged)]
enum Named<'a, Within> {
    ById {
        id: &'a str,
    },
    ByName {
        name: &'a str,
        #[serde(flatten)]
        within: Within,
    },
}

#[derive(Serialize)]
struct InDomain<'a> {
    domain: Domain<'a>,
}

#[derive(Serialize)]
struct OfUser<'a> {
    user: Named<'a, InDomain<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Domain<'a> {
    Id(&'a str),
    Name(&'a str),
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: TokenBody,
}

#[derive(Deserialize)]
struct TokenBody {
    issued_at: Option<String>,
    expires_at: Option<String>,
    #[serde(default)]
    catalog: Vec<Service>,
}

#[derive(Deserialize)]
struct Service {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    endpoints: Vec<Endpoint>,
}

#[derive(Deserialize)]
struct Endpoint {
    interface: String,
    region_id: Option<String>,
    url: String,
}
