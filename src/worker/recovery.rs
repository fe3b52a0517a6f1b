//! The first turns of a queue that takes over from a predecessor which died with requests under way.
//!
//! They are repeated before anything new is taken, so that no new request runs beside an old one, and flushes come
//! last of them. Only then does the queue serve. Repeating is right since none of them was answered: whatever the
//! driver has sent that must come after one of them, it has not sent yet.

use super::tables::RequestId;
use super::{Queue, Worker};
use crate::io::Engine;

/// What a queue has left to repeat.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    /// Whether the queue still repeats.
    pub(super) going_on: bool,
    /// Flushes that wait for the others to end.
    pub(super) held_flushes: Vec<RequestId>,
}

impl<E: Engine> Worker<E> {
    /// Goes on with the repeats: lets the flushes go when nothing else of them is under way, and ends when nothing
    /// is left. Returns whether it did either.
    pub(super) fn advance_repeats(&mut self) -> bool {
        if !self.repeats.going_on {
            return false;
        }
        let others = self.requests.count() - self.repeats.held_flushes.len();
        let more = self.queue.as_ref().is_some_and(Queue::has_repeats);
        // With a table full of flushes no more can be taken: they cannot wait for those that come.
        if others > 0 || (more && !self.requests.is_full()) {
            return false;
        }
        self.repeats.going_on = more || !self.repeats.held_flushes.is_empty();
        self.backlog.extend(self.repeats.held_flushes.drain(..));
        true
    }
}
