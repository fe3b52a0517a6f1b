//! Lines of the log that a VMM can have written as often as it likes, by what it says or by connecting again and again: of
//! each kind one now and then, with the number of those that were left out.

use std::fmt::Display;

use super::tenure::TenureError;
use crate::throttle::SharedThrottle;

/// The disk's, whichever VMM is connected.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    connections: SharedThrottle,
    disconnections: SharedThrottle,
    refusals: SharedThrottle,
    endings: SharedThrottle,
    files: SharedThrottle,
    durability: SharedThrottle,
    taken: SharedThrottle,
    let_go: SharedThrottle,
    stuck: SharedThrottle,
    unmeasured: SharedThrottle,
}

impl Complaints {
    pub(super) fn connected(&self) {
        if let Some(not_shown_before) = self.connections.admit() {
            tracing::info!(not_shown_before, "VMM connected");
        }
    }

    pub(super) fn disconnected(&self) {
        if let Some(not_shown_before) = self.disconnections.admit() {
            tracing::info!(not_shown_before, "VMM disconnected");
        }
    }

    /// A message was not followed.
    pub(super) fn refused(&self, request: &str, error: &dyn Display) {
        if let Some(not_shown_before) = self.refusals.admit() {
            tracing::warn!(request, not_shown_before, %error, "refused a message of the VMM");
        }
    }

    /// A connection ended otherwise than by the VMM's hanging up.
    pub(super) fn ended(&self, error: &dyn Display) {
        if let Some(not_shown_before) = self.endings.admit() {
            tracing::warn!(not_shown_before, %error, "connection to the VMM ended");
        }
    }

    /// What the VMM would share beside memory is no good.
    pub(super) fn unfit_file(&self, file: &str, error: &(dyn std::error::Error + 'static)) {
        if let Some(not_shown_before) = self.files.admit() {
            tracing::warn!(not_shown_before, error, "cannot use the {file} that the VMM wants");
        }
    }

    /// Storage has failed what came before this VMM.
    pub(super) fn undurable(&self, error: &dyn Display) {
        if let Some(not_shown_before) = self.durability.admit() {
            tracing::warn!(
                not_shown_before,
                %error,
                "what was written before this VMM connected may not be durable"
            );
        }
    }

    /// The volume cannot be had, or not be let go of.
    pub(super) fn stuck(&self, error: &TenureError, what: &str) {
        // When the queues' threads are gone, so is the process.
        if matches!(error, TenureError::Gone(_)) {
            return;
        }
        if let Some(not_shown_before) = self.stuck.admit() {
            tracing::error!(not_shown_before, error = error as &dyn std::error::Error, "{what}");
        }
    }

    /// The volume was taken, and whether it has grown cannot be told.
    pub(super) fn unmeasured(&self, error: &dyn Display) {
        if let Some(not_shown_before) = self.unmeasured.admit() {
            tracing::warn!(not_shown_before, %error, "the disk keeps its size");
        }
    }

    pub(super) fn taken(&self, volume: &std::path::Path) {
        if let Some(not_shown_before) = self.taken.admit() {
            tracing::info!(not_shown_before, volume = %volume.display(), "the volume is ours: the guest goes on here");
        }
    }

    pub(super) fn let_go(&self, volume: &std::path::Path) {
        if let Some(not_shown_before) = self.let_go.admit() {
            tracing::info!(
                not_shown_before,
                volume = %volume.display(),
                "let go of the volume: the guest may go on elsewhere"
            );
        }
    }
}
