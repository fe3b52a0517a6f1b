//! What the tools do with keys in Barbican.
//!
//! A random key is ordered, so that it is made where it is kept; what a back end cannot make (a passphrase, an uncommon
//! length) is made here and stored. The volume of a key is a *consumer* of its secret, as Cinder's volumes are of theirs:
//! whoever deletes a secret is told that it is used.

use std::thread;
use std::time::{Duration, Instant};

use base64ct::{Base64, Encoding as _};
use serde::Serialize;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::record::{Consumer, Order, Page, SERVICE, SecretRecord, uuid_of};
use super::session::{Call, KEEPS_CONSUMED, Session, WITH_CONSUMERS};
use super::{ANSWER_BYTES_MAX, Barbican, expect, refusal};
use crate::keys::http::{HttpError, Method, path_segment};
use crate::keys::{
    KeyAdmin, KeyError, KeyId, KeyKind, KeyMetadata, KeySpec, SECRET_BYTES_MAX, Secret, Subject,
};

/// Room for the JSON of a new secret: every byte of the longest one escaped, and its name.
const NEW_SECRET_BYTES_MAX: usize = 6 * SECRET_BYTES_MAX + (64 << 10);

/// The longest length that Barbican can note (a signed 16-bit number).
const BITS_NOTED_MAX: u32 = 32767;

/// Secrets asked for at a time.
const PAGE_SECRETS: u64 = 100;

/// Most secrets that are listed: many more than a project can have keys to look through.
const LISTED_MAX: u64 = 100_000;

/// Between two looks at an order.
const ORDER_WAIT: Duration = Duration::from_millis(200);

#[derive(Serialize)]
struct NewSecret<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    secret_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    algorithm: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bit_length: Option<u32>,
    payload: &'a str,
    payload_content_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_content_encoding: Option<&'static str>,
}

#[derive(Serialize)]
struct NewOrder<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    meta: OrderMeta<'a>,
}

#[derive(Serialize)]
struct OrderMeta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    algorithm: &'static str,
    bit_length: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<&'static str>,
    payload_content_type: &'static str,
}

#[derive(serde::Deserialize)]
struct NewReference {
    secret_ref: Option<String>,
    order_ref: Option<String>,
}

impl Barbican {
    /// The manager as a whole, for errors.
    fn all(&self) -> Subject {
        self.name.clone().into()
    }

    /// One page of secrets, those called `name` if it is given.
    fn page(&self, session: &Session, name: Option<&str>, offset: u64) -> Result<Page, KeyError> {
        // Barbican decodes a name twice.
        let name =
            name.map(|name| format!("&name={}", path_segment(&path_segment(name)))).unwrap_or_default();
        let path = format!("/secrets?sort=created:asc&limit={PAGE_SECRETS}&offset={offset}{name}");
        let headers = [("accept", "application/json"), WITH_CONSUMERS];
        let call = Call { method: Method::Get, path: &path, headers: &headers, body: None };
        let answer = session.call(&self.all(), &call)?;
        expect(answer, &[200], &self.all(), &session.service(), &call)?
            .into_json(ANSWER_BYTES_MAX)
            .map_err(|error| error.about(self.all(), &session.service()))
    }

    fn refuse_taken(&self, session: &Session, name: Option<&str>) -> Result<(), KeyError> {
        let Some(name) = name else { return Ok(()) };
        let taken = self.page(session, Some(name), 0)?.secrets;
        if taken.iter().any(|secret| secret.has_name(name.trim())) {
            return Err(KeyError::not_allowed(
                self.all(),
                "there is a secret of this name in the project already",
                "choose another name",
            ));
        }
        Ok(())
    }

    /// Has a key made where it is kept; `None` if that back end makes none like it.
    fn order(&self, session: &Session, spec: &KeySpec) -> Result<Option<Uuid>, KeyError> {
        let mode = match (spec.kind, spec.bits) {
            (KeyKind::Symmetric, 128 | 192 | 256) => None,
            // Two keys of 256 bits: without the mode it would be an AES key of a length that there is not.
            (KeyKind::Symmetric, 512) => Some("xts"),
            _ => return Ok(None),
        };
        let order = NewOrder {
            kind: "key",
            meta: OrderMeta {
                name: spec.name.as_deref(),
                algorithm: "aes",
                bit_length: spec.bits,
                mode,
                payload_content_type: "application/octet-stream",
            },
        };
        let body = serde_json::to_vec(&order).expect("text and numbers are JSON");
        let made = self.post(session, "/orders", &body)?;
        let order = made.order_ref.as_deref().and_then(uuid_of).ok_or_else(|| self.nonsense(session))?;
        let path = format!("/orders/{}", order.hyphenated());
        let secret = self.await_order(session, &path)?;
        // An order that stays behind does no harm.
        let _ = session
            .call(&self.all(), &Call { method: Method::Delete, path: &path, headers: &[], body: None });
        Ok(secret)
    }

    fn await_order(&self, session: &Session, path: &str) -> Result<Option<Uuid>, KeyError> {
        let deadline = Instant::now() + self.setup.time_limit();
        let headers = [("accept", "application/json")];
        let call = Call { method: Method::Get, path, headers: &headers, body: None };
        loop {
            let answer = session.call(&self.all(), &call)?;
            let order: Order = expect(answer, &[200], &self.all(), &session.service(), &call)?
                .into_json(ANSWER_BYTES_MAX)
                .map_err(|error| error.about(self.all(), &session.service()))?;
            match order.status.as_str() {
                "ACTIVE" => {
                    let secret = order.secret_ref.as_deref().and_then(uuid_of);
                    return secret.map(Some).ok_or_else(|| self.nonsense(session));
                }
                "ERROR" => return Ok(None),
                _ if Instant::now() < deadline => thread::sleep(ORDER_WAIT),
                _ => {
                    let problem = format!("{} has not made the key it was asked for yet", session.service());
                    return Err(KeyError::unreachable(self.all(), problem));
                }
            }
        }
    }

    /// Stores `material` as a secret.
    fn put(&self, session: &Session, spec: &KeySpec, material: &Secret) -> Result<Uuid, KeyError> {
        let mut encoded = Zeroizing::new(vec![0; Base64::encoded_len(material.expose())]);
        let encoded =
            Base64::encode(material.expose(), &mut encoded).expect("it has the length that it needs");
        // Barbican trims text: what that would change is stored as bytes.
        let text = str::from_utf8(material.expose()).ok().filter(|text| text.trim() == *text);
        let text = text.filter(|_| spec.kind == KeyKind::Passphrase);
        let (secret_type, algorithm) = match spec.kind {
            KeyKind::Passphrase => ("passphrase", None),
            KeyKind::Symmetric => ("symmetric", Some("aes")),
        };
        let secret = NewSecret {
            name: spec.name.as_deref(),
            secret_type,
            algorithm,
            bit_length: Some(spec.bits).filter(|bits| *bits <= BITS_NOTED_MAX),
            payload: text.unwrap_or(encoded),
            payload_content_type: if text.is_some() { "text/plain" } else { "application/octet-stream" },
            payload_content_encoding: if text.is_some() { None } else { Some("base64") },
        };
        let mut body = Zeroizing::new(Vec::with_capacity(NEW_SECRET_BYTES_MAX));
        serde_json::to_writer(&mut *body, &secret).expect("text and numbers are JSON");
        let made = self.post(session, "/secrets", &body)?;
        made.secret_ref.as_deref().and_then(uuid_of).ok_or_else(|| self.nonsense(session))
    }

    fn post(&self, session: &Session, path: &str, body: &[u8]) -> Result<NewReference, KeyError> {
        let headers = [("accept", "application/json")];
        let call = Call { method: Method::Post, path, headers: &headers, body: Some(body) };
        let answer = session.call(&self.all(), &call)?;
        expect(answer, &[200, 201, 202], &self.all(), &session.service(), &call)?
            .into_json(ANSWER_BYTES_MAX)
            .map_err(|error| error.about(self.all(), &session.service()))
    }

    /// Notes the volume, and says what became of the new secret. One that cannot be told of is not left behind.
    fn finish(&self, session: &Session, uuid: Uuid, spec: &KeySpec) -> Result<KeyMetadata, KeyError> {
        let id = KeyId::new(uuid.hyphenated().to_string());
        let consumers = spec.volume.as_deref().map(Consumer::of_volume).unwrap_or_default();
        let mut consumers = consumers.iter();
        let told = consumers.try_for_each(|consumer| self.consume(session, uuid, Method::Post, consumer));
        let record = told.and_then(|()| self.record(session, &id));
        match record.and_then(|record| record.metadata().ok_or_else(|| self.nonsense(session))) {
            Ok(metadata) => Ok(KeyMetadata { bits: spec.bits, ..metadata }),
            Err(error) => {
                let _ = self.delete(session, uuid, &[]);
                Err(error)
            }
        }
    }

    /// Registers or removes a consumer of a secret.
    fn consume(
        &self,
        session: &Session,
        uuid: Uuid,
        method: Method,
        consumer: &Consumer,
    ) -> Result<(), KeyError> {
        let body = serde_json::to_vec(consumer).expect("text is JSON");
        let path = format!("/secrets/{}/consumers", uuid.hyphenated());
        let headers = [("accept", "application/json"), WITH_CONSUMERS];
        let call = Call { method, path: &path, headers: &headers, body: Some(&body) };
        let answer = session.call(&self.all(), &call)?;
        match (answer.status(), method) {
            // Gone already.
            (404, Method::Delete) => Ok(()),
            (404..=406, _) => {
                tracing::warn!("this release of Barbican notes no volumes of secrets");
                Ok(())
            }
            _ => expect(answer, &[200], &self.all(), &session.service(), &call).map(drop),
        }
    }

    /// Registers `volume` as a consumer of a secret that has none of ours: one that was made for a volume keeps its name.
    pub(super) fn register(&self, id: &KeyId, volume: &str) -> Result<(), KeyError> {
        let uuid = self.uuid(id)?;
        let session = self.new_session()?;
        let record = self.record(&session, id)?;
        if record.consumers.iter().any(|consumer| consumer.service == SERVICE) {
            return Ok(());
        }
        let consumers = Consumer::of_volume(volume);
        consumers.iter().try_for_each(|consumer| self.consume(&session, uuid, Method::Post, consumer))
    }

    fn delete(
        &self,
        session: &Session,
        uuid: Uuid,
        headers: &[(&'static str, &str)],
    ) -> Result<u16, KeyError> {
        let path = format!("/secrets/{}", uuid.hyphenated());
        let call = Call { method: Method::Delete, path: &path, headers, body: None };
        session.call(&self.all(), &call).map(|answer| answer.status())
    }

    fn in_use(&self, id: &KeyId, by: &Consumer) -> KeyError {
        let Consumer { service, resource_type, resource_id } = by;
        KeyError::not_allowed(
            self.name.key(id),
            format!("it is in use, by {resource_type} {resource_id} of {service}"),
            "delete that first, with the tools of that service",
        )
    }

    fn nonsense(&self, session: &Session) -> KeyError {
        HttpError::NotHttp.about(self.all(), &session.service())
    }
}

impl KeyAdmin for Barbican {
    fn create(&self, spec: &KeySpec) -> Result<KeyMetadata, KeyError> {
        spec.check(&self.name, None)?;
        let session = self.session()?;
        self.refuse_taken(session, spec.name.as_deref())?;
        let uuid = match self.order(session, spec)? {
            Some(uuid) => uuid,
            None => {
                let material = spec.kind.random(spec.bits);
                let material = material.map_err(|error| KeyError::of_secret(self.all(), error))?;
                self.put(session, spec, &material)?
            }
        };
        self.finish(session, uuid, spec)
    }

    fn store(&self, spec: &KeySpec, material: &Secret) -> Result<KeyMetadata, KeyError> {
        spec.check(&self.name, Some(material))?;
        let session = self.session()?;
        self.refuse_taken(session, spec.name.as_deref())?;
        let uuid = self.put(session, spec, material)?;
        self.finish(session, uuid, spec)
    }

    fn list(&self) -> Result<Vec<KeyMetadata>, KeyError> {
        let session = self.session()?;
        let mut keys = Vec::new();
        let mut offset = 0;
        loop {
            let page = self.page(session, None, offset)?;
            offset += page.secrets.len() as u64;
            let is_last = page.secrets.is_empty() || offset >= page.total.min(LISTED_MAX);
            keys.extend(page.secrets.iter().filter_map(SecretRecord::metadata));
            if is_last {
                return Ok(keys);
            }
        }
    }

    fn metadata(&self, id: &KeyId) -> Result<KeyMetadata, KeyError> {
        self.uuid(id)?;
        let session = self.session()?;
        self.record(session, id)?.metadata().ok_or_else(|| {
            KeyError::malformed(
                self.name.key(id),
                "it is a certificate or belongs to a key pair",
                "name a symmetric key or a passphrase",
            )
        })
    }

    fn rotate(&self, id: &KeyId) -> Result<KeyMetadata, KeyError> {
        self.metadata(id)?;
        Err(KeyError::not_allowed(
            self.name.key(id),
            "a secret in Barbican never changes and has no versions",
            "create another key, and give it to the volume with `sealblk key rotate --volume PATH --key OLD \
             --new-key NEW`",
        ))
    }

    fn destroy(&self, id: &KeyId) -> Result<(), KeyError> {
        let uuid = self.uuid(id)?;
        let session = self.session()?;
        let record = self.record(session, id)?;
        if let Some(other) = record.consumers.iter().find(|consumer| consumer.service != SERVICE) {
            return Err(self.in_use(id, other));
        }
        for ours in &record.consumers {
            self.consume(session, uuid, Method::Delete, ours)?;
        }
        let subject = || Subject::from(self.name.key(id));
        let status = match self.delete(session, uuid, &[KEEPS_CONSUMED])? {
            // An older release, which does not look at consumers by itself.
            406 => self.delete(session, uuid, &[])?,
            status => status,
        };
        match status {
            200 | 204 => Ok(()),
            403 => Err(KeyError::not_allowed(
                subject(),
                format!("{} does not let this user delete it (HTTP 403)", session.service()),
                "a secret is deleted by whoever made it, or by an administrator of the project",
            )),
            404 => Err(self.absent(id)),
            // So far 400; a conflict is what it is.
            400 | 409 => Err(KeyError::not_allowed(
                subject(),
                "something began to use it just now",
                "look at it again with `sealblk key show`",
            )),
            status => {
                let call = Call { method: Method::Delete, path: "/secrets", headers: &[], body: None };
                Err(refusal(subject(), &session.service(), &call, status))
            }
        }
    }
}
