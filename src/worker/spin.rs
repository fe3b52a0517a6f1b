//! How long to look again before sleeping.

use std::time::{Duration, Instant};

/// The longest time to look again: about what sleeping and being woken costs.
const MAX_SPIN: Duration = Duration::from_micros(50);

/// Looks again for about as long as work has lately taken to turn up, and not at all when that is longer than
/// sleeping would cost.
#[derive(Debug, Default)]
pub(super) struct Spin {
    idle_since: Option<Instant>,
    /// Moving average of the time from running out of work to finding some.
    average_gap: Duration,
}

impl Spin {
    /// Whether to look again instead of sleeping.
    pub(super) fn goes_on(&mut self) -> bool {
        let idle_since = *self.idle_since.get_or_insert_with(Instant::now);
        let limit =
            if self.average_gap < MAX_SPIN { (self.average_gap * 2).min(MAX_SPIN) } else { return false };
        idle_since.elapsed() < limit
    }

    /// There was work.
    pub(super) fn found_work(&mut self) {
        if let Some(idle_since) = self.idle_since.take() {
            let gap = idle_since.elapsed().min(4 * MAX_SPIN);
            self.average_gap = (self.average_gap * 7 + gap) / 8;
        }
    }
}
