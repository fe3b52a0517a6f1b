//! What a key and its disk know of each other.
//!
//! The key's record in its manager names the disk in `volume`, as `ephemeral:FORMAT:UUID:PLACE`, and the disk carries
//! the same UUID: a LUKS2 file in its header, a plain one in an extended attribute, a logical volume in a tag.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use super::place::Place;
use crate::geometry::SectorSize;

/// Begins the names of volumes that are ephemeral disks.
const PREFIX: &str = "ephemeral";

/// Longest text that managers keep as a volume's name.
const TEXT_BYTES_MAX: usize = 255;

/// What lies on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFormat {
    /// A LUKS2 volume that the key opens.
    Luks2,
    /// Ciphertext under the key itself, in sectors of this size.
    Plain(SectorSize),
}

/// One disk, as its key's record has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Association {
    /// What lies on it.
    pub format: DiskFormat,
    /// What the disk itself is marked with.
    pub uuid: Uuid,
    /// Where it was made.
    pub place: Place,
}

/// The text does not name an ephemeral disk, or does so in a way of a version to come.
#[derive(Debug, PartialEq, Eq)]
pub struct NotOurs;

impl Association {
    /// The text for the key's record.
    ///
    /// # Errors
    /// How many bytes too long it is.
    pub(super) fn record(&self) -> Result<String, usize> {
        let text = self.to_string();
        match text.len().checked_sub(TEXT_BYTES_MAX) {
            None | Some(0) => Ok(text),
            Some(excess) => Err(excess),
        }
    }
}

impl fmt::Display for Association {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}:{}:{}:{}", self.format, self.uuid, self.place)
    }
}

impl FromStr for Association {
    type Err = NotOurs;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.splitn(4, ':');
        let mut part = || parts.next().ok_or(NotOurs);
        if part()? != PREFIX {
            return Err(NotOurs);
        }
        let format = part()?.parse()?;
        let uuid = Uuid::try_parse(part()?).map_err(|_| NotOurs)?;
        Ok(Self { format, uuid, place: part()?.parse().map_err(|_| NotOurs)? })
    }
}

impl fmt::Display for DiskFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Luks2 => f.write_str("luks2"),
            Self::Plain(sector_size) => write!(f, "plain-{}", sector_size.bytes()),
        }
    }
}

impl FromStr for DiskFormat {
    type Err = NotOurs;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "luks2" {
            return Ok(Self::Luks2);
        }
        let bytes = text.strip_prefix("plain-").and_then(|bytes| bytes.parse().ok());
        bytes.and_then(SectorSize::new).map(Self::Plain).ok_or(NotOurs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "8e5b1a4e-2f0c-4f0e-9d54-3a0d1f6a7b11";

    #[test]
    fn what_is_written_is_read_back() {
        for text in [
            format!("ephemeral:luks2:{UUID}:/var/lib/vm:1/disk"),
            format!("ephemeral:plain-4096:{UUID}:vg0/vm1"),
        ] {
            let association: Association = text.parse().unwrap();
            assert_eq!(association.record().unwrap(), text);
            assert_eq!(association.uuid.to_string(), UUID);
        }
    }

    #[test]
    fn volumes_of_others_are_not_taken_for_disks() {
        for text in [
            "",
            "vm1",
            "ephemeral",
            &format!("ephemeral:luks2:{UUID}"),
            &format!("ephemeral:luks3:{UUID}:/disk"),
            &format!("ephemeral:plain-513:{UUID}:/disk"),
            "ephemeral:luks2:8e5b:/disk",
            &format!("ephemeral:luks2:{UUID}:disk"),
            &format!("Ephemeral:luks2:{UUID}:/disk"),
        ] {
            assert_eq!(text.parse::<Association>(), Err(NotOurs), "{text}");
        }
    }

    #[test]
    fn a_path_that_does_not_fit_the_record_is_noticed() {
        let of_length = |path_bytes: usize| Association {
            format: DiskFormat::Luks2,
            uuid: Uuid::nil(),
            place: Place::File(format!("/{}", "x".repeat(path_bytes - 1)).into()),
        };
        let room = TEXT_BYTES_MAX - of_length(1).to_string().len() + 1;
        assert!(of_length(room).record().is_ok());
        assert_eq!(of_length(room + 3).record(), Err(3));
    }
}
