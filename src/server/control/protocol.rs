//! What goes over the control socket: one JSON object a line, a request and its answer in turn.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use crate::worker::rate_limits::{Limits, Rate};
pub use crate::worker::{QueueState, QueueView, Tally};

/// The version of this protocol. It grows when a client of the last one would be misled.
pub const VERSION: u32 = 1;

/// Longest request, its end of line included.
pub const REQUEST_BYTES_MAX: usize = 4096;

/// Longest answer that a client has to expect, its end of line included: the status of the most queues, and room.
pub const ANSWER_BYTES_MAX: usize = 1 << 18;

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// To be told of the disk, its front end and its queues: [`Status`].
    Status,
    /// To answer what was taken, make it durable, and take nothing until told to resume.
    Drain,
    /// To end a drain.
    Resume,
    /// To drain, and to wipe the key.
    Suspend,
    /// To take the key back, which comes with the request as a sealed memory file, and to let the queues run.
    ResumeKey,
    /// To show the guest how far the volume has grown: [`Resized`].
    Resize,
    /// To make everything answered so far durable.
    Flush,
    /// To try the requests again that storage has failed and that are held.
    Retry,
    /// To hand the vhost-user socket over to a successor: [`HandedOver`], with the descriptor if there is one, once
    /// everything is durable. Then to end.
    TakeOver,
    /// To limit how much the guest may ask for, or no longer: the result is these [`Limits`], the bursts settled.
    Limit(Limits),
    /// To end as after SIGTERM. The answer comes when everything is durable.
    Shutdown,
}

/// One line of a client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Of the protocol: [`VERSION`], which is what a request without means.
    #[serde(default = "current_version")]
    pub version: u32,
    /// Comes back in the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Value>,
    /// What to do.
    pub command: Command,
}

fn current_version() -> u32 {
    VERSION
}

impl Request {
    /// A request of this version.
    pub fn new(command: Command) -> Self {
        Self { version: VERSION, id: None, command }
    }

    /// Reads a client's line.
    ///
    /// # Errors
    /// The answer to one that is not understood.
    pub fn parse(line: &[u8]) -> Result<Self, Answer> {
        let fault = |id, message| Answer::new(id, Err(Fault { kind: FaultKind::Request, message }));
        // Two steps, so that the answer to what is not understood has the request's id wherever there is one.
        let value: Value = serde_json::from_slice(line)
            .map_err(|error| fault(None, format!("a request is one JSON object a line: {error}")))?;
        let id = value.get("id").cloned();
        let request = serde_json::from_value::<Self>(value).map_err(|error| fault(id, error.to_string()))?;
        if request.version != VERSION {
            let message = format!("version {} is not known: this is version {VERSION}", request.version);
            return Err(fault(request.id, message));
        }
        Ok(request)
    }
}

/// One line of the server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Of the protocol.
    pub version: u32,
    /// The request's, if it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Value>,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It was done: an object that depends on the command.
    Result(Value),
    /// It was not.
    Error(Fault),
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// For programs.
    pub kind: FaultKind,
    /// For people.
    pub message: String,
}

/// What is to be done about a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// The request is wrong.
    Request,
    /// The request is right, but not now; nothing has changed.
    Refused,
    /// It was tried and has failed.
    Failed,
}

impl Answer {
    /// An answer of this version.
    pub fn new(id: Option<Value>, outcome: Result<Value, Fault>) -> Self {
        let outcome = outcome.map_or_else(Outcome::Error, Outcome::Result);
        Self { version: VERSION, id, outcome }
    }

    /// The answer as a line.
    pub fn line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("there is nothing in an answer that JSON has not");
        line.push(b'\n');
        line
    }
}

/// The result of [`Command::Resize`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resized {
    /// The size of the disk before.
    pub before_bytes: u64,
    /// The size now.
    pub capacity_bytes: u64,
    /// Whether the front end was told. One that was not sees the new size when it asks the next time.
    pub vmm_told: bool,
}

/// The result of [`Command::TakeOver`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HandedOver {
    /// A listening socket, which comes with the answer, and its file if the server has made one.
    Listening(Option<PathBuf>),
    /// The VMM listens here.
    Connecting(PathBuf),
}

/// The result of [`Command::Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The version of sealblk.
    pub sealblk: String,
    /// The process.
    pub pid: u32,
    /// Whether a front end is connected.
    pub vmm_connected: bool,
    /// Whether the operator lets no queue run.
    pub drained: bool,
    /// Whether the key is wiped.
    #[serde(default)]
    pub suspended: bool,
    /// How much the guest may ask for.
    #[serde(default)]
    pub limits: Limits,
    /// The volume.
    pub volume: VolumeStatus,
    /// Each queue, from 0 on.
    pub queues: Vec<QueueView>,
}

/// The served volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// The backing file or block device, as it was named.
    pub path: String,
    /// The size of the guest's disk.
    pub capacity_bytes: u64,
    /// The encryption sector size.
    pub sector_bytes: u32,
    /// The guest's block size.
    pub block_bytes: u32,
    /// Whether there is a cipher between guest and storage.
    pub encrypted: bool,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether writes may be answered before they are durable.
    pub write_cache: bool,
    /// Whether making writes durable has failed: then flushes fail until the volume is served anew.
    pub sync_failed: bool,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(line: &str) -> Result<Request, (Option<Value>, String)> {
        Request::parse(line.as_bytes()).map_err(|answer| match answer.outcome {
            Outcome::Error(Fault { kind: FaultKind::Request, message }) => (answer.id, message),
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn a_request_is_a_command_with_or_without_version_and_id() {
        assert_eq!(parse(r#"{"command":"status"}"#), Ok(Request::new(Command::Status)));
        let full = parse(r#"{"version":1,"id":{"n":[7]},"command":"drain"}"#).unwrap();
        assert_eq!((full.id, full.command), (Some(json!({"n": [7]})), Command::Drain));
    }

    #[test]
    fn limits_come_with_their_command() {
        let line = r#"{"command":{"limit":{"requests":{"per_second":500},"bytes":null}}}"#;
        let rate = Rate { per_second: 500.try_into().unwrap(), burst: None };
        let limits = Limits { requests: Some(rate), bytes: None };
        assert_eq!(parse(line), Ok(Request::new(Command::Limit(limits))));
        assert_eq!(parse(r#"{"command":{"limit":{}}}"#), Ok(Request::new(Command::Limit(Limits::default()))));
        for (line, part) in [
            (r#"{"command":"limit"}"#, "newtype variant"),
            (r#"{"command":{"limit":{"requests":{"per_second":0}}}}"#, "nonzero"),
            (r#"{"command":{"limit":{"iops":{"per_second":1}}}}"#, "iops"),
        ] {
            let (_, message) = parse(line).unwrap_err();
            assert!(message.contains(part), "{line}: {message}");
        }
    }

    #[test]
    fn what_is_not_understood_is_answered_with_its_id() {
        for (line, id, part) in [
            ("", None, "one JSON object a line"),
            ("\u{0}\u{1}", None, "one JSON object a line"),
            ("[]", None, "invalid"),
            (r#"{"id":1}"#, Some(json!(1)), "command"),
            (r#"{"id":"a","command":"stattus"}"#, Some(json!("a")), "stattus"),
            (r#"{"id":2,"command":"status","more":0}"#, Some(json!(2)), "more"),
            (r#"{"id":3,"command":"status","version":2}"#, Some(json!(3)), "version 2"),
        ] {
            let (answered, message) = parse(line).unwrap_err();
            assert_eq!(answered, id, "{line}");
            assert!(message.contains(part), "{line}: {message}");
        }
    }

    #[test]
    fn an_answer_is_a_result_or_an_error_on_one_line() {
        let done = Answer::new(Some(json!(7)), Ok(json!({"drained": true})));
        assert_eq!(done.line(), b"{\"version\":1,\"id\":7,\"result\":{\"drained\":true}}\n");
        let fault = Fault { kind: FaultKind::Refused, message: "not\nnow".into() };
        let refused = Answer::new(None, Err(fault));
        let line = br#"{"version":1,"error":{"kind":"refused","message":"not\nnow"}}"#;
        assert_eq!(refused.line(), [line, &b"\n"[..]].concat());
        for answer in [done, refused] {
            assert_eq!(serde_json::from_slice::<Answer>(&answer.line()).unwrap(), answer);
        }
    }
}
