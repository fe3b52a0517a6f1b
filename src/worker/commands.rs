//! What the control thread has a worker do between turns.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::Worker;
use super::monitor::{Monitor, QueueState};
use super::queue::{Queue, QueueError, QueueSetup};
use crate::cipher::Xts;
use crate::guest::GuestMemory;
use crate::io::{Engine, Wait, Wake};
use crate::virtio::{RingError, RingState};

impl<E: Engine> Worker<E> {
    /// Starts a queue. There is none yet.
    ///
    /// # Errors
    /// When the ring is impossible or the kick descriptor cannot be waited on: there is still no queue then.
    pub fn start_queue(&mut self, setup: QueueSetup) -> Result<(), QueueError> {
        assert!(self.queue.is_none(), "a worker has one queue");
        let (queue, kick) = Queue::start(setup, &self.monitor)?;
        self.engine.watch(Wake::Kick, Some(kick)).map_err(QueueError::Kick)?;
        self.repeats.going_on = queue.has_repeats();
        self.monitor.clear_retry();
        self.queue = Some(queue);
        Ok(())
    }

    /// Stops the queue, if there is one: takes no more requests, finishes and answers those that were taken, by a
    /// predecessor too, and those that are held. Afterwards nothing of the guest's memory is touched any more.
    ///
    /// # Errors
    /// When the engine is of no further use.
    pub fn stop_queue(&mut self) -> io::Result<Option<RingState>> {
        self.give_up_held();
        self.finish_queue()
    }

    /// Stops the queue, if there is one, for good: as [`stop_queue`](Self::stop_queue), but requests that are held stay
    /// in the in-flight region, if there is one, for a successor to repeat.
    ///
    /// # Errors
    /// When the engine is of no further use.
    pub fn abandon_queue(&mut self) -> io::Result<Option<RingState>> {
        if !self.queue.as_ref().is_some_and(Queue::is_tracked) {
            self.give_up_held();
        }
        self.finish_queue()
    }

    fn finish_queue(&mut self) -> io::Result<Option<RingState>> {
        let Some(queue) = &mut self.queue else { return Ok(None) };
        queue.set_enabled(false);
        self.engine.watch(Wake::Kick, None)?;
        while self.is_busy() {
            if !self.turn()? {
                self.submit(Wait::ForEvent)?;
            }
        }
        self.forget_held();
        self.publish();
        // The buffers point into memory that may now be unmapped; their capacity is not worth keeping it.
        self.spare_data.clear();
        self.monitor.set_in_flight(0);
        self.monitor.set_state(QueueState::Stopped);
        Ok(self.queue.take().map(Queue::into_state))
    }

    /// The figures of this worker.
    pub fn monitor(&self) -> &Arc<Monitor> {
        &self.monitor
    }

    /// The running queue, if there is one.
    pub fn queue_mut(&mut self) -> Option<&mut Queue> {
        self.queue.as_mut()
    }

    /// Sets the eventfd that ends a wait for a command, once. Workers that share a volume wake each other by it.
    ///
    /// # Errors
    /// When the engine cannot watch it.
    pub fn watch_control(&mut self, fd: OwnedFd) -> io::Result<()> {
        self.disk.volume.peers().set_wake(self.number, fd.try_clone()?);
        self.engine.watch(Wake::Control, Some(fd))
    }

    /// Moves on to another open file of the volume, while there is no queue.
    ///
    /// # Errors
    /// When the engine is of no further use.
    pub fn set_volume(&mut self, volume: Arc<OwnedFd>) -> io::Result<()> {
        assert!(self.queue.is_none(), "a queue may have requests under way");
        self.engine.set_volume(volume)
    }

    /// Takes the key away, or gives it back, while there is no queue.
    pub fn set_cipher(&mut self, xts: Option<Arc<Xts>>) {
        assert!(self.queue.is_none(), "a queue may have requests under way");
        self.disk.volume = Arc::new(self.disk.volume.with_cipher(xts));
    }

    /// Lets requests reach further: the disk has grown to `capacity_bytes`.
    pub fn grow(&mut self, capacity_bytes: u64) {
        self.disk.view.geometry.capacity_bytes = capacity_bytes;
    }

    /// Moves the queue to memory that still has all regions it uses.
    ///
    /// # Errors
    /// When the ring's areas are not there any more.
    pub fn extend_memory(&mut self, memory: Arc<GuestMemory>) -> Result<(), RingError> {
        self.queue.as_mut().map_or(Ok(()), |queue| queue.set_memory(memory))
    }
}
