//! The way to a secret of libvirt, for `sealblk key doctor`.

use super::description::Description;
use super::library::{LIBRARY, VirError, load_library};
use super::{
    ACCESS_DENIED, AUTH_CANCELLED, AUTH_FAILED, AUTH_UNAVAILABLE, LibvirtManager, OPERATION_DENIED, Stop,
    find,
};
use crate::keys::doctor::{Link, Walk};
use crate::keys::{KeyError, KeyId, KeyManager, Secret};

impl LibvirtManager {
    /// Fetches a secret, step by step, each over a connection of its own.
    pub(super) fn walk(&self, id: &KeyId, walk: &mut Walk<'_>) -> Result<Secret, KeyError> {
        walk.link(Link::Library, || {
            load_library().map_err(|error| self.failed(error.into(), None))?;
            Ok(((), format!("{LIBRARY} is there")))
        })?;
        self.reach(walk)?;
        walk.link(Link::KeyState, || {
            let wanted = id.clone();
            let (uuid, description) = self.with(Some(id), move |connection| {
                let secret = find(connection, &wanted)?;
                Ok((secret.uuid()?, Description::read(&secret.description()?)))
            })?;
            let volume = description.volume.map(|volume| format!(", for volume {volume}"));
            Ok(((), format!("secret {uuid} is defined{}", volume.unwrap_or_default())))
        })?;
        let given = walk.link(Link::Permission, || {
            Ok((self.fetch(id)?, "it has a value, and libvirt gives it out".to_owned()))
        });
        if matches!(given, Err(KeyError::NotFound { .. })) {
            walk.blame(Link::KeyState);
        }
        given
    }

    fn reach(&self, walk: &mut Walk<'_>) -> Result<(), KeyError> {
        let mut lets_us_in = true;
        let reached = walk.link(Link::Connection, || {
            // What can be connected to may be something without secrets.
            let count = self.attempt(|connection| Ok(connection.list()?.len())).map_err(|stop| {
                const DENIALS: [i32; 5] =
                    [AUTH_FAILED, AUTH_CANCELLED, AUTH_UNAVAILABLE, OPERATION_DENIED, ACCESS_DENIED];
                lets_us_in =
                    !matches!(&stop, Stop::Vir(VirError::Said { code, .. }) if DENIALS.contains(code));
                self.failed(stop, None)
            })?;
            Ok(((), format!("the daemon at {} answers, and shows {count} secrets", self.profile.uri)))
        });
        if !lets_us_in {
            walk.blame(Link::Authentication);
        }
        reached
    }
}
