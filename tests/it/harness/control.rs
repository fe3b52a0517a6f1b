//! A client of the control socket that knows nothing but lines of JSON.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

use super::ring::PATIENCE;

/// A connection to the control socket.
pub struct Control {
    stream: BufReader<UnixStream>,
}

impl Control {
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("connect to the control socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("set a deadline");
        Self { stream: BufReader::new(stream) }
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).expect("send to the control socket");
    }

    /// Sends bytes as they are; `false` when the other side has cut the connection.
    pub fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.get_mut().write_all(bytes).is_ok()
    }

    /// Sends a command without waiting.
    pub fn begin(&mut self, command: &str) {
        self.send(format!("{}\n", json!({ "command": command })).as_bytes());
    }

    /// The next line; `None` at the end of the connection.
    pub fn answer(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.stream.read_line(&mut line).expect("an answer within bounds") {
            0 => None,
            _ => Some(serde_json::from_str(&line).expect("a line of JSON")),
        }
    }

    /// Gives a command, which must succeed.
    #[track_caller]
    pub fn done(&mut self, command: &str) -> Value {
        self.begin(command);
        let mut answer = self.answer().expect("an answer");
        assert_eq!(answer["version"], 1, "{answer}");
        assert!(answer.get("error").is_none(), "{command}: {answer}");
        answer["result"].take()
    }

    /// Gives a command, which must fail. Returns the kind of failure and the message.
    #[track_caller]
    pub fn failed(&mut self, command: &str) -> (String, String) {
        self.begin(command);
        let answer = self.answer().expect("an answer");
        assert!(answer.get("result").is_none(), "{command}: {answer}");
        let text = |name: &str| answer["error"][name].as_str().expect("text").to_owned();
        (text("kind"), text("message"))
    }
}
