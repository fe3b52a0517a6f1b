//! No byte of a key, and none of a destroyed key even encrypted, is in the file, its log or its shared memory.

use std::collections::{BTreeSet, HashMap};
use std::fs;

use super::super::{Principal, Right};
use super::*;

/// All that SQLite keeps on disk, read while the keystore is open.
fn on_disk(rig: &Rig) -> Vec<(String, Vec<u8>)> {
    let read =
        |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
    let files: Vec<_> = fs::read_dir(rig.folder.path()).unwrap().map(|entry| read(entry.unwrap())).collect();
    assert!(files.iter().any(|(name, _)| name == "keystore"));
    files
}

/// What needles are found by: enough of them never to be met by chance.
const START_BYTES: usize = 8;

/// Which of `needles` are in one of the files, in one pass over each.
fn found(rig: &Rig, needles: impl IntoIterator<Item = Vec<u8>>) -> BTreeSet<Vec<u8>> {
    let mut by_start: HashMap<Vec<u8>, Vec<Vec<u8>>> = HashMap::new();
    for needle in needles {
        by_start.entry(needle[..START_BYTES].to_vec()).or_default().push(needle);
    }
    let mut found = BTreeSet::new();
    for (_, content) in on_disk(rig) {
        for at in 0..content.len().saturating_sub(START_BYTES - 1) {
            for needle in by_start.get(&content[at..at + START_BYTES]).into_iter().flatten() {
                if content[at..].starts_with(needle) {
                    found.insert(needle.clone());
                }
            }
        }
    }
    found
}

/// Fails if 8 bytes in a row of a key, as they are or written as text, are in a file.
#[track_caller]
fn assert_absent(rig: &Rig, keys: &[Vec<u8>], when: &str) {
    let parts = keys.iter().flat_map(|key| key.chunks_exact(START_BYTES)).flat_map(|part| {
        [
            part.to_vec(),
            base16ct::lower::encode_string(part).into_bytes(),
            base16ct::upper::encode_string(part).into_bytes(),
        ]
    });
    // Base64 goes by threes, so that a part of a key looks the same only where the key begins.
    let starts = keys.iter().map(|key| {
        use base64ct::Encoding as _;
        base64ct::Base64Unpadded::encode_string(&key[..9]).into_bytes()
    });
    let found = found(rig, parts.chain(starts));
    assert!(found.is_empty(), "{when}: {} pieces of keys", found.len());
}

#[test]
fn no_key_and_no_kek_is_on_disk_in_clear_after_any_operation() {
    let rig = Rig { folder: fast_folder() };
    Keystore::initialise(&rig.path(), secret(&kek_bytes(1))).unwrap();
    let keystore = Keystore::open(&rig.path(), vec![secret(&kek_bytes(1))]).unwrap();
    let mut keys: Vec<Vec<u8>> = vec![kek_bytes(1), kek_bytes(2)];
    let known: Vec<u8> = (0..64).map(|i| i * 3 + 5).collect();

    let key = keystore.create_key(&spec("vm1")).unwrap();
    keys.push(keystore.fetch_key(&key.id).unwrap().expose().to_vec());
    assert_absent(&rig, &keys, "after create and fetch");
    let stored = keystore.store_key(&KeySpec { bits: 512, ..spec("vm2") }, &secret(&known)).unwrap();
    keys.push(known);
    assert_absent(&rig, &keys, "after store");
    keystore.rotate_key(&key.id).unwrap();
    keys.push(keystore.fetch_key(&key.id).unwrap().expose().to_vec());
    assert_absent(&rig, &keys, "after rotate");
    keystore.grant(&key.id, &Principal::User(1), &[Right::Fetch].into()).unwrap();
    keystore.rotate_kek(secret(&kek_bytes(2)), |_| ()).unwrap();
    assert_absent(&rig, &keys, "after rotating the KEK");
    keystore.copy_to(&rig.folder.path().join("copy")).unwrap();
    keystore.destroy_key(&stored.id).unwrap();
    keystore.verify(None).unwrap();
    assert_absent(&rig, &keys, "after all");
    drop(keystore);
    assert_absent(&rig, &keys, "after closing");
    fs::write(rig.folder.path().join("leak"), &keys[4][3..20]).unwrap();
    assert_eq!(found(&rig, [keys[4][8..16].to_vec()]).len(), 1, "the search finds what is there");
}

/// A KEK whose bytes are all different, to be searched for.
fn kek_bytes(first: u8) -> Vec<u8> {
    (0..32).map(|i: u8| first.wrapping_add(i.wrapping_mul(7))).collect()
}

/// The wrapped material of every version, by key, as it lies in the file.
fn wrapped(rig: &Rig) -> Vec<(String, Vec<u8>)> {
    let database = rig.database();
    let mut query = database
        .prepare(
            "SELECT key.id, material.wrapped FROM key
             JOIN version ON version.key = key.ordinal JOIN material ON material.id = version.material",
        )
        .unwrap();
    query.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().collect::<Result<_, _>>().unwrap()
}

#[test]
fn a_destroyed_key_is_gone_from_the_disk_even_encrypted() {
    const KEYS: usize = 250;
    let rig = Rig::new();
    let keystore = rig.open();
    let keys: Vec<_> = (0..KEYS)
        .map(|i| {
            // Lengths that make pages fill unevenly, and some that spill into pages of their own.
            let bits = [256, 512, 128, 8 * 5000, 2048][i % 5];
            let key = keystore.create_key(&KeySpec { bits, name: None, ..spec("") }).unwrap();
            if i % 3 == 0 { keystore.rotate_key(&key.id).unwrap() } else { key }
        })
        .collect();
    let before = wrapped(&rig);
    let destroyed: Vec<_> =
        keys.iter().enumerate().filter(|(i, _)| i * 7 % 4 == 1).map(|(_, key)| key).collect();
    for key in &destroyed {
        keystore.destroy_key(&key.id).unwrap();
    }
    let left = found(&rig, before.iter().map(|(_, material)| material.clone()));
    let mut gone = 0;
    for (id, material) in &before {
        let is_destroyed = destroyed.iter().any(|key| key.id.name() == id);
        // What spills over is cut up by the pages that it lies in.
        assert_eq!(left.contains(material), !is_destroyed && material.len() < 2000, "{id}");
        gone += usize::from(is_destroyed);
    }
    let starts = before.iter().filter(|(id, _)| destroyed.iter().any(|key| key.id.name() == id));
    let pieces = starts.flat_map(|(_, material)| material.chunks_exact(START_BYTES)).map(<[u8]>::to_vec);
    assert!(found(&rig, pieces).is_empty(), "not even pieces are left");
    assert!(gone > 50, "{gone} were looked for");
    keystore.verify(None).unwrap();
}

#[test]
fn nothing_wrapped_under_an_old_kek_is_left() {
    let rig = Rig::new();
    let keystore = rig.open();
    for i in 0..120 {
        keystore.create_key(&spec(&format!("vm{i}"))).unwrap();
    }
    let before = wrapped(&rig);
    keystore.rotate_kek(kek(2), |_| ()).unwrap();
    let pieces =
        before.iter().flat_map(|(_, material)| material.chunks_exact(START_BYTES)).map(<[u8]>::to_vec);
    assert!(found(&rig, pieces).is_empty());
}

#[test]
fn destroying_again_wipes_what_a_reader_kept_from_being_wiped() {
    let rig = Rig::new();
    let keystore = rig.open();
    let key = keystore.create_key(&spec("vm1")).unwrap();
    let material = wrapped(&rig).remove(0).1;
    let mut reader = rig.database();
    let snapshot = reader.transaction().unwrap();
    let count: i64 = snapshot.query_row("SELECT count(*) FROM key", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 1);
    keystore.lock().connection.busy_timeout(std::time::Duration::ZERO).unwrap();
    assert!(matches!(keystore.destroy_key(&key.id), Err(KeystoreError::NotYetWiped)));
    assert!(matches!(keystore.fetch_key(&key.id), Err(KeystoreError::NotFound { .. })));
    assert_eq!(found(&rig, [material.clone()]).len(), 1);
    drop(snapshot);
    keystore.destroy_key(&key.id).unwrap();
    assert!(found(&rig, [material]).is_empty());
}

#[test]
fn errors_and_debug_output_show_no_key() {
    let rig = Rig::new();
    let keystore = rig.open();
    let key = keystore.store_key(&spec("vm1"), &secret(b"0123456789abcdef0123456789ABCDEF")).unwrap();
    let mut entries = String::new();
    keystore.each_audit_entry(0, |entry| entries += &format!("{entry:?}")).unwrap();
    for text in [format!("{keystore:?}"), format!("{key:?}"), entries] {
        assert!(!text.contains("0123456789") && !text.contains("48, 49, 50"), "{text}");
    }
}
