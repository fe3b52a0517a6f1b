//! What the front end is told of a message that is not followed, and whether it may go on.

use std::io;

use vhost::vhost_user::Error as VhostUserError;

use super::rings::StartError;
use crate::worker::WorkerGone;

/// What becomes of a message.
pub(super) type Answer<T> = Result<T, VhostUserError>;

/// A message that cannot be followed. The front end learns that it failed and may go on.
pub(super) fn refuse(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> VhostUserError {
    VhostUserError::ReqHandlerError(io::Error::other(error))
}

/// A message that we have not offered to understand. It ends the connection.
pub(super) fn not_offered(what: &'static str) -> VhostUserError {
    VhostUserError::InvalidOperation(what)
}

impl From<WorkerGone> for VhostUserError {
    /// Nothing can be served any more: the connection ends, and the process with it.
    fn from(_: WorkerGone) -> Self {
        Self::BackendInternalError
    }
}

impl From<StartError> for VhostUserError {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Gone(gone) => gone.into(),
            // Most front ends start rings without asking whether they did. Without a connection they notice, and those
            // that come back try again.
            StartError::Volume(_) => Self::BackendInternalError,
            StartError::Queue(_)
            | StartError::Ring(_)
            | StartError::Descriptor(_)
            | StartError::Untracked(_) => refuse(error),
        }
    }
}
