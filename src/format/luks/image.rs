//! A header area in memory that libcryptsetup may change, before any of it gets to a volume.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use libcryptsetup_rs::CryptDevice;
use libcryptsetup_rs::consts::vals::EncryptionFormat;

use super::error::LuksError;
use super::library::{self, LibraryError};
use super::on_disk::{Version, luks2_copy_bytes};
use super::snapshot::{HeaderSnapshot, new_memory};
use super::unlock::Header;

/// Blocks in which images are compared and written. Each header copy, each slot's area and the payload begin at a
/// multiple of it, in every header that cryptsetup or QEMU makes.
pub(super) const BLOCK_BYTES: u64 = 4096;

/// A header area, not sealed.
#[derive(Debug)]
pub(super) struct HeaderImage {
    memory: File,
    version: Version,
    area_bytes: u64,
}

impl HeaderImage {
    /// A copy of `snapshot` that can be changed.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub(super) fn copy_of(snapshot: &HeaderSnapshot) -> io::Result<Self> {
        let memory = new_memory()?.0;
        let image = Self { memory, version: snapshot.version(), area_bytes: snapshot.area_bytes() };
        image.memory.set_len(image.area_bytes)?;
        let mut piece = vec![0; 1 << 20];
        let mut at = 0;
        while at < image.area_bytes {
            let wanted = piece.len().min(usize::try_from(image.area_bytes - at).unwrap_or(usize::MAX));
            snapshot.memory().read_exact_at(&mut piece[..wanted], at)?;
            image.memory.write_all_at(&piece[..wanted], at)?;
            at += wanted as u64;
        }
        Ok(image)
    }

    /// The area as libcryptsetup sees it, to change it.
    ///
    /// # Errors
    /// When the library finds it invalid.
    pub(super) fn load(&self) -> Result<CryptDevice, LibraryError> {
        let version = match self.version {
            Version::Luks1 => EncryptionFormat::Luks1,
            Version::Luks2 => EncryptionFormat::Luks2,
        };
        library::load(&self.memory, version)
    }

    /// The header, read and described.
    pub(super) fn header(&self) -> Result<Header, LuksError> {
        Header::read(&self.memory, self.area_bytes)
    }

    /// Which version the header is of.
    pub(super) fn version(&self) -> Version {
        self.version
    }

    /// Bytes of the area.
    pub(super) fn area_bytes(&self) -> u64 {
        self.area_bytes
    }

    /// Reads `range` of the area.
    pub(super) fn read(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(range.end - range.start).map_err(io::Error::other)?];
        self.memory.read_exact_at(&mut bytes, range.start)?;
        Ok(bytes)
    }

    /// Puts `bytes` at `offset_bytes`.
    pub(super) fn write(&self, bytes: &[u8], offset_bytes: u64) -> io::Result<()> {
        self.memory.write_all_at(bytes, offset_bytes)
    }

    /// Bytes of one copy of the header without the slots' areas; of which LUKS2 has two, LUKS1 one.
    pub(super) fn copy_bytes(&self) -> io::Result<u64> {
        match self.version {
            Version::Luks1 => Ok(BLOCK_BYTES),
            Version::Luks2 => luks2_copy_bytes(&self.read(0..16)?)
                .filter(|bytes| bytes.is_multiple_of(BLOCK_BYTES) && 2 * bytes <= self.area_bytes)
                .ok_or_else(|| io::Error::other("the LUKS2 header in memory is not valid")),
        }
    }

    /// The blocks in which `self` differs from `other`, as ranges.
    pub(super) fn blocks_unlike(&self, other: &Self) -> io::Result<Vec<Range<u64>>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let mut at = 0;
        while at < self.area_bytes {
            let block = at..(at + BLOCK_BYTES).min(self.area_bytes);
            at = block.end;
            if self.read(block.clone())? == other.read(block.clone())? {
                continue;
            }
            match ranges.last_mut() {
                Some(last) if last.end == block.start => last.end = block.end,
                _ => ranges.push(block),
            }
        }
        Ok(ranges)
    }
}
