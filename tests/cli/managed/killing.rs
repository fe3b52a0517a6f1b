//! Killing a program just before a given change of the files in a folder.

use std::io;
use std::path::Path;
use std::process::Child;

use super::*;

/// What changes the content or names of files. Flushes are none of them: a killed process loses nothing that it wrote.
const CHANGES: [libc::c_long; 11] = [
    libc::SYS_write,
    libc::SYS_pwrite64,
    libc::SYS_writev,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fsetxattr,
    libc::SYS_linkat,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
];

/// How a traced run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Run {
    Killed,
    Exited(i32),
}

/// Runs `command` with one thread until it is about to make change number `nth` (from 0) of a file that `counts`, or of
/// a folder, and kills it there, or until it ends.
#[expect(clippy::zombie_processes, reason = "it is waited for by its number: only so are stops told")]
pub(in super::super) fn kill_before_change(
    command: &mut Command,
    counts: impl Fn(&Path) -> bool,
    nth: usize,
) -> Run {
    let child = traced(command);
    let pid = child.id().cast_signed();
    let mut changes = 0;
    // It stops once when it has become the program.
    assert!(libc::WIFSTOPPED(wait(pid)), "it never began");
    let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_EXITKILL;
    ptrace(libc::PTRACE_SETOPTIONS, pid, options as usize);
    let mut signal = 0;
    loop {
        ptrace(libc::PTRACE_SYSCALL, pid, signal);
        let status = wait(pid);
        if libc::WIFEXITED(status) {
            return Run::Exited(libc::WEXITSTATUS(status));
        }
        assert!(libc::WIFSTOPPED(status), "it was ended by something else: {status:#x}");
        let is_call = libc::WSTOPSIG(status) == libc::SIGTRAP | 0x80;
        signal = if is_call { 0 } else { libc::WSTOPSIG(status) as usize };
        if is_call && is_change(pid, &counts) {
            if changes == nth {
                rustix::process::kill_process(
                    rustix::process::Pid::from_child(&child),
                    rustix::process::Signal::KILL,
                )
                .unwrap();
                assert!(libc::WIFSIGNALED(wait(pid)));
                return Run::Killed;
            }
            changes += 1;
        }
    }
}

/// Whether the process is entering a system call that changes a file that `counts`, or a folder.
#[expect(unsafe_code, reason = "the kernel fills a structure")]
fn is_change(pid: libc::pid_t, counts: &impl Fn(&Path) -> bool) -> bool {
    // SAFETY: all of its fields may be zero.
    let mut info: libc::ptrace_syscall_info = unsafe { std::mem::zeroed() };
    let bytes = size_of_val(&info);
    // SAFETY: the kernel writes no more than so many bytes.
    let result = unsafe { libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, pid, bytes, &raw mut info) };
    assert!(result > 0, "{}", io::Error::last_os_error());
    if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return false;
    }
    // SAFETY: this is the part that is filled when `op` says so.
    let entry = unsafe { info.u.entry };
    let call = entry.nr as libc::c_long;
    if !CHANGES.contains(&call) {
        return false;
    }
    if [libc::SYS_unlink, libc::SYS_unlinkat, libc::SYS_linkat].contains(&call) {
        return true;
    }
    let file = fs::read_link(format!("/proc/{pid}/fd/{}", entry.args[0]));
    file.is_ok_and(|file| counts(&file))
}

#[expect(unsafe_code, reason = "runs between fork and exec")]
fn traced(command: &mut Command) -> Child {
    // SAFETY: the call touches no memory of ours, and is safe between fork and exec.
    unsafe {
        command.pre_exec(|| match libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    command.spawn().unwrap()
}

#[expect(unsafe_code, reason = "no library here has this call")]
fn ptrace(request: libc::c_uint, pid: libc::pid_t, data: usize) {
    // SAFETY: none of the requests that are made with it reads or writes memory here.
    let result = unsafe { libc::ptrace(request, pid, 0, data) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// How the process stopped or ended.
#[expect(unsafe_code, reason = "stops are for the tracer alone")]
fn wait(pid: libc::pid_t) -> libc::c_int {
    let mut status = 0;
    // SAFETY: the pointer leads to an integer.
    let result = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(result, pid, "{}", io::Error::last_os_error());
    status
}
