//! A `sealblk serve` process: started, watched by a deadline, and never left behind.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};
use tempfile::TempDir;

use super::control::Control;
use super::ring::poll_readable;
use super::volume::{Layout, Volume, golden, write_key};

/// No test keeps a process longer than this: a hang ends as a failure.
const LIFETIME: Duration = Duration::from_secs(75);
const START_TIMEOUT: Duration = Duration::from_secs(20);
const EXIT_TIMEOUT: Duration = Duration::from_secs(20);

/// What a process may take beside its queues: the program, its libraries, and what they allocate.
const BASE_BYTES: u64 = 24 << 20;
/// What it may take for each queue: slots, tables, the thread's stack.
const QUEUE_BYTES: u64 = 5 << 20;
/// What tests share with it as the guest's memory, which counts as the process's where that has touched it.
const GUEST_BYTES_MAX: u64 = 128 << 20;

/// How the process gets its socket.
enum Endpoint {
    /// It makes a socket at the usual path.
    Listen,
    /// It inherits this socket as descriptor 3.
    Inherit(OwnedFd),
    /// It connects to the usual path.
    Connect,
}

/// The program and how it is called, to call it so again.
struct Invocation {
    program: PathBuf,
    args: Vec<String>,
}

impl Invocation {
    fn spawn(&self, stdin: Stdio) -> Child {
        let mut command = Command::new(&self.program);
        command.args(&self.args).stdin(stdin).stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().expect("start the server")
    }
}

/// A process with what watches over it.
struct Process {
    child: Child,
    pidfd: OwnedFd,
    stderr: Arc<Mutex<String>>,
    _watchdog: Sender<()>,
}

impl Process {
    fn watch(mut child: Child) -> Self {
        let pid = Pid::from_child(&child);
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).expect("pidfd of our own child");
        let stderr = capture(child.stderr.take().expect("stderr is piped"));
        let watchdog = watch(pidfd.try_clone().expect("duplicate pidfd"));
        Self { child, pidfd, stderr, _watchdog: watchdog }
    }
}

/// What to serve and how. Build it, then [`Serve::start`].
pub struct Serve {
    layout: Layout,
    image: Option<Vec<u8>>,
    passphrase: Option<Vec<u8>>,
    key_args: Option<Vec<String>>,
    args: Vec<String>,
    queues: usize,
    endpoint: Endpoint,
    behind: Option<PathBuf>,
    controlled: bool,
}

impl Serve {
    /// A 4 MiB volume with 512-byte sectors under a 512-bit key, on one queue.
    pub fn encrypted() -> Self {
        Self::volume(Layout::encrypted(4 << 20))
    }

    /// A volume of another shape.
    pub fn volume(layout: Layout) -> Self {
        Self {
            layout,
            image: None,
            passphrase: None,
            key_args: None,
            args: Vec::new(),
            queues: 1,
            endpoint: Endpoint::Listen,
            behind: None,
            controlled: false,
        }
    }

    /// A volume with a LUKS header, which is served as it is.
    pub fn luks(image: Vec<u8>, passphrase: &[u8]) -> Self {
        let layout = Layout { key: None, ..Layout::encrypted(image.len()) };
        Self { passphrase: Some(passphrase.to_vec()), ..Self::volume(layout).image(image) }
    }

    /// A LUKS2 volume that cryptsetup made, with sectors of 4096 bytes and a disk of 4 MiB.
    pub fn luks2() -> Self {
        Self::golden_luks("luks2-4096-argon2id.img.gz").sector_bytes(4096)
    }

    /// A LUKS1 volume that cryptsetup made, with a disk of 4 MiB.
    pub fn luks1() -> Self {
        Self::golden_luks("luks1-512-sha256.img.gz")
    }

    fn golden_luks(name: &str) -> Self {
        const PAYLOAD_SECTORS: u64 = 4096;
        let mut image = golden(name);
        image.truncate(PAYLOAD_SECTORS as usize * 512 + (4 << 20));
        let mut serve = Self::luks(image, b"correct horse");
        serve.layout.offset_sectors = PAYLOAD_SECTORS;
        serve.args(&["--logical-block-size", "512"])
    }

    /// The volume at `path`, which has a LUKS header, with the key that `key_args` name.
    pub fn luks_at(path: &Path, key_args: &[&str]) -> Self {
        let nothing = Layout { key: None, ..Layout::encrypted(0) };
        let key_args = Some(key_args.iter().map(ToString::to_string).collect());
        Self { key_args, ..Self::volume(nothing).behind(path) }
    }

    /// The encryption sector size.
    pub fn sector_bytes(mut self, bytes: usize) -> Self {
        self.layout.sector_bytes = bytes;
        self
    }

    /// The size of the guest's disk.
    pub fn payload_bytes(mut self, bytes: usize) -> Self {
        self.layout.payload_bytes = bytes;
        self
    }

    /// Serves these bytes instead of a fresh image.
    pub fn image(mut self, bytes: Vec<u8>) -> Self {
        self.image = Some(bytes);
        self
    }

    /// The number of queues.
    pub fn queues(mut self, count: usize) -> Self {
        self.queues = count;
        self
    }

    /// Further command-line arguments.
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(ToString::to_string));
        self
    }

    /// Serves what is found at `path`, which has to have the content of the image.
    pub fn behind(mut self, path: &Path) -> Self {
        self.behind = Some(path.to_owned());
        self
    }

    /// Makes a control socket, for [`Backend::control`].
    pub fn controlled(mut self) -> Self {
        self.controlled = true;
        self
    }

    /// Hands over a socket, listening or connected.
    pub fn inherit(mut self, socket: impl Into<OwnedFd>) -> Self {
        self.endpoint = Endpoint::Inherit(socket.into());
        self
    }

    /// Lets the process connect to [`Backend::socket`], where the test listens.
    pub fn connecting(mut self) -> Self {
        self.endpoint = Endpoint::Connect;
        self
    }

    /// Starts the process, and waits for its socket if it makes one.
    pub fn start(self) -> Backend {
        let dir = tempfile::Builder::new().prefix("sb").tempdir().expect("temporary directory");
        let mut volume = match &self.image {
            Some(bytes) => Volume::adopt(dir.path(), bytes, self.layout.clone()),
            None => Volume::create(dir.path(), self.layout.clone()),
        };
        if let Some(passphrase) = &self.passphrase {
            volume.key_file = Some(write_key(dir.path(), passphrase));
        }
        let socket = dir.path().join("s");
        let listens = matches!(self.endpoint, Endpoint::Listen);
        let (invocation, stdin) = self.invocation(&volume, &socket);
        let process = Process::watch(invocation.spawn(stdin));
        let mut backend = Backend { _dir: dir, volume, socket, invocation, process, over: false };
        if listens {
            backend.wait_for_socket(None);
        }
        backend
    }

    fn invocation(self, volume: &Volume, socket: &Path) -> (Invocation, Stdio) {
        let mut args = vec!["serve".to_string()];
        args.extend(["--blk-file".into(), path_text(self.behind.as_deref().unwrap_or(&volume.image))]);
        args.extend(["--num-queues".into(), self.queues.to_string()]);
        args.extend(self.key_args.unwrap_or_else(|| format_args(volume)));
        args.extend(self.args);
        if self.controlled {
            args.extend(["--control-socket".into(), path_text(&control_socket(socket))]);
        }
        let program = env!("CARGO_BIN_EXE_sealblk");
        match self.endpoint {
            Endpoint::Listen => {
                args.extend(["--socket-path".into(), path_text(socket)]);
                (Invocation { program: program.into(), args }, Stdio::null())
            }
            Endpoint::Connect => {
                args.extend(["--connect".into(), path_text(socket)]);
                (Invocation { program: program.into(), args }, Stdio::null())
            }
            Endpoint::Inherit(fd) => {
                // A shell moves the socket to descriptor 3, then becomes the server.
                args.extend(["--fd".into(), "3".into()]);
                let shell = ["-c", "exec 3<&0 </dev/null; exec \"$@\"", "sh", program].map(String::from);
                args.splice(0..0, shell);
                (Invocation { program: "/bin/sh".into(), args }, Stdio::from(fd))
            }
        }
    }
}

fn format_args(volume: &Volume) -> Vec<String> {
    let layout = &volume.layout;
    let mut args: Vec<String> = Vec::new();
    match (&layout.key, &volume.key_file) {
        (Some(key), Some(path)) => {
            args.extend(["--format", "plain", "--cipher", "aes-xts-plain64"].map(String::from));
            args.extend(["--key-size".into(), (key.len() * 8).to_string()]);
            args.extend(["--sector-size".into(), layout.sector_bytes.to_string()]);
            args.extend(["--key".into(), format!("file:{}", path_text(path))]);
            args.extend(["--offset".into(), layout.offset_sectors.to_string()]);
            args.extend(["--skip".into(), layout.skip_sectors.to_string()]);
            args.extend(layout.iv_large_sectors.then(|| "--iv-large-sectors".to_string()));
        }
        (None, Some(passphrase)) => args.extend(["--key".into(), format!("file:{}", path_text(passphrase))]),
        _ => args.extend(["--format", "none", "--insecure", "plaintext"].map(String::from)),
    }
    args
}

/// The control socket that goes with a socket.
fn control_socket(socket: &Path) -> PathBuf {
    socket.with_extension("control")
}

fn path_text(path: &Path) -> String {
    path.to_str().expect("temporary paths are text").to_string()
}

/// A running server and its volume. Dropping it kills the process.
pub struct Backend {
    _dir: TempDir,
    pub volume: Volume,
    socket: PathBuf,
    invocation: Invocation,
    process: Process,
    over: bool,
}

impl Backend {
    /// Where the server listens, or where a test listens for it.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// A client of the control socket.
    pub fn control(&self) -> Control {
        Control::connect(&self.control_socket())
    }

    /// Where the control socket is.
    pub fn control_socket(&self) -> PathBuf {
        control_socket(&self.socket)
    }

    /// The server's process id.
    pub fn pid(&self) -> u32 {
        self.process.child.id()
    }

    /// What each of the process's descriptors refers to.
    pub fn open_files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("the process runs");
        let links = entries.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        links.map(|link| link.display().to_string()).collect()
    }

    /// CPU time that the process has used, in hundredths of a second.
    pub fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("the process runs");
        let (_, after_name) = stat.rsplit_once(") ").expect("the name is in parentheses");
        let field =
            |i: usize| after_name.split(' ').nth(i - 3).expect("a field").parse::<u64>().expect("a number");
        field(14) + field(15)
    }

    /// The most memory that the process has ever had at a time, the guest's included as far as it was touched. `None`
    /// once it has ended.
    pub fn peak_memory_bytes(&self) -> Option<u64> {
        self.memory_bytes("VmHWM:")
    }

    fn memory_bytes(&self, what: &str) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let found = status.lines().find_map(|line| line.strip_prefix(what))?;
        let kib: u64 = found.trim().trim_end_matches(" kB").parse().expect("a number of KiB");
        Some(kib << 10)
    }

    /// Asserts that the process has never had more memory than SECURITY.md says, whatever the guest did.
    pub fn assert_memory_is_bounded(&self) {
        if self.over {
            return;
        }
        if let Some(peak) = self.peak_memory_bytes() {
            self.assert_within(peak, GUEST_BYTES_MAX);
        }
    }

    /// Asserts the same of what it has now, and without an allowance for the guest's memory.
    #[track_caller]
    pub fn assert_own_memory_is_bounded(&self) {
        self.assert_within(self.own_memory_bytes(), 0);
    }

    /// What the process has of memory now that is not shared with the guest.
    pub fn own_memory_bytes(&self) -> u64 {
        let shared = self.memory_bytes("RssShmem:").expect("it runs");
        self.memory_bytes("VmRSS:").expect("it runs").saturating_sub(shared)
    }

    #[track_caller]
    fn assert_within(&self, bytes: u64, allowance_bytes: u64) {
        let queues = self.invocation.args.iter().skip_while(|arg| *arg != "--num-queues").nth(1);
        let queues: u64 = queues.and_then(|count| count.parse().ok()).expect("the harness tells");
        let most = BASE_BYTES + queues * QUEUE_BYTES + allowance_bytes;
        assert!(bytes <= most, "{queues} queues: {} MiB of memory, of at most {}", bytes >> 20, most >> 20);
    }

    /// What the process has logged so far.
    pub fn stderr(&self) -> String {
        self.process.stderr.lock().expect("no panic while logging").clone()
    }

    /// Waits until the server listens: until there is a socket other than the one that `stale` tells.
    fn wait_for_socket(&mut self, stale: Option<SocketFile>) {
        let deadline = Instant::now() + START_TIMEOUT;
        while SocketFile::at(&self.socket).is_none_or(|now| Some(now) == stale) {
            if let Some(status) = self.process.child.try_wait().expect("wait for our own child") {
                panic!("the server ended before its socket was there: {status}");
            }
            assert!(Instant::now() < deadline, "no socket within {START_TIMEOUT:?}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Asserts that the process runs.
    pub fn assert_alive(&mut self) {
        let status = self.process.child.try_wait().expect("wait for our own child");
        assert!(status.is_none(), "the server died: {}", status.expect("just checked"));
    }

    /// Sends SIGTERM.
    pub fn signal_term(&self) {
        rustix::process::pidfd_send_signal(&self.process.pidfd, Signal::TERM).expect("signal our own child");
    }

    /// Sends SIGHUP.
    pub fn signal_hangup(&self) {
        rustix::process::pidfd_send_signal(&self.process.pidfd, Signal::HUP).expect("signal our own child");
    }

    /// Waits, within bounds, until the process ends by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let ended = poll_readable(self.process.pidfd.as_fd(), EXIT_TIMEOUT);
        assert!(ended, "the server did not exit within {EXIT_TIMEOUT:?}");
        self.over = true;
        self.process.child.wait().expect("wait for our own child")
    }

    /// SIGKILL, and nothing is left of the process.
    pub fn kill(&mut self) {
        self.assert_alive();
        self.process.child.kill().expect("signal our own child");
        let _ = self.process.child.wait().expect("wait for our own child");
        self.over = true;
    }

    /// Starts a server with the same options on the same volume, after the last one has ended.
    pub fn start_again(&mut self) {
        assert!(self.over, "one at a time");
        let stale = SocketFile::at(&self.socket);
        self.process = Process::watch(self.invocation.spawn(Stdio::null()));
        self.over = false;
        self.wait_for_socket(stale);
    }

    /// Starts a successor with the same options and more, which takes over, and returns how the old process ended.
    pub fn take_over(&mut self, more: &[&str]) -> ExitStatus {
        let control = self.control_socket();
        let stale = SocketFile::at(&control);
        let successor = Process::watch(self.successor(more).spawn(Stdio::null()));
        let mut old = std::mem::replace(&mut self.process, successor);
        assert!(poll_readable(old.pidfd.as_fd(), EXIT_TIMEOUT), "the old process did not end");
        let status = old.child.wait().expect("wait for our own child");
        let deadline = Instant::now() + START_TIMEOUT;
        while SocketFile::at(&control).is_none_or(|now| Some(now) == stale) {
            self.assert_alive();
            assert!(Instant::now() < deadline, "no control socket within {START_TIMEOUT:?}");
            thread::sleep(Duration::from_millis(2));
        }
        status
    }

    /// Runs a successor that is expected to fail.
    pub fn try_take_over(&self, more: &[&str]) -> Output {
        let Invocation { program, args } = self.successor(more);
        Command::new(program).args(args).stdin(Stdio::null()).output().expect("start the successor")
    }

    fn successor(&self, more: &[&str]) -> Invocation {
        // Behind the shell that hands a descriptor over, if there is one; options that come again replace the first.
        let serve = self.invocation.args.iter().position(|arg| arg == "serve").expect("it serves");
        let mut options = self.invocation.args[serve..].iter().cloned();
        let mut args: Vec<String> = Vec::new();
        while let Some(option) = options.next() {
            let replaced = option.starts_with("--") && more.contains(&option.as_str());
            if replaced || ["--socket-path", "--fd", "--connect"].contains(&option.as_str()) {
                options.next();
            } else {
                args.push(option);
            }
        }
        args.extend(["--takeover".into(), path_text(&self.control_socket())]);
        args.extend(more.iter().map(ToString::to_string));
        Invocation { program: env!("CARGO_BIN_EXE_sealblk").into(), args }
    }

    /// SIGTERM, then exit status 0 within bounds.
    pub fn terminate(&mut self) {
        self.assert_alive();
        self.assert_memory_is_bounded();
        self.signal_term();
        let status = self.wait();
        assert!(status.success(), "SIGTERM must end in exit status 0, got {status}");
    }
}

/// What tells one socket at a path from the next.
#[derive(Clone, Copy, PartialEq, Eq)]
struct SocketFile {
    inode: u64,
    changed: (i64, i64),
}

impl SocketFile {
    fn at(path: &Path) -> Option<Self> {
        // One that was removed between being found and being looked at has changed as well.
        let metadata = std::fs::symlink_metadata(path).ok().filter(|metadata| metadata.nlink() > 0)?;
        Some(Self { inode: metadata.ino(), changed: (metadata.ctime(), metadata.ctime_nsec()) })
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if !self.over {
            // It may have died already; then there is nothing to kill.
            let _ = self.process.child.kill();
            let _ = self.process.child.wait();
        }
        if thread::panicking() {
            eprintln!("--- the server logged:\n{}---", self.stderr());
        }
    }
}

fn capture(mut pipe: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let text = Arc::new(Mutex::new(String::new()));
    let sink = text.clone();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = pipe.read(&mut buffer) {
            sink.lock().expect("no panic while logging").push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    });
    text
}

/// Kills the process when it outlives every deadline, which turns any blocked wait on it into an error.
fn watch(pidfd: OwnedFd) -> Sender<()> {
    let (cancel, cancelled) = mpsc::channel();
    thread::spawn(move || {
        if cancelled.recv_timeout(LIFETIME) == Err(mpsc::RecvTimeoutError::Timeout) {
            // It may have ended meanwhile.
            let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
        }
    });
    cancel
}
