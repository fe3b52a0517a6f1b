//! What a manager has to do that makes, keeps and destroys keys.

use std::rc::Rc;
use std::slice;

use super::watch::{KEY, assert_hidden_in_debug, assert_hidden_in_error};
use crate::keys::{
    KeyAdmin, KeyError, KeyId, KeyKind, KeyMetadata, KeySpec, KeyState, SECRET_BYTES_MAX, Secret,
};

/// A manager under test.
#[derive(Clone)]
pub struct Subject {
    /// Opens the manager over the store of this subject, which is empty at first; again as after a restart.
    pub open: Rc<dyn Fn() -> Box<dyn KeyAdmin>>,
    /// Opens it for somebody else, who may have keys there and may not touch ours.
    pub open_for_another: Option<Rc<dyn Fn() -> Box<dyn KeyAdmin>>>,
    /// What no key is called.
    pub missing: KeyId,
    /// Whether a key can have another version; otherwise rotating it is refused.
    pub keeps_versions: bool,
}

/// Runs every check. `make` is called once for each.
///
/// # Panics
/// When the manager breaks a promise.
pub fn run_all(make: impl Fn() -> Subject) {
    creates_what_was_asked_for(&make());
    never_creates_the_same_key_twice(&make());
    stores_what_it_is_given(&make());
    refuses_what_makes_no_key(&make());
    gives_a_name_to_one_key_only(&make());
    makes_keys_only_when_told_to(&make());
    lists_every_key_once_in_order(&make());
    rotates_to_a_new_version_and_keeps_the_old(&make());
    destroys_one_version(&make());
    destroys_a_whole_key(&make());
    hides_keys_of_others(&make());
    remembers_everything(&make());
}

fn spec(name: &str, bits: u32) -> KeySpec {
    KeySpec {
        name: Some(name.to_owned()),
        kind: KeyKind::Symmetric,
        bits,
        volume: Some(format!("volume of {name}")),
    }
}

fn created(admin: &dyn KeyAdmin, name: &str) -> KeyMetadata {
    admin.create(&spec(name, 256)).expect("a key can be created")
}

/// Makes a new version of a key, where keys have versions.
fn rotated(subject: &Subject, admin: &dyn KeyAdmin, key: &KeyMetadata) -> KeyMetadata {
    match subject.keeps_versions {
        true => admin.rotate(&key.id).expect("the key can be rotated"),
        false => key.clone(),
    }
}

fn bytes(admin: &dyn KeyAdmin, id: &KeyId) -> Vec<u8> {
    let secret = admin.fetch(id).expect("the key is there");
    assert_hidden_in_debug(&secret);
    secret.expose().to_vec()
}

#[track_caller]
fn not_found<T>(result: Result<T, KeyError>) -> KeyError {
    match result {
        Err(error @ KeyError::NotFound { .. }) => {
            assert_hidden_in_error(&error);
            error
        }
        Err(error) => panic!("not `not found`: {error}"),
        Ok(_) => panic!("it was found"),
    }
}

fn key() -> Secret {
    Secret::read_from(&KEY[..]).expect("it is short enough")
}

/// A key of the length that was asked for, described as it was asked for.
pub fn creates_what_was_asked_for(subject: &Subject) {
    let admin = (subject.open)();
    for bits in [128, 256, 512] {
        let spec = spec(&format!("vm{bits}"), bits);
        let made = admin.create(&spec).expect("a key can be created");
        assert_eq!((made.version, made.state, made.bits), (1, KeyState::Active, bits));
        assert_eq!((&made.name, made.kind, &made.volume), (&spec.name, spec.kind, &spec.volume));
        assert_eq!(made.id.version(), None, "a reference to it means the newest version");
        assert_eq!(admin.metadata(&made.id).expect("the key is there"), made);
        let secret = admin.fetch(&made.id).expect("the key is there");
        assert_eq!((secret.expose().len() * 8, secret.kind()), (bits as usize, KeyKind::Symmetric));
    }
    let nameless = KeySpec { name: None, volume: None, ..spec("", 256) };
    let made = admin.create(&nameless).expect("a name is not needed");
    assert_eq!((made.name, made.volume), (None, None));
}

/// Keys are random, and none is all zeroes.
pub fn never_creates_the_same_key_twice(subject: &Subject) {
    let admin = (subject.open)();
    let mut made = vec![vec![0; 32]];
    for name in ["vm1", "vm2"] {
        let metadata = created(&*admin, name);
        made.push(bytes(&*admin, &metadata.id));
        if subject.keeps_versions {
            made.push(bytes(&*admin, &rotated(subject, &*admin, &metadata).id));
        }
    }
    let count = made.len();
    made.sort();
    made.dedup();
    assert_eq!(made.len(), count, "two keys are the same");
}

/// Bytes that come from elsewhere are kept as they are, and so is what they are used as.
pub fn stores_what_it_is_given(subject: &Subject) {
    let admin = (subject.open)();
    for kind in [KeyKind::Symmetric, KeyKind::Passphrase] {
        let spec = KeySpec { kind, ..spec(&format!("{kind:?}"), 512) };
        let stored = admin.store(&spec, &key()).expect("a key can be stored");
        assert_eq!((stored.version, stored.state, stored.kind), (1, KeyState::Active, kind));
        assert_hidden_in_debug(&stored);
        assert_eq!(admin.metadata(&stored.id).expect("the key is there"), stored);
        let secret = admin.fetch(&stored.id).expect("the key is there");
        assert!(secret.expose() == KEY, "not what was stored");
        assert_eq!(secret.kind(), kind);
    }
    let longest = Secret::random(SECRET_BYTES_MAX).expect("there is memory for it");
    let spec = spec("longest", SECRET_BYTES_MAX as u32 * 8);
    let stored = admin.store(&spec, &longest).expect("a long key can be stored");
    assert!(bytes(&*admin, &stored.id) == longest.expose());
}

/// Lengths that no key has, or not this one.
pub fn refuses_what_makes_no_key(subject: &Subject) {
    let admin = (subject.open)();
    let refused = |result: Result<KeyMetadata, KeyError>| match result {
        Err(error @ KeyError::Malformed { .. }) => assert_hidden_in_error(&error),
        other => panic!("not refused as malformed: {other:?}"),
    };
    for bits in [0, 7, 255, SECRET_BYTES_MAX as u32 * 8 + 8, u32::MAX] {
        refused(admin.create(&spec("vm1", bits)));
    }
    for bits in [0, 256, 511, 1024] {
        refused(admin.store(&spec("vm1", bits), &key()));
    }
    assert_eq!(admin.list().expect("it can be listed"), [], "something was made all the same");
}

/// A name that is taken is refused, and whoever has it keeps it.
pub fn gives_a_name_to_one_key_only(subject: &Subject) {
    let admin = (subject.open)();
    let first = created(&*admin, "vm1");
    let before = bytes(&*admin, &first.id);
    for again in [admin.create(&spec("vm1", 256)), admin.store(&spec("vm1", 512), &key())] {
        match again {
            Err(error @ KeyError::NotAllowed { .. }) => assert_hidden_in_error(&error),
            other => panic!("not refused: {other:?}"),
        }
    }
    assert_eq!(admin.list().expect("it can be listed"), slice::from_ref(&first));
    assert!(bytes(&*admin, &first.id) == before);
}

/// Asking for a key that does not exist makes none, whatever is asked.
pub fn makes_keys_only_when_told_to(subject: &Subject) {
    let admin = (subject.open)();
    not_found(admin.fetch(&subject.missing));
    not_found(admin.fetch(&subject.missing.clone().with_version(1)));
    not_found(admin.metadata(&subject.missing));
    not_found(admin.rotate(&subject.missing));
    not_found(admin.destroy(&subject.missing));
    assert_eq!(admin.list().expect("it can be listed"), []);
}

/// The newest version of each key, in the order of creation.
pub fn lists_every_key_once_in_order(subject: &Subject) {
    let admin = (subject.open)();
    let made = ["c", "a", "b"].map(|name| created(&*admin, name));
    let expected = [rotated(subject, &*admin, &made[0]), made[1].clone(), made[2].clone()];
    assert_eq!(admin.list().expect("it can be listed"), expected);
}

/// A plain reference means the new version; the old one is there for whoever names it. Where there are no versions,
/// nothing happens, and it is said so.
pub fn rotates_to_a_new_version_and_keeps_the_old(subject: &Subject) {
    let admin = (subject.open)();
    let first = created(&*admin, "vm1");
    let old = bytes(&*admin, &first.id);
    if !subject.keeps_versions {
        match admin.rotate(&first.id) {
            Err(error @ KeyError::NotAllowed { .. }) => assert_hidden_in_error(&error),
            other => panic!("not refused: {other:?}"),
        }
        assert!(bytes(&*admin, &first.id) == old);
        assert_eq!(admin.list().expect("it can be listed"), [first]);
        return;
    }
    let second = admin.rotate(&first.id).expect("the key can be rotated");
    assert_eq!((&second.id, second.version, second.state), (&first.id, 2, KeyState::Active));
    assert_eq!((&second.name, second.bits, second.kind), (&first.name, first.bits, first.kind));

    let new = bytes(&*admin, &first.id);
    assert!(new != old && new.len() == old.len());
    let version = |number| first.id.clone().with_version(number);
    assert!(bytes(&*admin, &version(1)) == old && bytes(&*admin, &version(2)) == new);
    not_found(admin.fetch(&version(3)));
    assert_eq!(admin.metadata(&first.id).expect("the key is there"), second);
    let superseded = admin.metadata(&version(1)).expect("the old version is there");
    assert_eq!((superseded.version, superseded.state), (1, KeyState::Deactivated));
    for number in [1, 2] {
        match admin.rotate(&version(number)) {
            Err(error @ KeyError::Malformed { .. }) => assert_hidden_in_error(&error),
            other => panic!("version {number} is rotated, not the key: {other:?}"),
        }
    }
    assert_eq!(admin.rotate(&first.id).expect("the key can be rotated again").version, 3);
}

/// The others stay.
pub fn destroys_one_version(subject: &Subject) {
    if !subject.keeps_versions {
        return;
    }
    let admin = (subject.open)();
    let key = created(&*admin, "vm1");
    admin.rotate(&key.id).expect("the key can be rotated");
    let newest = bytes(&*admin, &key.id);
    admin.destroy(&key.id.clone().with_version(1)).expect("a version can be destroyed");
    not_found(admin.fetch(&key.id.clone().with_version(1)));
    assert!(bytes(&*admin, &key.id) == newest);
    assert_eq!(admin.list().expect("it can be listed").len(), 1);
}

/// Nothing of it can be fetched any more, and no other key is touched.
pub fn destroys_a_whole_key(subject: &Subject) {
    let admin = (subject.open)();
    let (key, other) = (created(&*admin, "vm1"), created(&*admin, "vm2"));
    let kept = bytes(&*admin, &other.id);
    rotated(subject, &*admin, &key);
    admin.destroy(&key.id).expect("a key can be destroyed");
    for id in [key.id.clone(), key.id.clone().with_version(1), key.id.clone().with_version(2)] {
        not_found(admin.fetch(&id));
    }
    let remembered = |found: &KeyMetadata| found.id != key.id || found.state == KeyState::Destroyed;
    assert!(admin.list().expect("it can be listed").iter().all(remembered));
    match admin.metadata(&key.id) {
        Ok(found) => assert_eq!(found.state, KeyState::Destroyed),
        Err(error) => drop(not_found::<()>(Err(error))),
    }
    if let Err(error) = admin.destroy(&key.id) {
        not_found::<()>(Err(error));
    }
    assert!(admin.rotate(&key.id).is_err(), "it came back");
    not_found(admin.fetch(&key.id));
    assert!(bytes(&*admin, &other.id) == kept);
}

/// Whatever somebody else asks for, our keys look as if they did not exist, and stay as they are.
pub fn hides_keys_of_others(subject: &Subject) {
    let Some(open_for_another) = &subject.open_for_another else { return };
    let admin = (subject.open)();
    let ours = admin.store(&spec("vm1", 512), &key()).expect("a key can be stored");
    let another = open_for_another();
    let same_as_absent = |of_ours: KeyError, of_nothing: KeyError| {
        let renamed = of_ours.to_string().replace(&ours.id.to_string(), &subject.missing.to_string());
        assert_eq!(renamed, of_nothing.to_string(), "the two can be told apart");
    };
    let (hidden, absent) = (&ours.id, &subject.missing);
    same_as_absent(not_found(another.fetch(hidden)), not_found(another.fetch(absent)));
    same_as_absent(not_found(another.metadata(hidden)), not_found(another.metadata(absent)));
    same_as_absent(not_found(another.rotate(hidden)), not_found(another.rotate(absent)));
    same_as_absent(not_found(another.destroy(hidden)), not_found(another.destroy(absent)));
    assert_eq!(another.list().expect("it can be listed"), []);
    let theirs = created(&*another, "vm2");
    not_found(admin.fetch(&theirs.id));
    assert_eq!(admin.list().expect("it can be listed"), slice::from_ref(&ours));
    assert!(bytes(&*admin, &ours.id) == KEY);
}

/// Opened again, it knows what it knew.
pub fn remembers_everything(subject: &Subject) {
    let admin = (subject.open)();
    let stored = admin.store(&spec("vm1", 512), &key()).expect("a key can be stored");
    let made = created(&*admin, "vm2");
    rotated(subject, &*admin, &made);
    let gone = created(&*admin, "vm3");
    admin.destroy(&gone.id).expect("a key can be destroyed");
    let (listed, newest) = (admin.list().expect("it can be listed"), bytes(&*admin, &made.id));
    let old = bytes(&*admin, &made.id.clone().with_version(1));
    drop(admin);
    let admin = (subject.open)();
    assert_eq!(admin.list().expect("it can be listed"), listed);
    assert!(bytes(&*admin, &stored.id) == KEY && bytes(&*admin, &made.id) == newest);
    assert!(bytes(&*admin, &made.id.with_version(1)) == old);
    not_found(admin.fetch(&gone.id));
}
