//! Keystores that are not as they should be: each is refused, and says why.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::super::{AuditAnchor, Principal, Right};
use super::*;

/// A closed keystore with keys in all states.
fn lived_in() -> (Rig, Vec<KeyMetadata>) {
    let rig = Rig::new();
    let keystore = rig.open();
    let keys: Vec<_> = (0..12).map(|i| keystore.create_key(&spec(&format!("vm{i}"))).unwrap()).collect();
    keystore.rotate_key(&keys[1].id).unwrap();
    keystore.destroy_key(&keys[2].id).unwrap();
    keystore.fetch_key(&keys[0].id).unwrap();
    keystore.grant(&keys[0].id, &Principal::User(1), &[Right::Fetch].into()).unwrap();
    drop(keystore);
    (rig, keys)
}

#[track_caller]
fn assert_damaged<T: std::fmt::Debug>(result: Result<T, KeystoreError>, what: &str) {
    assert!(matches!(result, Err(KeystoreError::Damaged { .. })), "{what}: {result:?}");
}

#[test]
fn files_that_others_can_get_at_are_refused() {
    let (rig, _) = lived_in();
    let set_mode = |path: &std::path::Path, mode| {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    };
    for bit in 0..6 {
        set_mode(&rig.path(), 0o600 | 1 << bit);
        let error = rig.try_open().unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
        set_mode(&rig.path(), 0o600);
        set_mode(rig.folder.path(), 0o700 | 1 << bit);
        let error = rig.try_open().unwrap_err();
        assert!(error.to_string().contains("chmod 700"), "{error}");
        set_mode(rig.folder.path(), 0o700);
        for companion in ["keystore-wal", "keystore-shm", "keystore-journal"] {
            let companion = rig.folder.path().join(companion);
            fs::write(&companion, b"").unwrap();
            set_mode(&companion, 0o600 | 1 << bit);
            assert!(matches!(rig.try_open(), Err(KeystoreError::Exposed { .. })));
            fs::remove_file(&companion).unwrap();
        }
    }
    rig.try_open().unwrap();
    let place = rig.folder.path().join("new");
    set_mode(rig.folder.path(), 0o750);
    assert!(matches!(Keystore::initialise(&place, kek(1)), Err(KeystoreError::Exposed { .. })));
}

#[test]
fn a_link_leads_to_the_file_that_is_checked_and_the_log_is_no_link() {
    let (rig, _) = lived_in();
    let elsewhere = tempfile::tempdir().unwrap();
    let link = elsewhere.path().join("link");
    symlink(rig.path(), &link).unwrap();
    Keystore::open(&link, vec![kek(1)]).unwrap().verify(None).unwrap();
    let victim = elsewhere.path().join("victim");
    fs::write(&victim, b"precious").unwrap();
    symlink(&victim, rig.folder.path().join("keystore-wal")).unwrap();
    assert!(matches!(rig.try_open(), Err(KeystoreError::Exposed { .. })));
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
}

#[test]
fn files_of_another_kind_are_refused_and_left_alone() {
    let rig = Rig::new();
    let write = |content: &[u8]| fs::write(rig.path(), content).unwrap();
    for content in [&b""[..], b"some text", &[0; 4096], &[0xff; 100_000]] {
        write(content);
        assert!(matches!(rig.try_open(), Err(KeystoreError::Foreign { .. })), "{:?}", rig.try_open());
        assert_eq!(fs::read(rig.path()).unwrap(), content);
    }
    write(b"");
    rig.edit("CREATE TABLE key (x)");
    assert!(matches!(rig.try_open(), Err(KeystoreError::Foreign { .. })));
    fs::remove_file(rig.path()).unwrap();
    fs::create_dir(rig.path()).unwrap();
    rig.try_open().unwrap_err();
}

#[test]
fn a_newer_schema_is_refused_and_left_alone() {
    let (rig, _) = lived_in();
    rig.edit("PRAGMA user_version = 99; ALTER TABLE key ADD COLUMN future TEXT;");
    let before = fs::read(rig.path()).unwrap();
    let error = rig.try_open().unwrap_err();
    assert!(matches!(error, KeystoreError::Newer { found: 99, .. }), "{error}");
    assert!(error.to_string().contains("newer release"), "{error}");
    assert_eq!(fs::read(rig.path()).unwrap(), before);
}

#[test]
fn added_and_removed_tables_are_refused() {
    for sql in [
        "CREATE TRIGGER t AFTER INSERT ON audit BEGIN DELETE FROM audit; END",
        "CREATE VIEW v AS SELECT 1",
        "DROP INDEX key_by_kek",
        "CREATE TABLE more (x)",
    ] {
        let (rig, _) = lived_in();
        rig.edit(sql);
        assert_damaged(rig.try_open(), sql);
    }
}

#[test]
fn a_wrong_kek_is_told() {
    let (rig, _) = lived_in();
    let error = Keystore::open(&rig.path(), vec![kek(2), kek(3)]).unwrap_err();
    assert!(error.to_string().contains("none of the keys given as KEK"), "{error}");
}

#[test]
fn a_truncated_file_is_refused() {
    let (rig, _) = lived_in();
    let whole = fs::read(rig.path()).unwrap();
    let lengths = (0..whole.len()).step_by(4096).flat_map(|length| [length, length + 512, length + 4095]);
    for length in lengths.filter(|length| *length < whole.len()) {
        fs::write(rig.path(), &whole[..length]).unwrap();
        let error = rig.try_open().and_then(|keystore| keystore.verify(None)).unwrap_err();
        let is_clear = matches!(error, KeystoreError::Damaged { .. } | KeystoreError::Foreign { .. });
        assert!(is_clear, "{length} bytes: {error:?}");
    }
}

/// A flipped bit is noticed, or was in a place that holds nothing: never does anything else come back.
#[test]
fn flipped_bits_are_refused_or_make_no_difference() {
    let (rig, _) = lived_in();
    let expected = content(&rig.open());
    let whole = fs::read(rig.path()).unwrap();
    let (mut refused, mut harmless) = (0, 0);
    // Steps that reach every page, every region of it and every bit in turn.
    for (round, index) in (0..whole.len()).step_by(127).enumerate() {
        let mut damaged = whole.clone();
        damaged[index] ^= 1 << (round % 8);
        fs::write(rig.path(), &damaged).unwrap();
        let result = rig.try_open().and_then(|keystore| keystore.verify(None).map(|_| keystore));
        match result {
            Ok(keystore) => {
                assert_eq!(content(&keystore), expected, "byte {index}");
                harmless += 1;
            }
            Err(KeystoreError::Busy | KeystoreError::Full | KeystoreError::NotYetWiped) => {
                panic!("byte {index}: that is not what is wrong")
            }
            Err(_) => refused += 1,
        }
        for suffix in ["-wal", "-shm", "-journal"] {
            let _ = fs::remove_file(format!("{}{suffix}", rig.path().display()));
        }
    }
    assert!(refused > 50 && harmless > 50, "{refused} refused, {harmless} harmless");
}

/// Edits of the rows of keys by somebody without the KEK.
const EDITED_KEYS: [&str; 19] = [
    // What they are.
    "UPDATE key SET name = 'vm99' WHERE ordinal = 1",
    "UPDATE key SET volume = 'vm99' WHERE ordinal = 1",
    "UPDATE key SET bits = 128 WHERE ordinal = 1",
    "UPDATE key SET kind = 'passphrase' WHERE ordinal = 1",
    "UPDATE key SET kind = 'other' WHERE ordinal = 1",
    "UPDATE key SET id = '6c1ff2ac-7c77-4d8c-8b65-a5d7d9f0a5f4' WHERE ordinal = 1",
    "UPDATE key SET creator = 'uid:1' WHERE ordinal = 1",
    "UPDATE key SET ordinal = 99 WHERE ordinal = 12",
    // States and versions.
    "UPDATE version SET state = 'active' WHERE state = 'destroyed'",
    "UPDATE version SET state = 'active' WHERE state = 'deactivated'",
    "UPDATE version SET state = 'destroyed' WHERE key = 1",
    "UPDATE version SET created = 0 WHERE key = 1",
    "DELETE FROM version WHERE key = 2 AND version = 2",
    "DELETE FROM version WHERE key = 1",
    "UPDATE version SET material = -1 WHERE key = 1; UPDATE version SET material = 1 WHERE key = 5;
     UPDATE version SET material = 5 WHERE key = 1",
    // Access.
    "INSERT INTO access VALUES (1, 'uid:2', 'fetch')",
    "UPDATE access SET principal = 'uid:2' WHERE principal = 'uid:1'",
    "UPDATE access SET operation = 'destroy' WHERE principal = 'uid:1'",
    "DELETE FROM access WHERE principal = 'uid:1'",
];

/// Edits of other rows.
const EDITED_REST: [&str; 20] = [
    // Key material, also under the name of another key.
    "UPDATE material SET wrapped = (SELECT wrapped FROM material WHERE id = 5),
        nonce = (SELECT nonce FROM material WHERE id = 5) WHERE id = 1",
    "UPDATE material SET wrapped = zeroblob(48) WHERE id = 1",
    "UPDATE material SET wrapped = x'00' WHERE id = 1",
    "DELETE FROM material WHERE id = 1",
    // Whole keys.
    "DELETE FROM access WHERE key = 3; DELETE FROM version WHERE key = 3; DELETE FROM key WHERE ordinal = 3",
    // The audit log.
    "DELETE FROM audit WHERE seq = (SELECT max(seq) FROM audit)",
    "DELETE FROM audit WHERE seq = 3",
    "DELETE FROM audit",
    "UPDATE audit SET principal = 'uid:1' WHERE event = 'fetch'",
    "UPDATE audit SET time = time + 1 WHERE seq = 4",
    "UPDATE audit SET outcome = 'not-found' WHERE seq = 4",
    "UPDATE audit SET detail = NULL WHERE event = 'grant'",
    "INSERT INTO audit SELECT seq + 1, epoch, time, principal, event, key, version, detail, outcome, mac
        FROM audit ORDER BY seq DESC LIMIT 1",
    "UPDATE audit_key SET wrapped = zeroblob(48)",
    // The keystore itself.
    "UPDATE store SET administrator = 'uid:1'",
    "UPDATE store SET store_id = zeroblob(16)",
    "UPDATE store SET audit_length = audit_length - 1",
    "UPDATE store SET seal = zeroblob(32)",
    "UPDATE kek SET state = 'retired'",
    "INSERT INTO kek VALUES (2, 'retired', 0, zeroblob(32), zeroblob(32))",
];

fn edited(sql: &str) -> (Rig, Vec<KeyMetadata>) {
    let (rig, keys) = lived_in();
    let database = rig.database();
    database.execute_batch(&format!("PRAGMA foreign_keys = OFF; {sql}")).unwrap();
    assert!(database.total_changes() > 0, "{sql}");
    (rig, keys)
}

#[test]
fn edited_keys_are_noticed_when_they_are_listed() {
    for sql in EDITED_KEYS {
        let (rig, _) = edited(sql);
        let keystore = rig.open();
        assert_damaged(keystore.list_keys(), sql);
        assert_damaged(keystore.verify(None), sql);
    }
}

#[test]
fn any_edit_is_noticed_by_a_check() {
    for sql in EDITED_REST {
        let (rig, _) = edited(sql);
        assert_damaged(rig.try_open().and_then(|keystore| keystore.verify(None)), sql);
    }
}

#[test]
fn nothing_is_given_out_when_the_audit_log_was_cut() {
    let (rig, keys) = edited("DELETE FROM audit WHERE seq = (SELECT max(seq) FROM audit)");
    let keystore = rig.open();
    assert_damaged(keystore.fetch_key(&keys[0].id), "a fetch");
    assert_damaged(keystore.create_key(&spec("new")), "a new key");
    assert_damaged(keystore.each_audit_entry(0, |_| ()), "an export");
}

#[test]
fn entries_of_another_history_do_not_fit_in() {
    let (rig, keys) = lived_in();
    let fork = Rig { folder: fast_folder() };
    fs::copy(rig.path(), fork.path()).unwrap();
    let end = rig.open().verify(None).unwrap().end.0.length;
    for (rig, key) in [(&rig, &keys[0]), (&fork, &keys[1])] {
        let keystore = rig.open();
        keystore.fetch_key(&key.id).unwrap();
        keystore.fetch_key(&key.id).unwrap();
        keystore.verify(None).unwrap();
    }
    let seq = end + 1;
    rig.edit(&format!(
        "ATTACH '{}' AS fork; DELETE FROM audit WHERE seq = {seq};
         INSERT INTO audit SELECT * FROM fork.audit WHERE seq = {seq};",
        fork.path().display()
    ));
    assert_damaged(rig.open().verify(None), "an entry of the same number, genuine elsewhere");
}

#[test]
fn a_damaged_key_is_not_given_out_and_leaves_the_others_alone() {
    let (rig, keys) = lived_in();
    rig.edit("UPDATE material SET wrapped = zeroblob(48) WHERE id = 1");
    let keystore = rig.open();
    assert_damaged(keystore.fetch_key(&keys[0].id), "the damaged one");
    keystore.fetch_key(&keys[1].id).unwrap();
    keystore.rotate_key(&keys[1].id).unwrap();
    assert_damaged(keystore.verify(None), "the whole");
    let mut outcomes = Vec::new();
    keystore.each_audit_entry(15, |entry| outcomes.push(entry.outcome.name())).unwrap();
    assert!(outcomes.contains(&"damaged"), "{outcomes:?}");
}

#[test]
fn an_older_copy_of_the_whole_file_is_noticed_with_an_anchor_only() {
    let (rig, keys) = lived_in();
    let old = fs::read(rig.path()).unwrap();
    let keystore = rig.open();
    let early = keystore.verify(None).unwrap().end;
    keystore.rotate_key(&keys[0].id).unwrap();
    let late = keystore.verify(Some(&early)).unwrap().end;
    keystore.verify(Some(&late)).unwrap();
    drop(keystore);
    fs::write(rig.path(), old).unwrap();
    let keystore = rig.open();
    keystore.verify(None).unwrap();
    keystore.verify(Some(&early)).unwrap();
    assert_damaged(keystore.verify(Some(&late)), "the older copy");
    let forged: AuditAnchor = format!("3:{}", "00".repeat(32)).parse().unwrap();
    assert_damaged(keystore.verify(Some(&forged)), "another history");
}

/// One key's rights and seal as they once were, which is a genuine seal.
#[test]
fn rights_put_back_after_they_were_revoked_are_noticed() {
    let (rig, keys) = lived_in();
    let (id, other) = (&keys[0].id, Principal::User(4711));
    rig.open().grant(id, &other, &[Right::Fetch].into()).unwrap();
    let old = Rig { folder: fast_folder() };
    fs::copy(rig.path(), old.path()).unwrap();
    rig.open().revoke(id, &other, &[Right::Fetch].into()).unwrap();
    rig.open().verify(None).unwrap();
    rig.edit(&format!(
        "ATTACH '{}' AS old; DELETE FROM access; INSERT INTO access SELECT * FROM old.access;
         UPDATE key SET seal = (SELECT seal FROM old.key WHERE old.key.ordinal = main.key.ordinal);",
        old.path().display()
    ));
    let keystore = rig.open();
    assert!(keystore.access(id).unwrap().contains(&(other, Right::Fetch)), "the row by itself is genuine");
    assert_damaged(keystore.verify(None), "rights that the audit log does not tell of");
}

#[test]
fn an_old_row_put_back_after_a_rotation_is_noticed() {
    let (rig, keys) = lived_in();
    let keep = "CREATE TABLE kept.k AS SELECT * FROM key WHERE ordinal = 1;
         CREATE TABLE kept.v AS SELECT * FROM version WHERE key = 1;";
    let kept = rig.folder.path().join("kept");
    let attach = format!("ATTACH '{}' AS kept;", kept.display());
    rig.edit(&format!("{attach}{keep}"));
    rig.open().rotate_key(&keys[0].id).unwrap();
    rig.edit(&format!(
        "{attach} PRAGMA foreign_keys = OFF; DELETE FROM version WHERE key = 1; DELETE FROM key WHERE ordinal = 1;
         INSERT INTO key SELECT * FROM kept.k; INSERT INTO version SELECT * FROM kept.v;"
    ));
    assert_damaged(rig.open().verify(None), "the row is genuine, and out of date");
}
