//! Mistakes with the vhost-user socket, and a kernel without io_uring: with everything else in order.

use std::mem::MaybeUninit;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

use super::*;

#[path = "../../src/io/uring/denied.rs"]
#[allow(unsafe_code, dead_code, reason = "shared with the tests of the engine")]
mod denied;

const SOCKET: i32 = 6;
const URING_UNAVAILABLE: i32 = 7;
const QUIET: &str = "--log-level error";

/// A server that runs, and is ended with the test.
pub(super) struct Running(Child);

impl Running {
    pub(super) fn start(bench: &Bench, arguments: &str) -> Self {
        let mut command = Command::new(PROGRAM);
        command.args(arguments.split_ascii_whitespace()).current_dir(&bench.folder);
        Self(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    pub(super) fn id(&self) -> u32 {
        self.0.id()
    }

    /// SIGTERM, and how the process ends.
    pub(super) fn terminate(self) -> i32 {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.end()
    }

    /// How the process ends, which it has been told to.
    pub(super) fn end(mut self) -> i32 {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code().expect("ends by itself");
            }
            assert!(Instant::now() < deadline, "does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) fn wait_for(what: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !what() {
        assert!(Instant::now() < deadline, "in vain");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_socket_in_use_is_left_alone() {
    let bench = Bench::new();
    File::create(bench.path("vol2")).unwrap().set_len(VOLUME_BYTES).unwrap();
    let arguments = "serve --socket-path s --format plain --blk-file vol2 --key file:key --once";
    let first = Running::start(&bench, arguments);
    wait_for(|| Path::new(&bench.path("s")).exists());
    for _ in 0..3 {
        bench.serve(QUIET).refused(SOCKET, &["socket s", "in use by a live process"]);
    }
    // The first has noticed nothing: with --once it would have ended.
    assert!(UnixStream::connect(bench.path("s")).is_ok());
    drop(first);
}

#[test]
fn a_full_backlog_is_a_live_process_too() {
    let bench = Bench::new();
    let listener = UnixListener::bind(bench.path("s")).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _waiting = UnixStream::connect(bench.path("s")).unwrap();
    bench.serve(QUIET).refused(SOCKET, &["in use by a live process"]);
}

#[test]
fn a_stale_socket_makes_way_and_nothing_else_does() {
    let bench = Bench::new();
    drop(UnixListener::bind(bench.path("s")).unwrap());
    let before = fs::symlink_metadata(bench.path("s")).unwrap();
    assert!(before.file_type().is_socket());
    let server = Running::start(&bench, "--socket-path=s --format=plain --blk-file=vol --key=file:key");
    wait_for(|| UnixStream::connect(bench.path("s")).is_ok());
    assert_eq!(fs::symlink_metadata(bench.path("s")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(server.terminate(), 0);
    assert!(!Path::new(&bench.path("s")).exists(), "it takes its socket away");

    fs::write(bench.path("s"), "a file").unwrap();
    bench.serve(QUIET).refused(SOCKET, &["s exists and is not a socket"]);
    assert_eq!(fs::read(bench.path("s")).unwrap(), b"a file");
    fs::remove_file(bench.path("s")).unwrap();
    fs::create_dir(bench.path("s")).unwrap();
    bench.serve(QUIET).refused(SOCKET, &["s exists and is not a socket"]);
}

/// Whoever waits for a socket to appear, and connects then, finds somebody.
#[test]
fn a_socket_that_is_there_is_listened_to() {
    let bench = Bench::new();
    let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&watch, bench.path(""), WatchFlags::CREATE | WatchFlags::MOVED_TO).unwrap();
    let arguments = "--socket-path=s --control-socket=c --format=plain --blk-file=vol --key=file:key";
    let server = Running::start(&bench, arguments);
    wait_for(|| UnixStream::connect(bench.path("s")).is_ok());
    assert_eq!(server.terminate(), 0);
    let mut buffer = [const { MaybeUninit::uninit() }; 4096];
    let mut events = inotify::Reader::new(&watch, &mut buffer);
    let mut seen = Vec::new();
    while let Ok(event) = events.next() {
        let name = event.file_name().unwrap().to_str().unwrap().to_owned();
        seen.push((name, event.events()));
    }
    for name in ["s", "c"] {
        let of_it: Vec<_> = seen.iter().filter(|(seen, _)| seen == name).map(|(_, event)| *event).collect();
        assert_eq!(of_it, [ReadFlags::MOVED_TO], "{name} is made elsewhere and comes listening: {seen:?}");
    }
    assert!(fs::read_dir(bench.path("")).unwrap().all(|entry| {
        let name = entry.unwrap().file_name();
        !name.to_str().unwrap().ends_with(".new")
    }));
}

#[test]
fn paths_that_cannot_be_sockets_are_named() {
    let bench = Bench::new();
    let long = "x".repeat(108);
    let with = |socket: &str| {
        bench.run(&format!("serve {socket} --format plain --blk-file vol --key file:key {QUIET}"))
    };
    with(&format!("--socket-path {long}")).refused(SOCKET, &["108 bytes", "107"]);
    with(&format!("--connect {long}")).refused(SOCKET, &["108 bytes", "107"]);
    with("--socket-path missing/s").refused(SOCKET, &["missing/s"]);
}

#[test]
fn a_socket_that_was_replaced_is_not_removed() {
    let bench = Bench::new();
    let server = Running::start(&bench, "--socket-path=s --format=plain --blk-file=vol --key=file:key");
    wait_for(|| Path::new(&bench.path("s")).exists());
    fs::remove_file(bench.path("s")).unwrap();
    fs::write(bench.path("s"), "another's").unwrap();
    assert_eq!(server.terminate(), 0);
    assert_eq!(fs::read(bench.path("s")).unwrap(), b"another's");
}

#[test]
fn sigterm_ends_every_kind_of_waiting() {
    let bench = Bench::new();
    let connecting = "--connect=nobody --format=plain --blk-file=vol --key=file:key";
    let server = Running::start(&bench, connecting);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(server.terminate(), 0, "while it waits for a VMM that does not listen");

    let listener = UnixListener::bind(bench.path("full")).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _waiting = UnixStream::connect(bench.path("full")).unwrap();
    let server = Running::start(&bench, &connecting.replace("nobody", "full"));
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(server.terminate(), 0, "while it waits for a place in the backlog");
}

#[test]
fn a_kernel_without_io_uring_is_told_with_the_way_out() {
    denied::on_a_thread(|| {
        let bench = Bench::new();
        // The filter of this thread holds for the programs that it starts.
        denied::deny_system_call(libc::SYS_io_uring_setup, libc::ENOSYS);
        bench.serve(QUIET).refused(URING_UNAVAILABLE, &["no io_uring", "--engine blocking"]);
        let arguments = "--socket-path=s --format=plain --blk-file=vol --key=file:key --engine=blocking";
        let server = Running::start(&bench, arguments);
        wait_for(|| Path::new(&bench.path("s")).exists());
        assert_eq!(server.terminate(), 0);
    });
    denied::on_a_thread(|| {
        denied::deny_system_call(libc::SYS_io_uring_setup, libc::EPERM);
        Bench::new().serve(QUIET).refused(URING_UNAVAILABLE, &["forbidden", "--engine blocking"]);
    });
}
