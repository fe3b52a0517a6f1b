//! The way to a key in Barbican, for `sealblk key doctor`.

use super::Barbican;
use super::session::Session;
use crate::keys::doctor::{Link, Walk};
use crate::keys::http::ServiceUrl;
use crate::keys::{KeyError, KeyId, Secret};

impl Barbican {
    /// Fetches a key, step by step.
    pub(super) fn walk(&self, id: &KeyId, walk: &mut Walk<'_>) -> Result<Secret, KeyError> {
        walk.link(Link::Reference, || Ok((self.uuid(id)?, "it is a UUID".to_owned())))?;
        let session = walk.link(Link::Credentials, || {
            let session = self.new_session()?;
            let found = format!("{}, for Keystone at {}", session.credentials(), session.keystone());
            Ok((session, found))
        })?;
        self.reach(&session, session.keystone(), walk)?;
        let barbican = walk.link(Link::Authentication, || {
            let barbican = session.log_in()?;
            let found = format!("Keystone gives a token; Barbican is at {barbican}");
            Ok((barbican, found))
        })?;
        self.reach(&session, &barbican, walk)?;
        let record = walk.link(Link::KeyState, || {
            let record = self.record(&session, id)?;
            let found = match record.metadata() {
                Some(key) => format!("{}, of type {}", key.state, record.type_name()),
                None => format!("of type {}", record.type_name()),
            };
            Ok((record, found))
        })?;
        walk.link(Link::Permission, || {
            Ok((self.payload(&session, id, &record)?, "Barbican gives its payload".to_owned()))
        })
    }

    fn reach(&self, session: &Session, url: &ServiceUrl, walk: &mut Walk<'_>) -> Result<(), KeyError> {
        url.walk(session.tls(), self.setup.time_limit(), &self.name, walk)
    }
}
