//! HTTP/1.1 to a key manager: one request at a time, with a time limit, answers of bounded size, no redirects, no proxies,
//! nothing logged.
//!
//! `ureq` speaks the protocol. The connection underneath is [ours](connection), so that what passes through is wiped
//! behind it: the body of an answer goes from there into a [`Secret`] without another copy. What is not wiped: `rustls`
//! keeps each decrypted record until it is read, and `ureq` the header lines of a request, the token among them; both free
//! that memory when the connection closes, which is before a guest is served.

mod connection;
mod url;

use std::io::{self, Read};
use std::time::Duration;

use serde::de::DeserializeOwned;
use ureq::http::{Request as HttpRequest, header};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::{Agent, Body};
use zeroize::Zeroizing;

use super::remote::{Failure, TlsClient};
use super::{KeyError, Secret, SecretError, Subject};

pub(super) use url::{ServiceUrl, path_segment};

/// Header lines of an answer, all together.
const HEADER_BYTES_MAX: usize = 64 << 10;

/// Speaks with servers until it is dropped, which closes its connections.
pub(super) struct HttpClient {
    agent: Agent,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Get,
    Post,
    Delete,
    /// Vault's word for the names below a path.
    #[cfg(feature = "vault")]
    List,
}

/// One request. Its `Debug` would show secrets, so it has none.
pub(super) struct Request<'a> {
    pub(super) method: Method,
    pub(super) url: &'a str,
    /// Names in lower case, with values that may be logged.
    pub(super) headers: &'a [(&'static str, &'a str)],
    /// The header that lets us in.
    pub(super) token: Option<(&'static str, &'a Secret)>,
    /// JSON.
    pub(super) body: Option<&'a [u8]>,
}

/// The beginning of an answer.
pub(super) struct Answer {
    response: ureq::http::Response<Body>,
}

/// Why there is no answer, or none that can be used. Shows nothing of what was sent or received.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    #[error("the name of its host is not known")]
    UnknownHost,
    /// The connection, or TLS inside it, failed.
    #[error("{0}")]
    Io(io::Error),
    #[error("its URL begins with https, and no table `tls` says whom to trust")]
    TlsNotSetUp,
    #[error("it redirects elsewhere (HTTP {0}), which is not followed")]
    Redirect(u16),
    #[error("its answer is longer than {0} bytes")]
    TooLong(usize),
    #[error("its answer is not as HTTP wants it")]
    NotHttp,
    #[error("its answer is compressed, which nobody asked for")]
    Compressed,
    #[error("its answer is no JSON of the expected form (line {line}, column {column})")]
    NotJson { line: usize, column: usize },
    #[error("{0}")]
    Memory(SecretError),
}

impl Method {
    /// The word in a request.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Delete => "DELETE",
            #[cfg(feature = "vault")]
            Self::List => "LIST",
        }
    }
}

impl HttpClient {
    /// `tls` is whom to trust, for URLs that begin with `https`. Each request may take `time_limit`, from looking up the
    /// name to the last byte of the answer.
    pub(super) fn new(tls: Option<TlsClient>, time_limit: Duration) -> Self {
        let config = Agent::config_builder()
            .proxy(None)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .timeout_global(Some(time_limit))
            .max_response_header_size(HEADER_BYTES_MAX)
            .user_agent(concat!("sealblk/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .allow_non_standard_methods(true)
            .build();
        let agent = Agent::with_parts(config, connection::Connector::new(tls), DefaultResolver::default());
        Self { agent }
    }

    /// Sends `request` and waits for the header of its answer.
    pub(super) fn send(&self, request: &Request<'_>) -> Result<Answer, HttpError> {
        let mut builder = HttpRequest::builder().method(request.method.name()).uri(request.url);
        for (name, value) in request.headers {
            builder = builder.header(*name, *value);
        }
        if let Some((name, token)) = request.token {
            let mut value =
                header::HeaderValue::from_bytes(token.expose()).map_err(|_| HttpError::NotHttp)?;
            value.set_sensitive(true);
            builder = builder.header(name, value);
        }
        let result = match request.body {
            Some(json) => {
                builder = builder.header(header::CONTENT_TYPE, "application/json");
                builder.body(json).map(|request| self.agent.run(request))
            }
            None => builder.body(()).map(|request| self.agent.run(request)),
        };
        let response = result.map_err(|_| HttpError::NotHttp)?.map_err(failure)?;
        let status = response.status();
        if status.is_redirection() {
            return Err(HttpError::Redirect(status.as_u16()));
        }
        let is_plain = |value: &header::HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
        if !response.headers().get_all(header::CONTENT_ENCODING).iter().all(is_plain) {
            return Err(HttpError::Compressed);
        }
        Ok(Answer { response })
    }
}

impl Answer {
    pub(super) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    /// A header line's value, if it is text.
    #[cfg_attr(
        not(feature = "barbican"),
        allow(dead_code, reason = "only Keystone answers in a header line")
    )]
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// The whole body, as it is, straight into locked memory.
    #[cfg_attr(not(feature = "barbican"), allow(dead_code, reason = "only Barbican's payloads are bytes"))]
    pub(super) fn into_secret(mut self) -> Result<Secret, HttpError> {
        Secret::read_from(self.response.body_mut().as_reader()).map_err(|error| match error {
            SecretError::Read(error) => read_failure(error),
            error => HttpError::Memory(error),
        })
    }

    /// The whole body, at most `bytes_max` long, in memory that is wiped.
    pub(super) fn into_text(mut self, bytes_max: usize) -> Result<Zeroizing<Vec<u8>>, HttpError> {
        // As large as it can get at once: a vector that grows leaves copies behind.
        let mut text = Zeroizing::new(Vec::with_capacity(bytes_max + 1));
        let reader = self.response.body_mut().as_reader();
        reader.take(bytes_max as u64 + 1).read_to_end(&mut text).map_err(read_failure)?;
        if text.len() > bytes_max { Err(HttpError::TooLong(bytes_max)) } else { Ok(text) }
    }

    /// The whole body, as JSON that holds no secret.
    pub(super) fn into_json<T: DeserializeOwned>(self, bytes_max: usize) -> Result<T, HttpError> {
        parse_json(&self.into_text(bytes_max)?)
    }
}

/// A secret that is a line of text, such as a password in a file: the line end is the editor's. `None` if it is no text.
pub(super) fn line_of(secret: &Secret) -> Option<&str> {
    let text = str::from_utf8(secret.expose()).ok()?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    Some(text.strip_suffix('\r').unwrap_or(text))
}

/// Parses JSON. What is wrong with it is told by place only, since a parser's own message repeats what it read.
pub(super) fn parse_json<'a, T: serde::Deserialize<'a>>(text: &'a [u8]) -> Result<T, HttpError> {
    serde_json::from_slice(text)
        .map_err(|error| HttpError::NotJson { line: error.line(), column: error.column() })
}

impl HttpError {
    /// The same as an error of a key manager. `service` says what was spoken to, and where.
    pub(super) fn about(self, subject: impl Into<Subject>, service: &str) -> KeyError {
        match self {
            Self::Io(error) => Failure::of_io(&format!("speaking with {service}"), error).about(subject),
            Self::UnknownHost => KeyError::unreachable(subject, format!("{service}: {self}")),
            Self::Memory(error) => KeyError::of_secret(subject, error),
            Self::TlsNotSetUp | Self::Redirect(_) => {
                KeyError::not_allowed(subject, format!("{service}: {self}"), "correct the profile")
            }
            Self::TooLong(_) | Self::NotHttp | Self::Compressed | Self::NotJson { .. } => {
                KeyError::malformed(
                    subject,
                    format!("{service}: {self}"),
                    "look at what answers there: a proxy, perhaps",
                )
            }
        }
    }
}

fn failure(error: ureq::Error) -> HttpError {
    match error {
        ureq::Error::Timeout(_) => HttpError::Io(io::ErrorKind::TimedOut.into()),
        ureq::Error::HostNotFound => HttpError::UnknownHost,
        ureq::Error::Io(error) => read_failure(error),
        ureq::Error::LargeResponseHeader(_, bytes_max) => HttpError::TooLong(bytes_max),
        ureq::Error::Other(error) => match error.downcast::<HttpError>() {
            Ok(error) => *error,
            Err(_) => HttpError::NotHttp,
        },
        _ => HttpError::NotHttp,
    }
}

/// What reading a body failed with: the stream's own error, or one of HTTP inside it.
fn read_failure(error: io::Error) -> HttpError {
    match error.downcast::<ureq::Error>() {
        Ok(error) => failure(error),
        Err(error) => HttpError::Io(error),
    }
}

#[cfg(test)]
pub(super) mod host;
#[cfg(test)]
pub(super) mod stub;
#[cfg(test)]
mod tests;
