//! A split virtqueue laid out and driven by hand: every descriptor, index and flag is the test's to choose.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use vhost::VringConfigData;
use vmm_sys_util::eventfd::EventFd;

use super::memory::{GuestRam, user_address};

/// Longest wait for one answer of a healthy device.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long a device must stay silent before a test believes that it will.
pub const SILENCE: Duration = Duration::from_millis(60);

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;
const AVAIL_NO_INTERRUPT: u16 = 1;

/// One entry of a descriptor table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Desc {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

impl Desc {
    /// Bytes that the device reads.
    pub fn readable(addr: u64, len: u32) -> Self {
        Self { addr, len, flags: 0, next: 0 }
    }

    /// Bytes that the device writes.
    pub fn writable(addr: u64, len: u32) -> Self {
        Self { addr, len, flags: WRITE, next: 0 }
    }

    /// A table of further descriptors.
    pub fn indirect(addr: u64, len: u32) -> Self {
        Self { addr, len, flags: INDIRECT, next: 0 }
    }

    /// The same, continued at `next`.
    pub fn then(self, next: u16) -> Self {
        Self { flags: self.flags | NEXT, next, ..self }
    }

    /// The same with further flags.
    pub fn with_flags(self, flags: u16) -> Self {
        Self { flags: self.flags | flags, ..self }
    }

    /// As it lies in memory.
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// Gives consecutive descriptors their NEXT links, from index `first`.
pub fn chained(descs: &[Desc], first: u16) -> Vec<Desc> {
    let last = descs.len() - 1;
    let link = |(i, desc): (usize, &Desc)| if i == last { *desc } else { desc.then(first + i as u16 + 1) };
    descs.iter().enumerate().map(link).collect()
}

/// One answer: the head of the chain and the length that the device says it wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    pub head: u32,
    pub len: u32,
}

/// A ring in guest memory, and the driver's side of its state.
pub struct Ring {
    pub index: usize,
    pub size: u16,
    pub kick: RefCell<EventFd>,
    pub call: EventFd,
    pub desc_table: u64,
    pub avail: u64,
    pub used: u64,
    /// Whether VIRTIO_RING_F_EVENT_IDX was agreed on.
    pub event_idx: Cell<bool>,
    avail_idx: Cell<u16>,
    used_seen: Cell<u16>,
    free: RefCell<Vec<u16>>,
    ram: Rc<GuestRam>,
}

impl Ring {
    /// Lays out an empty ring.
    pub fn new(ram: &Rc<GuestRam>, index: usize, size: u16) -> Self {
        let entries = u64::from(size);
        let ring = Self {
            index,
            size,
            kick: RefCell::new(eventfd()),
            call: eventfd(),
            desc_table: ram.alloc(16 * entries, 16),
            avail: ram.alloc(6 + 2 * entries, 2),
            used: ram.alloc(6 + 8 * entries, 4),
            event_idx: Cell::new(false),
            avail_idx: Cell::new(0),
            used_seen: Cell::new(0),
            free: RefCell::default(),
            ram: ram.clone(),
        };
        ring.reset();
        ring
    }

    /// Empties the ring and begins again at index 0.
    pub fn reset(&self) {
        let entries = usize::from(self.size);
        self.ram.write(self.desc_table, &vec![0; 16 * entries]);
        self.ram.write(self.avail, &vec![0; 6 + 2 * entries]);
        self.ram.write(self.used, &vec![0; 6 + 8 * entries]);
        self.avail_idx.set(0);
        self.used_seen.set(0);
        *self.free.borrow_mut() = (0..self.size).collect();
    }

    /// Begins at another index, as a ring does that has run before.
    pub fn begin_at(&self, index: u16) {
        self.avail_idx.set(index);
        self.used_seen.set(index);
        self.ram.store_u16(self.avail + 2, index);
        self.ram.store_u16(self.used + 2, index);
    }

    /// The ring's addresses as SET_VRING_ADDR carries them.
    pub fn addresses(&self) -> VringConfigData {
        VringConfigData {
            queue_max_size: self.size,
            queue_size: self.size,
            flags: 0,
            desc_table_addr: user_address(self.desc_table),
            used_ring_addr: user_address(self.used),
            avail_ring_addr: user_address(self.avail),
            log_addr: None,
        }
    }

    /// What the device may write: the used ring with its avail_event.
    pub fn used_area(&self) -> Range<u64> {
        self.used..self.used + 6 + 8 * u64::from(self.size)
    }

    /// Writes one entry of the descriptor table.
    pub fn set_desc(&self, index: u16, desc: Desc) {
        self.ram.write(self.desc_table + 16 * u64::from(index), &desc.to_bytes());
    }

    /// Writes a chain at `first` and returns its head.
    pub fn set_chain(&self, first: u16, descs: &[Desc]) -> u16 {
        for (i, desc) in chained(descs, first).into_iter().enumerate() {
            self.set_desc(first + i as u16, desc);
        }
        first
    }

    /// Takes descriptors for a chain, highest first: tests that place descriptors by hand use the low ones.
    pub fn take_descs(&self, count: usize) -> Vec<u16> {
        let mut free = self.free.borrow_mut();
        assert!(free.len() >= count, "ring {} has only {} free descriptors", self.index, free.len());
        let at = free.len() - count;
        free.split_off(at)
    }

    /// Gives descriptors back.
    pub fn return_descs(&self, descs: &[u16]) {
        self.free.borrow_mut().extend(descs);
    }

    /// The driver's index of the next available entry.
    pub fn avail_idx(&self) -> u16 {
        self.avail_idx.get()
    }

    /// Answers consumed so far, modulo 2^16.
    pub fn used_seen(&self) -> u16 {
        self.used_seen.get()
    }

    /// Writes the available-ring entry that belongs to index `at`, without publishing it.
    pub fn set_avail_entry(&self, at: u16, head: u16) {
        self.ram.store_u16(self.avail + 4 + 2 * u64::from(at % self.size), head);
    }

    /// Publishes any index at all.
    pub fn set_avail_idx(&self, index: u16) {
        self.avail_idx.set(index);
        self.ram.store_u16(self.avail + 2, index);
    }

    /// Writes the available ring's flags.
    pub fn set_avail_flags(&self, flags: u16) {
        self.ram.store_u16(self.avail, flags);
    }

    /// Asks the device not to interrupt (only meaningful without EVENT_IDX).
    pub fn suppress_interrupts(&self, suppress: bool) {
        self.set_avail_flags(if suppress { AVAIL_NO_INTERRUPT } else { 0 });
    }

    /// Makes chains available with one update of the index.
    pub fn publish(&self, heads: &[u16]) {
        let start = self.avail_idx.get();
        for (i, head) in heads.iter().enumerate() {
            self.set_avail_entry(start.wrapping_add(i as u16), *head);
        }
        self.set_avail_idx(start.wrapping_add(heads.len() as u16));
    }

    /// Tells the device to look at the ring.
    pub fn kick(&self) {
        self.kick.borrow().write(1).expect("eventfd takes the kick");
    }

    /// The index up to which the device has answered.
    pub fn used_idx(&self) -> u16 {
        self.ram.load_u16(self.used + 2)
    }

    /// With EVENT_IDX: the available index at which the device wants the next kick.
    pub fn avail_event(&self) -> u16 {
        self.ram.load_u16(self.used + 4 + 8 * u64::from(self.size))
    }

    /// With EVENT_IDX: interrupt when the used index passes this.
    pub fn set_used_event(&self, index: u16) {
        self.ram.store_u16(self.avail + 4 + 2 * u64::from(self.size), index);
    }

    /// Answers that are there and not consumed yet.
    pub fn pending(&self) -> u16 {
        self.used_idx().wrapping_sub(self.used_seen.get())
    }

    /// Consumes the next answer, if there is one.
    pub fn pop_used(&self) -> Option<Used> {
        let pending = self.pending();
        assert!(
            pending <= self.size,
            "used index of ring {} ran {pending} ahead of a ring of {}",
            self.index,
            self.size
        );
        if pending == 0 {
            return None;
        }
        let seen = self.used_seen.get();
        let entry = self.ram.read(self.used + 4 + 8 * u64::from(seen % self.size), 8);
        self.used_seen.set(seen.wrapping_add(1));
        let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().expect("4 bytes"));
        Some(Used { head: word(0), len: word(4) })
    }

    /// Waits for `count` answers, sleeping on the call eventfd alone: an answer without a notification fails.
    pub fn collect(&self, count: usize) -> Vec<Used> {
        let deadline = Instant::now() + PATIENCE;
        let mut answers = Vec::new();
        while answers.len() < count {
            if self.event_idx.get() {
                self.set_used_event(self.used_seen.get());
            }
            if let Some(used) = self.pop_used() {
                answers.push(used);
                continue;
            }
            if !self.wait_call(deadline.saturating_duration_since(Instant::now())) {
                let silent =
                    if self.pending() > 0 { "answers came without a notification" } else { "no answer" };
                panic!("ring {}: {silent} within {PATIENCE:?}, {answers:?} of {count} came", self.index);
            }
        }
        answers
    }

    /// Waits for `count` answers by looking at the used index, for tests about notifications.
    pub fn collect_by_polling(&self, count: usize) -> Vec<Used> {
        let deadline = Instant::now() + PATIENCE;
        let mut answers = Vec::new();
        while answers.len() < count {
            match self.pop_used() {
                Some(used) => answers.push(used),
                None => {
                    assert!(Instant::now() < deadline, "ring {}: {answers:?} of {count} answers", self.index);
                    std::thread::sleep(Duration::from_micros(200));
                }
            }
        }
        answers
    }

    /// Sleeps until the device notifies, and consumes the notification. False when the time is over.
    pub fn wait_call(&self, timeout: Duration) -> bool {
        let ready = readable_within(&self.call, timeout);
        if ready {
            self.call.read().expect("the call eventfd was readable");
        }
        ready
    }

    /// Takes notifications that are already there; returns how many.
    pub fn drain_calls(&self) -> u64 {
        if readable_within(&self.call, Duration::ZERO) { self.call.read().expect("readable") } else { 0 }
    }

    /// Begins again at index 0 and keeps the descriptors.
    pub fn reset_indices(&self) {
        self.begin_at(0);
        self.set_avail_flags(0);
    }

    /// Asserts that the used index stays at `index`.
    pub fn expect_silence_from(&self, index: u16, round: usize) {
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(
            self.used_idx(),
            index,
            "round {round}: ring {} answered after it was stopped",
            self.index
        );
    }

    /// Asserts that no further answer comes.
    pub fn expect_silence(&self) {
        std::thread::sleep(SILENCE);
        assert_eq!(self.pending(), 0, "ring {} answered: {:?}", self.index, self.pop_used());
    }
}

/// A non-blocking eventfd that children do not inherit.
pub fn eventfd() -> EventFd {
    let flags = rustix::event::EventfdFlags::NONBLOCK | rustix::event::EventfdFlags::CLOEXEC;
    EventFd::new(flags.bits() as i32).expect("eventfd")
}

/// Waits until `fd` is readable.
pub fn readable_within(fd: &impl AsRawFd, timeout: Duration) -> bool {
    // vmm-sys-util's EventFd implements only AsRawFd; rustix wants a borrow.
    let borrowed = super::fd::borrow(fd);
    poll_readable(borrowed, timeout)
}

/// The same for a borrowed descriptor.
pub fn poll_readable(fd: BorrowedFd<'_>, timeout: Duration) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&left)) {
            Ok(ready) => return ready > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("poll: {error}"),
        }
    }
}

/// Waits, within bounds, until something holds.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
