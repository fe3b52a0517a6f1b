//! An embedded keystore that was damaged or forged: it opens or is refused, and gives out no key but those that were put
//! into it, as they were.
#![no_main]

use std::cell::OnceCell;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use sealblk::keys::keystore::Keystore;
use sealblk::keys::{KeyId, KeyKind, KeySpec, Secret};

/// The page of the data base: damage is done by the page's number, counted around the file.
const PAGE_BYTES: usize = 4096;
const FILE_BYTES_MAX: usize = 1 << 20;

#[derive(Arbitrary, Debug)]
struct Input {
    edits: Vec<Edit>,
}

#[derive(Arbitrary, Debug)]
enum Edit {
    Flip { page: u8, offset: u16, by: u8 },
    Insert { page: u8, offset: u16, bytes: Vec<u8> },
    CopyPage { from: u8, to: u8 },
    SwapPages { one: u8, other: u8 },
    Cut { bytes: u32 },
    Append { bytes: Vec<u8> },
}

/// A keystore with two keys, as it is before the damage.
struct Original {
    folder: PathBuf,
    bytes: Vec<u8>,
    keys: Vec<(KeyId, Vec<u8>)>,
}

fn kek() -> Secret {
    secret(&[0x5a; 32])
}

fn secret(bytes: &[u8]) -> Secret {
    Secret::read_from(bytes).expect("memory for a secret")
}

impl Original {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("sealblk-fuzz-keystore-{}", std::process::id()));
        DirBuilder::new().mode(0o700).recursive(true).create(&folder).expect("a folder of our own");
        let path = folder.join("store");
        let _ = fs::remove_file(&path);
        Keystore::initialise(&path, kek()).expect("a fresh keystore");
        let store = Keystore::open(&path, vec![kek()]).expect("it opens");
        let keys = [(1, 64), (2, 32)].map(|(fill, len): (u8, usize)| {
            let material = vec![fill; len];
            let bits = 8 * len as u32;
            let spec = KeySpec { name: None, kind: KeyKind::Symmetric, bits, volume: None };
            (store.store_key(&spec, &secret(&material)).expect("there is room").id, material)
        });
        drop(store);
        let bytes = fs::read(&path).expect("it is there");
        Self { folder, bytes, keys: keys.into() }
    }
}

fn apply(edit: &Edit, bytes: &mut Vec<u8>) {
    let len = bytes.len();
    let page = |number: u8| {
        let start = usize::from(number).checked_rem(len / PAGE_BYTES)? * PAGE_BYTES;
        Some(start..start + PAGE_BYTES)
    };
    let place = |number: u8, offset: u16| {
        page(number).map_or(0, |page| page.start) + usize::from(offset) % PAGE_BYTES
    };
    match edit {
        Edit::Flip { page, offset, by } => {
            if let Some(byte) = bytes.get_mut(place(*page, *offset)) {
                *byte ^= by;
            }
        }
        Edit::Insert { page, offset, bytes: inserted } => {
            let at = place(*page, *offset);
            if let Some(old) = bytes.get_mut(at..(at + inserted.len()).min(len)) {
                old.copy_from_slice(&inserted[..old.len()]);
            }
        }
        Edit::CopyPage { from, to } => {
            if let (Some(from), Some(to)) = (page(*from), page(*to)) {
                bytes.copy_within(from, to.start);
            }
        }
        Edit::SwapPages { one, other } => {
            if let (Some(one), Some(other)) = (page(*one), page(*other)) {
                let kept = bytes[one.clone()].to_vec();
                bytes.copy_within(other.clone(), one.start);
                bytes[other].copy_from_slice(&kept);
            }
        }
        Edit::Cut { bytes: kept } => bytes.truncate(*kept as usize),
        Edit::Append { bytes: more } if len + more.len() <= FILE_BYTES_MAX => bytes.extend(more),
        Edit::Append { .. } => {}
    }
}

thread_local!(static ORIGINAL: OnceCell<Original> = const { OnceCell::new() });

fuzz_target!(|input: Input| {
    ORIGINAL.with(|original| {
        let original = original.get_or_init(Original::new);
        let mut bytes = original.bytes.clone();
        input.edits.iter().take(64).for_each(|edit| apply(edit, &mut bytes));
        let path = original.folder.join("store");
        for left in ["store", "store-wal", "store-shm", "store-journal"] {
            let _ = fs::remove_file(original.folder.join(left));
        }
        fs::write(&path, &bytes).expect("there is room");
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("it is ours");
        let Ok(store) = Keystore::open(&path, vec![kek()]) else { return };
        let _ = store.list_keys();
        for (id, material) in &original.keys {
            if let Ok(fetched) = store.fetch_key(id) {
                assert!(fetched.expose() == material, "another key is given out for {id}");
            }
        }
    });
});
