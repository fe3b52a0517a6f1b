//! The system calls that remain (seccomp), for each kind of thread.
//!
//! Lists are of numbers as this architecture counts them; a call by another architecture's numbers ends the process.
//! What the C library and the standard library do by themselves is in [`RUNTIME`]: memory, locks, the end of a thread.

use std::collections::BTreeMap;
use std::io;

use libc::c_long;
use nix::sys::signal::{SigSet, Signal};
use seccompiler::SeccompCmpArgLen::Dword;
use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
use seccompiler::{BpfProgram, SeccompAction, SeccompCondition, SeccompFilter, SeccompRule, apply_filter};

/// What a thread is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Serves a queue with io_uring, which is set up already.
    UringQueue,
    /// Serves a queue with blocking system calls.
    BlockingQueue,
    /// Takes clients of the control socket in, with a thread for each.
    Control,
    /// Follows the messages of front ends, and orders.
    Session {
        /// Front ends are connected to, rather than waited for.
        connects: bool,
    },
}

/// What every thread may do: all that needs no descriptor but those that are open.
const RUNTIME: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getcwd,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_nanosleep,
    libc::SYS_read,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Waiting for eventfds, and looking at the volume when another open file takes its place.
const QUEUE: &[c_long] = &[
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
];

/// Moving bytes without io_uring.
const BLOCKING: &[c_long] = &[
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
];

/// Messages over sockets that are there.
const SOCKETS: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_fdatasync,
];

/// Threads for clients. Of `clone3` see [`refuse_politely`].
const CONTROL: &[c_long] = &[libc::SYS_clone3];

/// Files of the front end, the volume when a guest moves, the sockets' files at the end; which ones, Landlock says.
/// Locked memory for a key that comes back.
const SESSION: &[c_long] = &[
    libc::SYS_eventfd2,
    libc::SYS_fadvise64,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_ftruncate,
    libc::SYS_lseek,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    libc::SYS_memfd_create,
    libc::SYS_memfd_secret,
    libc::SYS_mlock,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_pidfd_open,
    libc::SYS_pread64,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    libc::SYS_statx,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_getpeername,
];

/// `IORING_REGISTER_FILES_UPDATE`.
const FILES_UPDATE: u64 = 6;

/// Every flag of `clone` that makes a process or a namespace rather than a thread.
const CLONE_APART: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// Leaves this thread the calls of its role.
pub(super) fn confine(role: Role) -> io::Result<()> {
    if !matches!(role, Role::Session { .. }) {
        leave_signals_to_others()?;
    }
    for program in [refuse_politely(role)?, allow_only(rules_of(role))?] {
        apply_filter(&program).map_err(io::Error::other)?;
    }
    Ok(())
}

/// Signals are passed on to the main thread over a socket, by whichever thread they meet: not by one that may not do that.
fn leave_signals_to_others() -> io::Result<()> {
    let signals = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM];
    Ok(signals.into_iter().collect::<SigSet>().thread_block()?)
}

/// A filter that ends the process at every other call. A trap, so that the log can say at which.
fn allow_only(rules: Rules) -> io::Result<BpfProgram> {
    program(rules, SeccompAction::Trap, SeccompAction::Allow)
}

/// A filter for calls that libraries make of their own accord, and do without: they fail. `clone3` hides its flags
/// where no filter can see them; the C library then uses `clone`. Files are opened to size the heap, and with the folder
/// of the process they serve to print where a panic came from.
fn refuse_politely(role: Role) -> io::Result<BpfProgram> {
    let refused: &[c_long] = match role {
        Role::Session { .. } => &[libc::SYS_clone3],
        _ => &[
            libc::SYS_clone3,
            libc::SYS_getcwd,
            libc::SYS_openat,
            #[cfg(target_arch = "x86_64")]
            libc::SYS_readlink,
            libc::SYS_readlinkat,
        ],
    };
    let rules = refused.iter().map(|number| (*number, Vec::new())).collect();
    program(rules, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))
}

fn program(rules: Rules, otherwise: SeccompAction, listed: SeccompAction) -> io::Result<BpfProgram> {
    let architecture = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
    let filter = SeccompFilter::new(rules, otherwise, listed, architecture).map_err(io::Error::other)?;
    BpfProgram::try_from(filter).map_err(io::Error::other)
}

fn rules_of(role: Role) -> Rules {
    let mut rules = Rules::new();
    let mut allow = |calls: &[c_long]| rules.extend(calls.iter().map(|number| (*number, Vec::new())));
    allow(RUNTIME);
    match role {
        Role::UringQueue => allow(&[QUEUE, &[libc::SYS_io_uring_enter, libc::SYS_openat]].concat()),
        Role::BlockingQueue => allow(&[QUEUE, BLOCKING, &[libc::SYS_openat]].concat()),
        Role::Control => allow(&[SOCKETS, CONTROL, &[libc::SYS_openat]].concat()),
        Role::Session { .. } => allow(&[SOCKETS, SESSION].concat()),
    }
    allow_with_conditions(role, &mut rules);
    rules
}

/// Calls of which only some forms are allowed.
fn allow_with_conditions(role: Role, rules: &mut Rules) {
    let mut allow = |number: c_long, forms: Vec<SeccompRule>| rules.insert(number, forms);
    // No memory becomes code.
    let not_executable = || vec![form(&[(2, MaskedEq(libc::PROT_EXEC as u64), 0)])];
    allow(libc::SYS_mmap, not_executable());
    allow(libc::SYS_mprotect, not_executable());
    allow(libc::SYS_prctl, either(0, &[libc::PR_GET_NAME, libc::PR_SET_NAME]));
    // A process may end itself, and what the standard library has to say of that comes first.
    allow(libc::SYS_tgkill, either(2, &[libc::SIGABRT]));
    allow(libc::SYS_rt_sigaction, either(0, &[libc::SIGABRT, libc::SIGBUS, libc::SIGSEGV]));
    let duplicate = [libc::F_DUPFD_CLOEXEC, libc::F_GETFD, libc::F_SETFD];
    match role {
        Role::UringQueue => {
            allow(libc::SYS_io_uring_register, vec![form(&[(1, Eq, FILES_UPDATE)])]);
            allow(libc::SYS_fcntl, either(1, &duplicate));
        }
        Role::BlockingQueue => {
            allow(libc::SYS_fcntl, either(1, &duplicate));
        }
        Role::Control => {
            allow(libc::SYS_fcntl, either(1, &duplicate));
            let apart = (CLONE_APART | libc::CLONE_THREAD) as u64;
            allow(libc::SYS_clone, vec![form(&[(0, MaskedEq(apart), libc::CLONE_THREAD as u64)])]);
        }
        Role::Session { connects } => {
            let seals = [libc::F_GETFL, libc::F_SETFL, libc::F_GET_SEALS, libc::F_ADD_SEALS];
            let locks = [libc::F_OFD_GETLK, libc::F_OFD_SETLK];
            allow(libc::SYS_fcntl, either(1, &[&duplicate[..], &seals, &locks].concat()));
            let requests = [libc::FIONREAD, libc::FIONBIO, BLKSSZGET].map(|request| request as i32);
            allow(libc::SYS_ioctl, either(1, &requests));
            if connects {
                allow(libc::SYS_socket, either(0, &[libc::AF_UNIX]));
                allow(libc::SYS_connect, Vec::new());
            }
        }
    }
}

/// `_IO(0x12, 104)`
const BLKSSZGET: libc::Ioctl = 0x1268;

/// Forms in which this argument is one of `values`.
fn either(argument: u8, values: &[i32]) -> Vec<SeccompRule> {
    values.iter().map(|value| form(&[(argument, Eq, *value as u32 as u64)])).collect()
}

/// A form in which all of these arguments are as told. The kernel looks at 32 bits of each as well.
fn form(arguments: &[(u8, seccompiler::SeccompCmpOp, u64)]) -> SeccompRule {
    let condition = |(index, operator, value): &(u8, seccompiler::SeccompCmpOp, u64)| {
        SeccompCondition::new(*index, Dword, operator.clone(), *value).expect("a call has six arguments")
    };
    SeccompRule::new(arguments.iter().map(condition).collect()).expect("at least one argument")
}
