//! Threads of every role try what they may not, each in a process of its own, since the sandbox ends it.
#![expect(unsafe_code, reason = "system calls that no library would make here")]
#![expect(clippy::print_stderr, reason = "one process tells another")]

use std::fs::{self, File, OpenOptions};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use libc::c_long;

use super::*;

const PROBE: &str = "SEALBLK_SANDBOX_PROBE";
const ROLES: [Role; 5] = [
    Role::UringQueue,
    Role::BlockingQueue,
    Role::Control,
    Role::Session { connects: false },
    Role::Session { connects: true },
];

/// A system call with its arguments. Those that are refused get no pointers: the filter comes before them.
#[derive(Clone, Copy, Debug)]
struct Call(c_long, [c_long; 6]);

impl Call {
    fn make(self) -> io::Result<c_long> {
        let Self(number, [a, b, c, d, e, f]) = self;
        // SAFETY: to be refused by the kernel before it looks at the arguments; else the calls of this module concern
        // nothing but this process, which ends right after.
        match unsafe { libc::syscall(number, a, b, c, d, e, f) } {
            -1 => Err(io::Error::last_os_error()),
            result => Ok(result),
        }
    }
}

fn call(number: c_long, arguments: &[i64]) -> Call {
    let mut six = [0; 6];
    six[..arguments.len()].copy_from_slice(arguments);
    Call(number, six)
}

/// What no thread may do.
fn forbidden_to_all() -> Vec<Call> {
    let executable = i64::from(libc::PROT_READ | libc::PROT_EXEC);
    let private = i64::from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    vec![
        call(libc::SYS_execve, &[]),
        call(libc::SYS_execveat, &[]),
        call(libc::SYS_ptrace, &[i64::from(libc::PTRACE_TRACEME)]),
        call(libc::SYS_process_vm_readv, &[1]),
        call(libc::SYS_kill, &[1, 0]),
        call(libc::SYS_tgkill, &[1, 1, i64::from(libc::SIGTERM)]),
        call(libc::SYS_setuid, &[]),
        call(libc::SYS_capset, &[]),
        call(libc::SYS_prctl, &[i64::from(libc::PR_SET_DUMPABLE), 1]),
        call(libc::SYS_prlimit64, &[]),
        call(libc::SYS_seccomp, &[]),
        call(libc::SYS_unshare, &[i64::from(libc::CLONE_NEWUSER)]),
        call(libc::SYS_setns, &[]),
        call(libc::SYS_clone, &[i64::from(libc::SIGCHLD)]),
        call(libc::SYS_mount, &[]),
        call(libc::SYS_chroot, &[]),
        call(libc::SYS_open_by_handle_at, &[]),
        call(libc::SYS_io_uring_setup, &[]),
        call(libc::SYS_bpf, &[]),
        call(libc::SYS_perf_event_open, &[]),
        call(libc::SYS_userfaultfd, &[]),
        call(libc::SYS_keyctl, &[]),
        call(libc::SYS_socket, &[i64::from(libc::AF_INET), i64::from(libc::SOCK_STREAM)]),
        call(libc::SYS_socket, &[i64::from(libc::AF_NETLINK), i64::from(libc::SOCK_RAW)]),
        call(libc::SYS_bind, &[]),
        call(libc::SYS_mmap, &[0, 4096, executable, private, -1, 0]),
        call(libc::SYS_mprotect, &[0, 4096, executable]),
    ]
}

/// What some threads may do, and this one not.
fn forbidden_to(role: Role) -> Vec<Call> {
    let unix_socket = call(libc::SYS_socket, &[i64::from(libc::AF_UNIX), i64::from(libc::SOCK_STREAM)]);
    let to_queues = [
        call(libc::SYS_recvmsg, &[]),
        call(libc::SYS_sendmsg, &[]),
        call(libc::SYS_accept4, &[]),
        call(libc::SYS_memfd_create, &[]),
        call(libc::SYS_memfd_secret, &[]),
        call(libc::SYS_unlinkat, &[]),
        call(libc::SYS_ioctl, &[0, libc::TIOCSTI as i64]),
        call(libc::SYS_fcntl, &[0, i64::from(libc::F_SETOWN)]),
        unix_socket,
    ];
    match role {
        // Once its ring is restricted, only the file of the volume is replaced.
        Role::UringQueue => {
            let register = call(libc::SYS_io_uring_register, &[0, 0]);
            [&to_queues[..], &[call(libc::SYS_pread64, &[]), register]].concat()
        }
        Role::BlockingQueue => [&to_queues[..], &[call(libc::SYS_io_uring_enter, &[])]].concat(),
        Role::Control => vec![call(libc::SYS_memfd_create, &[]), call(libc::SYS_unlinkat, &[]), unix_socket],
        Role::Session { connects: false } => {
            vec![unix_socket, call(libc::SYS_connect, &[]), call(libc::SYS_io_uring_enter, &[])]
        }
        Role::Session { connects: true } => {
            vec![call(libc::SYS_io_uring_enter, &[]), call(libc::SYS_fchmodat, &[])]
        }
    }
}

/// What libraries try, and do without.
fn refused(role: Role) -> Vec<Call> {
    let (threads, files) = (call(libc::SYS_clone3, &[]), call(libc::SYS_openat, &[]));
    match role {
        Role::UringQueue | Role::BlockingQueue => vec![files],
        Role::Control => vec![files, threads],
        Role::Session { .. } => Vec::new(),
    }
}

fn forbidden(role: Role) -> Vec<Call> {
    [forbidden_to_all(), forbidden_to(role)].concat()
}

/// The part of the tests below that runs in a process of its own: it is told which.
#[test]
fn probe() {
    let Ok(probe) = std::env::var(PROBE) else { return };
    if let Some(folder) = probe.strip_prefix("files ") {
        return look_at_files(Path::new(folder));
    }
    let (role, index) = probe.split_once(' ').unwrap();
    let role = ROLES[role.parse::<usize>().unwrap()];
    report_violations().unwrap();
    let sandbox = Sandbox::new(Mode::On);
    sandbox.enclose(Needs::default(), &Files::default()).unwrap();
    sandbox.confine(role).unwrap();
    let outcome = match index {
        "nothing" => ordinary_work(),
        "refused" => {
            let politely = |call: Call| call.make().is_err_and(|e| e.raw_os_error() == Some(libc::ENOSYS));
            Ok(c_long::from(!refused(role).into_iter().all(politely)))
        }
        index => forbidden(role)[index.parse::<usize>().unwrap()].make(),
    };
    eprintln!("survived: {outcome:?}");
    // SAFETY: ends the process without the destructors and handlers of the test's.
    unsafe { libc::_exit(0) };
}

/// What the libraries do at any time.
fn ordinary_work() -> io::Result<c_long> {
    let kept: Vec<Vec<u8>> = (1..40).map(|i| vec![1; i * 10_000]).collect();
    std::thread::sleep(std::time::Duration::from_millis(1));
    let caught = std::panic::catch_unwind(|| panic!("of no consequence"));
    assert!(caught.is_err() && kept.iter().all(|bytes| bytes[0] == 1));
    Ok(0)
}

/// Tries files in and out of reach, without a filter of system calls that would come first.
fn look_at_files(folder: &Path) {
    let volume = OpenOptions::new().read(true).write(true).open(folder.join("volume")).unwrap();
    let place = format!("/proc/self/fd/{}", volume.as_raw_fd());
    let files = Files {
        volume: Some(Arc::new(volume.into())),
        writable: true,
        socket_folders: vec![folder.join("sockets")],
        vmm_socket: None,
    };
    if let Err(error) = files.confine() {
        return eprintln!("Landlock is missing: {error}");
    }
    let refused = |tried: io::Result<File>| {
        assert_eq!(tried.err().map(|error| error.kind()), Some(io::ErrorKind::PermissionDenied));
    };
    OpenOptions::new().read(true).write(true).open(&place).unwrap();
    refused(OpenOptions::new().read(true).write(true).truncate(true).open(&place));
    refused(File::open("/etc/passwd"));
    refused(File::open(folder.join("other")));
    refused(File::create(folder.join("sockets/new")));
    refused(File::open("/proc/self/mem"));
    File::open("/proc/locks").unwrap();
    fs::remove_file(folder.join("sockets/s")).unwrap();
    assert!(fs::remove_file(folder.join("other")).is_err());
    assert!(fs::rename(folder.join("volume"), folder.join("sockets/v")).is_err());
    // Refused before anybody is asked; a port that nobody listens on would be another error.
    let error = TcpStream::connect("127.0.0.1:9").unwrap_err();
    // LANDLOCK_CREATE_RULESET_VERSION; ports came with the fourth.
    let version = call(libc::SYS_landlock_create_ruleset, &[0, 0, 1]).make().unwrap();
    assert!(error.kind() == io::ErrorKind::PermissionDenied || version < 4, "{error}");
    // A thread without files: what is open stays so, and nothing else is opened.
    Files::default().confine().unwrap();
    assert!(File::open(&place).is_err());
    eprintln!("survived");
}

#[test]
fn files_out_of_reach_stay_there() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("sockets")).unwrap();
    for name in ["volume", "other", "sockets/s"] {
        fs::write(folder.path().join(name), "content").unwrap();
    }
    let output = run(&format!("files {}", folder.path().display()));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    if !stderr.contains("survived") {
        eprintln!("nothing was looked at: {stderr}");
    }
}

#[test]
fn capabilities_are_gone_and_programs_get_none() {
    let shut_in = std::thread::spawn(|| {
        Sandbox::new(Mode::On).enclose(Needs::default(), &Files::default()).unwrap();
        let sets = rustix::thread::capabilities(None).unwrap();
        let effective = sets.effective | sets.permitted | sets.inheritable;
        (effective.is_empty(), rustix::thread::no_new_privs().unwrap())
    });
    assert_eq!(shut_in.join().unwrap(), (true, true));
    let keeps = std::thread::spawn(|| {
        let before = rustix::thread::capabilities(None).unwrap().permitted;
        Sandbox::new(Mode::On).enclose(Needs { foreign_files: true }, &Files::default()).unwrap();
        let kept = rustix::thread::CapabilitySet::DAC_OVERRIDE & before;
        rustix::thread::capabilities(None).unwrap().permitted == kept
    });
    assert!(keeps.join().unwrap());
}

#[test]
fn a_layer_that_is_missing_is_borne_or_refused() {
    let missing = || Err(io::Error::other("not there"));
    Sandbox::new(Mode::On).settle(Layer::Files, missing()).unwrap();
    Sandbox::new(Mode::Off).settle(Layer::Files, missing()).unwrap();
    let error = Sandbox::new(Mode::Strict).settle(Layer::Files, missing()).unwrap_err();
    assert!(error.to_string().contains("Landlock"), "{error}");
    Sandbox::new(Mode::Strict).settle(Layer::Files, Ok(())).unwrap();
}

fn run(probe: &str) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "--nocapture", "sandbox::tests::probe"]).env(PROBE, probe);
    command.output().unwrap()
}

#[test]
fn ordinary_work_goes_on_in_every_role() {
    for (index, role) in ROLES.iter().enumerate() {
        for work in ["nothing", "refused"] {
            let Output { status, stderr, .. } = run(&format!("{index} {work}"));
            let stderr = String::from_utf8_lossy(&stderr);
            let survived = status.success() && stderr.contains("survived: Ok(0)");
            assert!(survived, "{role:?}, {work}: {status}\n{stderr}");
        }
    }
}

#[test]
fn what_a_role_has_no_use_for_ends_the_process_and_is_named() {
    for (index, role) in ROLES.into_iter().enumerate() {
        for (number, call) in forbidden(role).into_iter().enumerate() {
            let Output { status, stderr, .. } = run(&format!("{index} {number}"));
            let stderr = String::from_utf8_lossy(&stderr);
            let named = format!("the sandbox has stopped system call {},", call.0);
            assert_eq!(status.code(), Some(1), "{role:?}, {call:?}: {status}\n{stderr}");
            assert!(stderr.contains(&named) && !stderr.contains("survived"), "{role:?}, {call:?}:\n{stderr}");
        }
    }
}
