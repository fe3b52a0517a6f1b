//! Who may change a volume's header, and when: locks beside the `flock` that `serve` holds for as long as it runs.
//!
//! Keys are rotated while the volume is being served, which needs the header only at its start. So changing a header
//! is kept apart from serving by open file description locks (`fcntl(2)`), which know nothing of `flock`:
//!
//! * [`claim`] takes the header's first page exclusively: one program changes it at a time. QEMU locks bytes there
//!   too (100 and on), so an image that QEMU has open itself is noticed.
//! * [`mark_served`] leaves a shared lock far beyond the end of any volume, once `serve` has read the header. A `flock`
//!   that comes with this mark does not matter to who changes the header; any other belongs to a program that may be
//!   reading or changing it itself, such as cryptsetup.
//!
//! On a network file system that knows one kind of lock only (NFS), the header of a served volume cannot be claimed.
#![expect(unsafe_code, reason = "fcntl with a lock range has no safe wrapper")]

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;

/// First byte and length of the header's lock.
const HEADER: (i64, i64) = (0, 4096);
/// The byte that says: served.
const SERVED: (i64, i64) = (1 << 62, 1);

/// Claims the header of `device`, open for writing, until `device` and its duplicates are closed. Returns whether it
/// was free.
///
/// # Errors
/// When there are no such locks.
pub fn claim(device: &File) -> io::Result<bool> {
    set(device, libc::F_WRLCK, HEADER)
}

/// Lets [`is_served`] see that `volume` is being served, until it and its duplicates are closed.
///
/// # Errors
/// When there are no such locks. Nothing is less safe then; but the header cannot be changed meanwhile.
pub fn mark_served(volume: &File) -> io::Result<()> {
    // Only others who leave the same mark lock this byte.
    set(volume, libc::F_RDLCK, SERVED).map(|_| ())
}

/// Whether another process serves `device`.
///
/// # Errors
/// When there are no such locks.
pub fn is_served(device: &File) -> io::Result<bool> {
    let mut lock = range(libc::F_WRLCK, SERVED);
    fcntl(device, libc::F_OFD_GETLK, &mut lock)?;
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}

/// Sets a lock. Returns false where another stands in its way.
fn set(file: &File, kind: libc::c_int, place: (i64, i64)) -> io::Result<bool> {
    match fcntl(file, libc::F_OFD_SETLK, &mut range(kind, place)) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => Ok(false),
        Err(error) => Err(error),
    }
}

fn range(kind: libc::c_int, (start, length): (i64, i64)) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: length,
        l_pid: 0,
    }
}

fn fcntl(file: &File, command: libc::c_int, lock: &mut libc::flock) -> io::Result<()> {
    // SAFETY: both lock commands take a pointer to a `flock`, which is ours alone during the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(lock)) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::path::Path;

    fn open(path: &Path) -> File {
        OpenOptions::new().read(true).write(true).open(path).unwrap()
    }

    #[test]
    fn one_at_a_time_changes_a_header() {
        let volume = tempfile::NamedTempFile::new().unwrap();
        let (first, second) = (open(volume.path()), open(volume.path()));
        assert!(claim(&first).unwrap());
        assert!(claim(&first).unwrap(), "a claim is not in its own way");
        assert!(!claim(&second).unwrap());
        let duplicate = first.try_clone().unwrap();
        drop(first);
        assert!(!claim(&second).unwrap(), "a duplicate keeps the claim");
        drop(duplicate);
        assert!(claim(&second).unwrap());
    }

    #[test]
    fn served_is_who_says_so() {
        let volume = tempfile::NamedTempFile::new().unwrap();
        let (device, servers) =
            (open(volume.path()), [File::open(volume.path()).unwrap(), open(volume.path())]);
        servers[1].lock().unwrap();
        assert!(!is_served(&device).unwrap(), "a flock alone says nothing");
        for server in &servers {
            mark_served(server).unwrap();
        }
        assert!(is_served(&device).unwrap());
        assert!(claim(&device).unwrap(), "served or not, the header can be claimed");
        drop(servers);
        assert!(!is_served(&device).unwrap());
    }
}
