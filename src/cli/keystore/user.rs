//! Principals by the names that this machine's users have.

use std::fmt;

use nix::unistd::{Uid, User};

use crate::cli::output::printable;
use crate::cli::tool_error::ToolError;
use crate::keys::keystore::Principal;

/// A principal, and the user's name if it was called by that.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) principal: Principal,
    name: Option<String>,
}

/// Text that names no principal.
#[derive(Debug, thiserror::Error)]
pub enum PrincipalNameError {
    /// Neither the one nor the other.
    #[error("{text} is neither uid:N, with the number of a user, nor the name of a user of this machine")]
    Unknown {
        /// What was given.
        text: String,
    },
    /// Nobody can tell who has the name.
    #[error("user {name} cannot be looked up: give uid:N, with the user's number")]
    LookUp {
        /// The name.
        name: String,
        /// What the system answered.
        source: nix::Error,
    },
}

impl Named {
    /// Whom `text`, the value of `option`, means.
    ///
    /// # Errors
    /// [`ToolError::Principal`] when it means nobody. A number alone is none: it could be a name or a number.
    pub(super) fn parse(option: &'static str, text: &str) -> Result<Self, ToolError> {
        if let Ok(principal) = text.parse() {
            return Ok(Self { principal, name: None });
        }
        let failed = |problem| ToolError::Principal { option, problem };
        let unknown = || failed(PrincipalNameError::Unknown { text: text.to_owned() });
        // No user's name has a colon: passwd(5) ends it there.
        if text.is_empty() || text.contains(':') || text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(unknown());
        }
        match User::from_name(text) {
            Ok(Some(user)) => {
                Ok(Self { principal: Principal::User(user.uid.as_raw()), name: Some(text.to_owned()) })
            }
            Ok(None) => Err(unknown()),
            Err(source) => Err(failed(PrincipalNameError::LookUp { name: text.to_owned(), source })),
        }
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{} ({})", self.principal, printable(name)),
            None => self.principal.fmt(f),
        }
    }
}

/// What the user of this machine is called, if anybody knows.
pub(super) fn name_of(principal: &Principal) -> Option<String> {
    match principal {
        Principal::User(uid) => User::from_uid(Uid::from_raw(*uid)).ok().flatten().map(|user| user.name),
    }
}
