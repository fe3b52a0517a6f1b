//! A served disk for the fuzzer: front ends are followed as ever, on a small volume and without a process of its own.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use signal_hook::consts::SIGPIPE;

use super::config::{CacheMode, DeviceConfig, DiscardPolicy, VolumeConfig};
use super::control::orders::{self, Desk};
use super::device::{self, Device};
use super::front_end::Reception;
use super::stop::StopSignal;
use super::tenure::Tenure;
use super::volume_file::open_volume;
use crate::format::PayloadExtent;
use crate::geometry::{Geometry, SectorSize};
use crate::io::blocking::Blocking;
use crate::io::{PoolShape, SlotPool};
use crate::worker::rate_limits::Limits;
use crate::worker::{self, Disk, QueueThread, Volume};

const CAPACITY_BYTES: u64 = 1 << 20;
const QUEUES: u16 = 2;

/// The disk.
#[derive(Debug)]
pub struct Bench {
    device: Device,
    threads: Vec<QueueThread>,
    stop: StopSignal,
    /// Gives no orders; without it a wait for one would be over at once.
    _desk: Desk,
}

impl Bench {
    /// Makes one, with threads that serve until the process ends.
    ///
    /// # Panics
    /// When there is no memory, thread or temporary file for it.
    #[expect(clippy::new_without_default, reason = "it costs threads and a file")]
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(format!("sealblk-fuzz-{}", std::process::id()));
        File::create(&path).and_then(|file| file.set_len(CAPACITY_BYTES)).expect("a temporary file");
        let volume = VolumeConfig { path: path.clone(), read_only: false, direct: false };
        let opened = open_volume(&volume).expect("nobody else has it");
        fs::remove_file(&path).expect("it was made just now");
        let config = DeviceConfig {
            num_queues: QUEUES,
            queue_size_max: 256,
            logical_block: None,
            serial: [0; 20],
            cache: CacheMode::Writeback,
            discard: DiscardPolicy::Pass,
            read_only: false,
            limits: Limits::default(),
        };
        let sector_size = SectorSize::BYTES_512;
        let geometry = Geometry { sector_size, payload_offset_bytes: 0, capacity_bytes: CAPACITY_BYTES };
        let view = device::disk_view(geometry, sector_size, &config);
        let disk = Disk { volume: Arc::new(Volume::new(geometry, None)), view, serial: config.serial };
        // Rust's own programs ignore this signal. The fuzzer is not one, and front ends leave sockets that nobody reads.
        signal_hook::flag::register(SIGPIPE, Arc::default()).expect("signals can be had");
        let (desk, inbox) = orders::channel().expect("a pair of sockets");
        let stop = StopSignal::install(inbox).expect("signals can be had");
        let tenure = Tenure::new(opened, volume, None, stop.watch().expect("descriptors"));
        let threads = (0..QUEUES).map(|index| queue_thread(index, &disk, &tenure, &stop)).collect();
        let device = Device::new(disk, None, config, tenure, PayloadExtent::WholeVolume);
        Self { device, threads, stop, _desk: desk }
    }

    /// Follows what a front end says until it hangs up or breaks the protocol.
    ///
    /// # Panics
    /// When a queue thread has ended, which nothing that a front end says may bring about.
    pub fn converse(&self, stream: UnixStream) {
        let Self { device, threads, stop, .. } = self;
        let reception = Reception { device, threads, stop, hands_over: false };
        let _ = reception.receive(stream);
        assert!(!stop.has_failed(), "a queue thread broke down");
    }
}

fn queue_thread(index: u16, disk: &Disk, tenure: &Tenure, stop: &StopSignal) -> QueueThread {
    let slots = SlotPool::new(PoolShape { small_count: 8, large_count: 1 }).expect("memory for slots");
    let backing = tenure.volume();
    let make = move |slots: &SlotPool| Blocking::new(backing, worker::max_ops(slots));
    let alarm = stop.failure_descriptor().expect("a descriptor");
    QueueThread::spawn(format!("queue-{index}"), disk.clone(), slots, make, alarm).expect("a thread")
}
