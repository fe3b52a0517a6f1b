//! Which headers are served: an allow-list, because whoever controls the storage writes the header, and libcryptsetup
//! follows it wherever it leads.

use super::description::{Description, Kdf, KeyDigest, Segment, Slot};
use super::expectations::Expectations;
use super::kdf_limits::KdfLimits;
use super::on_disk::{DIGEST_SALT_BYTES, LUKS1_DIGEST_BYTES, STRIPES};
use super::refusal::{Refusal, Refusals, is_null};
use crate::cipher::{CipherSpec, IvMode, IvNumbering};
use crate::format::{PayloadExtent, payload_geometry};
use crate::geometry::{Geometry, SECTOR_BYTES, SectorSize};

/// What is demanded of a header before a passphrase is tried on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// How much unlocking may cost.
    pub kdf: KdfLimits,
    /// What the operator knows of the volume.
    pub expect: Expectations,
    /// Try the passphrase on this slot alone, instead of on all.
    pub slot: Option<u32>,
}

/// Where header and payload lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Size of the volume that holds the payload.
    pub volume_bytes: u64,
    /// Whether the header lies elsewhere (`--header`).
    pub detached: bool,
}

/// A header that may be served, and how. Only [`Policy::verdict`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Approved {
    /// Where the payload lies.
    pub geometry: Geometry,
    /// Whether it grows with the volume.
    pub extent: PayloadExtent,
    /// Which IV each sector gets.
    pub iv: IvNumbering,
    /// Length of the volume key: 32 or 64.
    pub key_bytes: usize,
}

impl Policy {
    /// Judges a header: how it is to be served, or every reason why it is not.
    ///
    /// # Errors
    /// At least one reason.
    pub fn verdict(&self, header: &Description, placement: Placement) -> Result<Approved, Refusals> {
        let mut refusals = Vec::new();
        self.expect.check(header, &mut refusals);
        check_state(header, &mut refusals);
        self.check_slots(header, &mut refusals);
        let approved = match &header.segments[..] {
            [segment] => check_segment(header, segment, placement, &mut refusals),
            segments => {
                refusals.push(Refusal::Segments(segments.len()));
                None
            }
        };
        match approved {
            Some(approved) if refusals.is_empty() => Ok(approved),
            _ => Err(Refusals(refusals)),
        }
    }

    fn check_slots(&self, header: &Description, refusals: &mut Vec<Refusal>) {
        for slot in &header.slots {
            check_slot(header, slot, refusals);
        }
        let mut tried = header.slots_tried(self.slot).peekable();
        match (tried.peek(), self.slot) {
            (None, Some(slot)) => refusals.push(Refusal::NoSuchSlot(slot)),
            (None, None) => refusals.push(Refusal::NoSlots),
            (Some(_), _) => {}
        }
        let key_bits = header.segments.first().and_then(|segment| segment.key_bits);
        for slot in tried {
            if Some(slot.key_bits) != key_bits {
                let what = format!("its key has {} bits, unlike others", slot.key_bits);
                refusals.push(Refusal::Slot { slot: slot.id, what });
            }
        }
        self.kdf.check(header, self.slot, refusals);
    }
}

/// Whether something is under way on the volume, or demanded that is not known here.
fn check_state(header: &Description, refusals: &mut Vec<Refusal>) {
    let mut reencrypting: Vec<String> = Vec::new();
    for requirement in &header.requirements {
        if requirement.contains("reencrypt") {
            reencrypting.push(format!("requirement {requirement}"));
        } else {
            refusals.push(Refusal::Requirement(requirement.clone()));
        }
    }
    for segment in &header.segments {
        reencrypting.extend(segment.flags.iter().map(|flag| format!("segment flag {flag}")));
    }
    let slots = header.slots.iter().filter(|slot| slot.kind == "reencrypt");
    reencrypting.extend(slots.map(|slot| format!("key slot {}", slot.id)));
    if !reencrypting.is_empty() {
        refusals.push(Refusal::Reencrypting { what: reencrypting.join(", ") });
    }
    let digested = |segment: &Segment| header.digests.iter().any(|d| d.segments.contains(&segment.id));
    if !header.segments.iter().all(digested) {
        refusals.push(Refusal::NoDigest);
    }
    for digest in &header.digests {
        check_digest(digest, refusals);
    }
}

/// A digest must have the length that its hash makes, or LUKS1's, and a salt of the one length that salts have. With any
/// other, libcryptsetup (2.6.1) says of every key that it matches.
fn check_digest(digest: &KeyDigest, refusals: &mut Vec<Refusal>) {
    let Kdf::Pbkdf2 { hash, .. } = &digest.kdf else { return };
    let made_bytes = match hash.as_str() {
        "sha1" | "ripemd160" => 20,
        "sha224" | "sha3-224" => 28,
        "sha256" | "sha3-256" | "blake2s-256" | "sm3" => 32,
        "sha384" | "sha3-384" => 48,
        "sha512" | "sha3-512" | "blake2b-512" | "whirlpool" => 64,
        // One that is not known makes none of a known length but LUKS1's.
        _ => LUKS1_DIGEST_BYTES,
    };
    let digest_bytes = digest.digest_bytes;
    if digest_bytes != Some(LUKS1_DIGEST_BYTES) && digest_bytes != Some(made_bytes) {
        refusals.push(Refusal::Digest { digest: digest.id, digest_bytes, hash: hash.clone() });
    }
    if digest.salt_bytes != Some(DIGEST_SALT_BYTES) {
        refusals.push(Refusal::DigestSalt { digest: digest.id, salt_bytes: digest.salt_bytes });
    }
}

/// A slot that would be opened with something else than what cryptsetup makes, whether it is tried or not.
fn check_slot(header: &Description, slot: &Slot, refusals: &mut Vec<Refusal>) {
    if slot.kind == "reencrypt" {
        return;
    }
    if let Some(cipher) = slot.cipher.as_ref().filter(|cipher| !is_slot_cipher(cipher)) {
        refusals.push(Refusal::SlotCipher { slot: slot.id, cipher: cipher.clone() });
    }
    let mut impossible = |what: String| refusals.push(Refusal::Slot { slot: slot.id, what });
    if !matches!(slot.kind.as_str(), "luks1" | "luks2") {
        impossible(format!("it is of type `{}`", slot.kind));
    }
    if slot.stripes != Some(STRIPES) {
        impossible(format!("its key is not spread over {STRIPES} stripes"));
    }
    if slot.key_bits > 1024 || slot.cipher_key_bits.is_none_or(|bits| bits > 1024) {
        impossible("its keys are longer than any cipher's".to_owned());
    } else if slot.area_bytes < slot.key_bits / 8 * u64::from(STRIPES) {
        impossible("its area is too small for its key".to_owned());
    }
    let area_end_bytes = slot.area_offset_bytes.checked_add(slot.area_bytes);
    if area_end_bytes.is_none_or(|end_bytes| end_bytes > header.header_bytes) {
        impossible("its area is not in the header".to_owned());
    }
}

/// What cryptsetup encrypts slots with, whatever the volume's cipher is.
fn is_slot_cipher(cipher: &str) -> bool {
    cipher.starts_with("aes-xts-") || cipher.starts_with("aes-cbc-")
}

/// The payload: its cipher, its sectors, and its place on the volume.
fn check_segment(
    header: &Description,
    segment: &Segment,
    placement: Placement,
    refusals: &mut Vec<Refusal>,
) -> Option<Approved> {
    if segment.kind != "crypt" {
        refusals.push(Refusal::SegmentKind(segment.kind.clone()));
    }
    if let Some(integrity) = &segment.integrity {
        refusals.push(Refusal::Integrity(integrity.clone()));
    }
    let iv_mode = supported_cipher(segment.cipher.as_deref().unwrap_or("none"), refusals);
    let key_bytes = match segment.key_bits {
        Some(256) => Some(32),
        Some(512) => Some(64),
        other => {
            refusals.extend(other.map(Refusal::KeyBits));
            None
        }
    };
    let sector_size = SectorSize::new(segment.sector_bytes);
    match sector_size {
        None => refusals.push(Refusal::SectorBytes(segment.sector_bytes)),
        Some(size) if !segment.iv_tweak.is_multiple_of(size.units()) => {
            let (iv_tweak, sector_bytes) = (segment.iv_tweak, segment.sector_bytes);
            refusals.push(Refusal::IvTweak { iv_tweak, sector_bytes });
        }
        Some(_) => {}
    }
    let geometry =
        payload(header, segment, placement, sector_size?).map_err(|refusal| refusals.push(refusal)).ok();
    let iv = IvNumbering { mode: iv_mode?, offset_sectors: segment.iv_tweak, large_sectors: false };
    let extent = segment.length_bytes.map_or(PayloadExtent::WholeVolume, |_| PayloadExtent::Fixed);
    Some(Approved { geometry: geometry?, extent, iv, key_bytes: key_bytes? })
}

fn supported_cipher(cipher: &str, refusals: &mut Vec<Refusal>) -> Option<IvMode> {
    match cipher.parse::<CipherSpec>() {
        Ok(CipherSpec { iv_mode: mode @ (IvMode::Plain64 | IvMode::Plain) }) => return Some(mode),
        _ if is_null(cipher) => refusals.push(Refusal::NullCipher(cipher.to_owned())),
        _ => refusals.push(Refusal::Cipher(cipher.to_owned())),
    }
    None
}

fn payload(
    header: &Description,
    segment: &Segment,
    placement: Placement,
    sector_size: SectorSize,
) -> Result<Geometry, Refusal> {
    let (payload_offset_bytes, header_bytes) = (segment.offset_bytes, header.header_bytes);
    let Placement { volume_bytes, detached } = placement;
    if !payload_offset_bytes.is_multiple_of(SECTOR_BYTES) {
        return Err(Refusal::PayloadOffset(payload_offset_bytes));
    }
    if !detached && payload_offset_bytes < header_bytes {
        let hint = match payload_offset_bytes {
            0 => "; it is a detached header: give the volume with --blk-file and this with --header",
            _ => "",
        };
        return Err(Refusal::PayloadInHeader { payload_offset_bytes, header_bytes, hint });
    }
    let end_bytes = match segment.length_bytes {
        None => volume_bytes,
        Some(length_bytes) => match payload_offset_bytes.checked_add(length_bytes) {
            Some(end_bytes) if end_bytes <= volume_bytes => end_bytes,
            end_bytes => {
                let end_bytes = end_bytes.unwrap_or(u64::MAX);
                return Err(Refusal::PayloadBeyondEnd { end_bytes, volume_bytes });
            }
        },
    };
    if payload_offset_bytes >= volume_bytes {
        return Err(Refusal::PayloadBeyondEnd { end_bytes: payload_offset_bytes, volume_bytes });
    }
    payload_geometry(end_bytes, payload_offset_bytes / SECTOR_BYTES, sector_size).map_err(Refusal::Payload)
}
