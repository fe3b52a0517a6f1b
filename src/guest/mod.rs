//! Memory shared with the guest. No Rust reference to it exists outside the atomics of the ring indices: the
//! guest may change every byte at any time, so bytes are copied through raw pointers, each of them once.

pub mod buffer;
pub mod dirty;
pub mod fault;
pub mod inflight;
pub mod memory;
pub mod shared_file;

pub use buffer::{Cursor, GuestBuffer, Run};
pub use dirty::{DirtyLog, DirtyLogError};
pub use inflight::{InflightGeometry, InflightQueue, InflightRegion, Remembered};
pub use memory::{GuestAddress, GuestMemory, LocalMemory, MemoryError, Region};
