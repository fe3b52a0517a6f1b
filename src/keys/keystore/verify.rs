//! Checking a whole keystore.

use std::collections::HashMap;

use uuid::Uuid;

use super::super::KeyState;
use super::Keystore;
use super::audit::{self, AuditAnchor, AuditEntry, AuditEvent, AuditOutcome};
use super::error::KeystoreError;
use super::record::Record;
use super::session::Session;

/// What was found in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Keys, destroyed ones included.
    pub keys: u64,
    /// Versions whose material was decrypted.
    pub versions: u64,
    /// Where the audit log ends: to be kept elsewhere, and given to the next check.
    pub end: AuditAnchor,
}

/// The states of a key's versions, oldest first, as the audit log has them.
type History = HashMap<Uuid, Vec<KeyState>>;

impl Keystore {
    /// Checks the file, decrypts every version of every key, walks the whole audit log, and compares the two.
    ///
    /// `earlier` is the end of the log at an earlier check. With it, a keystore that was replaced by an older copy of itself
    /// is noticed, if the copy is from before that check. Without it, or for copies made since, nothing in the file
    /// can tell.
    ///
    /// # Errors
    /// See [`KeystoreError`].
    pub fn verify(&self, earlier: Option<&AuditAnchor>) -> Result<Verified, KeystoreError> {
        self.read(|session| {
            check_file(session)?;
            let mut history = read_history(session, earlier)?;
            let (mut keys, mut versions) = (0, 0);
            Record::each(session, |record| {
                let states: Vec<KeyState> = record.versions.iter().map(|version| version.state).collect();
                if history.remove(&record.facts.id) != Some(states) {
                    return Err(KeystoreError::damaged(format!(
                        "key {} is not as the audit log says",
                        record.facts.id
                    )));
                }
                keys += 1;
                for version in record.versions.iter().filter(|version| version.state != KeyState::Destroyed) {
                    record.unwrap_key(session, version)?;
                    versions += 1;
                }
                Ok(())
            })?;
            match history.into_keys().next() {
                Some(id) => Err(KeystoreError::damaged(format!("key {id} is gone"))),
                None => Ok(Verified { keys, versions, end: AuditAnchor(session.audit_end) }),
            }
        })
    }
}

fn check_file(session: &Session<'_>) -> Result<(), KeystoreError> {
    let finding: String = session.connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if finding != "ok" {
        return Err(KeystoreError::damaged(finding));
    }
    if session.connection.prepare("PRAGMA foreign_key_check")?.exists([])? {
        return Err(KeystoreError::damaged("a row belongs to another one that is missing"));
    }
    Ok(())
}

/// What the audit log says that the keys are.
fn read_history(session: &Session<'_>, earlier: Option<&AuditAnchor>) -> Result<History, KeystoreError> {
    let mut history = History::new();
    let mut has_passed = earlier.is_none_or(|anchor| anchor.0.length == 0);
    audit::walk(session, 0, |entry, end| {
        if earlier.is_some_and(|anchor| anchor.0 == *end) {
            has_passed = true;
        }
        if entry.outcome == AuditOutcome::Done { replay(&mut history, &entry) } else { Ok(()) }
    })?;
    if has_passed {
        return Ok(history);
    }
    Err(KeystoreError::damaged(
        "the audit log does not contain the given anchor: entries are missing, or the file is an older copy",
    ))
}

fn replay(history: &mut History, entry: &AuditEntry) -> Result<(), KeystoreError> {
    let impossible = || KeystoreError::damaged(format!("entry {} of the audit log cannot be", entry.seq));
    let number = |version: Option<u32>| version.map(|version| version as usize);
    match (entry.event, entry.key) {
        (AuditEvent::Create | AuditEvent::Store, Some(key)) => {
            history.insert(key, vec![KeyState::Active]);
        }
        (AuditEvent::Rotate, Some(key)) => {
            let states = history.get_mut(&key).ok_or_else(impossible)?;
            if let Some(state) = states.last_mut().filter(|state| **state == KeyState::Active) {
                *state = KeyState::Deactivated;
            }
            states.push(KeyState::Active);
        }
        (AuditEvent::Destroy, Some(key)) => {
            let states = history.get_mut(&key).ok_or_else(impossible)?;
            match number(entry.version) {
                None => states.fill(KeyState::Destroyed),
                Some(version) => {
                    let index = version.checked_sub(1).ok_or_else(impossible)?;
                    *states.get_mut(index).ok_or_else(impossible)? = KeyState::Destroyed;
                }
            }
        }
        _ => {}
    }
    Ok(())
}
