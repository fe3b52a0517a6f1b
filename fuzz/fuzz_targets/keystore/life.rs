//! What may be done with keys, and a model of what comes of it.

use std::collections::BTreeSet;

use arbitrary::Arbitrary;
use sealblk::keys::keystore::{
    AuditAnchor, AuditEntry, AuditEvent, AuditOutcome, Keystore, KeystoreError, Principal, Right,
};
use sealblk::keys::{KeyId, KeyKind, KeyMetadata, KeySpec, KeyState};

use crate::{Stores, kek, principal, secret};

/// The administrator, and somebody else.
pub const PRINCIPALS: usize = 2;
const KEYS_MAX: usize = 6;
const VERSIONS_MAX: usize = 5;
const KEKS_MAX: u8 = 2;
const NAMES: [&str; 2] = ["disk", "backup"];

#[derive(Arbitrary, Clone, Debug)]
pub enum Action {
    Create { who: bool, is_text: bool, bytes: u8, name: Option<bool>, has_volume: bool },
    Store { who: bool, fill: u8, bytes: u8, name: Option<bool> },
    Fetch { who: bool, key: u8, version: Option<u8> },
    Rotate { who: bool, key: u8, version: Option<u8> },
    Destroy { who: bool, key: u8, version: Option<u8> },
    Grant { who: bool, key: u8, to: bool, rights: u8 },
    Revoke { who: bool, key: u8, from: bool, rights: u8 },
    RotateKek { who: bool },
}

/// What every keystore of this target has behind it.
pub fn history() -> Vec<Action> {
    let (us, other) = (false, true);
    vec![
        Action::Store { who: us, fill: 1, bytes: 64, name: Some(false) },
        Action::Store { who: us, fill: 2, bytes: 64, name: None },
        Action::Store { who: other, fill: 3, bytes: 64, name: Some(false) },
        Action::Rotate { who: us, key: 0, version: None },
        Action::Fetch { who: us, key: 0, version: None },
        Action::Rotate { who: us, key: 1, version: None },
        Action::Fetch { who: us, key: 1, version: None },
        Action::Destroy { who: us, key: 1, version: Some(1) },
        Action::Grant { who: us, key: 0, to: other, rights: 0b0001 },
        Action::Grant { who: us, key: 0, to: other, rights: 0b0010 },
        Action::Revoke { who: us, key: 0, from: other, rights: 0b0010 },
    ]
}

#[derive(Clone, Debug)]
pub struct Version {
    pub state: KeyState,
    metadata: KeyMetadata,
    /// As soon as it was seen.
    material: Option<Vec<u8>>,
}

impl Version {
    pub fn is_destroyed(&self) -> bool {
        self.state == KeyState::Destroyed
    }
}

#[derive(Clone, Debug)]
pub struct Key {
    pub id: KeyId,
    pub versions: Vec<Version>,
    name: Option<String>,
    creator: usize,
    access: BTreeSet<(usize, Right)>,
}

impl Key {
    pub fn is_visible_to(&self, who: usize) -> bool {
        self.access.iter().any(|(principal, _)| *principal == who)
    }

    pub fn access(&self) -> BTreeSet<(Principal, Right)> {
        self.access.iter().map(|(who, right)| (principal(*who), *right)).collect()
    }

    fn index(&self, version: Option<u32>) -> Option<usize> {
        match version {
            Some(number) => (number as usize).checked_sub(1).filter(|index| *index < self.versions.len()),
            None => self.versions.len().checked_sub(1),
        }
    }

    pub fn metadata(&self, version: Option<u32>) -> Option<KeyMetadata> {
        let version = &self.versions[self.index(version)?];
        Some(KeyMetadata { state: version.state, ..version.metadata.clone() })
    }

    /// Whether `who` is to be given a version.
    pub fn is_given_to(&self, who: usize, version: Option<u32>) -> bool {
        let is_there = self.index(version).is_some_and(|index| !self.versions[index].is_destroyed());
        is_there && self.access.contains(&(who, Right::Fetch))
    }

    /// The bytes of a version, if they were seen.
    pub fn material(&self, version: Option<u32>) -> Option<&[u8]> {
        self.versions[self.index(version)?].material.as_deref()
    }

    /// The plain reference, and each version by number. Those that there are not are met by actions.
    pub fn references(&self) -> impl Iterator<Item = (KeyId, Option<u32>)> {
        let numbers = (1..=self.versions.len() as u32).map(Some);
        [None].into_iter().chain(numbers).map(|version| match version {
            Some(number) => (self.id.clone().with_version(number), version),
            None => (self.id.clone(), None),
        })
    }
}

/// An entry of the log, apart from its time.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Noted {
    who: usize,
    event: AuditEvent,
    key: Option<KeyId>,
    version: Option<u32>,
    detail: Option<String>,
    outcome: AuditOutcome,
}

#[derive(Clone, Debug)]
pub struct Model {
    /// Number of the KEK in use.
    pub kek: u8,
    pub keys: Vec<Key>,
    /// As it was read when nobody had damaged anything.
    pub log: Vec<AuditEntry>,
    pub anchor: Option<AuditAnchor>,
    noted: Vec<Noted>,
}

impl Model {
    pub fn new() -> Self {
        let mut model = Self { kek: 0, keys: Vec::new(), log: Vec::new(), anchor: None, noted: Vec::new() };
        model.note_store(AuditEvent::Initialise);
        model
    }

    /// Does it, and checks what comes of it. Returns whether the keystore has to be opened anew.
    pub fn act(&mut self, action: &Action, stores: &mut Stores) -> bool {
        match action {
            Action::Create { who, is_text, bytes, name, has_volume } => {
                let spec = KeySpec {
                    name: name.map(|name| NAMES[usize::from(name)].to_owned()),
                    kind: if *is_text { KeyKind::Passphrase } else { KeyKind::Symmetric },
                    bits: 8 * u32::from(*bytes),
                    volume: has_volume.then(|| "volume".to_owned()),
                };
                let who = usize::from(*who);
                self.add(who, spec, None, &stores[who]);
            }
            Action::Store { who, fill, bytes, name } => {
                let spec = KeySpec {
                    name: name.map(|name| NAMES[usize::from(name)].to_owned()),
                    kind: KeyKind::Symmetric,
                    bits: 8 * u32::from(*bytes),
                    volume: None,
                };
                let who = usize::from(*who);
                self.add(who, spec, Some(vec![*fill; usize::from(*bytes)]), &stores[who]);
            }
            Action::Fetch { who, key, version } => self.fetch(usize::from(*who), *key, *version, stores),
            Action::Rotate { who, key, version } => self.rotate(usize::from(*who), *key, *version, stores),
            Action::Destroy { who, key, version } => self.destroy(usize::from(*who), *key, *version, stores),
            Action::Grant { who, key, to, rights } => {
                self.change_access(AuditEvent::Grant, [*who, *to], *key, *rights, stores);
            }
            Action::Revoke { who, key, from, rights } => {
                self.change_access(AuditEvent::Revoke, [*who, *from], *key, *rights, stores);
            }
            Action::RotateKek { who } if self.kek < KEKS_MAX => {
                let rotated = stores[usize::from(*who)].rotate_kek(kek(self.kek + 1), |_| {});
                assert_eq!(rotated.is_ok(), !who, "{:?}", rotated.err());
                if !who {
                    self.note_store(AuditEvent::KekRotationBegin);
                    self.note_store(AuditEvent::KekRotationEnd);
                    self.kek += 1;
                }
                return true;
            }
            Action::RotateKek { .. } => {}
        }
        false
    }

    fn add(&mut self, who: usize, spec: KeySpec, material: Option<Vec<u8>>, store: &Keystore) {
        if self.keys.len() >= KEYS_MAX {
            return;
        }
        let is_taken = |key: &Key| {
            key.creator == who && key.name == spec.name && !key.versions.iter().all(Version::is_destroyed)
        };
        let may = spec.bits > 0 && (spec.name.is_none() || !self.keys.iter().any(is_taken));
        let event = if material.is_some() { AuditEvent::Store } else { AuditEvent::Create };
        let made = match &material {
            // There is no secret without bytes.
            Some(material) if material.is_empty() => return,
            Some(material) => store.store_key(&spec, &secret(material)),
            None => store.create_key(&spec),
        };
        assert_eq!(made.is_ok(), may, "{:?}", made.err());
        let Ok(metadata) = made else { return };
        let KeySpec { name, kind, bits, volume } = spec;
        let found = (&metadata.name, metadata.kind, metadata.bits, &metadata.volume);
        assert_eq!(found, (&name, kind, bits, &volume));
        assert_eq!((metadata.version, metadata.state), (1, KeyState::Active));
        let id = metadata.id.clone();
        self.note(who, event, Some(id.clone()), Some(1), AuditOutcome::Done);
        let access = Right::ALL.map(|right| (who, right)).into();
        let versions = vec![Version { state: KeyState::Active, metadata, material }];
        self.keys.push(Key { id, versions, name, creator: who, access });
        self.see(who, self.keys.len() - 1, store);
    }

    /// Fetches a version that was made just now, if whoever made it may.
    fn see(&mut self, who: usize, index: usize, store: &Keystore) {
        let key = &mut self.keys[index];
        if !key.access.contains(&(who, Right::Fetch)) {
            return;
        }
        let fetched = store.fetch_key(&key.id).expect("it was made just now");
        let version = key.versions.last_mut().expect("it has one");
        assert_eq!(fetched.expose().len() * 8, version.metadata.bits as usize);
        assert_eq!(fetched.kind(), version.metadata.kind);
        let seen = version.material.get_or_insert_with(|| fetched.expose().to_vec());
        assert!(fetched.expose() == seen, "{} is another key than the one that was stored", key.id);
        let (id, number) = (key.id.clone(), key.versions.len() as u32);
        self.note(who, AuditEvent::Fetch, Some(id), Some(number), AuditOutcome::Done);
    }

    /// The key that is meant, if there are any.
    fn choose(&self, key: u8, version: Option<u8>) -> Option<(usize, KeyId, Option<u32>)> {
        let index = usize::from(key).checked_rem(self.keys.len())?;
        let version = version.map(|version| u32::from(version % (VERSIONS_MAX as u8 + 2)));
        let id = self.keys[index].id.clone();
        Some((index, version.map_or(id.clone(), |version| id.with_version(version)), version))
    }

    /// Whether `who` may. Notes the refusal otherwise.
    fn may(
        &mut self,
        who: usize,
        right: Right,
        event: AuditEvent,
        index: usize,
        version: Option<u32>,
    ) -> bool {
        let key = &self.keys[index];
        let may = key.access.contains(&(who, right)) || right == Right::Grant && who == 0;
        let id = key.id.clone();
        if !may {
            self.note(who, event, Some(id), version, AuditOutcome::NotAllowed);
        }
        may
    }

    fn fetch(&mut self, who: usize, key: u8, version: Option<u8>, stores: &Stores) {
        let Some((index, id, version)) = self.choose(key, version) else { return };
        let fetched = stores[who].fetch_key(&id);
        if !self.may(who, Right::Fetch, AuditEvent::Fetch, index, version) {
            return assert_refused(fetched);
        }
        let key = &mut self.keys[index];
        let (found, whole) = (key.index(version), key.id.clone());
        let number = found.map_or(version, |at| Some(at as u32 + 1));
        let Some(found) = found.map(|at| &mut key.versions[at]).filter(|found| !found.is_destroyed()) else {
            self.note(who, AuditEvent::Fetch, Some(whole), number, AuditOutcome::NotFound);
            return assert_refused(fetched);
        };
        let fetched = fetched.expect("it may be fetched");
        let seen = found.material.get_or_insert_with(|| fetched.expose().to_vec());
        assert!(fetched.expose() == seen, "{id} is another key than before");
        self.note(who, AuditEvent::Fetch, Some(whole), number, AuditOutcome::Done);
    }

    fn rotate(&mut self, who: usize, key: u8, version: Option<u8>, stores: &Stores) {
        let Some((index, id, version)) = self.choose(key, version) else { return };
        if self.keys[index].versions.len() >= VERSIONS_MAX {
            return;
        }
        let rotated = stores[who].rotate_key(&id);
        if version.is_some() {
            return assert_refused(rotated);
        }
        if !self.may(who, Right::Rotate, AuditEvent::Rotate, index, None) {
            return assert_refused(rotated);
        }
        let key = &mut self.keys[index];
        if key.versions.iter().all(Version::is_destroyed) {
            self.note(who, AuditEvent::Rotate, Some(id), None, AuditOutcome::NotFound);
            return assert_refused(rotated);
        }
        let metadata = rotated.expect("it may be rotated");
        if let Some(last) = key.versions.last_mut().filter(|last| !last.is_destroyed()) {
            last.state = KeyState::Deactivated;
        }
        let number = key.versions.len() as u32 + 1;
        assert_eq!((metadata.version, metadata.state), (number, KeyState::Active));
        key.versions.push(Version { state: KeyState::Active, metadata, material: None });
        self.note(who, AuditEvent::Rotate, Some(id), Some(number), AuditOutcome::Done);
        self.see(who, index, &stores[who]);
    }

    fn destroy(&mut self, who: usize, key: u8, version: Option<u8>, stores: &Stores) {
        let Some((index, id, version)) = self.choose(key, version) else { return };
        let destroyed = stores[who].destroy_key(&id);
        if !self.may(who, Right::Destroy, AuditEvent::Destroy, index, version) {
            return assert_refused(destroyed);
        }
        let key = &mut self.keys[index];
        let whole = key.id.clone();
        let condemned = match version {
            None => &mut key.versions[..],
            Some(_) => match key.index(version) {
                Some(at) => &mut key.versions[at..=at],
                None => {
                    self.note(who, AuditEvent::Destroy, Some(whole), version, AuditOutcome::NotFound);
                    return assert_refused(destroyed);
                }
            },
        };
        // The other connection may keep the log from being wiped.
        assert!(matches!(destroyed, Ok(()) | Err(KeystoreError::NotYetWiped)), "{destroyed:?}");
        for version in condemned {
            version.state = KeyState::Destroyed;
        }
        self.note(who, AuditEvent::Destroy, Some(whole), version, AuditOutcome::Done);
    }

    fn change_access(
        &mut self,
        event: AuditEvent,
        [who, whom]: [bool; 2],
        key: u8,
        rights: u8,
        stores: &Stores,
    ) {
        let Some((index, id, _)) = self.choose(key, None) else { return };
        let (who, whom) = (usize::from(who), usize::from(whom));
        let chosen = |(at, _): &(usize, Right)| rights & 1 << at != 0;
        let rights: BTreeSet<Right> =
            Right::ALL.into_iter().enumerate().filter(chosen).map(|(_, right)| right).collect();
        let changed = match event {
            AuditEvent::Grant => stores[who].grant(&id, &principal(whom), &rights),
            _ => stores[who].revoke(&id, &principal(whom), &rights),
        };
        if !self.may(who, Right::Grant, event, index, None) {
            return assert_refused(changed);
        }
        for right in rights {
            let access = &mut self.keys[index].access;
            match event {
                AuditEvent::Grant => access.insert((whom, right)),
                _ => access.remove(&(whom, right)),
            };
            let detail = Some(format!("{} {right}", principal(whom)));
            let key = Some(id.clone());
            self.noted.push(Noted { who, event, key, version: None, detail, outcome: AuditOutcome::Done });
        }
        let left = self.keys[index].access.iter().filter(|(who, _)| *who == whom).map(|(_, right)| *right);
        assert_eq!(changed.expect("it may be changed"), left.collect::<BTreeSet<_>>());
    }

    fn note_store(&mut self, event: AuditEvent) {
        self.note(0, event, None, None, AuditOutcome::Done);
    }

    fn note(
        &mut self,
        who: usize,
        event: AuditEvent,
        key: Option<KeyId>,
        version: Option<u32>,
        outcome: AuditOutcome,
    ) {
        self.noted.push(Noted { who, event, key, version, detail: None, outcome });
    }

    /// Reads the log, and checks that it tells everything that was done, in this order.
    pub fn read_log(&mut self, store: &Keystore) {
        self.log.clear();
        self.anchor = Some(store.each_audit_entry(0, |entry| self.log.push(entry)).expect("it can be read"));
        assert_eq!(self.log.len(), self.noted.len(), "entries of the log");
        for (at, (entry, noted)) in self.log.iter().zip(&self.noted).enumerate() {
            assert_eq!(entry.seq, at as u64 + 1);
            assert_eq!(entry.principal, principal(noted.who), "{entry:?}");
            let key = entry.key.map(|key| KeyId::new(key.to_string()));
            let told = (entry.event, key, entry.version, entry.detail.clone(), entry.outcome);
            let Noted { event, key, version, detail, outcome, .. } = noted.clone();
            assert_eq!(told, (event, key, version, detail, outcome), "entry {}", entry.seq);
        }
    }
}

fn assert_refused<T>(answer: Result<T, KeystoreError>) {
    assert!(answer.is_err(), "it should have been refused");
}
