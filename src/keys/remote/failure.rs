//! What can go wrong between us and a server, for people.

use std::io::{self, ErrorKind};

use jiff::Timestamp;
use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, Error as TlsError};

use super::super::{KeyError, Subject};

/// Why a conversation did not take place, or ended early. Nothing of what was said shows in it.
#[derive(Debug)]
pub enum Failure {
    /// Another server, or another attempt, may help.
    Unreachable {
        /// What was tried.
        problem: String,
        /// What came back.
        cause: Option<io::Error>,
    },
    /// One side does not accept the other, and will not the next time.
    Refused {
        /// What speaks against it.
        problem: String,
        /// What to do.
        remedy: String,
    },
}

impl Failure {
    pub(in crate::keys) fn unreachable(problem: impl Into<String>) -> Self {
        Self::Unreachable { problem: problem.into(), cause: None }
    }

    pub(in crate::keys) fn refused(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Refused { problem: problem.into(), remedy: remedy.into() }
    }

    /// What an error means that came while `doing` (as in "reading from kmip1:5696 failed"). TLS hides its own errors
    /// in those of the stream.
    pub fn of_io(doing: &str, error: io::Error) -> Self {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
        match tls.and_then(|error| refusal(doing, error)) {
            Some(refusal) => refusal,
            None if error.kind() == ErrorKind::TimedOut => {
                Self::unreachable(format!("{doing} took too long"))
            }
            None if error.kind() == ErrorKind::UnexpectedEof => {
                Self::unreachable(format!("{doing} failed: the server closed the connection"))
            }
            // Some servers end a conversation so, when they do not know whom they are talking to.
            None if error.kind() == ErrorKind::ConnectionReset => Self::Unreachable {
                problem: format!("{doing} failed (does the server take our certificate?)"),
                cause: Some(error),
            },
            None => Self::Unreachable { problem: format!("{doing} failed"), cause: Some(error) },
        }
    }

    /// The same for whoever asked for a key.
    pub fn about(self, subject: impl Into<Subject>) -> KeyError {
        match self {
            Self::Unreachable { problem, cause: None } => KeyError::unreachable(subject, problem),
            Self::Unreachable { problem, cause: Some(cause) } => {
                KeyError::unreachable_because(subject, problem, cause)
            }
            Self::Refused { problem, remedy } => KeyError::not_allowed(subject, problem, remedy),
        }
    }
}

/// What cannot be mended by trying again.
fn refusal(doing: &str, error: &TlsError) -> Option<Failure> {
    use AlertDescription as Alert;
    use CertificateError as Certificate;
    let (problem, remedy) = match error {
        TlsError::InvalidCertificate(
            error @ (Certificate::Expired
            | Certificate::ExpiredContext { .. }
            | Certificate::NotValidYet
            | Certificate::NotValidYetContext { .. }),
        ) => return Some(untimely(doing, error)),
        TlsError::InvalidCertificate(Certificate::UnknownIssuer | Certificate::BadSignature) => (
            "the server's certificate is not from a CA that its profile trusts",
            "if that is the right server, name its CA as `ca`",
        ),
        TlsError::InvalidCertificate(
            Certificate::NotValidForName | Certificate::NotValidForNameContext { .. },
        ) => (
            "the server's certificate is for another name",
            "if that is the right server, give its name as `server-name`",
        ),
        TlsError::InvalidCertificate(_) | TlsError::NoCertificatesPresented => {
            ("the server's certificate cannot be used", "have a proper one issued for it")
        }
        TlsError::AlertReceived(Alert::CertificateRequired | Alert::NoCertificate) => (
            "the server asks who we are",
            "name `client-certificate` and `client-key` in the table `tls` of its profile",
        ),
        TlsError::AlertReceived(
            Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            // Of an authority that is called like one the server trusts.
            | Alert::DecryptError
            | Alert::AccessDenied,
        ) => {
            let TlsError::AlertReceived(alert) = error else { return None };
            let problem = format!("{doing} failed: the server refuses our certificate ({alert:?})");
            return Some(Failure::refused(
                problem,
                "have one issued that it trusts, and see the server's log",
            ));
        }
        TlsError::AlertReceived(
            Alert::HandshakeFailure | Alert::ProtocolVersion | Alert::InsufficientSecurity,
        )
        | TlsError::PeerIncompatible(_) => (
            "the server and this program have no version or cipher suite of TLS in common",
            "allow TLS 1.2 or 1.3 with ECDHE and AES-GCM on the server",
        ),
        TlsError::InvalidMessage(_) => ("what answers there does not speak TLS", "correct its address"),
        _ => return None,
    };
    Some(Failure::refused(format!("{doing} failed: {problem}"), remedy))
}

/// A certificate whose time has passed or not come. Which of two clocks is wrong, or whether that is so, has to be seen from
/// what they say.
fn untimely(doing: &str, error: &CertificateError) -> Failure {
    let text = |time: UnixTime| {
        let time =
            i64::try_from(time.as_secs()).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
        time.map_or_else(|| "another age".to_owned(), |time| time.to_string())
    };
    let (what, now) = match error {
        CertificateError::ExpiredContext { time, not_after } => {
            (format!("has expired: it was valid until {}", text(*not_after)), *time)
        }
        CertificateError::NotValidYetContext { time, not_before } => {
            (format!("is not valid yet: it will be from {}", text(*not_before)), *time)
        }
        CertificateError::NotValidYet => ("is not valid yet".to_owned(), UnixTime::now()),
        _ => ("has expired".to_owned(), UnixTime::now()),
    };
    Failure::refused(
        format!("{doing} failed: the server's certificate {what}, and the clock here says {}", text(now)),
        "renew the certificate, or set the clock that is wrong",
    )
}
