//! Threads that may do less than the rest of the process: a seccomp filter or a missing capability concerns
//! only the thread that asked for it.

use std::thread;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Runs `test` on a thread of its own, which ends with it.
pub(super) fn on_a_thread(test: impl FnOnce() + Send + 'static) {
    if let Err(panic) = thread::spawn(test).join() {
        std::panic::resume_unwind(panic);
    }
}

/// From now on the system call fails with `errno` on this thread.
pub(super) fn deny_system_call(number: libc::c_long, errno: i32) {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut filter = [
        // The first word of `seccomp_data` is the number of the system call.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        libc::sock_filter { jf: 1, ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, number as u32) },
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno as u32),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the kernel copies the program, which is alive; the filter concerns this thread only.
    let (privileges, seccomp) = unsafe {
        (
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program),
        )
    };
    assert_eq!((privileges, seccomp), (0, 0), "{}", std::io::Error::last_os_error());
}

/// Root may lock as much memory as it likes, until it gives up this capability.
pub(super) fn drop_lock_capability() {
    const CAP_IPC_LOCK: u32 = 14;
    const VERSION_3: u32 = 0x2008_0522;
    // The header names the version of the call and this thread; then effective, permitted and inheritable
    // sets follow, the lower 32 capabilities first.
    let header = [VERSION_3, 0];
    let mut sets = [0_u32; 6];
    // SAFETY: both arrays have the layout and the size that this version of the calls expects.
    let results = unsafe {
        let got = libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr());
        sets[0] &= !(1 << CAP_IPC_LOCK);
        (got, libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()))
    };
    assert_eq!(results, (0, 0), "{}", std::io::Error::last_os_error());
}

/// The limit for locked memory, set to something finite if there was none (and so high that no other test of
/// this process notices).
pub(super) fn locked_memory_limit_bytes() -> usize {
    let limit = getrlimit(Resource::Memlock);
    let current = limit.current.unwrap_or(u64::MAX).min(64 << 20);
    setrlimit(Resource::Memlock, Rlimit { current: Some(current), maximum: limit.maximum }).unwrap();
    current as usize
}
