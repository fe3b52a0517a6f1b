//! Memory for secrets: locked against swapping, left out of core dumps, not inherited by children, wiped; and where the
//! kernel has that (`memfd_secret`, Linux 5.14), read by nobody but this process, not even by the kernel for others.
#![expect(unsafe_code, reason = "mmap, mlock and a typed view of the pages they return")]

mod sealed;
mod stack;

use std::ffi::c_void;
use std::fmt;
use std::hint::black_box;
use std::io;
use std::mem::{MaybeUninit, needs_drop, size_of};
use std::ops::{Deref, DerefMut};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::ptr::{self, NonNull};

use rustix::mm::{self, Advice, MapFlags, ProtFlags};
use zeroize::Zeroize;

pub use sealed::{SealedCopy, read_sealed};
pub use stack::lock_stack;

/// The smallest page of any machine that we run on.
const PAGE_BYTES_MIN: usize = 4096;

/// More stack than any function that handles a secret uses: the most is what encrypts with the `aes` crate on AVX-512.
const DEAD_STACK_BYTES: usize = 32 * 1024;

/// A value alone on its own pages, which are locked in memory, excluded from core dumps and forks, and wiped
/// when it is dropped. `Debug` shows nothing of it.
///
/// Only the value itself is protected, not what it points to: a secret lies inside `T`, never behind a
/// `Vec` or `Box` of it.
pub struct Locked<T> {
    value: NonNull<T>,
    mapped_bytes: usize,
}

// SAFETY: `Locked` owns its value as a `Box` would.
unsafe impl<T: Send> Send for Locked<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Locked<T> {}

impl<T> Locked<T> {
    /// Maps and locks pages, puts `T::default()` there and lets `fill` write the secret into it, so that no
    /// copy of the secret is left behind on the stack.
    ///
    /// A `T` that owns something outside of itself does not compile.
    ///
    /// # Errors
    /// When the pages cannot be mapped or locked (`RLIMIT_MEMLOCK`), or when `fill` fails.
    pub fn new_with<E: From<io::Error>>(fill: impl FnOnce(&mut T) -> Result<(), E>) -> Result<Self, E>
    where
        T: Default,
    {
        const { assert!(!needs_drop::<T>(), "a secret on the heap would be neither locked nor wiped") };
        let mut locked = Self::new(T::default)?;
        fill(&mut locked)?;
        Ok(locked)
    }

    /// Maps and locks pages and puts there what `make` returns, for values that can only be made whole. What
    /// `make` may have left on the stack is overwritten.
    ///
    /// # Errors
    /// When the pages cannot be mapped or locked (`RLIMIT_MEMLOCK`).
    pub fn new(make: impl FnOnce() -> T) -> io::Result<Self> {
        let pages = Pages::map(size_of::<T>())?;
        let value = pages.start.cast::<T>();
        const { assert!(align_of::<T>() <= PAGE_BYTES_MIN, "a page is aligned enough for any secret") };
        // SAFETY: the mapping is fresh, large enough, page aligned and ours alone.
        unsafe { put(value, make) };
        wipe_dead_stack();
        let mapped_bytes = pages.bytes;
        std::mem::forget(pages);
        Ok(Self { value, mapped_bytes })
    }
}

/// Keeps the frames of `make`, and those for moving its value, below the caller's, where
/// [`wipe_dead_stack`] reaches them.
///
/// # Safety
/// `place` is valid for writes and aligned.
#[inline(never)]
unsafe fn put<T>(place: NonNull<T>, make: impl FnOnce() -> T) {
    // SAFETY: the caller's promise.
    unsafe { place.write(make()) };
}

/// Overwrites the stack below the caller's frame: what the functions it called have left there. Best effort,
/// for start-up code whose callees handle secrets by value; it knows nothing of registers.
#[inline(never)]
pub fn wipe_dead_stack() {
    let mut stack = [0u8; DEAD_STACK_BYTES];
    stack.zeroize();
    black_box(&stack);
}

impl<T> Deref for Locked<T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: initialised in `new`, ours alone, and borrowed no longer than `self`.
        unsafe { self.value.as_ref() }
    }
}

impl<T> DerefMut for Locked<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and `&mut self` makes the borrow exclusive.
        unsafe { self.value.as_mut() }
    }
}

impl<T> Drop for Locked<T> {
    fn drop(&mut self) {
        let _wiped_and_unmapped_even_on_panic = Pages { start: self.value.cast(), bytes: self.mapped_bytes };
        // SAFETY: the value is initialised and not used again.
        unsafe { self.value.drop_in_place() };
    }
}

impl<T> fmt::Debug for Locked<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Locked([redacted])")
    }
}

/// A mapping of our own, as the head of this file says; wiped and unmapped when dropped.
struct Pages {
    start: NonNull<u8>,
    bytes: usize,
}

impl Pages {
    fn map(least_bytes: usize) -> io::Result<Self> {
        let bytes = least_bytes.max(1).next_multiple_of(rustix::param::page_size());
        // Where there is no secret memory, for whatever reason, locked memory has to do.
        let pages = Self::secret(bytes).or_else(|_| Self::locked(bytes))?;
        // SAFETY: the range is exactly our own mapping.
        unsafe { mm::madvise(pages.start.as_ptr().cast(), bytes, Advice::LinuxDontFork) }?;
        Ok(pages)
    }

    /// Pages that the kernel takes out of its own map of memory. They are locked and left out of dumps by nature.
    fn secret(bytes: usize) -> io::Result<Self> {
        // SAFETY: the call takes flags and no pointer.
        let file = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
        let file = RawFd::try_from(file).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: a descriptor that the kernel has just made, nobody else's.
        let file = unsafe { OwnedFd::from_raw_fd(file) };
        rustix::fs::ftruncate(&file, bytes as u64)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice, of a file that nobody else has.
        let start = unsafe { mm::mmap(ptr::null_mut(), bytes, access, MapFlags::SHARED, &file, 0) }?;
        Ok(Self::at(start, bytes))
    }

    /// Pages of the usual kind, which are locked and left out of dumps.
    fn locked(bytes: usize) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: an anonymous private mapping at an address of the kernel's choice touches no existing memory.
        let start = unsafe { mm::mmap_anonymous(ptr::null_mut(), bytes, access, MapFlags::PRIVATE) }?;
        let pages = Self::at(start, bytes);
        // SAFETY: the range is exactly our own mapping.
        unsafe {
            mm::mlock(start, bytes)?;
            mm::madvise(start, bytes, Advice::LinuxDontDump)?;
        }
        Ok(pages)
    }

    fn at(start: *mut c_void, bytes: usize) -> Self {
        Self { start: NonNull::new(start.cast()).expect("mmap never returns null"), bytes }
    }
}

impl Pages {
    fn wipe(&mut self) {
        let start = self.start.as_ptr().cast::<MaybeUninit<u8>>();
        // SAFETY: the range is exactly our own mapping, and whatever lived in it is gone.
        unsafe { std::slice::from_raw_parts_mut(start, self.bytes) }.zeroize();
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.wipe();
        // SAFETY: the range is exactly our own mapping. A failure would leave (wiped) pages mapped: nothing
        // better can be done.
        let _ = unsafe { mm::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs;
    use std::os::unix::fs::FileExt;
    use std::rc::Rc;

    use super::*;

    #[derive(Clone, Copy)]
    #[repr(align(64))]
    struct Aligned([u8; 5000]);

    impl Default for Aligned {
        fn default() -> Self {
            Self([0; 5000])
        }
    }

    fn filled() -> Locked<Aligned> {
        Locked::new_with(|value: &mut Aligned| {
            value.0.fill(0xa5);
            Ok::<(), io::Error>(())
        })
        .unwrap()
    }

    /// The kernel's flags of the mapping that `address` lies in.
    pub(super) fn flags_of_mapping(address: usize) -> Vec<String> {
        let mut inside = false;
        for line in fs::read_to_string("/proc/self/smaps").unwrap().lines() {
            if let Some(flags) = line.strip_prefix("VmFlags:").filter(|_| inside) {
                return flags.split_whitespace().map(str::to_owned).collect();
            }
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            let parse = |digits| usize::from_str_radix(digits, 16).ok();
            if let Some((start, end)) = range.and_then(|(start, end)| parse(start).zip(parse(end))) {
                inside = (start..end).contains(&address);
            }
        }
        panic!("{address:x} is not mapped");
    }

    #[track_caller]
    fn assert_flags(address: usize, wanted: &[&str]) {
        let flags = flags_of_mapping(address);
        for flag in wanted {
            assert!(flags.iter().any(|has| has == flag), "{flag} in {flags:?}");
        }
    }

    #[test]
    fn pages_are_locked_and_kept_out_of_dumps_and_forks() {
        let locked = filled();
        let first = &raw const *locked as usize;
        for address in [first, first + size_of::<Aligned>() - 1] {
            assert_flags(address, &["lo", "dd", "dc"]);
        }
    }

    #[test]
    fn a_kernel_without_secret_memory_locks_pages_of_the_usual_kind() {
        let pages = Pages::locked(8192).unwrap();
        assert_flags(pages.start.as_ptr().addr() + 8191, &["lo", "dd"]);
    }

    #[test]
    fn secret_memory_is_read_by_nobody_else() {
        let pages = match Pages::secret(4096) {
            Ok(pages) => pages,
            // A kernel without, or one that was told to do without.
            Err(error) => return assert_eq!(error.raw_os_error(), Some(libc::ENOSYS), "{error}"),
        };
        let address = pages.start.as_ptr().addr();
        assert_flags(address, &["lo", "dd"]);
        // SAFETY: our own mapping.
        unsafe { pages.start.write(7) };
        let memory = fs::File::open("/proc/self/mem").unwrap();
        assert!(memory.read_at(&mut [0], address as u64).is_err(), "as others would read it");
        let stack = 7_u8;
        let mut seen = [0];
        memory.read_at(&mut seen, (&raw const stack).addr() as u64).unwrap();
        assert_eq!(seen, [7], "other memory can be read so");
    }

    #[test]
    fn a_value_is_aligned_and_holds_what_was_put_there() {
        let locked = filled();
        assert!((&raw const *locked).is_aligned());
        assert!(locked.0.iter().all(|&byte| byte == 0xa5));
    }

    #[test]
    fn wiping_reaches_every_byte() {
        let mut pages = Pages::map(5000).unwrap();
        // SAFETY: all of our own mapping, read and written only here.
        let bytes = unsafe { std::slice::from_raw_parts_mut(pages.start.as_ptr(), pages.bytes) };
        bytes.fill(0xa5);
        let bytes: *const [u8] = bytes;
        pages.wipe();
        // SAFETY: as above.
        assert!(unsafe { &*bytes }.iter().all(|&byte| byte == 0));
    }

    #[test]
    fn the_value_is_dropped() {
        struct Noted(Rc<Cell<u32>>);
        impl Drop for Noted {
            fn drop(&mut self) {
                self.0.set(self.0.get() + 1);
            }
        }
        let drops = Rc::new(Cell::new(0));
        let locked = Locked::new(|| Noted(drops.clone())).unwrap();
        assert_eq!(drops.get(), 0);
        drop(locked);
        assert_eq!(drops.get(), 1);
    }

    #[test]
    fn a_fill_that_fails_is_passed_on() {
        let result = Locked::new_with(|_: &mut Aligned| Err(io::Error::other("no secret")));
        assert_eq!(result.err().unwrap().to_string(), "no secret");
    }

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", filled()), "Locked([redacted])");
    }
}
