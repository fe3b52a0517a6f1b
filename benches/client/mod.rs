//! A front end inside the benchmark's own process, on one thread: keeps a number of requests in the air and times them.
#![expect(
    unsafe_code,
    reason = "the driver takes buffers by address; they are shared with the other process"
)]
#![allow(dead_code, reason = "no bench makes every kind of request")]

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

const QUEUE_SIZE: u16 = 512;
/// The largest product of request size and depth that is measured.
const BUFFER_BYTES: usize = 16 << 20;
/// How long the client looks again before it sleeps. KVM does the same for a guest's idle CPU (`halt_poll_ns`), or
/// waking it would be most of what is measured of a single request.
const HALT_POLL: Duration = Duration::from_micros(50);
/// Length of the requests of [`Client::verify`].
const VERIFY_BYTES: usize = 1 << 20;

/// What each request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    /// Seven reads for three writes.
    Mixed,
    /// Each write is followed by a flush; both together are one request.
    WriteAndFlush,
}

/// Where requests go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Random,
    Sequential,
}

/// The requests of one measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) access: Access,
    pub(crate) order: Order,
    pub(crate) request_bytes: usize,
    /// Requests in the air at a time, over all queues.
    pub(crate) depth: usize,
}

/// When a measurement ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stop {
    Requests(u64),
    After(Duration),
}

/// What was measured.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) elapsed: Duration,
    pub(crate) request_count: u64,
    /// Of each request in nanoseconds, from before it was made available until it was seen to be answered.
    pub(crate) latencies_ns: Vec<u32>,
}

/// A disk's only front end.
pub(crate) struct Client {
    // Declared before what it points into, to be dropped first.
    ends: Vec<QueueEnd>,
    buffers: MmapMut,
    capacity_bytes: u64,
    random: u64,
    next_sequential: u64,
    _transport: Box<VirtioBlkTransport>,
}

struct QueueEnd {
    queue: VirtioBlkQueue<'static, usize>,
    kick: Box<dyn QueueNotifier>,
    completed: Arc<EventFd>,
}

/// A request in the air, by the number of its buffer.
#[derive(Clone, Copy)]
struct InTheAir {
    since: Instant,
    flush_follows: bool,
}

impl Client {
    /// Connects to the back end that listens at `socket`, with `queue_count` queues.
    pub(crate) fn connect(socket: &Path, queue_count: usize) -> io::Result<Self> {
        let features = VirtioFeatureFlags::VERSION_1.bits()
            | VirtioFeatureFlags::RING_EVENT_IDX.bits()
            | VirtioBlkFeatureFlags::FLUSH.bits()
            | VirtioBlkFeatureFlags::MQ.bits();
        let socket = socket.to_str().expect("a temporary path is UTF-8");
        let mut transport: Box<VirtioBlkTransport> =
            Box::new(VhostUser::<VirtioBlkConfig, VirtioBlkReqBuf>::new(socket, features)?);
        let capacity_bytes = u64::from(transport.get_config()?.capacity) * 512;

        let queues = VirtioBlkQueue::setup_queues(&mut *transport, queue_count, QUEUE_SIZE)?;
        let memory: File = rustix::fs::memfd_create("bench buffers", rustix::fs::MemfdFlags::CLOEXEC)?.into();
        memory.set_len(BUFFER_BYTES as u64)?;
        // SAFETY: a fresh memory file of ours. The back end changes it while requests are in the air, when no
        // reference to its bytes exists here.
        let mut buffers = unsafe { MmapMut::map_mut(&memory) }?;
        buffers.fill(0x5a);
        transport.map_mem_region(buffers.as_ptr() as usize, BUFFER_BYTES, memory.as_raw_fd(), 0)?;
        let end = |(index, mut queue): (usize, VirtioBlkQueue<'static, usize>)| {
            queue.set_used_notif_enabled(true);
            let kick = transport.get_submission_notifier(index);
            QueueEnd { queue, kick, completed: transport.get_completion_fd(index) }
        };
        Ok(Self {
            ends: queues.into_iter().enumerate().map(end).collect(),
            buffers,
            capacity_bytes,
            random: 0x9e37_79b9_7f4a_7c15,
            next_sequential: 0,
            _transport: transport,
        })
    }

    /// Makes requests until `stop`, `load.depth` at a time.
    ///
    /// # Panics
    /// When a request fails: a measurement of failures is of no use.
    pub(crate) fn run(&mut self, load: Load, stop: Stop) -> io::Result<Outcome> {
        assert!(load.request_bytes * load.depth <= BUFFER_BYTES, "the buffers hold one such load");
        let began = Instant::now();
        let goes_on = |started: u64, now: Instant| match stop {
            Stop::Requests(count) => started < count,
            Stop::After(duration) => now - began < duration,
        };
        let mut outcome = Outcome::default();
        let mut in_the_air = vec![InTheAir { since: began, flush_follows: false }; load.depth];
        let mut started = 0;
        for (slot, request) in in_the_air.iter_mut().enumerate() {
            if goes_on(started, began) {
                *request = self.start(load, slot, began)?;
                started += 1;
            }
        }
        self.ends.iter_mut().try_for_each(|end| end.kick.notify())?;
        let mut answered = Vec::with_capacity(load.depth);
        let mut idle_since = None;
        while outcome.request_count < started {
            let mut idle = true;
            for index in 0..self.ends.len() {
                answered.clear();
                for completion in self.ends[index].queue.completions() {
                    assert_eq!(completion.ret, 0, "{load:?} failed");
                    answered.push(completion.context);
                }
                if answered.is_empty() {
                    continue;
                }
                idle = false;
                let now = Instant::now();
                for &slot in &answered {
                    if std::mem::take(&mut in_the_air[slot].flush_follows) {
                        self.ends[index].queue.flush(slot)?;
                        continue;
                    }
                    outcome.note(now - in_the_air[slot].since);
                    if goes_on(started, now) {
                        in_the_air[slot] = self.start(load, slot, now)?;
                        started += 1;
                    }
                }
                let end = &mut self.ends[index];
                if end.queue.avail_notif_needed() {
                    end.kick.notify()?;
                }
            }
            if !idle {
                idle_since = None;
            } else if idle_since.get_or_insert_with(Instant::now).elapsed() < HALT_POLL {
                std::hint::spin_loop();
            } else {
                self.wait()?;
                idle_since = None;
            }
        }
        outcome.elapsed = began.elapsed();
        Ok(outcome)
    }

    /// Writes a pattern over the whole disk and reads it back, so that no measurement is of a disk that forgets.
    pub(crate) fn verify(&mut self) -> io::Result<()> {
        let pattern_of = |offset: u64, index: usize| (offset >> 12) as u8 ^ (index as u8).wrapping_mul(31);
        for access in [Access::Write, Access::Read] {
            for offset in (0..self.capacity_bytes).step_by(VERIFY_BYTES) {
                let len = VERIFY_BYTES.min((self.capacity_bytes - offset) as usize);
                let fill = |(index, byte): (usize, &mut u8)| {
                    *byte = if access == Access::Write { pattern_of(offset, index) } else { 0 };
                };
                self.buffers[..len].iter_mut().enumerate().for_each(fill);
                self.start_at(access, offset, 0, len)?;
                self.ends[0].kick.notify()?;
                while self.ends[0]
                    .queue
                    .completions()
                    .next()
                    .map(|completion| assert_eq!(completion.ret, 0))
                    .is_none()
                {
                    self.wait()?;
                }
                let mut bytes = self.buffers[..len].iter().enumerate();
                assert!(
                    bytes.all(|(index, byte)| *byte == pattern_of(offset, index)),
                    "{access:?} at {offset}"
                );
            }
        }
        Ok(())
    }

    fn start(&mut self, load: Load, slot: usize, now: Instant) -> io::Result<InTheAir> {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let request_bytes = load.request_bytes as u64;
        let place = match load.order {
            Order::Random => self.random,
            Order::Sequential => self.next_sequential,
        };
        self.next_sequential = self.next_sequential.wrapping_add(1);
        let offset_bytes = place % (self.capacity_bytes / request_bytes) * request_bytes;
        let access = match load.access {
            Access::Mixed if (self.random >> 32) % 10 < 7 => Access::Read,
            Access::Mixed | Access::WriteAndFlush => Access::Write,
            access => access,
        };
        self.start_at(access, offset_bytes, slot, load.request_bytes)?;
        Ok(InTheAir { since: now, flush_follows: load.access == Access::WriteAndFlush })
    }

    /// The queues take the buffers in turn.
    fn start_at(&mut self, access: Access, offset_bytes: u64, slot: usize, len: usize) -> io::Result<()> {
        let buffer = self.buffers[slot * len..][..len].as_mut_ptr();
        let end = slot % self.ends.len();
        let queue = &mut self.ends[end].queue;
        // SAFETY: the buffer lives as long as the queue, and no two requests in the air have the same slot.
        unsafe {
            match access {
                Access::Read => queue.read_raw(offset_bytes, buffer, len, slot),
                _ => queue.write_raw(offset_bytes, buffer, len, slot),
            }
        }
    }

    /// Sleeps until the back end notifies. It may have made the descriptors non-blocking, hence the poll.
    fn wait(&self) -> io::Result<()> {
        let mut fds: Vec<_> =
            self.ends.iter().map(|end| PollFd::new(&*end.completed, PollFlags::IN)).collect();
        poll(&mut fds, None)?;
        for (end, fd) in self.ends.iter().zip(&fds) {
            if fd.revents().contains(PollFlags::IN) {
                end.completed.read()?;
            }
        }
        Ok(())
    }
}

impl Outcome {
    fn note(&mut self, latency: Duration) {
        self.request_count += 1;
        self.latencies_ns.push(u32::try_from(latency.as_nanos()).unwrap_or(u32::MAX));
    }
}
