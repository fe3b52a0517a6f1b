//! Where the disk's content comes from: a volume in one of our formats, bare bytes, or an image that QEMU reads.

use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::error::{ConvertError, End};
use super::image::{ImageServer, ImageSource};
use super::nbd::NbdClient;
use super::storage::Storage;
use crate::cipher::Xts;
use crate::format::{Encryption, Unlocked, VolumeFormat};
use crate::geometry::{SECTOR_BYTES, SectorNumber, SectorSize};
use crate::keys::Secret;
use crate::server::volume_file::OpenedVolume;

/// What lies in the source, as declared.
pub enum SourceFormat {
    /// The disk's content as it is, from an offset on.
    Raw {
        /// Where it begins, in 512-byte sectors.
        offset_sectors: u64,
    },
    /// An image in a format of QEMU's.
    Image(ImageSource),
    /// A volume that [`serve`](crate::server::serve) could serve.
    Volume(Box<dyn VolumeFormat>),
}

/// What a piece of a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// What was read.
    Data,
    /// Zeroes, which were not read.
    Zeroes,
    /// Never written, on an encrypted volume: it reads as random bytes that nobody put there.
    Unwritten,
}

/// What to do about parts of an encrypted volume that were never written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unwritten {
    /// Read them as the guest would, random bytes.
    Read,
    /// Leave them out.
    Skip,
}

/// An open source.
#[derive(Debug)]
pub(super) enum Source {
    /// Read by ourselves.
    Volume(VolumeSource),
    /// Read through QEMU; the volume is open for its lock.
    Image {
        /// Lives as long as the clients are used.
        server: ImageServer,
        clients: Vec<NbdClient<UnixStream>>,
        _locked: File,
    },
}

impl Source {
    /// Makes the `volume` that was opened at `path` readable by `reader_count` readers at a time.
    pub(super) fn new(
        volume: Backing,
        path: &Path,
        format: &SourceFormat,
        secret: Option<Secret>,
        reader_count: usize,
    ) -> Result<Self, ConvertError> {
        let end = End::Source;
        match format {
            SourceFormat::Raw { offset_sectors } => {
                VolumeSource::raw(volume, path, *offset_sectors).map(Self::Volume)
            }
            SourceFormat::Volume(format) => {
                VolumeSource::unlock(volume, format.as_ref(), secret, end).map(Self::Volume)
            }
            SourceFormat::Image(image) => {
                let (server, clients) = ImageServer::start(&volume.file, path, *image, reader_count)
                    .map_err(|source| ConvertError::Image { path: path.to_owned(), source })?;
                Ok(Self::Image { server, clients, _locked: volume.file })
            }
        }
    }

    /// Size of the disk.
    pub(super) fn size_bytes(&self) -> u64 {
        match self {
            Self::Volume(volume) => volume.payload_bytes,
            Self::Image { server, .. } => server.size_bytes(),
        }
    }

    /// Whether what lies there is encrypted, so that its unwritten parts are random bytes and no zeroes.
    pub(super) fn is_encrypted(&self) -> bool {
        matches!(self, Self::Volume(VolumeSource { xts: Some(_), .. }))
    }

    /// The block size that the disk was made for.
    pub(super) fn sector_size(&self) -> SectorSize {
        match self {
            Self::Volume(VolumeSource { xts: Some(xts), .. }) => xts.sector_size(),
            _ => SectorSize::BYTES_512,
        }
    }

    /// `count` readers, to be used by a thread each; no more than the source was made for.
    pub(super) fn readers(&mut self, count: usize) -> Vec<Reader<'_>> {
        match self {
            Self::Volume(volume) => (0..count).map(|_| Reader::Volume(volume)).collect(),
            Self::Image { clients, .. } => clients.iter_mut().map(Reader::Image).take(count).collect(),
        }
    }
}

/// One thread's access to a source.
pub(super) enum Reader<'a> {
    Volume(&'a VolumeSource),
    Image(&'a mut NbdClient<UnixStream>),
}

impl Reader<'_> {
    /// Reads the disk's content from `offset_bytes` on, which is a multiple of every sector size. Beyond the end of
    /// the disk there are zeroes. For anything but [`Content::Data`] the buffer is left as it is.
    pub(super) fn read(
        &mut self,
        offset_bytes: u64,
        buffer: &mut [u8],
        unwritten: Unwritten,
    ) -> io::Result<Content> {
        match self {
            Self::Volume(volume) => volume.read(offset_bytes, buffer, unwritten),
            Self::Image(client) => {
                let within_bytes = within(client.size_bytes(), offset_bytes, buffer);
                if within_bytes == 0 || client.is_zero(offset_bytes, within_bytes as u32)? {
                    return Ok(Content::Zeroes);
                }
                let (inside, beyond) = buffer.split_at_mut(within_bytes);
                client.read(offset_bytes, inside)?;
                beyond.fill(0);
                Ok(Content::Data)
            }
        }
    }
}

/// An open file or device, locked for as long as `file` and its duplicates are open.
#[derive(Debug)]
pub(super) struct Backing {
    pub(super) file: File,
    pub(super) size_bytes: u64,
    pub(super) is_block_device: bool,
}

impl From<OpenedVolume> for Backing {
    fn from(volume: OpenedVolume) -> Self {
        let OpenedVolume { file, size_bytes, is_block_device, .. } = volume;
        Self { file, size_bytes, is_block_device }
    }
}

/// A volume that we read ourselves.
#[derive(Debug)]
pub(super) struct VolumeSource {
    storage: Storage,
    is_block_device: bool,
    payload_offset_bytes: u64,
    payload_bytes: u64,
    xts: Option<Xts>,
}

impl VolumeSource {
    fn raw(volume: Backing, path: &Path, offset_sectors: u64) -> Result<Self, ConvertError> {
        let begin = offset_sectors.checked_mul(SECTOR_BYTES).filter(|begin| *begin < volume.size_bytes);
        let Some(payload_offset_bytes) = begin else {
            return Err(ConvertError::NothingThere { path: path.to_owned(), size_bytes: volume.size_bytes });
        };
        let payload_bytes = volume.size_bytes - payload_offset_bytes;
        Ok(Self::unencrypted(volume, payload_offset_bytes, payload_bytes))
    }

    /// So many bytes as they are.
    pub(super) fn unencrypted(volume: Backing, payload_offset_bytes: u64, payload_bytes: u64) -> Self {
        let is_block_device = volume.is_block_device;
        let storage = Storage::new(volume.file, false);
        Self { storage, is_block_device, payload_offset_bytes, payload_bytes, xts: None }
    }

    /// A volume in `format`, which `secret` unlocks.
    pub(super) fn unlock(
        volume: Backing,
        format: &dyn VolumeFormat,
        secret: Option<Secret>,
        end: End,
    ) -> Result<Self, ConvertError> {
        let unlocked = format
            .unlock(&volume.file, volume.size_bytes, secret)
            .map_err(|source| ConvertError::Format { end, source })?;
        Self::of_unlocked(volume, &unlocked, end)
    }

    /// A volume that was unlocked.
    pub(super) fn of_unlocked(volume: Backing, unlocked: &Unlocked, end: End) -> Result<Self, ConvertError> {
        let (xts, geometry) = (cipher_of(unlocked, end)?, unlocked.geometry);
        Ok(Self { xts, ..Self::unencrypted(volume, geometry.payload_offset_bytes, geometry.capacity_bytes) })
    }

    /// As [`Reader::read`].
    pub(super) fn read(
        &self,
        offset_bytes: u64,
        buffer: &mut [u8],
        unwritten: Unwritten,
    ) -> io::Result<Content> {
        let within_bytes = within(self.payload_bytes, offset_bytes, buffer);
        let on_volume = self.payload_offset_bytes + offset_bytes;
        if within_bytes == 0 {
            return Ok(Content::Zeroes);
        }
        if self.xts.is_none() || unwritten == Unwritten::Skip {
            let content = if self.xts.is_none() { Content::Zeroes } else { Content::Unwritten };
            if self.is_hole(on_volume, within_bytes as u64)? {
                return Ok(content);
            }
        }
        // The whole buffer, which direct I/O may be able to fill where it cannot fill the part of it.
        if self.storage.read(on_volume, buffer)? < within_bytes {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it has become shorter"));
        }
        let (inside, beyond) = buffer.split_at_mut(within_bytes);
        beyond.fill(0);
        if let Some(xts) = &self.xts {
            xts.decrypt_in_place(SectorNumber::containing(offset_bytes), inside);
        }
        Ok(Content::Data)
    }

    /// Whether the file system has nothing stored for the range.
    fn is_hole(&self, offset_bytes: u64, len_bytes: u64) -> io::Result<bool> {
        if self.is_block_device {
            return Ok(false);
        }
        match seek(self.storage.file(), SeekFrom::Data(offset_bytes)) {
            Ok(next_data) => Ok(next_data >= offset_bytes + len_bytes),
            // No data up to the end of the file, if the range still is in it.
            Err(Errno::NXIO) => Ok(self.storage.file().metadata()?.len() >= offset_bytes + len_bytes),
            // A file system that does not tell.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// The cipher of an unlocked volume, if it is encrypted.
pub(super) fn cipher_of(unlocked: &Unlocked, end: End) -> Result<Option<Xts>, ConvertError> {
    let Some(Encryption { key, iv }) = &unlocked.encryption else { return Ok(None) };
    let xts = Xts::new(key, unlocked.geometry.sector_size, *iv);
    xts.map(Some).map_err(|source| ConvertError::Cipher { end, source })
}

/// How many bytes of `buffer` a disk of `size_bytes` has from `offset_bytes` on.
fn within(size_bytes: u64, offset_bytes: u64, buffer: &[u8]) -> usize {
    let left_bytes = size_bytes.saturating_sub(offset_bytes);
    usize::try_from(left_bytes).map_or(buffer.len(), |left| left.min(buffer.len()))
}
