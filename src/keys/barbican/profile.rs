//! How a profile says where Keystone is and who we are: itself, by OpenStack's environment variables, or by `clouds.yaml`.

use std::collections::BTreeMap;
use std::env;
use std::time::Duration;

use serde::Deserialize;

use super::clouds;
use crate::keys::http::ServiceUrl;
use crate::keys::registry::Opening;
use crate::keys::remote::TlsProfile;
use crate::keys::{AbsolutePath, KeyConfigError, KeyError, KeyReference, KeySource, ManagerName, Secret};

/// What OpenStack calls the settings that are text, in the order in which its documentation lists them. An environment
/// variable is called the same, in capitals, behind `OS_`.
pub(super) const TEXTS: &[&str] = &[
    "auth_url",
    "auth_type",
    "username",
    "user_id",
    "user_domain_id",
    "user_domain_name",
    "project_id",
    "project_name",
    "project_domain_id",
    "project_domain_name",
    "application_credential_id",
    "application_credential_name",
    "region_name",
    "interface",
    "key_manager_endpoint_override",
    "cacert",
    "cert",
    "key",
    "verify",
    "insecure",
];

/// What OpenStack calls the settings that are secret.
pub(super) const SECRETS: &[&str] = &["password", "application_credential_secret"];

/// A table `[barbican.PROFILE]` of the key configuration file.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Profile {
    auth_url: Option<ServiceUrl>,
    user_id: Option<String>,
    user_name: Option<String>,
    user_domain_id: Option<String>,
    user_domain_name: Option<String>,
    project_id: Option<String>,
    project_name: Option<String>,
    project_domain_id: Option<String>,
    project_domain_name: Option<String>,
    application_credential_id: Option<String>,
    application_credential_name: Option<String>,
    region: Option<String>,
    interface: Option<String>,
    endpoint: Option<ServiceUrl>,
    password: Option<KeyReference>,
    application_credential_secret: Option<KeyReference>,
    /// The entry of `clouds.yaml` to go by.
    cloud: Option<String>,
    clouds_file: Option<AbsolutePath>,
    /// Whether to go by variables `OS_...`.
    #[serde(default)]
    environment: bool,
    /// Whether a volume that is served is registered as a consumer of its key.
    #[serde(default)]
    pub(super) register_consumers: bool,
    /// Whether `http` is good enough for other hosts than this one.
    #[serde(default)]
    pub(super) plain_http: bool,
    #[serde(default = "default_timeout_seconds")]
    timeout_seconds: u16,
    pub(super) tls: Option<TlsProfile>,
}

fn default_timeout_seconds() -> u16 {
    30
}

/// A profile, and the references in it resolved.
pub(super) struct Setup {
    pub(super) profile: Profile,
    password: Option<KeySource>,
    application_credential_secret: Option<KeySource>,
}

/// What all sources together say, by OpenStack's names.
#[derive(Default)]
pub(super) struct Settings {
    texts: BTreeMap<&'static str, String>,
    secrets: BTreeMap<&'static str, Secret>,
}

impl Setup {
    pub(super) fn new(opening: &Opening<'_>, profile: &Profile) -> Result<Self, KeyConfigError> {
        let source = |reference: &Option<KeyReference>| {
            reference.as_ref().map(|reference| opening.source(reference)).transpose()
        };
        Ok(Self {
            password: source(&profile.password)?,
            application_credential_secret: source(&profile.application_credential_secret)?,
            profile: profile.clone(),
        })
    }

    /// How long one request may take.
    pub(super) fn time_limit(&self) -> Duration {
        Duration::from_secs(self.profile.timeout_seconds.max(1).into())
    }

    /// Asks every source that the profile names. What the profile says itself goes before the environment, and that before
    /// `clouds.yaml`, as with OpenStack's own tools.
    pub(super) fn settings(&self, manager: &ManagerName) -> Result<Settings, KeyError> {
        let mut settings = Settings::default();
        self.own(&mut settings)?;
        let mut cloud = self.profile.cloud.clone();
        let mut file = self.profile.clouds_file.as_ref().map(|path| path.as_path().to_owned());
        if self.profile.environment {
            from_environment(manager, &mut settings)?;
            cloud = cloud.or_else(|| variable("OS_CLOUD"));
            file = file.or_else(|| variable("OS_CLIENT_CONFIG_FILE").map(Into::into));
        }
        if let Some(cloud) = cloud {
            clouds::read(manager, file.as_deref(), &cloud, &mut settings)?;
        }
        Ok(settings)
    }

    fn own(&self, settings: &mut Settings) -> Result<(), KeyError> {
        let profile = &self.profile;
        let url = |url: &Option<ServiceUrl>| url.as_ref().map(ToString::to_string);
        for (name, value) in [
            ("auth_url", url(&profile.auth_url)),
            ("user_id", profile.user_id.clone()),
            ("username", profile.user_name.clone()),
            ("user_domain_id", profile.user_domain_id.clone()),
            ("user_domain_name", profile.user_domain_name.clone()),
            ("project_id", profile.project_id.clone()),
            ("project_name", profile.project_name.clone()),
            ("project_domain_id", profile.project_domain_id.clone()),
            ("project_domain_name", profile.project_domain_name.clone()),
            ("application_credential_id", profile.application_credential_id.clone()),
            ("application_credential_name", profile.application_credential_name.clone()),
            ("region_name", profile.region.clone()),
            ("interface", profile.interface.clone()),
            ("key_manager_endpoint_override", url(&profile.endpoint)),
        ] {
            settings.add_text(name, value);
        }
        for (name, source) in [
            ("password", &self.password),
            ("application_credential_secret", &self.application_credential_secret),
        ] {
            if let Some(source) = source {
                settings.add_secret(name, source.fetch()?);
            }
        }
        Ok(())
    }
}

impl Settings {
    pub(super) fn text(&self, name: &'static str) -> Option<&str> {
        debug_assert!(TEXTS.contains(&name), "{name} is never set");
        self.texts.get(name).map(String::as_str)
    }

    pub(super) fn secret(&self, name: &'static str) -> Option<&Secret> {
        debug_assert!(SECRETS.contains(&name), "{name} is never set");
        self.secrets.get(name)
    }

    /// Takes `value` unless an earlier source had one.
    pub(super) fn add_text(&mut self, name: &'static str, value: Option<String>) {
        if let Some(value) = value {
            self.texts.entry(name).or_insert(value);
        }
    }

    /// Takes `secret` unless an earlier source had one.
    pub(super) fn add_secret(&mut self, name: &'static str, secret: Secret) {
        self.secrets.entry(name).or_insert(secret);
    }
}

fn from_environment(manager: &ManagerName, settings: &mut Settings) -> Result<(), KeyError> {
    let of = |name: &str| format!("OS_{}", name.to_ascii_uppercase());
    for name in TEXTS {
        settings.add_text(name, variable(&of(name)));
    }
    settings.add_text("interface", variable("OS_ENDPOINT_TYPE").map(|kind| kind.replace("URL", "")));
    for name in SECRETS {
        if let Some(value) = env::var_os(of(name)).filter(|value| !value.is_empty()) {
            let secret = Secret::read_from(value.as_encoded_bytes())
                .map_err(|error| KeyError::of_secret(manager.clone(), error))?;
            settings.add_secret(name, secret);
        }
    }
    Ok(())
}

/// An environment variable that is text and not empty.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}
