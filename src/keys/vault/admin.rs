//! What the tools do with keys in a KV store.
//!
//! Each key is a record of its own, `FOLDER/UUID`. What it is called, how long it is and what it is for stands in the custom
//! metadata of the record, so that listing keys reads none of them; version 1 of the engine has no such thing, and there
//! the record itself says it. Writing names the version that it replaces: two who rotate one key at once do not overwrite
//! each other.

use std::collections::BTreeMap;

use base64ct::{Base64, Encoding as _};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::Vault;
use super::notes::Notes;
use super::profile::KvVersion;
use super::record::{Envelope, encoded};
use super::session::{ANSWER_BYTES_MAX, Call, Session, json};
use crate::keys::http::{Answer, HttpError, Method, path_segment};
use crate::keys::{
    KeyAdmin, KeyError, KeyId, KeyKind, KeyMetadata, KeySpec, KeyState, Secret, Subject, fit_to_rotate,
};

/// Most keys that are listed.
const LISTED_MAX: usize = 100_000;

/// A record of version 2 of the engine.
#[derive(Serialize)]
struct NewVersion<'a> {
    options: Options,
    data: &'a Record<'a>,
}

#[derive(Serialize)]
struct Options {
    /// The version that is there now, 0 for none.
    cas: u32,
}

/// A record as castellan reads it, and what version 1 of the engine has no other place for.
#[derive(Serialize)]
struct Record<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ciphertext: Option<&'a str>,
    algorithm: &'static str,
    bit_length: u32,
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    volume: Option<&'a str>,
    /// Seconds since 1970.
    created: i64,
    created_time: String,
}

#[derive(Serialize)]
struct NewNotes<'a> {
    custom_metadata: BTreeMap<&'static str, &'a str>,
}

#[derive(Deserialize)]
struct Names {
    keys: Vec<String>,
}

#[derive(Deserialize)]
struct Ciphertext {
    ciphertext: String,
}

/// The bytes of a new key: what Vault keeps of them.
enum Material {
    Value(Zeroizing<String>),
    Ciphertext(String),
}

impl Vault {
    fn metadata_path(&self, name: &str) -> String {
        format!("{}/metadata/{}", encoded(&self.profile.mount), encoded(name))
    }

    /// Sends a request that is answered in one of the ways in `wanted`.
    fn done(
        &self,
        session: &Session,
        subject: &Subject,
        call: &Call<'_>,
        wanted: &[u16],
    ) -> Result<Answer, KeyError> {
        let answer = session.call(self, subject, call)?;
        match wanted.contains(&answer.status()) {
            true => Ok(answer),
            false => Err(self.refusal(subject.clone(), call, answer.status())),
        }
    }

    fn notes(&self, session: &Session, id: &KeyId) -> Result<Notes, KeyError> {
        self.check_path(id)?;
        if self.profile.kv_version == KvVersion::One {
            let text = self.read(session, id)?.ok_or_else(|| self.absent(id))?;
            return Ok(Notes::of_record(&self.fields(id, &text)?));
        }
        let path = self.metadata_path(id.name());
        let call = Call { method: Method::Get, path: &path, body: None };
        let answer = self.done(session, &self.key(id), &call, &[200, 404])?;
        if answer.status() == 404 {
            return Err(self.absent(id));
        }
        let notes: Result<Envelope<Notes>, HttpError> = answer.into_json(ANSWER_BYTES_MAX);
        notes.map(|answer| answer.data).map_err(|error| error.about(self.key(id), &self.service()))
    }

    /// The keys in our folder, in the order in which they were made.
    fn listed(&self, session: &Session) -> Result<Vec<KeyMetadata>, KeyError> {
        let folder = &self.profile.folder;
        let path = match self.profile.kv_version {
            // To some servers only what ends in a slash is a folder.
            KvVersion::One => format!("{}/", self.record_path(folder)),
            KvVersion::Two => format!("{}/", self.metadata_path(folder)),
        };
        let call = Call { method: Method::List, path: &path, body: None };
        let answer = self.done(session, &self.all(), &call, &[200, 404])?;
        if answer.status() == 404 {
            return Ok(Vec::new());
        }
        let names: Envelope<Names> =
            answer.into_json(ANSWER_BYTES_MAX).map_err(|error| error.about(self.all(), &self.service()))?;
        let mut found = Vec::new();
        for name in names.data.keys.iter().filter(|name| !name.ends_with('/')).take(LISTED_MAX) {
            let id = KeyId::new(format!("{folder}/{name}"));
            match self.notes(session, &id) {
                Ok(notes) => found.extend(notes.metadata(&id).map(|key| (notes.first_time(), key))),
                // Destroyed since.
                Err(KeyError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        found.sort_by_key(|(created, _)| *created);
        Ok(found.into_iter().map(|(_, key)| key).collect())
    }

    /// What to keep of a new key: of `given`, or of a random one.
    fn material(
        &self,
        session: &Session,
        kind: KeyKind,
        bits: u32,
        given: Option<&Secret>,
    ) -> Result<Material, KeyError> {
        match (&self.profile.transit_key, given, kind, bits) {
            // Made in Vault: it has never been anywhere else.
            (Some(transit_key), None, KeyKind::Symmetric, 128 | 256 | 512) => {
                let body = json(&BTreeMap::from([("bits", bits)]));
                self.transit(session, "datakey/wrapped", transit_key, &body).map(Material::Ciphertext)
            }
            (_, None, kind, bits) => {
                let random = kind.random(bits).map_err(|error| KeyError::of_secret(self.all(), error))?;
                self.material(session, kind, bits, Some(&random))
            }
            (Some(transit_key), Some(given), ..) => {
                let mut text = Zeroizing::new(vec![0; Base64::encoded_len(given.expose())]);
                let plaintext = Base64::encode(given.expose(), &mut text).expect("there is room");
                let body = json(&BTreeMap::from([("plaintext", plaintext)]));
                self.transit(session, "encrypt", transit_key, &body).map(Material::Ciphertext)
            }
            (None, Some(given), ..) => {
                let text = base16ct::lower::encode_string(given.expose());
                Ok(Material::Value(Zeroizing::new(text)))
            }
        }
    }

    fn transit(
        &self,
        session: &Session,
        operation: &str,
        transit_key: &str,
        body: &[u8],
    ) -> Result<String, KeyError> {
        let mount = encoded(&self.profile.transit_mount);
        let path = format!("{mount}/{operation}/{}", path_segment(transit_key));
        let call = Call { method: Method::Post, path: &path, body: Some(body) };
        let answer = self.done(session, &self.all(), &call, &[200])?;
        let answer: Result<Envelope<Ciphertext>, HttpError> = answer.into_json(ANSWER_BYTES_MAX);
        answer.map(|answer| answer.data.ciphertext).map_err(|error| error.about(self.all(), &self.service()))
    }

    /// Writes a version behind `current` of them.
    fn write(
        &self,
        session: &Session,
        id: &KeyId,
        current: u32,
        spec: &KeySpec,
        material: &Material,
    ) -> Result<(), KeyError> {
        let now = Timestamp::now();
        let (value, ciphertext) = match material {
            Material::Value(text) => (Some(text.as_str()), None),
            Material::Ciphertext(text) => (None, Some(text.as_str())),
        };
        let record = Record {
            kind: kind_name(spec.kind),
            value,
            ciphertext,
            algorithm: "aes",
            bit_length: spec.bits,
            name: spec.name.as_deref(),
            volume: spec.volume.as_deref(),
            created: now.as_second(),
            created_time: now.to_string(),
        };
        let body = match self.profile.kv_version {
            KvVersion::One => json(&record),
            KvVersion::Two => json(&NewVersion { options: Options { cas: current }, data: &record }),
        };
        let path = self.record_path(id.name());
        let call = Call { method: Method::Post, path: &path, body: Some(&body) };
        let answer = session.call(self, &self.key(id), &call)?;
        match answer.status() {
            200 | 204 => Ok(()),
            400 if current > 0 => Err(KeyError::not_allowed(
                self.key(id),
                "somebody else made a new version of it just now",
                "look at it with `sealblk key show`",
            )),
            status => Err(self.refusal(self.key(id), &call, status)),
        }
    }

    /// Writes the custom metadata of a record.
    fn write_notes(&self, session: &Session, id: &KeyId, spec: &KeySpec) -> Result<(), KeyError> {
        let bits = spec.bits.to_string();
        let notes = [
            ("type", Some(kind_name(spec.kind))),
            ("bit_length", Some(bits.as_str())),
            ("name", spec.name.as_deref()),
            ("volume", spec.volume.as_deref()),
        ];
        let notes = notes.into_iter().filter_map(|(name, note)| Some((name, note?))).collect();
        let body = json(&NewNotes { custom_metadata: notes });
        let path = self.metadata_path(id.name());
        let call = Call { method: Method::Post, path: &path, body: Some(&body) };
        self.done(session, &self.key(id), &call, &[200, 204]).map(drop)
    }

    fn add(&self, spec: &KeySpec, given: Option<&Secret>) -> Result<KeyMetadata, KeyError> {
        spec.check(&self.name, given)?;
        let session = self.session()?;
        if spec.name.is_some() && self.listed(session)?.iter().any(|key| key.name == spec.name) {
            return Err(KeyError::not_allowed(
                self.all(),
                "there is a key of this name already",
                "choose another name, or destroy that key",
            ));
        }
        let uuid = uuid::Uuid::new_v4().simple();
        let id = KeyId::new(format!("{}/{uuid}", self.profile.folder));
        let material = self.material(session, spec.kind, spec.bits, given)?;
        // The notes first: a record without them would be a key that nobody can tell from others.
        if self.profile.kv_version == KvVersion::Two {
            self.write_notes(session, &id, spec)?;
        }
        let made = self.write(session, &id, 0, spec, &material).and_then(|()| self.metadata(&id));
        if made.is_err() {
            // What nobody was told of is not left behind. Whatever is answered, the first error is the one to tell.
            let _ = self.remove(session, &id);
        }
        made
    }

    /// Removes a record with all its versions.
    fn remove(&self, session: &Session, id: &KeyId) -> Result<(), KeyError> {
        let path = match self.profile.kv_version {
            KvVersion::One => self.record_path(id.name()),
            KvVersion::Two => self.metadata_path(id.name()),
        };
        let call = Call { method: Method::Delete, path: &path, body: None };
        self.done(session, &self.key(id), &call, &[200, 204]).map(drop)
    }
}

impl KeyAdmin for Vault {
    fn create(&self, spec: &KeySpec) -> Result<KeyMetadata, KeyError> {
        self.add(spec, None)
    }

    fn store(&self, spec: &KeySpec, material: &Secret) -> Result<KeyMetadata, KeyError> {
        self.add(spec, Some(material))
    }

    fn list(&self) -> Result<Vec<KeyMetadata>, KeyError> {
        self.listed(self.session()?)
    }

    fn metadata(&self, id: &KeyId) -> Result<KeyMetadata, KeyError> {
        self.notes(self.session()?, id)?.metadata(id).ok_or_else(|| self.absent(id))
    }

    fn rotate(&self, id: &KeyId) -> Result<KeyMetadata, KeyError> {
        fit_to_rotate(id).map_err(|unfit| unfit.about(self.key(id)))?;
        let session = self.session()?;
        let notes = self.notes(session, id)?;
        let newest = notes.metadata(id).filter(|key| key.state == KeyState::Active);
        let newest = newest.ok_or_else(|| self.absent(id))?;
        let refused = |problem, remedy| Err(KeyError::not_allowed(self.key(id), problem, remedy));
        if self.profile.kv_version == KvVersion::One {
            return refused(
                "version 1 of the KV engine keeps no versions of keys",
                "create another key, and give it to the volume with `sealblk key rotate --volume PATH --key OLD \
                 --new-key NEW`, or mount version 2",
            );
        }
        if newest.bits == 0 {
            return refused(
                "it was not made here, so its length is not noted",
                "write a new version of it with Vault's own tools",
            );
        }
        let spec = KeySpec { name: newest.name, kind: newest.kind, bits: newest.bits, volume: newest.volume };
        let material = self.material(session, spec.kind, spec.bits, None)?;
        self.write(session, id, notes.current_version, &spec, &material)?;
        self.metadata(id)
    }

    fn destroy(&self, id: &KeyId) -> Result<(), KeyError> {
        let session = self.session()?;
        let notes = self.notes(session, id)?;
        match id.version() {
            Some(version) if !notes.has_version(version) => Err(self.absent(id)),
            Some(version) if self.profile.kv_version == KvVersion::Two => {
                let path = format!("{}/destroy/{}", encoded(&self.profile.mount), encoded(id.name()));
                let body = format!("{{\"versions\":[{version}]}}");
                let call = Call { method: Method::Post, path: &path, body: Some(body.as_bytes()) };
                self.done(session, &self.key(id), &call, &[200, 204]).map(drop)
            }
            _ => self.remove(session, id),
        }
    }
}

fn kind_name(kind: KeyKind) -> &'static str {
    match kind {
        KeyKind::Symmetric => "symmetric",
        KeyKind::Passphrase => "passphrase",
    }
}
