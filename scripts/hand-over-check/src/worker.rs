//! The source under check, with a model checker's threads and locks in the place of the standard library's.

#[path = "../../../src/worker/attendance.rs"]
mod attendance;
mod between_threads;
mod commands;
mod flushes;
mod peers;
#[path = "../../../src/worker/sector_locks.rs"]
mod sector_locks;
mod sectors;
#[path = "../../../src/worker/syncs.rs"]
mod syncs;

/// What `attendance` names of its thread.
mod thread {
    #[derive(Debug, thiserror::Error)]
    #[error("a thread has ended")]
    pub(crate) struct WorkerGone;
}

/// Each check is run once for each order of its threads.
pub(crate) const CHECKS: &[(&str, fn())] = &[
    ("every command is answered", commands::every_command_is_answered),
    ("no flush succeeds beside one that has failed", flushes::none_succeeds_beside_one_that_failed),
    ("the control thread's sync and the workers' wait for each other", flushes::control_and_workers_wait),
    ("sectors are changed by one at a time, and whoever waits is woken", sectors::one_at_a_time),
    ("whoever gives up lets the others ahead", sectors::giving_up),
];
