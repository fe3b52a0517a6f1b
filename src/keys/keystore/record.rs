//! One key as the tables hold it: what it is, its versions, who may use it, and the seal over all of that.

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row};
use uuid::Uuid;

use super::super::{KeyKind, KeyState, Secret};
use super::access::{Principal, Right};
use super::canonical::Canonical;
use super::error::KeystoreError;
use super::kek::{KekKeys, SEAL_BYTES, UnwrapError, Wrapped, are_equal};
use super::session::{Session, principal, time};

/// A key with all its versions.
pub(super) struct Record {
    /// Counts keys in the order of creation.
    pub(super) ordinal: i64,
    pub(super) facts: Facts,
    /// The KEK that wraps its versions and seals it.
    kek: i64,
    /// Oldest first, without gaps.
    pub(super) versions: Vec<Version>,
    /// In the order of their text, each once.
    access: Vec<(Principal, Right)>,
}

/// What never changes about a key.
#[derive(Clone)]
pub(super) struct Facts {
    pub(super) id: Uuid,
    pub(super) name: Option<String>,
    pub(super) kind: KeyKind,
    pub(super) bits: u32,
    pub(super) volume: Option<String>,
    pub(super) creator: Principal,
}

/// One version of a key.
pub(super) struct Version {
    /// From 1.
    pub(super) number: u32,
    pub(super) state: KeyState,
    pub(super) created: Timestamp,
    /// Its row in the table of wrapped material.
    material: i64,
}

const COLUMNS: &str = "SELECT ordinal, id, name, kind, bits, volume, creator, kek, seal FROM key";

impl Record {
    /// Puts a new key with its first version into the tables. Its creator has every right.
    ///
    /// # Errors
    /// When the disk or the system fails.
    pub(super) fn create(
        session: &Session<'_>,
        facts: Facts,
        material: &Secret,
        created: Timestamp,
    ) -> Result<Self, KeystoreError> {
        let (kek, _) = session.active_kek();
        let mut insert = session.connection.prepare_cached(
            "INSERT INTO key (id, name, kind, bits, volume, creator, kek, seal)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, x'')",
        )?;
        let ordinal = insert.insert((
            facts.id.to_string(),
            &facts.name,
            kind_name(facts.kind),
            facts.bits,
            &facts.volume,
            facts.creator.to_string(),
            kek,
        ))?;
        let access = Right::ALL.map(|right| (facts.creator.clone(), right)).to_vec();
        let mut record = Self { ordinal, facts, kek, versions: Vec::new(), access: Vec::new() };
        for (principal, right) in access {
            record.grant(session, &principal, right)?;
        }
        record.append_version(session, material, created)?;
        Ok(record)
    }

    /// The key called `id`, whoever may see it. Its seal is checked.
    ///
    /// # Errors
    /// When the rows are not what was written.
    pub(super) fn find(session: &Session<'_>, id: Uuid) -> Result<Option<Self>, KeystoreError> {
        let mut query = session.connection.prepare_cached(&format!("{COLUMNS} WHERE id = ?1"))?;
        let row = query.query_row([id.to_string()], |row| Ok(Self::load(session, row))).optional()?;
        row.transpose()
    }

    /// Visits every key in the order of creation, whoever may see it. Seals are checked.
    ///
    /// # Errors
    /// When the rows are not what was written, or what `visit` returns.
    pub(super) fn each(
        session: &Session<'_>,
        mut visit: impl FnMut(Self) -> Result<(), KeystoreError>,
    ) -> Result<(), KeystoreError> {
        let mut query = session.connection.prepare_cached(&format!("{COLUMNS} ORDER BY ordinal"))?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            visit(Self::load(session, row)?)?;
        }
        Ok(())
    }

    /// Up to `limit` keys that are still under `kek`, with their seals checked.
    ///
    /// # Errors
    /// When the rows are not what was written.
    pub(super) fn under_kek(session: &Session<'_>, kek: i64, limit: u32) -> Result<Vec<Self>, KeystoreError> {
        let mut query = session.connection.prepare_cached(&format!("{COLUMNS} WHERE kek = ?1 LIMIT ?2"))?;
        let mut rows = query.query((kek, limit))?;
        let mut records = Vec::new();
        while let Some(row) = rows.next()? {
            records.push(Self::load(session, row)?);
        }
        Ok(records)
    }

    fn load(session: &Session<'_>, row: &Row<'_>) -> Result<Self, KeystoreError> {
        let id: String = row.get(1)?;
        let facts = Facts {
            id: Uuid::parse_str(&id).map_err(|_| KeystoreError::damaged("a key is not called by a UUID"))?,
            name: row.get(2)?,
            kind: kind_from_name(&row.get::<_, String>(3)?)?,
            bits: row.get(4)?,
            volume: row.get(5)?,
            creator: principal(&row.get::<_, String>(6)?)?,
        };
        let ordinal = row.get(0)?;
        let record = Self {
            ordinal,
            facts,
            kek: row.get(7)?,
            versions: load_versions(session, ordinal)?,
            access: load_access(session, ordinal)?,
        };
        let seal: [u8; SEAL_BYTES] = row.get(8)?;
        if record.versions.is_empty() || !are_equal(&seal, &record.seal(session)?) {
            return Err(KeystoreError::damaged(format!("the seal of key {id} is broken")));
        }
        Ok(record)
    }

    /// Whether `principal` may do this.
    pub(super) fn allows(&self, principal: &Principal, right: Right) -> bool {
        self.access.iter().any(|(who, what)| who == principal && *what == right)
    }

    /// Whether `principal` may know of the key at all.
    pub(super) fn is_visible_to(&self, principal: &Principal) -> bool {
        self.access.iter().any(|(who, _)| who == principal)
    }

    /// Who may do what.
    pub(super) fn access(&self) -> &[(Principal, Right)] {
        &self.access
    }

    /// The version of that number, or the newest.
    pub(super) fn version(&self, number: Option<u32>) -> Option<&Version> {
        match number {
            Some(number) => self.versions.iter().find(|version| version.number == number),
            None => self.versions.last(),
        }
    }

    /// Whether every version of it is destroyed.
    pub(super) fn is_destroyed(&self) -> bool {
        self.versions.iter().all(|version| version.state == KeyState::Destroyed)
    }

    /// Adds a version, which becomes the active one; the one that was is deactivated.
    ///
    /// # Errors
    /// When the disk or the system fails.
    pub(super) fn append_version(
        &mut self,
        session: &Session<'_>,
        material: &Secret,
        created: Timestamp,
    ) -> Result<(), KeystoreError> {
        let newest = self.versions.last().map_or(0, |version| version.number);
        let number = newest.checked_add(1).ok_or_else(|| KeystoreError::damaged("no version is left"))?;
        if let Some(version) = self.versions.last_mut().filter(|version| version.state == KeyState::Active) {
            version.state = KeyState::Deactivated;
            let state = version.state;
            self.save_state(session, newest, state)?;
        }
        let wrapped =
            session.kek(self.kek)?.wrap(material.expose(), &self.bound(session, self.kek, number))?;
        let material = session
            .connection
            .prepare_cached("INSERT INTO material (nonce, wrapped) VALUES (?1, ?2)")?
            .insert((wrapped.nonce, &wrapped.ciphertext))?;
        session
            .connection
            .prepare_cached(
                "INSERT INTO version (key, version, state, created, material) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute((
                self.ordinal,
                number,
                KeyState::Active.to_string(),
                created.as_microsecond(),
                material,
            ))?;
        self.versions.push(Version { number, state: KeyState::Active, created, material });
        self.save_seal(session)
    }

    /// Overwrites the wrapped material of a version with zeroes and marks it as destroyed.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn destroy_version(
        &mut self,
        session: &Session<'_>,
        number: u32,
    ) -> Result<(), KeystoreError> {
        let Some(version) = self
            .versions
            .iter_mut()
            .find(|version| version.number == number && version.state != KeyState::Destroyed)
        else {
            return Ok(());
        };
        version.state = KeyState::Destroyed;
        let mut erase = session.connection.prepare_cached(
            "UPDATE material SET nonce = zeroblob(length(nonce)), wrapped = zeroblob(length(wrapped))
             WHERE id = ?1",
        )?;
        expect_one(erase.execute([version.material])?)?;
        self.save_state(session, number, KeyState::Destroyed)?;
        self.save_seal(session)
    }

    /// Decrypts a version into locked memory.
    ///
    /// # Errors
    /// [`KeystoreError::Damaged`] when it is not what was wrapped for this very version of this key.
    pub(super) fn unwrap_key(
        &self,
        session: &Session<'_>,
        version: &Version,
    ) -> Result<Secret, KeystoreError> {
        let wrapped = self.wrapped(session, version)?;
        let bound = self.bound(session, self.kek, version.number);
        let secret = session.kek(self.kek)?.unwrap_key(&wrapped, &bound).map_err(|error| match error {
            UnwrapError::Forged => KeystoreError::damaged(format!(
                "version {} of key {} is not what was stored",
                version.number, self.facts.id
            )),
            UnwrapError::Memory(error) => error.into(),
        })?;
        if secret.expose().len() as u64 * 8 != u64::from(self.facts.bits) {
            return Err(KeystoreError::damaged(format!("key {} has another length", self.facts.id)));
        }
        Ok(secret.of_kind(self.facts.kind))
    }

    /// Wraps every version under the active KEK instead of the one it is under.
    ///
    /// # Errors
    /// When a version is not what was stored; when the disk or the system fails.
    pub(super) fn rewrap(&mut self, session: &Session<'_>) -> Result<(), KeystoreError> {
        let (active, keys) = session.active_kek();
        let live = self.versions.iter().filter(|version| version.state != KeyState::Destroyed);
        for version in live {
            let secret = self.unwrap_key(session, version)?;
            let wrapped = keys.wrap(secret.expose(), &self.bound(session, active, version.number))?;
            let mut overwrite = session
                .connection
                .prepare_cached("UPDATE material SET nonce = ?2, wrapped = ?3 WHERE id = ?1")?;
            expect_one(overwrite.execute((version.material, wrapped.nonce, &wrapped.ciphertext))?)?;
        }
        self.kek = active;
        session
            .connection
            .prepare_cached("UPDATE key SET kek = ?2 WHERE ordinal = ?1")?
            .execute((self.ordinal, active))?;
        self.save_seal(session)
    }

    /// Gives `principal` a right. Giving it again changes nothing.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn grant(
        &mut self,
        session: &Session<'_>,
        principal: &Principal,
        right: Right,
    ) -> Result<(), KeystoreError> {
        if self.allows(principal, right) {
            return Ok(());
        }
        session
            .connection
            .prepare_cached("INSERT INTO access (key, principal, operation) VALUES (?1, ?2, ?3)")?
            .execute((self.ordinal, principal.to_string(), right.name()))?;
        self.access.push((principal.clone(), right));
        self.access.sort_by_key(written);
        self.save_seal(session)
    }

    /// Takes a right away. Taking it away again changes nothing.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn revoke(
        &mut self,
        session: &Session<'_>,
        principal: &Principal,
        right: Right,
    ) -> Result<(), KeystoreError> {
        session
            .connection
            .prepare_cached("DELETE FROM access WHERE key = ?1 AND principal = ?2 AND operation = ?3")?
            .execute((self.ordinal, principal.to_string(), right.name()))?;
        self.access.retain(|(who, what)| who != principal || *what != right);
        self.save_seal(session)
    }

    fn wrapped(&self, session: &Session<'_>, version: &Version) -> Result<Wrapped, KeystoreError> {
        let mut query =
            session.connection.prepare_cached("SELECT nonce, wrapped FROM material WHERE id = ?1")?;
        let wrapped = query.query_row([version.material], |row| {
            Ok(Wrapped { nonce: row.get(0)?, ciphertext: row.get(1)? })
        })?;
        Ok(wrapped)
    }

    fn save_state(&self, session: &Session<'_>, number: u32, state: KeyState) -> Result<(), KeystoreError> {
        let mut update = session
            .connection
            .prepare_cached("UPDATE version SET state = ?3 WHERE key = ?1 AND version = ?2")?;
        expect_one(update.execute((self.ordinal, number, state.to_string()))?)
    }

    fn save_seal(&self, session: &Session<'_>) -> Result<(), KeystoreError> {
        let seal = self.seal(session)?;
        let mut update = session.connection.prepare_cached("UPDATE key SET seal = ?2 WHERE ordinal = ?1")?;
        expect_one(update.execute((self.ordinal, seal))?)
    }

    /// What a version's wrapping is bound to: everything about it that never changes.
    fn bound(&self, session: &Session<'_>, kek: i64, version: u32) -> Canonical {
        let purpose = Canonical::new("sealblk keystore 1: key material").bytes(&session.store_id);
        self.facts.append_to(purpose).number(version).number(kek)
    }

    fn seal(&self, session: &Session<'_>) -> Result<[u8; SEAL_BYTES], KeystoreError> {
        let purpose = Canonical::new("sealblk keystore 1: key").bytes(&session.store_id);
        let facts = self.facts.append_to(purpose).number(self.ordinal).number(self.kek);
        let facts = self.versions.iter().fold(facts.number(self.versions.len() as i64), |facts, version| {
            let Version { number, state, created, material } = version;
            facts.number(*number).text(&state.to_string()).time(*created).number(*material)
        });
        let facts = self.access.iter().fold(facts.number(self.access.len() as i64), |facts, access| {
            let (principal, right) = access;
            facts.text(&principal.to_string()).text(right.name())
        });
        let keys: &KekKeys = session.kek(self.kek)?;
        Ok(keys.seal(&facts))
    }
}

impl Facts {
    fn append_to(&self, canonical: Canonical) -> Canonical {
        canonical
            .text(&self.id.to_string())
            .optional(self.name.as_deref())
            .text(kind_name(self.kind))
            .number(self.bits)
            .optional(self.volume.as_deref())
            .text(&self.creator.to_string())
    }
}

fn load_versions(session: &Session<'_>, ordinal: i64) -> Result<Vec<Version>, KeystoreError> {
    let mut query = session.connection.prepare_cached(
        "SELECT version, state, created, material FROM version WHERE key = ?1 ORDER BY version",
    )?;
    let mut rows = query.query([ordinal])?;
    let mut versions = Vec::new();
    while let Some(row) = rows.next()? {
        versions.push(Version {
            number: row.get(0)?,
            state: state_from_name(&row.get::<_, String>(1)?)?,
            created: time(row.get(2)?)?,
            material: row.get(3)?,
        });
    }
    Ok(versions)
}

fn load_access(session: &Session<'_>, ordinal: i64) -> Result<Vec<(Principal, Right)>, KeystoreError> {
    let mut query = session.connection.prepare_cached(
        "SELECT principal, operation FROM access WHERE key = ?1 ORDER BY principal, operation",
    )?;
    let mut rows = query.query([ordinal])?;
    let mut access = Vec::new();
    while let Some(row) = rows.next()? {
        let right: String = row.get(1)?;
        let right = right.parse().map_err(|_| KeystoreError::damaged("a right is not written as one"))?;
        access.push((principal(&row.get::<_, String>(0)?)?, right));
    }
    Ok(access)
}

/// What access is sorted by, here and in the table: the bytes of the text.
fn written((principal, right): &(Principal, Right)) -> (String, &'static str) {
    (principal.to_string(), right.name())
}

fn expect_one(changed: usize) -> Result<(), KeystoreError> {
    if changed == 1 { Ok(()) } else { Err(KeystoreError::damaged("a row is missing")) }
}

pub(super) fn kind_name(kind: KeyKind) -> &'static str {
    match kind {
        KeyKind::Symmetric => "symmetric",
        KeyKind::Passphrase => "passphrase",
    }
}

fn kind_from_name(name: &str) -> Result<KeyKind, KeystoreError> {
    let known = [KeyKind::Symmetric, KeyKind::Passphrase].into_iter().find(|kind| kind_name(*kind) == name);
    known.ok_or_else(|| KeystoreError::damaged("a key is of an unknown kind"))
}

fn state_from_name(name: &str) -> Result<KeyState, KeystoreError> {
    let known = [KeyState::Active, KeyState::Deactivated, KeyState::Destroyed]
        .into_iter()
        .find(|state| state.to_string() == name);
    known.ok_or_else(|| KeystoreError::damaged("a key is in an unknown state"))
}
