//! Nothing is read or written beside the sectors: not even a byte, as the pages there cannot be touched.

use std::ptr::{self, NonNull};

use rustix::mm::{self, MapFlags, MprotectFlags, ProtFlags};

use super::*;

const PAGE_BYTES: usize = 4096;

/// Pages between two that fault when they are touched.
struct Guarded {
    mapping: NonNull<u8>,
    data_bytes: usize,
}

impl Guarded {
    fn new(data_bytes: usize) -> Self {
        assert!(data_bytes.is_multiple_of(PAGE_BYTES));
        let mapped_bytes = data_bytes + 2 * PAGE_BYTES;
        // SAFETY: a new mapping touches no existing memory; the pages that are opened up lie in it.
        unsafe {
            let start =
                mm::mmap_anonymous(ptr::null_mut(), mapped_bytes, ProtFlags::empty(), MapFlags::PRIVATE);
            let mapping = NonNull::new(start.unwrap().cast::<u8>()).unwrap();
            let data = mapping.add(PAGE_BYTES).cast().as_ptr();
            mm::mprotect(data, data_bytes, MprotectFlags::READ | MprotectFlags::WRITE).unwrap();
            Self { mapping, data_bytes }
        }
    }

    fn data(&mut self) -> &mut [u8] {
        // SAFETY: the pages between the guards are readable, writable and ours alone.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.add(PAGE_BYTES).as_ptr(), self.data_bytes) }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: exactly our own mapping.
        unsafe { mm::munmap(self.mapping.as_ptr().cast(), self.data_bytes + 2 * PAGE_BYTES).unwrap() };
    }
}

/// Each length of a run twice: at the very start of the pages and at their very end.
#[test]
fn nothing_beside_the_sectors_is_touched() {
    const PAGES_BYTES: usize = 16 * 4096;
    let (mut src, mut dst) = (Guarded::new(PAGES_BYTES), Guarded::new(PAGES_BYTES));
    src.data().iter_mut().enumerate().for_each(|(i, byte)| *byte = i as u8);
    for sector_bytes in [512, 1024, 2048, 4096] {
        let sector_size = SectorSize::new(sector_bytes).unwrap();
        let sector_bytes = sector_bytes as usize;
        let all = PAGES_BYTES / sector_bytes;
        let aes_128 = ciphers(&key_bytes::<32>(), sector_size, plain64(0));
        for xts in aes_128.into_iter().chain(ciphers(&key_bytes::<64>(), sector_size, plain64(0))) {
            for sector_count in (1..=20).chain([31, 32, 33, 63, 64, 65, all]).filter(|count| *count <= all) {
                for start in [0, (all - sector_count) * sector_bytes] {
                    let range = start..start + sector_count * sector_bytes;
                    dst.data().fill(0);
                    let first = SectorNumber(0);
                    let (from, to) = (src.data()[start..].as_ptr(), dst.data()[start..].as_mut_ptr());
                    // SAFETY: `sector_count` sectors of two mappings.
                    unsafe { xts.encrypt(first, from, to, sector_count) };
                    // SAFETY: the same sectors of one mapping.
                    unsafe { xts.decrypt(first, to.cast_const(), to, sector_count) };
                    assert!(dst.data()[range.clone()] == src.data()[range.clone()], "{}", xts.kernel());
                    assert!(dst.data()[..range.start].iter().all(|byte| *byte == 0));
                    assert!(dst.data()[range.end..].iter().all(|byte| *byte == 0));
                }
            }
        }
    }
}
