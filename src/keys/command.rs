//! `command:NAME`: what a program prints.
//!
//! For whatever has a command-line tool and no manager of its own here (`pass`, `op`, a script). What is run stands in the
//! key configuration file, which only its owner can change, and never in an argument. It is run without a shell, in `/`,
//! with nothing on its standard input, with the environment variable `PATH` and those that its table lets through, and it
//! is ended, with all of its process group, when it takes too long.

mod running;

use std::io::{self, ErrorKind};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use serde::Deserialize;

use running::{Interruption, Running};

use super::config::Profiles;
use super::reference::{KeyReference, ManagerName};
use super::scheme::Scheme;
use super::{KeyError, KeyId, KeyManager, Secret, SecretError};

pub(super) const SCHEME: Scheme = Scheme {
    name: "command",
    usage: "command:NAME",
    takes_profile: false,
    takes_version: false,
    open: |opening| Ok(Box::new(KeyCommands::new(opening.config()?.command.clone()))),
    administer: None,
};

/// Exit statuses that say what kind of failure it was (sysexits.h).
const EX_NOINPUT: i32 = 66;
const EX_NOPERM: i32 = 77;

/// A table `[command.NAME]` of the key configuration file: how to get one key.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Profile {
    /// The program's whole path and its arguments. No key belongs there: every user of the host can see them.
    argv: Argv,
    /// How long it may take.
    #[serde(default)]
    timeout_seconds: TimeoutSeconds,
    /// Environment variables of ours that it gets.
    #[serde(default)]
    pass_environment: Vec<String>,
    /// Whether the first line of what it complains of is repeated in errors: only where it never complains of a key.
    #[serde(default)]
    show_errors: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Vec<String>")]
struct Argv {
    program: String,
    arguments: Vec<String>,
}

impl TryFrom<Vec<String>> for Argv {
    type Error = &'static str;

    fn try_from(mut argv: Vec<String>) -> Result<Self, Self::Error> {
        if !argv.first().is_some_and(|program| program.starts_with('/')) {
            return Err("argv begins with the program's whole path");
        }
        if argv.iter().any(|argument| argument.contains('\0')) {
            return Err("argv has a zero byte in it");
        }
        let arguments = argv.split_off(1);
        Ok(Self { program: argv.remove(0), arguments })
    }
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "u64")]
struct TimeoutSeconds(u64);

impl Default for TimeoutSeconds {
    fn default() -> Self {
        Self(30)
    }
}

impl TryFrom<u64> for TimeoutSeconds {
    type Error = &'static str;

    fn try_from(seconds: u64) -> Result<Self, Self::Error> {
        if (1..=3600).contains(&seconds) { Ok(Self(seconds)) } else { Err("timeout-seconds is 1 to 3600") }
    }
}

/// Keys that programs print, one for each table.
#[derive(Debug)]
pub struct KeyCommands {
    commands: Profiles<Profile>,
}

impl KeyCommands {
    /// The keys that these commands print.
    pub fn new(commands: Profiles<Profile>) -> Self {
        Self { commands }
    }
}

impl KeyManager for KeyCommands {
    fn fetch(&self, id: &KeyId) -> Result<Secret, KeyError> {
        let key = ManagerName::new(&SCHEME).key(id);
        let Some(profile) = self.commands.get(id.name()) else {
            let remedy = "the key configuration file has no such table (see --key-config)";
            return Err(KeyError::not_found(key, remedy));
        };
        let deadline = Instant::now() + Duration::from_secs(profile.timeout_seconds.0);
        let mut running = Running::start(profile).map_err(|error| refusal_to_start(&key, profile, error))?;
        let collected = running.collect(deadline);
        let status = match running.end() {
            Ok(status) => status,
            Err(error) => return Err(unwatched(key, error)),
        };
        match collected {
            Ok(secret) if status.success() => Ok(secret),
            Ok(_) => Err(failure(key, profile, status, running.complaint())),
            Err(Interruption::Secret(SecretError::Empty)) if !status.success() => {
                Err(failure(key, profile, status, running.complaint()))
            }
            Err(Interruption::Secret(error)) => Err(KeyError::of_secret(key, error)),
            Err(Interruption::Watch(error)) => Err(unwatched(key, error)),
            Err(Interruption::TimedOut) => Err(KeyError::unreachable(
                key,
                format!("its command was not done after {} s (timeout-seconds)", profile.timeout_seconds.0),
            )),
        }
    }
}

fn unwatched(key: KeyReference, error: io::Error) -> KeyError {
    KeyError::unreachable_because(key, "its command cannot be watched", error)
}

fn refusal_to_start(key: &KeyReference, profile: &Profile, error: io::Error) -> KeyError {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::OutOfMemory => {
            KeyError::unreachable_because(key.clone(), "its command cannot be started", error)
        }
        _ => KeyError::not_allowed(
            key.clone(),
            format!("{} cannot be run ({error})", profile.argv.program),
            "correct argv in the key configuration file",
        ),
    }
}

/// What it means that a command failed. Where its exit status says nothing, trying again may help, as with most of what
/// asks over a network.
fn failure(key: KeyReference, profile: &Profile, status: ExitStatus, complaint: &[u8]) -> KeyError {
    let complaint = match first_line(complaint) {
        Some(line) => format!("it says: {line}"),
        None if profile.show_errors => "it says nothing".to_owned(),
        None => "what it says is not shown (see show-errors)".to_owned(),
    };
    let problem = format!("its command ended with {status}; {complaint}");
    match status.code() {
        Some(EX_NOINPUT) => KeyError::not_found(key, problem),
        Some(EX_NOPERM) => KeyError::not_allowed(key, problem, "see what the command needs"),
        _ => KeyError::unreachable(key, problem),
    }
}

/// The first line of `bytes` with something in it, cut to a bearable length and harmless to show.
fn first_line(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty())?;
    Some(line.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;
    use crate::keys::SECRET_BYTES_MAX;

    /// The manager with one command, a shell script, and more lines in its table.
    fn commands(script: &str, more: &str) -> KeyCommands {
        let table = format!("argv = ['/bin/sh', '-c', \"\"\"{script}\"\"\"]\n{more}");
        KeyCommands::new(toml::from_str(&format!("[vm1]\n{table}")).unwrap())
    }

    fn fetch(script: &str) -> Result<Secret, KeyError> {
        commands(script, "").fetch(&KeyId::new("vm1"))
    }

    #[test]
    fn what_a_command_prints_is_the_key() {
        assert_eq!(fetch("printf 'key of vm1'").unwrap().expose(), b"key of vm1");
        assert_eq!(fetch("printf key; printf ' of '; printf vm1").unwrap().expose(), b"key of vm1");
        let longest = format!("head -c {SECRET_BYTES_MAX} /dev/zero");
        assert_eq!(fetch(&longest).unwrap().expose().len(), SECRET_BYTES_MAX);
    }

    #[test]
    fn nothing_too_much_and_endless_are_refused() {
        for script in ["exit 0", "head -c 8193 /dev/zero", "exec cat /dev/zero", "exec yes"] {
            let error = fetch(script).unwrap_err();
            assert!(matches!(error, KeyError::Malformed { .. }), "{script}: {error}");
        }
    }

    #[test]
    fn failures_are_told_apart_by_exit_status() {
        for (script, expected) in [
            ("exit 66", "not found"),
            ("exit 77", "refused"),
            ("exit 1", "cannot be reached"),
            ("exit 75", "cannot be reached"),
            ("printf key; exit 1", "cannot be reached"),
            ("kill -9 $$", "cannot be reached"),
        ] {
            let error = fetch(script).unwrap_err().to_string();
            assert!(error.starts_with(&format!("key command:vm1 {expected}: ")), "{script}: {error}");
        }
        let missing = "[vm1]\nargv = ['/nonexistent/program']";
        let commands = KeyCommands::new(toml::from_str(missing).unwrap());
        let error = commands.fetch(&KeyId::new("vm1")).unwrap_err();
        assert!(matches!(error, KeyError::NotAllowed { .. }), "{error}");
        assert!(error.to_string().contains("/nonexistent/program"), "{error}");
        let error = commands.fetch(&KeyId::new("vm2")).unwrap_err();
        assert!(matches!(error, KeyError::NotFound { .. }), "{error}");
    }

    #[test]
    fn its_complaints_are_repeated_only_when_that_is_allowed() {
        let script = "echo; echo s3cret >&2; echo more >&2; exit 1";
        let error = fetch(script).unwrap_err().to_string();
        assert!(!error.contains("s3cret") && error.contains("show-errors"), "{error}");
        let error = commands(script, "show-errors = true").fetch(&KeyId::new("vm1")).unwrap_err().to_string();
        assert!(error.ends_with("it says: s3cret"), "{error}");
        let silent = commands("exit 1", "show-errors = true").fetch(&KeyId::new("vm1")).unwrap_err();
        assert!(silent.to_string().ends_with("it says nothing"), "{silent}");
        let endless = commands("yes 2>/dev/null | head -c 300000 >&2; exit 66", "show-errors = true");
        let error = endless.fetch(&KeyId::new("vm1")).unwrap_err();
        assert!(error.to_string().ends_with("it says: y"), "{error}");
        let long = commands("head -c 1000 /dev/zero | tr '\\\\0' '~' >&2; exit 66", "show-errors = true");
        let error = long.fetch(&KeyId::new("vm1")).unwrap_err().to_string();
        assert_eq!(error.matches('~').count(), 200, "{error}");
    }

    #[test]
    fn a_command_that_hangs_is_ended_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("alive");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        // Both hold the FIFO open for writing, so that it is at its end once both are gone.
        let script = format!("exec 3>'{}'; sleep 1000 & echo up >&3; sleep 1000", fifo.display());
        let mut running = Running::start(&commands(&script, "").commands["vm1"]).unwrap();
        let mut alive = File::open(&fifo).unwrap();
        let mut up = [0; 3];
        alive.read_exact(&mut up).unwrap();

        assert!(matches!(running.collect(Instant::now()), Err(Interruption::TimedOut)));
        drop(running);
        let limit = Timespec { tv_sec: 60, tv_nsec: 0 };
        let ended = poll(&mut [PollFd::new(&alive, PollFlags::IN)], Some(&limit)).unwrap();
        assert_eq!((ended, alive.read(&mut up).unwrap()), (1, 0), "somebody is left");
    }

    #[test]
    fn what_a_command_leaves_running_does_not_hold_up_the_key() {
        assert_eq!(fetch("sleep 1000 & printf key").unwrap().expose(), b"key");
    }

    #[test]
    fn it_sees_what_it_is_given_and_nothing_else() {
        let seen = fetch("env; pwd; readlink /proc/self/fd/0").unwrap();
        let seen = str::from_utf8(seen.expose()).unwrap();
        let mut lines: Vec<&str> = seen.lines().filter(|line| !line.starts_with("_=")).collect();
        lines.sort_unstable();
        assert_eq!(
            lines,
            ["/", "/dev/null", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PWD=/"]
        );
        // Cargo sets this one for tests.
        let passed =
            commands("printf %s $CARGO_PKG_NAME", "pass-environment = ['CARGO_PKG_NAME', 'NOT_SET_AT_ALL']");
        assert_eq!(passed.fetch(&KeyId::new("vm1")).unwrap().expose(), b"sealblk");
    }

    #[test]
    fn tables_that_make_no_sense_are_refused() {
        for (table, complaint) in [
            ("argv = []", "whole path"),
            ("argv = ['sh']", "whole path"),
            ("argv = ['/bin/sh', \"a\\u0000b\"]", "zero byte"),
            ("argv = ['/bin/sh']\ntimeout-seconds = 0", "1 to 3600"),
            ("argv = ['/bin/sh']\ntimeout-seconds = 3601", "1 to 3600"),
            ("argv = ['/bin/sh']\nshell = true", "shell"),
            ("timeout-seconds = 1", "argv"),
        ] {
            let error = toml::from_str::<Profile>(table).unwrap_err();
            assert!(error.message().contains(complaint), "{table}: {error}");
        }
    }
}
