//! Which volume a LUKS2 header is of, read without anything else that it says.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use uuid::Uuid;

use super::on_disk::{LUKS2_BINARY_BYTES, luks2_names};

/// What a LUKS2 header calls its volume. Enough to recognise a volume that was made here; whoever can write to the
/// storage can write it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Luks2Identity {
    /// The volume's UUID.
    pub uuid: Uuid,
    /// What the volume belongs to; empty if to nothing.
    pub subsystem: String,
}

/// Reads the identity out of the first block of `volume`, where [`Header::read`](super::Header::read) copies and checks
/// the whole header area. None where no LUKS2 header begins, or its UUID is none.
///
/// # Errors
/// When the volume cannot be read.
pub fn identify(volume: &File, volume_bytes: u64) -> io::Result<Option<Luks2Identity>> {
    let mut start = [0; LUKS2_BINARY_BYTES as usize];
    if volume_bytes < LUKS2_BINARY_BYTES {
        return Ok(None);
    }
    volume.read_exact_at(&mut start, 0)?;
    let names = luks2_names(&start);
    Ok(names
        .and_then(|(uuid, subsystem)| Some(Luks2Identity { uuid: Uuid::parse_str(&uuid).ok()?, subsystem })))
}
