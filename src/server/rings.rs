//! The rings of one session: what the front end has said of each, and whether its queue runs.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::device::Device;
use super::tenure::TenureError;
use crate::guest::{DirtyLog, GuestMemory, InflightRegion};
use crate::virtio::{RingAddresses, RingError, RingSetup, Tracking};
use crate::worker::{QueueError, QueueSetup, QueueThread, WorkerGone};

/// Why a ring could not be started.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Ring(#[from] RingError),
    #[error(transparent)]
    Gone(#[from] WorkerGone),
    #[error("cannot duplicate a ring's descriptor")]
    Descriptor(#[from] io::Error),
    #[error(transparent)]
    Volume(TenureError),
    #[error("the in-flight region has no part for queue {0}")]
    Untracked(usize),
}

impl From<TenureError> for StartError {
    fn from(error: TenureError) -> Self {
        match error {
            TenureError::Gone(gone) => Self::Gone(gone),
            error => Self::Volume(error),
        }
    }
}

/// One ring as the front end has described it so far.
#[derive(Debug, Default)]
pub(super) struct Ring {
    pub(super) size: u16,
    pub(super) addresses: Option<RingAddresses>,
    pub(super) next_available: u16,
    pub(super) kick: Option<OwnedFd>,
    pub(super) call: Option<OwnedFd>,
    pub(super) error: Option<OwnedFd>,
    pub(super) enabled: bool,
    pub(super) running: bool,
    /// Stopped by us, to go on as soon as it can.
    paused: bool,
    /// Not to run, by the operator's order.
    halted: bool,
    /// It was ourselves who stopped it last: `next_available` is certain, and nothing is under way.
    pub(super) drained: bool,
}

impl Ring {
    /// Whether it runs as far as the front end knows.
    pub(super) fn is_live(&self) -> bool {
        self.running || (self.paused && self.halted)
    }

    /// What the ring would start with, at these addresses.
    pub(super) fn setup(&self, addresses: RingAddresses, features: RingFeatures) -> RingSetup {
        RingSetup {
            size: self.size,
            addresses,
            next_available: self.next_available,
            event_idx: features.event_idx,
            indirect: features.indirect,
        }
    }
}

/// Features that a ring is started with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RingFeatures {
    pub(super) event_idx: bool,
    pub(super) indirect: bool,
}

/// All rings of a session, with the threads that serve them.
#[derive(Debug)]
pub(super) struct Rings<'a> {
    threads: &'a [QueueThread],
    device: &'a Device,
    rings: Vec<Ring>,
    pub(super) features: RingFeatures,
    /// Where requests under way are noted. It outlives resets of the device.
    inflight: Option<Arc<InflightRegion>>,
    /// Where writes to the guest's memory are noted, while it is being migrated.
    log: Option<Arc<DirtyLog>>,
}

impl<'a> Rings<'a> {
    /// Rings that nothing is known of yet. Those of a drained disk run only after [`proceed`](Self::proceed).
    pub(super) fn new(threads: &'a [QueueThread], device: &'a Device) -> Self {
        let halted = device.is_drained();
        let rings = threads.iter().map(|_| Ring { halted, ..Ring::default() }).collect();
        Self { threads, device, rings, features: RingFeatures::default(), inflight: None, log: None }
    }

    pub(super) fn get_mut(&mut self, index: usize) -> Option<(&mut Ring, &'a QueueThread)> {
        self.rings.get_mut(index).zip(self.threads.get(index))
    }

    pub(super) fn threads(&self) -> &'a [QueueThread] {
        self.threads
    }

    pub(super) fn any_live(&self) -> bool {
        self.rings.iter().any(Ring::is_live)
    }

    /// Sets where requests under way are noted, for rings that start from now on. None runs.
    pub(super) fn track(&mut self, region: InflightRegion) {
        self.inflight = Some(Arc::new(region));
        for ring in &mut self.rings {
            ring.drained = false;
        }
    }

    /// Notes writes to the guest's memory from now on, those of requests under way included, or no longer.
    pub(super) fn set_log(&mut self, log: Option<Arc<DirtyLog>>) -> Result<(), WorkerGone> {
        self.log = log;
        self.threads.iter().try_for_each(|thread| thread.set_log(self.log.clone()))
    }

    /// Where writes to the guest's memory are noted.
    pub(super) fn log(&self) -> Option<&DirtyLog> {
        self.log.as_deref()
    }

    /// Where requests under way are noted, if the front end keeps that.
    pub(super) fn inflight(&self) -> Option<&Arc<InflightRegion>> {
        self.inflight.as_ref()
    }

    /// Marks every ring enabled: without vhost-user's own features there is no message for it.
    pub(super) fn enable_all(&mut self) {
        for ring in &mut self.rings {
            ring.enabled = true;
        }
    }

    /// Starts the ring once everything is known of it. It looks at the ring at once, without waiting for a
    /// kick, since the one for requests that are there already may be long gone.
    pub(super) fn start_if_ready(
        &mut self,
        index: usize,
        memory: &Arc<GuestMemory>,
    ) -> Result<(), StartError> {
        let ring = &mut self.rings[index];
        let (Some(addresses), Some(kick)) = (ring.addresses, &ring.kick) else { return Ok(()) };
        if ring.running || ring.size == 0 {
            return Ok(());
        }
        if ring.halted {
            self.rings[index].paused = true;
            return Ok(());
        }
        let track = |region: &Arc<InflightRegion>| {
            let region = region.queue(index as u16).ok_or(StartError::Untracked(index))?;
            Ok::<_, StartError>(Tracking { region, recover: !ring.drained })
        };
        let tracking = self.inflight.as_ref().map(track).transpose()?;
        let clone = |fd: &Option<OwnedFd>| fd.as_ref().map(OwnedFd::try_clone).transpose();
        let setup = QueueSetup {
            index: index as u16,
            ring: ring.setup(addresses, self.features),
            memory: Arc::clone(memory),
            kick: kick.try_clone()?,
            call: clone(&ring.call)?,
            error: clone(&ring.error)?,
            enabled: ring.enabled,
            tracking,
            log: self.log.clone(),
        };
        self.device.take(self.threads)?;
        self.threads[index].start(setup)??;
        ring.running = true;
        tracing::debug!(
            queue = index,
            size = ring.size,
            next_available = ring.next_available,
            "ring started"
        );
        Ok(())
    }

    /// Stops the ring, once the requests taken from it are answered, and returns the index it would go on at.
    pub(super) fn stop(&mut self, index: usize) -> Result<u16, WorkerGone> {
        let ring = &mut self.rings[index];
        ring.paused = false;
        if ring.running {
            if let Some(state) = self.threads[index].stop()? {
                ring.next_available = state.next_available;
            }
            ring.running = false;
            ring.drained = true;
            tracing::debug!(queue = index, next_available = ring.next_available, "ring stopped");
        }
        Ok(ring.next_available)
    }

    /// Stops all rings and forgets what the driver has to say of them anew. The error descriptor is the front
    /// end's own, said once.
    pub(super) fn reset(&mut self) -> Result<(), WorkerGone> {
        for index in 0..self.rings.len() {
            self.stop(index)?;
            let ring = &mut self.rings[index];
            *ring = Ring { error: ring.error.take(), halted: ring.halted, ..Ring::default() };
        }
        Ok(())
    }

    /// Stops all rings for good and forgets everything. What storage has failed and is held stays in the in-flight
    /// region.
    pub(super) fn forget(&mut self) -> Result<(), WorkerGone> {
        for (ring, thread) in self.rings.iter_mut().zip(self.threads) {
            if std::mem::take(&mut ring.running) {
                thread.abandon()?;
            }
        }
        self.reset()?;
        for ring in &mut self.rings {
            ring.error = None;
        }
        (self.inflight, self.log) = (None, None);
        Ok(())
    }

    /// Stops the rings that run, until [`resume`](Self::resume). In between, nothing of the guest's memory is
    /// touched and nothing is under way to the volume.
    pub(super) fn pause(&mut self) -> Result<(), WorkerGone> {
        for index in 0..self.rings.len() {
            if self.rings[index].running {
                self.stop(index)?;
                self.rings[index].paused = true;
            }
        }
        Ok(())
    }

    /// Starts what was paused again, where it was. A ring that is not in `memory` waits for memory that has it.
    pub(super) fn resume(&mut self, memory: &Arc<GuestMemory>) -> Result<(), StartError> {
        let mut failed = Ok(());
        for index in 0..self.rings.len() {
            if !self.rings[index].paused || self.rings[index].halted {
                continue;
            }
            match self.start_if_ready(index, memory) {
                Ok(()) => self.rings[index].paused = false,
                Err(error @ (StartError::Queue(_) | StartError::Ring(_) | StartError::Untracked(_))) => {
                    if let Some(not_shown_before) = self.threads[index].complaints().taken_memory.admit() {
                        tracing::warn!(
                            queue = index,
                            not_shown_before,
                            %error,
                            "the front end took a running ring's memory; it waits"
                        );
                    }
                }
                Err(error) => failed = Err(error),
            }
        }
        failed
    }

    /// Stops the rings that run, and lets none run until [`proceed`](Self::proceed), whatever the front end says.
    pub(super) fn halt(&mut self) -> Result<(), WorkerGone> {
        for ring in &mut self.rings {
            ring.halted = true;
        }
        self.pause()
    }

    /// Ends a halt: what runs as far as the front end knows does so.
    pub(super) fn proceed(&mut self, memory: &Arc<GuestMemory>) -> Result<(), StartError> {
        for ring in &mut self.rings {
            ring.halted = false;
        }
        self.resume(memory)
    }

    /// Lets running rings see memory that was added.
    pub(super) fn extend_memory(&mut self, memory: &Arc<GuestMemory>) -> Result<(), StartError> {
        for (ring, thread) in self.rings.iter().zip(self.threads) {
            if ring.running {
                thread.extend_memory(Arc::clone(memory))??;
            }
        }
        Ok(())
    }
}
