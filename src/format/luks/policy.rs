//! Which headers are served: an allow-list, because whoever controls the storage writes the header, and libcryptsetup
//! follows it wherever it leads.

use std::fmt;

use base16ct::lower;
use uuid::Uuid;

use super::description::{Argon2, Description, Kdf, Segment, Slot};
use super::on_disk::{STRIPES, Version};
use crate::cipher::{CipherSpec, IvMode, IvNumbering};
use crate::format::{FormatError, payload_geometry};
use crate::geometry::{Geometry, SECTOR_BYTES, SectorSize};

const CIPHERS: &str = "aes-xts-plain64 and aes-xts-plain";

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

/// The most that the KDFs of a header may cost. A header asks for as much as it likes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KdfLimits {
    /// Memory of Argon2.
    pub memory_kib: u32,
    /// Passes of Argon2 times its memory in GiB, rounded up.
    pub gib_passes: u32,
    /// Lanes of Argon2.
    pub threads: u32,
    /// Iterations of PBKDF2, in a slot and in the digest.
    pub iterations: u32,
}

impl Default for KdfLimits {
    /// Room for what cryptsetup makes by default on any machine (1 GiB, 4 threads, two seconds), and for ten times
    /// its time.
    fn default() -> Self {
        Self { memory_kib: 1 << 20, gib_passes: 64, threads: 4, iterations: 100_000_000 }
    }
}

/// What the operator knows of the volume, to notice another one in its place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expectations {
    /// `--format luks1` or `luks2`.
    pub version: Option<Version>,
    /// `--expect-uuid`.
    pub uuid: Option<Uuid>,
    /// `--expect-cipher`.
    pub cipher: Option<ExpectedCipher>,
    /// `--expect-header-digest`: SHA-256 of the header area.
    pub header_digest: Option<[u8; 32]>,
}

/// A cipher, and the volume key's length if that is known too: `aes-xts-plain64` or `aes-xts-plain64:512`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedCipher {
    /// In dm-crypt's notation.
    pub name: String,
    /// Both halves of the XTS key.
    pub key_bits: Option<u32>,
}

impl fmt::Display for ExpectedCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key_bits {
            Some(bits) => write!(f, "{}:{bits}", self.name),
            None => f.write_str(&self.name),
        }
    }
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
    /// Which IV each sector gets.
    pub iv: IvNumbering,
    /// Length of the volume key: 32 or 64.
    pub key_bytes: usize,
}

/// Why a header is not served.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum Refusal {
    #[error("it is {found}, but --format says {expected}")]
    Version { found: Version, expected: Version },
    #[error("its UUID is {found}, not {expected} (--expect-uuid)")]
    Uuid { found: String, expected: Uuid },
    #[error("its cipher is {found}, not {expected} (--expect-cipher)")]
    ExpectedCipher { found: String, expected: ExpectedCipher },
    #[error("its SHA-256 is {found}, not {expected} (--expect-header-digest): was the header changed?")]
    HeaderDigest { found: String, expected: String },
    #[error("it is being re-encrypted ({what}): let `cryptsetup reencrypt` finish first")]
    Reencrypting { what: String },
    #[error("it requires `{0}`, which this version does not know")]
    Requirement(String),
    #[error("it has {0} segments, and only volumes of one can be served")]
    Segments(usize),
    #[error("its segment is of type `{0}`, not `crypt`")]
    SegmentKind(String),
    #[error("its sectors are authenticated ({0}), which is not supported")]
    Integrity(String),
    #[error("its cipher is `{0}`, which does not encrypt at all")]
    NullCipher(String),
    #[error("its cipher is `{0}`: supported are {CIPHERS}, with keys of 256 or 512 bits")]
    Cipher(String),
    #[error("its volume key has {0} bits: 256 and 512 are supported")]
    KeyBits(u64),
    #[error("its sectors have {0} bytes: 512, 1024, 2048 and 4096 are possible")]
    SectorBytes(u32),
    #[error("its IVs begin at {iv_tweak}, inside a sector of {sector_bytes} bytes")]
    IvTweak { iv_tweak: u64, sector_bytes: u32 },
    #[error("its payload begins at byte {0}, which is not a multiple of 512")]
    PayloadOffset(u64),
    #[error(
        "its payload begins at byte {payload_offset_bytes}, inside the header of {header_bytes} bytes{hint}"
    )]
    PayloadInHeader { payload_offset_bytes: u64, header_bytes: u64, hint: &'static str },
    #[error("its payload ends at byte {end_bytes}, but the volume at {volume_bytes}")]
    PayloadBeyondEnd { end_bytes: u64, volume_bytes: u64 },
    #[error("{0}")]
    Payload(FormatError),
    #[error("key slot {slot} hides its key with `{cipher}`, which {}", if is_null(.cipher) { "does not encrypt at all" } else { "is not supported" })]
    SlotCipher { slot: u32, cipher: String },
    #[error("key slot {slot} is not possible: {what}")]
    Slot { slot: u32, what: String },
    #[error("key slot {slot} needs {memory_kib} KiB of memory: {limit_kib} are allowed (--kdf-memory-max)")]
    KdfMemory { slot: u32, memory_kib: u32, limit_kib: u32 },
    #[error(
        "key slot {slot} goes {passes} times through {memory_kib} KiB of memory, {gib_passes} GiB in all: \
         {limit} are allowed (--kdf-gib-passes-max)"
    )]
    KdfPasses { slot: u32, passes: u32, memory_kib: u32, gib_passes: u64, limit: u32 },
    #[error("key slot {slot} needs {threads} threads: {limit} are allowed (--kdf-threads-max)")]
    KdfThreads { slot: u32, threads: u32, limit: u32 },
    #[error("{what} needs {iterations} iterations: {limit} are allowed (--kdf-iterations-max)")]
    KdfIterations { what: String, iterations: u32, limit: u32 },
    #[error("{what} uses the KDF `{name}`, which is not known")]
    UnknownKdf { what: String, name: String },
    #[error("no digest says whether the volume key is the right one")]
    NoDigest,
    #[error("no key slot {0} holds the volume's key (--key-slot)")]
    NoSuchSlot(u32),
    #[error("none of its key slots holds the volume's key")]
    NoSlots,
}

/// All reasons, at least one.
#[derive(Debug)]
pub struct Refusals(pub Vec<Refusal>);

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reasons: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&reasons.join("; "))
    }
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
            check_slot(slot, refusals);
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
            match &slot.kdf {
                Some(kdf) => self.kdf.check(&format!("key slot {}", slot.id), slot.id, kdf, refusals),
                None => {
                    refusals.push(Refusal::Slot { slot: slot.id, what: "it names no KDF".to_owned() });
                }
            }
        }
        for digest in &header.digests {
            self.kdf.check(&format!("digest {}", digest.id), digest.id, &digest.kdf, refusals);
        }
    }
}

impl Expectations {
    fn check(&self, header: &Description, refusals: &mut Vec<Refusal>) {
        if let Some(expected) = self.version.filter(|expected| *expected != header.version) {
            refusals.push(Refusal::Version { found: header.version, expected });
        }
        if let Some(expected) = self.uuid
            && Uuid::try_parse(&header.uuid) != Ok(expected)
        {
            refusals.push(Refusal::Uuid { found: header.uuid.clone(), expected });
        }
        if let Some(expected) = &self.cipher {
            let is_expected = |segment: &Segment| {
                segment.cipher.as_deref() == Some(&expected.name)
                    && expected.key_bits.is_none_or(|bits| segment.key_bits == Some(bits.into()))
            };
            for segment in header.segments.iter().filter(|segment| !is_expected(segment)) {
                let bits = segment.key_bits.map_or(String::new(), |bits| format!(":{bits}"));
                let found = segment.cipher.as_deref().unwrap_or("none").to_owned() + &bits;
                refusals.push(Refusal::ExpectedCipher { found, expected: expected.clone() });
            }
        }
        if let Some(expected) = self.header_digest.map(|digest| lower::encode_string(&digest))
            && expected != header.header_digest
        {
            refusals.push(Refusal::HeaderDigest { found: header.header_digest.clone(), expected });
        }
    }
}

impl KdfLimits {
    fn check(&self, what: &str, slot: u32, kdf: &Kdf, refusals: &mut Vec<Refusal>) {
        match kdf {
            Kdf::Pbkdf2 { iterations, .. } => {
                let (iterations, limit) = (*iterations, self.iterations);
                if iterations > limit {
                    refusals.push(Refusal::KdfIterations { what: what.to_owned(), iterations, limit });
                }
            }
            Kdf::Argon2i(costs) | Kdf::Argon2id(costs) => self.check_argon2(slot, *costs, refusals),
            Kdf::Other { name } => {
                refusals.push(Refusal::UnknownKdf { what: what.to_owned(), name: name.clone() });
            }
        }
    }

    fn check_argon2(&self, slot: u32, costs: Argon2, refusals: &mut Vec<Refusal>) {
        let Argon2 { passes, memory_kib, threads } = costs;
        if memory_kib > self.memory_kib {
            refusals.push(Refusal::KdfMemory { slot, memory_kib, limit_kib: self.memory_kib });
        }
        let gib_passes = (u64::from(passes) * u64::from(memory_kib)).div_ceil(1 << 20);
        if gib_passes > self.gib_passes.into() {
            let limit = self.gib_passes;
            refusals.push(Refusal::KdfPasses { slot, passes, memory_kib, gib_passes, limit });
        }
        if threads > self.threads {
            refusals.push(Refusal::KdfThreads { slot, threads, limit: self.threads });
        }
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
}

/// A slot that would be opened with something else than what cryptsetup makes, whether it is tried or not.
fn check_slot(slot: &Slot, refusals: &mut Vec<Refusal>) {
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
    }
}

/// What cryptsetup encrypts slots with, whatever the volume's cipher is.
fn is_slot_cipher(cipher: &str) -> bool {
    cipher.starts_with("aes-xts-") || cipher.starts_with("aes-cbc-")
}

fn is_null(cipher: &str) -> bool {
    cipher.contains("null")
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
    Some(Approved { geometry: geometry?, iv, key_bytes: key_bytes? })
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
