//! The data part of one request: a byte stream scattered over guest memory.
#![expect(unsafe_code, reason = "copies between guest memory and our own")]

use std::ptr;

use super::dirty::DirtyLog;
use super::memory::{GuestAddress, LocalMemory, Span};

/// The most spans that one request's data may be scattered over: more than the descriptors of the longest
/// chain, so that only a memory map in shreds gets there.
pub const MAX_SPANS: usize = 2048;

/// A request's data as an ordered list of spans of guest memory. Keeps the memory it points into alive.
///
/// The list's allocation is meant to be used again: [`GuestBuffer::reset`] empties it without freeing.
#[derive(Debug)]
pub struct GuestBuffer {
    memory: LocalMemory,
    spans: Vec<Span>,
    len_bytes: u64,
}

/// A position in a [`GuestBuffer`]. Meaningful for the buffer it was made for only.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cursor {
    span: usize,
    offset: usize,
}

/// A piece of guest memory that is contiguous for the host. The bytes may change at any time.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Valid for reads and writes of `len_bytes` while the buffer lives and is not changed.
    pub host: *mut u8,
    /// Never 0.
    pub len_bytes: usize,
}

impl GuestBuffer {
    /// An empty buffer in `memory`.
    pub fn new(memory: LocalMemory) -> Self {
        Self { memory, spans: Vec::new(), len_bytes: 0 }
    }

    /// Empties the buffer and moves it to `memory`, keeping its allocation.
    pub fn reset(&mut self, memory: LocalMemory) {
        self.memory = memory;
        self.spans.clear();
        self.len_bytes = 0;
    }

    /// Total number of bytes.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Appends `len_bytes` bytes of guest memory. Returns false, leaving the buffer unfit for use, when a part
    /// of them is not mapped or the data is in more than [`MAX_SPANS`] spans.
    #[must_use]
    pub fn append(&mut self, address: GuestAddress, len_bytes: u64) -> bool {
        let Self { memory, spans, .. } = self;
        let mut fits = true;
        let mapped = memory.for_each_span(address, len_bytes, |span| {
            // Drivers list neighbouring pages one by one: longer runs make longer cipher calls.
            if let Some(last) = spans.last_mut()
                && is_adjacent(last, &span)
            {
                last.len_bytes += span.len_bytes;
            } else if spans.len() < MAX_SPANS {
                spans.push(span);
            } else {
                fits = false;
            }
        });
        self.len_bytes += len_bytes;
        mapped && fits
    }

    /// The longest run at `cursor`, at most `limit_bytes`, past which the cursor is moved. `None` at the end.
    pub fn next_run(&self, cursor: &mut Cursor, limit_bytes: usize) -> Option<Run> {
        let span = self.spans.get(cursor.span)?;
        let len_bytes = limit_bytes.min(span.len_bytes - cursor.offset);
        if len_bytes == 0 {
            return None;
        }
        // SAFETY: `offset` is below the span's length. A span that was merged from two mappings side by side
        // is held by the table as a whole; only the address is used further on.
        let host = unsafe { span.host.add(cursor.offset) }.as_ptr();
        cursor.offset += len_bytes;
        if cursor.offset == span.len_bytes {
            *cursor = Cursor { span: cursor.span + 1, offset: 0 };
        }
        Some(Run { host, len_bytes })
    }

    /// The longest run at `cursor` of whole units of `unit_bytes`, at most `limit_bytes`, past which the cursor
    /// is moved. `None`, with the cursor where it was, when the next unit is cut into pieces.
    pub fn next_whole(&self, cursor: &mut Cursor, limit_bytes: usize, unit_bytes: usize) -> Option<Run> {
        let left = self.spans.get(cursor.span)?.len_bytes - cursor.offset;
        let whole = limit_bytes.min(left) / unit_bytes * unit_bytes;
        self.next_run(cursor, whole)
    }

    /// Moves the cursor by `len_bytes`, at most to the end.
    pub fn skip(&self, cursor: &mut Cursor, mut len_bytes: usize) {
        while let Some(run) = self.next_run(cursor, len_bytes) {
            len_bytes -= run.len_bytes;
        }
    }

    /// Copies from the guest into `destination`, from the cursor on, moving it; returns how many bytes there were.
    pub fn copy_in(&self, cursor: &mut Cursor, destination: &mut [u8]) -> usize {
        let mut done = 0;
        while let Some(run) = self.next_run(cursor, destination.len() - done) {
            let to = &mut destination[done..done + run.len_bytes];
            // SAFETY: the run is mapped; `to` is our own memory, which no guest mapping overlaps.
            unsafe { ptr::copy_nonoverlapping(run.host, to.as_mut_ptr(), run.len_bytes) };
            done += run.len_bytes;
        }
        done
    }

    /// Copies `source` to the guest, from the cursor on, moving it; returns how many bytes there was room for.
    pub fn copy_out(&self, cursor: &mut Cursor, source: &[u8]) -> usize {
        let mut done = 0;
        while let Some(run) = self.next_run(cursor, source.len() - done) {
            let from = &source[done..done + run.len_bytes];
            // SAFETY: as in `copy_in`, the other way round.
            unsafe { ptr::copy_nonoverlapping(from.as_ptr(), run.host, run.len_bytes) };
            done += run.len_bytes;
        }
        done
    }

    /// Marks all of the buffer's memory as written. Where that lies in the guest is only found out here: nobody asks
    /// but during a migration.
    pub fn mark_written(&self, log: &DirtyLog) {
        for span in &self.spans {
            self.memory.for_each_guest_range(span, |address, len_bytes| log.mark(address, len_bytes));
        }
    }
}

/// Whether `next` begins where `last` ends, within one mapping: two mappings may lie side by side by chance,
/// which is no harm, since both are held by the same table.
fn is_adjacent(last: &Span, next: &Span) -> bool {
    last.host.as_ptr().wrapping_add(last.len_bytes) == next.host.as_ptr()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::dirty::tests::{log, take_pages};
    use super::super::memory::GuestMemory;
    use super::super::memory::tests::region;
    use super::*;

    fn buffer() -> GuestBuffer {
        let memory = GuestMemory::from_regions([region(0, 0x1000), region(0x10000, 0x1000)]).unwrap();
        GuestBuffer::new(LocalMemory::new(Arc::new(memory)))
    }

    #[test]
    fn neighbouring_pieces_become_one_run() {
        let mut data = buffer();
        assert!(data.append(GuestAddress(0x100), 0x80));
        assert!(data.append(GuestAddress(0x180), 0x80));
        assert!(data.append(GuestAddress(0x10000), 0x10));
        let mut cursor = Cursor::default();
        assert_eq!(data.next_run(&mut cursor, 0x1000).unwrap().len_bytes, 0x100);
        assert_eq!(data.next_run(&mut cursor, 0x1000).unwrap().len_bytes, 0x10);
        assert!(data.next_run(&mut cursor, 0x1000).is_none());
        assert_eq!(data.len_bytes(), 0x110);
    }

    #[test]
    fn what_was_written_is_marked_where_it_lies_in_the_guest() {
        let log = log(4);
        // Neighbours in the guest, each in a mapping of its own: also where those are neighbours by chance.
        let regions = [region(0, 0x3000), region(0x3000, 0x2000), region(0x10000, 0x4000)];
        let memory = LocalMemory::new(Arc::new(GuestMemory::from_regions(regions).unwrap()));
        let mut data = GuestBuffer::new(memory);
        for (address, len_bytes, pages) in [
            (0x1fff, 2, &[1, 2][..]),
            (0x2800, 0x2000, &[2, 3, 4]),
            (0x13fff, 1, &[0x13]),
            (0x10000, 0x4000, &[0x10, 0x11, 0x12, 0x13]),
        ] {
            data.reset(data.memory.clone());
            assert!(data.append(GuestAddress(address), len_bytes));
            data.mark_written(&log);
            assert_eq!(take_pages(&log), pages, "{address:#x}");
        }
    }

    #[test]
    fn bytes_come_back_from_where_they_went() {
        let mut data = buffer();
        for i in 0..64 {
            assert!(data.append(GuestAddress(0x100 + 3 * i), 1));
        }
        assert!(data.append(GuestAddress(0x10ff0), 16));
        assert!(!data.append(GuestAddress(0x10ff0), 17));
        let bytes: Vec<u8> = (0..80).collect();
        assert_eq!(data.copy_out(&mut Cursor::default(), &bytes), 80);
        let mut back = [0; 30];
        let mut cursor = Cursor::default();
        data.skip(&mut cursor, 50);
        assert_eq!(data.copy_in(&mut cursor, &mut back), 30);
        assert_eq!(back[..], bytes[50..]);
    }
}
