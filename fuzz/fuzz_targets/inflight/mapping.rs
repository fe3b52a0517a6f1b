//! What a front end claims of a region: it is mapped only if all of it is there, for good.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use arbitrary::Arbitrary;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use sealblk::guest::inflight::Remembered;
use sealblk::guest::{InflightGeometry, InflightRegion};

const PAGE_BYTES: u64 = 4096;
const HEADS_MAX: u16 = 32768;
/// A region's queues, and what is ours behind them.
const REMEMBERED_BYTES: u64 = 64;
/// Files are no larger, or a claim would cost more time than all of the others.
const FILE_BYTES_MAX: u64 = 1 << 33;

/// A geometry, mostly near one that is right.
#[derive(Arbitrary, Debug)]
pub struct Claim {
    queue_count: Count,
    queue_size: Count,
    /// Beyond what the queues need.
    len_bytes: Distance,
    offset_pages: u8,
    offset_bytes: Distance,
    /// Beyond the end of the region.
    file_bytes: Distance,
    is_sealed: bool,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Count {
    Small(u8),
    Any(u16),
}

impl Count {
    fn value(self) -> u16 {
        match self {
            Self::Small(count) => u16::from(count % 16),
            Self::Any(count) => count,
        }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Distance {
    None,
    Near(i8),
    Pages(i8),
    Far(i64),
}

impl Distance {
    fn from(self, origin: u64) -> u64 {
        match self {
            Self::None => origin,
            Self::Near(bytes) => origin.saturating_add_signed(bytes.into()),
            Self::Pages(pages) => origin.saturating_add_signed(i64::from(pages) * PAGE_BYTES as i64),
            Self::Far(bytes) => origin.wrapping_add_signed(bytes),
        }
    }
}

impl Claim {
    pub fn check(&self) {
        let (queue_count, queue_size) = (self.queue_count.value(), self.queue_size.value());
        let part_bytes = (16 + 16 * u64::from(queue_size)).next_multiple_of(64);
        let queues_bytes = u64::from(queue_count) * part_bytes;
        let len_bytes = self.len_bytes.from(queues_bytes + REMEMBERED_BYTES);
        let offset_bytes = self.offset_bytes.from(u64::from(self.offset_pages) * PAGE_BYTES);
        let end_bytes = offset_bytes.saturating_add(len_bytes.min(queues_bytes + REMEMBERED_BYTES));
        let file_bytes = self.file_bytes.from(end_bytes).min(FILE_BYTES_MAX);

        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create(c"claimed", flags).expect("a memory file"));
        file.set_len(file_bytes).expect("a sparse file");
        if self.is_sealed {
            fcntl_add_seals(&file, SealFlags::SHRINK).expect("it may be sealed");
        }
        let geometry = InflightGeometry { len_bytes, offset_bytes, queue_count, queue_size };
        let mapped = InflightRegion::map(file.try_clone().expect("a descriptor"), &geometry);
        let is_sound = queue_count > 0
            && (1..=HEADS_MAX).contains(&queue_size)
            && len_bytes >= queues_bytes
            && self.is_sealed
            && file_bytes >= end_bytes
            && offset_bytes.is_multiple_of(PAGE_BYTES);
        assert_eq!(mapped.is_ok(), is_sound, "{geometry:?} in {file_bytes} bytes: {:?}", mapped.err());
        let Ok(region) = mapped.map(Arc::new) else { return };

        // The last byte of the last part is where it belongs.
        assert!(region.queue(queue_count).is_none());
        let last = region.queue(queue_count - 1).expect("it has that queue");
        assert_eq!(last.head_count(), queue_size);
        last.set_counter(queue_size - 1, u64::MAX);
        let entry_end = queues_bytes - part_bytes + 16 + 16 * u64::from(queue_size);
        assert_eq!(read_word(&file, offset_bytes + entry_end - 8), u64::MAX);

        // And so is what is behind it, if there is room.
        let has_room = len_bytes >= queues_bytes + REMEMBERED_BYTES;
        let remembered = Remembered { writeback: true };
        region.remember(remembered);
        assert_eq!(region.remembered(), has_room.then_some(remembered));
        if has_room {
            assert_eq!(read_word(&file, offset_bytes + queues_bytes + 8), 1);
        }
    }
}

fn read_word(file: &File, offset: u64) -> u64 {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, offset).expect("it is in the file");
    u64::from_ne_bytes(bytes)
}
