//! The volume under the disk: where payload bytes lie on it, and the cipher between them and the guest.
//!
//! Encryption is the copy: bytes go from guest memory through the cipher into a slot, and from a slot through the
//! cipher into guest memory, in one pass.
#![expect(unsafe_code, reason = "the cipher reads from and writes to guest memory, by raw pointer")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::peers::Peers;
use super::rate_limits::{Limits, RateLimits};
use super::sector_locks::SectorLocks;
use super::syncs::Syncs;
use super::tables::Failure;
use crate::cipher::Xts;
use crate::geometry::{Geometry, SECTOR_BYTES, SectorNumber, SectorSize};
use crate::guest::{Cursor, GuestBuffer, InflightRegion};
use crate::io::{Durability, Slot};
use crate::virtio::request::SectorRange;

/// What becomes of requests that storage fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// The guest is told.
    Report,
    /// They are held until the operator has them tried again, where that can put them right.
    Stop {
        /// Whether the volume is written through the page cache, where a write that is to be durable can fail for
        /// another's loss.
        page_cached: bool,
    },
}

/// What is between guest and storage.
#[derive(Clone, Debug)]
enum Cipher {
    /// The volume is not encrypted.
    None,
    Xts(Arc<Xts>),
    /// The key was taken away. Nothing may be asked of it: no queue runs.
    Withheld,
}

impl Cipher {
    fn xts(&self) -> Option<&Xts> {
        match self {
            Self::None => None,
            Self::Xts(xts) => Some(xts),
            // Anything else would put the guest's data on storage in clear.
            Self::Withheld => panic!("a volume without its key is served to nobody"),
        }
    }
}

/// One served volume. Each queue thread has a clone, for what is shared is behind it.
#[derive(Clone, Debug)]
pub struct Volume {
    geometry: Geometry,
    cipher: Cipher,
    writeback: Arc<AtomicBool>,
    on_error: OnError,
    peers: Arc<Peers>,
    syncs: Arc<Syncs>,
    limits: Arc<RateLimits>,
    /// On a disk whose blocks are smaller than its sectors: requests for parts of sectors come on no other.
    locks: Option<Arc<SectorLocks>>,
}

impl Volume {
    /// A volume in writeback mode. `xts` was made for the geometry's sector size.
    pub fn new(geometry: Geometry, xts: Option<Xts>) -> Self {
        let sizes = xts.as_ref().map(|xts| (xts.sector_size(), geometry.sector_size));
        assert!(sizes.is_none_or(|(cipher, volume)| cipher == volume), "one sector size");
        let peers = Arc::new(Peers::new());
        Self {
            geometry,
            cipher: xts.map_or(Cipher::None, |xts| Cipher::Xts(Arc::new(xts))),
            writeback: Arc::new(AtomicBool::new(true)),
            on_error: OnError::Report,
            syncs: Arc::new(Syncs::new(Arc::clone(&peers))),
            peers,
            limits: Arc::new(RateLimits::new(Limits::default())),
            locks: None,
        }
    }

    /// The same encrypted volume with its key, or without: then no queue may run on it.
    #[must_use]
    pub fn with_cipher(&self, xts: Option<Arc<Xts>>) -> Self {
        assert!(self.is_encrypted(), "there is no key to take away or to give");
        Self { cipher: xts.map_or(Cipher::Withheld, Cipher::Xts), ..self.clone() }
    }

    /// Lets requests consist of blocks of this size, which may be less than the sector size.
    pub fn with_logical_block(self, logical_block: SectorSize) -> Self {
        let sector_size = self.geometry.sector_size;
        let smaller = logical_block.bytes() < sector_size.bytes();
        let locks = smaller.then(|| Arc::new(SectorLocks::new(sector_size, Arc::clone(&self.peers))));
        Self { locks, ..self }
    }

    /// Sets what becomes of requests that storage fails.
    pub fn with_on_error(self, on_error: OnError) -> Self {
        Self { on_error, ..self }
    }

    /// Sets how much the guest may ask for, over all queues.
    pub fn with_limits(self, limits: Limits) -> Self {
        self.limits.set(limits);
        self
    }

    /// What is to be done about a request that storage failed: what failed was a sync, its own or that of a write that had
    /// been done; or a write that was to be durable; or another request.
    pub(super) fn judge_failure(&self, sync: bool, durable: bool) -> Failure {
        let loss_is_told = match self.on_error {
            OnError::Stop { page_cached: false } => sync,
            OnError::Stop { page_cached: true } | OnError::Report => sync || durable,
        };
        if loss_is_told {
            self.latch_sync_failure();
        }
        match self.on_error {
            OnError::Stop { .. } if !loss_is_told => Failure::Repeatable,
            _ => Failure::Final,
        }
    }

    /// The locks of a volume whose sectors may be changed in part.
    pub(super) fn locks(&self) -> Option<&Arc<SectorLocks>> {
        self.locks.as_ref()
    }

    /// The sectors that `range` touches.
    pub(super) fn sectors_of(&self, range: SectorRange) -> SectorRange {
        if self.locks.is_some() { range.widened(self.geometry.sector_size) } else { range }
    }

    /// Whether `range` consists of whole sectors.
    pub(super) fn is_whole(&self, range: SectorRange) -> bool {
        self.locks.is_none() || range.is_whole(self.geometry.sector_size)
    }

    /// Where the payload lies and how it is cut.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// How much the guest may ask for, over all queues.
    pub fn limits(&self) -> &RateLimits {
        &self.limits
    }

    /// Whether there is a cipher between guest and storage.
    pub fn is_encrypted(&self) -> bool {
        !matches!(self.cipher, Cipher::None)
    }

    /// Whether writes may complete before they are durable.
    pub fn is_writeback(&self) -> bool {
        self.writeback.load(Ordering::Relaxed)
    }

    /// Turns the write cache on or off, for requests that begin from now on. To turn it off, the caller stops
    /// the queues first and makes what they wrote durable.
    pub fn set_writeback(&self, writeback: bool) {
        self.writeback.store(writeback, Ordering::Relaxed);
    }

    /// What a write that begins now has to be.
    pub fn write_durability(&self) -> Durability {
        if self.is_writeback() { Durability::Volatile } else { Durability::Durable }
    }

    /// Whether an `fdatasync`, or a write that was to be durable, has failed. It may have dropped what it could not
    /// write, so none that follows can promise anything: they all fail until the volume is opened anew.
    pub fn has_sync_failed(&self) -> bool {
        self.syncs.is_latched()
    }

    /// Remembers a failed `fdatasync` or durable write.
    pub fn latch_sync_failure(&self) {
        self.syncs.latch();
    }

    /// Makes durable what the queues have written, by `sync`, from another thread than theirs. An error is final, as
    /// any failed `fdatasync`.
    ///
    /// # Errors
    /// Those of `sync`.
    pub fn sync_with<E>(&self, sync: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        self.syncs.run(sync)
    }

    /// Has the word of a failed `fdatasync` outlive a crash, in that region; and learns whether a predecessor has left
    /// it there.
    pub fn keep_note_in(&self, region: Arc<InflightRegion>) {
        self.syncs.keep_note_in(region);
    }

    /// Says that this process ends in good order: its successor serves the volume anew. The word of a failure that the
    /// guest does not know of stays.
    pub fn end_life(&self) {
        self.syncs.end_life();
    }

    /// The workers of the volume.
    pub(super) fn peers(&self) -> &Peers {
        &self.peers
    }

    /// The flushes and durable writes under way.
    pub(super) fn syncs(&self) -> &Arc<Syncs> {
        &self.syncs
    }

    /// Position on the backing volume of a position in the payload.
    pub fn backing_offset(&self, payload_offset_bytes: u64) -> u64 {
        self.geometry.payload_offset_bytes + payload_offset_bytes
    }

    /// Encrypts the next `len_bytes` of the guest's data, from `cursor` on, into the beginning of `slot`. They
    /// are whole sectors, the first of which is `first`.
    pub fn encrypt(
        &self,
        data: &GuestBuffer,
        cursor: &mut Cursor,
        slot: &mut Slot,
        first: SectorNumber,
        len_bytes: usize,
    ) {
        let slot = slot.bytes_mut(len_bytes);
        let Some(xts) = self.cipher.xts() else {
            let copied = data.copy_in(cursor, slot);
            debug_assert_eq!(copied, slot.len(), "the request was checked to have its data");
            return;
        };
        let sector_bytes = xts.sector_size().bytes() as usize;
        each_piece(data, cursor, sector_bytes, first, slot, |cursor, first, to, run| match run {
            // SAFETY: the run is mapped while `data` lives; `to` is as long, and our own memory.
            Some(host) => unsafe { xts.encrypt(first, host, to.as_mut_ptr(), to.len() / sector_bytes) },
            None => {
                let copied = data.copy_in(cursor, to);
                debug_assert_eq!(copied, sector_bytes, "the request was checked to have its data");
                xts.encrypt_in_place(first, to);
            }
        });
    }

    /// Decrypts the beginning of `slot` into the next `len_bytes` of the guest's data, from `cursor` on. They
    /// are whole sectors, the first of which is `first`.
    pub fn decrypt(
        &self,
        slot: &mut Slot,
        first: SectorNumber,
        len_bytes: usize,
        data: &GuestBuffer,
        cursor: &mut Cursor,
    ) {
        let slot = slot.bytes_mut(len_bytes);
        let Some(xts) = self.cipher.xts() else {
            let copied = data.copy_out(cursor, slot);
            debug_assert_eq!(copied, slot.len(), "the request was checked to have its data");
            return;
        };
        let sector_bytes = xts.sector_size().bytes() as usize;
        each_piece(data, cursor, sector_bytes, first, slot, |cursor, first, from, run| match run {
            // SAFETY: the run is mapped while `data` lives; `from` is as long, and our own memory.
            Some(host) => unsafe { xts.decrypt(first, from.as_ptr(), host, from.len() / sector_bytes) },
            None => {
                xts.decrypt_in_place(first, from);
                let copied = data.copy_out(cursor, from);
                debug_assert_eq!(copied, sector_bytes, "the request was checked to have its data");
            }
        });
    }

    /// Decrypts the sectors that `range` touches, which `slot` holds, and copies `range` to the next bytes of the
    /// guest's data, from `cursor` on.
    pub(super) fn decrypt_part(
        &self,
        slot: &mut Slot,
        range: SectorRange,
        data: &GuestBuffer,
        cursor: &mut Cursor,
    ) {
        let part = &*self.decrypted_part(slot, range);
        let copied = data.copy_out(cursor, part);
        debug_assert_eq!(copied, part.len(), "the request was checked to have its data");
    }

    /// Changes `range`, a part of the one sector that `slot` holds, to the next bytes of the guest's data, from
    /// `cursor` on, or to zeroes.
    pub(super) fn change_part(
        &self,
        slot: &mut Slot,
        range: SectorRange,
        data: Option<&GuestBuffer>,
        cursor: &mut Cursor,
    ) {
        let part = self.decrypted_part(slot, range);
        match data {
            Some(data) => {
                let copied = data.copy_in(cursor, part);
                debug_assert_eq!(copied, part.len(), "the request was checked to have its data");
            }
            None => part.fill(0),
        }
        if let Some(xts) = self.cipher.xts() {
            let sector = self.sectors_of(range);
            xts.encrypt_in_place(sector.first(), slot.bytes_mut(sector.len_bytes as usize));
        }
    }

    /// Decrypts the sectors that `range` touches in place, and shows `range` of them.
    fn decrypted_part<'slot>(&self, slot: &'slot mut Slot, range: SectorRange) -> &'slot mut [u8] {
        let sectors = self.sectors_of(range);
        let bytes = slot.bytes_mut(sectors.len_bytes as usize);
        if let Some(xts) = self.cipher.xts() {
            xts.decrypt_in_place(sectors.first(), bytes);
        }
        let start = (range.offset_bytes - sectors.offset_bytes) as usize;
        &mut bytes[start..start + range.len_bytes as usize]
    }

    /// Fills the beginning of `slot` with what decrypts to `len_bytes` zeroes at sector `first`.
    pub fn encrypt_zeroes(&self, slot: &mut Slot, first: SectorNumber, len_bytes: usize) {
        let slot = slot.bytes_mut(len_bytes);
        slot.fill(0);
        if let Some(xts) = self.cipher.xts() {
            xts.encrypt_in_place(first, slot);
        }
    }
}

/// Cuts `slot`, whole sectors from `first` on, as the guest cut its data, from `cursor` on. `turn` gets the cursor, each
/// piece's first sector, the piece, and where as many bytes lie in guest memory; nowhere if the guest cut this one
/// sector into pieces, which `turn` then has to move along the cursor.
fn each_piece(
    data: &GuestBuffer,
    cursor: &mut Cursor,
    sector_bytes: usize,
    first: SectorNumber,
    slot: &mut [u8],
    mut turn: impl FnMut(&mut Cursor, SectorNumber, &mut [u8], Option<*mut u8>),
) {
    let mut done = 0;
    while done < slot.len() {
        let run = data.next_whole(cursor, slot.len() - done, sector_bytes);
        let len_bytes = run.as_ref().map_or(sector_bytes, |run| run.len_bytes);
        let piece = &mut slot[done..][..len_bytes];
        turn(cursor, advance(first, done), piece, run.map(|run| run.host));
        done += len_bytes;
    }
}

/// The sector `done_bytes` after `first`.
fn advance(first: SectorNumber, done_bytes: usize) -> SectorNumber {
    SectorNumber(first.0 + done_bytes as u64 / SECTOR_BYTES)
}
