//! The simplest manager that keeps every promise, and what the suites say when it breaks one.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use super::admin;
use super::watch::KEY;
use crate::keys::{
    KeyAdmin, KeyError, KeyId, KeyManager, KeyMetadata, KeyReference, KeySpec, KeyState, ManagerName, Secret,
};

/// A promise that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    CreatesWhatIsMissing,
    FetchesForeignKeys,
    TellsForeignKeysApart,
    ListsForeignKeys,
    ShowsTheKeyInErrors,
    ForgetsTheKind,
    IgnoresTheLength,
    SharesNames,
    RepeatsKeys,
    ListsVersions,
    ListsInReverse,
    KeepsTheVersionActive,
    ForgetsOldVersions,
    RotatesVersions,
    KeepsDestroyedKeys,
    DestroysAllVersions,
    RevivesDestroyedKeys,
    ForgetsAtRestart,
}

const FAULTS: [Fault; 18] = {
    use Fault::*;
    [
        CreatesWhatIsMissing,
        FetchesForeignKeys,
        TellsForeignKeysApart,
        ListsForeignKeys,
        ShowsTheKeyInErrors,
        ForgetsTheKind,
        IgnoresTheLength,
        SharesNames,
        RepeatsKeys,
        ListsVersions,
        ListsInReverse,
        KeepsTheVersionActive,
        ForgetsOldVersions,
        RotatesVersions,
        KeepsDestroyedKeys,
        DestroysAllVersions,
        RevivesDestroyedKeys,
        ForgetsAtRestart,
    ]
};

/// One version of a key.
struct Row {
    owner: &'static str,
    metadata: KeyMetadata,
    bytes: Vec<u8>,
}

/// Keys in memory that several principals share.
struct Model {
    rows: Rc<RefCell<Vec<Row>>>,
    principal: &'static str,
    fault: Option<Fault>,
}

impl Model {
    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn key(id: &KeyId) -> KeyReference {
        let name: ManagerName = "nested".parse().unwrap();
        name.key(id)
    }

    fn not_found(id: &KeyId) -> KeyError {
        KeyError::not_found(Self::key(id), "look elsewhere")
    }

    /// The row that `id` means, if it is ours: the version that it names, or the newest.
    fn find(&self, id: &KeyId) -> Result<usize, KeyError> {
        let rows = self.rows.borrow();
        let is_meant = |row: &&(usize, &Row)| {
            let metadata = &row.1.metadata;
            metadata.id.name() == id.name() && id.version().is_none_or(|version| version == metadata.version)
        };
        let found = rows.iter().enumerate().collect::<Vec<_>>();
        let Some((index, row)) = found.iter().filter(is_meant).max_by_key(|(_, row)| row.metadata.version)
        else {
            return Err(Self::not_found(id));
        };
        if row.owner != self.principal && self.has(Fault::TellsForeignKeysApart) {
            return Err(KeyError::not_found(Self::key(id), "it is not yours"));
        }
        if row.owner != self.principal && !self.has(Fault::FetchesForeignKeys) {
            return Err(Self::not_found(id));
        }
        Ok(*index)
    }

    fn add(&self, spec: &KeySpec, bytes: Vec<u8>) -> Result<KeyMetadata, KeyError> {
        let id = KeyId::new(format!("key-{}", self.rows.borrow().len()));
        let fits = spec.bits as usize == bytes.len() * 8 && spec.bits > 0;
        if !fits && !self.has(Fault::IgnoresTheLength) {
            let shown =
                if self.has(Fault::ShowsTheKeyInErrors) { format!("{bytes:?}") } else { String::new() };
            return Err(KeyError::malformed(Self::key(&id), format!("wrong length {shown}"), "correct it"));
        }
        let is_taken =
            self.rows.borrow().iter().any(|row| spec.name.is_some() && row.metadata.name == spec.name);
        if is_taken && !self.has(Fault::SharesNames) {
            return Err(KeyError::not_allowed(Self::key(&id), "the name is taken", "choose another"));
        }
        let metadata = KeyMetadata {
            id,
            version: 1,
            name: spec.name.clone(),
            kind: spec.kind,
            bits: spec.bits,
            state: KeyState::Active,
            volume: spec.volume.clone(),
            created: None,
        };
        self.rows.borrow_mut().push(Row { owner: self.principal, metadata: metadata.clone(), bytes });
        Ok(metadata)
    }

    fn random(&self, bits: u32) -> Vec<u8> {
        match bits {
            _ if self.has(Fault::RepeatsKeys) => vec![7; bits as usize / 8],
            // Refused by its length, as every other that is too long.
            _ => Secret::random(bits as usize / 8).map_or(Vec::new(), |secret| secret.expose().to_vec()),
        }
    }
}

impl KeyManager for Model {
    fn fetch(&self, id: &KeyId) -> Result<Secret, KeyError> {
        let index = match self.find(id) {
            Err(_) if self.has(Fault::CreatesWhatIsMissing) => {
                let spec =
                    KeySpec { name: None, kind: crate::keys::KeyKind::Symmetric, bits: 256, volume: None };
                self.add(&spec, vec![1; 32])?;
                return Err(Self::not_found(id));
            }
            found => found?,
        };
        let rows = self.rows.borrow();
        let row = &rows[index];
        if row.metadata.state == KeyState::Destroyed && !self.has(Fault::KeepsDestroyedKeys) {
            return Err(Self::not_found(id));
        }
        let secret = Secret::read_from(&row.bytes[..]).unwrap();
        Ok(if self.has(Fault::ForgetsTheKind) { secret } else { secret.of_kind(row.metadata.kind) })
    }
}

impl KeyAdmin for Model {
    fn create(&self, spec: &KeySpec) -> Result<KeyMetadata, KeyError> {
        self.add(spec, self.random(spec.bits))
    }

    fn store(&self, spec: &KeySpec, material: &Secret) -> Result<KeyMetadata, KeyError> {
        self.add(spec, material.expose().to_vec())
    }

    fn list(&self) -> Result<Vec<KeyMetadata>, KeyError> {
        let rows = self.rows.borrow();
        let mut listed: Vec<KeyMetadata> = Vec::new();
        for row in rows.iter().filter(|row| row.owner == self.principal || self.has(Fault::ListsForeignKeys))
        {
            match listed.iter_mut().find(|known| known.id == row.metadata.id) {
                Some(known) if !self.has(Fault::ListsVersions) => *known = row.metadata.clone(),
                _ => listed.push(row.metadata.clone()),
            }
        }
        if self.has(Fault::ListsInReverse) {
            listed.reverse();
        }
        Ok(listed)
    }

    fn metadata(&self, id: &KeyId) -> Result<KeyMetadata, KeyError> {
        Ok(self.rows.borrow()[self.find(id)?].metadata.clone())
    }

    fn rotate(&self, id: &KeyId) -> Result<KeyMetadata, KeyError> {
        if id.version().is_some() && !self.has(Fault::RotatesVersions) {
            return Err(KeyError::malformed(Self::key(id), "it is a version", "leave out the version"));
        }
        let index = self.find(id)?;
        let mut rows = self.rows.borrow_mut();
        let old = &mut rows[index];
        if old.metadata.state == KeyState::Destroyed && !self.has(Fault::RevivesDestroyedKeys) {
            return Err(Self::not_found(id));
        }
        let metadata = KeyMetadata {
            version: old.metadata.version + 1,
            state: KeyState::Active,
            ..old.metadata.clone()
        };
        if !self.has(Fault::KeepsTheVersionActive) {
            old.metadata.state = KeyState::Deactivated;
        }
        if self.has(Fault::ForgetsOldVersions) {
            old.metadata.state = KeyState::Destroyed;
        }
        let bytes = self.random(metadata.bits);
        rows.push(Row { owner: self.principal, metadata: metadata.clone(), bytes });
        Ok(metadata)
    }

    fn destroy(&self, id: &KeyId) -> Result<(), KeyError> {
        self.find(id)?;
        let is_meant = |metadata: &KeyMetadata| {
            metadata.id.name() == id.name()
                && (self.has(Fault::DestroysAllVersions)
                    || id.version().is_none_or(|version| version == metadata.version))
        };
        for row in self.rows.borrow_mut().iter_mut().filter(|row| is_meant(&row.metadata)) {
            row.metadata.state = KeyState::Destroyed;
        }
        Ok(())
    }
}

fn subject(fault: Option<Fault>) -> admin::Subject {
    let rows = Rc::new(RefCell::new(Vec::new()));
    let open = |principal| {
        let rows = Rc::clone(&rows);
        let opened: Rc<dyn Fn() -> Box<dyn KeyAdmin>> = Rc::new(move || {
            if fault == Some(Fault::ForgetsAtRestart) {
                rows.borrow_mut().clear();
            }
            Box::new(Model { rows: Rc::clone(&rows), principal, fault })
        });
        opened
    };
    admin::Subject {
        open: open("us"),
        open_for_another: Some(open("them")),
        missing: KeyId::new("missing"),
        keeps_versions: true,
    }
}

#[test]
fn a_manager_that_keeps_its_promises_passes() {
    admin::run_all(|| subject(None));
}

#[test]
fn each_broken_promise_is_noticed() {
    for fault in FAULTS {
        let run = || admin::run_all(|| subject(Some(fault)));
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err(), "{fault:?} passes");
    }
}

/// How a manager fetches that breaks one promise.
#[derive(Clone, Copy, Debug)]
enum Fetching {
    Rightly,
    CutShort,
    OtherBytesTheSecondTime,
    EmptyForMissing,
    UnreachableForMissing,
    AnotherKeyForMissing,
    NotFoundForFailure,
    ShowsTheKey,
}

/// A manager of one key, which fetches in one of these ways.
struct Fetcher {
    way: Fetching,
    bytes: Rc<RefCell<Vec<u8>>>,
    count: RefCell<u32>,
}

impl KeyManager for Fetcher {
    fn fetch(&self, id: &KeyId) -> Result<Secret, KeyError> {
        *self.count.borrow_mut() += 1;
        let key = || Model::key(id);
        let bytes = self.bytes.borrow();
        match (id.name(), self.way) {
            ("failing", Fetching::NotFoundForFailure) => Err(KeyError::not_found(key(), "look elsewhere")),
            ("failing", Fetching::ShowsTheKey) => {
                Err(KeyError::unreachable_because(key(), "no answer", format!("{KEY:?}")))
            }
            ("failing", _) => Err(KeyError::unreachable(key(), "no answer")),
            ("missing", Fetching::EmptyForMissing) => {
                Err(KeyError::malformed(key(), "it is empty", "fill it"))
            }
            ("missing", Fetching::UnreachableForMissing) => Err(KeyError::unreachable(key(), "no answer")),
            ("missing", Fetching::AnotherKeyForMissing) => Ok(Secret::read_from(&bytes[..]).unwrap()),
            ("missing", _) => Err(KeyError::not_found(key(), "look elsewhere")),
            (_, Fetching::CutShort) if bytes.len() > 64 => Ok(Secret::read_from(&bytes[..64]).unwrap()),
            (_, Fetching::OtherBytesTheSecondTime) if self.count.borrow().is_multiple_of(2) => {
                Ok(Secret::read_from(&b"other"[..]).unwrap())
            }
            _ => Secret::read_from(&bytes[..]).map_err(|error| KeyError::of_secret(key(), error)),
        }
    }
}

#[test]
fn each_wrong_way_to_fetch_is_noticed() {
    use Fetching::*;
    let run = |way| {
        super::run_all(|| {
            let bytes = Rc::new(RefCell::new(Vec::new()));
            let put = Rc::clone(&bytes);
            super::Subject {
                manager: Box::new(Fetcher { way, bytes, count: RefCell::default() }),
                name: "nested".to_owned(),
                put: Box::new(move |bytes| {
                    put.replace(bytes.to_vec());
                    Some(KeyId::new("vm1"))
                }),
                missing: KeyId::new("missing"),
                put_foreign: None,
                impossible: Vec::new(),
                fail: Some(Box::new(|| KeyId::new("failing"))),
                is_lasting: true,
                bytes_max: crate::keys::SECRET_BYTES_MAX,
            }
        });
    };
    run(Rightly);
    for way in [
        CutShort,
        OtherBytesTheSecondTime,
        EmptyForMissing,
        UnreachableForMissing,
        AnotherKeyForMissing,
        NotFoundForFailure,
        ShowsTheKey,
    ] {
        assert!(catch_unwind(AssertUnwindSafe(|| run(way))).is_err(), "{way:?} passes");
    }
}
