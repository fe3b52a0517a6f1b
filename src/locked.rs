//! Memory for secrets: locked against swapping, left out of core dumps, not inherited by children, wiped.
#![expect(unsafe_code, reason = "mmap, mlock and a typed view of the pages they return")]

use std::fmt;
use std::io;
use std::mem::size_of;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use rustix::mm::{self, Advice, MapFlags, ProtFlags};
use zeroize::Zeroize;

/// A value alone on its own pages, which are locked in memory, excluded from core dumps and forks, and wiped
/// when it is dropped. `Debug` shows nothing of it.
///
/// Built in place by [`Locked::new_with`], so that no copy of the secret is left behind on the stack.
pub struct Locked<T: Zeroize> {
    value: NonNull<T>,
    mapped_bytes: usize,
}

// SAFETY: `Locked` owns its value as a `Box` would.
unsafe impl<T: Zeroize + Send> Send for Locked<T> {}
// SAFETY: as above.
unsafe impl<T: Zeroize + Sync> Sync for Locked<T> {}

impl<T: Zeroize + Default> Locked<T> {
    /// Maps and locks pages, puts `T::default()` there and lets `fill` write the secret into it.
    ///
    /// # Errors
    /// When the pages cannot be mapped or locked (`RLIMIT_MEMLOCK`), or when `fill` fails.
    pub fn new_with<E: From<io::Error>>(fill: impl FnOnce(&mut T) -> Result<(), E>) -> Result<Self, E> {
        let mut locked = Self::map().map_err(|errno| io::Error::from(errno))?;
        fill(&mut locked)?;
        Ok(locked)
    }

    fn map() -> rustix::io::Result<Self> {
        assert!(align_of::<T>() <= 4096, "a page is aligned enough for any secret");
        let mapped_bytes = size_of::<T>().max(1).next_multiple_of(rustix::param::page_size());
        // SAFETY: an anonymous private mapping at an address of the kernel's choice touches no existing memory.
        let pages = unsafe {
            mm::mmap_anonymous(
                std::ptr::null_mut(),
                mapped_bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?;
        let value = NonNull::new(pages.cast::<T>()).expect("mmap never returns null");
        // SAFETY: the mapping is fresh, large enough, page aligned and ours alone.
        unsafe { value.write(T::default()) };
        let locked = Self { value, mapped_bytes };
        // SAFETY: the range is exactly our own mapping.
        unsafe {
            mm::mlock(pages, mapped_bytes)?;
            mm::madvise(pages, mapped_bytes, Advice::LinuxDontDump)?;
            mm::madvise(pages, mapped_bytes, Advice::LinuxDontFork)?;
        }
        Ok(locked)
    }
}

impl<T: Zeroize> Deref for Locked<T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: initialised in `map`, ours alone, and borrowed no longer than `self`.
        unsafe { self.value.as_ref() }
    }
}

impl<T: Zeroize> DerefMut for Locked<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and `&mut self` makes the borrow exclusive.
        unsafe { self.value.as_mut() }
    }
}

impl<T: Zeroize> Drop for Locked<T> {
    fn drop(&mut self) {
        self.zeroize();
        // SAFETY: the value is initialised and not used again; the range is exactly our own mapping.
        unsafe {
            self.value.drop_in_place();
            // An unmap that fails leaves the (wiped) pages mapped: nothing better can be done here.
            let _ = mm::munmap(self.value.as_ptr().cast(), self.mapped_bytes);
        }
    }
}

impl<T: Zeroize> fmt::Debug for Locked<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Locked([redacted])")
    }
}
