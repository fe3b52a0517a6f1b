//! A disk whose key was taken away, and may come back: nobody is served meanwhile, and no memory of this process holds
//! a byte of it.
//!
//! The key comes back over the control socket, from whoever can fetch it: this process has no way to a key manager any
//! more. Only the same key is taken: one that it is not would garble the disk.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde_json::{Value, json};

use super::control::protocol::Fault;
use super::device::Device;
use super::operator::{drain, resume};
use super::session::Session;
use crate::cipher::{CipherError, EqualHalves, IvNumbering, KernelChoice, KeyFingerprint, VolumeKey, Xts};
use crate::geometry::SectorSize;
use crate::worker::QueueThread;

/// What is kept of the key while it is away: enough to know it again and to make the cipher from it.
#[derive(Debug)]
pub(super) struct KeyShape {
    pub(super) fingerprint: KeyFingerprint,
    pub(super) sector_size: SectorSize,
    pub(super) iv: IvNumbering,
    pub(super) kernel: KernelChoice,
}

/// Why a key is not taken.
#[derive(Debug, thiserror::Error)]
enum KeyRefusal {
    #[error("no key came with the request, or none that can be read: {0}")]
    Unreadable(std::io::Error),
    #[error(transparent)]
    Unfit(#[from] CipherError),
    #[error("it is not the key that the disk was served with")]
    Other,
}

impl KeyShape {
    fn cipher(&self, handed_over: OwnedFd) -> Result<Xts, KeyRefusal> {
        let key = VolumeKey::from_sealed(handed_over, EqualHalves::Accept)?;
        match self.fingerprint.matches(&key) {
            true => Ok(Xts::with_kernel(&key, self.sector_size, self.iv, self.kernel)?),
            false => Err(KeyRefusal::Other),
        }
    }
}

/// Drains the disk and wipes its key.
pub(super) fn suspend(
    device: &Device,
    threads: &[QueueThread],
    session: Option<&mut Session<'_>>,
) -> Result<Value, Fault> {
    if device.key_shape().is_none() {
        return Err(Fault::refused("the volume is not encrypted: there is no key to wipe"));
    }
    drain(device, threads, session)?;
    device.set_suspended(true);
    // With the last thread's share the key is wiped.
    threads.iter().try_for_each(|thread| thread.set_cipher(None)).map_err(Fault::failed)?;
    tracing::info!("the key is wiped; the disk is held until it comes back");
    Ok(json!({ "suspended": true }))
}

/// Takes the key back, and lets the queues run.
pub(super) fn resume_with_key(
    device: &Device,
    threads: &[QueueThread],
    session: Option<&mut Session<'_>>,
    handed_over: Option<OwnedFd>,
) -> Result<Value, Fault> {
    let Some(shape) = device.key_shape().filter(|_| device.is_suspended()) else {
        return Err(Fault::refused("the disk is not suspended"));
    };
    let missing = || KeyRefusal::Unreadable(std::io::ErrorKind::NotFound.into());
    let cipher = handed_over.ok_or_else(missing).and_then(|key| shape.cipher(key));
    let cipher = Arc::new(cipher.map_err(|error| Fault::refused(error.to_string()))?);
    let give = |thread: &QueueThread| thread.set_cipher(Some(Arc::clone(&cipher)));
    threads.iter().try_for_each(give).map_err(Fault::failed)?;
    device.set_suspended(false);
    tracing::info!("the key has come back");
    resume(device, session)
}
