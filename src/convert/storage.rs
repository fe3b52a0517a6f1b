//! Bytes of a regular file or block device, past the page cache where that is possible.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use rustix::fs::{Advice, fadvise};

/// What every device and file system with direct I/O is content with, for memory, offsets and lengths.
pub(super) const DIRECT_ALIGN_BYTES: usize = 4096;

/// A file that is open twice: through the page cache, and directly where its file system can.
#[derive(Debug)]
pub(super) struct Storage {
    file: File,
    direct: Option<File>,
}

impl Storage {
    /// Opens what `file` is a second time, for direct I/O, with the same rights.
    pub(super) fn new(file: File, writable: bool) -> Self {
        let again = OpenOptions::new()
            .read(true)
            .write(writable)
            .custom_flags(libc::O_DIRECT)
            .open(descriptor_path(&file));
        Self { file, direct: again.ok() }
    }

    /// The file, through the page cache.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Fills as much of `buffer` as there is before the end of the file, and tells how much.
    pub(super) fn read(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(direct) = self.direct_for(offset_bytes, buffer) {
            match read_to_end(direct, offset_bytes, buffer) {
                // A file system that changed its mind, or whose blocks are larger: the page cache takes anything.
                Err(error) if error.kind() == ErrorKind::InvalidInput => {}
                answer => return answer,
            }
        }
        read_to_end(&self.file, offset_bytes, buffer)
    }

    /// Writes all of `data`.
    pub(super) fn write(&self, offset_bytes: u64, data: &[u8]) -> io::Result<()> {
        if let Some(direct) = self.direct_for(offset_bytes, data) {
            match direct.write_all_at(data, offset_bytes) {
                Err(error) if error.kind() == ErrorKind::InvalidInput => {}
                answer => return answer,
            }
        }
        self.file.write_all_at(data, offset_bytes)
    }

    /// Lets go of what the page cache holds of the file and has written, so that reading it again reads storage.
    pub(super) fn drop_cached(&self) -> io::Result<()> {
        Ok(fadvise(&self.file, 0, None, Advice::DontNeed)?)
    }

    fn direct_for(&self, offset_bytes: u64, bytes: &[u8]) -> Option<&File> {
        let aligned = offset_bytes.is_multiple_of(DIRECT_ALIGN_BYTES as u64)
            && bytes.len().is_multiple_of(DIRECT_ALIGN_BYTES)
            && bytes.as_ptr().addr().is_multiple_of(DIRECT_ALIGN_BYTES);
        self.direct.as_ref().filter(|_| aligned)
    }
}

/// A path that leads to what `file` is, whatever has become of the name it was opened by.
pub(super) fn descriptor_path(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

fn read_to_end(file: &File, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset_bytes + filled as u64) {
            Ok(0) => break,
            Ok(read_bytes) => filled += read_bytes,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Memory that direct I/O can use.
#[derive(Debug)]
pub(super) struct AlignedBuffer {
    memory: Vec<u8>,
    start: usize,
    len_bytes: usize,
}

impl AlignedBuffer {
    /// Zeroes, `len_bytes` of them.
    pub(super) fn new(len_bytes: usize) -> Self {
        let memory = vec![0; len_bytes + DIRECT_ALIGN_BYTES];
        let start = memory.as_ptr().align_offset(DIRECT_ALIGN_BYTES);
        Self { memory, start, len_bytes }
    }

    /// All of it.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len_bytes]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_arrive_whether_aligned_or_not() {
        let storage = Storage::new(tempfile::tempfile().unwrap(), true);
        let mut buffer = AlignedBuffer::new(3 * DIRECT_ALIGN_BYTES);
        buffer.bytes_mut().iter_mut().enumerate().for_each(|(i, byte)| *byte = i as u8);
        let written = buffer.bytes_mut().to_vec();
        for (offset, from, to) in [(0, 0, 4096), (8192, 4096, 12_288), (4096, 1, 4000), (20_000, 7, 9001)] {
            storage.write(offset, &buffer.bytes_mut()[from..to]).unwrap();
            buffer.bytes_mut().fill(0xee);
            assert_eq!(storage.read(offset, &mut buffer.bytes_mut()[from..to]).unwrap(), to - from);
            assert_eq!(buffer.bytes_mut()[from..to], written[from..to]);
            buffer.bytes_mut().copy_from_slice(&written);
        }
    }

    #[test]
    fn the_end_of_the_file_is_told() {
        let storage = Storage::new(tempfile::tempfile().unwrap(), true);
        storage.write(0, &[7; 5000]).unwrap();
        let mut buffer = AlignedBuffer::new(2 * DIRECT_ALIGN_BYTES);
        assert_eq!(storage.read(0, buffer.bytes_mut()).unwrap(), 5000);
        assert_eq!(storage.read(4096, &mut buffer.bytes_mut()[..4096]).unwrap(), 904);
        assert_eq!(storage.read(8192, buffer.bytes_mut()).unwrap(), 0);
    }
}
