//! Serving a volume to a guest: by `sealblk`, or by QEMU's storage daemon where that stands in for comparison.

use std::env;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::process::Process;
use super::volume::{PlainLayout, Volume};

const START_LIMIT: Duration = Duration::from_secs(20);
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// Who serves the disks of this run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BackEnd {
    /// The binary under test.
    Sealblk,
    /// QEMU's storage daemon, serving the image as it is: nothing is encrypted.
    QemuStorageDaemon,
}

impl BackEnd {
    /// The back end that the environment asks for.
    pub(crate) fn chosen() -> Self {
        match env::var("SEALBLK_GUEST_BACKEND").as_deref() {
            Err(_) | Ok("sealblk") => Self::Sealblk,
            Ok("qsd") => Self::QemuStorageDaemon,
            Ok(other) => panic!("SEALBLK_GUEST_BACKEND is '{other}'; it may be 'sealblk' or 'qsd'"),
        }
    }

    /// Fails a test that the stand-in cannot pass.
    pub(crate) fn require_sealblk(reason: &str) {
        assert_eq!(Self::chosen(), Self::Sealblk, "only sealblk can pass this test: {reason}");
    }

    pub(crate) fn program(self) -> PathBuf {
        // Cargo sets the variable for a package with such a binary.
        match (self, option_env!("CARGO_BIN_EXE_sealblk")) {
            (Self::Sealblk, Some(path)) => path.into(),
            (Self::Sealblk, None) => panic!("this package builds no sealblk binary"),
            (Self::QemuStorageDaemon, _) => "qemu-storage-daemon".into(),
        }
    }

    fn arguments(self, volume: &Volume, options: &ServeOptions, socket: &Path) -> Vec<String> {
        match self {
            Self::Sealblk => sealblk_arguments(volume, options, socket),
            Self::QemuStorageDaemon => qsd_arguments(volume, options, socket),
        }
    }
}

/// How a volume is served, beside its layout.
#[derive(Clone, Debug)]
pub(crate) struct ServeOptions {
    pub(crate) queue_count: u16,
    pub(crate) pass_discard: bool,
    pub(crate) writethrough: bool,
    pub(crate) read_only: bool,
    pub(crate) direct: bool,
    pub(crate) serial: Option<&'static str>,
    /// Waits for a guest that another back end of the same volume serves.
    pub(crate) incoming: bool,
    /// Less than the layout's sector size, or the same.
    pub(crate) logical_block_bytes: Option<u32>,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            queue_count: 1,
            pass_discard: false,
            writethrough: false,
            read_only: false,
            direct: true,
            serial: None,
            incoming: false,
            logical_block_bytes: None,
        }
    }
}

/// A disk that a guest can be given: a back end process that listens on a socket.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) socket: PathBuf,
    pub(crate) log: PathBuf,
    arguments: Vec<String>,
    process: Process,
}

impl Served {
    /// Starts the chosen back end for `volume` and waits until it listens. Socket and log lie beside the image.
    pub(crate) fn start(volume: &Volume, options: &ServeOptions) -> Self {
        let suffixes = if options.incoming { ["in.sock", "in.log"] } else { ["sock", "log"] };
        let [socket, log] = suffixes.map(|suffix| volume.image.with_extension(suffix));
        let arguments = BackEnd::chosen().arguments(volume, options, &socket);
        let process = Self::spawn(&arguments, &socket, &log);
        Self { socket, log, arguments, process }
    }

    fn spawn(arguments: &[String], socket: &Path, log: &Path) -> Process {
        let back_end = BackEnd::chosen();
        let name = format!("{back_end:?} {}", arguments.join(" "));
        // What a killed predecessor has left: once there is another socket, somebody listens.
        let stale = inode(socket);
        let mut process = Process::spawn(&name, &back_end.program(), arguments, log);
        let deadline = Instant::now() + START_LIMIT;
        while inode(socket).is_none_or(|now| Some(now) == stale) {
            if let Some(status) = process.wait(Duration::ZERO) {
                panic!("the back end ended ({status}) instead of listening\n{}", process.tail());
            }
            assert!(Instant::now() < deadline, "the back end does not listen\n{}", process.tail());
            sleep(Duration::from_millis(5));
        }
        process
    }

    /// Kills the back end, wherever it is, and starts it again after `pause`.
    pub(crate) fn kill_and_start_again(&mut self, pause: Duration) {
        self.process.kill();
        sleep(pause);
        self.process = Self::spawn(&self.arguments, &self.socket, &self.log);
    }

    /// Starts another process of the back end, which takes over from this one, and waits until this one has ended.
    pub(crate) fn take_over(&mut self) {
        let control = control_socket(&self.socket);
        wait_until_there(&control);
        let arguments: Vec<String> = ["serve".to_owned(), "--takeover".to_owned(), path(&control)]
            .into_iter()
            .chain(without_socket(&self.arguments))
            .collect();
        let program = BackEnd::chosen().program();
        let successor = Process::spawn("the successor", &program, &arguments, &self.log);
        let mut predecessor = std::mem::replace(&mut self.process, successor);
        let status = predecessor.wait(STOP_LIMIT);
        assert!(status.is_some_and(|status| status.success()), "{status:?}\n{}", predecessor.tail());
    }

    /// Gives a command with `sealblk control`, and returns what it prints.
    pub(crate) fn control(&self, command: &str) -> String {
        let output = std::process::Command::new(BackEnd::chosen().program())
            .args(["control", &path(&control_socket(&self.socket)), command])
            .output()
            .expect("the program can be started");
        assert!(output.status.success(), "{command}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// How often the back end has logged this, in all its lives.
    pub(crate) fn logged(&self, what: &str) -> usize {
        std::fs::read_to_string(&self.log).unwrap_or_default().matches(what).count()
    }

    /// Asks the back end to end, which it must do in time and with exit status 0, leaving every write on the image.
    pub(crate) fn stop(mut self) {
        self.process.terminate();
        let status = self.process.wait(STOP_LIMIT);
        let status =
            status.unwrap_or_else(|| panic!("SIGTERM did not end the back end\n{}", self.process.tail()));
        assert!(status.success(), "the back end ended with {status} after SIGTERM\n{}", self.process.tail());
    }
}

/// The control socket that goes with a socket.
fn control_socket(socket: &Path) -> PathBuf {
    socket.with_extension("control")
}

/// Waits until a file is there.
fn wait_until_there(file: &Path) {
    let deadline = Instant::now() + START_LIMIT;
    while !file.exists() {
        assert!(Instant::now() < deadline, "there is no {}", file.display());
        sleep(Duration::from_millis(5));
    }
}

/// The options of `serve` but for the socket.
fn without_socket(arguments: &[String]) -> Vec<String> {
    let at = arguments.iter().position(|argument| argument == "--socket-path").expect("it listens");
    [&arguments[1..at], &arguments[at + 2..]].concat()
}

/// What tells one socket from the next at its path.
fn inode(socket: &Path) -> Option<(u64, i64, i64)> {
    let metadata = std::fs::symlink_metadata(socket).ok()?;
    Some((metadata.ino(), metadata.ctime(), metadata.ctime_nsec()))
}

fn sealblk_arguments(volume: &Volume, options: &ServeOptions, socket: &Path) -> Vec<String> {
    let mut arguments = vec!["serve".to_owned()];
    arguments.extend(match &volume.luks {
        Some(luks) => luks.header.iter().flat_map(|header| ["--header".to_owned(), path(header)]).collect(),
        None => plain_arguments(&volume.layout),
    });
    let mut option = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
    option("--socket-path", path(socket));
    option("--control-socket", path(&control_socket(socket)));
    option("--blk-file", path(&volume.image));
    option("--key", format!("file:{}", volume.key_file.display()));
    option("--num-queues", options.queue_count.to_string());
    option("--discard", if options.pass_discard { "pass" } else { "ignore" }.to_owned());
    option("--cache", if options.writethrough { "writethrough" } else { "writeback" }.to_owned());
    option("--direct", if options.direct { "on" } else { "off" }.to_owned());
    if let Some(serial) = options.serial {
        option("--serial", serial.to_owned());
    }
    if let Some(bytes) = options.logical_block_bytes {
        option("--logical-block-size", bytes.to_string());
    }
    if options.read_only {
        arguments.push("--read-only".to_owned());
    }
    if options.incoming {
        arguments.push("--incoming".to_owned());
    }
    arguments
}

fn plain_arguments(layout: &PlainLayout) -> Vec<String> {
    let mut arguments: Vec<String> =
        ["--format", "plain", "--cipher", "aes-xts-plain64"].map(str::to_owned).into();
    let mut option = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
    option("--key-size", layout.key.count().to_string());
    option("--sector-size", layout.sector_bytes.to_string());
    option("--offset", layout.offset_sectors.to_string());
    option("--skip", layout.skip_sectors.to_string());
    if layout.iv_large_sectors {
        arguments.push("--iv-large-sectors".to_owned());
    }
    arguments
}

fn qsd_arguments(volume: &Volume, options: &ServeOptions, socket: &Path) -> Vec<String> {
    let on_off = |on: bool| if on { "on" } else { "off" };
    let node = format!(
        "discard={},read-only={}",
        if options.pass_discard { "unmap" } else { "ignore" },
        on_off(options.read_only)
    );
    vec![
        "--blockdev".to_owned(),
        format!("driver=file,node-name=file,filename={},{node}", path(&volume.image)),
        "--blockdev".to_owned(),
        format!("driver=raw,node-name=disk,file=file,offset={},{node}", volume.layout.offset_sectors * 512),
        "--export".to_owned(),
        format!(
            "type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={},writable={},num-queues={},\
             logical-block-size={}",
            path(socket),
            on_off(!options.read_only),
            options.queue_count,
            volume.layout.sector_bytes
        ),
    ]
}

fn path(path: &Path) -> String {
    path.to_str().expect("temporary folders have plain names").to_owned()
}
