//! The life of keys, of KEKs and of the keystore itself.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::thread;

use super::super::{AuditEvent, AuditOutcome, Principal, Right};
use super::*;

#[test]
fn a_key_lives_from_its_creation_to_its_destruction() {
    let rig = Rig::new();
    let keystore = rig.open();
    let key = keystore.create_key(&KeySpec { volume: Some("vm1/root".to_owned()), ..spec("vm1") }).unwrap();
    assert_eq!((key.version, key.state, key.bits), (1, KeyState::Active, 256));
    let first = keystore.fetch_key(&key.id).unwrap();
    assert_eq!(first.expose().len(), 32);
    assert_eq!(keystore.fetch_key(&key.id).unwrap().expose(), first.expose());

    let rotated = keystore.rotate_key(&key.id).unwrap();
    assert_eq!((rotated.version, rotated.state), (2, KeyState::Active));
    let second = keystore.fetch_key(&key.id).unwrap();
    assert_ne!(second.expose(), first.expose());
    assert_eq!(keystore.fetch_key(&version(&key, 1)).unwrap().expose(), first.expose());
    assert_eq!(keystore.key_metadata(&version(&key, 1)).unwrap().state, KeyState::Deactivated);

    keystore.destroy_key(&version(&key, 1)).unwrap();
    assert!(matches!(keystore.fetch_key(&version(&key, 1)), Err(KeystoreError::NotFound { .. })));
    assert_eq!(keystore.fetch_key(&key.id).unwrap().expose(), second.expose());
    assert_eq!(keystore.rotate_key(&key.id).unwrap().version, 3);

    keystore.destroy_key(&key.id).unwrap();
    keystore.destroy_key(&key.id).unwrap();
    for id in [key.id.clone(), version(&key, 2), version(&key, 3)] {
        assert!(matches!(keystore.fetch_key(&id), Err(KeystoreError::NotFound { .. })));
        assert_eq!(keystore.key_metadata(&id).unwrap().state, KeyState::Destroyed);
    }
    assert!(matches!(keystore.rotate_key(&key.id), Err(KeystoreError::NotFound { .. })));
    assert_eq!(keystore.list_keys().unwrap(), [keystore.key_metadata(&key.id).unwrap()]);
    assert_eq!(keystore.list_keys().unwrap()[0].volume.as_deref(), Some("vm1/root"));
    keystore.verify(None).unwrap();
}

#[test]
fn everything_is_there_after_closing_and_opening() {
    let rig = Rig::new();
    let before = {
        let keystore = rig.open();
        let keys: Vec<_> = (0..5).map(|i| keystore.create_key(&spec(&format!("vm{i}"))).unwrap()).collect();
        keystore.rotate_key(&keys[3].id).unwrap();
        keystore.destroy_key(&keys[1].id).unwrap();
        assert!(keystore.list_keys().unwrap().iter().map(|key| &key.id).eq(keys.iter().map(|key| &key.id)));
        content(&keystore)
    };
    assert_eq!(content(&rig.open()), before);
}

#[test]
fn given_keys_and_passphrases_come_back_as_they_were() {
    let rig = Rig::new();
    let keystore = rig.open();
    let given = |text: &[u8], kind| KeySpec { kind, bits: text.len() as u32 * 8, ..spec("given") };
    for (name, text, kind) in [
        ("one byte", &b"x"[..], KeyKind::Symmetric),
        ("a passphrase", "correct h\u{f6}rse".as_bytes(), KeyKind::Passphrase),
        ("the longest", &[7; 8192], KeyKind::Symmetric),
    ] {
        let spec = KeySpec { name: Some(name.to_owned()), ..given(text, kind) };
        let key = keystore.store_key(&spec, &secret(text)).unwrap();
        let fetched = keystore.fetch_key(&key.id).unwrap();
        assert_eq!((fetched.expose(), fetched.kind()), (text, kind));
    }
    let generated =
        keystore.create_key(&KeySpec { name: None, ..given(&[0; 40], KeyKind::Passphrase) }).unwrap();
    let text = keystore.fetch_key(&generated.id).unwrap();
    assert_eq!(text.expose().len(), 40);
    assert!(text.expose().iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte)));
    keystore.destroy_key(&keystore.list_keys().unwrap()[2].id).unwrap();
    keystore.verify(None).unwrap();
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let rig = Rig::new();
    let keystore = rig.open();
    for bits in [0, 7, 257, 8192 * 8 + 8, u32::MAX] {
        let error = keystore.create_key(&KeySpec { bits, ..spec("odd") }).unwrap_err();
        assert!(matches!(error, KeystoreError::Malformed { .. }), "{error}");
    }
    for name in ["", "a\nb", &"x".repeat(256)] {
        assert!(matches!(keystore.create_key(&spec(name)), Err(KeystoreError::Malformed { .. })));
        let volume = KeySpec { volume: Some(name.to_owned()), ..spec("volume") };
        assert!(matches!(keystore.create_key(&volume), Err(KeystoreError::Malformed { .. })));
    }
    let short = keystore.store_key(&spec("short"), &secret(&[1; 31]));
    assert!(matches!(short, Err(KeystoreError::Malformed { .. })));
    let binary = KeySpec { kind: KeyKind::Passphrase, bits: 16, ..spec("binary") };
    assert!(matches!(keystore.store_key(&binary, &secret(&[0xff; 2])), Err(KeystoreError::Malformed { .. })));
    assert_eq!(keystore.list_keys().unwrap(), []);
    assert_eq!(keystore.verify(None).unwrap().end.0.length, 1, "nothing happened but the beginning");
}

#[test]
fn a_missing_key_is_not_made() {
    let rig = Rig::new();
    let keystore = rig.open();
    for id in ["6c1ff2ac-7c77-4d8c-8b65-a5d7d9f0a5f4", "vm1", "#1", ""] {
        let id = KeyId::new(id);
        let not_found = |error| matches!(error, KeystoreError::NotFound { .. });
        assert!(not_found(keystore.fetch_key(&id).unwrap_err()));
        assert!(not_found(keystore.key_metadata(&id).unwrap_err()));
        assert!(not_found(keystore.destroy_key(&id).unwrap_err()));
        assert!(not_found(keystore.grant(&id, &Principal::User(1), &[Right::Fetch].into()).unwrap_err()));
    }
    let key = keystore.create_key(&spec("vm1")).unwrap();
    for number in [0, 2, u32::MAX] {
        assert!(matches!(keystore.fetch_key(&version(&key, number)), Err(KeystoreError::NotFound { .. })));
        assert!(matches!(keystore.destroy_key(&version(&key, number)), Err(KeystoreError::NotFound { .. })));
    }
    assert_eq!(keystore.list_keys().unwrap().len(), 1);
    keystore.verify(None).unwrap();
}

#[test]
fn opening_makes_no_keystore() {
    let folder = fast_folder();
    let path = folder.path().join("keystore");
    for path in [path.clone(), path.join("deeper"), folder.path().join("no/such")] {
        assert!(matches!(Keystore::open(&path, vec![kek(1)]), Err(KeystoreError::Missing { .. })));
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_keystore_is_made_once_and_privately() {
    let rig = Rig::new();
    let before = fs::read(rig.path()).unwrap();
    assert!(matches!(Keystore::initialise(&rig.path(), kek(2)), Err(KeystoreError::Exists { .. })));
    assert_eq!(fs::read(rig.path()).unwrap(), before);
    let _keystore = rig.open();
    let mut names: Vec<String> = fs::read_dir(rig.folder.path())
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600);
            entry.file_name().into_string().unwrap()
        })
        .collect();
    names.sort();
    assert_eq!(names, ["keystore", "keystore-shm", "keystore-wal"]);
}

#[test]
fn what_an_interrupted_initialisation_left_is_cleared() {
    let folder = fast_folder();
    let path = folder.path().join("keystore");
    fs::create_dir(folder.path().join("keystore.new")).unwrap();
    fs::write(folder.path().join("keystore.new/keystore-wal"), b"half").unwrap();
    Keystore::initialise(&path, kek(1)).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    Keystore::open(&path, vec![kek(1)]).unwrap().verify(None).unwrap();
}

#[test]
fn the_settings_that_durability_and_wiping_rest_on_are_in_force() {
    let rig = Rig::new();
    let keystore = rig.open();
    let open = keystore.lock();
    for (pragma, expected) in [
        ("journal_mode", "wal"),
        ("synchronous", "2"),
        ("secure_delete", "1"),
        ("foreign_keys", "1"),
        ("trusted_schema", "0"),
        ("cell_size_check", "1"),
        ("mmap_size", "0"),
        ("auto_vacuum", "0"),
    ] {
        let value =
            open.connection.pragma_query_value(None, pragma, |row| row.get::<_, rusqlite::types::Value>(0));
        let value = match value.unwrap() {
            rusqlite::types::Value::Integer(number) => number.to_string(),
            rusqlite::types::Value::Text(text) => text,
            other => format!("{other:?}"),
        };
        assert_eq!(value, expected, "{pragma}");
    }
}

#[test]
fn a_key_of_someone_else_looks_like_one_that_does_not_exist() {
    let rig = Rig::new();
    let alice = rig.open().acting_as(Principal::User(1001));
    let bob = rig.open().acting_as(Principal::User(1002));
    let key = alice.create_key(&spec("shared name")).unwrap();
    let missing = KeyId::new("6c1ff2ac-7c77-4d8c-8b65-a5d7d9f0a5f4");
    let answers = |id: &KeyId| {
        [
            bob.fetch_key(id).map(|_| ()).unwrap_err(),
            bob.key_metadata(id).map(|_| ()).unwrap_err(),
            bob.rotate_key(id).map(|_| ()).unwrap_err(),
            bob.destroy_key(id).unwrap_err(),
            bob.access(id).map(|_| ()).unwrap_err(),
            bob.grant(id, &Principal::User(1002), &[Right::Fetch].into()).map(|_| ()).unwrap_err(),
            bob.revoke(id, &Principal::User(1001), &[Right::Fetch].into()).map(|_| ()).unwrap_err(),
        ]
        .map(|error| format!("{error:?}"))
    };
    assert_eq!(answers(&key.id), answers(&missing));
    assert_eq!(bob.list_keys().unwrap(), []);
    bob.create_key(&spec("shared name")).unwrap();
    assert_eq!(alice.list_keys().unwrap(), [key]);
    alice.verify(None).unwrap();
}

#[test]
fn rights_are_given_and_taken_away_one_by_one() {
    let rig = Rig::new();
    let (alice, bob) = (Principal::User(1001), Principal::User(1002));
    let as_alice = rig.open().acting_as(alice.clone());
    let as_bob = rig.open().acting_as(bob.clone());
    let key = as_alice.create_key(&spec("vm1")).unwrap();
    as_alice.grant(&key.id, &bob, &[Right::Fetch].into()).unwrap();
    as_alice.grant(&key.id, &bob, &[Right::Fetch].into()).unwrap();
    assert_eq!(as_bob.fetch_key(&key.id).unwrap().expose(), as_alice.fetch_key(&key.id).unwrap().expose());
    assert_eq!(as_bob.list_keys().unwrap(), std::slice::from_ref(&key));
    for refused in [
        as_bob.rotate_key(&key.id).map(|_| ()),
        as_bob.destroy_key(&key.id),
        as_bob.grant(&key.id, &bob, &[Right::Destroy].into()).map(|_| ()),
    ] {
        assert!(matches!(refused, Err(KeystoreError::NotAllowed { .. })));
    }
    assert_eq!(as_bob.access(&key.id).unwrap().len(), 5);
    as_alice.revoke(&key.id, &bob, &[Right::Fetch].into()).unwrap();
    as_alice.revoke(&key.id, &bob, &[Right::Fetch].into()).unwrap();
    assert!(matches!(as_bob.fetch_key(&key.id), Err(KeystoreError::NotFound { .. })));

    // The administrator has no key that is not given to it, but can give.
    let administrator = rig.open();
    assert!(matches!(administrator.fetch_key(&key.id), Err(KeystoreError::NotFound { .. })));
    administrator.grant(&key.id, &Principal::of_process(), &[Right::Destroy].into()).unwrap();
    administrator.destroy_key(&key.id).unwrap();
    administrator.verify(None).unwrap();
}

#[test]
fn all_rights_are_given_up_at_once_and_the_administrator_gives_them_again() {
    let rig = Rig::new();
    let alice = Principal::User(1001);
    let as_alice = rig.open().acting_as(alice.clone());
    let key = as_alice.create_key(&spec("vm1")).unwrap();
    let version = version(&key, 1);
    for refused in [
        as_alice.access(&version).map(|_| ()),
        as_alice.grant(&version, &alice, &[Right::Fetch].into()).map(|_| ()),
        as_alice.revoke(&version, &alice, &[Right::Fetch].into()).map(|_| ()),
    ] {
        assert!(matches!(refused, Err(KeystoreError::Malformed { .. })), "{refused:?}");
    }
    let left = as_alice.revoke(&key.id, &alice, &[Right::Grant, Right::Destroy].into()).unwrap();
    assert_eq!(left, [Right::Fetch, Right::Rotate].into());
    let administrator = rig.open();
    assert_eq!(administrator.grant(&key.id, &alice, &[Right::Grant].into()).unwrap().len(), 3);
    // `grant` is among those that go.
    assert_eq!(as_alice.revoke(&key.id, &alice, &Right::ALL.into()).unwrap(), [].into());
    assert!(matches!(as_alice.access(&key.id), Err(KeystoreError::NotFound { .. })));
    assert_eq!(administrator.access(&key.id).unwrap(), [].into());
    administrator.grant(&key.id, &alice, &[Right::Fetch].into()).unwrap();
    as_alice.fetch_key(&key.id).unwrap();
    administrator.verify(None).unwrap();
}

#[test]
fn a_name_is_free_again_once_its_key_is_destroyed() {
    let rig = Rig::new();
    let keystore = rig.open();
    let key = keystore.create_key(&spec("vm1")).unwrap();
    keystore.rotate_key(&key.id).unwrap();
    assert!(matches!(keystore.create_key(&spec("vm1")), Err(KeystoreError::NotAllowed { .. })));
    keystore.destroy_key(&version(&key, 2)).unwrap();
    assert!(matches!(keystore.create_key(&spec("vm1")), Err(KeystoreError::NotAllowed { .. })));
    keystore.destroy_key(&key.id).unwrap();
    keystore.create_key(&spec("vm1")).unwrap();
    for _ in 0..2 {
        keystore.create_key(&KeySpec { name: None, ..spec("") }).unwrap();
    }
}

#[test]
fn the_audit_log_tells_what_was_done_and_refused() {
    let rig = Rig::new();
    let keystore = rig.open();
    let other = rig.open().acting_as(Principal::User(4_000_000_000));
    let key = keystore.create_key(&spec("vm1")).unwrap();
    keystore.fetch_key(&key.id).unwrap();
    other.fetch_key(&key.id).unwrap_err();
    keystore.rotate_key(&key.id).unwrap();
    keystore.fetch_key(&version(&key, 1)).unwrap();
    keystore.grant(&key.id, &Principal::User(7), &[Right::Fetch].into()).unwrap();
    keystore.destroy_key(&key.id).unwrap();
    keystore.fetch_key(&key.id).unwrap_err();

    let mut entries = Vec::new();
    let end = keystore.each_audit_entry(0, |entry| entries.push(entry)).unwrap();
    let told: Vec<_> = entries.iter().map(|entry| (entry.event, entry.version, entry.outcome)).collect();
    assert_eq!(
        told,
        [
            (AuditEvent::Initialise, None, AuditOutcome::Done),
            (AuditEvent::Create, Some(1), AuditOutcome::Done),
            (AuditEvent::Fetch, Some(1), AuditOutcome::Done),
            (AuditEvent::Fetch, None, AuditOutcome::NotAllowed),
            (AuditEvent::Rotate, Some(2), AuditOutcome::Done),
            (AuditEvent::Fetch, Some(1), AuditOutcome::Done),
            (AuditEvent::Grant, None, AuditOutcome::Done),
            (AuditEvent::Destroy, None, AuditOutcome::Done),
            (AuditEvent::Fetch, Some(2), AuditOutcome::NotFound),
        ]
    );
    assert_eq!(entries[3].principal.to_string(), "uid:4000000000");
    assert_eq!(entries[6].detail.as_deref(), Some("uid:7 fetch"));
    assert!(entries[1..].iter().all(|entry| entry.key.unwrap().to_string() == key.id.name()));
    assert!(entries.iter().map(|entry| entry.seq).eq(1..=9));
    let json = serde_json::to_value(&entries[2]).unwrap();
    assert_eq!((&json["event"], &json["outcome"]), (&"fetch".into(), &"done".into()));

    let mut later = Vec::new();
    keystore.each_audit_entry(6, |entry| later.push(entry)).unwrap();
    assert_eq!(later, entries[6..]);
    assert_eq!(keystore.verify(None).unwrap().end, end);
    assert_eq!(end.to_string().parse(), Ok(end));
    assert!(matches!(other.each_audit_entry(0, |_| ()), Err(KeystoreError::NotAllowed { .. })));
}

#[test]
fn the_kek_is_changed_and_the_old_one_opens_nothing() {
    let rig = Rig::new();
    let keystore = rig.open();
    for i in 0..250 {
        let key = keystore.create_key(&spec(&format!("vm{i}"))).unwrap();
        if i % 100 == 0 {
            keystore.rotate_key(&key.id).unwrap();
            keystore.destroy_key(&version(&key, 1)).unwrap();
        }
    }
    let before = content(&keystore);
    let mut steps = Vec::new();
    let rotation = keystore.rotate_kek(kek(2), |done| steps.push(done)).unwrap();
    assert_eq!((rotation.rewrapped_keys, steps), (250, vec![100, 200, 250]));
    assert_eq!(content(&keystore), before);
    keystore.verify(None).unwrap();
    assert!(matches!(rig.try_open(), Err(KeystoreError::Kek { .. })));
    let again = Keystore::open(&rig.path(), vec![kek(2)]).unwrap();
    assert_eq!(content(&again), before);
    assert_eq!(again.rotate_kek(kek(2), |_| ()).unwrap().rewrapped_keys, 0);
    assert!(matches!(again.rotate_kek(kek(1), |_| ()), Err(KeystoreError::Kek { .. })));
    again.rotate_kek(kek(3), |_| ()).unwrap();
    drop((keystore, again));
    let last = Keystore::open(&rig.path(), vec![kek(3)]).unwrap();
    assert_eq!(content(&last), before);
    last.create_key(&spec("new")).unwrap();
    last.verify(None).unwrap();
}

#[test]
fn others_go_on_during_a_rotation_with_both_keks_and_are_told_with_one() {
    let rig = Rig::new();
    let keystore = rig.open();
    let keys: Vec<_> = (0..150).map(|i| keystore.create_key(&spec(&format!("vm{i}"))).unwrap()).collect();
    let other = Keystore::open(&rig.path(), vec![kek(2), kek(1)]).unwrap();
    let behind = rig.open();
    keystore
        .rotate_kek(kek(2), |done| {
            other.fetch_key(&keys[0].id).unwrap();
            other.fetch_key(&keys[149].id).unwrap();
            other.rotate_key(&keys[149].id).unwrap();
            if done == 100 {
                let error = behind.fetch_key(&keys[0].id).unwrap_err();
                assert!(matches!(error, KeystoreError::Kek { .. }), "{error}");
                let ahead = Keystore::open(&rig.path(), vec![kek(2)]).unwrap();
                ahead.fetch_key(&keys[0].id).unwrap();
                let error = ahead.fetch_key(&keys[149].id).unwrap_err();
                assert!(error.to_string().contains("kek-before"), "{error}");
                let error = other.rotate_kek(kek(3), |_| ()).unwrap_err();
                assert!(error.to_string().contains("not finished"), "{error}");
            }
        })
        .unwrap();
    other.verify(None).unwrap();
    assert_eq!(other.key_metadata(&keys[149].id).unwrap().version, 3);
}

#[test]
fn a_longer_kek_is_good_and_a_short_one_is_not() {
    let folder = fast_folder();
    let path = folder.path().join("keystore");
    assert!(matches!(Keystore::initialise(&path, secret(&[1; 31])), Err(KeystoreError::Kek { .. })));
    Keystore::initialise(&path, secret(&[1; 64])).unwrap();
    Keystore::open(&path, vec![secret(&[1; 64])]).unwrap();
    for other in [&[1; 32][..], &[1; 63], &[1; 65]] {
        assert!(matches!(Keystore::open(&path, vec![secret(other)]), Err(KeystoreError::Kek { .. })));
    }
    assert!(matches!(Keystore::open(&path, vec![]), Err(KeystoreError::Kek { .. })));
    assert!(matches!(Keystore::open(&path, vec![secret(&[1; 5])]), Err(KeystoreError::Kek { .. })));
}

#[test]
fn many_write_and_read_at_once() {
    const THREADS: u32 = 4;
    const KEYS: u32 = 10;
    let rig = Rig::new();
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let rig = &rig;
            scope.spawn(move || {
                let keystore = rig.open();
                for i in 0..KEYS {
                    let key = keystore.create_key(&spec(&format!("vm{thread}.{i}"))).unwrap();
                    keystore.fetch_key(&key.id).unwrap();
                    keystore.rotate_key(&key.id).unwrap();
                    assert!(keystore.list_keys().unwrap().contains(&keystore.key_metadata(&key.id).unwrap()));
                }
            });
        }
    });
    let verified = rig.open().verify(None).unwrap();
    assert_eq!((verified.keys, verified.versions), (40, 80));
    assert_eq!(verified.end.0.length, i64::from(1 + THREADS * KEYS * 3));
}

#[test]
fn a_copy_made_while_in_use_is_a_keystore() {
    let rig = Rig::new();
    let keystore = rig.open();
    let key = keystore.create_key(&spec("vm1")).unwrap();
    let copy = rig.folder.path().join("copy");
    keystore.copy_to(&copy).unwrap();
    assert!(matches!(keystore.copy_to(&copy), Err(KeystoreError::Exists { .. })));
    let before = content(&keystore);
    keystore.destroy_key(&key.id).unwrap();
    assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
    let copy = Keystore::open(&copy, vec![kek(1)]).unwrap();
    copy.verify(None).unwrap();
    assert_eq!(content(&copy), before);
    copy.create_key(&spec("vm2")).unwrap();
}
