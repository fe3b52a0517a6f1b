//! What a header says, in one shape for both versions. Nothing here is secret, and nothing is judged yet.

use base64ct::{Base64, Encoding};
use libcryptsetup_rs::CryptDevice;
use serde::Serialize;

use super::error::LuksError;
use super::metadata::{DigestObject, KdfObject, Keyslot, Metadata, SegmentObject};
use super::on_disk::{CopyState, DIGEST_SALT_BYTES, LUKS1_DIGEST_BYTES, Luks1, Luks2Copy, STRIPES, Version};
use super::snapshot::HeaderSnapshot;
use crate::geometry::SECTOR_BYTES;

/// A header, described.
#[derive(Clone, Debug, Serialize)]
pub struct Description {
    /// Which version of LUKS.
    pub version: Version,
    /// The volume's UUID as it is written there.
    pub uuid: String,
    /// LUKS2: the volume's label.
    pub label: Option<String>,
    /// LUKS2: the second label.
    pub subsystem: Option<String>,
    /// LUKS2: how many times the header was written.
    pub sequence_id: Option<u64>,
    /// LUKS2: the first and the second copy of the header.
    pub copies: Option<[CopyState; 2]>,
    /// Bytes of the header area, from the beginning of the volume or header file.
    pub header_bytes: u64,
    /// SHA-256 of that area, in hexadecimal.
    pub header_digest: String,
    /// Parts of the volume; one in every volume that is not being changed.
    pub segments: Vec<Segment>,
    /// The key slots that hold a key.
    pub slots: Vec<Slot>,
    /// LUKS2: tokens, which tell other programs how slots are opened.
    pub tokens: Vec<Token>,
    /// What volume keys are checked against.
    pub digests: Vec<KeyDigest>,
    /// LUKS2: what a program must understand before it may open the volume.
    pub requirements: Vec<String>,
    /// LUKS2: how the volume is to be activated, such as `allow-discards`. They say nothing to this program.
    pub flags: Vec<String>,
}

/// A part of the volume, encrypted in one way.
#[derive(Clone, Debug, Serialize)]
pub struct Segment {
    /// Its number.
    pub id: u32,
    /// `crypt`, or what this program cannot read.
    pub kind: String,
    /// In dm-crypt's notation, such as `aes-xts-plain64`.
    pub cipher: Option<String>,
    /// The volume key's length, as its slots have it.
    pub key_bits: Option<u64>,
    /// Where it begins on the volume.
    pub offset_bytes: u64,
    /// Its length; none if it goes on to the end of the volume.
    pub length_bytes: Option<u64>,
    /// The encryption sector size.
    pub sector_bytes: u32,
    /// Number that its first sector has for its IV, in 512-byte units.
    pub iv_tweak: u64,
    /// How its sectors are authenticated, if they are.
    pub integrity: Option<String>,
    /// What its role is while the volume is being changed.
    pub flags: Vec<String>,
}

/// A key slot that holds a key.
#[derive(Clone, Debug, Serialize)]
pub struct Slot {
    /// Its number.
    pub id: u32,
    /// `luks1`, `luks2`, or what this program cannot open.
    pub kind: String,
    /// Length of the key in it.
    pub key_bits: u64,
    /// What the passphrase is made into the slot's own key with.
    pub kdf: Option<Kdf>,
    /// What the key is encrypted with.
    pub cipher: Option<String>,
    /// The slot's own key.
    pub cipher_key_bits: Option<u64>,
    /// Pieces that the key is spread over.
    pub stripes: Option<u32>,
    /// How they are put together.
    pub stripes_hash: Option<String>,
    /// Where its key material lies.
    pub area_offset_bytes: u64,
    /// Room for it there.
    pub area_bytes: u64,
    /// When it is tried.
    pub priority: Priority,
    /// The digest that its key must have; none for a key that is not the volume's.
    pub digest: Option<u32>,
}

/// When a slot is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Only when it is asked for by its number.
    Ignored,
    /// As one of many.
    Normal,
    /// Before the others.
    Preferred,
}

/// How a passphrase becomes a key, and at what cost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "type")]
pub enum Kdf {
    /// PBKDF2 with HMAC (RFC 8018).
    Pbkdf2 {
        /// The HMAC's hash.
        hash: String,
        /// Rounds.
        iterations: u32,
    },
    /// Argon2i (RFC 9106).
    Argon2i(Argon2),
    /// Argon2id (RFC 9106).
    Argon2id(Argon2),
    /// One that this program does not know.
    Other {
        /// Its name.
        name: String,
    },
}

/// Costs of Argon2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Argon2 {
    /// Times that the memory is gone through.
    pub passes: u32,
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Lanes, each for a thread.
    pub threads: u32,
}

/// A token, as far as this program looks at it.
#[derive(Clone, Debug, Serialize)]
pub struct Token {
    /// Its number.
    pub id: u32,
    /// Whose it is, such as `clevis` or `systemd-tpm2`.
    pub kind: String,
    /// The slots that it tells how to open.
    pub slots: Vec<u32>,
}

/// A digest of a volume key.
#[derive(Clone, Debug, Serialize)]
pub struct KeyDigest {
    /// Its number.
    pub id: u32,
    /// How it is made.
    pub kdf: Kdf,
    /// Its length; none if it is missing or no Base64.
    pub digest_bytes: Option<usize>,
    /// The length of its salt; none if it is missing or no Base64.
    pub salt_bytes: Option<usize>,
    /// The segments whose key it checks.
    pub segments: Vec<u32>,
}

impl Description {
    /// Describes `snapshot`, which libcryptsetup has loaded as `device`.
    pub(super) fn of(snapshot: &HeaderSnapshot, device: &mut CryptDevice) -> Result<Self, LuksError> {
        match snapshot.version() {
            Version::Luks1 => Self::of_luks1(snapshot),
            Version::Luks2 => Self::of_luks2(snapshot, device),
        }
    }

    fn of_luks1(snapshot: &HeaderSnapshot) -> Result<Self, LuksError> {
        let version = Version::Luks1;
        let header = Luks1::parse(snapshot.start()).map_err(|what| LuksError::Invalid { version, what })?;
        let cipher = format!("{}-{}", header.cipher_name, header.cipher_mode);
        let kdf = |iterations| Kdf::Pbkdf2 { hash: header.hash.clone(), iterations };
        let key_bits = u64::from(header.key_bytes) * 8;
        let slots = (0..).zip(&header.slots).filter(|(_, slot)| slot.active).map(|(id, slot)| Slot {
            id,
            kind: "luks1".to_owned(),
            key_bits,
            kdf: Some(kdf(slot.iterations)),
            cipher: Some(cipher.clone()),
            cipher_key_bits: Some(key_bits),
            stripes: Some(STRIPES),
            stripes_hash: Some(header.hash.clone()),
            area_offset_bytes: slot.material_offset_bytes,
            area_bytes: header.material_bytes(),
            priority: Priority::Normal,
            digest: Some(0),
        });
        let segment = Segment {
            id: 0,
            kind: "crypt".to_owned(),
            cipher: Some(cipher.clone()),
            key_bits: Some(key_bits),
            offset_bytes: header.payload_offset_bytes,
            length_bytes: None,
            sector_bytes: SECTOR_BYTES as u32,
            iv_tweak: 0,
            integrity: None,
            flags: Vec::new(),
        };
        let digest = KeyDigest {
            id: 0,
            kdf: kdf(header.digest_iterations),
            digest_bytes: Some(LUKS1_DIGEST_BYTES),
            salt_bytes: Some(DIGEST_SALT_BYTES),
            segments: vec![0],
        };
        Ok(Self {
            version,
            uuid: header.uuid.clone(),
            label: None,
            subsystem: None,
            sequence_id: None,
            copies: None,
            header_bytes: snapshot.area_bytes(),
            header_digest: base16ct::lower::encode_string(snapshot.digest()),
            segments: vec![segment],
            slots: slots.collect(),
            tokens: Vec::new(),
            digests: vec![digest],
            requirements: Vec::new(),
            flags: Vec::new(),
        })
    }

    fn of_luks2(snapshot: &HeaderSnapshot, device: &mut CryptDevice) -> Result<Self, LuksError> {
        let version = Version::Luks2;
        let invalid = |what: String| LuksError::Invalid { version, what };
        let metadata = Metadata::of(device)?;
        let uuid = device.status_handle().get_uuid().map_err(|error| invalid(error.to_string()))?;
        let header_bytes = (snapshot.area_bytes() - metadata.config.keyslots_bytes) / 2;
        let copies = Luks2Copy::parse_both(snapshot.start(), header_bytes);
        let newest = copies.iter().flatten().map(|copy| copy.sequence_id).max();
        let states = copies.each_ref().map(|copy| match copy {
            None => CopyState::Damaged,
            Some(copy) if Some(copy.sequence_id) < newest => CopyState::Older,
            Some(_) => CopyState::Good,
        });
        let in_use = copies.into_iter().flatten().find(|copy| Some(copy.sequence_id) == newest);
        let present = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let digest_of = |slot: u32| {
            metadata.digests.iter().find(|(_, digest)| digest.keyslots.contains(&slot)).map(|(id, _)| *id)
        };
        let slots: Vec<Slot> =
            metadata.keyslots.iter().map(|(id, slot)| Slot::new(*id, slot, digest_of(*id))).collect();
        let segments = metadata.segments.iter().map(|(id, segment)| {
            let key_bits = metadata.digests.values().find(|d| d.segments.contains(id)).and_then(|digest| {
                slots.iter().find(|slot| digest.keyslots.contains(&slot.id)).map(|slot| slot.key_bits)
            });
            Segment::new(*id, segment, key_bits)
        });
        Ok(Self {
            version,
            uuid: uuid.to_string(),
            label: in_use.as_ref().and_then(|copy| present(&copy.label)),
            subsystem: in_use.as_ref().and_then(|copy| present(&copy.subsystem)),
            sequence_id: newest,
            copies: Some(states),
            header_bytes: snapshot.area_bytes(),
            header_digest: base16ct::lower::encode_string(snapshot.digest()),
            segments: segments.collect(),
            tokens: (metadata.tokens.iter())
                .map(|(id, token)| Token { id: *id, kind: token.kind.clone(), slots: token.keyslots.clone() })
                .collect(),
            digests: metadata.digests.iter().map(|(id, digest)| KeyDigest::new(*id, digest)).collect(),
            requirements: metadata.config.requirements.unwrap_or_default().mandatory,
            flags: metadata.config.flags,
            slots,
        })
    }

    /// The slots that a passphrase is tried on, all of which hold the volume's key: `slot` alone, or every one that
    /// is not to be ignored.
    pub fn slots_tried(&self, slot: Option<u32>) -> impl Iterator<Item = &Slot> {
        self.slots.iter().filter(move |candidate| {
            self.holds_volume_key(candidate)
                && slot.map_or(candidate.priority != Priority::Ignored, |slot| candidate.id == slot)
        })
    }

    /// Whether a slot's key is that of a segment; it may be any other (`cryptsetup luksAddKey --unbound`).
    pub fn holds_volume_key(&self, slot: &Slot) -> bool {
        self.digests.iter().any(|digest| Some(digest.id) == slot.digest && !digest.segments.is_empty())
    }
}

impl Segment {
    fn new(id: u32, segment: &SegmentObject, key_bits: Option<u64>) -> Self {
        Self {
            id,
            kind: segment.kind.clone(),
            cipher: segment.encryption.clone(),
            key_bits,
            offset_bytes: segment.offset,
            length_bytes: segment.size,
            sector_bytes: segment.sector_size.unwrap_or(SECTOR_BYTES as u32),
            iv_tweak: segment.iv_tweak,
            integrity: segment.integrity.as_ref().map(|integrity| integrity.kind.clone()),
            flags: segment.flags.clone(),
        }
    }
}

impl Slot {
    fn new(id: u32, slot: &Keyslot, digest: Option<u32>) -> Self {
        Self {
            id,
            kind: slot.kind.clone(),
            key_bits: u64::from(slot.key_size) * 8,
            kdf: slot.kdf.as_ref().map(Kdf::new),
            cipher: slot.area.encryption.clone(),
            cipher_key_bits: slot.area.key_size.map(|bytes| u64::from(bytes) * 8),
            stripes: slot.af.as_ref().map(|af| af.stripes),
            stripes_hash: slot.af.as_ref().map(|af| af.hash.clone()),
            area_offset_bytes: slot.area.offset,
            area_bytes: slot.area.size,
            priority: match slot.priority {
                Some(0) => Priority::Ignored,
                Some(2) => Priority::Preferred,
                _ => Priority::Normal,
            },
            digest,
        }
    }
}

impl Kdf {
    fn new(kdf: &KdfObject) -> Self {
        let other = || Self::Other { name: kdf.kind.clone() };
        let argon2 = || Some(Argon2 { passes: kdf.time?, memory_kib: kdf.memory?, threads: kdf.cpus? });
        match kdf.kind.as_str() {
            "pbkdf2" => Self::pbkdf2(&kdf.kind, kdf.hash.as_ref(), kdf.iterations),
            "argon2i" => argon2().map_or_else(other, Self::Argon2i),
            "argon2id" => argon2().map_or_else(other, Self::Argon2id),
            _ => other(),
        }
    }

    fn pbkdf2(kind: &str, hash: Option<&String>, iterations: Option<u32>) -> Self {
        match (kind, hash, iterations) {
            ("pbkdf2", Some(hash), Some(iterations)) => Self::Pbkdf2 { hash: hash.clone(), iterations },
            _ => Self::Other { name: kind.to_owned() },
        }
    }

    /// The costs, of a KDF that takes much memory.
    pub fn argon2(&self) -> Option<Argon2> {
        match self {
            Self::Argon2i(costs) | Self::Argon2id(costs) => Some(*costs),
            Self::Pbkdf2 { .. } | Self::Other { .. } => None,
        }
    }
}

impl KeyDigest {
    fn new(id: u32, digest: &DigestObject) -> Self {
        let kdf = Kdf::pbkdf2(&digest.kind, digest.hash.as_ref(), digest.iterations);
        let length = |text: &Option<String>| Some(Base64::decode_vec(text.as_ref()?).ok()?.len());
        let (digest_bytes, salt_bytes) = (length(&digest.digest), length(&digest.salt));
        Self { id, kdf, digest_bytes, salt_bytes, segments: digest.segments.clone() }
    }
}
