//! A private copy of a volume's header area, made once, which everything else works on.
//!
//! Between a check of the header and its use, whoever controls the storage could change it. So the area is read
//! once, into a sealed memfd that no one can change any more, this process included, and libcryptsetup is given that.
//! It also settles what the volume's own `flock` and `O_DIRECT` would do to a library that opens the volume again.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use libcryptsetup_rs::CryptDevice;
use libcryptsetup_rs::consts::vals::EncryptionFormat;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::error::LuksError;
use super::library::{self, LibraryError};
use super::metadata::Metadata;
use super::on_disk::{
    LUKS2_BINARY_BYTES, LUKS2_HEADER_BYTES_MAX, LUKS2_HEADER_BYTES_MIN, LUKS2_KEYSLOTS_BYTES_MAX, Luks1,
    Version, version,
};

/// Offsets, lengths and addresses for direct I/O: what is enough for any device.
const READ_ALIGN_BYTES: usize = 4096;
const READ_BYTES: usize = 1 << 20;

/// What is read before the header's size is known: the usual pair of LUKS2 headers, and if there is none the largest.
const USUAL_BYTES: u64 = 2 * LUKS2_HEADER_BYTES_MIN;
const PROBE_BYTES: u64 = 2 * LUKS2_HEADER_BYTES_MAX;

/// A header area, copied and sealed.
#[derive(Debug)]
pub struct HeaderSnapshot {
    memory: File,
    start: Vec<u8>,
    version: Version,
    area_bytes: u64,
    digest: [u8; 32],
}

impl HeaderSnapshot {
    /// Copies the header area of `source`, a volume or detached header of `source_bytes`, which may be open for
    /// direct I/O. At most 136 MiB are read and held in memory; 2 or 16 MiB are usual.
    ///
    /// The area is: for LUKS1 from byte 0 to the end of the last slot's key material, in whole pages of 4096
    /// bytes; for LUKS2 both copies of the header and the keyslots area. `cryptsetup luksHeaderBackup` saves the
    /// same bytes.
    ///
    /// # Errors
    /// When there is no LUKS header, when it is not valid, or when it cannot be read.
    pub fn take(source: &File, source_bytes: u64) -> Result<Self, LuksError> {
        let (start, version, area_bytes) = match Self::probe(source, source_bytes.min(USUAL_BYTES)) {
            Err(LuksError::Read(error)) => return Err(LuksError::Read(error)),
            Err(_) if source_bytes > USUAL_BYTES => Self::probe(source, source_bytes.min(PROBE_BYTES))?,
            probed => probed?,
        };
        if area_bytes > source_bytes {
            return Err(LuksError::Truncated { version, area_bytes, source_bytes });
        }
        let (memory, digest) = copy_area(source, &start, area_bytes).map_err(LuksError::Read)?;
        Ok(Self { memory, start, version, area_bytes, digest })
    }

    /// The first `bytes` bytes of `source`, and what version and size of header they say is there.
    fn probe(source: &File, bytes: u64) -> Result<(Vec<u8>, Version, u64), LuksError> {
        let start = read_start(source, bytes).map_err(LuksError::Read)?;
        let version = version(&start).ok_or_else(|| LuksError::NotLuks(other_signature(&start)))?;
        let area_bytes = match version {
            Version::Luks1 => Luks1::parse(&start)
                .and_then(|header| header.area_bytes())
                .map_err(|what| LuksError::Invalid { version, what })?,
            Version::Luks2 => luks2_area_bytes(&start)?,
        };
        Ok((start, version, area_bytes))
    }

    /// Which version the header is of.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Bytes of the header area, from the beginning of the volume.
    pub fn area_bytes(&self) -> u64 {
        self.area_bytes
    }

    /// SHA-256 of the header area: `sha256sum` of what `cryptsetup luksHeaderBackup` saves.
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// The copied area itself: a sealed memfd of exactly [`area_bytes`](Self::area_bytes).
    pub fn memory(&self) -> &File {
        &self.memory
    }

    /// The beginning of the area, at most as much as both copies of the largest header.
    pub(super) fn start(&self) -> &[u8] {
        let area_bytes = usize::try_from(self.area_bytes).unwrap_or(usize::MAX);
        &self.start[..self.start.len().min(area_bytes)]
    }

    /// The header as libcryptsetup sees it. It cannot change it; what it is asked to write fails.
    ///
    /// # Errors
    /// When the library finds it invalid.
    pub fn load(&self) -> Result<CryptDevice, LibraryError> {
        let version = match self.version {
            Version::Luks1 => EncryptionFormat::Luks1,
            Version::Luks2 => EncryptionFormat::Luks2,
        };
        library::load(&self.memory, version)
    }
}

/// Bytes of the header area of the LUKS2 header in `start`: as its JSON says after libcryptsetup checked it.
fn luks2_area_bytes(start: &[u8]) -> Result<u64, LuksError> {
    let version = Version::Luks2;
    let (mut memory, seal) = new_memory().map_err(LuksError::Memory)?;
    memory.write_all(start).map_err(LuksError::Memory)?;
    // The library insists on space for the keyslots. It is a hole: nothing looks there yet.
    memory.set_len(PROBE_BYTES + LUKS2_KEYSLOTS_BYTES_MAX).map_err(LuksError::Memory)?;
    seal(&memory).map_err(LuksError::Memory)?;
    let mut device = library::load(&memory, EncryptionFormat::Luks2)
        .map_err(|source| LuksError::Load { version, source })?;
    let config = Metadata::of(&mut device)?.config;
    let header_bytes = config.json_bytes.checked_add(LUKS2_BINARY_BYTES);
    header_bytes
        .filter(|header_bytes| *header_bytes <= LUKS2_HEADER_BYTES_MAX)
        .filter(|_| config.keyslots_bytes <= LUKS2_KEYSLOTS_BYTES_MAX)
        .map(|header_bytes| 2 * header_bytes + config.keyslots_bytes)
        .ok_or_else(|| LuksError::Invalid { version, what: "its areas are larger than possible".to_owned() })
}

/// A memfd, and what seals it.
pub(super) fn new_memory() -> io::Result<(File, impl FnOnce(&File) -> io::Result<()>)> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 do not know NOEXEC_SEAL, later ones may insist on it.
    let memory = match memfd_create(c"luks-header", flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => memfd_create(c"luks-header", flags),
        made => made,
    }?;
    let seal = |memory: &File| {
        // Nothing has it mapped for writing, so that future writes are all there could be. (F_SEAL_WRITE fails with
        // EBUSY while the kernel happens to hold one of the pages.)
        let seals = SealFlags::FUTURE_WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
        fcntl_add_seals(memory, seals).map_err(io::Error::from)
    };
    Ok((File::from(memory), seal))
}

/// The header area in a sealed memfd, and its SHA-256. What was read as `start` is not read again.
fn copy_area(source: &File, start: &[u8], area_bytes: u64) -> io::Result<(File, [u8; 32])> {
    let (mut memory, seal) = new_memory()?;
    let mut digest = Sha256::new();
    let mut keep = |bytes: &[u8]| {
        digest.update(bytes);
        memory.write_all(bytes)
    };
    let start_bytes = (start.len() as u64).min(area_bytes);
    keep(&start[..usize::try_from(start_bytes).expect("not more than there is in memory")])?;
    read_range(source, start_bytes..area_bytes, keep)?;
    seal(&memory)?;
    Ok((memory, digest.finalize().into()))
}

fn read_start(source: &File, bytes: u64) -> io::Result<Vec<u8>> {
    let mut start = Vec::new();
    read_range(source, 0..bytes, |bytes| {
        start.extend_from_slice(bytes);
        Ok(())
    })?;
    Ok(start)
}

/// Reads `range` of `source` piece by piece, as direct I/O wants it: `range.start` is a multiple of 4096 or the
/// range is empty.
fn read_range(
    source: &File,
    range: Range<u64>,
    mut take: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut memory = vec![0_u8; READ_BYTES + READ_ALIGN_BYTES];
    let aligned = memory.as_ptr().align_offset(READ_ALIGN_BYTES);
    let memory = &mut memory[aligned..aligned + READ_BYTES];
    let mut position = range.start;
    while position < range.end {
        let left_bytes = usize::try_from(range.end - position).unwrap_or(usize::MAX);
        let wanted_bytes = left_bytes.min(READ_BYTES).next_multiple_of(READ_ALIGN_BYTES);
        let read_bytes = match source.read_at(&mut memory[..wanted_bytes], position) {
            Ok(read_bytes) => read_bytes,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        // A short read is gone on with from where direct I/O can.
        let usable_bytes = match read_bytes.min(left_bytes) {
            bytes if bytes == left_bytes => bytes,
            bytes => bytes - bytes % READ_ALIGN_BYTES,
        };
        if usable_bytes == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        take(&memory[..usable_bytes])?;
        position += usable_bytes as u64;
    }
    Ok(())
}

/// What else lies there, for the error message.
fn other_signature(start: &[u8]) -> &'static str {
    if start.starts_with(b"QFI\xfb") {
        "; it is a qcow2 image"
    } else if start.starts_with(b"LUKS\xba\xbe") {
        "; it is a LUKS header of an unknown version"
    } else if start.iter().all(|byte| *byte == 0) {
        "; it is blank"
    } else {
        ""
    }
}
