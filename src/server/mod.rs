//! One served disk, from its configuration to its end.
//!
//! Start-up goes from the bottom up: volume, key, format, queue threads, socket. When the socket can be
//! connected to, nothing can fail any more for reasons that an operator could have mended. One front end
//! at a time is served; a second one waits in the socket's backlog until the first has gone.

mod arrival;
mod backend_channel;
mod complaints;
pub mod config;
pub mod control;
mod device;
mod enclosure;
pub mod error;
mod front_end;
// For tests as well, where it is compiled and no more: a change that breaks it shows in every check.
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
pub mod harden;
mod lock_holder;
mod operator;
mod peers;
mod refusal;
mod rings;
mod session;
mod socket;
pub mod startup;
mod stop;
mod suspension;
mod tenure;
pub mod volume_file;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde_json::json;

pub use config::ServeConfig;
pub use error::ServeError;
pub use socket::SocketError;

use config::{DeviceConfig, EngineKind, ErrorPolicy};
use control::orders;
use control::protocol::Fault;
use control::service::Service;
use device::Device;
use enclosure::Enclosure;
use front_end::{End, Reception};
use harden::shield_stack;
use peers::Peers;
use socket::Sockets;
use stop::StopSignal;
use suspension::KeyShape;
use tenure::Tenure;

use crate::cipher::{KernelChoice, Xts};
use crate::format::{Encryption, Unlocked};
use crate::geometry::SectorSize;
use crate::guest::fault;
use crate::io::blocking::Blocking;
use crate::io::uring::Uring;
use crate::io::{PoolShape, SlotPool};
use crate::sandbox::{Layer, Role, Sandbox, report_violations};
use crate::worker::{self, Disk, OnError, QueueThread, Volume};

/// Serves one disk until it is told to stop, or until its only front end is done. Everything that was
/// acknowledged is durable when this returns.
///
/// # Errors
/// See [`ServeError`].
pub fn serve(mut config: ServeConfig) -> Result<(), ServeError> {
    let opened = match startup::take_over(&config)? {
        Some((opened, endpoint)) => {
            config.endpoint = endpoint;
            opened
        }
        None => startup::open_disk(&config)?,
    };
    // Before this, a signal ends the process as usual: there is nothing to finish, and fetching a key may block.
    let (desk, inbox) = orders::channel().map_err(ServeError::Session)?;
    desk.heed_hangups(&inbox).map_err(ServeError::Session)?;
    let stop = StopSignal::install(inbox).map_err(ServeError::Session)?;
    fault::end_on_memory_fault().and_then(|()| report_violations()).map_err(ServeError::Session)?;
    let sandbox = Sandbox::new(config.confinement.mode);
    let watch = stop.watch().map_err(ServeError::Session)?;
    let tenure = Tenure::new(opened.volume, config.volume.clone(), config.incoming, watch);
    let extent = opened.unlocked.extent;
    let on_error = match config.on_error {
        ErrorPolicy::Report => OnError::Report,
        ErrorPolicy::Stop => OnError::Stop { page_cached: !config.volume.direct },
    };
    let (disk, key_shape) =
        make_disk(opened.unlocked, opened.logical_block, config.cipher_kernel, &config.device, on_error)?;
    let volume = tenure.volume();
    let engine = config.engine.settle(&volume);
    let threads = spawn_queues(&disk, engine, config.device.num_queues, &volume, &stop, sandbox)?;
    let device = Arc::new(Device::new(disk, key_shape, config.device, tenure, extent));
    let uid = config.confinement.identity.map(|identity| identity.uid());
    let mut peers = Peers::new(uid, config.confinement.allowed_uids.clone());
    let sockets = Sockets::open(config.endpoint, config.control_socket, &config.confinement)?;
    let files = sockets.files(volume, !config.volume.read_only);
    let role = Role::Session { connects: files.vmm_socket.is_some() };
    let identity = config.confinement.identity;
    Enclosure { sandbox, identity, engine, threads: &threads, files }.close()?;
    let Sockets { mut socket, control } = sockets;
    let control = control.map(|control| {
        let queues = threads.iter().map(QueueThread::watcher).collect();
        let service = Service { device: Arc::clone(&device), queues, desk };
        service.start(control, Peers::new(uid, Vec::new()), sandbox)
    });
    let control = control.transpose()?;
    // The first byte of somebody else's is read after this.
    sandbox.confine(role)?;
    tracing::info!("waiting for the VMM");
    let hands_over = socket.has_more();
    let reception = Reception { device: &device, threads: &threads, stop: &stop, hands_over };
    let end = reception.serve(&mut socket, &mut peers, config.once)?;
    // The sockets go first, so that nobody connects to a server that is going away.
    drop((socket, control));
    drop(threads);
    let synced = device.end_life();
    if let End::Shutdown(caller) = end {
        caller.answer(synced.as_ref().map(|()| json!({})).map_err(Fault::failed));
    }
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
    on_error: OnError,
) -> Result<(Disk, Option<KeyShape>), ServeError> {
    let geometry = unlocked.geometry;
    let (xts, key_shape) = match unlocked.encryption {
        Some(Encryption { key, iv }) => {
            let xts = Xts::with_kernel(&key, geometry.sector_size, iv, cipher_kernel)?;
            tracing::info!(kernel = %xts.kernel(), "cipher ready");
            let fingerprint = key.fingerprint().map_err(ServeError::Session)?;
            let kernel = xts.kernel();
            (Some(xts), Some(KeyShape { fingerprint, sector_size: geometry.sector_size, iv, kernel }))
        }
        None => (None, None),
    };
    let view = device::disk_view(geometry, logical_block, config);
    let volume = Volume::new(geometry, xts)
        .with_logical_block(logical_block)
        .with_on_error(on_error)
        .with_limits(config.limits);
    Ok((Disk { volume: Arc::new(volume), view, serial: config.serial }, key_shape))
}

const _: () = assert!(config::NUM_QUEUES_MAX as usize <= worker::MAX_WORKERS, "one worker for each queue");

/// One thread for each queue, each with its own engine and slots.
fn spawn_queues(
    disk: &Disk,
    engine: EngineKind,
    num_queues: u16,
    backing: &Arc<OwnedFd>,
    stop: &StopSignal,
    sandbox: Sandbox,
) -> Result<Vec<QueueThread>, ServeError> {
    let spawn = |index: u16| {
        let name = format!("queue-{index}");
        let slots = SlotPool::new(PoolShape::default()).map_err(ServeError::Session)?;
        let on_failure = stop.failure_descriptor().map_err(ServeError::Session)?;
        let backing = Arc::clone(backing);
        match engine {
            EngineKind::Uring => {
                let make = move |slots: &SlotPool| {
                    shield_stack();
                    let engine = Uring::new(backing, slots, worker::max_ops(slots))?;
                    let restricted = match engine.is_restricted() {
                        true => Ok(()),
                        false => Err(io::Error::other("the kernel does not know them")),
                    };
                    sandbox.settle(Layer::UringOperations, restricted)?;
                    Ok(engine)
                };
                QueueThread::spawn(name, disk.clone(), slots, make, on_failure)
            }
            EngineKind::Blocking => {
                let make = move |slots: &SlotPool| {
                    shield_stack();
                    Blocking::new(backing, worker::max_ops(slots)).map_err(ServeError::Session)
                };
                QueueThread::spawn(name, disk.clone(), slots, make, on_failure)
            }
        }
    };
    (0..num_queues).map(spawn).collect()
}
