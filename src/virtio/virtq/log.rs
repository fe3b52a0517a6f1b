//! Which pages of the ring itself are written, noted while the guest is being migrated.

use std::sync::Arc;

use super::Virtq;
use crate::guest::DirtyLog;
use crate::guest::memory::GuestAddress;

/// The used ring's flags and index, before its elements.
const HEAD_BYTES: u64 = 4;
const ELEMENT_BYTES: u64 = 8;
/// The flags, or the available event index behind the elements.
const WORD_BYTES: u64 = 2;

impl Virtq {
    /// Notes from now on, or no longer, which pages of the guest's memory are written. The whole used ring counts as
    /// written: a predecessor may have died between a write and its mark.
    pub fn set_log(&mut self, log: Option<Arc<DirtyLog>>) {
        self.log = log;
        self.mark_used(0, element(u64::from(self.size)));
        if self.event_idx {
            self.mark_available_event();
        }
    }

    /// Where to note what is written to the guest's memory, during a migration.
    pub fn log(&self) -> Option<&DirtyLog> {
        self.log.as_deref()
    }

    /// Notes that the elements of these indices were published.
    pub(super) fn mark_published(&self, old: u16, new: u16) {
        if self.log.is_none() {
            return;
        }
        let (size, count) = (u64::from(self.size), u64::from(new.wrapping_sub(old)));
        let first = u64::from(old % self.size);
        let before_wrap = count.min(size - first);
        self.mark_used(element(first), before_wrap * ELEMENT_BYTES);
        self.mark_used(element(0), (count - before_wrap) * ELEMENT_BYTES);
        self.mark_used(0, HEAD_BYTES);
    }

    /// Notes that the flags were written.
    pub(super) fn mark_used_flags(&self) {
        self.mark_used(0, WORD_BYTES);
    }

    /// Notes that the available event index was written.
    pub(super) fn mark_available_event(&self) {
        self.mark_used(element(u64::from(self.size)), WORD_BYTES);
    }

    fn mark_used(&self, offset_bytes: u64, len_bytes: u64) {
        if let Some(log) = &self.log {
            // No overflow: the used ring lies in one region.
            log.mark(GuestAddress(self.addresses.used.0 + offset_bytes), len_bytes);
        }
    }
}

/// Where in the used ring the element with this number begins.
fn element(number: u64) -> u64 {
    HEAD_BYTES + number * ELEMENT_BYTES
}
