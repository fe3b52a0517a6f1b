//! The dirty log, of any geometry, and what is marked in it: exactly the bits of the pages that were written, and no byte
//! outside the log.
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use sealblk::guest::{DirtyLog, GuestAddress};

const PAGE_BYTES: u64 = 4096;
const FILE_BYTES_MAX: u64 = 1 << 16;
/// More than a request writes.
const WRITE_BYTES_MAX: u32 = 64 << 20;

#[derive(Arbitrary, Debug)]
struct Input {
    file_bytes: u16,
    sealed: bool,
    offset_bytes: u64,
    len_bytes: u64,
    /// Offset and length are taken as they are, or so that they may fit.
    wild: bool,
    writes: Vec<(u64, u32, bool)>,
}

fuzz_target!(|input: Input| {
    let file_bytes = u64::from(input.file_bytes) + 1;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(memfd_create("log", flags).expect("a memory file"));
    file.set_len(file_bytes).expect("memory can be sized");
    if input.sealed {
        fcntl_add_seals(&file, SealFlags::SHRINK).expect("it may be sealed");
    }
    let (offset_bytes, len_bytes) = if input.wild {
        (input.offset_bytes, input.len_bytes)
    } else {
        (input.offset_bytes % 17 * PAGE_BYTES, input.len_bytes % FILE_BYTES_MAX)
    };
    let fits = offset_bytes.checked_add(len_bytes).is_some_and(|end| end <= file_bytes);
    let possible = input.sealed && fits && len_bytes > 0 && offset_bytes.is_multiple_of(PAGE_BYTES);
    let log = DirtyLog::map(file.try_clone().expect("a descriptor"), offset_bytes, len_bytes);
    assert_eq!(log.is_ok(), possible, "{log:?}");
    let Ok(log) = log else { return };
    let mut model = vec![0_u8; file_bytes as usize];
    for (address, len, wild) in input.writes.iter().take(64) {
        let len = len % WRITE_BYTES_MAX;
        let address = if *wild { *address } else { address % (len_bytes * 8 * PAGE_BYTES) };
        log.mark(GuestAddress(address), u64::from(len));
        let Some(last) = len.checked_sub(1).map(|more| address.saturating_add(u64::from(more))) else {
            continue;
        };
        for page in address / PAGE_BYTES..=last / PAGE_BYTES {
            if page / 8 < len_bytes {
                model[(offset_bytes + page / 8) as usize] |= 1 << (page % 8);
            }
        }
    }
    let mut content = vec![0; file_bytes as usize];
    file.read_exact_at(&mut content, 0).expect("it is as long");
    assert!(content == model, "other pages are marked than were written");
});
