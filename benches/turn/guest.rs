//! A guest whose requests are laid out once and made available again and again, and a worker that serves it from
//! a disk in memory. Nothing here allocates once it is made.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, memfd_create};
use sealblk::cipher::{EqualHalves, IvMode, IvNumbering, VolumeKey, Xts};
use sealblk::geometry::{Geometry, SectorSize};
use sealblk::guest::{
    GuestAddress, GuestMemory, InflightGeometry, InflightQueue, InflightRegion, Region, inflight,
};
use sealblk::io::sim::{Faults, Sim, SimDisk};
use sealblk::io::{PoolShape, SlotPool};
use sealblk::virtio::{DiskView, RingAddresses, RingSetup, Tracking};
use sealblk::worker::{Disk, QueueSetup, Volume, Worker, max_ops};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

const RING_SIZE: u16 = 256;
/// Where a request's data begins behind the previous one's.
const DATA_STRIDE_BYTES: u64 = 4096;
const DISK_BYTES: u64 = 16 << 20;
const MEMORY_BYTES: u64 = 4 << 20;
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x5000;
const HEADERS: u64 = 0x8000;
const STATUS: u64 = 0xc000;
const DATA: u64 = 0x10_0000;

/// Whether the worker notes requests under way for a successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InFlight {
    Tracked,
    Forgotten,
}

/// The guest's side, and the worker.
pub(crate) struct Guest {
    memory: MmapRegion<()>,
    worker: Worker<Sim>,
    available: u16,
}

impl Guest {
    /// A guest whose requests are all of `kind`, as virtio-blk numbers them, and of `len_bytes`.
    pub(crate) fn new(kind: u32, len_bytes: u32, encrypted: bool, tracking: InFlight) -> Self {
        let file = File::from(memfd_create(c"guest", MemfdFlags::CLOEXEC).expect("a memory file"));
        file.set_len(MEMORY_BYTES).expect("memory for it");
        let own = FileOffset::new(File::from(file.as_fd().try_clone_to_owned().expect("a descriptor")), 0);
        let memory = MmapRegion::from_file(own, MEMORY_BYTES as usize).expect("a mapping");
        let region = Region::map(0, 0, MEMORY_BYTES, file, 0).expect("a mapping");
        let device_memory = GuestMemory::from_regions([region]).expect("one region");
        let guest =
            Self { memory, worker: worker(encrypted, tracking, Arc::new(device_memory)), available: 0 };
        for request in 0..RING_SIZE / 4 {
            guest.lay_out(request, kind, len_bytes);
        }
        guest
    }

    /// Header, data and status of request number `request`, in descriptors of its own.
    fn lay_out(&self, request: u16, kind: u32, len_bytes: u32) {
        let n = u64::from(request);
        let (header, data, status) = (HEADERS + 16 * n, DATA + DATA_STRIDE_BYTES * n, STATUS + n);
        self.put(header, &kind.to_le_bytes());
        self.put(header + 8, &(8 * n).to_le_bytes());
        let device_writes = if kind == 0 { 2 } else { 0 };
        let head = 3 * request;
        for (i, (address, len, flags)) in
            [(header, 16, 1), (data, len_bytes, 1 | device_writes), (status, 1, 2)].into_iter().enumerate()
        {
            let at = DESCRIPTORS + 16 * (u64::from(head) + i as u64);
            self.put(at, &address.to_le_bytes());
            self.put(at + 8, &len.to_le_bytes());
            self.put(at + 12, &u16::to_le_bytes(flags));
            self.put(at + 14, &(head + i as u16 + 1).to_le_bytes());
        }
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        self.memory.as_volatile_slice().write_slice(bytes, address as usize).expect("guest memory");
    }

    /// Makes `batch` requests available and turns until they are answered. Costs the guest next to nothing.
    pub(crate) fn run(&mut self, batch: u16) {
        for request in 0..batch {
            let entry = AVAILABLE + 4 + 2 * u64::from(self.available % RING_SIZE);
            self.store(entry, 3 * request, Ordering::Relaxed);
            self.available = self.available.wrapping_add(1);
        }
        self.store(AVAILABLE + 2, self.available, Ordering::Release);
        loop {
            self.worker.turn().expect("memory does not break down");
            let memory = self.memory.as_volatile_slice();
            let used: u16 = memory.load(USED as usize + 2, Ordering::Acquire).expect("guest memory");
            if used == self.available {
                break;
            }
        }
    }

    fn store(&self, address: u64, value: u16, order: Ordering) {
        self.memory.as_volatile_slice().store(value, address as usize, order).expect("guest memory");
    }
}

fn worker(encrypted: bool, tracking: InFlight, memory: Arc<GuestMemory>) -> Worker<Sim> {
    let sector_size = SectorSize::BYTES_512;
    let geometry = Geometry { sector_size, payload_offset_bytes: 0, capacity_bytes: DISK_BYTES };
    let xts = encrypted.then(|| {
        let key: Vec<u8> = (0..64).collect();
        let key = VolumeKey::new(&key, EqualHalves::Refuse).expect("a key");
        let iv = IvNumbering { mode: IvMode::Plain64, offset_sectors: 0, large_sectors: false };
        Xts::new(&key, sector_size, iv).expect("a cipher")
    });
    let volume = Arc::new(Volume::new(geometry, xts));
    let view = DiskView { geometry, logical_block: sector_size, read_only: false, discard: false };
    let slots = SlotPool::new(PoolShape::default()).expect("memory for slots");
    let storage = SimDisk::new(vec![0; DISK_BYTES as usize], Faults::default());
    let engine = Sim::new(storage, max_ops(&slots)).expect("an engine");
    let mut worker = Worker::new(Disk { volume, view, serial: [0; 20] }, engine, slots);
    let addresses = RingAddresses {
        descriptors: GuestAddress(DESCRIPTORS),
        available: GuestAddress(AVAILABLE),
        used: GuestAddress(USED),
    };
    let tracking = match tracking {
        InFlight::Tracked => Some(Tracking { region: region(), recover: true }),
        InFlight::Forgotten => None,
    };
    let setup = QueueSetup {
        index: 0,
        ring: RingSetup { size: RING_SIZE, addresses, next_available: 0, event_idx: true, indirect: false },
        memory,
        kick: eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd"),
        call: None,
        error: None,
        enabled: true,
        tracking,
        log: None,
    };
    worker.start_queue(setup).expect("a valid ring");
    worker
}

fn region() -> InflightQueue {
    let geometry = InflightGeometry::of(1, RING_SIZE).expect("a sane region");
    let file = inflight::create_file(&geometry).expect("a memory file");
    let region = InflightRegion::map(file, &geometry).expect("a mapping");
    Arc::new(region).queue(0).expect("one queue")
}
