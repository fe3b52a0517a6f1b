//! The user and group that the process goes on as.

use std::io;

use nix::unistd::{Gid, Group, Uid, User, setgroups, setresgid, setresuid};

/// Whom to go on as, with no further groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    uid: Uid,
    gid: Gid,
}

/// Why the process cannot go on as somebody else.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// No such user or group.
    #[error("there is no {kind} {name}")]
    Unknown {
        /// User or group.
        kind: &'static str,
        /// As it was named.
        name: String,
    },
    /// The user data base cannot be asked.
    #[error("cannot look up {kind} {name}")]
    LookUp {
        /// User or group.
        kind: &'static str,
        /// As it was named.
        name: String,
        /// What the C library says.
        source: io::Error,
    },
    /// A number without an entry has no group of its own.
    #[error("user {0} is in no user data base: name a group as well, with --group")]
    GroupMissing(u32),
    /// The kernel says no.
    #[error("cannot go on as user {uid} and group {gid}: only root can become somebody else")]
    Refused {
        /// The user's number.
        uid: u32,
        /// The group's number.
        gid: u32,
        /// What the kernel says.
        source: io::Error,
    },
}

impl Identity {
    /// Looks up a user and a group, each by name or number. Without a group it is the user's own; without a user it is
    /// the one who has started the process.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn look_up(user: Option<&str>, group: Option<&str>) -> Result<Self, IdentityError> {
        let (uid, own_gid) = match user {
            Some(name) => user_of(name)?,
            None => (Uid::effective(), Some(Gid::effective())),
        };
        let gid = match group {
            Some(name) => group_of(name)?,
            None => own_gid.ok_or(IdentityError::GroupMissing(uid.as_raw()))?,
        };
        Ok(Self { uid, gid })
    }

    /// The user's number.
    pub fn uid(&self) -> u32 {
        self.uid.as_raw()
    }

    /// The group's number.
    pub fn gid(&self) -> u32 {
        self.gid.as_raw()
    }

    /// Goes on as this user and group, with every thread of the process, and there is no way back.
    ///
    /// # Errors
    /// [`IdentityError::Refused`]
    pub fn assume(&self) -> Result<(), IdentityError> {
        let Self { uid, gid } = *self;
        let became = || {
            // Groups of the old user would be kept; only root can leave them.
            if Uid::effective().is_root() {
                setgroups(&[])?;
            }
            setresgid(gid, gid, gid)?;
            setresuid(uid, uid, uid)
        };
        became().map_err(|errno| IdentityError::Refused {
            uid: uid.as_raw(),
            gid: gid.as_raw(),
            source: errno.into(),
        })
    }
}

fn user_of(name: &str) -> Result<(Uid, Option<Gid>), IdentityError> {
    let number = name.parse().ok().map(Uid::from_raw);
    let found = number.map_or_else(|| User::from_name(name), User::from_uid);
    match (found, number) {
        (Ok(Some(user)), _) => Ok((user.uid, Some(user.gid))),
        (Ok(None), Some(uid)) => Ok((uid, None)),
        (Ok(None), None) => Err(IdentityError::Unknown { kind: "user", name: name.to_owned() }),
        (Err(errno), _) => {
            Err(IdentityError::LookUp { kind: "user", name: name.to_owned(), source: errno.into() })
        }
    }
}

fn group_of(name: &str) -> Result<Gid, IdentityError> {
    if let Ok(number) = name.parse() {
        return Ok(Gid::from_raw(number));
    }
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid),
        Ok(None) => Err(IdentityError::Unknown { kind: "group", name: name.to_owned() }),
        Err(errno) => {
            Err(IdentityError::LookUp { kind: "group", name: name.to_owned(), source: errno.into() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_have_names_or_numbers() {
        let root = Identity { uid: Uid::from_raw(0), gid: Gid::from_raw(0) };
        assert_eq!(Identity::look_up(Some("root"), None).unwrap(), root);
        assert_eq!(Identity::look_up(Some("0"), Some("0")).unwrap(), root);
        let other = Identity::look_up(Some("4000000000"), Some("7")).unwrap();
        assert_eq!((other.uid(), other.gid()), (4_000_000_000, 7));
        let own = Identity { uid: Uid::effective(), gid: Gid::from_raw(7) };
        assert_eq!(Identity::look_up(None, Some("7")).unwrap(), own);
    }

    #[test]
    fn whoever_is_not_there_is_named() {
        let error = |user, group| Identity::look_up(user, group).unwrap_err().to_string();
        assert_eq!(error(Some("nobody at all"), None), "there is no user nobody at all");
        assert_eq!(error(None, Some("no group")), "there is no group no group");
        assert!(error(Some("4000000000"), None).contains("--group"));
    }
}
