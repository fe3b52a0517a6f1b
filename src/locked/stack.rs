//! The stack of a thread that works with a key: a cipher may spill round keys there, and a signal saves registers.
#![expect(unsafe_code, reason = "mlock of the thread's own stack")]

use std::io;

use rustix::mm::{self, Advice};

/// More than any thread uses below the frame that locks it, while it has to do with a key.
const BELOW_BYTES: usize = 64 * 1024;
/// What may lie above the frame on its own page, and the next one.
const ABOVE_BYTES: usize = 4096;

/// Locks the part of this thread's stack that what the caller calls works on: from here on it is neither swapped nor
/// dumped. For threads with a stack of fixed size, which has room for as much.
///
/// # Errors
/// When so much memory cannot be locked (`RLIMIT_MEMLOCK`).
pub fn lock_stack() -> io::Result<()> {
    let here = 0_u8;
    let page_bytes = rustix::param::page_size();
    let here = (&raw const here).addr();
    let start = (here - BELOW_BYTES) / page_bytes * page_bytes;
    let len_bytes = (here + ABOVE_BYTES - start).next_multiple_of(page_bytes);
    let start = std::ptr::without_provenance_mut(start);
    // SAFETY: neither changes what the memory holds. Where there is nothing mapped, they fail.
    unsafe {
        mm::mlock(start, len_bytes)?;
        mm::madvise(start, len_bytes, Advice::LinuxDontDump)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_called_works_on_locked_pages() {
        #[inline(never)]
        fn work() -> [Vec<String>; 2] {
            let spilled = std::hint::black_box([7_u8; 16 * 1024]);
            [spilled.first(), spilled.last()].map(|byte| {
                let address = std::ptr::from_ref(byte.unwrap()).addr();
                super::super::tests::flags_of_mapping(address)
            })
        }
        let flags = std::thread::spawn(|| {
            lock_stack().unwrap();
            work()
        });
        for flags in flags.join().unwrap() {
            assert!(["lo", "dd"].iter().all(|flag| flags.iter().any(|has| has == flag)), "{flags:?}");
        }
    }
}
