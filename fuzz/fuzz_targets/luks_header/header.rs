//! Headers made from nothing: valid ones, and edits of them.

use arbitrary::Arbitrary;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// One copy of a LUKS2 header: binary part and JSON.
const COPY_BYTES: usize = 16 << 10;
const JSON_OFFSET: usize = 4096;
const PATH_STEPS_MAX: usize = 6;
const EDITS_MAX: usize = 8;

const METADATA: &str = r#"{
    "keyslots": {
        "0": {"type": "luks2", "key_size": 64, "priority": 1,
              "af": {"type": "luks1", "stripes": 4000, "hash": "sha256"},
              "area": {"type": "raw", "encryption": "aes-xts-plain64", "key_size": 64,
                       "offset": "32768", "size": "258048"},
              "kdf": {"type": "argon2id", "time": 4, "memory": 32, "cpus": 1,
                      "salt": "m4beJETVGHVaX+e4isofUpqOU5Mo9qI3aiTGys2Jkis="}},
        "1": {"type": "luks2", "key_size": 64, "priority": 1,
              "af": {"type": "luks1", "stripes": 4000, "hash": "sha256"},
              "area": {"type": "raw", "encryption": "aes-xts-plain64", "key_size": 64,
                       "offset": "290816", "size": "258048"},
              "kdf": {"type": "pbkdf2", "hash": "sha256", "iterations": 1000,
                      "salt": "m4beJETVGHVaX+e4isofUpqOU5Mo9qI3aiTGys2Jkis="}}},
    "tokens": {"0": {"type": "clevis", "keyslots": ["1"]}},
    "segments": {"0": {"type": "crypt", "offset": "557056", "size": "dynamic", "iv_tweak": "0",
                       "encryption": "aes-xts-plain64", "sector_size": 512}},
    "digests": {"0": {"type": "pbkdf2", "keyslots": ["0", "1"], "segments": ["0"], "hash": "sha256",
                      "iterations": 1000, "salt": "c7yw91xxcI2haQXP0Lg4ijNiZ1xtuCMyT30CgzhmNE8=",
                      "digest": "QCqBj6txxTSnFgM7Ybhxo4zmR+jkyzaQ4mEbyVC7uVg="}},
    "config": {"json_size": "12288", "keyslots_size": "524288", "flags": ["allow-discards"]}
}"#;

/// Words that mean something somewhere.
const WORDS: &[&str] = &[
    "crypt",
    "linear",
    "luks2",
    "reencrypt",
    "raw",
    "none",
    "journal",
    "pbkdf2",
    "argon2i",
    "argon2id",
    "sha256",
    "sha1",
    "whirlpool",
    "aes-xts-plain64",
    "aes-xts-plain",
    "aes-cbc-essiv:sha256",
    "cipher_null-ecb",
    "null",
    "dynamic",
    "online-reencrypt",
    "online-reencrypt-v2",
    "offline-reencrypt",
    "opal",
    "backup-final",
    "in-reencryption",
    "hmac(sha256)",
    "0",
    "1",
    "31",
    "32768",
    "557056",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551104",
    "-1",
    "",
    "mandatory",
    "encryption",
    "integrity",
    "iv_tweak",
    "sector_size",
    "requirements",
    "flags",
    "keyslots",
    "segments",
    "digests",
    "type",
    "size",
    "offset",
];

/// Numbers at which something overflows or a limit lies.
const NUMBERS: &[i64] = &[
    0,
    1,
    2,
    3,
    8,
    16,
    32,
    33,
    64,
    128,
    255,
    256,
    512,
    1000,
    1024,
    1025,
    4000,
    4001,
    4096,
    20_000,
    65_536,
    1 << 20,
    i32::MAX as i64,
    u32::MAX as i64,
    1 << 32,
    i64::MAX,
    -1,
    i64::MIN,
];

#[derive(Arbitrary, Debug)]
pub struct Luks2Edits {
    edits: Vec<Edit>,
    /// Other bytes in the binary part, before the checksum is made.
    binary: Vec<(bool, u16, u8)>,
    /// Whether the second copy is the newer one.
    second_newer: bool,
    /// Whether the copies differ: then only the first is edited.
    first_only: bool,
}

#[derive(Arbitrary, Debug)]
enum Edit {
    Set(Path, Scalar),
    Insert(Path, u8, Scalar),
    Remove(Path),
    Copy(Path, Path, u8),
    Nest(Path, u8),
}

/// Which child at each level; 0 stops.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Path([u8; PATH_STEPS_MAX]);

#[derive(Arbitrary, Debug)]
enum Scalar {
    Number(u8),
    AnyNumber(u32),
    Word(u8),
    Digits(u64),
    Null,
    Truth(bool),
    List(u8),
    Object,
}

impl Scalar {
    fn value(&self) -> Value {
        match self {
            Self::Number(index) => NUMBERS[usize::from(*index) % NUMBERS.len()].into(),
            Self::AnyNumber(number) => (*number).into(),
            Self::Word(index) => word(*index).into(),
            Self::Digits(number) => number.to_string().into(),
            Self::Null => Value::Null,
            Self::Truth(truth) => (*truth).into(),
            Self::List(index) => vec![Value::from(word(*index))].into(),
            Self::Object => Map::new().into(),
        }
    }
}

fn word(index: u8) -> &'static str {
    WORDS[usize::from(index) % WORDS.len()]
}

impl Path {
    fn find(self, json: &mut Value) -> &mut Value {
        let mut found = json;
        for step in self.0 {
            let children = match &*found {
                Value::Object(map) => map.len(),
                Value::Array(list) => list.len(),
                _ => 0,
            };
            let step = usize::from(step);
            if step == 0 || children == 0 {
                break;
            }
            let child = (step - 1) % children;
            found = match found {
                Value::Object(map) => map.values_mut().nth(child).expect("counted above"),
                Value::Array(list) => &mut list[child],
                _ => unreachable!("it has children"),
            };
        }
        found
    }
}

impl Edit {
    fn apply(&self, json: &mut Value) {
        match self {
            Self::Set(path, scalar) => *path.find(json) = scalar.value(),
            Self::Insert(path, name, scalar) => insert(path.find(json), word(*name), scalar.value()),
            Self::Remove(path) => {
                *path.find(json) = Value::Null;
                remove_nulls(json);
            }
            Self::Copy(from, to, name) => {
                let copy = from.find(json).clone();
                insert(to.find(json), word(*name), copy);
            }
            Self::Nest(path, depth) => {
                let place = path.find(json);
                for _ in 0..*depth {
                    *place = Value::Array(vec![place.take()]);
                }
            }
        }
    }
}

fn insert(place: &mut Value, name: &str, value: Value) {
    match place {
        Value::Object(map) => {
            map.insert(name.to_owned(), value);
        }
        Value::Array(list) => list.push(value),
        other => *other = value,
    }
}

fn remove_nulls(json: &mut Value) {
    match json {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(remove_nulls);
        }
        Value::Array(list) => {
            list.retain(|value| !value.is_null());
            list.iter_mut().for_each(remove_nulls);
        }
        _ => {}
    }
}

/// Both copies of a LUKS2 header, with right checksums.
pub fn luks2(edits: &Luks2Edits) -> Vec<u8> {
    let valid: Value = serde_json::from_str(METADATA).expect("it is JSON");
    let mut edited = valid.clone();
    for edit in edits.edits.iter().take(EDITS_MAX) {
        edit.apply(&mut edited);
        // A few copies of copies would fill all memory.
        if edited.to_string().len() > 4 * COPY_BYTES {
            break;
        }
    }
    let mut bytes = vec![0; 2 * COPY_BYTES];
    for (index, copy) in bytes.chunks_mut(COPY_BYTES).enumerate() {
        let json = if index == 1 && edits.first_only { &valid } else { &edited };
        fill(copy, index, if index == usize::from(edits.second_newer) { 2 } else { 1 }, json);
        for (second, offset, byte) in edits.binary.iter().take(EDITS_MAX) {
            if usize::from(*second) == index {
                copy[usize::from(*offset) % 448] = *byte;
            }
        }
        seal(copy);
    }
    bytes
}

fn fill(copy: &mut [u8], index: usize, sequence_id: u64, json: &Value) {
    copy[..6].copy_from_slice([b"LUKS\xba\xbe", b"SKUL\xba\xbe"][index]);
    copy[6..8].copy_from_slice(&2_u16.to_be_bytes());
    copy[8..16].copy_from_slice(&(COPY_BYTES as u64).to_be_bytes());
    copy[16..24].copy_from_slice(&sequence_id.to_be_bytes());
    copy[24..29].copy_from_slice(b"label");
    copy[72..78].copy_from_slice(b"sha256");
    copy[168..204].copy_from_slice(b"6f1a0000-0000-4000-8000-000000000001");
    copy[256..264].copy_from_slice(&((index * COPY_BYTES) as u64).to_be_bytes());
    let json = json.to_string();
    let room = &mut copy[JSON_OFFSET..];
    let fitting = json.len().min(room.len());
    room[..fitting].copy_from_slice(&json.as_bytes()[..fitting]);
}

fn seal(copy: &mut [u8]) {
    copy[448..512].fill(0);
    let checksum = Sha256::digest(&copy[..]);
    copy[448..480].copy_from_slice(&checksum);
}

/// One field of a LUKS1 header, or of one of its slots.
#[derive(Arbitrary, Debug)]
pub struct Luks1Edit {
    field: u8,
    number: Luks1Number,
}

#[derive(Arbitrary, Debug)]
enum Luks1Number {
    Known(u8),
    Any(u32),
    Word(u8),
}

/// A LUKS1 header with one active slot of no key.
pub fn luks1(edits: &[Luks1Edit]) -> Vec<u8> {
    const FIELDS: [usize; 6] = [8, 40, 72, 104, 108, 164];
    const SLOT_FIELDS: [usize; 4] = [0, 4, 40, 44];
    let mut bytes = vec![0; 4096];
    bytes[..6].copy_from_slice(b"LUKS\xba\xbe");
    bytes[6..8].copy_from_slice(&1_u16.to_be_bytes());
    bytes[8..11].copy_from_slice(b"aes");
    bytes[40..51].copy_from_slice(b"xts-plain64");
    bytes[72..78].copy_from_slice(b"sha256");
    let mut put =
        |offset: usize, number: u32| bytes[offset..offset + 4].copy_from_slice(&number.to_be_bytes());
    put(104, 4040);
    put(108, 64);
    put(164, 1000);
    for slot in 0..8 {
        let at = 208 + slot * 48;
        put(at, if slot == 0 { 0x00ac_71f3 } else { 0x0000_dead });
        put(at + 4, 1000);
        put(at + 40, 8 + slot as u32 * 504);
        put(at + 44, 4000);
    }
    bytes[168..204].copy_from_slice(b"6f1a0000-0000-4000-8000-000000000001");
    for Luks1Edit { field, number } in edits.iter().take(EDITS_MAX) {
        let field = usize::from(*field);
        let offset = match FIELDS.get(field) {
            Some(offset) => *offset,
            None => 208 + field % 8 * 48 + SLOT_FIELDS[field / 8 % 4],
        };
        match number {
            Luks1Number::Known(index) => {
                let number = NUMBERS[usize::from(*index) % NUMBERS.len()] as u32;
                bytes[offset..offset + 4].copy_from_slice(&number.to_be_bytes());
            }
            Luks1Number::Any(number) => bytes[offset..offset + 4].copy_from_slice(&number.to_be_bytes()),
            Luks1Number::Word(index) if field < 3 => {
                let text = word(*index).as_bytes();
                bytes[offset..offset + 32].fill(0);
                let fitting = text.len().min(32);
                bytes[offset..offset + fitting].copy_from_slice(&text[..fitting]);
            }
            Luks1Number::Word(_) => {}
        }
    }
    bytes
}
