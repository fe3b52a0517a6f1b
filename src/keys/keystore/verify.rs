//! Checking a whole keystore.

use std::collections::{BTreeSet, HashMap};

use uuid::Uuid;

use super::super::KeyState;
use super::Keystore;
use super::access::{Principal, Right};
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

/// What the audit log says that the keys are.
type History = HashMap<Uuid, Past>;

/// A key, as the audit log has it.
#[derive(PartialEq, Eq)]
struct Past {
    /// Of its versions, oldest first.
    states: Vec<KeyState>,
    access: BTreeSet<(Principal, Right)>,
}

impl Keystore {
    /// Checks the file, decrypts every version of every key, walks the whole audit log, and compares it with the keys and
    /// with who may do what.
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
                let states = record.versions.iter().map(|version| version.state).collect();
                let access = record.access().iter().cloned().collect();
                if history.remove(&record.facts.id) != Some(Past { states, access }) {
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
    let Some(key) = entry.key else { return Ok(()) };
    if matches!(entry.event, AuditEvent::Create | AuditEvent::Store) {
        let access = Right::ALL.map(|right| (entry.principal.clone(), right));
        history.insert(key, Past { states: vec![KeyState::Active], access: access.into() });
        return Ok(());
    }
    let past = history.get_mut(&key).ok_or_else(impossible)?;
    match entry.event {
        AuditEvent::Rotate => {
            if let Some(state) = past.states.last_mut().filter(|state| **state == KeyState::Active) {
                *state = KeyState::Deactivated;
            }
            past.states.push(KeyState::Active);
        }
        AuditEvent::Destroy => match entry.version {
            None => past.states.fill(KeyState::Destroyed),
            Some(version) => {
                let index = (version as usize).checked_sub(1).ok_or_else(impossible)?;
                *past.states.get_mut(index).ok_or_else(impossible)? = KeyState::Destroyed;
            }
        },
        AuditEvent::Grant => {
            past.access.insert(whose(entry).ok_or_else(impossible)?);
        }
        AuditEvent::Revoke => {
            past.access.remove(&whose(entry).ok_or_else(impossible)?);
        }
        _ => {}
    }
    Ok(())
}

/// The right that an entry is about, and who was given it or lost it.
fn whose(entry: &AuditEntry) -> Option<(Principal, Right)> {
    let (principal, right) = entry.detail.as_deref()?.split_once(' ')?;
    Some((principal.parse().ok()?, right.parse().ok()?))
}
