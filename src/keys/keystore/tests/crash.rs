//! Killed, without power, or with a failing disk at every single write of every operation: nothing is lost or half done.
//!
//! Each operation runs once on a disk that takes notes. From the notes come all the disks that a crash could have left:
//! after each event, in the middle of each write, and with what was not synced kept or lost in several ways. Each of them
//! has to be a keystore that passes every check and in which the operation has happened or has not; from the moment it
//! returned it has to have happened. Then it is repeated there.

use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use super::super::{AuditEntry, AuditEvent, AuditOutcome, Principal, Right};
use super::recorder::{Event, Fault, Files, Recorder, files_of, killed, without_power};
use super::*;

/// An operation, given the keys that there are.
type Operation = fn(&Keystore, &[KeyMetadata]) -> Result<(), KeystoreError>;

const OPERATIONS: [(&str, Operation); 10] = [
    ("create", |keystore, _| keystore.create_key(&KeySpec { name: None, ..spec("") }).map(|_| ())),
    ("store a long key", |keystore, _| {
        let spec = KeySpec { name: None, bits: 8192 * 8, ..spec("") };
        keystore.store_key(&spec, &secret(&[9; 8192])).map(|_| ())
    }),
    ("fetch", |keystore, keys| keystore.fetch_key(&keys[0].id).map(|_| ())),
    ("refuse", |keystore, _| {
        let id = KeyId::new("6c1ff2ac-7c77-4d8c-8b65-a5d7d9f0a5f4");
        match keystore.fetch_key(&id) {
            Err(KeystoreError::NotFound { .. }) => Ok(()),
            other => other.map(|_| ()),
        }
    }),
    ("rotate", |keystore, keys| keystore.rotate_key(&keys[1].id).map(|_| ())),
    ("destroy", |keystore, keys| keystore.destroy_key(&keys[1].id)),
    ("destroy a version", |keystore, keys| keystore.destroy_key(&version(&keys[1], 1))),
    ("grant", |keystore, keys| {
        keystore.grant(&keys[0].id, &Principal::User(7), &[Right::Fetch].into()).map(drop)
    }),
    ("revoke", |keystore, keys| {
        keystore.revoke(&keys[0].id, &Principal::User(6), &[Right::Fetch].into()).map(drop)
    }),
    ("rotate the KEK", |keystore, _| keystore.rotate_kek(kek(2), |_| ()).map(|_| ())),
];

fn keks() -> Vec<Secret> {
    vec![kek(1), kek(2)]
}

/// The files of a keystore with a few keys: closed, or as somebody who has it open sees them, with a log that was
/// written to.
fn prepared(is_in_use: bool) -> (Files, Vec<KeyMetadata>) {
    let rig = Rig::new();
    let keystore = rig.open();
    let keys: Vec<_> = ["vm1", "vm2", "vm3"].map(|name| keystore.create_key(&spec(name)).unwrap()).into();
    keystore.rotate_key(&keys[1].id).unwrap();
    keystore.grant(&keys[0].id, &Principal::User(6), &[Right::Fetch].into()).unwrap();
    if !is_in_use {
        drop(keystore);
    }
    let files = files_of(rig.folder.path());
    assert_eq!(files.contains_key("keystore-wal"), is_in_use);
    (files, keys)
}

/// Puts `files` into a folder.
fn materialised(files: &Files) -> Rig {
    let folder = fast_folder();
    for (name, content) in files {
        let options = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).clone();
        options.open(folder.path().join(name)).unwrap().write_all(content).unwrap();
    }
    Rig { folder }
}

/// What was written to the disk by one operation between opening and closing.
struct Run {
    events: Vec<Event>,
    /// How many of them there were when the operation returned.
    returned_at: usize,
}

fn run(before: &Files, keys: &[KeyMetadata], operation: Operation) -> (Run, (Content, i64)) {
    let rig = materialised(before);
    let recorder = Recorder::install();
    let keystore = Keystore::open_at(Place::new(&rig.path()).with_vfs(recorder.name()), keks()).unwrap();
    operation(&keystore, keys).unwrap();
    let returned_at = recorder.events().len();
    drop(keystore);
    let events = recorder.events();
    assert!(killed(before, &events, events.len(), false) == files_of(rig.folder.path()), "all is noted");
    (Run { events, returned_at }, checked(&rig).unwrap())
}

/// Opens a keystore and checks all of it. Gives what it holds and the length of its audit log.
fn checked(rig: &Rig) -> Result<(Content, i64), KeystoreError> {
    let keystore = Keystore::open(&rig.path(), keks())?;
    let verified = keystore.verify(None)?;
    Ok((content(&keystore), verified.end.0.length))
}

/// Opens what a crash left, checks it, and says whether the operation has happened.
#[track_caller]
fn has_happened(rig: &Rig, before: &(Content, i64), after: &(Content, i64), whence: &str) -> bool {
    let now = checked(rig).unwrap_or_else(|error| panic!("{whence}: {error}"));
    if now.1 == before.1 {
        assert!(now == *before, "{whence}: half of it has happened");
        return false;
    }
    // The rotation of a KEK is several transactions, all of which leave the content alone.
    assert!(now.0 == after.0 && now.1 <= after.1, "{whence}: something else has happened");
    now.1 == after.1
}

/// A cheap source of decisions that is the same in every run.
fn decisions(seed: u64) -> impl FnMut() -> bool {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state & 1 == 1
    }
}

fn survives_crashes(is_in_use: bool) {
    for (name, operation) in OPERATIONS {
        let (files, keys) = prepared(is_in_use);
        let before = checked(&materialised(&files)).unwrap();
        let (run, after) = run(&files, &keys, operation);
        assert!(run.returned_at > 3, "{name}: something was written");
        // Many moments leave the same files: those are looked at once.
        let mut seen = HashSet::new();
        let mut visit = |files: Files, whence: &str, has_to_have_happened: bool, is_repeated: bool| {
            if !seen.insert((files.clone(), has_to_have_happened, is_repeated)) {
                return;
            }
            let rig = materialised(&files);
            let happened = has_happened(&rig, &before, &after, whence);
            assert!(happened || !has_to_have_happened, "{whence}: it had returned");
            if is_repeated {
                repeat(&rig, &keys, operation, whence);
            }
        };
        for done in 0..=run.events.len() {
            let whence = format!("{name}: event {done} of {}", run.events.len());
            let has_returned = done >= run.returned_at;
            visit(killed(&files, &run.events, done, false), &whence, has_returned, true);
            visit(killed(&files, &run.events, done, true), &format!("{whence}, torn"), has_returned, false);
            for seed in 0..3 {
                let mut random = decisions(done as u64 * 3 + seed);
                let mut keeps = || seed != 0 && random();
                let files = without_power(&files, &run.events, done, &mut keeps);
                visit(files, &format!("{whence}, no power, {seed}"), has_returned, false);
            }
        }
        assert!(seen.len() > 10, "{name}: only {} disks", seen.len());
    }
}

/// Does the operation again, as whoever does not know whether it has happened does.
#[track_caller]
fn repeat(rig: &Rig, keys: &[KeyMetadata], operation: Operation, whence: &str) {
    let keystore = Keystore::open(&rig.path(), keks()).unwrap();
    operation(&keystore, keys).unwrap_or_else(|error| panic!("{whence}, repeated: {error}"));
    keystore.verify(None).unwrap_or_else(|error| panic!("{whence}, repeated: {error}"));
}

#[test]
fn every_operation_on_a_closed_keystore_survives_a_crash_at_every_write() {
    survives_crashes(false);
}

#[test]
fn every_operation_on_a_keystore_in_use_survives_a_crash_at_every_write() {
    survives_crashes(true);
}

#[test]
fn every_operation_survives_a_failure_of_every_write() {
    for (name, operation) in OPERATIONS {
        let (files, keys) = prepared(false);
        for recovers in [false, true] {
            for at_call in 0.. {
                let rig = materialised(&files);
                let recorder = Recorder::install();
                recorder.set_fault(Some(Fault { at_call, recovers }));
                let place = Place::new(&rig.path()).with_vfs(recorder.name());
                let keystore = Keystore::open_at(place, keks());
                let result = keystore.as_ref().map_or(Ok(()), |keystore| operation(keystore, &keys));
                let has_failed = recorder.calls() > at_call;
                recorder.set_fault(None);
                let was_opened = keystore.is_ok();
                drop(keystore);

                let whence = format!("{name}: failure {at_call}, recovers: {recovers}");
                if let Err(KeystoreError::Damaged { problem }) = &result {
                    panic!("{whence}: {problem}");
                }
                checked(&rig).unwrap_or_else(|error| panic!("{whence}: {error}"));
                if name == "fetch" && was_opened {
                    assert!(result.is_err() || fetches(&rig) == 1, "{whence}: it was given out");
                }
                repeat(&rig, &keys, operation, &whence);
                if !has_failed {
                    assert!(at_call > 3 && result.is_ok(), "{whence}");
                    break;
                }
            }
        }
    }
}

/// How many keys were given out, by the audit log.
fn fetches(rig: &Rig) -> usize {
    let mut count = 0;
    let count_fetches = |entry: AuditEntry| {
        count += usize::from(entry.event == AuditEvent::Fetch && entry.outcome == AuditOutcome::Done);
    };
    Keystore::open(&rig.path(), keks()).unwrap().each_audit_entry(0, count_fetches).unwrap();
    count
}

#[test]
fn a_full_disk_is_told_and_gives_out_no_key() {
    let (files, keys) = prepared(false);
    let rig = materialised(&files);
    let recorder = Recorder::install();
    let keystore = Keystore::open_at(Place::new(&rig.path()).with_vfs(recorder.name()), keks()).unwrap();
    recorder.set_fault(Some(Fault { at_call: 0, recovers: false }));
    assert!(matches!(keystore.fetch_key(&keys[0].id), Err(KeystoreError::Full)));
    assert!(matches!(keystore.create_key(&spec("vm9")), Err(KeystoreError::Full)));
    assert_eq!(keystore.list_keys().unwrap().len(), 3, "reading goes on");
    recorder.set_fault(None);
    keystore.fetch_key(&keys[0].id).unwrap();
    keystore.verify(None).unwrap();
}

#[test]
fn a_new_keystore_is_durable_before_it_has_its_name() {
    let folder = fast_folder();
    let recorder = Recorder::install();
    let path = folder.path().join("keystore");
    Keystore::initialise_at(&Place::new(&path).with_vfs(recorder.name()), kek(1)).unwrap();
    let empty = Files::from([("keystore".to_owned(), Vec::new())]);
    let events = recorder.events();
    let synced = without_power(&empty, &events, events.len(), &mut || false);
    assert!(synced["keystore"] == files_of(folder.path())["keystore"], "what is not synced is not needed");
    let calls = recorder.calls();
    assert!(calls > 10);
    for at_call in 0..calls {
        let folder = fast_folder();
        let path = folder.path().join("keystore");
        recorder.set_fault(Some(Fault { at_call, recovers: false }));
        Keystore::initialise_at(&Place::new(&path).with_vfs(recorder.name()), kek(1)).unwrap_err();
        recorder.set_fault(None);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "failure {at_call}");
    }
}
