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
        let greeting = qmp.next().and_then(|_| qmp.execute("qmp_capabilities", json!({})));
        greeting.unwrap_or_else(|why| panic!("{why}"));
        qmp
    }

    fn next(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        self.lines
            .read_line(&mut line)
            .map_err(|error| format!("QEMU's monitor does not answer: {error}"))?;
        serde_json::from_str(&line).map_err(|error| format!("QEMU's monitor said '{line}': {error}"))
    }

    /// Executes a command, and returns what it returns, or why it failed.
    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let message = json!({"execute": command, "arguments": arguments});
        // In one piece: QEMU executes a command at its last bracket, and is gone after `quit`.
        let line = format!("{message}\n");
        self.stream
            .write_all(line.as_bytes())
            .map_err(|error| format!("QEMU's monitor does not take {message}: {error}"))?;
        loop {
            let mut answer = self.next()?;
            if answer.get("error").is_some() {
                return Err(format!("{message}: {answer}"));
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    /// Asks `command` again and again, until the answer satisfies `holds`.
    pub(crate) fn wait_until(
        &mut self,
        command: &str,
        what: &str,
        holds: impl Fn(&Value) -> bool,
    ) -> Result<Value, String> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let answer = self.execute(command, json!({}))?;
            if holds(&answer) {
                return Ok(answer);
            }
            if Instant::now() > deadline {
                return Err(format!("{what}: {answer}"));
            }
            sleep(Duration::from_millis(10));
        }
    }
}
