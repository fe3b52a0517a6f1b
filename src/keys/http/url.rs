//! Where a service is.

use std::net::IpAddr;
use std::time::Duration;

use serde::Deserialize;
use ureq::http::Uri;

use super::super::doctor::Walk;
use super::super::remote::{Deadline, Endpoint, TlsClient};
use super::super::{KeyError, ManagerName};
use super::HttpError;

/// `https://HOST[:PORT][/PATH]`, without a slash at its end, a user, a query or a fragment.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(in super::super) struct ServiceUrl {
    text: String,
    host: String,
    port: u16,
    is_secure: bool,
}

impl ServiceUrl {
    /// The URL of something below it. `path` begins with a slash.
    pub(in super::super) fn join(&self, path: &str) -> String {
        format!("{}{path}", self.text)
    }

    /// The service below it that `path` leads to, unless it leads there already.
    #[cfg_attr(not(feature = "barbican"), allow(dead_code, reason = "only OpenStack's URLs go on or not"))]
    pub(in super::super) fn ending_in(self, path: &str) -> Self {
        if self.text.ends_with(path) { self } else { Self { text: format!("{}{path}", self.text), ..self } }
    }

    /// Connects to it as requests will, and tells of every step.
    ///
    /// # Errors
    /// See [`KeyError`], about `manager`.
    pub(in super::super) fn walk(
        &self,
        tls: Option<&TlsClient>,
        time_limit: Duration,
        manager: &ManagerName,
        walk: &mut Walk<'_>,
    ) -> Result<(), KeyError> {
        let endpoint = Endpoint { host: self.host.clone(), port: self.port };
        let tls = match (self.is_secure, tls) {
            (true, None) => {
                let service = format!("the server at {self}");
                return Err(HttpError::TlsNotSetUp.about(manager.clone(), &service));
            }
            (true, tls) => tls,
            (false, _) => None,
        };
        endpoint.walk(tls, Deadline::after(time_limit), manager, walk).map(drop)
    }

    /// Whether it begins with `https`.
    pub(in super::super) fn is_secure(&self) -> bool {
        self.is_secure
    }

    /// Refuses to send secrets there over a network in the clear, unless that is allowed.
    ///
    /// # Errors
    /// [`KeyError::NotAllowed`], about `manager`.
    pub(in super::super) fn check_clear(
        &self,
        manager: &ManagerName,
        is_allowed: bool,
    ) -> Result<(), KeyError> {
        match self.is_readable_by_others() && !is_allowed {
            false => Ok(()),
            true => Err(KeyError::not_allowed(
                manager.clone(),
                format!("at {self}, passwords and keys would cross the network in the clear"),
                "name a URL that begins with https, or set `plain-http = true` in its profile if that network is \
                 nobody else's",
            )),
        }
    }

    /// Whether what is sent there can be read on a network.
    fn is_readable_by_others(&self) -> bool {
        let is_this_host = match self.host.parse::<IpAddr>() {
            Ok(address) => address.is_loopback(),
            Err(_) => self.host == "localhost",
        };
        !self.is_secure && !is_this_host
    }
}

impl TryFrom<String> for ServiceUrl {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let malformed = "a URL here is https://HOST[:PORT][/PATH]";
        let uri: Uri = text.parse().map_err(|_| malformed)?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(malformed);
        };
        let is_secure = match scheme {
            "https" => true,
            "http" => false,
            _ => return Err(malformed),
        };
        let is_bare = uri.query().is_none() && !text.contains(['@', '#']);
        if !is_bare || authority.host().is_empty() {
            return Err(malformed);
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = authority.port_u16().unwrap_or(if is_secure { 443 } else { 80 });
        Ok(Self { text: text.trim_end_matches('/').to_owned(), host, port, is_secure })
    }
}

impl std::fmt::Display for ServiceUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// `text` as one segment of a path, or one value of a query: whatever is not plainly a letter, a digit or one of `-._~` is
/// percent-encoded.
pub(in super::super) fn path_segment(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Result<ServiceUrl, &'static str> {
        text.to_owned().try_into()
    }

    #[test]
    fn a_url_is_taken_apart() {
        let keystone = url("https://cloud.example/identity/v3/").unwrap();
        assert_eq!(
            (keystone.host.as_str(), keystone.port, keystone.is_secure()),
            ("cloud.example", 443, true)
        );
        assert_eq!(keystone.join("/auth/tokens"), "https://cloud.example/identity/v3/auth/tokens");
        assert_eq!(keystone.clone().ending_in("/v3"), keystone);
        assert_eq!(url("http://[::1]:9311").unwrap().ending_in("/v1").join("/x"), "http://[::1]:9311/v1/x");
    }

    #[test]
    fn what_leads_elsewhere_or_nowhere_is_refused() {
        for text in [
            "",
            "cloud.example",
            "/v3",
            "ftp://x",
            "https://",
            "https://u:p@x/",
            "https://x/?a=b",
            "https://x/#a",
            "http://x y/",
        ] {
            assert!(url(text).is_err(), "{text}");
        }
    }

    #[test]
    fn only_this_host_is_spoken_to_in_the_clear() {
        for text in ["https://cloud.example", "http://127.0.0.1:5000", "http://[::1]", "http://localhost:1"] {
            assert!(!url(text).unwrap().is_readable_by_others(), "{text}");
        }
        for text in ["http://cloud.example", "http://10.0.0.1", "http://127.0.0.1.example", "http://[::2]"] {
            assert!(url(text).unwrap().is_readable_by_others(), "{text}");
        }
    }

    #[test]
    fn a_segment_stays_one_segment() {
        assert_eq!(path_segment("a-b_c.d~1"), "a-b_c.d~1");
        assert_eq!(path_segment("../x?y=z&é%"), "..%2Fx%3Fy%3Dz%26%C3%A9%25");
    }
}
