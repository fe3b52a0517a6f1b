//! Requests that storage has failed and the guest is not told of: they are held until the operator has them tried
//! again (`--on-error stop`). Meanwhile the queue takes no others.
//!
//! Held are only requests that a repetition can put right. A flush, or a write through the page cache that was to be
//! durable, or one that was done and could not be made durable, is not among them: its failure may be the one word of the
//! loss of something acknowledged long ago, which nobody can write again ([`Volume::judge_failure`](super::Volume)).
//!
//! A repetition is right for the same reason as after a crash: the request was not answered, so nothing that the driver
//! has sent since depends on its being done.

use super::Worker;
use super::monitor::QueueState;
use super::tables::RequestId;
use crate::io::Engine;

/// The held requests of a queue.
#[derive(Debug, Default)]
pub(super) struct Held {
    requests: Vec<RequestId>,
    /// The queue stops: what fails is answered.
    given_up: bool,
}

impl Held {
    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Whether requests are held that fail now.
    pub(super) fn keeps(&self) -> bool {
        !self.given_up
    }
}

impl<E: Engine> Worker<E> {
    /// Keeps a request that has failed.
    #[cold]
    pub(super) fn hold(&mut self, id: RequestId) {
        if self.held.is_empty() {
            // An order from before is not about this one.
            self.monitor.clear_retry();
            self.monitor.set_state(QueueState::Held);
            if let Some(queue) = &self.queue {
                queue.report_held();
            }
        }
        self.held.requests.push(id);
        self.monitor.set_held(self.held.requests.len());
    }

    /// Begins the held requests again when the operator has said so. Returns whether there were any.
    pub(super) fn retry_if_told(&mut self) -> bool {
        if self.held.is_empty() || !self.monitor.take_retry() {
            return false;
        }
        for id in self.held.requests.drain(..) {
            self.requests.get(id).begin_again();
            self.backlog.push_back(id);
        }
        self.monitor.set_held(0);
        if let Some(queue) = &self.queue {
            queue.show_state();
        }
        true
    }

    /// Answers the held requests, and from here on those that fail.
    pub(super) fn give_up_held(&mut self) {
        self.held.given_up = true;
        for id in std::mem::take(&mut self.held.requests) {
            if self.requests.get(id).request.kind.writes() && !self.disk.volume.is_writeback() {
                // Now that it is not repeated it counts as any write that was to be durable.
                self.disk.volume.latch_sync_failure();
            }
            self.answer(id);
        }
        self.monitor.set_held(0);
    }

    /// Whether a queue that takes nothing has something left to do.
    pub(super) fn is_busy(&self) -> bool {
        match self.held.is_empty() {
            true => self.requests.count() > 0 || self.repeats.going_on,
            // What waits for the held to end waits with them.
            false => self.requests.count() > self.held.requests.len() + self.repeats.held_flushes.len(),
        }
    }

    /// Lets go of the held requests, and what waits for them, unanswered: the in-flight region still has them.
    pub(super) fn forget_held(&mut self) {
        self.held.given_up = false;
        if self.held.is_empty() {
            return;
        }
        for id in self.held.requests.drain(..).chain(self.repeats.held_flushes.drain(..)) {
            self.requests.remove(id).request.head.leave();
        }
        self.repeats.going_on = false;
        self.monitor.set_held(0);
    }
}
