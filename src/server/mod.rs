//! One served disk, from its configuration to its end.
//!
//! Start-up goes from the bottom up: volume, key, format, queue threads, socket. When the socket can be
//! connected to, nothing can fail any more for reasons that an operator could have mended. One front end
//! at a time is served; a second one waits in the socket's backlog until the first has gone.

mod arrival;
pub mod config;
mod device;
pub mod error;
pub mod harden;
mod lock_holder;
mod refusal;
mod rings;
mod session;
mod socket;
pub mod startup;
mod stop;
mod tenure;
pub mod volume_file;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use vhost::vhost_user::{BackendReqHandler, Error as VhostUserError};

pub use config::ServeConfig;
pub use error::ServeError;
pub use socket::SocketError;

use arrival::Arrival;
use config::{DeviceConfig, EngineKind};
use device::Device;
use session::Session;
use socket::Socket;
use stop::StopSignal;
use tenure::Tenure;

use crate::cipher::{KernelChoice, Xts};
use crate::format::{Encryption, Unlocked};
use crate::geometry::SectorSize;
use crate::guest::fault;
use crate::io::blocking::Blocking;
use crate::io::uring::Uring;
use crate::io::{PoolShape, SlotPool};
use crate::throttle::Throttle;
use crate::worker::{self, Disk, QueueThread, Volume};

/// Serves one disk until it is told to stop, or until its only front end is done. Everything that was
/// acknowledged is durable when this returns.
///
/// # Errors
/// See [`ServeError`].
pub fn serve(config: ServeConfig) -> Result<(), ServeError> {
    let opened = startup::open_disk(&config)?;
    // Before this, a signal ends the process as usual: there is nothing to finish, and fetching a key may block.
    let stop = StopSignal::install().map_err(ServeError::Session)?;
    fault::end_on_memory_fault().map_err(ServeError::Session)?;
    let tenure = Tenure::new(opened.volume, config.volume.clone(), config.incoming);
    let disk = make_disk(opened.unlocked, opened.logical_block, config.cipher_kernel, &config.device)?;
    let threads = spawn_queues(&disk, &config, &tenure.volume(), &stop)?;
    let device = Device::new(disk, config.device, tenure);
    let mut socket = Socket::open(config.endpoint)?;
    tracing::info!("waiting for the VMM");
    while let Some(stream) = socket.next_front_end(&stop)? {
        tracing::info!("VMM connected");
        let stopped = serve_front_end(stream, &device, &threads, &stop)?;
        tracing::info!("VMM disconnected");
        if stopped || config.once || !socket.has_more() {
            break;
        }
    }
    // The socket goes first, so that nobody connects to a server that is going away.
    drop(socket);
    drop(threads);
    let synced = device.sync();
    if stop.has_failed() {
        return Err(ServeError::Session(io::Error::other("a queue thread broke down; see the log")));
    }
    synced.map_err(ServeError::Session)?;
    tracing::info!("all writes are durable; ending");
    Ok(())
}

/// Makes the cipher from the key, which is wiped here, and the volume from both.
fn make_disk(
    unlocked: Unlocked,
    logical_block: SectorSize,
    cipher_kernel: KernelChoice,
    config: &DeviceConfig,
) -> Result<Disk, ServeError> {
    let geometry = unlocked.geometry;
    let xts = match unlocked.encryption {
        Some(Encryption { key, iv }) => {
            let xts = Xts::with_kernel(&key, geometry.sector_size, iv, cipher_kernel)?;
            tracing::info!(kernel = %xts.kernel(), "cipher ready");
            Some(xts)
        }
        None => None,
    };
    let view = device::disk_view(geometry, logical_block, config);
    let volume = Volume::new(geometry, xts).with_logical_block(logical_block);
    Ok(Disk { volume: Arc::new(volume), view, serial: config.serial })
}

const _: () = assert!(config::NUM_QUEUES_MAX as usize <= worker::MAX_WORKERS, "one worker for each queue");

/// One thread for each queue, each with its own engine and slots.
fn spawn_queues(
    disk: &Disk,
    config: &ServeConfig,
    backing: &Arc<OwnedFd>,
    stop: &StopSignal,
) -> Result<Vec<QueueThread>, ServeError> {
    let spawn = |index: u16| {
        let name = format!("queue-{index}");
        let slots = SlotPool::new(PoolShape::default()).map_err(ServeError::Session)?;
        let on_failure = stop.failure_descriptor().map_err(ServeError::Session)?;
        let backing = Arc::clone(backing);
        match config.engine {
            EngineKind::Uring => {
                let make = move |slots: &SlotPool| {
                    Uring::new(backing, slots, worker::max_ops(slots)).map_err(ServeError::from)
                };
                QueueThread::spawn(name, disk.clone(), slots, make, on_failure)
            }
            EngineKind::Blocking => {
                let make = move |slots: &SlotPool| {
                    Blocking::new(backing, worker::max_ops(slots)).map_err(ServeError::Session)
                };
                QueueThread::spawn(name, disk.clone(), slots, make, on_failure)
            }
        }
    };
    (0..config.device.num_queues).map(spawn).collect()
}

/// Serves one front end until it disconnects or breaks the protocol (false), or until it is time to stop (true).
fn serve_front_end(
    stream: UnixStream,
    device: &Device,
    threads: &[QueueThread],
    stop: &StopSignal,
) -> Result<bool, ServeError> {
    #[expect(
        clippy::arc_with_non_send_sync,
        reason = "the type that `vhost` asks for; it stays on this thread"
    )]
    let session = Arc::new(Mutex::new(Session::new(device, threads)));
    let watched = stream.try_clone().map_err(ServeError::Session)?;
    let mut messages = BackendReqHandler::from_stream(stream, Arc::clone(&session));
    let mut refusals = Throttle::default();
    let stopped = loop {
        match arrival::next_message(&watched, stop).map_err(ServeError::Session)? {
            Arrival::Whole => {}
            Arrival::Stop => break true,
            Arrival::Stuck => {
                tracing::warn!("the VMM began a message and did not finish it; closing its connection");
                break false;
            }
        }
        let request = arrival::request_name(&watched);
        tracing::debug!(request, "message of the VMM");
        match messages.handle_request() {
            Ok(()) => {}
            Err(VhostUserError::Disconnected) => break false,
            // The front end has been told, if it asked to be.
            Err(VhostUserError::ReqHandlerError(error)) => {
                if let Some(not_shown_before) = refusals.admit() {
                    tracing::warn!(request, not_shown_before, %error, "refused a message of the VMM");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "connection to the VMM ended");
                break false;
            }
        }
    };
    let ended = session.lock().unwrap_or_else(PoisonError::into_inner).end();
    // A queue thread that is gone has set the stop signal off: the loop of front ends ends there.
    Ok(stopped || ended.is_err())
}
