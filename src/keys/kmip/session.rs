//! One conversation with one server: a request, its answer, the next.

use std::io::{Read, Write};

use zeroize::Zeroizing;

use super::super::remote::{Connection, Deadline, Endpoint, Failure, TlsClient};
use super::tag;
use super::ttlv::{self, HEADER_BYTES, Item, MESSAGE_BYTES_MAX, Writer};
use crate::keys::{SECRET_BYTES_MAX, SecretError, Unfit};
use crate::locked::Locked;

/// Room for a key and all that is said about it. Longer answers hold no key.
const BUFFER_BYTES: usize = 16 << 10;
const _: () = assert!(BUFFER_BYTES > SECRET_BYTES_MAX + 4096);

/// The version that is spoken: what is used of it is the same up to 1.4, and any server of the last ten years knows it.
const VERSION: (u32, u32) = (1, 2);

/// Versions of the protocol that are told of.
const VERSIONS_MAX: usize = 8;

/// What is asked of a server (KMIP 1.2, section 9.1.3.2.27).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Create = 0x01,
    Register = 0x03,
    Locate = 0x08,
    Get = 0x0a,
    GetAttributes = 0x0b,
    Activate = 0x12,
    Revoke = 0x13,
    Destroy = 0x14,
    DiscoverVersions = 0x1e,
}

/// Why an operation did not come to its end.
#[derive(Debug)]
pub(super) enum Stop {
    /// The conversation broke off, or never began.
    Failed(Failure),
    /// There is no such key, for us.
    Absent,
    /// It must not be used, or made.
    NotAllowed { problem: String, remedy: String },
    /// What was asked for, or found, makes no key.
    Unfit { problem: String, remedy: String },
    /// The server said no, for this reason.
    Refused(Reason),
    /// The server answered, and not in a way that makes sense. Says nothing of what it answered.
    Malformed(String),
    /// What it answered makes no key.
    Secret(SecretError),
}

/// A result reason of the server (section 9.1.3.2.29). The text that comes with it is not shown: what a server
/// writes there may be anything that it was sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Reason(pub(super) u32);

impl Reason {
    const NAMES: &[(u32, &'static str)] = &[
        (0x01, "item not found"),
        (0x02, "response too large"),
        (0x03, "authentication not successful"),
        (0x04, "invalid message"),
        (0x05, "operation not supported"),
        (0x06, "missing data"),
        (0x07, "invalid field"),
        (0x08, "feature not supported"),
        (0x0a, "cryptographic failure"),
        (0x0b, "illegal operation"),
        (0x0c, "permission denied"),
        (0x0d, "object archived"),
        (0x0f, "application namespace not supported"),
        (0x10, "key format type not supported"),
        (0x13, "key value not present"),
        (0x16, "sensitive"),
        (0x17, "not extractable"),
        (0x18, "object already exists"),
        (0x35, "non-unique name"),
        (0x36, "object destroyed"),
        (0x37, "object not found"),
        (0x39, "not authorised"),
        (0x43, "wrong key lifecycle state"),
        (0x100, "general failure"),
    ];

    /// Whether there is no such object, as far as this client may know.
    pub(super) fn is_absence(self) -> bool {
        matches!(self.0, 0x01 | 0x36 | 0x37)
    }

    /// Whether there may be one, for others or at other times.
    pub(super) fn is_denial(self) -> bool {
        matches!(self.0, 0x0b | 0x0c | 0x39 | 0x43)
    }

    /// Whether a name is taken.
    pub(super) fn is_taken(self) -> bool {
        matches!(self.0, 0x18 | 0x35)
    }

    /// Whether the server is unable, rather than unwilling.
    pub(super) fn is_inability(self) -> bool {
        !self.is_absence() && !self.is_denial() && !self.is_taken() && self.0 != 0x03
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match Self::NAMES.iter().find(|(number, _)| *number == self.0) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "reason {:#x}", self.0),
        }
    }
}

impl std::fmt::Debug for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

impl From<Unfit> for Stop {
    fn from(Unfit { problem, remedy }: Unfit) -> Self {
        Self::Unfit { problem, remedy }
    }
}

impl From<SecretError> for Stop {
    fn from(error: SecretError) -> Self {
        Self::Secret(error)
    }
}

/// What a message is written to and read into: locked and wiped, because it may hold a key.
struct Buffer([u8; BUFFER_BYTES]);

impl Default for Buffer {
    fn default() -> Self {
        Self([0; BUFFER_BYTES])
    }
}

/// A connection over which requests are made, one after the other.
pub(super) struct Session {
    connection: Connection,
    endpoint: Endpoint,
    buffer: Locked<Buffer>,
}

impl Session {
    pub(super) fn open(endpoint: &Endpoint, client: &TlsClient, deadline: Deadline) -> Result<Self, Stop> {
        Self::over(Connection::open(endpoint, client, deadline).map_err(Stop::Failed)?, endpoint)
    }

    /// The same over a connection to `endpoint` that there is already.
    pub(super) fn over(connection: Connection, endpoint: &Endpoint) -> Result<Self, Stop> {
        let buffer = Locked::new_with(|_: &mut Buffer| Ok(())).map_err(SecretError::Lock)?;
        Ok(Self { connection, endpoint: endpoint.clone(), buffer })
    }

    /// The versions of the protocol that the server speaks, as far as it tells whoever it lets in.
    pub(super) fn versions(&mut self) -> Result<Vec<String>, Stop> {
        let read = |payload: Item<'_>| {
            let number = |item: Item<'_>, tag| item.find(tag).and_then(Item::number);
            let version = |item: Item<'_>| {
                let major = number(item, tag::PROTOCOL_VERSION_MAJOR)?;
                Some(format!("{major}.{}", number(item, tag::PROTOCOL_VERSION_MINOR)?))
            };
            let versions = payload.items().filter(|item| item.tag() == tag::PROTOCOL_VERSION);
            Ok(versions.filter_map(version).take(VERSIONS_MAX).collect())
        };
        match self.ask(Operation::DiscoverVersions, |_| {}, read) {
            // Whoever does not know the question has let us in.
            Err(Stop::Refused(reason)) if reason.is_inability() => Ok(Vec::new()),
            result => result,
        }
    }

    /// Asks for `operation` with what `write` puts into the request, and gives the payload of the answer to `read`.
    pub(super) fn ask<T>(
        &mut self,
        operation: Operation,
        write: impl FnOnce(&mut Writer<'_>),
        read: impl FnOnce(Item<'_>) -> Result<T, Stop>,
    ) -> Result<T, Stop> {
        let filled_bytes = request(&mut self.buffer.0, operation, write)
            .ok_or_else(|| Stop::Malformed("the request is too long".to_owned()))?;
        let sent = self.connection.write_all(&self.buffer.0[..filled_bytes]);
        sent.and_then(|()| self.connection.flush()).map_err(|error| self.failed("asking", error))?;
        let mut header = [0; HEADER_BYTES];
        self.connection.read_exact(&mut header).map_err(|error| self.failed("the answer of", error))?;
        let length = ttlv::announced_bytes(&header).ok_or_else(|| {
            Stop::Malformed("it does not begin like an answer, or would be longer than any".to_owned())
        })?;
        let whole_bytes = HEADER_BYTES + length;
        // Zeroed as a whole: it does not grow, so nothing of it is left elsewhere.
        let mut long = Zeroizing::new(vec![0; if whole_bytes > BUFFER_BYTES { whole_bytes } else { 0 }]);
        let message = match long.is_empty() {
            true => &mut self.buffer.0[..whole_bytes],
            false => &mut long[..],
        };
        message[..HEADER_BYTES].copy_from_slice(&header);
        if let Err(error) = self.connection.read_exact(&mut message[HEADER_BYTES..]) {
            return Err(self.failed("the answer of", error));
        }
        answer(message, operation, read)
    }

    fn failed(&self, doing: &str, error: std::io::Error) -> Stop {
        Stop::Failed(Failure::of_io(&format!("{doing} {}", self.endpoint), error))
    }
}

/// Writes a request of one operation, and says how long it is if it fits.
fn request(buffer: &mut [u8], operation: Operation, write: impl FnOnce(&mut Writer<'_>)) -> Option<usize> {
    let mut writer = Writer::new(buffer);
    writer.structure(tag::REQUEST_MESSAGE, |writer| {
        writer.structure(tag::REQUEST_HEADER, |writer| {
            writer.structure(tag::PROTOCOL_VERSION, |writer| {
                writer.integer(tag::PROTOCOL_VERSION_MAJOR, VERSION.0);
                writer.integer(tag::PROTOCOL_VERSION_MINOR, VERSION.1);
            });
            writer.integer(tag::MAXIMUM_RESPONSE_SIZE, MESSAGE_BYTES_MAX as u32);
            writer.integer(tag::BATCH_COUNT, 1);
        });
        writer.structure(tag::BATCH_ITEM, |writer| {
            writer.enumeration(tag::OPERATION, operation as u32);
            writer.structure(tag::REQUEST_PAYLOAD, write);
        });
    });
    writer.finish()
}

/// Gives the payload of an answer to `read`, if it is an answer to `operation` that says yes.
fn answer<T>(
    message: &[u8],
    operation: Operation,
    read: impl FnOnce(Item<'_>) -> Result<T, Stop>,
) -> Result<T, Stop> {
    let malformed = |problem: &str| Stop::Malformed(problem.to_owned());
    let message = Item::parse(message).map_err(|error| Stop::Malformed(error.to_string()))?;
    if message.tag() != tag::RESPONSE_MESSAGE {
        return Err(malformed("it is no answer"));
    }
    let item = message.find(tag::BATCH_ITEM).ok_or_else(|| malformed("it is empty"))?;
    let number = |tag| item.find(tag).and_then(Item::number);
    match number(tag::RESULT_STATUS) {
        Some(0) => {}
        Some(1) => return Err(Stop::Refused(Reason(number(tag::RESULT_REASON).unwrap_or(0x100)))),
        _ => return Err(malformed("it says neither yes nor no")),
    }
    if number(tag::OPERATION) != Some(operation as u32) {
        return Err(malformed("it answers something else"));
    }
    read(item.find(tag::RESPONSE_PAYLOAD).ok_or_else(|| malformed("it has no payload"))?)
}

/// The text of the item `tag` in `payload`, which has to be there.
pub(super) fn text(payload: Item<'_>, tag: u32) -> Result<String, Stop> {
    let found = payload.find(tag).and_then(Item::text);
    found.map(str::to_owned).ok_or_else(|| Stop::Malformed("something is missing in it".to_owned()))
}

/// For the fuzzer: reads `bytes` as an answer to each operation, as a session would.
#[doc(hidden)]
pub fn read_any_answer(bytes: &[u8]) {
    use super::object;
    let _ = answer(bytes, Operation::Get, object::material);
    let _ = answer(bytes, Operation::GetAttributes, object::Found::read);
    let _ = answer(bytes, Operation::Locate, object::identifiers);
}
