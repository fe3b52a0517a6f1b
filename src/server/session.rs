//! What the front end says (the vhost-user protocol), translated into what the queues are to do.
//!
//! Everything the front end sets up lives from one connection to its end. Whatever takes memory or a ring away
//! stops the queues first, over the one path there is: drain, answer, return the ring's state.

mod operated;

use std::fs::File;
use std::sync::Arc;

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVirtioFeatures, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error as VhostUserError, GpuBackend, VhostUserBackendReqHandlerMut};

use super::backend_channel::BackendChannel;
use super::device::Device;
use super::refusal::{Answer, not_offered, refuse};
use super::rings::{Ring, RingFeatures, Rings};
use crate::guest::memory::MAX_REGIONS;
use crate::guest::{DirtyLog, GuestMemory, InflightGeometry, InflightRegion, Region, inflight};
use crate::virtio::RingAddresses;
use crate::virtio::wire::{self, feature};
use crate::worker::{QueueThread, WorkerGone};

/// One front end's view of the disk.
#[derive(Debug)]
pub(super) struct Session<'a> {
    device: &'a Device,
    rings: Rings<'a>,
    memory: Arc<GuestMemory>,
    /// The last dirty log that we were given. In use while `VHOST_F_LOG_ALL` is acknowledged.
    log: Option<Arc<DirtyLog>>,
    acked_features: u64,
    acked_protocol: VhostUserProtocolFeatures,
    /// Where the front end hears from us unasked.
    channel: Option<BackendChannel>,
    /// The size of the disk when the front end was told last that the configuration has changed, or has come.
    told_bytes: u64,
}

impl<'a> Session<'a> {
    /// A front end that has said nothing yet. Until it says that it can flush, writes are durable.
    pub(super) fn new(device: &'a Device, threads: &'a [QueueThread]) -> Self {
        if let Err(error) = device.set_writeback(false) {
            device.complaints().undurable(&error);
        }
        let rings = Rings::new(threads, device);
        let acked_protocol = VhostUserProtocolFeatures::empty();
        Self {
            device,
            rings,
            memory: Arc::default(),
            log: None,
            acked_features: 0,
            acked_protocol,
            channel: None,
            told_bytes: device.capacity_bytes(),
        }
    }

    /// Ends what the front end began: stops its rings and lets go of its memory.
    pub(super) fn end(&mut self) -> Result<(), WorkerGone> {
        self.rings.forget()?;
        (self.memory, self.log) = (Arc::default(), None);
        Ok(())
    }

    fn can_flush(&self) -> bool {
        self.acked_features & feature::FLUSH != 0
    }

    fn ring(&mut self, index: usize) -> Answer<(&mut Ring, &'a QueueThread)> {
        self.rings.get_mut(index).ok_or_else(|| refuse(format!("there is no queue {index}")))
    }

    /// Puts the cache into the mode that driver and negotiation ask for.
    fn apply_cache_mode(&mut self) -> Answer<()> {
        let writeback = self.device.wants_writeback(self.can_flush());
        if writeback == self.device.is_writeback() {
            return Ok(());
        }
        self.rings.pause()?;
        let applied = self.device.set_writeback(writeback);
        self.rings.resume(&self.memory)?;
        applied.map_err(refuse)
    }

    /// When the last ring has stopped during a migration, the guest goes on elsewhere, or here again: lets others have
    /// the volume.
    fn hand_over(&mut self) -> Answer<()> {
        if self.rings.log().is_none() || self.rings.any_live() {
            return Ok(());
        }
        // The reply would say that the guest can go on. Without a connection the VMM has to deal with that.
        self.device.let_go(self.rings.threads()).map_err(|_| VhostUserError::BackendInternalError)
    }

    /// Leaves word of the write cache for a successor: front ends that come back do not tell of it again.
    fn remember_cache(&self) {
        if let (Some(region), Some(cache)) = (self.rings.inflight(), self.device.known_cache()) {
            region.remember(cache);
        }
    }

    /// The number of queues that an in-flight region is for, which cannot be more than there are.
    fn tracked_queues(&self, count: u16) -> Answer<u16> {
        let most = self.device.num_queues();
        if count > most {
            return Err(refuse(format!("an in-flight region for {count} queues: there are {most}")));
        }
        Ok(count)
    }

    /// The dirty log that is to be used with these features acknowledged.
    fn log_in_use(&self, features: u64) -> Option<&Arc<DirtyLog>> {
        self.log.as_ref().filter(|_| features & VhostUserVirtioFeatures::LOG_ALL.bits() != 0)
    }

    /// Refuses memory that could be changed without a trace in the dirty log.
    fn check_logged(&self, memory: &GuestMemory) -> Answer<()> {
        self.rings.log().map_or(Ok(()), |log| log.check_covers(memory)).map_err(refuse)
    }

    /// Replaces the guest's memory by a table that may lack some of it.
    fn replace_memory(&mut self, memory: GuestMemory) -> Answer<()> {
        self.check_logged(&memory)?;
        self.rings.pause()?;
        self.memory = Arc::new(memory);
        Ok(self.rings.resume(&self.memory)?)
    }
}

impl VhostUserBackendReqHandlerMut for Session<'_> {
    fn set_owner(&mut self) -> Answer<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Answer<()> {
        self.reset_device()
    }

    fn reset_device(&mut self) -> Answer<()> {
        self.rings.reset()?;
        self.rings.set_log(None)?;
        self.acked_features = 0;
        self.rings.features = RingFeatures::default();
        self.apply_cache_mode()
    }

    fn get_features(&mut self) -> Answer<u64> {
        Ok(self.device.features())
    }

    fn set_features(&mut self, features: u64) -> Answer<()> {
        if features & !self.device.features() != 0 {
            return Err(refuse(format!("features {features:#x} were not all offered")));
        }
        let ring_features = RingFeatures {
            event_idx: features & feature::EVENT_IDX != 0,
            indirect: features & feature::INDIRECT_DESC != 0,
        };
        if ring_features != self.rings.features && self.rings.any_live() {
            return Err(refuse("ring features cannot change while a ring runs"));
        }
        let log = self.log_in_use(features).cloned();
        if let Some(log) = &log {
            log.check_covers(&self.memory).map_err(refuse)?;
        }
        self.rings.set_log(log)?;
        self.rings.features = ring_features;
        if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            self.rings.enable_all();
        }
        self.acked_features = features;
        self.apply_cache_mode()
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Answer<Option<Vec<VhostUserMemoryRegionBase>>> {
        let mapped = regions.iter().zip(files).map(|(region, file)| {
            Region::map(
                region.guest_phys_addr,
                region.user_addr,
                region.memory_size,
                file,
                region.mmap_offset,
            )
        });
        let mapped: Vec<Region> = mapped.collect::<Result<_, _>>().map_err(refuse)?;
        self.replace_memory(GuestMemory::from_regions(mapped).map_err(refuse)?)?;
        Ok(None)
    }

    fn get_max_mem_slots(&mut self) -> Answer<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy_listening: Option<bool>,
    ) -> Answer<Option<VhostUserMemoryRegionBase>> {
        let added = Region::map(
            region.guest_phys_addr,
            region.user_addr,
            region.memory_size,
            file,
            region.mmap_offset,
        );
        let memory = Arc::new(added.and_then(|added| self.memory.with_region(added)).map_err(refuse)?);
        self.check_logged(&memory)?;
        // Requests under way keep the table they came from; nothing they point into goes away.
        self.rings.extend_memory(&memory)?;
        self.memory = memory;
        self.rings.resume(&self.memory)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Answer<()> {
        let smaller = self.memory.without_region(region.guest_phys_addr, region.memory_size);
        self.replace_memory(smaller.map_err(refuse)?)
    }

    fn get_queue_num(&mut self) -> Answer<u64> {
        Ok(u64::from(self.device.num_queues()))
    }

    fn set_vring_num(&mut self, index: u32, size: u32) -> Answer<()> {
        let max = self.device.queue_size_max();
        let (ring, _) = self.ring(index as usize)?;
        match u16::try_from(size) {
            _ if ring.is_live() => Err(refuse("a running ring's size cannot change")),
            Ok(size) if size.is_power_of_two() && size <= max => {
                ring.size = size;
                Ok(())
            }
            _ => {
                // A front end that does not ask for answers must not get a ring of its last size.
                ring.size = 0;
                Err(refuse(format!("ring size {size} is not a power of two up to {max}")))
            }
        }
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Answer<()> {
        let memory = Arc::clone(&self.memory);
        let features = self.rings.features;
        let (ring, _) = self.ring(index as usize)?;
        let before = if ring.is_live() { ring.addresses } else { ring.addresses.take() };
        let guest = |user: u64| {
            memory
                .guest_address(user)
                .ok_or_else(|| refuse(format!("ring address {user:#x} is not in the guest's memory")))
        };
        let addresses = RingAddresses {
            descriptors: guest(descriptors)?,
            available: guest(available)?,
            used: guest(used)?,
        };
        // Without an IOMMU, which is not offered, writes to the used ring are noted where it lies, whatever the flag says.
        if flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG) && log != addresses.used.0 {
            let used = addresses.used.0;
            return Err(refuse(format!("the used ring lies at {used:#x}, but is to be logged at {log:#x}")));
        }
        if ring.size > 0 {
            ring.setup(addresses, features).check(&memory).map_err(refuse)?;
        }
        // QEMU says the same again to a running ring, when only the flags change.
        if ring.is_live() && before != Some(addresses) {
            return Err(refuse("a running ring cannot move"));
        }
        ring.addresses = Some(addresses);
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Answer<()> {
        let (ring, _) = self.ring(index as usize)?;
        if ring.is_live() {
            return Err(refuse("a running ring's index cannot change"));
        }
        ring.next_available = u16::try_from(base).map_err(|_| refuse(format!("{base} is no ring index")))?;
        ring.drained = false;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Answer<VhostUserVringState> {
        // A failure has no reply, and the front end would wait for one for ever: the connection must end.
        self.ring(index as usize).map_err(|_| VhostUserError::InvalidParam)?;
        let next_available = self.rings.stop(index as usize)?;
        let (ring, _) = self.ring(index as usize)?;
        // A stopped ring starts with the next kick descriptor, not with the one it had.
        (ring.kick, ring.call) = (None, None);
        self.hand_over()?;
        Ok(VhostUserVringState::new(index, u32::from(next_available)))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Answer<()> {
        let index = usize::from(index);
        self.ring(index)?;
        let Some(fd) = fd else {
            return Err(refuse("a ring without a kick descriptor would have to be polled"));
        };
        // A running ring goes on where it is, with the new descriptor.
        self.rings.stop(index)?;
        let (ring, _) = self.ring(index)?;
        ring.kick = Some(fd.into());
        Ok(self.rings.start_if_ready(index, &self.memory)?)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Answer<()> {
        let (ring, thread) = self.ring(usize::from(index))?;
        ring.call = fd.map(Into::into);
        if ring.running {
            let call = ring.call.as_ref().map(|fd| fd.try_clone()).transpose().map_err(refuse)?;
            thread.set_call(call)?;
        }
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Answer<()> {
        let index = usize::from(index);
        self.ring(index)?;
        self.rings.pause()?;
        let (ring, _) = self.ring(index)?;
        ring.error = fd.map(Into::into);
        Ok(self.rings.resume(&self.memory)?)
    }

    fn set_vring_enable(&mut self, index: u32, enabled: bool) -> Answer<()> {
        let index = index as usize;
        let (ring, thread) = self.ring(index)?;
        ring.enabled = enabled;
        if ring.running {
            return Ok(thread.set_enabled(enabled)?);
        }
        Ok(self.rings.start_if_ready(index, &self.memory)?)
    }

    fn get_protocol_features(&mut self) -> Answer<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::RESET_DEVICE)
    }

    fn set_protocol_features(&mut self, features: u64) -> Answer<()> {
        // `vhost` refuses the messages of features that were not acknowledged.
        let offered = self.get_protocol_features()?.bits();
        if features & !offered != 0 {
            return Err(refuse(format!("protocol features {features:#x} were not all offered")));
        }
        self.acked_protocol = VhostUserProtocolFeatures::from_bits_truncate(features);
        Ok(())
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Answer<Vec<u8>> {
        // A front end that has not negotiated yet is told how the cache will start out.
        let can_flush = self.acked_features == 0 || self.can_flush();
        let config = self.device.config_space(can_flush, offset as usize, size as usize);
        // Now that the driver knows of the cache it may be on.
        self.apply_cache_mode()?;
        self.remember_cache();
        Ok(config)
    }

    fn set_config(&mut self, offset: u32, bytes: &[u8], _flags: VhostUserConfigFlags) -> Answer<()> {
        if self.acked_features != 0 && self.acked_features & feature::CONFIG_WCE == 0 {
            return Err(refuse("the write cache cannot be set: VIRTIO_BLK_F_CONFIG_WCE was not negotiated"));
        }
        match (offset as usize, bytes) {
            (wire::CONFIG_WRITEBACK_OFFSET, [value @ (0 | 1)]) => {
                let before = self.device.choose_writeback(*value == 1);
                if *value == 0 {
                    // First, or a successor might take a driver for one that flushes.
                    self.remember_cache();
                }
                let applied = self.apply_cache_mode();
                if applied.is_err() {
                    self.device.choose_writeback(before);
                }
                self.remember_cache();
                applied
            }
            (offset, bytes) => Err(refuse(format!(
                "{} bytes at {offset} of the configuration space cannot be written: only writeback can, with 0 or 1",
                bytes.len()
            ))),
        }
    }

    fn set_gpu_socket(&mut self, _gpu: GpuBackend) -> Answer<()> {
        Err(not_offered("a disk has no GPU socket"))
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Answer<File> {
        Err(not_offered("shared objects were not offered"))
    }

    fn get_inflight_fd(&mut self, wanted: &VhostUserInflight) -> Answer<(VhostUserInflight, File)> {
        // A failure has no reply, and the front end would wait for one for ever: the connection must end.
        let make = || {
            let geometry = InflightGeometry::of(self.tracked_queues(wanted.num_queues)?, wanted.queue_size)
                .map_err(refuse)?;
            Ok::<_, VhostUserError>((geometry, inflight::create_file(&geometry).map_err(refuse)?))
        };
        let (geometry, file) = make().map_err(|error| {
            self.device.complaints().unfit_file("in-flight region", &error);
            VhostUserError::InvalidParam
        })?;
        let InflightGeometry { len_bytes, offset_bytes, queue_count, queue_size } = geometry;
        Ok((VhostUserInflight::new(len_bytes, offset_bytes, queue_count, queue_size), file))
    }

    fn set_inflight_fd(&mut self, given: &VhostUserInflight, file: File) -> Answer<()> {
        if self.rings.any_live() {
            return Err(refuse("the in-flight region cannot change while a ring runs"));
        }
        let geometry = InflightGeometry {
            len_bytes: given.mmap_size,
            offset_bytes: given.mmap_offset,
            queue_count: self.tracked_queues(given.num_queues)?,
            queue_size: given.queue_size,
        };
        let region = InflightRegion::map(file, &geometry).map_err(refuse)?;
        if let Some(cache) = region.remembered() {
            self.device.recall_cache(cache);
        }
        self.rings.track(region);
        self.remember_cache();
        if let Some(region) = self.rings.inflight() {
            self.device.keep_note_in(region);
        }
        self.apply_cache_mode()
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Answer<Option<File>> {
        Err(not_offered("device state transfer was not offered"))
    }

    fn check_device_state(&mut self) -> Answer<()> {
        Err(not_offered("device state transfer was not offered"))
    }

    fn get_shmem_config(&mut self) -> Answer<VhostUserShMemConfig> {
        Err(not_offered("shared memory was not offered"))
    }

    fn set_log_base(&mut self, given: &VhostUserLog, file: File) -> Answer<()> {
        // A failure has no reply, and the front end would wait for one for ever: the connection must end.
        let log = DirtyLog::map(file, given.mmap_offset, given.mmap_size)
            .and_then(|log| log.check_covers(&self.memory).map(|()| log))
            .map_err(|error| {
                self.device.complaints().unfit_file("dirty log", &error);
                VhostUserError::InvalidParam
            })?;
        self.log = Some(Arc::new(log));
        Ok(self.rings.set_log(self.log_in_use(self.acked_features).cloned())?)
    }
}
