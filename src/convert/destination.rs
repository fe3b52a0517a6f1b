//! Where the disk's content goes: a new file that appears when it is whole, or a block device whose header is
//! written last.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::error::{ConvertError, End};
use super::layout::Layout;
use super::source::{Backing, Content};
use super::storage::Storage;
use crate::format::luks::{Header, backup};
use crate::format::new_file::{NewFile, folder_of};
use crate::format::signature::{self, Contents};
use crate::geometry::SectorNumber;
use crate::server::config::VolumeConfig;
use crate::server::volume_file::{OpenedVolume, open_volume};

/// What an unencrypted destination is looked through for zeroes by.
const ZERO_BLOCK_BYTES: usize = 64 << 10;
/// Zeroes are written over old headers in pieces of this size.
const WIPE_BYTES: usize = 1 << 20;

/// The volume under way.
#[derive(Debug)]
pub(super) struct Destination {
    path: PathBuf,
    place: Place,
    storage: Storage,
    layout: Layout,
    header_file: Option<NewFile>,
}

#[derive(Debug)]
enum Place {
    /// A file without a name, and the one that it replaces, locked.
    File { new: NewFile, _replaced: Option<OpenedVolume> },
    /// A device, locked.
    Device { _locked: OpenedVolume },
}

/// Whether something that is there already may be replaced or overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overwrite {
    /// No.
    Refuse,
    /// Yes, by name (`--force`).
    Allow,
}

/// Whether every sector of a new file gets its place on storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Allocation {
    /// Yes, before the first is written.
    Full,
    /// Only those that are written.
    Sparse,
}

/// What there is where the destination is to be, locked if there is something.
#[derive(Debug)]
pub(super) struct Site {
    path: PathBuf,
    found: Option<OpenedVolume>,
}

impl Site {
    /// Looks at `path` and locks what is there, if that may be overwritten.
    pub(super) fn survey(path: &Path, overwrite: Overwrite, source: &File) -> Result<Self, ConvertError> {
        let unusable = |source| ConvertError::Create { path: path.to_owned(), source };
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Ok(Self { path: path.to_owned(), found: None });
            }
            Err(error) => return Err(unusable(error)),
        };
        let of_source = source.metadata().map_err(|source| ConvertError::Descriptors { source })?;
        let is_device = metadata.file_type().is_block_device();
        if (is_device && metadata.rdev() == of_source.rdev())
            || (metadata.dev(), metadata.ino()) == (of_source.dev(), of_source.ino())
        {
            return Err(ConvertError::SameFile);
        }
        if overwrite == Overwrite::Refuse && !is_device {
            return Err(ConvertError::Exists { path: path.to_owned() });
        }
        // The file that a link leads to is replaced, not the link.
        let path = fs::canonicalize(path).map_err(unusable)?;
        let found = open_volume(&VolumeConfig { path: path.clone(), read_only: false, direct: false })
            .map_err(|source| ConvertError::Open { end: End::Destination, source })?;
        Ok(Self { path, found: Some(found) })
    }

    /// Whether it is a block device.
    pub(super) fn is_device(&self) -> bool {
        self.found.as_ref().is_some_and(|found| found.is_block_device)
    }

    /// Refuses a device that holds something, and any device for a volume without a header, which would be taken for
    /// whole while it is not.
    fn check_device(&self, layout: &Layout, overwrite: Overwrite) -> Result<(), ConvertError> {
        let Some(device) = self.found.as_ref().filter(|found| found.is_block_device) else { return Ok(()) };
        let path = || self.path.clone();
        if overwrite == Overwrite::Refuse {
            if layout.header.is_none() {
                return Err(ConvertError::NoHeader { path: path() });
            }
            let contents = signature::examine(&device.file, device.size_bytes);
            let contents = contents.map_err(|source| ConvertError::Create { path: path(), source })?;
            if contents != Contents::Zeroes {
                return Err(ConvertError::DeviceInUse { path: path(), contents });
            }
        }
        let (device_bytes, needed_bytes) = (device.size_bytes, layout.end_bytes());
        if device_bytes < needed_bytes {
            return Err(ConvertError::DeviceTooSmall { path: path(), device_bytes, needed_bytes });
        }
        Ok(())
    }
}

impl Destination {
    /// Makes the file, or takes the device, at `site`. Nothing on a device has changed yet.
    pub(super) fn create(
        site: Site,
        layout: Layout,
        allocation: Allocation,
        overwrite: Overwrite,
    ) -> Result<Self, ConvertError> {
        site.check_device(&layout, overwrite)?;
        let Site { path, found } = site;
        let header_file =
            layout.header_path.as_deref().map(|header| begin_header(header, &path)).transpose()?;
        let clone = |file: &File| file.try_clone().map_err(|source| ConvertError::Descriptors { source });
        let (place, storage) = match found {
            Some(device) if device.is_block_device => {
                let storage = Storage::new(clone(&device.file)?, true);
                (Place::Device { _locked: device }, storage)
            }
            replaced => {
                let (new, len_bytes) = (begin_file(&path, overwrite)?, layout.end_bytes());
                allocate(new.file(), len_bytes, allocation).map_err(|source| ConvertError::Reserve {
                    path: path.clone(),
                    len_bytes,
                    source,
                })?;
                let storage = Storage::new(clone(new.file())?, true);
                (Place::File { new, _replaced: replaced }, storage)
            }
        };
        Ok(Self { path, place, storage, layout, header_file })
    }

    /// What lies where.
    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Makes sure that nobody takes a device for what it was, or for what it will be: where the header is to be there
    /// are zeroes until everything else is written.
    pub(super) fn begin(&self) -> Result<(), ConvertError> {
        if self.layout.header.is_none() || matches!(self.place, Place::File { .. }) {
            return Ok(());
        }
        let written = |source| ConvertError::Write { offset_bytes: 0, source };
        signature::wipe(self.storage.file()).map_err(written)?;
        let zeroes = vec![0; WIPE_BYTES];
        for offset_bytes in (0..self.layout.payload_offset_bytes).step_by(WIPE_BYTES) {
            let len = (self.layout.payload_offset_bytes - offset_bytes).min(WIPE_BYTES as u64) as usize;
            self.storage.file().write_all_at(&zeroes[..len], offset_bytes).map_err(written)?;
        }
        self.sync()
    }

    /// Writes a piece of the disk, whole sectors from `offset_bytes` on. Uses the buffer up.
    pub(super) fn write(&self, offset_bytes: u64, buffer: &mut [u8], content: Content) -> io::Result<()> {
        let on_volume = self.layout.payload_offset_bytes + offset_bytes;
        let is_new = matches!(self.place, Place::File { .. });
        match (&self.layout.xts, content) {
            (Some(_), Content::Unwritten) => return Ok(()),
            // A new file has zeroes wherever nothing is written.
            (None, Content::Zeroes | Content::Unwritten) if is_new => return Ok(()),
            (None, Content::Data) if is_new => return self.write_unless_zero(on_volume, buffer),
            (_, Content::Zeroes | Content::Unwritten) => buffer.fill(0),
            (_, Content::Data) => {}
        }
        if let Some(xts) = &self.layout.xts {
            xts.encrypt_in_place(SectorNumber::containing(offset_bytes), buffer);
        }
        self.storage.write(on_volume, buffer)
    }

    fn write_unless_zero(&self, on_volume: u64, buffer: &[u8]) -> io::Result<()> {
        let mut done = 0;
        for run in
            buffer.chunks(ZERO_BLOCK_BYTES).collect::<Vec<_>>().chunk_by(|a, b| is_zero(a) == is_zero(b))
        {
            let len = run.iter().map(|block| block.len()).sum::<usize>();
            if !is_zero(run[0]) {
                self.storage.write(on_volume + done as u64, &buffer[done..done + len])?;
            }
            done += len;
        }
        Ok(())
    }

    /// Makes what was written durable.
    pub(super) fn sync(&self) -> Result<(), ConvertError> {
        self.storage.file().sync_all().map_err(|source| ConvertError::Sync { source })
    }

    /// Opens the volume once more, to be read from storage.
    pub(super) fn reopened(&self) -> Result<Backing, ConvertError> {
        let failed = |source| ConvertError::Descriptors { source };
        self.storage.drop_cached().map_err(failed)?;
        Ok(Backing {
            file: self.storage.file().try_clone().map_err(failed)?,
            size_bytes: self.layout.end_bytes(),
            is_block_device: matches!(self.place, Place::Device { .. }),
        })
    }

    /// Writes the header and gives files their names: from here on, this is a volume.
    pub(super) fn complete(self) -> Result<(), ConvertError> {
        if let Some(header) = &self.layout.header {
            let file = self.header_file.as_ref().map_or(self.storage.file(), NewFile::file);
            if let Err(error) = write_header(file, header) {
                return Err(self.abandon(error));
            }
        }
        // The header first: it alone is of no use, and the payload alone cannot be told from a whole volume.
        let header_path = self.layout.header_path;
        if let (Some(file), Some(path)) = (self.header_file, &header_path) {
            publish(file, path)?;
        }
        let Place::File { new, .. } = self.place else { return Ok(()) };
        publish(new, &self.path).inspect_err(|error| {
            // Only where the volume is certainly not there: somebody took its name meanwhile.
            if let (ConvertError::Exists { .. }, Some(path)) = (error, header_path) {
                let _ = fs::remove_file(path);
            }
        })
    }

    /// What `error` means for the destination.
    pub(super) fn abandon(self, error: ConvertError) -> ConvertError {
        match self.place {
            Place::File { .. } => error,
            Place::Device { .. } => ConvertError::Incomplete { path: self.path, source: Box::new(error) },
        }
    }
}

fn begin_file(path: &Path, overwrite: Overwrite) -> Result<NewFile, ConvertError> {
    let begun = match overwrite {
        Overwrite::Refuse => NewFile::create(path),
        Overwrite::Allow => NewFile::replacing(path),
    };
    begun.map_err(|source| not_created(path.to_owned(), source))
}

/// A header never replaces anything: what is there may be the header of another volume, and the only one.
fn begin_header(path: &Path, volume: &Path) -> Result<NewFile, ConvertError> {
    let header = NewFile::create(path).map_err(|source| not_created(path.to_owned(), source))?;
    match is_same_name(path, volume) {
        true => Err(ConvertError::HeaderIsVolume { path: path.to_owned() }),
        false => Ok(header),
    }
}

/// Whether both paths lead to one name in one folder, whether or not there is something of that name.
fn is_same_name(one: &Path, other: &Path) -> bool {
    let settled = |path: &Path| Some((fs::canonicalize(folder_of(path)).ok()?, path.file_name()?.to_owned()));
    settled(one).is_some_and(|one| Some(one) == settled(other))
}

fn publish(file: NewFile, path: &Path) -> Result<(), ConvertError> {
    file.publish().map(drop).map_err(|source| not_created(path.to_owned(), source))
}

fn not_created(path: PathBuf, source: io::Error) -> ConvertError {
    match source.kind() {
        ErrorKind::AlreadyExists => ConvertError::Exists { path },
        _ => ConvertError::Create { path, source },
    }
}

/// Writes the header, and looks whether it is there.
fn write_header(file: &File, header: &Header) -> Result<(), ConvertError> {
    backup::restore(file, header).map(drop).map_err(|source| ConvertError::Header { source })
}

fn allocate(file: &File, len_bytes: u64, allocation: Allocation) -> io::Result<()> {
    if allocation == Allocation::Full {
        match fallocate(file, FallocateFlags::empty(), 0, len_bytes) {
            Ok(()) => return Ok(()),
            // A file system that cannot reserve: the write that does not fit will tell.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    file.set_len(len_bytes)
}

fn is_zero(bytes: &[u8]) -> bool {
    // In strides, which compile to vector instructions and still end at the first byte that is not.
    bytes.chunks(512).all(|stride| stride.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cipher::IvMode;
    use crate::convert::layout::{DestinationFormat, LuksDestination};
    use crate::format::luks::Version;
    use crate::format::plain::KeySize;
    use crate::geometry::SectorSize;
    use crate::keys::Secret;

    const DISK_BYTES: u64 = 1 << 20;
    /// Looks random, so that deriving a key from it takes no time.
    const PASSPHRASE: &[u8] = b"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    fn layout() -> Layout {
        let luks = DestinationFormat::Luks(LuksDestination {
            version: Version::Luks2,
            iv_mode: IvMode::Plain64,
            key_size: KeySize::Bits512,
            sector_size: SectorSize::BYTES_512,
            label: None,
            header_path: None,
        });
        Layout::new(&luks, DISK_BYTES, Some(&Secret::read_from(PASSPHRASE).unwrap())).unwrap()
    }

    /// A file that is treated as a block device, full of what somebody left there.
    fn device(path: &Path, size_bytes: u64) -> Site {
        let file = File::create(path).unwrap();
        file.set_len(size_bytes).unwrap();
        file.write_all_at(&[0xaa; 64 << 10], 0).unwrap();
        file.write_all_at(b"LUKS\xba\xbe\x00\x02", 0).unwrap();
        drop(file);
        let config = VolumeConfig { path: path.to_owned(), read_only: false, direct: false };
        let mut found = open_volume(&config).unwrap();
        found.is_block_device = true;
        Site { path: path.to_owned(), found: Some(found) }
    }

    fn destination(path: &Path, layout: Layout) -> Destination {
        let site = device(path, layout.end_bytes() + 12_345);
        Destination::create(site, layout, Allocation::Full, Overwrite::Allow).unwrap()
    }

    #[test]
    fn a_device_is_no_volume_until_it_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("device");
        let destination = destination(&path, layout());
        destination.begin().unwrap();
        let header_bytes = destination.layout.payload_offset_bytes;
        destination.write(0, &mut [7; 512], Content::Data).unwrap();
        destination.sync().unwrap();
        let on_device = || fs::read(&path).unwrap();
        assert!(on_device()[..header_bytes as usize].iter().all(|byte| *byte == 0));
        assert!(on_device()[header_bytes as usize..][..512].iter().any(|byte| *byte != 0));
        destination.complete().unwrap();
        Header::read(&File::open(&path).unwrap(), on_device().len() as u64).unwrap();
    }

    #[test]
    fn a_failure_on_a_device_says_what_is_left_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("device");
        let error = destination(&path, layout()).abandon(ConvertError::Interrupted);
        assert!(error.to_string().contains("incomplete"), "{error}");
        assert!(
            matches!(error, ConvertError::Incomplete { source, .. } if matches!(*source, ConvertError::Interrupted))
        );
    }

    #[test]
    fn a_device_that_holds_something_or_is_too_small_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("device");
        let create = |size_bytes, overwrite| {
            Destination::create(device(&path, size_bytes), layout(), Allocation::Full, overwrite).unwrap_err()
        };
        let large = layout().end_bytes();
        assert!(matches!(create(large, Overwrite::Refuse), ConvertError::DeviceInUse { .. }));
        assert!(matches!(create(large - 512, Overwrite::Allow), ConvertError::DeviceTooSmall { .. }));
        let raw = Layout::new(&DestinationFormat::Raw, DISK_BYTES, None).unwrap();
        let error = Destination::create(device(&path, large), raw, Allocation::Sparse, Overwrite::Refuse);
        assert!(matches!(error.unwrap_err(), ConvertError::NoHeader { .. }));
    }

    #[test]
    fn zeroes_are_left_out_of_new_unencrypted_files_only() {
        let folder = tempfile::tempdir().unwrap();
        let raw = || Layout::new(&DestinationFormat::Raw, DISK_BYTES, None).unwrap();
        let mut piece = vec![0; 4 * ZERO_BLOCK_BYTES];
        piece[ZERO_BLOCK_BYTES..][..10].fill(1);
        let written = |destination: &Destination| {
            destination.write(0, &mut piece.clone(), Content::Data).unwrap();
            destination.write(512 << 10, &mut [9; 4096], Content::Zeroes).unwrap();
            let mut bytes = vec![0; DISK_BYTES as usize];
            destination.storage.file().read_exact_at(&mut bytes, 0).unwrap();
            assert!(bytes[..piece.len()] == piece);
            assert!(bytes[512 << 10..][..4096].iter().all(|byte| *byte == 0));
            destination.storage.file().metadata().unwrap().blocks() * 512
        };
        let site = Site { path: folder.path().join("new"), found: None };
        let file = Destination::create(site, raw(), Allocation::Sparse, Overwrite::Refuse).unwrap();
        assert!(written(&file) <= 2 * ZERO_BLOCK_BYTES as u64);
        let device = destination(&folder.path().join("device"), raw());
        device.storage.file().write_all_at(&[0xee; 600 << 10], 0).unwrap();
        written(&device);
    }
}
