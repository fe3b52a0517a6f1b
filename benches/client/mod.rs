//! A front end inside the benchmark's own process: keeps a number of requests in the air and times them.
#![expect(
    unsafe_code,
    reason = "the driver takes buffers by address; they are shared with the other process"
)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memmap2::MmapMut;
use rustix::event::{PollFd, PollFlags, poll};
use virtio_driver::{
    EventFd, QueueNotifier, VhostUser, VirtioBlkConfig, VirtioBlkFeatureFlags, VirtioBlkQueue,
    VirtioBlkReqBuf, VirtioBlkTransport, VirtioFeatureFlags,
};

const QUEUE_SIZE: u16 = 256;
/// The largest product of request size and depth that is measured.
const BUFFER_BYTES: usize = 1 << 20;

/// What each request does, at a random place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// The requests of one measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) access: Access,
    pub(crate) request_bytes: usize,
    /// Requests in the air at a time.
    pub(crate) depth: usize,
}

/// A disk's only front end.
pub(crate) struct Client {
    // Declared before what it points into, to be dropped first.
    queue: VirtioBlkQueue<'static, usize>,
    kick: Box<dyn QueueNotifier>,
    completed: Arc<EventFd>,
    buffers: MmapMut,
    capacity_bytes: u64,
    random: u64,
    _transport: Box<VirtioBlkTransport>,
}

impl Client {
    /// Connects to the back end that listens at `socket`.
    pub(crate) fn connect(socket: &Path) -> io::Result<Self> {
        let features = VirtioFeatureFlags::VERSION_1.bits()
            | VirtioFeatureFlags::RING_EVENT_IDX.bits()
            | VirtioBlkFeatureFlags::FLUSH.bits();
        let socket = socket.to_str().expect("a temporary path is UTF-8");
        let mut transport: Box<VirtioBlkTransport> =
            Box::new(VhostUser::<VirtioBlkConfig, VirtioBlkReqBuf>::new(socket, features)?);
        let capacity_bytes = u64::from(transport.get_config()?.capacity) * 512;

        let mut queue = VirtioBlkQueue::setup_queues(&mut *transport, 1, QUEUE_SIZE)?.remove(0);
        queue.set_used_notif_enabled(true);
        let memory: File = rustix::fs::memfd_create("bench buffers", rustix::fs::MemfdFlags::CLOEXEC)?.into();
        memory.set_len(BUFFER_BYTES as u64)?;
        // SAFETY: a fresh memory file of ours. The back end changes it while requests are in the air, when no
        // reference to its bytes exists here.
        let mut buffers = unsafe { MmapMut::map_mut(&memory) }?;
        buffers.fill(0x5a);
        transport.map_mem_region(buffers.as_ptr() as usize, BUFFER_BYTES, memory.as_raw_fd(), 0)?;
        Ok(Self {
            kick: transport.get_submission_notifier(0),
            completed: transport.get_completion_fd(0),
            queue,
            buffers,
            capacity_bytes,
            random: 0x9e37_79b9_7f4a_7c15,
            _transport: transport,
        })
    }

    /// The time that `request_count` requests of the kind take, `load.depth` at a time.
    ///
    /// # Panics
    /// When a request fails: a measurement of failures is of no use.
    pub(crate) fn run(&mut self, load: Load, request_count: u64) -> io::Result<Duration> {
        assert!(load.request_bytes * load.depth <= BUFFER_BYTES, "the buffers hold one such load");
        let started_at = Instant::now();
        let first = request_count.min(load.depth as u64);
        for slot in 0..first {
            self.start(load, slot as usize)?;
        }
        self.kick.notify()?;
        let (mut started, mut finished) = (first, 0);
        let mut free_slots = Vec::with_capacity(load.depth);
        while finished < request_count {
            for completion in self.queue.completions() {
                assert_eq!(completion.ret, 0, "{load:?} failed");
                free_slots.push(completion.context);
            }
            if free_slots.is_empty() {
                self.wait()?;
                continue;
            }
            finished += free_slots.len() as u64;
            for slot in free_slots.drain(..) {
                if started < request_count {
                    started += 1;
                    self.start(load, slot)?;
                }
            }
            if self.queue.avail_notif_needed() {
                self.kick.notify()?;
            }
        }
        Ok(started_at.elapsed())
    }

    /// Writes a pattern over the whole disk and reads it back, so that no measurement is of a disk that forgets.
    pub(crate) fn verify(&mut self) -> io::Result<()> {
        let pattern_of = |offset: u64, index: usize| (offset >> 12) as u8 ^ (index as u8).wrapping_mul(31);
        for access in [Access::Write, Access::Read] {
            for offset in (0..self.capacity_bytes).step_by(BUFFER_BYTES) {
                let fill = |(index, byte): (usize, &mut u8)| {
                    *byte = if access == Access::Write { pattern_of(offset, index) } else { 0 };
                };
                self.buffers.iter_mut().enumerate().for_each(fill);
                self.start_at(access, offset, 0, BUFFER_BYTES)?;
                self.kick.notify()?;
                while self
                    .queue
                    .completions()
                    .next()
                    .map(|completion| assert_eq!(completion.ret, 0))
                    .is_none()
                {
                    self.wait()?;
                }
                let is_right =
                    self.buffers.iter().enumerate().all(|(index, byte)| *byte == pattern_of(offset, index));
                assert!(is_right, "{access:?} at {offset}");
            }
        }
        Ok(())
    }

    fn start(&mut self, load: Load, slot: usize) -> io::Result<()> {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let request_bytes = load.request_bytes as u64;
        let offset_bytes = self.random % (self.capacity_bytes / request_bytes) * request_bytes;
        self.start_at(load.access, offset_bytes, slot, load.request_bytes)
    }

    fn start_at(&mut self, access: Access, offset_bytes: u64, slot: usize, len: usize) -> io::Result<()> {
        let buffer = self.buffers[slot * len..][..len].as_mut_ptr();
        // SAFETY: the buffer lives as long as the queue, and no two requests in the air have the same slot.
        unsafe {
            match access {
                Access::Read => self.queue.read_raw(offset_bytes, buffer, len, slot),
                Access::Write => self.queue.write_raw(offset_bytes, buffer, len, slot),
            }
        }
    }

    /// Sleeps until the back end notifies. It may have made the descriptor non-blocking, hence the poll.
    fn wait(&self) -> io::Result<()> {
        poll(&mut [PollFd::new(&*self.completed, PollFlags::IN)], None)?;
        self.completed.read().map(drop)
    }
}
