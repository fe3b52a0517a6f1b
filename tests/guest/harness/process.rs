//! A child process that cannot outlive its test and never makes it wait for ever.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// How much of a log a failing test shows.
const TAIL_BYTES: usize = 6000;

/// A running child whose standard output and error go to a file. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `program`; what it prints is appended to `log`.
    pub(crate) fn spawn(name: &str, program: &Path, arguments: &[String], log: &Path) -> Self {
        let output = File::options().create(true).append(true).open(log).expect("the log can be opened");
        let child = Command::new("setpriv")
            // A test that is killed runs no destructors: the kernel then ends its children.
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a descriptor is left"))
            .stderr(output)
            .spawn()
            .expect("setpriv, of util-linux, can be started");
        Self { name: name.to_owned(), child, log: log.to_owned() }
    }

    /// Waits until the process has ended; `None` if it has not within `limit`.
    pub(crate) fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        if let Some(status) = self.child.try_wait().expect("the child is ours to wait for") {
            return Some(status);
        }
        let pidfd = pidfd_open(self.pid(), PidfdFlags::empty()).expect("the child is not reaped yet");
        let limit = Timespec::try_from(limit).expect("limits are minutes");
        poll(&mut [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)], Some(&limit))
            .expect("poll of one descriptor");
        self.child.try_wait().expect("the child is ours to wait for")
    }

    /// Ends the process wherever it is, and waits until nothing is left of it.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("the child is not reaped yet");
        self.child.wait().expect("the child is ours to wait for");
    }

    /// Asks the process to end.
    pub(crate) fn terminate(&self) {
        kill_process(self.pid(), Signal::TERM).expect("the child is not reaped yet");
    }

    /// The name and the end of what the process has printed, for the message of a failing test.
    pub(crate) fn tail(&self) -> String {
        format!("--- {} (pid {}) printed last:\n{}\n", self.name, self.child.id(), tail(&self.log))
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

/// The end of what a log holds.
pub(crate) fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(TAIL_BYTES)..]).replace('\r', "");
    text.trim_end().to_owned()
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only for a process that has already been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
