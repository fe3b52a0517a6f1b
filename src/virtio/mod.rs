//! What the guest says: the split virtqueue and the requests on it (virtio 1.2, sections 2.7 and 5.2).

mod inflight;
pub mod request;
pub mod virtq;
pub mod wire;

pub use request::{DiskView, Parsed, Request, RequestKind};
pub use virtq::{Chain, Head, Recovery, RingAddresses, RingError, RingSetup, RingState, Tracking, Virtq};
