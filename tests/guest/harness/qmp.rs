//! What the host tells a running QEMU.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long QEMU may take to answer, or to come to what is waited for.
const LIMIT: Duration = Duration::from_secs(120);

/// A connection to a QEMU's monitor.
#[derive(Debug)]
pub(crate) struct Qmp {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Qmp {
    /// The arguments that make QEMU listen on `socket`.
    pub(crate) fn arguments(socket: &Path) -> [String; 2] {
        ["-qmp".to_owned(), format!("unix:{},server=on,wait=off", socket.display())]
    }

    /// Connects, once QEMU listens.
    pub(crate) fn connect(socket: &Path) -> Self {
        let deadline = Instant::now() + LIMIT;
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < deadline, "QEMU's monitor: {error}"),
            }
            sleep(Duration::from_millis(10));
        };
        stream.set_read_timeout(Some(LIMIT)).expect("a time-out that is not zero");
        let lines = BufReader::new(stream.try_clone().expect("a descriptor is left"));
        let mut qmp = Self { stream, lines };
        qmp.next();
        qmp.execute("qmp_capabilities", json!({}));
        qmp
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("QEMU answers in time");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("QEMU's monitor said '{line}': {error}"))
    }

    /// Executes a command, which must succeed, and returns what it returns.
    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Value {
        let message = json!({"execute": command, "arguments": arguments});
        writeln!(self.stream, "{message}").expect("QEMU's monitor is there");
        loop {
            let mut answer = self.next();
            assert!(answer.get("error").is_none(), "{message}: {answer}");
            if let Some(value) = answer.get_mut("return") {
                return value.take();
            }
        }
    }

    /// Asks `command` again and again, until the answer satisfies `holds`.
    pub(crate) fn wait_until(&mut self, command: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + LIMIT;
        loop {
            let answer = self.execute(command, json!({}));
            if holds(&answer) {
                return answer;
            }
            assert!(Instant::now() < deadline, "{what}: {answer}");
            sleep(Duration::from_millis(10));
        }
    }

    /// Waits until the migration has that status.
    pub(crate) fn wait_for_migration(&mut self, status: &str) -> Value {
        self.wait_until("query-migrate", status, |answer| answer["status"] == status)
    }
}
