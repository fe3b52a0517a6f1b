//! A worker on its own thread, and the control thread's handle to it.
//!
//! The control thread sends a command and waits for its answer, so that what it tells the front end is true
//! when it tells it. Nothing of this is on the way of a request.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};

use super::attendance::{self, Attendant, attend};
use super::monitor::QueueComplaints;
use super::{Disk, Monitor, QueueError, QueueSetup, QueueView, Worker};
use crate::cipher::Xts;
use crate::guest::{DirtyLog, GuestMemory};
use crate::io::{Engine, SlotPool};
use crate::locked::wipe_dead_stack;
use crate::virtio::{RingError, RingState};

/// The thread has ended: its engine broke down, and it has said so in the log.
#[derive(Debug, thiserror::Error)]
#[error("a queue thread has ended")]
pub struct WorkerGone;

/// What the control thread asks of a worker, with the way back for the answer.
pub(super) enum Command {
    Start(Box<QueueSetup>, Sender<Result<(), QueueError>>),
    Stop(Sender<Option<RingState>>),
    Abandon(Sender<Option<RingState>>),
    SetCall(Option<OwnedFd>, Sender<()>),
    SetEnabled(bool, Sender<()>),
    SetLog(Option<Arc<DirtyLog>>, Sender<()>),
    SetVolume(Arc<OwnedFd>, Sender<()>),
    ExtendMemory(Arc<GuestMemory>, Sender<Result<(), RingError>>),
    Grow(u64, Sender<()>),
    SetCipher(Option<Arc<Xts>>, Sender<()>),
    Run(Box<dyn FnOnce() + Send>),
}

/// The handle of a worker's thread. Dropping it ends the thread, after the requests under way.
#[derive(Debug)]
pub struct QueueThread {
    commands: Option<Sender<Command>>,
    monitor: Arc<Monitor>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl QueueThread {
    /// Starts a worker for `disk`. `make_engine` runs on the new thread, since an engine may be bound to the
    /// thread that makes it. `on_failure` is signalled should the thread end by itself.
    ///
    /// # Errors
    /// When the thread cannot be started or its engine cannot be made.
    pub fn spawn<E, F, X>(
        name: String,
        disk: Disk,
        slots: SlotPool,
        make_engine: F,
        on_failure: OwnedFd,
    ) -> Result<Self, X>
    where
        E: Engine,
        F: FnOnce(&SlotPool) -> Result<E, X> + Send + 'static,
        X: From<io::Error> + Send + 'static,
    {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).map_err(io::Error::from)?);
        let watched = wake.try_clone()?;
        let (commands, inbox) = mpsc::channel();
        let (report, started) = mpsc::channel();
        let body = move || {
            let alarm = PanicAlarm(on_failure);
            let worker = make_engine(&slots).and_then(|engine| {
                let mut worker = Worker::new(disk, engine, slots);
                worker.watch_control(watched)?;
                Ok(worker)
            });
            match worker {
                Ok(worker) => {
                    let _ = report.send(Ok(Arc::clone(worker.monitor())));
                    if let Err(error) = attend(worker, &inbox) {
                        tracing::error!(%error, "a queue thread ended: its I/O engine broke down");
                        alarm.raise();
                    }
                }
                Err(error) => drop(report.send(Err(error))),
            }
        };
        let thread = std::thread::Builder::new().name(name).spawn(body)?;
        let ended = || X::from(io::Error::other("a queue thread ended while starting"));
        let monitor = started.recv().map_err(|_| ended())??;
        Ok(Self { commands: Some(commands), monitor, wake, thread: Some(thread) })
    }

    /// What may be told of the queue now.
    pub(crate) fn complaints(&self) -> &QueueComplaints {
        self.monitor.complaints()
    }

    /// A way to look at the worker, and to have it try again, from any thread.
    pub fn watcher(&self) -> QueueWatcher {
        QueueWatcher { monitor: Arc::clone(&self.monitor), wake: Arc::clone(&self.wake) }
    }

    /// Starts the worker's queue.
    ///
    /// # Errors
    /// The outer one when the worker has ended, the inner one when the queue cannot be.
    pub fn start(&self, setup: QueueSetup) -> Result<Result<(), QueueError>, WorkerGone> {
        self.ask(|reply| Command::Start(Box::new(setup), reply))
    }

    /// Stops the worker's queue, if it has one, once the requests it has taken are answered. Afterwards nothing
    /// of the guest's memory is touched any more.
    ///
    /// # Errors
    /// When the worker has ended.
    pub fn stop(&self) -> Result<Option<RingState>, WorkerGone> {
        self.ask(Command::Stop)
    }

    /// Stops the worker's queue for good, if it has one: as [`stop`](Self::stop), but requests that are held stay in the
    /// in-flight region, if there is one.
    ///
    /// # Errors
    /// When the worker has ended.
    pub fn abandon(&self) -> Result<Option<RingState>, WorkerGone> {
        self.ask(Command::Abandon)
    }

    /// Replaces the descriptor that tells the guest of answers.
    ///
    /// # Errors
    /// When the worker has ended.
    pub fn set_call(&self, call: Option<OwnedFd>) -> Result<(), WorkerGone> {
        self.ask(|reply| Command::SetCall(call, reply))
    }

    /// Sets whether the queue takes requests.
    ///
    /// # Errors
    /// When the worker has ended.
    pub fn set_enabled(&self, enabled: bool) -> Result<(), WorkerGone> {
        self.ask(|reply| Command::SetEnabled(enabled, reply))
    }

    /// Replaces the log of what is written to the guest's memory. Everything written after this is in it.
    ///
    /// # Errors
    /// When the worker has ended.
    pub fn set_log(&self, log: Option<Arc<DirtyLog>>) -> Result<(), WorkerGone> {
        self.ask(|reply| Command::SetLog(log, reply))
    }

    /// Moves on to another open file of the volume, while there is no queue. Of the last one nothing is held any more.
    ///
    /// # Errors
    /// When the worker has ended.
    pub fn set_volume(&self, volume: Arc<OwnedFd>) -> Result<(), WorkerGone> {
        self.ask(|reply| Command::SetVolume(volume, reply))
    }

    /// Takes the key away, or gives it back, while there is no queue. Of the last one nothing is held any more.
    ///
    /// # Errors
    /// When the worker has ended.
    pub fn set_cipher(&self, xts: Option<Arc<Xts>>) -> Result<(), WorkerGone> {
        self.ask(|reply| Command::SetCipher(xts, reply))
    }

    /// Moves the queue to memory that has all its regions and more.
    ///
    /// # Errors
    /// The outer one when the worker has ended, the inner one when the ring is not in that memory.
    pub fn extend_memory(&self, memory: Arc<GuestMemory>) -> Result<Result<(), RingError>, WorkerGone> {
        self.ask(|reply| Command::ExtendMemory(memory, reply))
    }

    /// Lets requests reach further: the disk has grown to `capacity_bytes`.
    ///
    /// # Errors
    /// When the worker has ended.
    pub fn grow(&self, capacity_bytes: u64) -> Result<(), WorkerGone> {
        self.ask(|reply| Command::Grow(capacity_bytes, reply))
    }

    /// Runs `body` on the worker's thread, between two requests: what a thread does to itself.
    ///
    /// # Errors
    /// When the worker has ended.
    pub fn run_there<T: Send + 'static>(
        &self,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, WorkerGone> {
        self.ask(|reply| {
            Command::Run(Box::new(move || {
                let _ = reply.send(body());
            }))
        })
    }

    fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Result<T, WorkerGone> {
        let commands = self.commands.as_ref().ok_or(WorkerGone)?;
        attendance::ask(commands, command, || self.wake())
    }

    fn wake(&self) {
        wake(&self.wake);
    }
}

fn wake(eventfd: &OwnedFd) {
    let _ = rustix::io::write(eventfd.as_fd(), &1u64.to_ne_bytes());
}

/// Looks at a worker from another thread than the one that commands it, and without waiting for it.
#[derive(Clone, Debug)]
pub struct QueueWatcher {
    monitor: Arc<Monitor>,
    wake: Arc<OwnedFd>,
}

impl QueueWatcher {
    /// The queue as it is now.
    pub fn view(&self) -> QueueView {
        self.monitor.view()
    }

    /// Has the requests that are held tried again. Returns how many there are.
    pub fn retry(&self) -> u32 {
        let held = self.monitor.ask_retry();
        wake(&self.wake);
        held
    }
}

impl Drop for QueueThread {
    fn drop(&mut self) {
        self.commands = None;
        self.wake();
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

/// Tells the control thread when a queue thread panics: without it the guest would wait for ever.
struct PanicAlarm(OwnedFd);

impl PanicAlarm {
    fn raise(&self) {
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

impl Drop for PanicAlarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.raise();
        }
    }
}

impl<E: Engine> Attendant for Worker<E> {
    type Command = Command;

    fn turn(&mut self) -> io::Result<bool> {
        Worker::turn(self)
    }

    fn wait(&mut self) -> io::Result<()> {
        Worker::wait(self)
    }

    fn obey(&mut self, command: Command) -> io::Result<()> {
        // The control thread waits for each answer: it can only be gone when it has panicked.
        match command {
            Command::Start(setup, reply) => {
                let _ = reply.send(self.start_queue(*setup));
            }
            Command::Stop(reply) => {
                let _ = reply.send(self.stop_queue()?);
            }
            Command::Abandon(reply) => {
                let _ = reply.send(self.abandon_queue()?);
            }
            Command::SetCall(call, reply) => {
                if let Some(queue) = self.queue_mut() {
                    queue.set_call(call);
                }
                let _ = reply.send(());
            }
            Command::SetEnabled(enabled, reply) => {
                if let Some(queue) = self.queue_mut() {
                    queue.set_enabled(enabled);
                }
                let _ = reply.send(());
            }
            Command::SetLog(log, reply) => {
                if let Some(queue) = self.queue_mut() {
                    queue.set_log(log);
                }
                let _ = reply.send(());
            }
            Command::SetVolume(volume, reply) => {
                self.set_volume(volume)?;
                let _ = reply.send(());
            }
            Command::ExtendMemory(memory, reply) => {
                let _ = reply.send(self.extend_memory(memory));
            }
            Command::Grow(capacity_bytes, reply) => {
                self.grow(capacity_bytes);
                let _ = reply.send(());
            }
            Command::SetCipher(xts, reply) => {
                self.set_cipher(xts);
                // Some ciphers spill round keys.
                wipe_dead_stack();
                let _ = reply.send(());
            }
            Command::Run(body) => body(),
        }
        Ok(())
    }

    fn end(mut self) -> io::Result<()> {
        self.abandon_queue().map(drop)
    }
}
