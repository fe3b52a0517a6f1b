//! What the process gives up so that keys stay inside it.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

use crate::locked::lock_stack;

/// Keeps other processes of the same user from reading this one's memory (`ptrace`, `/proc/PID/mem`) and the
/// kernel from writing it into a core file. To be called before there is a secret.
///
/// # Errors
/// When the kernel refuses, which no supported kernel does.
pub fn harden_process() -> io::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    // Each memory region of a guest holds a descriptor, and there may be hundreds of them: as many as we may.
    let descriptors = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: descriptors.maximum, ..descriptors })?;
    Ok(())
}

/// Keeps what a cipher leaves on this thread's stack from being swapped out.
pub(super) fn shield_stack() {
    if let Err(error) = lock_stack() {
        tracing::warn!(%error, "a stack cannot be locked in memory (see the limit `ulimit -l`)");
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::dumpable_behavior;

    use super::*;

    #[test]
    fn memory_is_closed_to_debuggers_and_core_files() {
        harden_process().unwrap();
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
        assert_eq!(getrlimit(Resource::Core), Rlimit { current: Some(0), maximum: Some(0) });
    }
}
