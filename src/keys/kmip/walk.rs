//! The way to a key on a KMIP server, for `sealblk key doctor`.

use super::session::{Session, Stop};
use super::{KmipManager, operations};
use crate::keys::doctor::{Link, Walk};
use crate::keys::remote::{Deadline, Endpoint, Failure, TlsClient};
use crate::keys::{KeyError, KeyId, KeyState, Secret};

impl KmipManager {
    /// Fetches a key, step by step.
    pub(super) fn walk(&self, id: &KeyId, walk: &mut Walk<'_>) -> Result<Secret, KeyError> {
        let client = walk.link(Link::Credentials, || {
            Ok((self.profile.tls.client(&self.name)?, self.profile.tls.described()))
        })?;
        let mut session = self.reach_any(&client, walk)?;
        let state = walk.link(Link::KeyState, || {
            let metadata = operations::usable(&mut session, id).map_err(|stop| self.stopped(stop, id))?;
            let bits = if metadata.bits == 0 { String::new() } else { format!(", {} bits", metadata.bits) };
            Ok((metadata.state, format!("version {} is {}{bits}", metadata.version, metadata.state)))
        })?;
        let given = walk.link(Link::Permission, || {
            let secret = operations::fetch(&mut session, id).map_err(|stop| self.stopped(stop, id))?;
            Ok((secret, "the server gives it out".to_owned()))
        });
        if matches!(given, Err(KeyError::NotAllowed { .. })) && state != KeyState::Active {
            walk.blame(Link::KeyState);
        }
        given
    }

    /// A session with the first server that can be had, which is the one that fetching asks.
    fn reach_any(&self, client: &TlsClient, walk: &mut Walk<'_>) -> Result<Session, KeyError> {
        let (last, others) = self.profile.servers.0.split_last().expect("a profile has a server");
        for server in others {
            match self.reach(server, client, walk) {
                Err(error @ KeyError::Unreachable { .. }) => walk.pass_over(&error),
                result => return result,
            }
        }
        self.reach(last, client, walk)
    }

    fn reach(&self, server: &Endpoint, client: &TlsClient, walk: &mut Walk<'_>) -> Result<Session, KeyError> {
        let deadline = Deadline::after(self.profile.timeout_seconds.0);
        let connection = server
            .walk(Some(client), deadline, &self.name, walk)?
            .expect("a client of TLS gets a connection of TLS");
        let mut is_of_tls = false;
        let session = walk.link(Link::Authentication, || {
            let mut session =
                Session::over(connection, server).map_err(|stop| self.failed(stop, None, Vec::new()))?;
            let versions = session.versions().map_err(|stop| {
                is_of_tls = matches!(stop, Stop::Failed(Failure::Refused { .. }));
                self.failed(stop, None, Vec::new())
            })?;
            let spoken = match versions.as_slice() {
                [] => String::new(),
                versions => format!(", and speaks KMIP {}", versions.join(", ")),
            };
            Ok((session, format!("the server lets us in{spoken}")))
        });
        if is_of_tls {
            // With TLS 1.3 the server says what it thinks of our certificate after the handshake.
            walk.blame(Link::Tls);
        }
        session
    }

    fn stopped(&self, stop: Stop, id: &KeyId) -> KeyError {
        self.failed(stop, Some(id), Vec::new())
    }
}
