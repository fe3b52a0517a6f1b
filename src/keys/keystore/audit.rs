//! The audit log: what was done with which key by whom, each entry chained to the one before.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row};
use serde::{Serialize, Serializer};
use uuid::Uuid;

use super::super::Secret;
use super::access::Principal;
use super::canonical::Canonical;
use super::error::KeystoreError;
use super::kek::{SEAL_BYTES, UnwrapError, Wrapped, are_equal, authenticate};
use super::session::{AuditEnd, Session, now, principal, time};

const AUDIT_KEY_BYTES: usize = 32;

/// What happened, or was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AuditEvent {
    /// The keystore was made.
    Initialise,
    /// A key was made.
    Create,
    /// A key that existed elsewhere was put in.
    Store,
    /// A key was given out.
    Fetch,
    /// A key got a new version.
    Rotate,
    /// A key or a version of it was destroyed.
    Destroy,
    /// Somebody was given a right to a key.
    Grant,
    /// Somebody lost a right to a key.
    Revoke,
    /// From here on keys are written under a new KEK.
    KekRotationBegin,
    /// No key is under the old KEK any more.
    KekRotationEnd,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AuditOutcome {
    /// It was done.
    Done,
    /// There is no such key.
    NotFound,
    /// The principal may not do that, or not know of the key.
    NotAllowed,
    /// What is stored is not what was stored.
    Damaged,
}

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditEntry {
    /// Number of the entry, from 1.
    pub seq: u64,
    /// When, by the clock of the machine.
    #[serde(serialize_with = "as_text")]
    pub time: Timestamp,
    /// Who.
    #[serde(serialize_with = "as_text")]
    pub principal: Principal,
    /// What.
    pub event: AuditEvent,
    /// Which key, if one.
    #[serde(serialize_with = "as_optional_text")]
    pub key: Option<Uuid>,
    /// Which version of it, if one.
    pub version: Option<u32>,
    /// More about it.
    pub detail: Option<String>,
    /// What became of it.
    pub outcome: AuditOutcome,
}

/// The end of the audit log at some moment, to be kept elsewhere: a log that does not contain it any more was cut,
/// or went back to an older copy. Written `SEQ:CODE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditAnchor(pub(super) AuditEnd);

/// Text that is no anchor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an anchor is a number, a colon and 64 hexadecimal digits")]
pub struct AnchorError;

/// What is to be written into the log.
pub(super) struct Happening<'a> {
    pub(super) event: AuditEvent,
    pub(super) key: Option<Uuid>,
    pub(super) version: Option<u32>,
    pub(super) detail: Option<&'a str>,
    pub(super) outcome: AuditOutcome,
}

impl Happening<'static> {
    /// Something about the keystore as a whole.
    pub(super) fn done(event: AuditEvent) -> Self {
        Self { event, key: None, version: None, detail: None, outcome: AuditOutcome::Done }
    }
}

impl AuditEvent {
    const ALL: [Self; 10] = [
        Self::Initialise,
        Self::Create,
        Self::Store,
        Self::Fetch,
        Self::Rotate,
        Self::Destroy,
        Self::Grant,
        Self::Revoke,
        Self::KekRotationBegin,
        Self::KekRotationEnd,
    ];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Initialise => "initialise",
            Self::Create => "create",
            Self::Store => "store",
            Self::Fetch => "fetch",
            Self::Rotate => "rotate",
            Self::Destroy => "destroy",
            Self::Grant => "grant",
            Self::Revoke => "revoke",
            Self::KekRotationBegin => "kek-rotation-begin",
            Self::KekRotationEnd => "kek-rotation-end",
        }
    }
}

impl AuditOutcome {
    const ALL: [Self; 4] = [Self::Done, Self::NotFound, Self::NotAllowed, Self::Damaged];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::NotFound => "not-found",
            Self::NotAllowed => "not-allowed",
            Self::Damaged => "damaged",
        }
    }
}

/// Writes a new entry at the end of the log, in the transaction of `session`.
///
/// # Errors
/// When the log does not end where it should; when the disk fails.
pub(super) fn append(session: &mut Session<'_>, happening: &Happening<'_>) -> Result<(), KeystoreError> {
    check_end(session)?;
    let (epoch, _) = session.active_kek();
    let entry = AuditEntry {
        seq: session.audit_end.length as u64 + 1,
        time: now(),
        principal: session.principal.clone(),
        event: happening.event,
        key: happening.key,
        version: happening.version,
        detail: happening.detail.map(str::to_owned),
        outcome: happening.outcome,
    };
    let mac = entry.mac(session, epoch, load_key(session, epoch)?.expose(), &session.audit_end.mac);
    let mut insert = session.connection.prepare_cached(
        "INSERT INTO audit (seq, epoch, time, principal, event, key, version, detail, outcome, mac)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
    )?;
    insert.execute((
        entry.seq as i64,
        epoch,
        entry.time.as_microsecond(),
        entry.principal.to_string(),
        entry.event.name(),
        entry.key.map(|key| key.to_string()),
        entry.version,
        &entry.detail,
        entry.outcome.name(),
        mac,
    ))?;
    session.save_audit_end(AuditEnd { length: entry.seq as i64, mac })
}

/// Visits the entries after number `after`, oldest first, each checked against the one before and the last one
/// against where the log should end.
///
/// # Errors
/// [`KeystoreError::Damaged`] at the first entry that is not what was written, or what `visit` returns.
pub(super) fn walk(
    session: &Session<'_>,
    after: u64,
    mut visit: impl FnMut(AuditEntry, &AuditEnd) -> Result<(), KeystoreError>,
) -> Result<(), KeystoreError> {
    check_end(session)?;
    let mut keys: HashMap<i64, Secret> = HashMap::new();
    let mut end = end_at(session, after)?;
    let mut query = session.connection.prepare_cached(
        "SELECT seq, epoch, time, principal, event, key, version, detail, outcome, mac
         FROM audit WHERE seq > ?1 ORDER BY seq",
    )?;
    let mut rows = query.query([end.length])?;
    while let Some(row) = rows.next()? {
        let (entry, epoch, mac) = AuditEntry::load(row)?;
        if let std::collections::hash_map::Entry::Vacant(vacant) = keys.entry(epoch) {
            vacant.insert(load_key(session, epoch)?);
        }
        let expected = entry.mac(session, epoch, keys[&epoch].expose(), &end.mac);
        if entry.seq != end.length as u64 + 1 || !are_equal(&expected, &mac) {
            return Err(broken(entry.seq));
        }
        end = AuditEnd { length: entry.seq as i64, mac };
        visit(entry, &end)?;
    }
    if end == session.audit_end { Ok(()) } else { Err(broken(end.length as u64 + 1)) }
}

/// Makes the key that codes entries for as long as the active KEK is that.
///
/// # Errors
/// When the disk or the system fails.
pub(super) fn begin_epoch(session: &Session<'_>) -> Result<(), KeystoreError> {
    let (epoch, keys) = session.active_kek();
    let key = Secret::random(AUDIT_KEY_BYTES)?;
    let wrapped = keys.wrap(key.expose(), &bound(session, epoch))?;
    session.connection.execute(
        "INSERT INTO audit_key (epoch, nonce, wrapped) VALUES (?1, ?2, ?3)",
        (epoch, wrapped.nonce, wrapped.ciphertext),
    )?;
    Ok(())
}

/// The keys of all epochs up to now, to be wrapped again by [`rewrap_keys`] under another KEK.
///
/// # Errors
/// When one is not what was stored.
pub(super) fn load_keys(session: &Session<'_>) -> Result<Vec<(i64, Secret)>, KeystoreError> {
    let mut query = session.connection.prepare("SELECT epoch FROM audit_key ORDER BY epoch")?;
    let epochs = query.query_map([], |row| row.get(0))?.collect::<Result<Vec<i64>, _>>()?;
    epochs.into_iter().map(|epoch| Ok((epoch, load_key(session, epoch)?))).collect()
}

/// Wraps the keys of earlier epochs under the KEK that is active now.
///
/// # Errors
/// When the disk or the system fails.
pub(super) fn rewrap_keys(session: &Session<'_>, epochs: &[(i64, Secret)]) -> Result<(), KeystoreError> {
    for (epoch, key) in epochs {
        let wrapped = session.active_kek().1.wrap(key.expose(), &bound(session, *epoch))?;
        session.connection.execute(
            "UPDATE audit_key SET nonce = ?2, wrapped = ?3 WHERE epoch = ?1",
            (epoch, wrapped.nonce, wrapped.ciphertext),
        )?;
    }
    Ok(())
}

fn load_key(session: &Session<'_>, epoch: i64) -> Result<Secret, KeystoreError> {
    let mut query =
        session.connection.prepare_cached("SELECT nonce, wrapped FROM audit_key WHERE epoch = ?1")?;
    let wrapped = query
        .query_row([epoch], |row| Ok(Wrapped { nonce: row.get(0)?, ciphertext: row.get(1)? }))
        .optional()?
        .ok_or_else(|| KeystoreError::damaged("a key of the audit log is missing"))?;
    session.active_kek().1.unwrap_key(&wrapped, &bound(session, epoch)).map_err(|error| match error {
        UnwrapError::Forged => KeystoreError::damaged("a key of the audit log is not what was stored"),
        UnwrapError::Memory(error) => error.into(),
    })
}

fn bound(session: &Session<'_>, epoch: i64) -> Canonical {
    let (kek, _) = session.active_kek();
    Canonical::new("sealblk keystore 1: audit key").bytes(&session.store_id).number(epoch).number(kek)
}

/// Notices entries that are missing at the end, without reading the others.
fn check_end(session: &Session<'_>) -> Result<(), KeystoreError> {
    let mut query =
        session.connection.prepare_cached("SELECT seq, mac FROM audit ORDER BY seq DESC LIMIT 1")?;
    let last = query
        .query_row([], |row| Ok(AuditEnd { length: row.get(0)?, mac: row.get(1)? }))
        .optional()?
        .unwrap_or(AuditEnd { length: 0, mac: [0; SEAL_BYTES] });
    if last == session.audit_end {
        return Ok(());
    }
    Err(KeystoreError::damaged(format!(
        "the audit log has to end with entry {}, and ends with {}",
        session.audit_end.length, last.length
    )))
}

/// The end as it was when the log had `length` entries, or as it is, if it has fewer.
fn end_at(session: &Session<'_>, length: u64) -> Result<AuditEnd, KeystoreError> {
    let length = i64::try_from(length).unwrap_or(i64::MAX).min(session.audit_end.length);
    if length == 0 {
        return Ok(AuditEnd { length: 0, mac: [0; SEAL_BYTES] });
    }
    let mut query = session.connection.prepare_cached("SELECT mac FROM audit WHERE seq = ?1")?;
    let mac = query.query_row([length], |row| row.get(0)).optional()?;
    mac.map(|mac| AuditEnd { length, mac }).ok_or_else(|| broken(length as u64))
}

fn broken(seq: u64) -> KeystoreError {
    KeystoreError::damaged(format!("the chain of the audit log breaks at entry {seq}"))
}

impl AuditEntry {
    fn mac(&self, session: &Session<'_>, epoch: i64, key: &[u8], before: &[u8]) -> [u8; SEAL_BYTES] {
        let key_id = self.key.map(|key| key.to_string());
        let version = self.version.map(|version| version.to_string());
        let facts = Canonical::new("sealblk keystore 1: audit entry")
            .bytes(&session.store_id)
            .bytes(before)
            .number(self.seq as i64)
            .number(epoch)
            .time(self.time)
            .text(&self.principal.to_string())
            .text(self.event.name())
            .optional(key_id.as_deref())
            .optional(version.as_deref())
            .optional(self.detail.as_deref())
            .text(self.outcome.name());
        authenticate(key, &facts)
    }

    fn load(row: &Row<'_>) -> Result<(Self, i64, [u8; SEAL_BYTES]), KeystoreError> {
        let seq: i64 = row.get(0)?;
        let unknown = || broken(seq as u64);
        let (event, outcome): (String, String) = (row.get(4)?, row.get(8)?);
        let key: Option<String> = row.get(5)?;
        let entry = Self {
            seq: seq as u64,
            time: time(row.get(2)?)?,
            principal: principal(&row.get::<_, String>(3)?)?,
            event: AuditEvent::ALL.into_iter().find(|known| known.name() == event).ok_or_else(unknown)?,
            key: key.map(|key| Uuid::parse_str(&key)).transpose().map_err(|_| unknown())?,
            version: row.get(6)?,
            detail: row.get(7)?,
            outcome: AuditOutcome::ALL
                .into_iter()
                .find(|known| known.name() == outcome)
                .ok_or_else(unknown)?,
        };
        Ok((entry, row.get(1)?, row.get(9)?))
    }
}

impl fmt::Display for AuditAnchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0.length, base16ct::lower::encode_string(&self.0.mac))
    }
}

impl FromStr for AuditAnchor {
    type Err = AnchorError;

    fn from_str(text: &str) -> Result<Self, AnchorError> {
        let (length, code) = text.split_once(':').ok_or(AnchorError)?;
        let length: u32 = length.parse().map_err(|_| AnchorError)?;
        let mut mac = [0; SEAL_BYTES];
        match base16ct::lower::decode(code, &mut mac) {
            Ok(decoded) if decoded.len() == SEAL_BYTES => {
                Ok(Self(AuditEnd { length: i64::from(length), mac }))
            }
            _ => Err(AnchorError),
        }
    }
}

fn as_text<S: Serializer>(value: &impl fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn as_optional_text<S: Serializer>(
    value: &Option<impl fmt::Display>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    value.as_ref().map(ToString::to_string).serialize(serializer)
}
