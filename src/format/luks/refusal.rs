//! Why a header is not served, in words.

use std::fmt;

use uuid::Uuid;

use super::expectations::ExpectedCipher;
use super::on_disk::{DIGEST_SALT_BYTES, Version};
use crate::format::FormatError;

const CIPHERS: &str = "aes-xts-plain64 and aes-xts-plain";

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
    #[error(
        "key slot {slot} needs {memory_kib} KiB of memory: {limit_mib} MiB are allowed (--kdf-memory-max)"
    )]
    KdfMemory { slot: u32, memory_kib: u32, limit_mib: u32 },
    #[error("key slot {slot} needs {threads} threads: {limit} are allowed (--kdf-threads-max)")]
    KdfThreads { slot: u32, threads: u32, limit: u32 },
    #[error(
        "Argon2 would go through {work_gib} GiB of memory for key slot(s) {slots}: {limit_gib} are allowed \
         (--kdf-work-max; --key-slot tries one slot)"
    )]
    KdfWork { slots: String, work_gib: u64, limit_gib: u32 },
    #[error(
        "PBKDF2 would need {iterations} iterations for key slot(s) {slots}: {limit} are allowed \
         (--kdf-iterations-max; --key-slot tries one slot)"
    )]
    KdfIterations { slots: String, iterations: u64, limit: u32 },
    #[error("{what} uses the KDF `{name}`, which is not known")]
    UnknownKdf { what: String, name: String },
    #[error(
        "digest {digest} of the volume key has {} bytes, which its hash `{hash}` does not make: any key could pass for \
         the right one", .digest_bytes.unwrap_or(0)
    )]
    Digest { digest: u32, digest_bytes: Option<usize>, hash: String },
    #[error(
        "the salt of the volume key's digest {digest} has {} bytes, not {DIGEST_SALT_BYTES}: any key could pass for the \
         right one", .salt_bytes.unwrap_or(0)
    )]
    DigestSalt { digest: u32, salt_bytes: Option<usize> },
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

/// Whether a cipher of dm-crypt's or the library's is the one that does nothing.
pub(super) fn is_null(cipher: &str) -> bool {
    cipher.contains("null")
}
