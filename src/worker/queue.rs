//! A running queue: the ring, and the two ways to wake each other.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::monitor::{Monitor, QueueComplaints, QueueState};
use crate::guest::{DirtyLog, GuestBuffer, GuestMemory, LocalMemory};
use crate::virtio::request::{RequestKind, SectorRange, StatusAddress};
use crate::virtio::{Chain, Head, Recovery, RingError, RingSetup, RingState, Tracking, Virtq};

/// Everything that a queue needs to start.
#[derive(Debug)]
pub struct QueueSetup {
    /// The number of the queue, for messages.
    pub index: u16,
    /// The ring.
    pub ring: RingSetup,
    /// The memory that the ring and its requests lie in.
    pub memory: Arc<GuestMemory>,
    /// Signalled by the guest when there are new requests.
    pub kick: OwnedFd,
    /// Signalled by us when there are answers. Without it the guest polls.
    pub call: Option<OwnedFd>,
    /// Signalled by us when the ring is broken.
    pub error: Option<OwnedFd>,
    /// Whether requests are taken yet.
    pub enabled: bool,
    /// Where to note which requests are under way, if the front end keeps that.
    pub tracking: Option<Tracking>,
    /// Where to note which pages of the memory are written, while it is being migrated.
    pub log: Option<Arc<DirtyLog>>,
}

/// Why a queue cannot start.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// Its ring is impossible.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// Its kick descriptor cannot be waited on.
    #[error("cannot wait for the kick descriptor")]
    Kick(#[source] io::Error),
}

/// A running queue.
#[derive(Debug)]
pub struct Queue {
    index: u16,
    ring: Virtq,
    call: Option<OwnedFd>,
    error: Option<OwnedFd>,
    enabled: bool,
    /// Set for good once the driver has shown an impossible index.
    broken: bool,
    /// Its requests are noted in an in-flight region.
    tracked: bool,
    monitor: Arc<Monitor>,
}

impl Queue {
    /// Resolves the ring. Returns the kick descriptor for the engine to watch.
    pub(super) fn start(setup: QueueSetup, monitor: &Arc<Monitor>) -> Result<(Self, OwnedFd), RingError> {
        let mut ring = Virtq::new(&setup.ring, LocalMemory::new(setup.memory))?;
        ring.disable_notification();
        ring.set_log(setup.log);
        let tracked = setup.tracking.is_some();
        if let Some(tracking) = setup.tracking {
            report_recovery(setup.index, ring.track(tracking)?, monitor.complaints());
        }
        let queue = Self {
            index: setup.index,
            ring,
            call: setup.call,
            error: setup.error,
            enabled: setup.enabled,
            broken: false,
            tracked,
            monitor: Arc::clone(monitor),
        };
        queue.show_state();
        // The ring may hold answers that the guest was not told of: a predecessor may have died in between, or
        // there was no descriptor to tell it by. One notification too many does no harm.
        queue.notify();
        Ok((queue, setup.kick))
    }

    pub(super) fn into_state(self) -> RingState {
        self.ring.state()
    }

    pub(super) fn memory(&self) -> &LocalMemory {
        self.ring.memory()
    }

    pub(super) fn set_memory(&mut self, memory: Arc<GuestMemory>) -> Result<(), RingError> {
        self.ring.set_memory(LocalMemory::new(memory))
    }

    /// Replaces the descriptor that tells the guest of answers, and tells it of those it may not know of.
    pub fn set_call(&mut self, call: Option<OwnedFd>) {
        self.call = call;
        self.notify();
    }

    /// Replaces the log of what is written to the guest's memory. What was written before is not in it.
    pub fn set_log(&mut self, log: Option<Arc<DirtyLog>>) {
        self.ring.set_log(log);
    }

    /// Notes what a request has written to the guest's memory, before its answer can be seen.
    pub(super) fn log_written(&self, status: StatusAddress, data: Option<&GuestBuffer>) {
        let Some(log) = self.ring.log() else { return };
        status.mark_written(log);
        if let Some(data) = data {
            data.mark_written(log);
        }
    }

    fn notify(&self) {
        if let Some(call) = &self.call {
            signal(call);
        }
    }

    /// Sets whether new requests are taken.
    pub fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
        self.show_state();
    }

    /// Whether a successor would find its requests.
    pub(super) fn is_tracked(&self) -> bool {
        self.tracked
    }

    pub(super) fn show_state(&self) {
        self.monitor.set_state(match (self.broken, self.enabled) {
            (true, _) => QueueState::Broken,
            (false, true) => QueueState::Running,
            (false, false) => QueueState::Disabled,
        });
    }

    /// The next of the requests that a predecessor took and did not answer. Also from a disabled queue: it was not
    /// when they were taken.
    pub(super) fn pop_repeat(&mut self, chain: &mut Chain) -> Option<Head> {
        self.ring.pop_repeat(chain)
    }

    /// Whether there are more of those.
    pub(super) fn has_repeats(&self) -> bool {
        self.ring.has_repeats()
    }

    /// The next request, unless the queue is disabled or broken.
    pub(super) fn pop(&mut self, chain: &mut Chain) -> Option<Head> {
        if !self.enabled || self.broken {
            return None;
        }
        match self.ring.pop(chain) {
            Ok(head) => head,
            Err(error) => {
                self.break_down(&error);
                None
            }
        }
    }

    pub(super) fn complete(&mut self, head: Head, written_bytes: u32) {
        self.ring.complete(head, written_bytes);
    }

    /// Publishes what was completed and notifies the guest, if it wants that. Returns whether there was any.
    pub(super) fn publish(&mut self) -> bool {
        if !self.ring.has_unpublished() {
            return false;
        }
        if self.ring.publish() {
            self.notify();
        }
        true
    }

    /// Asks for a kick with the next request. Returns whether there are requests to take already.
    pub(super) fn enable_notification(&mut self) -> bool {
        if !self.enabled || self.broken {
            return false;
        }
        match self.ring.enable_notification() {
            Ok(more) => more,
            Err(error) => {
                self.break_down(&error);
                false
            }
        }
    }

    pub(super) fn disable_notification(&mut self) {
        self.ring.disable_notification();
    }

    /// Stops taking requests until the queue is started anew. Only this queue: the others are not to blame.
    fn break_down(&mut self, error: &RingError) {
        self.broken = true;
        self.show_state();
        if let Some(not_shown_before) = self.monitor.complaints().broken_rings.admit() {
            let queue = self.index;
            tracing::warn!(queue, not_shown_before, %error, "the driver broke its ring; queue stopped until it is reset");
        }
        if let Some(error_fd) = &self.error {
            signal(error_fd);
        }
    }

    /// Tells the operator that the queue waits for him.
    pub(super) fn report_held(&self) {
        tracing::error!(
            queue = self.index,
            "storage failed a request, which is held; the queue takes no more until `sealblk control` says retry"
        );
    }

    /// Tells the operator about storage that fails, now and then.
    pub(super) fn report_io_error(&mut self, kind: &RequestKind, range: SectorRange, error: &io::Error) {
        let what = match kind {
            RequestKind::Read(_) => "read",
            RequestKind::Write(_) => "write",
            RequestKind::Flush => "flush",
            RequestKind::Discard(_) => "discard",
            RequestKind::WriteZeroes(_) => "write-zeroes",
            RequestKind::GetId => "get-id",
        };
        let SectorRange { offset_bytes, len_bytes } = range;
        self.monitor.set_last_error(format!("{what} of {len_bytes} bytes at byte {offset_bytes}: {error}"));
        let Some(not_shown_before) = self.monitor.complaints().io_errors.admit() else { return };
        tracing::warn!(
            queue = self.index,
            offset_bytes = range.offset_bytes,
            len_bytes = range.len_bytes,
            not_shown_before,
            %error,
            "{what} failed on the backing volume"
        );
    }
}

fn report_recovery(queue: u16, recovery: Recovery, complaints: &QueueComplaints) {
    let Recovery { repeats, foreign } = recovery;
    if repeats > 0
        && let Some(not_shown_before) = complaints.recoveries.admit()
    {
        tracing::info!(
            queue,
            repeats,
            not_shown_before,
            "repeating requests that were under way when the last process ended"
        );
    }
    if foreign && let Some(not_shown_before) = complaints.foreign_regions.admit() {
        tracing::warn!(
            queue,
            not_shown_before,
            "the in-flight region is not about this ring as it is now; going on as the used ring tells"
        );
    }
}

/// Adds one to an eventfd. One that is full has been signalled already.
fn signal(eventfd: &OwnedFd) {
    let _ = rustix::io::write(eventfd, &1u64.to_ne_bytes());
}
