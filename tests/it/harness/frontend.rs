//! A front end: vhost-user messages through `vhost`, rings and requests by hand.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::rc::Rc;

use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend as Messages, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};

use super::memory::GuestRam;
use super::request::{Answer, Prepared, Request};
use super::ring::Ring;
use super::wire::{Wire, dial};

pub const F_SIZE_MAX: u64 = 1 << 1;
pub const F_SEG_MAX: u64 = 1 << 2;
pub const F_RO: u64 = 1 << 5;
pub const F_BLK_SIZE: u64 = 1 << 6;
pub const F_FLUSH: u64 = 1 << 9;
pub const F_TOPOLOGY: u64 = 1 << 10;
pub const F_CONFIG_WCE: u64 = 1 << 11;
pub const F_MQ: u64 = 1 << 12;
pub const F_DISCARD: u64 = 1 << 13;
pub const F_WRITE_ZEROES: u64 = 1 << 14;
pub const F_SECURE_ERASE: u64 = 1 << 16;
pub const F_LOG_ALL: u64 = 1 << 26;
pub const F_INDIRECT: u64 = 1 << 28;
pub const F_EVENT_IDX: u64 = 1 << 29;
pub const F_PROTOCOL: u64 = 1 << 30;
pub const F_VERSION_1: u64 = 1 << 32;
pub const F_PACKED: u64 = 1 << 34;

/// What [`Frontend::assert_serves`] writes: a whole number of sectors of any size.
pub const SERVES_BYTES: usize = 4096;

/// How the front end tells the back end about guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryMessages {
    /// SET_MEM_TABLE with every region.
    Table,
    /// ADD_MEM_REG for each region.
    Slots,
}

/// Choices of a front end before it begins.
#[derive(Clone, Debug)]
pub struct Setup {
    pub queues: usize,
    pub queue_size: u16,
    /// Features that this driver does not take although the device offers them.
    pub refuse: u64,
    pub memory: MemoryMessages,
    pub data_bytes: u64,
    /// Whether it reads the configuration space before it begins, as all but reconnecting front ends do.
    pub reads_config: bool,
    /// Whether it keeps the in-flight region for back ends that die.
    pub keeps_inflight: bool,
    /// Whether the back end gets a channel for messages of its own.
    pub listens: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            queues: 1,
            queue_size: 64,
            refuse: F_EVENT_IDX,
            memory: MemoryMessages::Table,
            data_bytes: 1 << 20,
            reads_config: true,
            keeps_inflight: false,
            listens: false,
        }
    }
}

impl Setup {
    /// The default with `count` queues.
    pub fn queues(count: usize) -> Self {
        Self { queues: count, ..Self::default() }
    }

    /// The default with room for requests of `bytes`.
    pub fn data(bytes: u64) -> Self {
        Self { data_bytes: bytes, ..Self::default() }
    }

    /// The default without these features.
    pub fn without(features: u64) -> Self {
        Self { refuse: features | F_EVENT_IDX, ..Self::default() }
    }
}

/// An in-flight region: how messages describe it, and its file.
pub struct Inflight {
    pub description: VhostUserInflight,
    pub file: File,
}

impl Inflight {
    /// How many requests it says are in flight.
    pub fn count(&self) -> usize {
        let VhostUserInflight { num_queues, queue_size, .. } = self.description;
        let part = (16 + 16 * usize::from(queue_size)).next_multiple_of(64);
        let mut bytes = vec![0; part * usize::from(num_queues)];
        self.file.read_exact_at(&mut bytes, 0).expect("read the region");
        let entries = bytes.chunks(part).flat_map(|part| part[16..].chunks(16).take(queue_size.into()));
        entries.filter(|entry| entry[0] != 0).count()
    }
}

/// A connected front end with running queues.
pub struct Frontend {
    pub messages: Messages,
    pub ram: Rc<GuestRam>,
    pub rings: Vec<Ring>,
    /// What the device offered.
    pub offered: u64,
    /// What was agreed on.
    pub features: u64,
    pub setup: Setup,
    /// What outlives the back end, if the setup wants that.
    pub inflight: Option<Inflight>,
    /// Where the back end speaks unasked, if the setup wants that.
    pub channel: Option<UnixStream>,
    stream: UnixStream,
}

impl Frontend {
    /// Connects with the default setup.
    pub fn connect(socket: &Path) -> Self {
        Self::with(socket, Setup::default())
    }

    /// Connects and starts the queues.
    pub fn with(socket: &Path, setup: Setup) -> Self {
        Self::over(dial(socket), setup)
    }

    /// Starts the queues over a connected socket.
    pub fn over(stream: UnixStream, setup: Setup) -> Self {
        let ram = GuestRam::new(setup.data_bytes);
        let rings = (0..setup.queues).map(|i| Ring::new(&ram, i, setup.queue_size)).collect();
        let mut frontend = Self::begin(stream, setup, ram, rings);
        frontend.share_memory();
        for index in 0..frontend.rings.len() {
            frontend.start_ring(index, 0);
        }
        frontend
    }

    /// Reconnects with the guest's memory and rings as they are.
    pub fn resume(self, socket: &Path) -> Self {
        self.resume_at(socket, Ring::used_idx)
    }

    /// Reconnects, and tells the back end where each ring goes on: front ends guess that differently when the last
    /// back end could not tell.
    pub fn resume_at(self, socket: &Path, base: impl Fn(&Ring) -> u16) -> Self {
        let Self { ram, rings, setup, messages, stream, inflight, .. } = self;
        drop(messages);
        stream.shutdown(std::net::Shutdown::Both).expect("shut our own socket down");
        let stream = dial(socket);
        let mut frontend = Self::begin_again(stream, setup, ram, rings, inflight);
        frontend.share_memory();
        for index in 0..frontend.rings.len() {
            frontend.start_ring(index, base(&frontend.rings[index]));
        }
        frontend
    }

    /// Negotiates features and goes no further: no memory, no rings.
    pub fn begin(stream: UnixStream, setup: Setup, ram: Rc<GuestRam>, rings: Vec<Ring>) -> Self {
        Self::begin_again(stream, setup, ram, rings, None)
    }

    fn begin_again(
        stream: UnixStream,
        setup: Setup,
        ram: Rc<GuestRam>,
        rings: Vec<Ring>,
        inflight: Option<Inflight>,
    ) -> Self {
        let second = stream.try_clone().expect("duplicate the socket");
        let mut messages = Messages::from_stream(stream, 256);
        let offered = messages.get_features().expect("GET_FEATURES");
        assert_ne!(offered & F_PROTOCOL, 0, "VHOST_USER_F_PROTOCOL_FEATURES must be offered");
        let protocol = messages.get_protocol_features().expect("GET_PROTOCOL_FEATURES");
        let wanted = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::RESET_DEVICE;
        let wanted =
            if setup.keeps_inflight { wanted | VhostUserProtocolFeatures::INFLIGHT_SHMFD } else { wanted };
        let wanted = if setup.listens { wanted | VhostUserProtocolFeatures::BACKEND_REQ } else { wanted };
        messages.set_protocol_features(protocol & wanted).expect("SET_PROTOCOL_FEATURES");
        messages.set_owner().expect("SET_OWNER");
        messages.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        if setup.reads_config {
            let flags = VhostUserConfigFlags::empty();
            messages.get_config(0, 60, flags, &[0; 60]).expect("GET_CONFIG");
        }
        let features = offered & !setup.refuse & !F_LOG_ALL;
        messages.set_features(features).expect("SET_FEATURES");
        for ring in &rings {
            ring.event_idx.set(features & F_EVENT_IDX != 0);
        }
        let channel = setup.listens.then(|| {
            let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
            messages.set_backend_request_fd(&theirs).expect("SET_BACKEND_REQ_FD");
            ours
        });
        let inflight = setup.keeps_inflight.then(|| Self::keep_inflight(&mut messages, &setup, inflight));
        Self { messages, ram, rings, offered, features, setup, inflight, channel, stream: second }
    }

    /// Gives the back end the region of its predecessor, or lets it make one.
    fn keep_inflight(messages: &mut Messages, setup: &Setup, inflight: Option<Inflight>) -> Inflight {
        let inflight = inflight.unwrap_or_else(|| {
            let wanted = VhostUserInflight::new(0, 0, setup.queues as u16, setup.queue_size);
            let (description, file) = messages.get_inflight_fd(&wanted).expect("GET_INFLIGHT_FD");
            Inflight { description, file }
        });
        messages.set_inflight_fd(&inflight.description, inflight.file.as_raw_fd()).expect("SET_INFLIGHT_FD");
        inflight
    }

    /// Tells the back end about all regions.
    pub fn share_memory(&mut self) {
        let infos = self.ram.infos();
        match self.setup.memory {
            MemoryMessages::Table => drop(self.messages.set_mem_table(&infos).expect("SET_MEM_TABLE")),
            MemoryMessages::Slots => infos.iter().for_each(|info| self.add_region(info)),
        }
    }

    /// ADD_MEM_REG.
    pub fn add_region(&mut self, info: &VhostUserMemoryRegionInfo) {
        self.messages.add_mem_region(info).expect("ADD_MEM_REG");
    }

    /// Starts one ring at `base`.
    pub fn start_ring(&mut self, index: usize, base: u16) {
        self.configure_ring(index, base);
        let ring = &self.rings[index];
        self.messages.set_vring_kick(index, &ring.kick.borrow()).expect("SET_VRING_KICK");
        self.messages.set_vring_call(index, &ring.call).expect("SET_VRING_CALL");
        self.messages.set_vring_enable(index, true).expect("SET_VRING_ENABLE");
        // A ring that starts says so, in case there are answers in it that nobody told of.
        ring.drain_calls();
    }

    /// SET_VRING_NUM, BASE and ADDR.
    pub fn configure_ring(&mut self, index: usize, base: u16) {
        let ring = &self.rings[index];
        self.messages.set_vring_num(index, ring.size).expect("SET_VRING_NUM");
        self.messages.set_vring_base(index, base).expect("SET_VRING_BASE");
        self.messages.set_vring_addr(index, &ring.addresses()).expect("SET_VRING_ADDR");
    }

    /// GET_VRING_BASE: stops the ring and tells its next available index.
    pub fn stop_ring(&mut self, index: usize) -> u16 {
        let base = self.messages.get_vring_base(index).expect("GET_VRING_BASE");
        u16::try_from(base).expect("a split ring's index has 16 bits")
    }

    /// Reads the config space.
    pub fn config(&mut self, offset: u32, len: usize) -> vhost::Result<Vec<u8>> {
        let flags = VhostUserConfigFlags::empty();
        self.messages.get_config(offset, len as u32, flags, &vec![0; len]).map(|(_, bytes)| bytes)
    }

    /// Writes the config space.
    pub fn set_config(&mut self, offset: u32, bytes: &[u8]) -> vhost::Result<()> {
        self.messages.set_config(offset, VhostUserConfigFlags::empty(), bytes)
    }

    /// The same connection, for messages that `vhost` would not send.
    pub fn wire(&self) -> Wire {
        Wire::over(self.stream.try_clone().expect("duplicate the socket"))
    }

    /// Lays a request out on a ring.
    pub fn prepare(&self, ring: usize, request: &Request) -> Prepared {
        request.prepare(&self.ram, &self.rings[ring])
    }

    /// Runs one request on an idle ring and gives its buffers back.
    #[track_caller]
    pub fn run_on(&self, ring: usize, request: &Request) -> Answer {
        let mark = self.ram.mark();
        let prepared = self.prepare(ring, request);
        let answer = self.run_prepared(ring, &prepared);
        self.rings[ring].return_descs(&prepared.descs);
        self.ram.release(mark);
        answer
    }

    /// Runs one request on the first ring.
    #[track_caller]
    pub fn run(&self, request: &Request) -> Answer {
        self.run_on(0, request)
    }

    /// Makes one prepared request available and waits for its answer.
    #[track_caller]
    pub fn run_prepared(&self, ring: usize, prepared: &Prepared) -> Answer {
        let ring = &self.rings[ring];
        ring.publish(&[prepared.head]);
        ring.kick();
        prepared.answer(ring.collect(1)[0])
    }

    /// Runs requests at once and gives their answers in the order of the requests.
    #[track_caller]
    pub fn run_all(&self, ring: usize, requests: &[Request]) -> Vec<Answer> {
        let mark = self.ram.mark();
        let prepared: Vec<Prepared> = requests.iter().map(|request| self.prepare(ring, request)).collect();
        let ring = &self.rings[ring];
        ring.publish(&prepared.iter().map(|p| p.head).collect::<Vec<_>>());
        ring.kick();
        let used = ring.collect(prepared.len());
        let find = |p: &Prepared| used.iter().find(|u| u.head == u32::from(p.head)).copied();
        let answers = prepared.iter().map(|p| p.answer(find(p).expect("every head is answered"))).collect();
        for p in &prepared {
            ring.return_descs(&p.descs);
        }
        self.ram.release(mark);
        answers
    }

    /// Writes, reads back and compares: the proof that a queue serves.
    #[track_caller]
    pub fn assert_serves(&self, ring: usize, sector: u64, seed: u64) {
        let data = super::volume::pattern(seed, SERVES_BYTES);
        self.run_on(ring, &Request::write(sector, &data)).ok();
        let back = self.run_on(ring, &Request::read(sector, SERVES_BYTES)).ok();
        assert!(back == data, "ring {ring} reads back other bytes than it wrote at sector {sector}");
    }
}
