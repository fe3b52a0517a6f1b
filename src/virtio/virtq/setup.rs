//! What a ring starts with, and why it cannot.

use std::ptr::NonNull;

use super::DESCRIPTOR_BYTES;
use crate::guest::InflightQueue;
use crate::guest::memory::{GuestAddress, GuestMemory};

/// Largest ring of the split format.
pub const MAX_RING_SIZE: u16 = 32768;

/// Where the three areas of a ring lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddresses {
    /// The descriptor table.
    pub descriptors: GuestAddress,
    /// The available (driver) ring.
    pub available: GuestAddress,
    /// The used (device) ring.
    pub used: GuestAddress,
}

/// What a ring needs to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSetup {
    /// Number of descriptors, a power of two.
    pub size: u16,
    /// Where it lies.
    pub addresses: RingAddresses,
    /// Index of the first available entry to look at, unless the in-flight region knows better.
    pub next_available: u16,
    /// Whether `VIRTIO_F_EVENT_IDX` was negotiated.
    pub event_idx: bool,
    /// Whether `VIRTIO_F_INDIRECT_DESC` was negotiated.
    pub indirect: bool,
}

impl RingSetup {
    /// Whether such a ring could start in `memory`.
    ///
    /// # Errors
    /// When the size or an area is impossible.
    pub fn check(&self, memory: &GuestMemory) -> Result<(), RingError> {
        if !self.size.is_power_of_two() || self.size > MAX_RING_SIZE {
            return Err(RingError::Size(self.size));
        }
        Areas::resolve(self, memory).map(drop)
    }
}

/// Where to note which requests of a ring are under way.
#[derive(Debug)]
pub struct Tracking {
    /// The ring's part of the in-flight region.
    pub region: InflightQueue,
    /// Whether a predecessor may have left requests there. Not so when it was ourselves who stopped the ring: then
    /// nothing is under way, and we know where the ring goes on.
    pub recover: bool,
}

/// What a ring found in its part of the in-flight region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Requests that a predecessor took and did not answer: they come again.
    pub repeats: u16,
    /// The region cannot be about this ring as it is now: what it says was not followed.
    pub foreign: bool,
}

/// What is left of a ring that was stopped: all it takes to start it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingState {
    /// Index of the first available entry that was not taken.
    pub next_available: u16,
}

/// Why a ring cannot start, or had to stop.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// Not a power of two, 0, or larger than the format allows.
    #[error("ring size {0} is not a power of two up to {MAX_RING_SIZE}")]
    Size(u16),
    /// Misaligned, or not all of it in one region of the guest's memory.
    #[error("{area} ring area at {address:#x} is misaligned or not in the guest's memory")]
    Area {
        /// Which area.
        area: &'static str,
        /// Its guest address.
        address: u64,
    },
    /// The in-flight region has no room for a ring of that size.
    #[error("a ring of {size} does not fit the in-flight region, which was made for rings of up to {room}")]
    Untracked {
        /// The ring's size.
        size: u16,
        /// Heads that there is room for.
        room: u16,
    },
    /// The driver claims more new requests than the ring has entries.
    #[error("available index {index} is impossible for a ring of {size} that was read up to {next}")]
    AvailableIndex {
        /// What the driver wrote.
        index: u16,
        /// The next index we would have taken.
        next: u16,
        /// The ring's size.
        size: u16,
    },
}

/// The areas of a ring as host pointers.
pub(super) struct Areas {
    pub(super) descriptors: NonNull<u8>,
    pub(super) available: NonNull<u16>,
    pub(super) used: NonNull<u16>,
}

impl Areas {
    pub(super) fn resolve(setup: &RingSetup, memory: &GuestMemory) -> Result<Self, RingError> {
        let (size, event) = (u64::from(setup.size), if setup.event_idx { 2 } else { 0 });
        let resolve = |area, address: GuestAddress, len_bytes: u64, align: usize| {
            memory
                .host_pointer(address, len_bytes)
                .filter(|host| host.as_ptr().addr().is_multiple_of(align))
                .ok_or(RingError::Area { area, address: address.0 })
        };
        let RingAddresses { descriptors, available, used } = setup.addresses;
        Ok(Self {
            descriptors: resolve("descriptor", descriptors, DESCRIPTOR_BYTES * size, 16)?,
            available: resolve("available", available, 4 + 2 * size + event, 2)?.cast(),
            used: resolve("used", used, 4 + 8 * size + event, 4)?.cast(),
        })
    }
}
