//! From a configuration to a disk that is ready to serve: volume, key, format, in this order.

use std::path::{Path, PathBuf};

use tracing::{debug, info, warn};

use super::config::{Endpoint, KeyConfig, ServeConfig};
use super::control::client;
use super::error::ServeError;
use super::volume_file::{OpenedVolume, open_beside_others, open_incoming, open_volume};
use crate::cipher::VolumeKey;
use crate::format::{self, FormatError, PayloadExtent, Unlocked, header_lock};
use crate::geometry::SectorSize;
use crate::keys;

/// An open volume and what its format made of it.
#[derive(Debug)]
pub struct Disk {
    /// The open volume, locked unless it is to be taken over from another process.
    pub volume: OpenedVolume,
    /// Where its payload lies and how that is encrypted.
    pub unlocked: Unlocked,
    /// The guest's block size: the encryption sector size, or less.
    pub logical_block: SectorSize,
}

/// Opens the volume, fetches the key, unlocks the one with the other, and checks that every sector can be
/// reached. When this returns, no secret is left but the volume key inside the result.
///
/// # Errors
/// See [`ServeError`].
pub fn open_disk(config: &ServeConfig) -> Result<Disk, ServeError> {
    let volume = match config.incoming {
        None => open_volume(&config.volume)?,
        Some(_) => open_incoming(&config.volume)?,
    };
    let unlocked = unlock(&config.key, &volume)?;
    ready(config, volume, unlocked)
}

/// Opens the volume that another process serves, which then ends and hands its socket over, if that is how the socket
/// is to be had. Key and header are tried out before: until the other has ended, it serves on whatever goes wrong.
///
/// # Errors
/// See [`ServeError`].
pub fn take_over(config: &ServeConfig) -> Result<Option<(Disk, Endpoint)>, ServeError> {
    let Endpoint::TakeOver(control_socket) = &config.endpoint else { return Ok(None) };
    let served = open_beside_others(&config.volume.path, false)?;
    let mut unlocked = unlock(&config.key, &served)?;
    logical_block(unlocked.geometry.sector_size, config.device.logical_block)?;
    drop(served);
    info!("ready to take over");
    let endpoint = client::take_over(control_socket)?;
    let volume = open_volume(&config.volume)?;
    if unlocked.extent == PayloadExtent::WholeVolume {
        // It may have grown meanwhile.
        unlocked.geometry = format::geometry_in(&unlocked.geometry, volume.size_bytes)?;
    }
    Ok(Some((ready(config, volume, unlocked)?, endpoint)))
}

/// Fetches the key of a volume that another process serves.
///
/// # Errors
/// See [`ServeError`].
pub fn fetch_volume_key(config: &KeyConfig) -> Result<VolumeKey, ServeError> {
    let served = open_beside_others(&config.volume, false)?;
    let unlocked = unlock(config, &served)?;
    Ok(unlocked.encryption.ok_or(FormatError::SecretUnused)?.key)
}

/// Fetches the key, unlocks the volume with it, and lets the key manager know.
fn unlock(config: &KeyConfig, volume: &OpenedVolume) -> Result<Unlocked, ServeError> {
    let (secret, source) = match config.sources.as_slice() {
        [] => (None, None),
        keys => {
            let (secret, source) = keys::fetch_first(keys, config.timeout)?;
            (Some(secret), Some(source))
        }
    };
    let unlocked = config.format.volume_format().unlock(&volume.file, volume.size_bytes, secret)?;
    // A disk that is there for its guest is worth more than a note about it.
    if let Some(source) = source
        && let Err(error) = source.note_use(&absolute(&config.volume).to_string_lossy())
    {
        warn!(
            error = &error as &dyn std::error::Error,
            "the key manager could not note that the key is in use"
        );
    }
    Ok(unlocked)
}

/// A path that means the same to whoever reads it later.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Checks that the volume can be served so.
fn ready(config: &ServeConfig, volume: OpenedVolume, unlocked: Unlocked) -> Result<Disk, ServeError> {
    volume.check_alignment(&unlocked.geometry)?;
    // The header has been read: from here on it may be changed. Where there are no such locks, it cannot be. Whoever
    // serves an incoming VM's volume now has left the mark.
    if config.incoming.is_none()
        && let Err(error) = header_lock::mark_served(&volume.file)
    {
        debug!(error = &error as &dyn std::error::Error, "the header cannot be changed while it is served");
    }
    let logical_block = logical_block(unlocked.geometry.sector_size, config.device.logical_block)?;
    info!(
        volume = %config.volume.path.display(),
        capacity_bytes = unlocked.geometry.capacity_bytes,
        sector_bytes = unlocked.geometry.sector_size.bytes(),
        block_bytes = logical_block.bytes(),
        encrypted = unlocked.encryption.is_some(),
        read_only = config.volume.read_only,
        direct_align_bytes = volume.direct_align_bytes,
        "disk is ready"
    );
    Ok(Disk { volume, unlocked, logical_block })
}

/// The guest's block size, where the operator may have chosen one.
fn logical_block(sector_size: SectorSize, chosen: Option<SectorSize>) -> Result<SectorSize, ServeError> {
    let block = chosen.unwrap_or(sector_size);
    let (block_bytes, sector_bytes) = (block.bytes(), sector_size.bytes());
    if block_bytes > sector_bytes {
        return Err(ServeError::LogicalBlockTooLarge { block_bytes, sector_bytes });
    }
    Ok(block)
}
