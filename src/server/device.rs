//! The disk as virtio describes it: features, configuration space, write cache.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhost::vhost_user::message::VhostUserVirtioFeatures;

use super::complaints::Complaints;
use super::config::{CacheMode, DeviceConfig, DiscardPolicy};
use super::control::protocol::VolumeStatus;
use super::suspension::KeyShape;
use super::tenure::{Tenure, TenureError};
use crate::format::{self, FormatError, PayloadExtent};
use crate::geometry::{Geometry, SectorSize};
use crate::guest::{InflightRegion, Remembered};
use crate::virtio::DiskView;
use crate::virtio::wire::{self, ConfigFields, feature};
use crate::worker::rate_limits::Limits;
use crate::worker::{Disk, QueueThread, WorkerGone};

/// The served disk, the same for every front end. The main thread changes it; those of the control socket look.
#[derive(Debug)]
pub(super) struct Device {
    disk: Disk,
    config: DeviceConfig,
    /// The backing volume.
    tenure: Tenure,
    /// How much of it is payload when it grows.
    extent: PayloadExtent,
    /// The size of the disk. It grows; the one in `disk` is where it began.
    capacity_bytes: AtomicU64,
    cache: Mutex<Cache>,
    /// What is known of the key; `None` for a volume that is not encrypted.
    key_shape: Option<KeyShape>,
    /// The operator lets no queue run.
    drained: AtomicBool,
    /// The key was taken away.
    suspended: AtomicBool,
    /// There is a front end.
    connected: AtomicBool,
    complaints: Complaints,
}

/// The write cache as the driver knows it. It outlives resets and connections, since front ends remember it
/// and do not ask again.
#[derive(Clone, Copy, Debug)]
struct Cache {
    /// On, by the operator's choice or, later, the driver's.
    writeback: bool,
    /// Some front end has read or set that in the life of this process, or of a predecessor that left word of it. One
    /// that has not may come from the time of a predecessor whose driver has turned the cache off and does not flush.
    known: bool,
}

impl Device {
    /// A disk whose queues have the key already: none of it is kept here.
    pub(super) fn new(
        disk: Disk,
        key_shape: Option<KeyShape>,
        config: DeviceConfig,
        tenure: Tenure,
        extent: PayloadExtent,
    ) -> Self {
        let volume = match key_shape {
            Some(_) => Arc::new(disk.volume.with_cipher(None)),
            None => disk.volume,
        };
        let disk = Disk { volume, ..disk };
        let suspended = AtomicBool::new(false);
        let cache = Mutex::new(Cache { writeback: config.cache == CacheMode::Writeback, known: false });
        let (drained, connected) = (AtomicBool::new(false), AtomicBool::new(false));
        let capacity_bytes = AtomicU64::new(disk.view.geometry.capacity_bytes);
        Self {
            disk,
            config,
            tenure,
            extent,
            capacity_bytes,
            cache,
            key_shape,
            drained,
            suspended,
            connected,
            complaints: Complaints::default(),
        }
    }

    /// What may be told of front ends now.
    pub(super) fn complaints(&self) -> &Complaints {
        &self.complaints
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the operator lets no queue run.
    pub(super) fn is_drained(&self) -> bool {
        self.drained.load(Ordering::Relaxed)
    }

    /// Notes what the operator wants; the session stops and starts the queues.
    pub(super) fn set_drained(&self, drained: bool) {
        self.drained.store(drained, Ordering::Relaxed);
    }

    /// What is known of the key.
    pub(super) fn key_shape(&self) -> Option<&KeyShape> {
        self.key_shape.as_ref()
    }

    /// Whether the key was taken away.
    pub(super) fn is_suspended(&self) -> bool {
        self.suspended.load(Ordering::Relaxed)
    }

    /// Notes whether the key was taken away.
    pub(super) fn set_suspended(&self, suspended: bool) {
        self.suspended.store(suspended, Ordering::Relaxed);
    }

    /// Whether there is a front end.
    pub(super) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// Notes whether there is a front end.
    pub(super) fn set_connected(&self, connected: bool) {
        self.connected.store(connected, Ordering::Relaxed);
    }

    /// The disk as requests are checked against it.
    fn view(&self) -> DiskView {
        let view = self.disk.view;
        let capacity_bytes = self.capacity_bytes.load(Ordering::Relaxed);
        DiskView { geometry: Geometry { capacity_bytes, ..view.geometry }, ..view }
    }

    /// The size of the disk.
    pub(super) fn capacity_bytes(&self) -> u64 {
        self.view().geometry.capacity_bytes
    }

    /// Whether the payload grows with the volume, and how large the volume lets it be now.
    ///
    /// # Errors
    /// When the volume cannot be looked at, or does not end with a sector.
    pub(super) fn measure(&self) -> Result<(PayloadExtent, u64), MeasureError> {
        let volume_bytes = self.tenure.measure()?;
        let geometry = format::geometry_in(&self.disk.view.geometry, volume_bytes)?;
        Ok((self.extent, geometry.capacity_bytes))
    }

    /// Makes the disk larger: first for the queues, then for front ends.
    pub(super) fn grow(&self, capacity_bytes: u64, threads: &[QueueThread]) -> Result<(), WorkerGone> {
        threads.iter().try_for_each(|thread| thread.grow(capacity_bytes))?;
        self.capacity_bytes.store(capacity_bytes, Ordering::Relaxed);
        Ok(())
    }

    /// The volume as operators see it.
    pub(super) fn status(&self) -> VolumeStatus {
        let DiskView { geometry, logical_block, read_only, .. } = self.view();
        VolumeStatus {
            path: self.tenure.path().display().to_string(),
            capacity_bytes: geometry.capacity_bytes,
            sector_bytes: geometry.sector_size.bytes(),
            block_bytes: logical_block.bytes(),
            encrypted: self.disk.volume.is_encrypted(),
            read_only,
            write_cache: self.is_writeback(),
            sync_failed: self.disk.volume.has_sync_failed(),
        }
    }

    /// How much the guest may ask for.
    pub(super) fn limits(&self) -> Limits {
        self.disk.volume.limits().limits()
    }

    /// Sets that, from now on.
    pub(super) fn set_limits(&self, limits: Limits) {
        self.disk.volume.limits().set(limits);
    }

    pub(super) fn num_queues(&self) -> u16 {
        self.config.num_queues
    }

    pub(super) fn queue_size_max(&self) -> u16 {
        self.config.queue_size_max
    }

    /// What we offer to every front end.
    pub(super) fn features(&self) -> u64 {
        let always = feature::SIZE_MAX
            | feature::SEG_MAX
            | feature::BLK_SIZE
            | feature::FLUSH
            | feature::TOPOLOGY
            | feature::CONFIG_WCE
            | feature::MQ
            | feature::INDIRECT_DESC
            | feature::EVENT_IDX
            | feature::VERSION_1
            | VhostUserVirtioFeatures::LOG_ALL.bits()
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        let DiskView { read_only, discard, .. } = self.disk.view;
        let written = match (read_only, discard) {
            (true, _) => feature::RO,
            (false, true) => feature::WRITE_ZEROES | feature::DISCARD,
            (false, false) => feature::WRITE_ZEROES,
        };
        always | written
    }

    /// `len_bytes` bytes of the configuration space from `offset_bytes` on, for a driver that can flush or
    /// cannot; zeroes where it has none.
    pub(super) fn config_space(&self, can_flush: bool, offset_bytes: usize, len_bytes: usize) -> Vec<u8> {
        let writeback = {
            let mut cache = self.cache();
            cache.known = true;
            cache.writeback && can_flush
        };
        let DiskView { geometry, logical_block, read_only, discard } = self.view();
        let fields = ConfigFields {
            logical_block,
            num_queues: self.config.num_queues,
            writeback,
            discard: discard && !read_only,
            write_zeroes: !read_only,
        };
        let space = wire::config_space(&geometry, fields);
        space.into_iter().chain(std::iter::repeat(0)).skip(offset_bytes).take(len_bytes).collect()
    }

    /// Sets the write cache as the driver wants it, and returns how it wanted it before. Takes effect with
    /// [`set_writeback`](Self::set_writeback).
    pub(super) fn choose_writeback(&self, writeback: bool) -> bool {
        std::mem::replace(&mut *self.cache(), Cache { writeback, known: true }).writeback
    }

    /// The write cache as the driver knows it, if some front end has asked or told us.
    pub(super) fn known_cache(&self) -> Option<Remembered> {
        let Cache { writeback, known } = *self.cache();
        known.then_some(Remembered { writeback })
    }

    /// Takes over what a predecessor knew of the write cache, unless we know better.
    pub(super) fn recall_cache(&self, Remembered { writeback }: Remembered) {
        let mut cache = self.cache();
        if !cache.known {
            *cache = Cache { writeback, known: true };
        }
    }

    /// Whether the write cache is to be on for a driver that can flush or cannot.
    pub(super) fn wants_writeback(&self, can_flush: bool) -> bool {
        let cache = self.cache();
        cache.writeback && cache.known && can_flush
    }

    /// Whether the write cache is on.
    pub(super) fn is_writeback(&self) -> bool {
        self.disk.volume.is_writeback()
    }

    /// Turns the write cache on or off, while no queue runs. Turning it off makes everything durable first.
    ///
    /// # Errors
    /// When that fails. Writes from now on are durable all the same.
    pub(super) fn set_writeback(&self, writeback: bool) -> io::Result<()> {
        let synced = if self.disk.volume.is_writeback() && !writeback { self.sync() } else { Ok(()) };
        self.disk.volume.set_writeback(writeback);
        synced
    }

    /// Takes the volume, if it is not held. Where the guest was before, it may have been shown a larger disk: the disk
    /// grows with the volume.
    ///
    /// # Errors
    /// When the volume cannot be had.
    pub(super) fn take(&self, threads: &[QueueThread]) -> Result<(), TenureError> {
        let taken = self.tenure.take(threads);
        if let Err(error) = &taken {
            self.complaints.stuck(error, "the guest cannot go on here");
        }
        if !taken? {
            return Ok(());
        }
        self.complaints.taken(self.tenure.path());
        match self.measure() {
            Ok((PayloadExtent::WholeVolume, capacity_bytes)) if capacity_bytes > self.capacity_bytes() => {
                tracing::info!(capacity_bytes, "the disk has grown since this process has seen it");
                Ok(self.grow(capacity_bytes, threads)?)
            }
            Ok(_) => Ok(()),
            Err(error) => {
                self.complaints.unmeasured(&error);
                Ok(())
            }
        }
    }

    /// Lets go of the volume, once everything written is durable: whoever takes it cannot know otherwise what is not.
    /// No ring runs.
    ///
    /// # Errors
    /// When it is not durable. The volume is still ours then, and nobody else can go on with what was lost.
    pub(super) fn let_go(&self, threads: &[QueueThread]) -> Result<(), TenureError> {
        let let_go = self.sync().map_err(TenureError::NotDurable).and_then(|()| self.tenure.let_go(threads));
        match &let_go {
            Ok(true) => self.complaints.let_go(self.tenure.path()),
            Ok(false) => {}
            Err(error) => self.complaints.stuck(error, "the guest cannot be handed over"),
        }
        let_go.map(drop)
    }

    /// Has the word of a failed `fdatasync` outlive a crash, in that region, and takes over what a predecessor has left
    /// there.
    pub(super) fn keep_note_in(&self, region: &Arc<InflightRegion>) {
        self.disk.volume.keep_note_in(Arc::clone(region));
    }

    /// Makes everything written durable, for the last time: this process ends in good order.
    ///
    /// # Errors
    /// As [`sync`](Self::sync).
    pub(super) fn end_life(&self) -> io::Result<()> {
        let synced = self.sync();
        self.disk.volume.end_life();
        synced
    }

    /// Makes everything written durable.
    ///
    /// # Errors
    /// When that fails, or has failed since the volume was opened: what was lost then cannot be made durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        if self.disk.view.read_only {
            return Ok(());
        }
        if self.disk.volume.has_sync_failed() {
            return Err(io::Error::other("an earlier fdatasync of the volume failed"));
        }
        self.disk.volume.sync_with(|| self.tenure.sync_data())?;
        match self.disk.volume.has_sync_failed() {
            false => Ok(()),
            true => Err(io::Error::other("another fdatasync of the volume failed at the same time")),
        }
    }
}

/// Why the size of the volume cannot be told.
#[derive(Debug, thiserror::Error)]
pub(super) enum MeasureError {
    #[error("cannot look at the volume: {0}")]
    Volume(#[from] io::Error),
    #[error(transparent)]
    Format(#[from] FormatError),
}

/// What requests are checked against.
pub(super) fn disk_view(geometry: Geometry, logical_block: SectorSize, config: &DeviceConfig) -> DiskView {
    DiskView {
        geometry,
        logical_block,
        read_only: config.read_only,
        discard: config.discard == DiscardPolicy::Pass && !config.read_only,
    }
}
