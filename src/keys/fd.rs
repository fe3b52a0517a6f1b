//! `fd:N`: key material from a pipe, memory file or file that the parent process left open.
//!
//! The way to hand over a key that never lies in a file: the parent writes it into a pipe, closes its end,
//! and passes the other end on.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::RawFd;

use rustix::event::{PollFd, PollFlags, poll};

use super::reference::ManagerName;
use super::scheme::Scheme;
use super::{KeyError, KeyId, KeyManager, Secret, SecretError};
use crate::inherited::{self, TakeError};

pub(super) const SCHEME: Scheme = Scheme {
    name: "fd",
    usage: "fd:N",
    takes_profile: false,
    takes_version: false,
    open: |_| Ok(Box::new(KeyDescriptors)),
    administer: None,
};

/// Keys behind inherited descriptors. Each is read to its end, once, and closed: what cannot be read at the first
/// attempt cannot be read at another, so nothing here is ever [`KeyError::Unreachable`].
#[derive(Debug)]
pub struct KeyDescriptors;

impl KeyManager for KeyDescriptors {
    fn fetch(&self, id: &KeyId) -> Result<Secret, KeyError> {
        let key = ManagerName::new(&SCHEME).key(id);
        let Ok(fd) = id.name().parse::<RawFd>() else {
            return Err(KeyError::malformed(key, "a descriptor is a number", "write fd:N, with N above 2"));
        };
        let file = match inherited::take(fd) {
            Ok(owned) => File::from(owned),
            Err(error @ TakeError::NotWaiting(_)) => return Err(KeyError::not_found(key, error.to_string())),
            Err(error) => {
                return Err(KeyError::not_allowed(
                    key,
                    error.to_string(),
                    "for example `--key fd:3 3<KEYFILE`",
                ));
            }
        };
        Secret::read_from(Waiting(file)).map_err(|error| match error {
            SecretError::Empty => KeyError::malformed(
                key,
                "there is nothing to read",
                "rewind the file, or write the key before closing the pipe",
            ),
            SecretError::Read(source) if source.raw_os_error() == Some(libc::EBADF) => {
                KeyError::not_allowed(key, "it is not open for reading", "pass the end that is read from")
            }
            SecretError::Read(source) => {
                KeyError::malformed(key, format!("it cannot be read ({source})"), "pass a file or a pipe")
            }
            error => KeyError::of_secret(key, error),
        })
    }
}

/// Waits where a descriptor that the parent made non-blocking would not.
struct Waiting(File);

impl Read for Waiting {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(into) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(&self.0, PollFlags::IN)], None)?;
                }
                result => return result,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};
    use std::os::fd::OwnedFd;
    use std::{fs, thread};

    use rustix::fs::{MemfdFlags, OFlags, fcntl_setfl, memfd_create};

    use super::*;

    fn fetch(fd: impl Into<OwnedFd>) -> Result<Secret, KeyError> {
        KeyDescriptors.fetch(&KeyId::new(inherited::hand_over(fd.into()).to_string()))
    }

    #[test]
    fn a_pipe_is_read_to_its_end_even_when_it_does_not_block() {
        for flags in [OFlags::empty(), OFlags::NONBLOCK] {
            let (reader, mut writer) = io::pipe().unwrap();
            fcntl_setfl(&reader, flags).unwrap();
            let parent = thread::spawn(move || {
                for part in [&b"first "[..], b"second"] {
                    thread::yield_now();
                    writer.write_all(part).unwrap();
                }
            });
            assert_eq!(fetch(reader).unwrap().expose(), b"first second");
            parent.join().unwrap();
        }
    }

    #[test]
    fn a_memory_file_is_read_from_where_it_stands() {
        let mut file = File::from(memfd_create("key", MemfdFlags::CLOEXEC).unwrap());
        file.write_all(b"secret").unwrap();
        let kept = file.try_clone().unwrap();
        assert!(matches!(fetch(file), Err(KeyError::Malformed { .. })), "stands at its end");
        let mut file = kept;
        file.rewind().unwrap();
        assert_eq!(fetch(file).unwrap().expose(), b"secret");
    }

    #[test]
    fn unusable_descriptors_are_told_apart() {
        let id = |text: &str| KeyId::new(text);
        assert!(matches!(KeyDescriptors.fetch(&id("0")), Err(KeyError::NotAllowed { .. })));
        assert!(matches!(KeyDescriptors.fetch(&id("1000000")), Err(KeyError::NotFound { .. })));
        assert!(matches!(KeyDescriptors.fetch(&id("three")), Err(KeyError::Malformed { .. })));
        let write_only = fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
        assert!(matches!(fetch(write_only), Err(KeyError::NotAllowed { .. })));
        let folder = File::open("/").unwrap();
        assert!(matches!(fetch(folder), Err(KeyError::Malformed { .. })));
        let endless = File::open("/dev/zero").unwrap();
        assert!(matches!(fetch(endless), Err(KeyError::Malformed { .. })));
    }
}
