//! Which process may touch the volume when a VM moves from one to another, and when.
//!
//! A volume that is *held* is locked, and open for reading and writing. One that was *let go of* is neither: every open
//! file that could write to it is closed, so that nothing could reach it even by mistake.
//!
//! * A process that is started as usual holds the volume from its start on; one that waits for a VM (`--incoming`) has
//!   not got it yet.
//! * The volume is let go of when the last ring has stopped while the VMM logs dirty pages: so ends the part of a
//!   migration in which the guest runs here. Everything that it was told is written has been made durable by then, and
//!   nothing is under way. A ring that stops otherwise (a guest that reboots, a VMM that goes) changes nothing.
//! * The volume is taken before a ring starts, whichever and wherever: on the host that the VM has moved to, or here
//!   again when the migration has failed. A ring whose volume cannot be had does not start.
//!
//! So of two processes at most one has running rings, at every moment. Which of them, the VMMs decide: each starts the
//! rings of a guest that runs.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{Advice, FlockOperation, SeekFrom};

use super::config::VolumeConfig;
use super::stop::StopWatch;
use super::volume_file::{BUSY_PATIENCE, OpenedVolume, VolumeError, reopen_idle, reopen_locked};
use crate::format::header_lock;
use crate::worker::{QueueThread, WorkerGone};

/// Why a volume is not held now, or still is.
#[derive(Debug, thiserror::Error)]
pub(super) enum TenureError {
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error("volume {path} had {expected_bytes} bytes when this process began to wait for the VM, and has {size_bytes} now", path = path.display())]
    Shrunk { path: std::path::PathBuf, expected_bytes: u64, size_bytes: u64 },
    #[error("what the guest has written cannot be made durable: {0}")]
    NotDurable(io::Error),
    #[error(transparent)]
    Gone(#[from] WorkerGone),
}

/// The volume, held or let go of.
#[derive(Debug)]
pub(super) struct Tenure {
    config: VolumeConfig,
    /// The size that the disk's was made from.
    size_bytes: u64,
    /// What ends a wait for the volume early.
    stop: StopWatch,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    volume: Arc<OwnedFd>,
    held: bool,
    /// How long the volume may be held by a live process when we are to take it.
    patience: Duration,
}

impl Tenure {
    /// Of a volume that is held, or that a VM is expected for within so much time after its first ring starts.
    pub(super) fn new(
        opened: OpenedVolume,
        config: VolumeConfig,
        incoming: Option<Duration>,
        stop: StopWatch,
    ) -> Self {
        let volume = Arc::new(OwnedFd::from(opened.file));
        let state = State { volume, held: incoming.is_none(), patience: incoming.unwrap_or(BUSY_PATIENCE) };
        Self { config, size_bytes: opened.size_bytes, stop, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The open file, for engines that are being made.
    pub(super) fn volume(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.state().volume)
    }

    /// Where the volume is.
    pub(super) fn path(&self) -> &std::path::Path {
        &self.config.path
    }

    /// The size of the volume now.
    pub(super) fn measure(&self) -> io::Result<u64> {
        Ok(rustix::fs::seek(self.volume(), SeekFrom::End(0))?)
    }

    /// `fdatasync`. Of a volume that was let go of, everything is durable.
    pub(super) fn sync_data(&self) -> io::Result<()> {
        let state = self.state();
        if state.held && !self.config.read_only {
            rustix::fs::fdatasync(&state.volume)?;
        }
        Ok(())
    }

    /// Takes the volume, if it is not held, and gives it to the threads; returns whether it was not. No ring runs then. A
    /// wait for whoever has it ends when it is time to stop.
    pub(super) fn take(&self, threads: &[QueueThread]) -> Result<bool, TenureError> {
        let mut state = self.state();
        if state.held {
            return Ok(false);
        }
        // A wait that fails is no reason to wait less long.
        let pause = |time| self.stop.pause(time).unwrap_or(true);
        let opened = reopen_locked(&state.volume, &self.config, state.patience, &pause)?;
        if opened.size_bytes < self.size_bytes {
            let (path, expected_bytes) = (self.config.path.clone(), self.size_bytes);
            return Err(TenureError::Shrunk { path, expected_bytes, size_bytes: opened.size_bytes });
        }
        // What the page cache has was read when somebody else could write.
        let _ = rustix::fs::fadvise(&opened.file, 0, None, Advice::DontNeed);
        // As at the start: no harm where there are no such locks.
        let _ = header_lock::mark_served(&opened.file);
        self.hand_out(&mut state, opened, threads)?;
        (state.held, state.patience) = (true, BUSY_PATIENCE);
        Ok(true)
    }

    /// Lets go of the volume, if it is held, and returns whether it was: everything on it is durable, and no ring runs.
    pub(super) fn let_go(&self, threads: &[QueueThread]) -> Result<bool, TenureError> {
        let mut state = self.state();
        if !state.held {
            return Ok(false);
        }
        let idle = reopen_idle(&state.volume, &self.config)?;
        let locked = Arc::clone(&state.volume);
        self.hand_out(&mut state, idle, threads)?;
        state.held = false;
        // The kernel closes what the engines had when it gets round to that. There is no need to wait for it.
        if let Err(error) = rustix::fs::flock(&locked, FlockOperation::Unlock) {
            tracing::debug!(%error, "the lock ends with the open file");
        }
        Ok(true)
    }

    fn hand_out(
        &self,
        state: &mut State,
        opened: OpenedVolume,
        threads: &[QueueThread],
    ) -> Result<(), WorkerGone> {
        state.volume = Arc::new(OwnedFd::from(opened.file));
        threads.iter().try_for_each(|thread| thread.set_volume(Arc::clone(&state.volume)))
    }
}
