//! One disk, made into another: from bare bytes, a volume in one of our formats or an image that QEMU reads, to a new
//! volume. Also the way out (export), and the way back in (restoring a backup).
//!
//! # What is promised
//!
//! * The new disk has the old one's content, every byte, with zeroes up to the last whole sector and up to the size
//!   that was asked for. Nothing is cut off.
//! * A file appears under its name when it is complete and durable, not before. A device gets its header last and has
//!   zeroes there until then, so that what is incomplete is no volume.
//! * Zeroes are encrypted like everything else, so an encrypted volume does not show which parts are in use.
//! * The source is locked against writers, the destination against everybody.
//! * An image is never probed for its format, and may not pull in other files unless that is allowed by name.

mod confine;
mod copy;
mod destination;
mod error;
mod image;
mod layout;
mod nbd;
mod source;
mod storage;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub use confine::ImageTool;
pub use destination::Overwrite;
pub use error::{ConvertError, End};
pub use image::{ImageError, ImageFormat, ImageSource};
pub use layout::{DestinationFormat, LuksDestination};
pub use source::{SourceFormat, Unwritten};

use copy::{PIECE_BYTES, for_each_piece, thread_count};
use destination::{Allocation, Destination, Site};
use layout::Layout;
use source::{Content, Reader, Source};
use storage::AlignedBuffer;

use crate::cipher::Xts;
use crate::geometry::SectorSize;
use crate::keys::{KeySource, Secret};
use crate::server::config::VolumeConfig;
use crate::server::volume_file::open_volume;

/// One conversion.
pub struct ConvertConfig {
    /// What is read.
    pub source: SourceConfig,
    /// What is made.
    pub destination: DestinationConfig,
    /// Size of the new disk, if not that of the old one.
    pub size_bytes: Option<u64>,
    /// What becomes of parts of an encrypted source that were never written.
    pub unwritten: Unwritten,
    /// Compare both when all is written.
    pub verify: bool,
}

/// What is read.
pub struct SourceConfig {
    /// A file or block device.
    pub path: PathBuf,
    /// What lies there.
    pub format: SourceFormat,
    /// Its key.
    pub key: Option<KeySource>,
}

/// What is made.
pub struct DestinationConfig {
    /// A new file, or a block device.
    pub path: PathBuf,
    /// What it is to be.
    pub format: DestinationFormat,
    /// Its encryption sector size, if not that of the source. A disk that was made for one block size is of little use
    /// with another.
    pub sector_size: Option<SectorSize>,
    /// Its key.
    pub key: Option<KeySource>,
    /// Whether something that is there already may be replaced.
    pub overwrite: Overwrite,
}

/// A part of a conversion that takes long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// From one to the other.
    Copy,
    /// Both are compared.
    Verify,
}

/// Is told how far it is.
pub trait Observer: Sync {
    /// A phase begins, which will pass over so many bytes.
    fn begin(&self, phase: Phase, total_bytes: u64);
    /// So many more of them are done. Called by several threads.
    fn advance(&self, bytes: u64);
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Size of the source's disk.
    pub source_bytes: u64,
    /// Size of the new disk.
    pub disk_bytes: u64,
    /// The new volume's encryption sector size, if it is encrypted.
    pub sector_size: Option<SectorSize>,
    /// Bytes of the source that were read; the rest was known to be zeroes, or never written.
    pub read_bytes: u64,
    /// Whether both were compared afterwards.
    pub verified: bool,
}

/// Makes the destination from the source, and tells `observer` how far it is. Ends soon after `stop` is set.
///
/// # Errors
/// See [`ConvertError`]. Nothing is left of a file that was not completed.
pub fn convert(
    mut config: ConvertConfig,
    observer: &dyn Observer,
    stop: &AtomicBool,
) -> Result<Report, ConvertError> {
    let (from, to) = (&config.source, &config.destination);
    let sector_size = to.sector_size;
    let volume = open_volume(&VolumeConfig { path: from.path.clone(), read_only: true, direct: false })
        .map_err(|source| ConvertError::Open { end: End::Source, source })?;
    let site = Site::survey(&to.path, to.overwrite, &volume.file)?;
    // Both before another program is started, which would inherit their descriptors.
    let source_key = fetch(End::Source, from.key.as_ref())?;
    let key = fetch(End::Destination, to.key.as_ref())?;

    let mut source = Source::new(volume.into(), &from.path, &from.format, source_key, thread_count())?;
    let disk_bytes = disk_bytes(source.size_bytes(), config.size_bytes)?;
    let unwritten = settled_unwritten(&config, &source, &site)?;
    config.destination.format.with_sector_size(sector_size.unwrap_or(source.sector_size()));
    let layout = Layout::new(&config.destination.format, disk_bytes, key.as_ref())?;
    let allocation = match (&layout.xts, unwritten) {
        (Some(_), Unwritten::Read) => Allocation::Full,
        _ => Allocation::Sparse,
    };
    let destination = Destination::create(site, layout, allocation, config.destination.overwrite)?;
    let ConvertConfig { destination: DestinationConfig { format, .. }, verify, .. } = &config;
    let work = Work { format, verify: *verify, key, unwritten, observer, stop };
    match work.fill(&mut source, &destination) {
        Ok(report) => destination.complete().map(|()| report),
        Err(error) => Err(destination.abandon(error)),
    }
}

fn fetch(end: End, key: Option<&KeySource>) -> Result<Option<Secret>, ConvertError> {
    key.map(KeySource::fetch).transpose().map_err(|source| ConvertError::Key { end, source })
}

fn disk_bytes(size_bytes: u64, wanted_bytes: Option<u64>) -> Result<u64, ConvertError> {
    match wanted_bytes {
        None => Ok(size_bytes),
        Some(wanted_bytes) if wanted_bytes >= size_bytes => Ok(wanted_bytes),
        Some(wanted_bytes) => Err(ConvertError::SizeTooSmall { wanted_bytes, size_bytes }),
    }
}

/// Leaving things out is only possible where it changes nothing that anybody ever wrote.
fn settled_unwritten(
    config: &ConvertConfig,
    source: &Source,
    site: &Site,
) -> Result<Unwritten, ConvertError> {
    let into_encrypted = !matches!(config.destination.format, DestinationFormat::Raw);
    match config.unwritten {
        Unwritten::Skip if site.is_device() => Err(ConvertError::SparseDevice),
        Unwritten::Skip if into_encrypted && !source.is_encrypted() => Err(ConvertError::SparseZeroes),
        unwritten => Ok(unwritten),
    }
}

/// What all phases of a conversion need to know.
struct Work<'a> {
    format: &'a DestinationFormat,
    verify: bool,
    /// The destination's.
    key: Option<Secret>,
    unwritten: Unwritten,
    observer: &'a dyn Observer,
    stop: &'a AtomicBool,
}

impl Work<'_> {
    /// Writes everything but the header, and makes sure that it is there.
    fn fill(&self, source: &mut Source, destination: &Destination) -> Result<Report, ConvertError> {
        destination.begin()?;
        let (source_bytes, disk_bytes) = (source.size_bytes(), destination.layout().capacity_bytes);
        let sector_size = destination.layout().xts.as_ref().map(Xts::sector_size);
        let read_bytes = self.copy(source, destination)?;
        destination.sync()?;
        if self.verify {
            self.verify(source, destination)?;
        }
        if self.stop.load(Ordering::Relaxed) {
            return Err(ConvertError::Interrupted);
        }
        Ok(Report { source_bytes, disk_bytes, sector_size, read_bytes, verified: self.verify })
    }

    /// Copies the disk and tells how much of the source was read.
    fn copy(&self, source: &mut Source, destination: &Destination) -> Result<u64, ConvertError> {
        let total_bytes = destination.layout().capacity_bytes;
        self.observer.begin(Phase::Copy, total_bytes);
        let all_read_bytes = AtomicU64::new(0);
        let workers = source.readers(thread_count()).into_iter();
        let workers = workers.map(|reader| (reader, AlignedBuffer::new(PIECE_BYTES))).collect();
        for_each_piece(workers, total_bytes, self.stop, |(reader, buffer), piece| {
            let buffer = &mut buffer.bytes_mut()[..piece.len_bytes];
            let content = self.read(reader, piece.offset_bytes, buffer)?;
            if content == Content::Data {
                all_read_bytes.fetch_add(piece.len_bytes as u64, Ordering::Relaxed);
            }
            destination
                .write(piece.offset_bytes, buffer, content)
                .map_err(|source| ConvertError::Write { offset_bytes: piece.offset_bytes, source })?;
            self.observer.advance(piece.len_bytes as u64);
            Ok(())
        })?;
        Ok(all_read_bytes.into_inner().min(source.size_bytes()))
    }

    /// Reads source and destination and compares them.
    fn verify(&self, source: &mut Source, destination: &Destination) -> Result<(), ConvertError> {
        let layout = destination.layout();
        self.observer.begin(Phase::Verify, layout.capacity_bytes);
        let written = layout.read_back(self.format, destination.reopened()?, self.key.as_ref())?;
        let buffers = || (AlignedBuffer::new(PIECE_BYTES), AlignedBuffer::new(PIECE_BYTES));
        let workers = source.readers(thread_count()).into_iter();
        let workers = workers.map(|reader| (reader, buffers())).collect();
        for_each_piece(workers, layout.capacity_bytes, self.stop, |(reader, (expected, found)), piece| {
            let offset_bytes = piece.offset_bytes;
            let expected = &mut expected.bytes_mut()[..piece.len_bytes];
            let found = &mut found.bytes_mut()[..piece.len_bytes];
            let content = self.read(reader, offset_bytes, expected)?;
            if content != Content::Data {
                expected.fill(0);
            }
            let left_out = content == Content::Unwritten && layout.xts.is_some();
            if !left_out {
                let content = written
                    .read(offset_bytes, found, Unwritten::Read)
                    .map_err(|source| ConvertError::Read { end: End::Destination, offset_bytes, source })?;
                if content != Content::Data {
                    found.fill(0);
                }
                compare(expected, found, offset_bytes)?;
            }
            self.observer.advance(piece.len_bytes as u64);
            Ok(())
        })
    }

    fn read(
        &self,
        reader: &mut Reader<'_>,
        offset_bytes: u64,
        buffer: &mut [u8],
    ) -> Result<Content, ConvertError> {
        reader.read(offset_bytes, buffer, self.unwritten).map_err(|source| ConvertError::Read {
            end: End::Source,
            offset_bytes,
            source,
        })
    }
}

fn compare(expected: &[u8], found: &[u8], offset_bytes: u64) -> Result<(), ConvertError> {
    if expected == found {
        return Ok(());
    }
    let same = expected.iter().zip(found).take_while(|(a, b)| a == b).count();
    Err(ConvertError::Mismatch { offset_bytes: offset_bytes + same as u64 })
}

#[cfg(test)]
mod tests;
