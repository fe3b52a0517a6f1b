//! A program that runs until it has printed a key, or until its time is over.

use std::env;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::Profile;
use crate::keys::{Secret, SecretError};

/// Where programs are looked for by what is run; not where it is itself, which is named by its whole path.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Most of a program's complaint that is kept.
const COMPLAINT_BYTES_MAX: usize = 200;

/// Why waiting for a command was given up.
pub(super) enum Interruption {
    /// Its time was over.
    TimedOut,
    /// The kernel refused to tell what becomes of it.
    Watch(io::Error),
    /// It printed something that is no secret.
    Secret(SecretError),
}

impl From<SecretError> for Interruption {
    fn from(error: SecretError) -> Self {
        Self::Secret(error)
    }
}

/// A program that was started. It ends, with its process group, when this is dropped.
pub(super) struct Running {
    child: Child,
    /// Readable once the child has exited.
    exit: OwnedFd,
    is_reaped: bool,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    complaint: Vec<u8>,
}

/// What can be gone on with.
struct Ready {
    stdout: bool,
    stderr: bool,
    exit: bool,
}

impl Running {
    /// Starts what `profile` says.
    pub(super) fn start(profile: &Profile) -> io::Result<Self> {
        let mut child = Command::new(&profile.argv.program)
            .args(&profile.argv.arguments)
            .env_clear()
            .env("PATH", SEARCH_PATH)
            .envs(profile.pass_environment.iter().filter_map(|name| Some((name, env::var_os(name)?))))
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(if profile.show_errors { Stdio::piped() } else { Stdio::null() })
            .spawn()?;
        let exit = match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(exit) => exit,
            Err(error) => {
                child.kill()?;
                child.wait()?;
                return Err(error.into());
            }
        };
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        Ok(Self { child, exit, is_reaped: false, stdout, stderr, complaint: Vec::new() })
    }

    /// Takes what it prints until it has exited and nobody can print more, or until `deadline`.
    pub(super) fn collect(&mut self, deadline: Instant) -> Result<Secret, Interruption> {
        Secret::fill(|buffer| {
            let mut filled_bytes = 0;
            let mut has_exited = false;
            while self.stdout.is_some() || !has_exited {
                let ready = self.wait(has_exited, deadline)?;
                if ready.stderr {
                    self.listen();
                }
                if ready.stdout {
                    match self.read(&mut buffer[filled_bytes..])? {
                        0 => self.stdout = None,
                        read_bytes => filled_bytes += read_bytes,
                    }
                }
                if filled_bytes == buffer.len() {
                    break;
                }
                if ready.exit {
                    has_exited = true;
                    // Whoever it left behind may hold its output open, and would never be done.
                    self.end_group();
                }
            }
            Ok(filled_bytes)
        })
    }

    /// Ends it, if it has not ended, and everything that is left of its process group.
    pub(super) fn end(&mut self) -> io::Result<ExitStatus> {
        if !self.is_reaped {
            self.end_group();
        }
        let status = self.child.wait()?;
        self.is_reaped = true;
        Ok(status)
    }

    /// The beginning of what it complained of.
    pub(super) fn complaint(&self) -> &[u8] {
        &self.complaint
    }

    /// To be called before the child is reaped: until then, the group's number is not given to another.
    fn end_group(&self) {
        // It fails when there is nobody left.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
    }

    fn wait(&self, has_exited: bool, deadline: Instant) -> Result<Ready, Interruption> {
        let watched: [Option<BorrowedFd<'_>>; 3] = [
            self.stdout.as_ref().map(AsFd::as_fd),
            self.stderr.as_ref().map(AsFd::as_fd),
            Some(self.exit.as_fd()).filter(|_| !has_exited),
        ];
        let mut fds: Vec<PollFd<'_>> =
            watched.iter().flatten().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let limit = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            match poll(&mut fds, Some(&limit)) {
                // Even a program that prints without end runs out of time.
                Ok(_) if left.is_zero() => return Err(Interruption::TimedOut),
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => break,
                Err(error) => return Err(Interruption::Watch(error.into())),
            }
        }
        let mut answers = fds.iter().map(|fd| !fd.revents().is_empty());
        let [stdout, stderr, exit] = watched.map(|fd| fd.is_some() && answers.next() == Some(true));
        Ok(Ready { stdout, stderr, exit })
    }

    fn read(&mut self, into: &mut [u8]) -> Result<usize, SecretError> {
        let Some(stdout) = &mut self.stdout else { return Ok(0) };
        stdout.read(into).map_err(SecretError::Read)
    }

    /// Keeps the beginning of what it complains of; the rest is taken and dropped, so that it can go on.
    fn listen(&mut self) {
        let mut bytes = [0; 1024];
        let Some(stderr) = &mut self.stderr else { return };
        match stderr.read(&mut bytes) {
            Ok(0) | Err(_) => self.stderr = None,
            Ok(read_bytes) => {
                let free_bytes = COMPLAINT_BYTES_MAX - self.complaint.len();
                self.complaint.extend_from_slice(&bytes[..read_bytes.min(free_bytes)]);
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Nothing better can be done about a child that cannot be waited for.
        let _ = self.end();
    }
}
