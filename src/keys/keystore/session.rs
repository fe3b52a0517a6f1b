//! One transaction: what the keystore as a whole says at that moment, and the keys to read and write with.

use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::{Connection, Row};

use super::access::Principal;
use super::canonical::Canonical;
use super::error::KeystoreError;
use super::kek::{KekKeys, KekRow, KekState, Keyring, SEAL_BYTES, are_equal, random_bytes};

pub(super) const STORE_ID_BYTES: usize = 16;

/// Where the audit log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AuditEnd {
    /// Number of entries, and of the last one.
    pub(super) length: i64,
    /// Code of the last entry; zeroes when there is none.
    pub(super) mac: [u8; SEAL_BYTES],
}

/// A view of the keystore inside one transaction, by one principal.
pub(super) struct Session<'a> {
    pub(super) connection: &'a Connection,
    pub(super) principal: &'a Principal,
    pub(super) store_id: [u8; STORE_ID_BYTES],
    /// Who made the keystore: may rotate its KEK, read the audit log, and grant any right.
    pub(super) administrator: Principal,
    pub(super) audit_end: AuditEnd,
    created: Timestamp,
    keks: Vec<KekRow>,
    /// The number of the KEK that everything is written under, and its keys.
    active: (i64, Arc<KekKeys>),
    /// The same of the one that a rotation is leaving, if it is at hand.
    retiring: Option<(i64, Arc<KekKeys>)>,
}

impl<'a> Session<'a> {
    /// Writes the first rows into the tables of a new keystore, wrapped and sealed under `kek`.
    ///
    /// # Errors
    /// When the disk or the system fails.
    pub(super) fn found(
        connection: &'a Connection,
        principal: &'a Principal,
        ring: &mut Keyring,
    ) -> Result<Self, KeystoreError> {
        let row = ring.row_for_last(1)?;
        let keys = ring.keys(&row)?.expect("the row was made of a key of this ring");
        let session = Self {
            connection,
            principal,
            store_id: random_bytes()?,
            administrator: principal.clone(),
            audit_end: AuditEnd { length: 0, mac: [0; SEAL_BYTES] },
            created: now(),
            keks: vec![row.clone()],
            active: (row.id, keys),
            retiring: None,
        };
        insert_kek(connection, &row)?;
        connection.execute(
            "INSERT INTO store (singleton, store_id, administrator, created, audit_length, audit_mac, seal)
             VALUES (1, ?1, ?2, ?3, 0, ?4, ?5)",
            (
                session.store_id,
                session.administrator.to_string(),
                session.created.as_microsecond(),
                session.audit_end.mac,
                session.seal(),
            ),
        )?;
        Ok(session)
    }

    /// # Errors
    /// When the KEK that is needed is not in `ring`, or the rows are not what was written.
    pub(super) fn load(
        connection: &'a Connection,
        principal: &'a Principal,
        ring: &mut Keyring,
    ) -> Result<Self, KeystoreError> {
        let keks = load_keks(connection)?;
        let of_state = |state| keks.iter().find(move |row: &&KekRow| row.state == state);
        let active = of_state(KekState::Active).ok_or_else(|| KeystoreError::damaged("no KEK is active"))?;
        let keys = ring.keys(active)?.ok_or_else(|| KeystoreError::Kek {
            problem: "none of the keys given as KEK is the one that the keystore is encrypted with"
                .to_owned(),
            remedy: "give the KEK that it was made with, or the one that it was rotated to since".to_owned(),
        })?;
        let active = (active.id, keys);
        let retiring = match of_state(KekState::Retiring) {
            Some(row) => ring.keys(row)?.map(|keys| (row.id, keys)),
            None => None,
        };
        let (store_id, administrator, created, audit_end, seal) = load_store(connection)?;
        let session = Self {
            connection,
            principal,
            store_id,
            administrator,
            audit_end,
            created,
            keks,
            active,
            retiring,
        };
        if !are_equal(&seal, &session.seal()) {
            return Err(KeystoreError::damaged("the seal of the keystore as a whole is broken"));
        }
        Ok(session)
    }

    /// Number and keys of the KEK to write under.
    pub(super) fn active_kek(&self) -> (i64, &KekKeys) {
        (self.active.0, &self.active.1)
    }

    /// Number and keys of the KEK that a rotation is leaving. `None` when none is under way.
    ///
    /// # Errors
    /// When it is not at hand.
    pub(super) fn retiring_kek(&self) -> Result<Option<(i64, &KekKeys)>, KeystoreError> {
        match self.keks.iter().find(|row| row.state == KekState::Retiring) {
            Some(row) => Ok(Some((row.id, self.kek(row.id)?))),
            None => Ok(None),
        }
    }

    /// The keys of the KEK that a row says it is under.
    ///
    /// # Errors
    /// When it is not at hand, or cannot be.
    pub(super) fn kek(&self, id: i64) -> Result<&KekKeys, KeystoreError> {
        if id == self.active.0 {
            return Ok(&self.active.1);
        }
        match (&self.retiring, self.keks.iter().find(|row| row.id == id).map(|row| row.state)) {
            (Some((retiring, keys)), _) if *retiring == id => Ok(keys),
            (None, Some(KekState::Retiring)) => Err(KeystoreError::Kek {
                problem: "a change of KEK is not finished, and the KEK from before is needed".to_owned(),
                remedy: "give both, the old one as `kek-before`, and finish the rotation".to_owned(),
            }),
            _ => Err(KeystoreError::damaged("a row is under a KEK that is not in use")),
        }
    }

    /// All KEKs, retired ones included.
    pub(super) fn keks(&self) -> &[KekRow] {
        &self.keks
    }

    /// Makes `row` the KEK to write under, and the one before a retiring one.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn begin_rotation(&mut self, row: KekRow, keys: Arc<KekKeys>) -> Result<(), KeystoreError> {
        self.set_kek_state(self.active.0, KekState::Retiring)?;
        insert_kek(self.connection, &row)?;
        self.retiring = Some(std::mem::replace(&mut self.active, (row.id, keys)));
        self.keks.push(row);
        self.save()
    }

    /// Retires the KEK that a rotation was leaving.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn end_rotation(&mut self, retiring: i64) -> Result<(), KeystoreError> {
        self.set_kek_state(retiring, KekState::Retired)?;
        self.retiring = None;
        self.save()
    }

    fn set_kek_state(&mut self, id: i64, state: KekState) -> Result<(), KeystoreError> {
        self.connection.execute("UPDATE kek SET state = ?2 WHERE id = ?1", (id, state.name()))?;
        let row = self.keks.iter_mut().find(|row| row.id == id).expect("its number came from here");
        row.state = state;
        Ok(())
    }

    /// Writes down where the audit log ends.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn save_audit_end(&mut self, end: AuditEnd) -> Result<(), KeystoreError> {
        self.audit_end = end;
        self.save()
    }

    fn save(&self) -> Result<(), KeystoreError> {
        self.connection
            .prepare_cached("UPDATE store SET audit_length = ?1, audit_mac = ?2, seal = ?3")?
            .execute((self.audit_end.length, self.audit_end.mac, self.seal()))?;
        Ok(())
    }

    fn seal(&self) -> [u8; SEAL_BYTES] {
        let facts = Canonical::new("sealblk keystore 1: store")
            .bytes(&self.store_id)
            .text(&self.administrator.to_string())
            .time(self.created)
            .number(self.audit_end.length)
            .bytes(&self.audit_end.mac)
            .number(self.keks.len() as i64);
        let facts = self.keks.iter().fold(facts, |facts, row| {
            facts.number(row.id).text(row.state.name()).bytes(&row.salt).bytes(&row.check_value)
        });
        self.active.1.seal(&facts)
    }
}

type StoreRow = ([u8; STORE_ID_BYTES], Principal, Timestamp, AuditEnd, [u8; SEAL_BYTES]);

fn load_store(connection: &Connection) -> Result<StoreRow, KeystoreError> {
    let mut query = connection.prepare_cached(
        "SELECT store_id, administrator, created, audit_length, audit_mac, seal FROM store",
    )?;
    let row = query.query_one([], |row| {
        let end = AuditEnd { length: row.get(3)?, mac: row.get(4)? };
        Ok((row.get(0)?, row.get::<_, String>(1)?, row.get(2)?, end, row.get(5)?))
    })?;
    let (store_id, administrator, created, end, seal) = row;
    Ok((store_id, principal(&administrator)?, time(created)?, end, seal))
}

fn load_keks(connection: &Connection) -> Result<Vec<KekRow>, KeystoreError> {
    let mut query = connection.prepare_cached("SELECT id, state, salt, check_value FROM kek ORDER BY id")?;
    let mut rows = query.query([])?;
    let mut keks = Vec::new();
    while let Some(row) = rows.next()? {
        let state = KekState::from_name(&text(row, 1)?)?;
        keks.push(KekRow { id: row.get(0)?, state, salt: row.get(2)?, check_value: row.get(3)? });
    }
    Ok(keks)
}

fn insert_kek(connection: &Connection, row: &KekRow) -> Result<(), KeystoreError> {
    connection.execute(
        "INSERT INTO kek (id, state, created, salt, check_value) VALUES (?1, ?2, ?3, ?4, ?5)",
        (row.id, row.state.name(), now().as_microsecond(), row.salt, row.check_value),
    )?;
    Ok(())
}

pub(super) fn text(row: &Row<'_>, column: usize) -> Result<String, KeystoreError> {
    Ok(row.get(column)?)
}

/// A principal as it stands in a table.
pub(super) fn principal(text: &str) -> Result<Principal, KeystoreError> {
    text.parse().map_err(|_| KeystoreError::damaged("a principal is not written as one"))
}

/// A time as it stands in a table, in microseconds since 1970.
pub(super) fn time(microseconds: i64) -> Result<Timestamp, KeystoreError> {
    Timestamp::from_microsecond(microseconds).map_err(|_| KeystoreError::damaged("a time is out of range"))
}

/// The time as it is put into tables.
pub(super) fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_microsecond(now.as_microsecond()).expect("it was in range before it was rounded")
}
