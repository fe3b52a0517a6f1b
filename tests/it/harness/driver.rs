//! Drivers that other people wrote, behind one face: the crates `virtio-driver` and `blkio`.
#![expect(unsafe_code, reason = "both crates take buffers as raw pointers")]

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use blkio::{Blkio, Blkioq, ReqFlags};
use rustix::fs::MemfdFlags;
use virtio_driver::{
    VhostUser, VirtioBlkConfig, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkReqBuf, VirtioBlkTransport,
    VirtioFeatureFlags,
};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

use super::ring::{PATIENCE, readable_within};

/// What a driver is asked to do, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Read { offset: u64, len: usize },
    Write { offset: u64, len: usize },
    Zero { offset: u64, len: u64 },
    Discard { offset: u64, len: u64 },
    Flush,
}

/// A driver with queues, and a buffer for each slot that a request may occupy.
pub trait Driver {
    /// Queues `op` for the buffer of `slot`.
    fn submit(&mut self, queue: usize, slot: usize, op: Op);
    /// Waits until at least one request of `queue` is complete; gives slots and results (0 or -errno).
    fn complete(&mut self, queue: usize) -> Vec<(usize, i32)>;
    /// The buffer of a slot.
    fn buffer(&self, slot: usize) -> VolatileSlice<'_>;

    /// Fills a slot's buffer.
    fn fill(&mut self, slot: usize, bytes: &[u8]) {
        self.buffer(slot).write_slice(bytes, 0).expect("the buffer is large enough");
    }

    /// What a slot's buffer holds.
    fn content(&self, slot: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.buffer(slot).read_slice(&mut bytes, 0).expect("the buffer is large enough");
        bytes
    }
}

/// `virtio-driver` over vhost-user.
pub struct VirtioDriver {
    queues: Vec<VirtioBlkQueue<'static, usize>>,
    transport: Box<VirtioBlkTransport>,
    memory: MmapRegion,
    slot_bytes: usize,
}

impl VirtioDriver {
    /// Connects and sets up queues of `queue_size` with buffers for `slots` requests.
    pub fn connect(
        socket: &Path,
        queues: usize,
        queue_size: u16,
        slots: usize,
        slot_bytes: usize,
        event_idx: bool,
    ) -> Self {
        let mut features = VirtioFeatureFlags::VERSION_1.bits();
        if event_idx {
            features |= VirtioFeatureFlags::RING_EVENT_IDX.bits();
        }
        let block = VirtioBlkFeatureFlags::MQ
            | VirtioBlkFeatureFlags::FLUSH
            | VirtioBlkFeatureFlags::BLK_SIZE
            | VirtioBlkFeatureFlags::DISCARD
            | VirtioBlkFeatureFlags::WRITE_ZEROES;
        let path = socket.to_str().expect("temporary paths are text");
        let connected = VhostUser::<VirtioBlkConfig, VirtioBlkReqBuf>::new(path, features | block.bits());
        let mut transport: Box<VirtioBlkTransport> = Box::new(connected.expect("virtio-driver connects"));
        let mut queues =
            VirtioBlkQueue::setup_queues(&mut *transport, queues, queue_size).expect("set up queues");
        // Without this a driver with EVENT_IDX is notified once and never again.
        queues.iter_mut().for_each(|queue| queue.set_used_notif_enabled(true));
        let len = slots * slot_bytes;
        let fd = rustix::fs::memfd_create("buffers", MemfdFlags::CLOEXEC).expect("memfd");
        let file = File::from(fd);
        file.set_len(len as u64).expect("size the memfd");
        let raw = file.as_raw_fd();
        let memory = MmapRegion::from_file(FileOffset::new(file, 0), len).expect("map the buffers");
        transport.map_mem_region(memory.as_ptr() as usize, len, raw, 0).expect("share the buffers");
        Self { queues, transport, memory, slot_bytes }
    }

    fn pointer(&self, slot: usize) -> *mut u8 {
        self.buffer(slot).ptr_guard_mut().as_ptr()
    }
}

impl Driver for VirtioDriver {
    fn submit(&mut self, queue: usize, slot: usize, op: Op) {
        let pointer = self.pointer(slot);
        let ring = &mut self.queues[queue];
        let queued = match op {
            // SAFETY: the pointer is to this slot's part of our own mapping, `slot_bytes` long, which lives as
            // long as the queues; nobody else uses it before the request completes.
            Op::Read { offset, len } => unsafe { ring.read_raw(offset, pointer, len, slot) },
            // SAFETY: as above.
            Op::Write { offset, len } => unsafe { ring.write_raw(offset, pointer, len, slot) },
            Op::Zero { offset, len } => ring.write_zeroes(offset, len, false, slot),
            Op::Discard { offset, len } => ring.discard(offset, len, slot),
            Op::Flush => ring.flush(slot),
        };
        queued.expect("room in the queue");
        if ring.avail_notif_needed() {
            self.transport.get_submission_notifier(queue).notify().expect("kick");
        }
    }

    fn complete(&mut self, queue: usize) -> Vec<(usize, i32)> {
        let call = self.transport.get_completion_fd(queue);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let done: Vec<(usize, i32)> =
                self.queues[queue].completions().map(|c| (c.context, c.ret)).collect();
            if !done.is_empty() {
                return done;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(readable_within(&*call, left), "queue {queue}: no completion within {PATIENCE:?}");
            call.read().expect("the completion eventfd was readable");
        }
    }

    fn buffer(&self, slot: usize) -> VolatileSlice<'_> {
        self.memory.get_slice(slot * self.slot_bytes, self.slot_bytes).expect("a slot")
    }
}

/// `blkio`, the Rust face of libblkio.
pub struct BlkioDriver {
    queues: Vec<Blkioq>,
    region: blkio::MemoryRegion,
    slot_bytes: usize,
    blkio: Blkio,
}

impl BlkioDriver {
    /// Connects and sets up queues with buffers for `slots` requests.
    pub fn connect(socket: &Path, queues: usize, slots: usize, slot_bytes: usize) -> Self {
        let mut blkio = Blkio::new("virtio-blk-vhost-user").expect("the driver is compiled in");
        blkio.set_str("path", socket.to_str().expect("temporary paths are text")).expect("path");
        blkio.connect().expect("blkio connects");
        blkio.set_i32("num-queues", queues as i32).expect("num-queues");
        let started = blkio.start().expect("blkio starts");
        let region = blkio.alloc_mem_region(slots * slot_bytes).expect("allocate buffers");
        blkio.map_mem_region(&region).expect("share the buffers");
        Self { queues: started.queues, region, slot_bytes, blkio }
    }

    /// The disk's size in bytes as blkio understood it.
    pub fn capacity(&self) -> u64 {
        self.blkio.get_u64("capacity").expect("capacity")
    }
}

impl Driver for BlkioDriver {
    fn submit(&mut self, queue: usize, slot: usize, op: Op) {
        let pointer = self.buffer(slot).ptr_guard_mut().as_ptr();
        let (ring, none) = (&mut self.queues[queue], ReqFlags::empty());
        match op {
            Op::Read { offset, len } => ring.read(offset, pointer, len, slot, none),
            Op::Write { offset, len } => ring.write(offset, pointer, len, slot, none),
            Op::Zero { offset, len } => ring.write_zeroes(offset, len, slot, ReqFlags::NO_UNMAP),
            Op::Discard { offset, len } => ring.discard(offset, len, slot, none),
            Op::Flush => ring.flush(slot, none),
        }
        let mut none = [];
        ring.do_io(&mut none, 0, None, None).expect("submit");
    }

    fn complete(&mut self, queue: usize) -> Vec<(usize, i32)> {
        let mut done = [const { MaybeUninit::uninit() }; 16];
        let mut patience: Duration = PATIENCE;
        let count =
            self.queues[queue].do_io(&mut done, 1, Some(&mut patience), None).expect("a completion in time");
        // SAFETY: do_io has initialised the first `count` entries.
        let finished = done[..count].iter().map(|entry| unsafe { entry.assume_init_ref() });
        finished.map(|completion| (completion.user_data, completion.ret)).collect()
    }

    fn buffer(&self, slot: usize) -> VolatileSlice<'_> {
        assert!((slot + 1) * self.slot_bytes <= self.region.len, "a slot");
        let start = (self.region.addr + slot * self.slot_bytes) as *mut u8;
        // SAFETY: blkio mapped the region and keeps it for as long as `blkio` lives; the slot lies inside it.
        unsafe { VolatileSlice::new(start, self.slot_bytes) }
    }
}
