//! What a served disk asks of the kernel: few calls under load, and nothing at all while nobody wants anything.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::process::geteuid;

use crate::harness::frontend::*;
use crate::harness::request::*;
use crate::harness::ring::*;
use crate::harness::*;

/// The threads of a process by name, but for the kernel's own, which come and go.
fn threads(backend: &Backend) -> BTreeMap<String, Pid> {
    let tasks = fs::read_dir(format!("/proc/{}/task", backend.pid())).expect("the process runs");
    let named = tasks.filter_map(|task| {
        let task = task.expect("a thread").path();
        let name = fs::read_to_string(task.join("comm")).ok()?.trim().to_owned();
        let number = task.file_name()?.to_str()?.parse().ok()?;
        (!name.starts_with("iou-")).then(|| (name, Pid::from_raw(number)))
    });
    named.collect()
}

/// Counts of system calls, by number.
type Calls = BTreeMap<u64, u64>;

/// Follows one thread from call to call until `over`, which is noticed at its next one.
fn trace(thread: Pid, begun: &mpsc::Sender<()>, over: &AtomicBool) -> Calls {
    ptrace::seize(thread, Options::PTRACE_O_TRACESYSGOOD).expect("root may trace");
    ptrace::interrupt(thread).expect("it is traced");
    let mut calls = Calls::new();
    let mut following = false;
    loop {
        let signal = match waitpid(thread, Some(WaitPidFlag::__WALL)).expect("a traced thread stops") {
            WaitStatus::PtraceSyscall(_) => {
                if over.load(Ordering::SeqCst) {
                    break;
                }
                let stop = ptrace::syscall_info(thread).expect("it has stopped at a system call");
                if stop.op == libc::PTRACE_SYSCALL_INFO_ENTRY {
                    *calls.entry(number_of(&stop)).or_default() += 1;
                }
                None
            }
            WaitStatus::Stopped(_, signal) => Some(signal),
            WaitStatus::PtraceEvent(..) => None,
            other => panic!("{other:?}"),
        };
        ptrace::syscall(thread, signal).expect("it has stopped");
        if !following {
            following = true;
            begun.send(()).expect("the test waits");
        }
    }
    ptrace::detach(thread, None).expect("it has stopped");
    calls
}

#[expect(unsafe_code, reason = "a union of the kernel's")]
fn number_of(entry: &libc::ptrace_syscall_info) -> u64 {
    // SAFETY: the caller has seen that it is an entry.
    unsafe { entry.u.entry.nr }
}

/// The calls that a thread makes during `work`. `nudge` makes it do something afterwards.
fn calls_during(thread: Pid, work: impl FnOnce(), nudge: impl FnOnce()) -> Calls {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ((begun, begins), over) = (mpsc::channel(), &over);
        // Only the thread that traces may say how it goes on.
        let tracer = scope.spawn(move || trace(thread, &begun, over));
        begins.recv().expect("it is traced");
        work();
        over.store(true, Ordering::SeqCst);
        nudge();
        tracer.join().expect("it has seen the end")
    })
}

/// Serves `rounds` batches of `depth` reads under trace, and gives the calls of the queue's thread.
fn calls_of_reads(engine: &str, depth: usize, rounds: usize) -> Option<Calls> {
    if !geteuid().is_root() {
        eprintln!("not root: nothing was traced");
        return None;
    }
    // Storage that answers at once: how often it keeps one waiting is not ours to say.
    let mut backend = Serve::encrypted().args(&["--engine", engine, "--direct", "off"]).start();
    let setup = Setup { queue_size: 128, refuse: 0, ..Setup::default() };
    let frontend = Frontend::with(backend.socket(), setup);
    frontend.assert_serves(0, 0, 1);
    let reads: Vec<_> = (0..depth).map(|i| frontend.prepare(0, &Request::read(8 * i as u64, 4096))).collect();
    let heads: Vec<u16> = reads.iter().map(|read| read.head).collect();
    let ring = &frontend.rings[0];
    let read = || {
        // One notification for the batch, as a driver asks for that has nothing else to do.
        ring.set_used_event(ring.used_seen().wrapping_add(depth as u16 - 1));
        ring.publish(&heads);
        ring.kick();
        ring.collect_by_polling(depth);
    };
    let calls = calls_during(threads(&backend)["queue-0"], || (0..rounds).for_each(|_| read()), read);
    backend.terminate();
    Some(calls)
}

const ENTER: u64 = libc::SYS_io_uring_enter as u64;
const WRITE: u64 = libc::SYS_write as u64;

/// Asserts that there were only these calls, and returns how many for each hundred requests.
#[track_caller]
fn per_hundred(calls: &Calls, expected: &[u64], requests: usize) -> u64 {
    let strange: Vec<_> = calls.iter().filter(|(number, _)| !expected.contains(number)).collect();
    assert!(strange.is_empty(), "(number, how often) of calls that serving does not need: {strange:?}");
    calls.values().sum::<u64>() * 100 / requests as u64
}

#[test]
fn a_request_alone_takes_few_calls() {
    let Some(calls) = calls_of_reads("uring", 1, 300) else { return };
    // Handing over, sleeping until there is an answer, telling the guest, sleeping until there is a request.
    let share = per_hundred(&calls, &[ENTER, WRITE], 300);
    assert!((100..=450).contains(&share), "{share} for a hundred requests: {calls:?}");
}

#[test]
fn requests_in_company_take_less_than_a_call_each() {
    let Some(calls) = calls_of_reads("uring", 32, 100) else { return };
    let share = per_hundred(&calls, &[ENTER, WRITE], 3200);
    assert!((3..100).contains(&share), "{share} for a hundred requests: {calls:?}");
}

/// Whether a thread sleeps in a call that only something from outside ends, as `/proc` tells of it: the call's number
/// and arguments.
fn sleeps_without_limit(call: &str) -> bool {
    let mut words = call.split_whitespace();
    let Some(number) = words.next().and_then(|word| word.parse::<i64>().ok()) else { return false };
    let arguments: Vec<u64> = words
        .map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).expect("hexadecimal"))
        .collect();
    const WITH_ARGUMENT: u64 = 1 << 3;
    match number {
        // At least one completion, and no time limit.
        libc::SYS_io_uring_enter => arguments[2] > 0 && arguments[3] & WITH_ARGUMENT == 0,
        libc::SYS_ppoll => arguments[2] == 0,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll | libc::SYS_epoll_wait => {
            arguments[if number == libc::SYS_poll { 2 } else { 3 }] as i32 == -1
        }
        libc::SYS_epoll_pwait => arguments[3] as i32 == -1,
        libc::SYS_epoll_pwait2 => arguments[3] == 0,
        libc::SYS_futex => arguments[3] == 0,
        libc::SYS_accept4 | libc::SYS_recvmsg | libc::SYS_read => true,
        _ => false,
    }
}

/// How often a thread has slept or was put aside.
fn switches(process: u32, thread: Pid) -> Vec<String> {
    let status = fs::read_to_string(format!("/proc/{process}/task/{thread}/status")).expect("it is there");
    status.lines().filter(|line| line.contains("ctxt_switches")).map(str::to_owned).collect()
}

#[test]
fn an_idle_disk_sleeps_until_somebody_wants_something() {
    if !geteuid().is_root() {
        eprintln!("not root: nothing was looked at");
        return;
    }
    for engine in ["uring", "blocking"] {
        let mut idle = Serve::encrypted().queues(4).controlled().args(&["--engine", engine]).start();
        let frontend = Frontend::with(idle.socket(), Setup::queues(4));
        (0..4).for_each(|queue| frontend.assert_serves(queue, 0, 1));
        let threads = threads(&idle);
        assert_eq!(threads.len(), 6, "four queues, the control socket and the main thread: {threads:?}");
        let call = |thread: Pid| {
            fs::read_to_string(format!("/proc/{}/task/{thread}/syscall", idle.pid())).unwrap_or_default()
        };
        for (name, thread) in &threads {
            wait_until(&format!("{engine}: {name} does not come to rest"), || {
                sleeps_without_limit(&call(*thread))
            });
        }
        let counted = || threads.values().map(|thread| switches(idle.pid(), *thread)).collect::<Vec<_>>();
        let before = counted();
        // As long as it takes another disk to serve a thousand requests.
        let busy = Serve::encrypted().start();
        let other = Frontend::connect(busy.socket());
        (0..500).for_each(|round| other.assert_serves(0, 0, round));
        assert_eq!(counted(), before, "{engine}: somebody was awake meanwhile: {threads:?}");
        drop(frontend);
        idle.terminate();
    }
}

#[test]
fn a_sleep_with_a_limit_is_told_from_one_without() {
    let call = |number: i64, arguments: [u64; 6]| {
        let words = arguments.map(|argument| format!("{argument:#x}")).join(" ");
        sleeps_without_limit(&format!("{number} {words} 0x7ffd0 0x7f00"))
    };
    assert!(call(libc::SYS_io_uring_enter, [7, 0, 1, 1, 0, 0]));
    assert!(!call(libc::SYS_io_uring_enter, [7, 0, 1, 9, 0x1000, 24]));
    assert!(!call(libc::SYS_io_uring_enter, [7, 3, 0, 1, 0, 0]));
    assert!(call(libc::SYS_ppoll, [1, 2, 0, 0, 0, 0]));
    assert!(!call(libc::SYS_ppoll, [1, 2, 0x1000, 0, 0, 0]));
    assert!(call(libc::SYS_futex, [1, 128, 2, 0, 0, 0]));
    assert!(!call(libc::SYS_futex, [1, 128, 2, 0x1000, 0, 0]));
    assert!(!call(libc::SYS_clock_nanosleep, [0; 6]));
    assert!(!sleeps_without_limit("running\n"));
}
