//! A secret on its way from one process to another: a memory file that nobody can change or shorten any more, whose
//! descriptor goes over a Unix socket.
#![expect(unsafe_code, reason = "mmap and mlock")]

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use rustix::io::Errno;
use rustix::mm::{self, MapFlags, ProtFlags};

/// What makes a file fit: nobody can change its size or content.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::WRITE);

/// The copy that is handed over. Its pages are locked in memory as long as this value lives, and gone when the other
/// process has closed it too.
#[derive(Debug)]
pub struct SealedCopy {
    file: OwnedFd,
    _pages: LockedFilePages,
}

impl SealedCopy {
    /// Copies a secret, at least a byte of it.
    ///
    /// # Errors
    /// When there is no memory for it, or none that can be locked.
    pub fn of(secret: &[u8]) -> io::Result<Self> {
        let file = memfd_create(c"sealblk-key", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        // Locked before there is anything to swap out.
        rustix::fs::ftruncate(&file, secret.len() as u64)?;
        let pages = LockedFilePages::of(&file, secret.len())?;
        let file = File::from(file);
        file.write_all_at(secret, 0)?;
        fcntl_add_seals(&file, SEALS | SealFlags::SEAL)?;
        Ok(Self { file: file.into(), _pages: pages })
    }

    /// What is handed over.
    pub fn descriptor(&self) -> &OwnedFd {
        &self.file
    }
}

/// Reads a secret that was handed over into locked memory, which has to have room for all of it. Returns its length.
///
/// # Errors
/// When the file is none that a [`SealedCopy`] could be in.
pub fn read_sealed(file: OwnedFd, into: &mut [u8]) -> io::Result<usize> {
    let invalid = |what| io::Error::new(ErrorKind::InvalidData, what);
    match fcntl_get_seals(&file) {
        Ok(seals) if seals.contains(SEALS) => {}
        Ok(_) | Err(Errno::INVAL) => return Err(invalid("the descriptor is not a sealed memory file")),
        Err(error) => return Err(error.into()),
    }
    let file = File::from(file);
    let len_bytes = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    let Some(into) = into.get_mut(..len_bytes) else { return Err(invalid("it holds more than a key")) };
    file.read_exact_at(into, 0)?;
    Ok(len_bytes)
}

/// Pages of a file that stay in memory.
#[derive(Debug)]
struct LockedFilePages {
    start: NonNull<u8>,
    len_bytes: usize,
}

impl LockedFilePages {
    fn of(file: &OwnedFd, len_bytes: usize) -> io::Result<Self> {
        // Private, since the seal against writing suffers no shared mapping; what is only read is the file's all the same.
        // SAFETY: a fresh mapping at an address of the kernel's choice; nothing is read or written through it.
        let start = unsafe {
            mm::mmap(std::ptr::null_mut(), len_bytes, ProtFlags::READ, MapFlags::PRIVATE, file, 0)
        }?;
        let pages = Self { start: NonNull::new(start.cast()).expect("mmap never returns null"), len_bytes };
        // SAFETY: the range is exactly our own mapping.
        unsafe { mm::mlock(start, len_bytes) }?;
        Ok(pages)
    }
}

impl Drop for LockedFilePages {
    fn drop(&mut self) {
        // SAFETY: the range is exactly our own mapping.
        let _ = unsafe { mm::munmap(self.start.as_ptr().cast(), self.len_bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(file: OwnedFd) -> Result<Vec<u8>, String> {
        let mut buffer = [0; 64];
        let len = read_sealed(file, &mut buffer).map_err(|error| error.to_string())?;
        Ok(buffer[..len].to_vec())
    }

    #[test]
    fn a_sealed_copy_is_read_whole_and_cannot_be_changed() {
        let secret: Vec<u8> = (0..64).collect();
        let copy = SealedCopy::of(&secret).unwrap();
        let other = File::from(copy.descriptor().try_clone().unwrap());
        assert!(other.write_all_at(&[1], 0).is_err());
        assert!(other.set_len(1).is_err());
        assert_eq!(read(other.into()), Ok(secret));
    }

    #[test]
    fn what_is_not_sealed_or_too_long_is_refused() {
        let long = SealedCopy::of(&[1; 65]).unwrap();
        assert_eq!(read(long.descriptor().try_clone().unwrap()), Err("it holds more than a key".into()));
        let unsealed = memfd_create(c"x", MemfdFlags::ALLOW_SEALING).unwrap();
        let not_sealed = Err("the descriptor is not a sealed memory file".to_owned());
        assert_eq!(read(unsealed), not_sealed);
        assert_eq!(read(tempfile::tempfile().unwrap().into()), not_sealed);
        assert!(read(std::os::unix::net::UnixStream::pair().unwrap().0.into()).is_err());
    }
}
