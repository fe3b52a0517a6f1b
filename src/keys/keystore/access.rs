//! Who may do what with a key.

use std::fmt;
use std::str::FromStr;

/// Who asks. A process asks as the user that it runs as.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Principal {
    /// A user of this machine, by number: `uid:0`.
    User(u32),
}

impl Principal {
    /// The one that this process asks as.
    pub fn of_process() -> Self {
        Self::User(rustix::process::geteuid().as_raw())
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(uid) => write!(f, "uid:{uid}"),
        }
    }
}

/// Text that names nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a principal is written uid:N, with the number of a user")]
pub struct PrincipalError;

impl FromStr for Principal {
    type Err = PrincipalError;

    fn from_str(text: &str) -> Result<Self, PrincipalError> {
        let uid = text.strip_prefix("uid:").and_then(|uid| uid.parse().ok()).ok_or(PrincipalError)?;
        // One way only to write each, or `uid:07` would not be who `uid:7` is.
        let principal = Self::User(uid);
        if principal.to_string() == text { Ok(principal) } else { Err(PrincipalError) }
    }
}

/// What may be done with a key. Whoever may do any of it sees the key; to everybody else it does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Right {
    /// Get its bytes.
    Fetch,
    /// Make a new version.
    Rotate,
    /// Destroy it.
    Destroy,
    /// Give these rights to others, and take them away.
    Grant,
}

impl Right {
    /// All of them: what the creator of a key has.
    pub const ALL: [Self; 4] = [Self::Fetch, Self::Rotate, Self::Destroy, Self::Grant];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::Rotate => "rotate",
            Self::Destroy => "destroy",
            Self::Grant => "grant",
        }
    }
}

/// Text that names no right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the rights are fetch, rotate, destroy and grant")]
pub struct RightError;

impl FromStr for Right {
    type Err = RightError;

    fn from_str(text: &str) -> Result<Self, RightError> {
        Self::ALL.into_iter().find(|right| right.name() == text).ok_or(RightError)
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_principal_is_written_in_one_way() {
        assert_eq!("uid:7".parse(), Ok(Principal::User(7)));
        for text in ["uid:07", "uid:+7", "uid:", "7", "user:7", "uid:-1", "uid:4294967296"] {
            assert_eq!(text.parse::<Principal>(), Err(PrincipalError), "{text}");
        }
        for right in Right::ALL {
            assert_eq!(right.to_string().parse(), Ok(right));
        }
    }
}
