//! One hostile act, and the verdict on what the device made of it.
//!
//! A case places descriptors by hand at the low end of the table, makes them available, says what answer it
//! expects, and finishes. Finishing proves, whatever the act was: nothing outside the granted buffers and the used
//! rings was written in guest memory, nothing outside the granted sectors on the volume, no head was answered
//! twice, the queue serves a valid write and read, the process took no more memory than it may, what lies before the
//! payload is as it was, and the process ends cleanly when asked to.

use std::ops::Range;
use std::time::Duration;

use super::frontend::{Frontend, Setup};
use super::request::{Request, S_UNTOUCHED, header};
use super::ring::{Desc, Ring, Used};
use super::{Backend, Serve};

/// Where the proof of life writes; no case touches it.
pub const PROOF_SECTOR: u64 = 4096;
const PROOF_SECTORS: u64 = 8;
/// The sector that hostile writes aim at.
pub const TARGET_SECTOR: u64 = 64;

/// A served volume, a front end, and what the act may change.
pub struct Case {
    pub backend: Backend,
    pub frontend: Frontend,
    granted_memory: Vec<Range<u64>>,
    granted_sectors: Vec<Range<u64>>,
    /// The queue that must still serve at the end.
    pub queue: usize,
}

impl Case {
    /// Two queues of 64, everything offered accepted but EVENT_IDX.
    pub fn start(serve: Serve) -> Self {
        Self::with(serve, Setup::queues(2))
    }

    /// Another driver.
    pub fn with(serve: Serve, setup: Setup) -> Self {
        Self::over(serve.queues(2).args(&["--discard", "pass"]), setup)
    }

    /// Another server.
    pub fn over(serve: Serve, setup: Setup) -> Self {
        let backend = serve.start();
        let frontend = Frontend::with(backend.socket(), setup);
        frontend.ram.watch();
        Self { backend, frontend, granted_memory: Vec::new(), granted_sectors: Vec::new(), queue: 0 }
    }

    /// The ring under attack.
    pub fn ring(&self) -> &Ring {
        &self.frontend.rings[0]
    }

    /// Memory for the act, holding `bytes`.
    pub fn place(&self, bytes: &[u8]) -> u64 {
        let at = self.frontend.ram.alloc(bytes.len() as u64, 16);
        self.frontend.ram.write(at, bytes);
        at
    }

    /// A request header in memory.
    pub fn header(&self, kind: u32, sector: u64) -> Desc {
        Desc::readable(self.place(&header(kind, 0, sector)), 16)
    }

    /// Bytes that the device may read.
    pub fn data(&self, len: usize) -> Desc {
        Desc::readable(self.place(&vec![0x77; len]), len as u32)
    }

    /// Room that the device is granted.
    pub fn room(&mut self, len: usize) -> Desc {
        let at = self.place(&vec![S_UNTOUCHED; len]);
        self.grant_memory(at..at + len as u64);
        Desc::writable(at, len as u32)
    }

    /// A status byte that the device is granted.
    pub fn status(&mut self) -> Desc {
        self.room(1)
    }

    /// An indirect table in memory.
    pub fn table(&self, descs: &[Desc]) -> Desc {
        let bytes: Vec<u8> = descs.iter().flat_map(|desc| desc.to_bytes()).collect();
        let at = self.place(&bytes);
        Desc::indirect(at, bytes.len() as u32)
    }

    /// Allows the device to write here.
    pub fn grant_memory(&mut self, range: Range<u64>) {
        self.granted_memory.push(range);
    }

    /// Allows these sectors to change.
    pub fn grant_sectors(&mut self, range: Range<u64>) {
        self.granted_sectors.push(range);
    }

    /// Makes heads available and kicks.
    pub fn fire(&self, heads: &[u16]) {
        self.ring().publish(heads);
        self.ring().kick();
    }

    /// Places a chain at descriptor 0 and makes it available.
    pub fn fire_chain(&self, descs: &[Desc]) -> u16 {
        let head = self.ring().set_chain(0, descs);
        self.fire(&[head]);
        head
    }

    /// Waits for one answer, to `head`.
    #[track_caller]
    pub fn answered(&self, head: u16) -> u32 {
        let used = self.ring().collect(1)[0];
        assert_eq!(used.head, u32::from(head), "answer to a head that was not made available");
        used.len
    }

    /// Fires a chain and expects a bare status byte.
    #[track_caller]
    pub fn expect_status(&self, descs: &[Desc], status: u8) {
        let head = self.fire_chain(descs);
        assert_eq!(self.answered(head), 1, "used length: the status byte alone");
        let last = descs.last().expect("a chain");
        let at = last.addr + u64::from(last.len) - 1;
        assert_eq!(self.frontend.ram.read(at, 1), [status], "status");
    }

    /// Fires a chain that has no usable status byte: it comes back with length 0.
    #[track_caller]
    pub fn expect_returned(&self, descs: &[Desc]) {
        let head = self.fire_chain(descs);
        assert_eq!(self.answered(head), 0, "used length of a chain without a status byte");
    }

    /// Runs a request through the front end and expects it to fail with `status`.
    #[track_caller]
    pub fn expect_failure(&mut self, request: &Request, status: u8) {
        let answer = self.run(request);
        answer.failed(status);
    }

    /// Runs a request and grants what it may write.
    #[track_caller]
    pub fn run(&mut self, request: &Request) -> super::request::Answer {
        let prepared = self.frontend.prepare(0, request);
        self.granted_memory.extend(prepared.granted());
        let answer = self.frontend.run_prepared(0, &prepared);
        self.ring().return_descs(&prepared.descs);
        answer
    }

    /// The verdict.
    #[track_caller]
    pub fn finish(mut self) {
        std::thread::sleep(Duration::from_millis(10));
        self.backend.assert_alive();
        for ring in &self.frontend.rings {
            let surplus: Vec<Used> = std::iter::from_fn(|| ring.pop_used()).collect();
            assert_eq!(surplus, [], "heads answered again on ring {}", ring.index);
            self.granted_memory.push(ring.used_area());
        }
        self.assert_memory();
        self.frontend.assert_serves(self.queue, PROOF_SECTOR, 99);
        self.granted_sectors.push(PROOF_SECTOR..PROOF_SECTOR + PROOF_SECTORS);
        assert_eq!(self.frontend.rings[self.queue].pending(), 0, "more answers than requests");
        self.backend.assert_own_memory_is_bounded();
        drop(self.frontend);
        self.backend.terminate();
        let volume = &self.backend.volume;
        volume.assert_header_untouched();
        let (now, before) = (volume.plaintext(), &volume.original);
        // Where the key is not at hand both are ciphertext, which changes with the whole sector that was encrypted.
        let block = if volume.is_luks() { volume.layout.sector_bytes as u64 / 512 } else { 1 };
        assert_eq!(now.len(), before.len(), "the volume changed its size");
        let changed =
            (0..now.len() / 512).filter(|i| now[i * 512..(i + 1) * 512] != before[i * 512..(i + 1) * 512]);
        let stray: Vec<usize> = changed
            .filter(|sector| {
                !self.granted_sectors.iter().any(|range| {
                    (range.start / block..range.end.div_ceil(block)).contains(&(*sector as u64 / block))
                })
            })
            .collect();
        assert_eq!(stray, [0usize; 0], "sectors changed that no valid request named");
    }

    #[track_caller]
    fn assert_memory(&self) {
        let stray = self.frontend.ram.device_writes_outside(&self.granted_memory);
        let shown: Vec<String> = stray.iter().take(8).map(|at| format!("{at:#x}")).collect();
        assert!(stray.is_empty(), "the device wrote {} bytes outside its grant: {shown:?}", stray.len());
    }
}
