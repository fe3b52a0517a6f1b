//! Changing the key-encryption key, while the keystore is in use.

use super::super::Secret;
use super::Keystore;
use super::audit::{self, AuditEvent, Happening};
use super::error::KeystoreError;
use super::kek::{KekState, Keyring};
use super::operations::check_administrator;
use super::record::Record;
use super::session::Session;

/// Keys that are rewrapped in one transaction: others wait no longer than that takes.
const BATCH_KEYS: u32 = 100;

/// What a rotation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KekRotation {
    /// Keys that were moved to the new KEK by this call.
    pub rewrapped_keys: u64,
}

impl Keystore {
    /// Moves every key under the KEK `new`, and retires the one before. `progress` is told how many are moved so far.
    /// Administrator only.
    ///
    /// Others go on using the keystore meanwhile, given both KEKs. It takes many small transactions: after a crash,
    /// calling it again with the same `new` goes on, also when all was done already.
    ///
    /// # Errors
    /// See [`KeystoreError`]; after [`KeystoreError::NotYetWiped`] the rotation is done.
    pub fn rotate_kek(
        &self,
        new: Secret,
        mut progress: impl FnMut(u64),
    ) -> Result<KekRotation, KeystoreError> {
        self.lock().ring.add(new)?;
        self.write(|session, ring| Ok(begin(session, ring)?))?;
        let mut rewrapped_keys = 0;
        loop {
            match self.write(|session, _| Ok(rewrap_some(session)?))? {
                0 => break,
                batch => rewrapped_keys += batch,
            }
            progress(rewrapped_keys);
        }
        self.write(|session, _| Ok(end(session)?))?;
        self.wipe_log()?;
        Ok(KekRotation { rewrapped_keys })
    }
}

/// Makes the KEK that was added to `ring` last the active one, unless it is already.
fn begin(session: &mut Session<'_>, ring: &mut Keyring) -> Result<(), KeystoreError> {
    check_administrator(session)?;
    if let Some(row) = ring.row_of_last(session.keks())? {
        return match row.state {
            KekState::Active => Ok(()),
            KekState::Retiring => Err(unfinished()),
            KekState::Retired => Err(KeystoreError::Kek {
                problem: "the new KEK was in use before, and retired".to_owned(),
                remedy: "make a new one".to_owned(),
            }),
        };
    }
    if session.keks().iter().any(|row| row.state == KekState::Retiring) {
        return Err(unfinished());
    }
    let audit_keys = audit::load_keys(session)?;
    let last = session.keks().iter().map(|row| row.id).max().expect("there is an active one");
    let row = ring.row_for_last(last + 1)?;
    let keys = ring.keys(&row)?.expect("the row was made of a key of this ring");
    audit::append(session, &Happening::done(AuditEvent::KekRotationBegin))?;
    session.begin_rotation(row, keys)?;
    audit::rewrap_keys(session, &audit_keys)?;
    audit::begin_epoch(session)
}

/// Rewraps a few keys and says how many.
fn rewrap_some(session: &mut Session<'_>) -> Result<u64, KeystoreError> {
    let Some((retiring, _)) = session.retiring_kek()? else { return Ok(0) };
    let mut records = Record::under_kek(session, retiring, BATCH_KEYS)?;
    for record in &mut records {
        record.rewrap(session)?;
    }
    Ok(records.len() as u64)
}

/// Retires the old KEK, unless that is done already.
fn end(session: &mut Session<'_>) -> Result<(), KeystoreError> {
    let Some((retiring, _)) = session.retiring_kek()? else { return Ok(()) };
    session.end_rotation(retiring)?;
    audit::append(session, &Happening::done(AuditEvent::KekRotationEnd))
}

fn unfinished() -> KeystoreError {
    KeystoreError::Kek {
        problem: "a rotation to another KEK is not finished".to_owned(),
        remedy: "finish that one first, by rotating to that KEK again".to_owned(),
    }
}
