//! The binary parts of both header versions, as far as libcryptsetup does not tell: LUKS1 as in its On-Disk Format
//! Specification 1.2.3, LUKS2 as in its specification 1.1. All numbers are big endian.

use sha2::{Digest, Sha256};

use crate::geometry::SECTOR_BYTES;

/// Both versions begin with this; LUKS2's second copy with its first four letters turned round.
const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
const MAGIC_SECONDARY: [u8; 6] = *b"SKUL\xba\xbe";

/// Sizes that a LUKS2 header may have (binary part and JSON of one copy), hence where a second copy can begin.
pub(super) const LUKS2_HEADER_BYTES_MIN: u64 = 16 << 10;
pub(super) const LUKS2_HEADER_BYTES_MAX: u64 = 4 << 20;
/// The binary part, before the JSON.
pub(super) const LUKS2_BINARY_BYTES: u64 = 4096;
/// Largest area for keyslots that the format allows.
pub(super) const LUKS2_KEYSLOTS_BYTES_MAX: u64 = 128 << 20;

/// Slots of a LUKS1 header.
const LUKS1_SLOTS: usize = 8;
/// Bytes of the LUKS1 header without key material.
pub(super) const LUKS1_HEADER_BYTES: usize = 592;
/// Bytes of the digest of a volume key in LUKS1, whatever hash makes it, and where LUKS2 was converted from LUKS1.
pub(super) const LUKS1_DIGEST_BYTES: usize = 20;
/// Bytes of the salt of a volume key's digest.
pub(super) const DIGEST_SALT_BYTES: usize = 32;
/// Each LUKS1 slot spreads its key over as many stripes.
pub(super) const STRIPES: u32 = 4000;
/// Key material of all slots ends within this: 2 MiB are usual for the longest keys that there are.
const LUKS1_AREA_BYTES_MAX: u64 = 16 << 20;
const LUKS1_SLOT_ACTIVE: u32 = 0x00ac_71f3;
const LUKS1_SLOT_INACTIVE: u32 = 0x0000_dead;
/// Longest volume key that a header is followed with: longer than any cipher has.
const KEY_BYTES_MAX: u32 = 128;
/// cryptsetup backs LUKS1 headers up in whole pages.
const LUKS1_AREA_ALIGN_BYTES: u64 = 4096;

/// The versions of LUKS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Version {
    /// Binary header, PBKDF2 only, sectors of 512 bytes.
    Luks1,
    /// JSON header in two copies.
    Luks2,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Luks1 => "LUKS1",
            Self::Luks2 => "LUKS2",
        })
    }
}

/// Which version `start`, the first bytes of a header area, begins with; a LUKS2 header whose first copy is gone is
/// known by its second.
pub(super) fn version(start: &[u8]) -> Option<Version> {
    if start.starts_with(&MAGIC) {
        match be16(start, 6)? {
            1 => return Some(Version::Luks1),
            2 => return Some(Version::Luks2),
            _ => {}
        }
    }
    let mut offset_bytes = LUKS2_HEADER_BYTES_MIN;
    while offset_bytes <= LUKS2_HEADER_BYTES_MAX {
        let second = start.get(usize::try_from(offset_bytes).ok()?..);
        if second.is_some_and(|second| second.starts_with(&MAGIC_SECONDARY) && be16(second, 6) == Some(2)) {
            return Some(Version::Luks2);
        }
        offset_bytes *= 2;
    }
    None
}

/// Whether the second copy of a LUKS2 header begins with `start`.
pub(super) fn has_second_magic(start: &[u8]) -> bool {
    start.starts_with(&MAGIC_SECONDARY)
}

/// Bytes of one copy of the LUKS2 header, binary part and JSON, as the first of them says.
pub(super) fn luks2_copy_bytes(start: &[u8]) -> Option<u64> {
    be64(start, 8)
}

/// UUID and subsystem, as the first copy of a LUKS2 header says at the beginning of `start`.
pub(super) fn luks2_names(start: &[u8]) -> Option<(String, String)> {
    if !start.starts_with(&MAGIC) || be16(start, 6)? != 2 {
        return None;
    }
    Some((text(start.get(168..208)?), text(start.get(208..256)?)))
}

/// The binary header of LUKS1.
#[derive(Debug)]
pub(super) struct Luks1 {
    pub(super) cipher_name: String,
    pub(super) cipher_mode: String,
    pub(super) hash: String,
    pub(super) payload_offset_bytes: u64,
    pub(super) key_bytes: u32,
    pub(super) digest_iterations: u32,
    pub(super) uuid: String,
    pub(super) slots: [Luks1Slot; LUKS1_SLOTS],
}

#[derive(Debug)]
pub(super) struct Luks1Slot {
    pub(super) active: bool,
    pub(super) iterations: u32,
    pub(super) material_offset_bytes: u64,
}

impl Luks1 {
    /// Reads the header at the beginning of `start`, or says what is wrong with it.
    pub(super) fn parse(start: &[u8]) -> Result<Self, String> {
        Self::fields(start).ok_or_else(|| "it ends inside its header".to_owned())?
    }

    fn fields(start: &[u8]) -> Option<Result<Self, String>> {
        let header = start.get(..LUKS1_HEADER_BYTES)?;
        let key_bytes = be32(header, 108)?;
        if !(1..=KEY_BYTES_MAX).contains(&key_bytes) {
            return Some(Err(format!("its key has {key_bytes} bytes")));
        }
        let mut slots = std::array::from_fn(|_| None);
        for (index, slot) in slots.iter_mut().enumerate() {
            let place = 208 + index * 48;
            let active = match be32(header, place)? {
                LUKS1_SLOT_ACTIVE => true,
                LUKS1_SLOT_INACTIVE => false,
                other => return Some(Err(format!("key slot {index} has state {other:#010x}"))),
            };
            let stripes = be32(header, place + 44)?;
            if stripes != STRIPES {
                return Some(Err(format!("key slot {index} has {stripes} stripes, {STRIPES} are possible")));
            }
            *slot = Some(Luks1Slot {
                active,
                iterations: be32(header, place + 4)?,
                material_offset_bytes: u64::from(be32(header, place + 40)?) * SECTOR_BYTES,
            });
        }
        Some(Ok(Self {
            cipher_name: text(&header[8..40]),
            cipher_mode: text(&header[40..72]),
            hash: text(&header[72..104]),
            payload_offset_bytes: u64::from(be32(header, 104)?) * SECTOR_BYTES,
            key_bytes,
            digest_iterations: be32(header, 164)?,
            uuid: text(&header[168..208]),
            slots: slots.map(|slot| slot.expect("each was set above")),
        }))
    }

    /// Bytes of key material in a slot.
    pub(super) fn material_bytes(&self) -> u64 {
        u64::from(self.key_bytes) * u64::from(STRIPES)
    }

    /// Where the key material of the last slot ends, in whole pages: what `cryptsetup luksHeaderBackup` saves.
    pub(super) fn area_bytes(&self) -> Result<u64, String> {
        let material_bytes = self.material_bytes().next_multiple_of(SECTOR_BYTES);
        let end_bytes = self.slots.iter().map(|slot| slot.material_offset_bytes + material_bytes).max();
        let area_bytes = end_bytes.unwrap_or(0).next_multiple_of(LUKS1_AREA_ALIGN_BYTES);
        if area_bytes > LUKS1_AREA_BYTES_MAX {
            return Err(format!(
                "its key slots reach to byte {area_bytes}, {LUKS1_AREA_BYTES_MAX} are the most"
            ));
        }
        Ok(area_bytes)
    }
}

/// State of one of the two copies of a LUKS2 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CopyState {
    /// In use, or equal to the one in use.
    Good,
    /// Valid, but written before the other one.
    Older,
    /// Missing, or its checksum is wrong.
    Damaged,
}

/// The binary part of one copy of a LUKS2 header.
#[derive(Debug)]
pub(super) struct Luks2Copy {
    pub(super) sequence_id: u64,
    pub(super) label: String,
    pub(super) subsystem: String,
}

impl Luks2Copy {
    /// Reads both copies: each none if it is damaged.
    pub(super) fn parse_both(start: &[u8], header_bytes: u64) -> [Option<Self>; 2] {
        let header_bytes = usize::try_from(header_bytes).unwrap_or(usize::MAX);
        let copy = |index: usize, magic: [u8; 6]| {
            let bytes = start.get(header_bytes.checked_mul(index)?..)?.get(..header_bytes)?;
            Self::parse(bytes, magic)
        };
        [copy(0, MAGIC), copy(1, MAGIC_SECONDARY)]
    }

    fn parse(copy: &[u8], magic: [u8; 6]) -> Option<Self> {
        const CHECKSUM: std::ops::Range<usize> = 448..512;
        if !copy.starts_with(&magic) || be16(copy, 6)? != 2 || text(copy.get(72..104)?) != "sha256" {
            return None;
        }
        let checksum = Sha256::new()
            .chain_update(&copy[..CHECKSUM.start])
            .chain_update([0; CHECKSUM.end - CHECKSUM.start])
            .chain_update(copy.get(CHECKSUM.end..)?)
            .finalize();
        if copy[CHECKSUM.start..CHECKSUM.start + checksum.len()] != checksum[..] {
            return None;
        }
        Some(Self {
            sequence_id: be64(copy, 16)?,
            label: text(&copy[24..72]),
            subsystem: text(copy.get(208..256)?),
        })
    }
}

/// Up to the first zero; what is no UTF-8 is replaced.
fn text(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

fn be16(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

fn be32(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

fn be64(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes.get(offset..)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}
