//! An embedded keystore: whatever is done with its keys, what it answers and writes into its audit log is what a model
//! says; and then, damaged or forged by somebody without its KEK, it answers with what was put into it or not at all.
#![no_main]

use std::cell::OnceCell;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use rusqlite::Connection;
use sealblk::keys::Secret;
use sealblk::keys::keystore::{AuditEntry, Keystore, KeystoreError, Principal};

use damage::Damage;
use life::{Action, Key, Model, PRINCIPALS};

mod damage;
mod life;

const ACTIONS_MAX: usize = 16;
const DAMAGES_MAX: usize = 16;

#[derive(Arbitrary, Debug)]
struct Input {
    actions: Vec<Action>,
    damages: Vec<Damage>,
}

/// A keystore with some keys and some history.
struct Original {
    path: PathBuf,
    bytes: Vec<u8>,
    model: Model,
}

impl Original {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("sealblk-fuzz-keystore-{}", std::process::id()));
        DirBuilder::new().mode(0o700).recursive(true).create(&folder).expect("a folder of our own");
        let path = folder.join("store");
        remove(&path);
        Keystore::initialise(&path, kek(0)).expect("a fresh keystore");
        let mut model = Model::new();
        let mut stores = open_both(&path, &model);
        for action in life::history() {
            model.act(&action, &mut stores);
        }
        model.read_log(&stores[0]);
        drop(stores);
        let bytes = fs::read(&path).expect("it is there");
        Self { path, bytes, model }
    }

    /// Puts the original back.
    fn restore(&self) {
        remove(&self.path);
        fs::write(&self.path, &self.bytes).expect("there is room");
        fs::set_permissions(&self.path, fs::Permissions::from_mode(0o600)).expect("it is ours");
    }
}

fn remove(path: &Path) {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let _ = fs::remove_file(format!("{}{suffix}", path.display()));
    }
}

fn kek(number: u8) -> Secret {
    secret(&[0x5a ^ number; 32])
}

fn secret(bytes: &[u8]) -> Secret {
    Secret::read_from(bytes).expect("memory for a secret")
}

/// The same keystore for each principal.
type Stores = [Keystore; PRINCIPALS];

fn open_both(path: &Path, model: &Model) -> Stores {
    [0, 1].map(|who| open(path, model, who).expect("it opens"))
}

fn open(path: &Path, model: &Model, who: usize) -> Result<Keystore, KeystoreError> {
    Keystore::open(path, vec![kek(model.kek)]).map(|store| store.acting_as(principal(who)))
}

fn principal(who: usize) -> Principal {
    match who {
        0 => Principal::of_process(),
        _ => Principal::User(7777),
    }
}

/// Checks that a keystore answers as the model says: always if nobody has damaged it, or else when it answers at all.
fn check_answers(path: &Path, model: &Model, is_intact: bool) {
    let stores = match [0, 1].map(|who| open(path, model, who)) {
        [Ok(first), Ok(second)] => [first, second],
        [first, second] => {
            assert!(!is_intact, "{:?}, {:?}", first.err(), second.err());
            return;
        }
    };
    let may_fail = |error: KeystoreError| assert!(!is_intact, "{error}");
    for (who, store) in stores.iter().enumerate() {
        check_list(who, store, model).unwrap_or_else(may_fail);
        for key in &model.keys {
            check_metadata(who, store, key, is_intact);
        }
    }
    let verified = stores[0].verify(model.anchor.as_ref());
    if let Ok(verified) = &verified {
        let live = |key: &Key| key.versions.iter().filter(|version| !version.is_destroyed()).count();
        assert_eq!(verified.keys, model.keys.len() as u64, "a whole keystore has all of its keys");
        assert_eq!(verified.versions, model.keys.iter().map(live).sum::<usize>() as u64);
        assert_eq!(Some(verified.end), model.anchor);
    }
    let is_whole = verified.map_err(may_fail).is_ok();
    check_log(&stores[0], model, is_whole);
    let has_its_end = has_its_end(path, model);
    for (who, store) in stores.iter().enumerate() {
        for key in &model.keys {
            check_fetches(who, store, key, [is_intact, is_whole, has_its_end]);
        }
    }
}

fn check_list(who: usize, store: &Keystore, model: &Model) -> Result<(), KeystoreError> {
    let listed = store.list_keys()?;
    // That a key is gone is noticed by `verify`.
    let mut expected = model.keys.iter().filter(|key| key.is_visible_to(who));
    for found in listed {
        let known = expected.find(|key| key.id == found.id);
        let known = known.unwrap_or_else(|| panic!("{who} is shown {found:?}"));
        assert_eq!(known.metadata(None), Some(found));
    }
    Ok(())
}

fn check_metadata(who: usize, store: &Keystore, key: &Key, is_intact: bool) {
    let is_visible = key.is_visible_to(who);
    for (id, version) in key.references() {
        let expected = key.metadata(version).filter(|_| is_visible);
        match store.key_metadata(&id) {
            Ok(found) => assert_eq!(Some(found), expected, "what {who} is told of {id}"),
            Err(error) => assert!(!is_intact || expected.is_none(), "{error}"),
        }
    }
    match store.access(&key.id) {
        Ok(access) => {
            assert!(who == 0 || is_visible, "{who} is told of {}", key.id);
            assert_eq!(access, key.access());
        }
        Err(error) => assert!(!is_intact || !is_visible, "{error}"),
    }
}

fn check_fetches(who: usize, store: &Keystore, key: &Key, known: [bool; 3]) {
    let [is_intact, is_whole, has_its_end] = known;
    for (id, version) in key.references() {
        let is_given = key.is_given_to(who, version);
        match store.fetch_key(&id) {
            Ok(fetched) => {
                assert!(is_given, "{who} is given {id}");
                assert!(has_its_end, "{id} is given out by a keystore whose log was cut");
                let seen = key.material(version).unwrap_or(fetched.expose());
                assert!(fetched.expose() == seen, "another key is given out for {id}");
            }
            Err(KeystoreError::NotFound { .. } | KeystoreError::NotAllowed { .. }) => {
                assert!(!is_whole || !is_given, "{who} is not given {id}");
            }
            Err(error) => assert!(!is_intact, "{error}"),
        }
    }
}

/// Checks that what can be read of the log is how it begins, and that all of it is there if it says so.
fn check_log(store: &Keystore, model: &Model, is_whole: bool) {
    let mut found: Vec<AuditEntry> = Vec::new();
    let end = store.each_audit_entry(0, |entry| found.push(entry));
    assert!(end.is_ok() || !is_whole);
    if let Ok(end) = &end {
        assert_eq!(found.len(), model.log.len(), "a log that has come to its end");
        assert_eq!(Some(end), model.anchor.as_ref());
    }
    assert!(found.len() <= model.log.len(), "{:?}", found.last());
    for (found, expected) in found.iter().zip(&model.log) {
        assert_eq!(found, expected);
    }
}

/// Whether the log ends with the entry that it should end with.
fn has_its_end(path: &Path, model: &Model) -> bool {
    let connection = Connection::open(path).expect("a file that was opened before");
    let last = connection.query_row(
        "SELECT seq || ':' || lower(hex(mac)) FROM audit ORDER BY seq DESC LIMIT 1",
        [],
        |row| row.get::<_, String>(0),
    );
    last.ok() == model.anchor.map(|anchor| anchor.to_string())
}

thread_local!(static ORIGINAL: OnceCell<Original> = const { OnceCell::new() });

fuzz_target!(|input: Input| {
    ORIGINAL.with(|original| {
        let original = original.get_or_init(Original::new);
        let path = &original.path;
        original.restore();
        let mut model = original.model.clone();
        if !input.actions.is_empty() {
            let mut stores = open_both(path, &model);
            for action in input.actions.iter().take(ACTIONS_MAX) {
                if model.act(action, &mut stores) {
                    stores = open_both(path, &model);
                }
            }
            model.read_log(&stores[0]);
        }
        for damage in input.damages.iter().take(DAMAGES_MAX) {
            damage.inflict(path);
        }
        check_answers(path, &model, input.damages.is_empty());
    });
});
