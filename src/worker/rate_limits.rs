//! How much the guest may ask of its disk: so many requests and so many bytes a second, over all queues together.
//!
//! Two buckets, one that counts requests and one that counts bytes. Each is a single number, the moment until which
//! everything taken so far keeps the disk busy at its rate (the generic cell rate algorithm of ITU-T I.371). Requests
//! are taken while that moment is no further ahead than the burst lasts; what they cost is added afterwards, whatever
//! it is. So a request larger than the burst is not stuck, but has those behind it wait, and over time the rate is exact.
//!
//! Only taking from the ring is held up. What was taken goes on at once, so that a drain or a migration waits for
//! nothing but storage.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::virtio::request::RequestKind;

/// The burst if nobody says otherwise, as in QEMU's throttling: what comes in a tenth of a second.
const DEFAULT_BURSTS_PER_SECOND: u64 = 10;
/// How soon to look again at the latest, for limits may be raised meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// A rate, and how far it may be exceeded for a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Requests or bytes a second.
    pub per_second: NonZeroU64,
    /// Requests or bytes that may come at once after a pause; `None` for a tenth of a second's worth.
    #[serde(default)]
    pub burst: Option<NonZeroU64>,
}

/// The limits of one disk; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Requests of every kind but for the serial number.
    #[serde(default)]
    pub requests: Option<Rate>,
    /// Bytes read, written and zeroed.
    #[serde(default)]
    pub bytes: Option<Rate>,
}

/// What the queues of one disk share.
#[derive(Debug)]
pub struct RateLimits {
    /// Times below are nanoseconds since then.
    origin: Instant,
    requests: Bucket,
    bytes: Bucket,
}

impl RateLimits {
    /// Limits that begin with a whole burst to spend.
    pub fn new(limits: Limits) -> Self {
        let bucket = |rate: Option<Rate>| {
            let bucket = Bucket::default();
            bucket.set(rate);
            bucket
        };
        Self { origin: Instant::now(), requests: bucket(limits.requests), bytes: bucket(limits.bytes) }
    }

    /// Replaces the limits. What was taken before counts as it did then.
    pub fn set(&self, limits: Limits) {
        self.requests.set(limits.requests);
        self.bytes.set(limits.bytes);
    }

    /// The limits as they are.
    pub fn limits(&self) -> Limits {
        Limits { requests: self.requests.rate(), bytes: self.bytes.rate() }
    }

    /// The time for [`refuses_until`](Self::refuses_until) and [`charge`](Self::charge); `None` without any limit.
    pub(super) fn now(&self) -> Option<u64> {
        let limited = self.requests.is_limited() || self.bytes.is_limited();
        limited.then(|| self.origin.elapsed().as_nanos() as u64)
    }

    /// When to ask again, unless a request may be taken now.
    pub(super) fn refuses_until(&self, now_nanos: u64) -> Option<Instant> {
        let wait_nanos = self.requests.wait_nanos(now_nanos).max(self.bytes.wait_nanos(now_nanos));
        let wait = Duration::from_nanos(wait_nanos).min(LOOK_AGAIN);
        (wait_nanos > 0).then(|| self.origin + Duration::from_nanos(now_nanos) + wait)
    }

    /// Counts a request that was taken: what it asks for, or `None` if it was refused.
    pub(super) fn charge(&self, now_nanos: u64, kind: Option<&RequestKind>) {
        let bytes = match kind {
            Some(RequestKind::GetId) => return,
            Some(RequestKind::Read(range) | RequestKind::Write(range)) => range.len_bytes,
            // Zeroes are encrypted and written as all else is.
            Some(RequestKind::WriteZeroes(ranges)) => {
                ranges.as_slice().iter().map(|range| range.len_bytes).sum()
            }
            Some(RequestKind::Flush | RequestKind::Discard(_)) | None => 0,
        };
        self.requests.charge(now_nanos, 1);
        self.bytes.charge(now_nanos, bytes);
    }
}

/// One limit. All of it is advice about when to go on: nothing is lost if two queues see it half changed.
#[derive(Debug, Default)]
struct Bucket {
    /// 0 for no limit.
    per_second: AtomicU64,
    burst: AtomicU64,
    /// Until when everything taken keeps the disk busy at this rate.
    busy_until_nanos: AtomicU64,
}

impl Bucket {
    fn set(&self, rate: Option<Rate>) {
        let (per_second, burst) = match rate {
            None => (0, 0),
            Some(Rate { per_second, burst }) => {
                let usual = (per_second.get() / DEFAULT_BURSTS_PER_SECOND).max(1);
                (per_second.get(), burst.map_or(usual, NonZeroU64::get))
            }
        };
        self.burst.store(burst, Relaxed);
        self.per_second.store(per_second, Relaxed);
    }

    fn rate(&self) -> Option<Rate> {
        let per_second = NonZeroU64::new(self.per_second.load(Relaxed))?;
        Some(Rate { per_second, burst: NonZeroU64::new(self.burst.load(Relaxed)) })
    }

    fn is_limited(&self) -> bool {
        self.per_second.load(Relaxed) > 0
    }

    /// How long `count` takes at this rate.
    fn nanos(&self, count: u64) -> u64 {
        let per_second = self.per_second.load(Relaxed).max(1);
        let nanos = u128::from(count) * u128::from(NANOS_PER_SECOND) / u128::from(per_second);
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }

    fn wait_nanos(&self, now_nanos: u64) -> u64 {
        if !self.is_limited() {
            return 0;
        }
        let ahead_nanos = self.busy_until_nanos.load(Relaxed).saturating_sub(now_nanos);
        // The one that is taken now is of the burst itself: without any there is still one at a time.
        ahead_nanos.saturating_sub(self.nanos(self.burst.load(Relaxed).saturating_sub(1)))
    }

    fn charge(&self, now_nanos: u64, count: u64) {
        if self.is_limited() && count > 0 {
            let cost_nanos = self.nanos(count);
            let _ = self.busy_until_nanos.fetch_update(Relaxed, Relaxed, |until| {
                Some(until.max(now_nanos).saturating_add(cost_nanos))
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::request::SectorRange;

    const SECOND: u64 = NANOS_PER_SECOND;

    fn rate(per_second: u64, burst: Option<u64>) -> Rate {
        let nonzero = |count| NonZeroU64::new(count).unwrap();
        Rate { per_second: nonzero(per_second), burst: burst.map(nonzero) }
    }

    fn limits(requests: Option<(u64, u64)>, bytes: Option<(u64, u64)>) -> RateLimits {
        let rate = |(per_second, burst)| rate(per_second, Some(burst));
        RateLimits::new(Limits { requests: requests.map(rate), bytes: bytes.map(rate) })
    }

    fn read(len_bytes: u64) -> RequestKind {
        RequestKind::Read(SectorRange { offset_bytes: 0, len_bytes })
    }

    /// How many reads of that size are taken from `from` to `to`, by a guest that always has one more.
    fn taken(limits: &RateLimits, from: u64, to: u64, len_bytes: u64) -> u64 {
        let (mut now, mut count) = (from, 0);
        while now < to {
            match limits.refuses_until(now) {
                Some(until) => now = (until - limits.origin).as_nanos() as u64,
                None => {
                    limits.charge(now, Some(&read(len_bytes)));
                    count += 1;
                }
            }
        }
        count
    }

    #[test]
    fn a_burst_and_then_the_rate() {
        let limits = limits(Some((1000, 50)), None);
        assert_eq!(taken(&limits, 0, SECOND, 512), 1049);
        assert_eq!(taken(&limits, SECOND, 3 * SECOND, 512), 2000, "the burst is spent");
        assert_eq!(
            taken(&limits, 13 * SECOND, 14 * SECOND, 512),
            1049,
            "a pause earns one burst, not ten seconds'"
        );
    }

    #[test]
    fn bytes_are_limited_beside_requests_and_the_tighter_limit_counts() {
        let limits = limits(Some((1000, 1)), Some((1 << 20, 4096)));
        assert_eq!(taken(&limits, 0, 4 * SECOND, 4096), 4 * 256 + 1, "bytes");
        assert_eq!(taken(&limits, 10 * SECOND, 14 * SECOND, 512), 4 * 1000, "requests");
    }

    #[test]
    fn a_request_larger_than_the_burst_is_taken_and_paid_for() {
        let limits = limits(None, Some((1 << 20, 4096)));
        assert_eq!(
            taken(&limits, 0, 8 * SECOND, 2 << 20),
            5,
            "the last one begins as its forerunner's time is up"
        );
    }

    #[test]
    fn no_limit_takes_everything_and_a_new_limit_counts_at_once() {
        let limits = limits(None, None);
        assert_eq!(limits.now(), None);
        assert_eq!(limits.refuses_until(7), None);
        limits.set(Limits { requests: Some(rate(10, None)), bytes: None });
        assert_eq!(limits.limits().requests, Some(rate(10, Some(1))));
        let now = limits.now().unwrap();
        limits.charge(now, None);
        let until = limits.refuses_until(now).unwrap();
        assert_eq!(until - limits.origin, Duration::from_nanos(now + SECOND / 10), "refused requests count");
        limits.charge(now, Some(&RequestKind::GetId));
        assert_eq!(limits.refuses_until(now), Some(until), "the serial number is free");
    }

    #[test]
    fn the_highest_rates_and_sizes_do_not_overflow() {
        let limits = limits(Some((u64::MAX, u64::MAX)), Some((1, 1)));
        limits.charge(0, Some(&read(u64::MAX)));
        limits.charge(u64::MAX, Some(&read(u64::MAX)));
        assert!(limits.refuses_until(0).is_some());
    }

    #[test]
    fn whoever_waits_looks_again_soon() {
        let limits = limits(Some((1, 1)), None);
        limits.charge(0, None);
        assert_eq!(limits.refuses_until(0).unwrap() - limits.origin, LOOK_AGAIN);
    }
}
