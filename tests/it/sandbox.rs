//! The sandbox of a running server: every thread is in it, and nobody gets in who may not.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Signal, geteuid};

use crate::harness::*;

/// What `/proc` tells of each thread.
fn threads(backend: &Backend) -> Vec<BTreeMap<String, String>> {
    let tasks = fs::read_dir(format!("/proc/{}/task", backend.pid())).unwrap();
    // The kernel's own threads, for I/O that blocks, come and go.
    let status = |task: fs::DirEntry| fs::read_to_string(task.path().join("status")).ok();
    let fields = |text: String| {
        let pairs = text.lines().filter_map(|line| line.split_once(":\t"));
        pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
    };
    tasks.filter_map(|task| status(task.unwrap())).map(fields).collect()
}

/// Asserts that every thread is shut in, and returns their names.
fn assert_shut_in(backend: &Backend) -> Vec<String> {
    let threads = threads(backend);
    for thread in &threads {
        assert_eq!((&*thread["Seccomp"], &*thread["NoNewPrivs"]), ("2", "1"), "{thread:?}");
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(thread[set], "0000000000000000", "{set} of {thread:?}");
        }
        // Only root can do without what it could have had; nobody gets at it without new privileges.
        let stays_root = thread["Uid"].starts_with("0\t");
        assert!(!stays_root || thread["CapBnd"] == "0000000000000000", "{thread:?}");
    }
    // The kernel's own threads, for I/O that blocks, run nothing of ours.
    let names = threads.iter().map(|thread| thread["Name"].clone());
    let mut names: Vec<String> = names.filter(|name| !name.starts_with("iou-wrk")).collect();
    names.sort();
    names
}

#[test]
fn every_thread_is_shut_in_before_anybody_is_served() {
    for engine in ["uring", "blocking"] {
        let args = ["--engine", engine];
        let mut backend = Serve::encrypted().queues(2).controlled().args(&args).start();
        let frontend = Frontend::with(backend.socket(), Setup { queues: 2, ..Setup::default() });
        // A queue's thread that serves a request has been in for long, and so are those made later.
        frontend.assert_serves(1, 0, 1);
        let mut control = backend.control();
        control.done("status");
        let names = assert_shut_in(&backend);
        assert_eq!(names, ["control", "control-client", "queue-0", "queue-1", "sealblk"]);
        drop((control, frontend));
        backend.terminate();
    }
}

/// Runs a server that is to end by itself.
fn serve(args: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    fs::write(&image, [0; 8192]).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealblk"));
    command.args(["serve", "--format", "none", "--insecure", "plaintext", "--direct", "off", "--blk-file"]);
    command.arg(image).arg("--socket-path").arg(folder.path().join("s")).args(args);
    command.stdin(Stdio::null()).output().unwrap()
}

#[expect(unsafe_code, reason = "no library tells")]
fn has_landlock() -> bool {
    // SAFETY: LANDLOCK_CREATE_RULESET_VERSION asks for a number and takes no pointer.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, 1) > 0 }
}

#[test]
fn a_strict_sandbox_has_every_layer_or_refuses_to_serve() {
    if !has_landlock() {
        let Output { status, stderr, .. } = serve(&["--sandbox", "strict"]);
        let stderr = String::from_utf8_lossy(&stderr);
        assert_eq!(status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("the sandbox lacks a layer, Landlock"), "{stderr}");
        let usual = Serve::encrypted().start();
        assert!(usual.stderr().contains("the sandbox lacks a layer: Landlock"), "{}", usual.stderr());
    } else {
        let backend = Serve::encrypted().args(&["--sandbox", "strict"]).start();
        Frontend::connect(backend.socket()).assert_serves(0, 0, 1);
        assert_shut_in(&backend);
    }
}

#[test]
fn without_a_sandbox_only_those_serve_who_say_so() {
    let Output { status, stderr, .. } = serve(&["--sandbox", "off"]);
    assert_eq!(status.code(), Some(2));
    assert!(String::from_utf8_lossy(&stderr).contains("pass --insecure no-sandbox"));
    let backend = Serve::encrypted().args(&["--sandbox", "off", "--insecure", "no-sandbox"]).start();
    Frontend::connect(backend.socket()).assert_serves(0, 0, 1);
    assert!(threads(&backend).iter().all(|thread| thread["Seccomp"] == "0"));
}

/// Whether there is anything to test: only root can become somebody else.
fn is_root() -> bool {
    if !geteuid().is_root() {
        eprintln!("not root: nothing was looked at");
    }
    geteuid().is_root()
}

#[test]
fn the_process_goes_on_as_the_user_that_was_named() {
    if !is_root() {
        return;
    }
    let args = ["--user", "4242", "--group", "4243"];
    let mut backend = Serve::encrypted().controlled().args(&args).start();
    Frontend::connect(backend.socket()).assert_serves(0, 0, 1);
    backend.control().done("status");
    assert_shut_in(&backend);
    for thread in threads(&backend) {
        assert_eq!(thread["Uid"], "4242\t4242\t4242\t4242");
        assert_eq!(thread["Gid"], "4243\t4243\t4243\t4243");
        assert_eq!(thread["Groups"], "");
    }
    // Nobody but root reads the memory of a process that is not dumpable: not even its own user.
    let memory = format!("/proc/{}/mem", backend.pid());
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&fs::metadata(memory).unwrap()), 0);
    backend.signal_term();
    assert!(backend.wait().success());
}

/// Connects to the vhost-user socket as another user, and says something that is no message.
fn visit(backend: &Backend, uid: &str) {
    let folder = backend.socket().parent().unwrap();
    let program = folder.join("visitor");
    if !program.exists() {
        fs::copy(env!("CARGO_BIN_EXE_sealblk"), &program).unwrap();
        fs::set_permissions(folder, fs::Permissions::from_mode(0o711)).unwrap();
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", uid, "--regid", uid, "--clear-groups"]).arg(program);
    let output = command.arg("control").arg(backend.socket()).arg("status").output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("no answer from control socket"), "{uid}: {stderr}");
}

/// Waits until the log holds this.
fn await_log(backend: &Backend, part: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !backend.stderr().contains(part) {
        assert!(Instant::now() < deadline, "`{part}` is not logged");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn only_users_that_were_named_are_served() {
    if !is_root() {
        return;
    }
    let mut backend = Serve::encrypted().args(&["--allow-uid", "4242"]).start();
    visit(&backend, "4243");
    await_log(&backend, "refused a connection of this user (see --allow-uid) uid=4243");
    assert!(!backend.stderr().contains("VMM connected"));
    visit(&backend, "4242");
    await_log(&backend, "VMM connected");
    Frontend::connect(backend.socket()).assert_serves(0, 0, 1);
    backend.terminate();
}

#[test]
fn signals_of_the_operator_meet_the_thread_that_may_heed_them() {
    let mut backend = Serve::encrypted().queues(4).controlled().start();
    let frontend = Frontend::with(backend.socket(), Setup { queues: 4, ..Setup::default() });
    let mut control = backend.control();
    control.done("status");
    for thread in threads(&backend) {
        let blocked = u64::from_str_radix(&thread["SigBlk"], 16).unwrap();
        let operator = [Signal::HUP, Signal::INT, Signal::TERM].map(|signal| 1 << (signal.as_raw() - 1));
        let blocks = operator.map(|bit: u64| blocked & bit != 0);
        let kernels_own = thread["Name"].starts_with("iou-wrk");
        assert!(kernels_own || blocks == [thread["Name"] != "sealblk"; 3], "{thread:?}");
    }
    // Many at once: the kernel looks for other threads when one is pending already.
    for round in 0..500 {
        backend.signal_hangup();
        if round % 100 == 0 {
            frontend.assert_serves(round / 100 % 4, 0, round as u64);
        }
    }
    backend.assert_alive();
    drop((control, frontend));
    backend.terminate();
}
