//! A table `[vault.PROFILE]` of the key configuration file.

use std::time::Duration;

use serde::Deserialize;

use crate::keys::KeyReference;
use crate::keys::http::ServiceUrl;
use crate::keys::remote::TlsProfile;

/// A table `[vault.PROFILE]` of the key configuration file.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Profile {
    pub(super) address: ServiceUrl,
    pub(super) namespace: Option<Namespace>,
    pub(super) token: Option<KeyReference>,
    /// Whether to have the life of `token` extended at each use.
    #[serde(default)]
    pub(super) renew_token: bool,
    pub(super) role_id: Option<String>,
    pub(super) secret_id: Option<KeyReference>,
    #[serde(default = "default_approle_mount")]
    pub(super) approle_mount: String,
    #[serde(default = "default_mount")]
    pub(super) mount: String,
    #[serde(default)]
    pub(super) kv_version: KvVersion,
    /// Where the tools put keys, below the mount.
    #[serde(default = "default_folder")]
    pub(super) folder: String,
    /// What holds the key in a record that is not castellan's.
    #[serde(default = "default_field")]
    pub(super) field: String,
    pub(super) transit_key: Option<String>,
    #[serde(default = "default_transit_mount")]
    pub(super) transit_mount: String,
    #[serde(default)]
    pub(super) plain_http: bool,
    #[serde(default = "default_timeout_seconds")]
    timeout_seconds: u16,
    pub(super) tls: Option<TlsProfile>,
}

/// Which KV engine is mounted there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u8")]
pub(super) enum KvVersion {
    One,
    #[default]
    Two,
}

/// A part of a server, with policies and mounts of its own. It is sent in a header line.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Namespace(pub(super) String);

impl Profile {
    /// How long one request may take.
    pub(super) fn time_limit(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds.max(1).into())
    }
}

impl TryFrom<u8> for KvVersion {
    type Error = &'static str;

    fn try_from(number: u8) -> Result<Self, Self::Error> {
        match number {
            1 => Ok(Self::One),
            2 => Ok(Self::Two),
            _ => Err("there are versions 1 and 2 of the KV engine"),
        }
    }
}

impl TryFrom<String> for Namespace {
    type Error = &'static str;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        match !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic()) {
            true => Ok(Self(name)),
            false => Err("a namespace is ASCII without spaces"),
        }
    }
}

fn default_approle_mount() -> String {
    "approle".to_owned()
}

fn default_mount() -> String {
    "secret".to_owned()
}

fn default_folder() -> String {
    "sealblk".to_owned()
}

fn default_field() -> String {
    "value".to_owned()
}

fn default_transit_mount() -> String {
    "transit".to_owned()
}

fn default_timeout_seconds() -> u16 {
    30
}
