//! The tables, and how a file of an older release is brought up to date.

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::error::KeystoreError;

/// Marks the file as ours (`PRAGMA application_id`): "sbks".
pub(super) const APPLICATION_ID: u32 = 0x7362_6b73;

/// What makes each schema version (`PRAGMA user_version`, from 1) out of the one before. An entry that was released
/// is never changed: a change of the schema is a new entry.
pub(super) const MIGRATIONS: &[&str] = &[VERSION_1];

/// `material` is only ever appended to, and overwritten in place by something of the same length: so its rows never
/// move, and no copy of a wrapped key is left behind in another page.
const VERSION_1: &str = "
CREATE TABLE store (
    singleton INTEGER PRIMARY KEY CHECK (singleton = 1),
    store_id BLOB NOT NULL,
    administrator TEXT NOT NULL,
    created INTEGER NOT NULL,
    audit_length INTEGER NOT NULL,
    audit_mac BLOB NOT NULL,
    seal BLOB NOT NULL
) STRICT;
CREATE TABLE kek (
    id INTEGER PRIMARY KEY,
    state TEXT NOT NULL,
    created INTEGER NOT NULL,
    salt BLOB NOT NULL,
    check_value BLOB NOT NULL
) STRICT;
CREATE TABLE audit_key (
    epoch INTEGER PRIMARY KEY REFERENCES kek,
    nonce BLOB NOT NULL,
    wrapped BLOB NOT NULL
) STRICT;
CREATE TABLE material (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    nonce BLOB NOT NULL,
    wrapped BLOB NOT NULL
) STRICT;
CREATE TABLE key (
    ordinal INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    name TEXT,
    kind TEXT NOT NULL,
    bits INTEGER NOT NULL,
    volume TEXT,
    creator TEXT NOT NULL,
    kek INTEGER NOT NULL REFERENCES kek,
    seal BLOB NOT NULL
) STRICT;
CREATE INDEX key_by_name ON key (creator, name);
CREATE INDEX key_by_kek ON key (kek);
CREATE TABLE version (
    key INTEGER NOT NULL REFERENCES key,
    version INTEGER NOT NULL,
    state TEXT NOT NULL,
    created INTEGER NOT NULL,
    material INTEGER NOT NULL UNIQUE REFERENCES material,
    PRIMARY KEY (key, version)
) STRICT, WITHOUT ROWID;
CREATE TABLE access (
    key INTEGER NOT NULL REFERENCES key,
    principal TEXT NOT NULL,
    operation TEXT NOT NULL,
    PRIMARY KEY (key, principal, operation)
) STRICT, WITHOUT ROWID;
CREATE TABLE audit (
    seq INTEGER PRIMARY KEY,
    epoch INTEGER NOT NULL REFERENCES audit_key,
    time INTEGER NOT NULL,
    principal TEXT NOT NULL,
    event TEXT NOT NULL,
    key TEXT,
    version INTEGER,
    detail TEXT,
    outcome TEXT NOT NULL,
    mac BLOB NOT NULL
) STRICT;
";

/// Brings the schema from whatever version it has (0 is an empty file) to the newest of `migrations`, or not at all.
///
/// # Errors
/// [`KeystoreError::Newer`] when it is of a version that is not among them.
pub(super) fn migrate(connection: &mut Connection, migrations: &[&str]) -> Result<(), KeystoreError> {
    if version(connection, migrations)? == migrations.len() {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have been first.
    let from = version(&transaction, migrations)?;
    for step in &migrations[from..] {
        transaction.execute_batch(step)?;
    }
    set_version(&transaction, migrations.len())?;
    transaction.commit()?;
    Ok(())
}

fn set_version(transaction: &Transaction<'_>, version: usize) -> Result<(), KeystoreError> {
    let version = i32::try_from(version).expect("there are few schema versions");
    transaction.pragma_update(None, "user_version", version)?;
    Ok(())
}

fn version(connection: &Connection, migrations: &[&str]) -> Result<usize, KeystoreError> {
    let found: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    match found as usize {
        version if version <= migrations.len() => Ok(version),
        _ => Err(KeystoreError::Newer { found, known: migrations.len() as u32 }),
    }
}

/// Checks that the file holds exactly the tables that `migrations` make: no trigger, no view, nothing less.
///
/// # Errors
/// [`KeystoreError::Damaged`] when it does not.
pub(super) fn check(connection: &Connection, migrations: &[&str]) -> Result<(), KeystoreError> {
    let expected = Connection::open_in_memory()?;
    for step in migrations {
        expected.execute_batch(step)?;
    }
    if objects(connection)? == objects(&expected)? {
        Ok(())
    } else {
        Err(KeystoreError::damaged("its tables are not those of a keystore"))
    }
}

type Object = (String, String, Option<String>);

fn objects(connection: &Connection) -> Result<Vec<Object>, KeystoreError> {
    let mut query =
        connection.prepare("SELECT type, name, sql FROM sqlite_schema ORDER BY type, name LIMIT 100")?;
    let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEXT: &str = "ALTER TABLE key ADD COLUMN comment TEXT; CREATE INDEX key_by_volume ON key (volume);";

    #[test]
    fn an_older_schema_is_brought_up_to_date_and_keeps_its_rows() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, MIGRATIONS).unwrap();
        check(&connection, MIGRATIONS).unwrap();
        connection.execute("INSERT INTO kek VALUES (1, 'active', 0, x'00', x'00')", []).unwrap();

        let extended = [MIGRATIONS, &[NEXT]].concat();
        migrate(&mut connection, &extended).unwrap();
        check(&connection, &extended).unwrap();
        assert!(check(&connection, MIGRATIONS).is_err());
        assert_eq!(version(&connection, &extended).unwrap(), extended.len());
        let count: i64 = connection.query_row("SELECT count(*) FROM kek", [], |row| row.get(0)).unwrap();
        assert_eq!(count, 1);
        migrate(&mut connection, &extended).unwrap();
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, &[MIGRATIONS, &[NEXT]].concat()).unwrap();
        let error = migrate(&mut connection, MIGRATIONS).unwrap_err();
        assert!(matches!(error, KeystoreError::Newer { found: 2, known: 1 }), "{error}");
    }

    #[test]
    fn a_migration_that_fails_changes_nothing() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, MIGRATIONS).unwrap();
        let broken =
            [MIGRATIONS, &["ALTER TABLE key ADD COLUMN comment TEXT; CREATE TABLE key (x)"]].concat();
        migrate(&mut connection, &broken).unwrap_err();
        check(&connection, MIGRATIONS).unwrap();
        assert_eq!(version(&connection, MIGRATIONS).unwrap(), MIGRATIONS.len());
    }

    #[test]
    fn additions_to_the_schema_are_noticed() {
        for extra in [
            "CREATE TRIGGER t AFTER INSERT ON audit BEGIN DELETE FROM audit; END",
            "CREATE TEMP VIEW v AS SELECT 1; CREATE TABLE more (x)",
            "DROP INDEX key_by_kek",
        ] {
            let mut connection = Connection::open_in_memory().unwrap();
            migrate(&mut connection, MIGRATIONS).unwrap();
            connection.execute_batch(extra).unwrap();
            assert!(matches!(check(&connection, MIGRATIONS), Err(KeystoreError::Damaged { .. })), "{extra}");
        }
    }
}
