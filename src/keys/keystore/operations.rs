//! What is done with keys: each function is one transaction and at least one entry of the audit log.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::super::{KeyId, KeyMetadata, KeySpec, KeyState, Secret, fit_to_rotate};
use super::access::{Principal, Right};
use super::audit::{self, AuditAnchor, AuditEntry, AuditEvent, AuditOutcome, Happening};
use super::error::KeystoreError;
use super::record::{Facts, Record, Version};
use super::session::{Session, now};
use super::{Keystore, Stop};

/// A key, or one version of it, as it was asked for.
#[derive(Clone, Copy)]
struct Wanted {
    id: Uuid,
    version: Option<u32>,
}

impl Keystore {
    /// Gives out a key: its newest version, or the one that `id` names. The audit log says so before that.
    ///
    /// # Errors
    /// See [`KeystoreError`].
    pub fn fetch_key(&self, id: &KeyId) -> Result<Secret, KeystoreError> {
        let wanted = Wanted::parse(id)?;
        self.write(|session, _| {
            let record = authorised(session, wanted, Right::Fetch, AuditEvent::Fetch)?;
            let Some(version) = record.version(wanted.version) else {
                return Err(refuse(
                    session,
                    AuditEvent::Fetch,
                    wanted,
                    AuditOutcome::NotFound,
                    no_version(&record),
                ));
            };
            let wanted = Wanted { version: Some(version.number), ..wanted };
            if version.state == KeyState::Destroyed {
                let error = destroyed(version.number);
                return Err(refuse(session, AuditEvent::Fetch, wanted, AuditOutcome::NotFound, error));
            }
            match record.unwrap_key(session, version) {
                Ok(secret) => {
                    audit::append(session, &wanted.happening(AuditEvent::Fetch, AuditOutcome::Done))?;
                    Ok(secret)
                }
                Err(error @ KeystoreError::Damaged { .. }) => {
                    Err(refuse(session, AuditEvent::Fetch, wanted, AuditOutcome::Damaged, error))
                }
                Err(error) => Err(error.into()),
            }
        })
    }

    /// Makes a new random key. A passphrase gets one of 64 characters for every 8 bits of its length.
    ///
    /// # Errors
    /// See [`KeystoreError`].
    pub fn create_key(&self, spec: &KeySpec) -> Result<KeyMetadata, KeystoreError> {
        spec.fit(None)?;
        self.add(spec, &spec.kind.random(spec.bits)?, AuditEvent::Create)
    }

    /// Puts in a key that there is already.
    ///
    /// # Errors
    /// See [`KeystoreError`]; [`KeystoreError::Malformed`] when `material` does not have the bits of `spec`.
    pub fn store_key(&self, spec: &KeySpec, material: &Secret) -> Result<KeyMetadata, KeystoreError> {
        spec.fit(Some(material))?;
        self.add(spec, material, AuditEvent::Store)
    }

    fn add(
        &self,
        spec: &KeySpec,
        material: &Secret,
        event: AuditEvent,
    ) -> Result<KeyMetadata, KeystoreError> {
        self.write(|session, _| {
            if let Some(name) = &spec.name
                && is_taken(session, name)?
            {
                return Err(KeystoreError::NotAllowed {
                    problem: "there is a key of this name already".to_owned(),
                    remedy: "choose another name, or destroy that key".to_owned(),
                }
                .into());
            }
            let facts = Facts {
                id: Uuid::new_v4(),
                name: spec.name.clone(),
                kind: spec.kind,
                bits: spec.bits,
                volume: spec.volume.clone(),
                creator: session.principal.clone(),
            };
            let wanted = Wanted { id: facts.id, version: Some(1) };
            let record = Record::create(session, facts, material, now())?;
            audit::append(session, &wanted.happening(event, AuditOutcome::Done))?;
            Ok(newest(&record))
        })
    }

    /// The newest version of each key that the principal may see, in the order of creation.
    ///
    /// # Errors
    /// See [`KeystoreError`].
    pub fn list_keys(&self) -> Result<Vec<KeyMetadata>, KeystoreError> {
        self.read(|session| {
            let mut keys = Vec::new();
            Record::each(session, |record| {
                if record.is_visible_to(session.principal) {
                    keys.push(newest(&record));
                }
                Ok(())
            })?;
            Ok(keys)
        })
    }

    /// What is known of a key: of its newest version, or the one that `id` names.
    ///
    /// # Errors
    /// See [`KeystoreError`].
    pub fn key_metadata(&self, id: &KeyId) -> Result<KeyMetadata, KeystoreError> {
        let wanted = Wanted::parse(id)?;
        self.read(|session| {
            let record = visible(session, wanted)?;
            let version = record.version(wanted.version).ok_or_else(|| no_version(&record))?;
            Ok(metadata(&record, version))
        })
    }

    /// Makes a new random version of a key, which a plain reference means from then on.
    ///
    /// # Errors
    /// See [`KeystoreError`].
    pub fn rotate_key(&self, id: &KeyId) -> Result<KeyMetadata, KeystoreError> {
        let wanted = Wanted::parse(id)?;
        fit_to_rotate(id)?;
        self.write(|session, _| {
            let mut record = authorised(session, wanted, Right::Rotate, AuditEvent::Rotate)?;
            if record.is_destroyed() {
                let error = destroyed(record.versions.len() as u32);
                return Err(refuse(session, AuditEvent::Rotate, wanted, AuditOutcome::NotFound, error));
            }
            let material = record.facts.kind.random(record.facts.bits)?;
            record.append_version(session, &material, now())?;
            let metadata = newest(&record);
            let wanted = Wanted { version: Some(metadata.version), ..wanted };
            audit::append(session, &wanted.happening(AuditEvent::Rotate, AuditOutcome::Done))?;
            Ok(metadata)
        })
    }

    /// Destroys a key, or the version of it that `id` names, and overwrites what is left of it in the file and its log.
    /// Destroying again is no error, and overwrites again.
    ///
    /// # Errors
    /// See [`KeystoreError`]; after [`KeystoreError::NotYetWiped`] the key is destroyed.
    pub fn destroy_key(&self, id: &KeyId) -> Result<(), KeystoreError> {
        let wanted = Wanted::parse(id)?;
        self.write(|session, _| {
            let mut record = authorised(session, wanted, Right::Destroy, AuditEvent::Destroy)?;
            let numbers: Vec<u32> = match wanted.version {
                None => record.versions.iter().map(|version| version.number).collect(),
                Some(number) if record.version(Some(number)).is_some() => vec![number],
                Some(_) => {
                    let error = no_version(&record);
                    return Err(refuse(session, AuditEvent::Destroy, wanted, AuditOutcome::NotFound, error));
                }
            };
            for number in numbers {
                record.destroy_version(session, number)?;
            }
            audit::append(session, &wanted.happening(AuditEvent::Destroy, AuditOutcome::Done))?;
            Ok(())
        })?;
        self.wipe_log()
    }

    /// Who may do what with a whole key, to whoever may see it and to the administrator.
    ///
    /// # Errors
    /// See [`KeystoreError`].
    pub fn access(&self, id: &KeyId) -> Result<BTreeSet<(Principal, Right)>, KeystoreError> {
        let wanted = Wanted::whole_key(id)?;
        self.read(|session| {
            let record = if *session.principal == session.administrator {
                Record::find(session, wanted.id)?.ok_or_else(no_key)?
            } else {
                visible(session, wanted)?
            };
            Ok(record.access().iter().cloned().collect())
        })
    }

    /// Gives `principal` rights to a whole key, all or none of them, and returns those that it has then. The
    /// administrator may do it with every key.
    ///
    /// # Errors
    /// See [`KeystoreError`].
    pub fn grant(
        &self,
        id: &KeyId,
        principal: &Principal,
        rights: &BTreeSet<Right>,
    ) -> Result<BTreeSet<Right>, KeystoreError> {
        self.change_access(id, principal, rights, AuditEvent::Grant, Record::grant)
    }

    /// Takes rights to a whole key away from `principal`, all or none of them, and returns those that are left. They
    /// may be the caller's own, and the last that anybody has: the administrator can give them again.
    ///
    /// # Errors
    /// See [`KeystoreError`].
    pub fn revoke(
        &self,
        id: &KeyId,
        principal: &Principal,
        rights: &BTreeSet<Right>,
    ) -> Result<BTreeSet<Right>, KeystoreError> {
        self.change_access(id, principal, rights, AuditEvent::Revoke, Record::revoke)
    }

    fn change_access(
        &self,
        id: &KeyId,
        principal: &Principal,
        rights: &BTreeSet<Right>,
        event: AuditEvent,
        change: impl Fn(&mut Record, &Session<'_>, &Principal, Right) -> Result<(), KeystoreError>,
    ) -> Result<BTreeSet<Right>, KeystoreError> {
        let wanted = Wanted::whole_key(id)?;
        self.write(|session, _| {
            // Once for all rights: whoever gives up `grant` with others could not give up the others after it.
            let mut record = authorised(session, wanted, Right::Grant, event)?;
            for right in rights {
                change(&mut record, session, principal, *right)?;
                let detail = format!("{principal} {right}");
                let happening = wanted.happening(event, AuditOutcome::Done);
                audit::append(session, &Happening { detail: Some(&detail), ..happening })?;
            }
            Ok(Right::ALL.into_iter().filter(|right| record.allows(principal, *right)).collect())
        })
    }

    /// Visits the entries of the audit log after number `after`, oldest first, each checked. Administrator only.
    ///
    /// # Errors
    /// See [`KeystoreError`].
    pub fn each_audit_entry(
        &self,
        after: u64,
        mut visit: impl FnMut(AuditEntry),
    ) -> Result<AuditAnchor, KeystoreError> {
        self.read(|session| {
            check_administrator(session)?;
            audit::walk(session, after, |entry, _| {
                visit(entry);
                Ok(())
            })?;
            Ok(AuditAnchor(session.audit_end))
        })
    }
}

impl Wanted {
    fn parse(id: &KeyId) -> Result<Self, KeystoreError> {
        Ok(Self { id: Uuid::parse_str(id.name()).map_err(|_| no_key())?, version: id.version() })
    }

    /// Rights are to all versions of a key.
    fn whole_key(id: &KeyId) -> Result<Self, KeystoreError> {
        let wanted = Self::parse(id)?;
        if wanted.version.is_some() {
            return Err(malformed("rights are to a whole key", "leave out the version"));
        }
        Ok(wanted)
    }

    fn happening(self, event: AuditEvent, outcome: AuditOutcome) -> Happening<'static> {
        Happening { event, key: Some(self.id), version: self.version, detail: None, outcome }
    }
}

/// # Errors
/// When the principal is not the one who made the keystore.
pub(super) fn check_administrator(session: &Session<'_>) -> Result<(), KeystoreError> {
    if *session.principal == session.administrator {
        return Ok(());
    }
    Err(KeystoreError::NotAllowed {
        problem: format!("{} does not administer the keystore", session.principal),
        remedy: format!("ask as {}", session.administrator),
    })
}

/// The key, if the principal has `right` to it. What is refused is in the audit log.
fn authorised(
    session: &mut Session<'_>,
    wanted: Wanted,
    right: Right,
    event: AuditEvent,
) -> Result<Record, Stop> {
    let record = match Record::find(session, wanted.id) {
        Err(error @ KeystoreError::Damaged { .. }) => {
            return Err(refuse(session, event, wanted, AuditOutcome::Damaged, error));
        }
        found => found?,
    };
    let Some(record) = record else {
        return Err(refuse(session, event, wanted, AuditOutcome::NotFound, no_key()));
    };
    let administers = right == Right::Grant && *session.principal == session.administrator;
    if administers || record.allows(session.principal, right) {
        return Ok(record);
    }
    let error = if record.is_visible_to(session.principal) {
        KeystoreError::NotAllowed {
            problem: format!("{} may not {right} it", session.principal),
            remedy: "ask whoever made the key for the right".to_owned(),
        }
    } else {
        no_key()
    };
    Err(refuse(session, event, wanted, AuditOutcome::NotAllowed, error))
}

/// Puts the refusal into the audit log.
fn refuse(
    session: &mut Session<'_>,
    event: AuditEvent,
    wanted: Wanted,
    outcome: AuditOutcome,
    error: KeystoreError,
) -> Stop {
    match audit::append(session, &wanted.happening(event, outcome)) {
        Ok(()) => Stop::Refused(error),
        Err(error) => Stop::Failed(error),
    }
}

fn visible(session: &Session<'_>, wanted: Wanted) -> Result<Record, KeystoreError> {
    let record = Record::find(session, wanted.id)?;
    record.filter(|record| record.is_visible_to(session.principal)).ok_or_else(no_key)
}

/// Whether the principal has made a key of this name that is not destroyed. Those of others do not count: the answer
/// would tell of them.
fn is_taken(session: &Session<'_>, name: &str) -> Result<bool, KeystoreError> {
    let mut query = session.connection.prepare_cached(
        "SELECT EXISTS (
             SELECT 1 FROM key JOIN version ON version.key = key.ordinal
             WHERE key.creator = ?1 AND key.name = ?2 AND version.state <> ?3
         )",
    )?;
    let destroyed = KeyState::Destroyed.to_string();
    Ok(query.query_row((session.principal.to_string(), name, destroyed), |row| row.get(0))?)
}

pub(super) fn newest(record: &Record) -> KeyMetadata {
    metadata(record, record.version(None).expect("a key without versions is not loaded"))
}

fn metadata(record: &Record, version: &Version) -> KeyMetadata {
    KeyMetadata {
        id: KeyId::new(record.facts.id.to_string()),
        version: version.number,
        name: record.facts.name.clone(),
        kind: record.facts.kind,
        bits: record.facts.bits,
        state: version.state,
        volume: record.facts.volume.clone(),
        created: Some(version.created),
    }
}

fn no_key() -> KeystoreError {
    KeystoreError::NotFound {
        remedy: "list the keys, each called by its UUID, and correct the reference".to_owned(),
    }
}

fn no_version(record: &Record) -> KeystoreError {
    KeystoreError::NotFound { remedy: format!("it has versions up to {}", record.versions.len()) }
}

fn destroyed(version: u32) -> KeystoreError {
    KeystoreError::NotFound { remedy: format!("version {version} was destroyed, for good") }
}

fn malformed(problem: &str, remedy: &str) -> KeystoreError {
    KeystoreError::Malformed { problem: problem.to_owned(), remedy: remedy.to_owned() }
}
