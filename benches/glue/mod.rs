//! The baseline: the encrypting back end that one gets by gluing `vhost-user-backend`, `virtio-queue` and
//! `xts-mode` together, as their documentation and most of their users do it.
//!
//! One thread a queue, which take turns at the disk; each request is parsed with `virtio-queue`'s reader and writer, copied once through a private
//! buffer, and moved with `pread` and `pwrite`. What it leaves out of a real device (discard, error
//! reporting beyond IOERR, recovery) would only make it slower.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;

use aes::Aes256;
use aes::cipher::KeyInit;
use vhost::vhost_user::Listener;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringRwLock, VringT};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{DescriptorChain, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use xts_mode::{Xts128, get_tweak_default};

const SECTOR_BYTES: usize = 512;
/// Of `num_queues` in the configuration space (virtio 1.2, section 5.2.4).
const NUM_QUEUES_OFFSET: usize = 34;

type Memory = GuestMemoryMmap<()>;
type Vring = VringRwLock<GuestMemoryAtomic<Memory>>;

/// Serves `image`, encrypted with the 64-byte `key`, on a socket at `socket` to one front end, until it leaves.
pub(crate) fn serve(
    socket: &Path,
    image: File,
    key: &[u8],
    queue_count: usize,
) -> Result<(), Box<dyn std::error::Error>> {
    let capacity_bytes = image.metadata()?.len();
    let cipher = |half: &[u8]| Aes256::new_from_slice(half).expect("half of a 64-byte key");
    let xts = Xts128::new(cipher(&key[..32]), cipher(&key[32..]));
    let memory = GuestMemoryAtomic::new(Memory::new());
    let disk = Disk {
        image,
        capacity_bytes,
        xts,
        memory: memory.clone(),
        event_idx: false,
        buffer: Vec::new(),
        queue_count,
    };
    let mut daemon = VhostUserDaemon::new("glue".to_owned(), std::sync::Arc::new(Mutex::new(disk)), memory)
        .map_err(|error| error.to_string())?;
    daemon.start(&mut Listener::new(socket, true)?).map_err(|error| error.to_string())?;
    // A front end that hangs up ends this with an error too.
    let _ = daemon.wait();
    Ok(())
}

struct Disk {
    image: File,
    capacity_bytes: u64,
    xts: Xts128<Aes256>,
    memory: GuestMemoryAtomic<Memory>,
    event_idx: bool,
    buffer: Vec<u8>,
    queue_count: usize,
}

impl Disk {
    /// Serves all that is in the ring; says whether there was anything.
    fn serve_ring(&mut self, vring: &Vring) -> io::Result<bool> {
        let memory = self.memory.memory();
        let mut vring = vring.get_mut();
        let mut served = false;
        while let Some(chain) = vring.get_queue_mut().pop_descriptor_chain(memory.clone()) {
            let head = chain.head_index();
            let used_bytes = self.serve_request(&memory, chain).map_err(io::Error::other)?;
            vring.get_queue_mut().add_used(&*memory, head, used_bytes).map_err(io::Error::other)?;
            served = true;
        }
        if served && vring.get_queue_mut().needs_notification(&*memory).map_err(io::Error::other)? {
            vring.signal_used_queue()?;
        }
        Ok(served)
    }

    fn serve_request<M: Clone + std::ops::Deref<Target = Memory>>(
        &mut self,
        memory: &Memory,
        chain: DescriptorChain<M>,
    ) -> Result<u32, Box<dyn std::error::Error + Send + Sync>> {
        let mut reader = chain.clone().reader(memory)?;
        let mut writer = chain.writer(memory)?;
        let mut status = writer.split_at(writer.available_bytes() - 1)?;
        let mut header = [0; 16];
        reader.read_exact(&mut header)?;
        let kind = u32::from_le_bytes(header[..4].try_into()?);
        let sector = u64::from_le_bytes(header[8..].try_into()?);
        let result = match kind {
            VIRTIO_BLK_T_IN => self.read(sector, &mut writer).map(|()| VIRTIO_BLK_S_OK),
            VIRTIO_BLK_T_OUT => self.write(sector, &mut reader).map(|()| VIRTIO_BLK_S_OK),
            VIRTIO_BLK_T_FLUSH => self.image.sync_data().map(|()| VIRTIO_BLK_S_OK),
            _ => Ok(VIRTIO_BLK_S_UNSUPP),
        };
        status.write_all(&[result.unwrap_or(VIRTIO_BLK_S_IOERR) as u8])?;
        Ok((writer.bytes_written() + 1) as u32)
    }

    fn read(&mut self, sector: u64, guest: &mut virtio_queue::Writer<'_>) -> io::Result<()> {
        let offset_bytes = self.checked_offset(sector, guest.available_bytes())?;
        self.buffer.resize(guest.available_bytes(), 0);
        self.image.read_exact_at(&mut self.buffer, offset_bytes)?;
        self.xts.decrypt_area(&mut self.buffer, SECTOR_BYTES, u128::from(sector), get_tweak_default);
        guest.write_all(&self.buffer)
    }

    fn write(&mut self, sector: u64, guest: &mut virtio_queue::Reader<'_>) -> io::Result<()> {
        let offset_bytes = self.checked_offset(sector, guest.available_bytes())?;
        self.buffer.resize(guest.available_bytes(), 0);
        guest.read_exact(&mut self.buffer)?;
        self.xts.encrypt_area(&mut self.buffer, SECTOR_BYTES, u128::from(sector), get_tweak_default);
        self.image.write_all_at(&self.buffer, offset_bytes)
    }

    fn checked_offset(&self, sector: u64, len: usize) -> io::Result<u64> {
        let offset_bytes = sector.checked_mul(SECTOR_BYTES as u64);
        let end_bytes = offset_bytes.and_then(|offset| offset.checked_add(len as u64));
        match (offset_bytes, end_bytes) {
            (Some(offset), Some(end)) if end <= self.capacity_bytes && len.is_multiple_of(SECTOR_BYTES) => {
                Ok(offset)
            }
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

impl VhostUserBackendMut for Disk {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        self.queue_count
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        (0..self.queue_count).map(|queue| 1 << queue).collect()
    }

    fn max_queue_size(&self) -> usize {
        1024
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_BLK_F_MQ
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    fn set_event_idx(&mut self, enabled: bool) {
        self.event_idx = enabled;
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let mut config = (self.capacity_bytes / SECTOR_BYTES as u64).to_le_bytes().to_vec();
        config.resize(NUM_QUEUES_OFFSET, 0);
        config.extend((self.queue_count as u16).to_le_bytes());
        config.resize((offset + size) as usize, 0);
        config.split_off(offset as usize)
    }

    fn update_memory(&mut self, _memory: GuestMemoryAtomic<Memory>) -> io::Result<()> {
        Ok(())
    }

    fn handle_event(
        &mut self,
        _device_event: u16,
        _events: EventSet,
        vrings: &[Vring],
        _thread_id: usize,
    ) -> io::Result<()> {
        if !self.event_idx {
            self.serve_ring(&vrings[0])?;
            return Ok(());
        }
        loop {
            vrings[0].disable_notification().map_err(io::Error::other)?;
            while self.serve_ring(&vrings[0])? {}
            if !vrings[0].enable_notification().map_err(io::Error::other)? {
                return Ok(());
            }
        }
    }
}
