//! What others may see of a worker while it runs.
//!
//! The worker alone writes here, with plain stores: no lock, no atomic read-modify-write, and no cache line that
//! workers share. Whoever looks sees numbers that are each true, of moments close together.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::throttle::SharedThrottle;
use crate::virtio::request::{RequestKind, SectorRange};
use crate::virtio::wire::Status;

/// What a queue is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum QueueState {
    /// There is no ring.
    #[default]
    Stopped,
    /// It takes requests.
    Running,
    /// The front end does not let it take requests.
    Disabled,
    /// The driver showed an impossible index: it takes none until it is started anew.
    Broken,
    /// Storage has failed some, which are held to be tried again: it takes none meanwhile.
    Held,
}

impl QueueState {
    const ALL: [Self; 5] = [Self::Stopped, Self::Running, Self::Disabled, Self::Broken, Self::Held];
}

/// Requests of one kind that were answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Answered, well or not.
    pub requests: u64,
    /// Bytes of the disk that those were about which went well; 0 for flushes and serial numbers.
    pub bytes: u64,
    /// Answered with an error.
    pub errors: u64,
}

/// One queue as it was a moment ago.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueView {
    /// What it is doing.
    pub state: QueueState,
    /// Requests taken and not answered.
    pub in_flight: u32,
    /// Of those, requests that storage has failed and that are held to be tried again.
    pub held: u32,
    /// What storage has failed last, and how.
    pub last_error: Option<String>,
    /// Requests for sectors to be read.
    pub read: Tally,
    /// Requests for sectors to be written.
    pub write: Tally,
    /// Requests to make writes durable.
    pub flush: Tally,
    /// Requests to forget sectors.
    pub discard: Tally,
    /// Requests for zeroes.
    pub write_zeroes: Tally,
    /// Requests for the serial number.
    pub get_id: Tally,
    /// Requests that were not valid, answered without touching the disk.
    pub refused: u64,
}

/// A worker's figures, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Monitor {
    state: AtomicU8,
    in_flight: AtomicU32,
    held: AtomicU32,
    /// Whether held requests are to be tried again. The one thing that others say here.
    retry: AtomicBool,
    last_error: Mutex<Option<String>>,
    complaints: QueueComplaints,
    refused: Counter,
    kinds: [Counters; KINDS],
}

/// Lines of the log that a driver or its VMM can have written of a queue. The worker's, which outlives its queues: they
/// can have these made anew as often as they like.
#[derive(Debug, Default)]
pub(crate) struct QueueComplaints {
    /// The driver broke its ring.
    pub(super) broken_rings: SharedThrottle,
    /// Storage failed a request.
    pub(super) io_errors: SharedThrottle,
    /// A ring went on from what the in-flight region has of it.
    pub(super) recoveries: SharedThrottle,
    /// A ring could not go on from that.
    pub(super) foreign_regions: SharedThrottle,
    /// The VMM took the memory of a running ring.
    pub(crate) taken_memory: SharedThrottle,
}

const KINDS: usize = 6;

#[derive(Debug, Default)]
struct Counters {
    requests: Counter,
    bytes: Counter,
    errors: Counter,
}

/// A number that one thread adds to.
#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl Counter {
    fn add(&self, count: u64) {
        self.0.store(self.get().wrapping_add(count), Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Monitor {
    /// The figures as they are now.
    pub fn view(&self) -> QueueView {
        let [read, write, flush, discard, write_zeroes, get_id] = self.kinds.each_ref().map(Counters::tally);
        QueueView {
            state: QueueState::ALL[usize::from(self.state.load(Ordering::Relaxed))],
            in_flight: self.in_flight.load(Ordering::Relaxed),
            held: self.held.load(Ordering::Relaxed),
            last_error: self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            read,
            write,
            flush,
            discard,
            write_zeroes,
            get_id,
            refused: self.refused.get(),
        }
    }

    pub(super) fn set_state(&self, state: QueueState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    pub(super) fn set_in_flight(&self, count: usize) {
        self.in_flight.store(count as u32, Ordering::Relaxed);
    }

    pub(super) fn set_held(&self, count: usize) {
        self.held.store(count as u32, Ordering::Relaxed);
    }

    /// Notes what storage failed. Only then does the worker wait for who looks.
    pub(super) fn set_last_error(&self, error: String) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    /// What may be told of the queue now.
    pub(super) fn complaints(&self) -> &QueueComplaints {
        &self.complaints
    }

    /// Asks for the held requests to be tried again. Returns how many there are; the worker has to be woken.
    pub(super) fn ask_retry(&self) -> u32 {
        self.retry.store(true, Ordering::Release);
        self.held.load(Ordering::Relaxed)
    }

    pub(super) fn take_retry(&self) -> bool {
        self.retry.swap(false, Ordering::Acquire)
    }

    pub(super) fn clear_retry(&self) {
        self.retry.store(false, Ordering::Relaxed);
    }

    /// Notes that a request of this kind is answered so.
    pub(super) fn count(&self, kind: &RequestKind, status: Status) {
        let (counters, bytes) = match kind {
            RequestKind::Read(range) => (&self.kinds[0], range.len_bytes),
            RequestKind::Write(range) => (&self.kinds[1], range.len_bytes),
            RequestKind::Flush => (&self.kinds[2], 0),
            RequestKind::Discard(ranges) => (&self.kinds[3], sum(ranges.as_slice())),
            RequestKind::WriteZeroes(ranges) => (&self.kinds[4], sum(ranges.as_slice())),
            RequestKind::GetId => (&self.kinds[5], 0),
        };
        counters.requests.add(1);
        match status {
            Status::Ok => counters.bytes.add(bytes),
            _ => counters.errors.add(1),
        }
    }

    pub(super) fn count_refused(&self) {
        self.refused.add(1);
    }
}

impl Counters {
    fn tally(&self) -> Tally {
        Tally { requests: self.requests.get(), bytes: self.bytes.get(), errors: self.errors.get() }
    }
}

fn sum(ranges: &[SectorRange]) -> u64 {
    ranges.iter().map(|range| range.len_bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_counted_by_itself() {
        let monitor = Monitor::default();
        let range = SectorRange { offset_bytes: 4096, len_bytes: 1024 };
        for (kind, status) in [
            (RequestKind::Read(range), Status::Ok),
            (RequestKind::Write(range), Status::Ok),
            (RequestKind::Write(range), Status::IoError),
            (RequestKind::Flush, Status::Ok),
            (RequestKind::Discard(Box::default()), Status::Unsupported),
            (RequestKind::WriteZeroes(Box::default()), Status::Ok),
            (RequestKind::GetId, Status::Ok),
        ] {
            monitor.count(&kind, status);
        }
        monitor.count_refused();
        monitor.set_in_flight(3);
        monitor.set_held(2);
        monitor.set_last_error("why".into());
        let tally = |requests, bytes, errors| Tally { requests, bytes, errors };
        let expected = QueueView {
            state: QueueState::Stopped,
            in_flight: 3,
            held: 2,
            last_error: Some("why".into()),
            read: tally(1, 1024, 0),
            write: tally(2, 1024, 1),
            flush: tally(1, 0, 0),
            discard: tally(1, 0, 1),
            write_zeroes: tally(1, 0, 0),
            get_id: tally(1, 0, 0),
            refused: 1,
        };
        assert_eq!(monitor.view(), expected);
    }

    #[test]
    fn every_state_can_be_seen() {
        let monitor = Monitor::default();
        for state in QueueState::ALL {
            monitor.set_state(state);
            assert_eq!(monitor.view().state, state);
        }
    }
}
