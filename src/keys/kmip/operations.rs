//! Keys, out of managed objects.

use std::collections::BTreeMap;

use jiff::Timestamp;
use uuid::Uuid;

use super::super::{KeyId, KeyKind, KeyMetadata, KeySpec, KeyState, Secret, fit_to_rotate};
use super::object::{self, Found, Made, Record, Wanted};
use super::session::{Session, Stop};

/// What the object groups of our keys begin with. IDs that do not are unique identifiers of a server.
const GROUP_PREFIX: &str = "sealblk-";

/// Objects that one key may have: versions, and parts of each.
const OBJECTS_MAX: usize = 1024;

/// Bits of one half of the longest XTS key.
const HALF_BITS: u32 = 256;

/// A version of a key, with its objects in order.
struct Version {
    record: Record,
    objects: Vec<Found>,
}

impl Version {
    /// Whether every part of it is there, once.
    fn is_whole(&self) -> bool {
        let parts = self.objects.iter().filter_map(|object| object.record.as_ref()).map(|record| record.part);
        parts.eq(1..=self.record.parts) && !self.objects.iter().any(Found::is_destroyed)
    }

    fn is_destroyed(&self) -> bool {
        self.objects.iter().all(Found::is_destroyed)
    }

    fn metadata(&self, group: &str, is_newest: bool) -> KeyMetadata {
        let record = &self.record;
        let states = || self.objects.iter().filter_map(|object| object.state);
        let state = if self.is_destroyed() {
            KeyState::Destroyed
        } else if !self.is_whole() {
            KeyState::Incomplete
        } else if !is_newest || states().any(|state| state == KeyState::Deactivated) {
            // The server is not told: there is no way back from there, and some then give the key to nobody.
            KeyState::Deactivated
        } else if states().any(|state| state == KeyState::PreActive) {
            KeyState::PreActive
        } else {
            KeyState::Active
        };
        KeyMetadata {
            id: KeyId::new(group),
            version: record.version,
            name: record.name.clone(),
            kind: record.kind(),
            bits: record.bits,
            state,
            volume: record.volume.clone(),
            created: Some(record.made.0),
        }
    }
}

/// One of our keys.
struct Key {
    group: String,
    /// Oldest first, whole or destroyed. None, if the first was never finished, or if nothing is left but remnants.
    versions: Vec<Version>,
    /// What is there of versions whose making or destruction was broken off, or that two began at once. They are found so
    /// that they can be destroyed.
    remnants: Vec<Version>,
}

impl Key {
    /// Sorts objects of the group `group` by what is noted on them. What has no note is none of ours.
    fn of(group: &str, objects: Vec<Found>) -> Option<Self> {
        let mut versions: BTreeMap<u32, Version> = BTreeMap::new();
        for object in objects {
            let Some(record) = object.record.clone().filter(|_| object.may_be_key()) else { continue };
            let version =
                versions.entry(record.version).or_insert_with(|| Version { record, objects: Vec::new() });
            version.objects.push(object);
        }
        for version in versions.values_mut() {
            version.objects.sort_by_key(|object| object.record.as_ref().map(|record| record.part));
        }
        let (versions, remnants): (Vec<_>, Vec<_>) =
            versions.into_values().partition(|version| version.is_whole() || version.is_destroyed());
        let is_something = !versions.is_empty() || !remnants.is_empty();
        is_something.then(|| Self { group: group.to_owned(), versions, remnants })
    }

    fn find(session: &mut Session, group: &str) -> Result<Self, Stop> {
        let identifiers = object::locate_group(session, group)?;
        let objects = described(session, identifiers, OBJECTS_MAX)?;
        let ours = objects.into_iter().filter(|found| found.groups.iter().any(|name| name == group));
        Self::of(group, ours.collect()).ok_or(Stop::Absent)
    }

    /// The newest version; of remnants only if there is nothing else.
    fn newest(&self) -> &Version {
        self.versions.last().or(self.remnants.last()).expect("a key has a version, or what is left of one")
    }

    fn oldest(&self) -> &Version {
        self.versions.first().or(self.remnants.first()).expect("a key has a version, or what is left of one")
    }

    /// The version that `id` means, and whether it is the newest. Remnants are versions here as well.
    fn version(&self, id: &KeyId) -> Option<(&Version, bool)> {
        let newest = self.newest();
        match id.version() {
            None => Some((newest, true)),
            Some(number) => {
                let mut all = self.versions.iter().chain(&self.remnants);
                let version = all.find(|version| version.record.version == number)?;
                Some((version, number == newest.record.version))
            }
        }
    }

    /// The same, if its bytes can be there.
    fn usable_version(&self, id: &KeyId) -> Result<&Version, Stop> {
        match self.version(id) {
            Some((version, _)) if version.is_whole() => Ok(version),
            Some((version, _)) if !version.is_destroyed() => Err(incomplete()),
            _ => Err(Stop::Absent),
        }
    }
}

fn incomplete() -> Stop {
    Stop::Unfit {
        problem: "only a part of it is there, because making or destroying it was broken off".to_owned(),
        remedy: "destroy it: what is there is of no use".to_owned(),
    }
}

pub(super) fn fetch(session: &mut Session, id: &KeyId) -> Result<Secret, Stop> {
    if !id.name().starts_with(GROUP_PREFIX) {
        return fetch_object(session, id);
    }
    let key = Key::find(session, id.name())?;
    match key.usable_version(id)?.objects.as_slice() {
        [one] => get(session, &one.identifier),
        parts => {
            let parts: Vec<Secret> =
                parts.iter().map(|part| get(session, &part.identifier)).collect::<Result<_, _>>()?;
            joined(&parts)
        }
    }
}

/// A key that somebody else has put there has one version.
fn fetch_object(session: &mut Session, id: &KeyId) -> Result<Secret, Stop> {
    match id.version() {
        // To a server, no identifier at all may mean the object of its last answer.
        _ if id.name().is_empty() => Err(Stop::Absent),
        None | Some(1) => get(session, id.name()),
        Some(_) => Err(Stop::Absent),
    }
}

/// The bytes of one object. Where the server says no because of its state, that is said.
fn get(session: &mut Session, identifier: &str) -> Result<Secret, Stop> {
    match object::get(session, identifier) {
        Err(Stop::Refused(reason)) if reason.is_absence() => Err(Stop::Absent),
        Err(Stop::Refused(reason)) if reason.is_denial() => {
            let state = object::attributes(session, identifier).ok().and_then(|found| found.state);
            Err(match state {
                Some(KeyState::PreActive) => Stop::NotAllowed {
                    problem: "it is not active yet, and the server gives it out only then".to_owned(),
                    remedy: "activate it at the server".to_owned(),
                },
                Some(KeyState::Deactivated) => Stop::NotAllowed {
                    problem: "it was revoked, and the server does not give it out any more".to_owned(),
                    remedy: "see what the server's policy has for such keys".to_owned(),
                },
                Some(KeyState::Active) => Stop::Refused(reason),
                Some(KeyState::Destroyed | KeyState::Incomplete) | None => Stop::Absent,
            })
        }
        result => result,
    }
}

fn joined(parts: &[Secret]) -> Result<Secret, Stop> {
    Secret::fill(|buffer| {
        let mut filled_bytes = 0;
        for part in parts {
            let end = filled_bytes + part.expose().len();
            let place = buffer.get_mut(filled_bytes..end).ok_or(super::super::SecretError::TooLong)?;
            place.copy_from_slice(part.expose());
            filled_bytes = end;
        }
        Ok(filled_bytes)
    })
}

/// What the server says of each object; those that are gone by now are left out.
fn described(session: &mut Session, identifiers: Vec<String>, at_most: usize) -> Result<Vec<Found>, Stop> {
    if identifiers.len() > at_most {
        return Err(Stop::Unfit {
            problem: format!("{} objects are more than are looked through", identifiers.len()),
            remedy: "give this client fewer keys, or name one".to_owned(),
        });
    }
    let mut objects = Vec::new();
    for identifier in identifiers {
        match object::attributes(session, &identifier) {
            Ok(found) => objects.push(found),
            Err(Stop::Refused(reason)) if reason.is_absence() || reason.is_denial() => {}
            Err(stop) => return Err(stop),
        }
    }
    Ok(objects)
}

pub(super) fn create(session: &mut Session, spec: &KeySpec) -> Result<KeyMetadata, Stop> {
    spec.fit(None)?;
    check_name(session, spec)?;
    add(session, &new_group(), &record_of(spec, 1), None)
}

pub(super) fn store(session: &mut Session, spec: &KeySpec, material: &Secret) -> Result<KeyMetadata, Stop> {
    spec.fit(Some(material))?;
    check_name(session, spec)?;
    add(session, &new_group(), &record_of(spec, 1), Some(material))
}

fn new_group() -> String {
    format!("{GROUP_PREFIX}{}", Uuid::new_v4())
}

fn record_of(spec: &KeySpec, version: u32) -> Record {
    Record {
        version,
        part: 1,
        parts: 1,
        bits: spec.bits,
        is_text: spec.kind == KeyKind::Passphrase,
        name: spec.name.clone(),
        volume: spec.volume.clone(),
        made: Made(Timestamp::now()),
    }
}

fn check_name(session: &mut Session, spec: &KeySpec) -> Result<(), Stop> {
    let Some(name) = &spec.name else { return Ok(()) };
    let identifiers = object::locate_name(session, name)?;
    let holders = described(session, identifiers, OBJECTS_MAX)?;
    let holds =
        |found: &Found| found.record.as_ref().is_some_and(|record| record.name.as_ref() == Some(name));
    if holders.iter().any(|found| holds(found) && !found.is_destroyed()) { Err(taken()) } else { Ok(()) }
}

fn taken() -> Stop {
    Stop::NotAllowed {
        problem: "there is a key of this name already".to_owned(),
        remedy: "choose another name, or destroy that key".to_owned(),
    }
}

/// Makes a version: of `material`, or of random bytes.
fn add(
    session: &mut Session,
    group: &str,
    record: &Record,
    material: Option<&Secret>,
) -> Result<KeyMetadata, Stop> {
    let local = match material {
        Some(_) => None,
        // Only AES keys are made by servers.
        None if record.is_text || !object::is_aes_length(record.bits) => {
            Some(record.kind().random(record.bits)?)
        }
        None => None,
    };
    let material = material.or(local.as_ref()).map(Secret::expose);
    let is_pair = !record.is_text && record.bits == 2 * HALF_BITS;
    let added = match add_parts(session, group, record, material) {
        // Servers need not know AES keys of 512 bits: the Usage Guide has two of 256 for XTS.
        Err(Stop::Refused(reason)) if is_pair && reason.is_inability() => {
            add_parts(session, group, &Record { parts: 2, ..record.clone() }, material)
        }
        result => result,
    };
    let made = added.map_err(|stop| match stop {
        Stop::Refused(reason) if reason.is_taken() => taken(),
        stop => stop,
    })?;
    let key = Key::find(session, group);
    if let Ok(key) = &key
        && let Some((version, is_newest)) = key.version(&KeyId::new(group).with_version(record.version))
        && version.is_whole()
    {
        return Ok(version.metadata(group, is_newest));
    }
    discard(session, &made);
    Err(key.err().unwrap_or_else(|| Stop::NotAllowed {
        problem: "somebody else makes a new version of it at the same time".to_owned(),
        remedy: "see which version is the newest, and try again".to_owned(),
    }))
}

/// Makes the objects of a version, all of them or none.
fn add_parts(
    session: &mut Session,
    group: &str,
    record: &Record,
    material: Option<&[u8]>,
) -> Result<Vec<String>, Stop> {
    let part_bytes = (record.bits / record.parts / 8) as usize;
    let mut made = Vec::new();
    for part in 1..=record.parts {
        let record = Record { part, ..record.clone() };
        let wanted = Wanted { record: &record, group, bits: part_bytes as u32 * 8 };
        let start = (part - 1) as usize * part_bytes;
        let result = match material {
            Some(material) => wanted.register(session, &material[start..start + part_bytes]),
            None => wanted.create(session),
        };
        let result = result.and_then(|identifier| {
            made.push(identifier);
            let identifier = made.last().expect("just pushed");
            match object::activate(session, identifier) {
                // Where keys have no such state, they can be used at once.
                Err(Stop::Refused(reason)) if reason.is_inability() => Ok(()),
                result => result,
            }
        });
        if let Err(stop) = result {
            discard(session, &made);
            return Err(stop);
        }
    }
    Ok(made)
}

/// Destroys what was made in vain, as far as that is possible: what is left is no whole version, and what went wrong
/// before is what is told.
fn discard(session: &mut Session, identifiers: &[String]) {
    for identifier in identifiers {
        let _ = object::attributes(session, identifier).and_then(|found| object::destroy(session, &found));
    }
}

pub(super) fn list(session: &mut Session) -> Result<Vec<KeyMetadata>, Stop> {
    /// Objects that are looked through, one after the other.
    const LISTED_MAX: usize = 10_000;
    let identifiers = object::locate_all(session)?;
    let mut groups: BTreeMap<String, Vec<Found>> = BTreeMap::new();
    let mut listed = Vec::new();
    for found in described(session, identifiers, LISTED_MAX)?.into_iter().filter(Found::may_be_key) {
        let group = found.groups.iter().find(|group| group.starts_with(GROUP_PREFIX)).cloned();
        match group.filter(|_| found.record.is_some()) {
            Some(group) => groups.entry(group).or_default().push(found),
            None => listed.push((found.created, metadata_of_object(&found))),
        }
    }
    for (group, objects) in groups {
        let Some(key) = Key::of(&group, objects) else { continue };
        let metadata = key.newest().metadata(&key.group, true);
        listed.push((Some(key.oldest().record.made.0), metadata));
    }
    listed.sort_by_key(|(created, _)| *created);
    Ok(listed.into_iter().map(|(_, metadata)| metadata).collect())
}

/// A key that somebody else has put there.
fn metadata_of_object(found: &Found) -> KeyMetadata {
    KeyMetadata {
        id: KeyId::new(&found.identifier),
        version: 1,
        name: found.name.clone(),
        kind: KeyKind::Symmetric,
        bits: found.bits.unwrap_or(0),
        state: found.state.unwrap_or(KeyState::Active),
        volume: None,
        created: found.created,
    }
}

pub(super) fn metadata(session: &mut Session, id: &KeyId) -> Result<KeyMetadata, Stop> {
    if id.name().starts_with(GROUP_PREFIX) {
        let key = Key::find(session, id.name())?;
        let (version, is_newest) = key.version(id).ok_or(Stop::Absent)?;
        return Ok(version.metadata(&key.group, is_newest));
    }
    object_of_others(session, id).map(|found| metadata_of_object(&found))
}

/// The same, of a key whose bytes can be there.
pub(super) fn usable(session: &mut Session, id: &KeyId) -> Result<KeyMetadata, Stop> {
    let metadata = metadata(session, id)?;
    match metadata.state {
        KeyState::Destroyed => Err(Stop::Absent),
        KeyState::Incomplete => Err(incomplete()),
        _ => Ok(metadata),
    }
}

fn object_of_others(session: &mut Session, id: &KeyId) -> Result<Found, Stop> {
    if id.name().is_empty() || id.version().is_some_and(|version| version != 1) {
        return Err(Stop::Absent);
    }
    match object::attributes(session, id.name()) {
        Ok(found) if found.may_be_key() => Ok(found),
        Ok(_) => Err(Stop::Absent),
        Err(Stop::Refused(reason)) if reason.is_absence() || reason.is_denial() => Err(Stop::Absent),
        Err(stop) => Err(stop),
    }
}

pub(super) fn rotate(session: &mut Session, id: &KeyId) -> Result<KeyMetadata, Stop> {
    fit_to_rotate(id)?;
    if !id.name().starts_with(GROUP_PREFIX) {
        let found = object_of_others(session, id)?;
        return Err(Stop::NotAllowed {
            problem: format!("object {} was not made by this program", found.identifier),
            remedy: "make a new key, and destroy that one".to_owned(),
        });
    }
    let key = Key::find(session, id.name())?;
    let newest = key.newest();
    if newest.is_destroyed() {
        return Err(Stop::Absent);
    }
    if !newest.is_whole() {
        return Err(incomplete());
    }
    // The numbers of remnants are not given again: they may be somebody else's, who is about to finish.
    let numbers = key.versions.iter().chain(&key.remnants).map(|version| version.record.version);
    let version = numbers.max().and_then(|number| number.checked_add(1)).ok_or(Stop::Absent)?;
    let record = Record { version, part: 1, parts: 1, made: Made(Timestamp::now()), ..newest.record.clone() };
    add(session, &key.group, &record, None)
}

pub(super) fn destroy(session: &mut Session, id: &KeyId) -> Result<(), Stop> {
    let objects = if id.name().starts_with(GROUP_PREFIX) {
        let key = Key::find(session, id.name())?;
        let is_meant = |version: &Version| id.version().is_none_or(|number| version.record.version == number);
        let meant: Vec<_> = key.versions.into_iter().chain(key.remnants).filter(is_meant).collect();
        if meant.is_empty() {
            return Err(Stop::Absent);
        }
        meant.into_iter().flat_map(|version| version.objects).collect()
    } else {
        vec![object_of_others(session, id)?]
    };
    for found in objects.iter().filter(|found| !found.is_destroyed()) {
        match object::destroy(session, found) {
            // Somebody else was quicker.
            Err(Stop::Refused(reason)) if reason.is_absence() => {}
            result => result?,
        }
    }
    Ok(())
}
