//! Making a ring: as much as this kernel offers, with a fallback for everything that it refuses.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue, types};
use rustix::fs::{FileType, fstat, fstatfs};
use rustix::io::Errno;
use thiserror::Error;

use super::{Mapping, Parts, SlotPool};

/// Why no ring could be made.
#[derive(Debug, Error)]
pub enum UringError {
    /// The kernel was built without it.
    #[error("this kernel has no io_uring; `--engine blocking` works without it")]
    Missing(#[source] io::Error),
    /// An administrator or a sandbox forbids it.
    #[error(
        "io_uring is forbidden here: look at the sysctl kernel.io_uring_disabled and at the seccomp filter of \
         the container or service; `--engine blocking` works without it"
    )]
    Forbidden(#[source] io::Error),
    /// It lacks operations that the engine needs.
    #[error(
        "the io_uring of this kernel is too old, Linux 5.6 is needed; `--engine blocking` works without it"
    )]
    TooOld,
    /// It is there, but a ring could not be made.
    #[error("cannot make an io_uring for {max_ops} operations; `--engine blocking` works without it")]
    Failed {
        /// How many operations it should have held.
        max_ops: u32,
        /// What the kernel said: `ENOMEM` points at RLIMIT_MEMLOCK, `EMFILE` at RLIMIT_NOFILE.
        #[source]
        source: io::Error,
    },
}

/// When the kernel finishes completed operations. Ordered from the best to what every kernel can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TaskWork {
    /// When this thread enters the kernel for it: nothing interrupts the thread (Linux 6.1).
    Deferred,
    /// At this thread's next system call, whichever it is (Linux 5.19).
    Cooperative,
    /// By interrupting this thread.
    Interrupting,
}

/// What to use of the kernel's offer. The default is everything; tests take parts of it away.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) task_work: &'static [TaskWork],
    pub(super) register_volume: bool,
    pub(super) register_slots: bool,
    pub(super) multishot_poll: bool,
    /// Have the kernel refuse what the engine never asks for.
    pub(super) restrict: bool,
    /// Room in the submission queue; by default, for all operations at once.
    pub(super) submission_entries: Option<u32>,
    /// How many seconds in a row may pass without a completion before a drop gives up waiting for them.
    pub(super) drain_patience_seconds: u32,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            task_work: &[TaskWork::Deferred, TaskWork::Cooperative, TaskWork::Interrupting],
            register_volume: true,
            register_slots: true,
            multishot_poll: true,
            restrict: true,
            submission_entries: None,
            drain_patience_seconds: 30,
        }
    }
}

/// The largest submission queue asked for: 256 KiB of memory. More operations than that are handed over in
/// several goes.
const MAX_SUBMISSION_ENTRIES: u32 = 4096;
/// Room in the completion queue beyond one entry for each operation: signals that arrive between two turns,
/// cancelled polls. A queue that overflows nevertheless loses nothing, the kernel keeps the rest.
const SPARE_COMPLETION_ENTRIES: u32 = 64;

impl Setup {
    pub(super) fn build(&self, volume: &OwnedFd, pool: &SlotPool, max_ops: u32) -> Result<Parts, UringError> {
        let submission = max_ops.saturating_add(8).min(MAX_SUBMISSION_ENTRIES);
        let submission = self.submission_entries.unwrap_or(submission).next_power_of_two();
        let completion = max_ops.saturating_add(SPARE_COMPLETION_ENTRIES).max(submission).next_power_of_two();
        let failed = |source: io::Error| match Errno::from_io_error(&source) {
            Some(Errno::NOSYS) => UringError::Missing(source),
            Some(Errno::PERM | Errno::ACCESS) => UringError::Forbidden(source),
            _ => UringError::Failed { max_ops, source },
        };
        // One that does nothing yet can be restricted first, where the kernel knows of that (Linux 5.10).
        if self.restrict
            && let Ok((ring, task_work)) = self.ring(submission, completion, true)
        {
            let parts = self.parts(ring, task_work, volume, pool)?;
            if restrict_and_enable(&parts.ring) {
                return Ok(Parts { restricted: true, ..parts });
            }
        }
        let (ring, task_work) = self.ring(submission, completion, false).map_err(failed)?;
        self.parts(ring, task_work, volume, pool)
    }

    /// Registers with a ring what it is to work on.
    fn parts(
        &self,
        ring: IoUring,
        task_work: TaskWork,
        volume: &OwnedFd,
        pool: &SlotPool,
    ) -> Result<Parts, UringError> {
        // The first release with READ, WRITE and FALLOCATE, which keeps completions that do not fit.
        if !(ring.params().is_feature_rw_cur_pos() && ring.params().is_feature_nodrop()) {
            return Err(UringError::TooOld);
        }
        // Multishot polls came with the same release as tagged resources (Linux 5.13).
        let multishot_poll = self.multishot_poll && ring.params().is_feature_resource_tagging();
        let (volume, volume_flags) = self.register_volume(&ring, volume);
        let registered = self.register_slots(&ring, pool);
        tracing::debug!(
            ?task_work,
            multishot_poll,
            registered_volume = !volume_flags.is_empty(),
            registered_slots = registered.is_some(),
            "io_uring is set up"
        );
        Ok(Parts { ring, task_work, multishot_poll, restricted: false, volume, volume_flags, registered })
    }

    /// Tries each way of finishing operations in turn; an unknown one is `EINVAL`.
    fn ring(&self, submission: u32, completion: u32, disabled: bool) -> io::Result<(IoUring, TaskWork)> {
        let mut refusal = io::Error::from(Errno::INVAL);
        for &task_work in self.task_work {
            let mut builder = IoUring::builder();
            builder.setup_clamp().setup_cqsize(completion);
            if disabled {
                builder.setup_r_disabled();
            }
            match task_work {
                TaskWork::Deferred => builder
                    .setup_submit_all()
                    .setup_single_issuer()
                    .setup_defer_taskrun()
                    .setup_taskrun_flag(),
                TaskWork::Cooperative => builder.setup_submit_all().setup_coop_taskrun().setup_taskrun_flag(),
                TaskWork::Interrupting => &mut builder,
            };
            match builder.build(submission) {
                Ok(ring) => return Ok((ring, task_work)),
                Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => refusal = error,
                Err(error) => return Err(error),
            }
        }
        Err(refusal)
    }

    /// Spares the kernel a look-up of the descriptor for every operation.
    fn register_volume(&self, ring: &IoUring, volume: &OwnedFd) -> (types::Fd, squeue::Flags) {
        let fd = volume.as_raw_fd();
        if self.register_volume {
            match ring.submitter().register_files(&[fd]) {
                // From now on the number is an index into the table of registered files.
                Ok(()) => return (types::Fd(0), squeue::Flags::FIXED_FILE),
                Err(error) => {
                    tracing::warn!(%error, "the volume is not registered with io_uring: a bit slower")
                }
            }
        }
        (types::Fd(fd), squeue::Flags::empty())
    }

    /// Spares the kernel pinning the pages of a slot for every operation.
    fn register_slots(&self, ring: &IoUring, pool: &SlotPool) -> Option<Arc<Mapping>> {
        if !self.register_slots {
            return None;
        }
        let mapping = pool.mapping();
        let (base, len_bytes) = pool.span();
        let span = libc::iovec { iov_base: base.as_ptr().cast(), iov_len: len_bytes };
        // SAFETY: the range is mapped, and stays so while the engine keeps `mapping`, which it drops after
        // the ring.
        match unsafe { ring.submitter().register_buffers(&[span]) } {
            Ok(()) => Some(mapping),
            Err(error) => {
                tracing::warn!(
                    %error,
                    len_bytes,
                    "the slots are not registered with io_uring: a bit slower; RLIMIT_MEMLOCK limits them, \
                     counted together for all processes of this user"
                );
                None
            }
        }
    }
}

/// `IORING_REGISTER_FILES_UPDATE`: the volume is replaced when a guest moves.
const REGISTER_FILES_UPDATE: u8 = 6;

/// What the engine ever asks for. A filter for system calls does not see what goes through a ring: nothing else may.
const OPERATIONS: [u8; 9] = [
    opcode::Read::CODE,
    opcode::ReadFixed::CODE,
    opcode::Write::CODE,
    opcode::WriteFixed::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
    opcode::PollAdd::CODE,
    opcode::AsyncCancel::CODE,
    opcode::Timeout::CODE,
];

/// Has the kernel refuse everything but [`OPERATIONS`], and enables the ring. A ring of which this does not say that it
/// was done is of no use.
fn restrict_and_enable(ring: &IoUring) -> bool {
    let operations = OPERATIONS.into_iter().map(Restriction::sqe_op);
    let flags = Restriction::sqe_flags_allowed(squeue::Flags::FIXED_FILE.bits());
    let mut allowed: Vec<_> =
        operations.chain([flags, Restriction::register_op(REGISTER_FILES_UPDATE)]).collect();
    let submitter = ring.submitter();
    let restricted =
        submitter.register_restrictions(&mut allowed).and_then(|()| submitter.register_enable_rings());
    if let Err(error) = &restricted {
        tracing::debug!(%error, "the kernel does not restrict this io_uring");
    }
    restricted.is_ok()
}

/// Whether io_uring moves bytes of this volume by itself. Files of a tmpfs cannot be told not to block, so each
/// operation goes to a thread of the kernel's, which costs more than copying the bytes right here.
pub fn works_by_itself_on(volume: &OwnedFd) -> bool {
    const TMPFS: u64 = 0x0102_1994;
    // The nodes of devices lie on a tmpfs as well.
    let is_file =
        fstat(volume).is_ok_and(|status| FileType::from_raw_mode(status.st_mode) == FileType::RegularFile);
    !(is_file && fstatfs(volume).is_ok_and(|status| status.f_type as u64 == TMPFS))
}
