//! Pieces of requests, and among them those that change a part of a sector: these read it, change the part, and
//! write it back, with the sector locked from the first to the last.

use super::sector_locks::{Access, Attempt, Locker};
use super::tables::{Active, Piece, RequestId};
use super::{Volume, Worker};
use crate::guest::Cursor;
use crate::io::{Engine, Op, Slot};
use crate::virtio::request::{RequestKind, SectorRange};
use crate::virtio::wire::Status;

/// The next piece of a request that has some left, in at most `slot_bytes`.
#[inline]
pub(super) fn next_piece(volume: &Volume, request: RequestId, active: &Active, slot_bytes: u64) -> Piece {
    let rest = active.remaining().unwrap_or_default();
    let kind = &active.request.kind;
    let limit_bytes = if matches!(kind, RequestKind::Discard(_)) { u64::MAX } else { slot_bytes };
    let mut piece = Piece {
        request,
        range: SectorRange { len_bytes: rest.len_bytes.min(limit_bytes), ..rest },
        cursor: active.plan.cursor,
        sync: None,
        lock: None,
        reads_first: false,
    };
    if volume.locks().is_some() {
        let mask = volume.geometry().sector_size.mask();
        match kind {
            RequestKind::Write(_) | RequestKind::WriteZeroes(_) | RequestKind::Discard(_) => {
                change_sectors(&mut piece, rest, mask);
            }
            // A slot holds whole sectors.
            _ => piece.range.len_bytes = rest.len_bytes.min(limit_bytes - (rest.offset_bytes & mask)),
        }
    }
    piece
}

/// A sector of which only a part changes is a piece of its own; whole sectors go together. `mask` has the bits
/// of an offset inside a sector.
fn change_sectors(piece: &mut Piece, rest: SectorRange, mask: u64) {
    let before = rest.offset_bytes & mask;
    let whole_bytes = piece.range.len_bytes & !mask;
    if before == 0 && whole_bytes > 0 {
        piece.range.len_bytes = whole_bytes;
        piece.lock = Some(Access::Overwrite);
    } else {
        piece.range.len_bytes = rest.len_bytes.min(mask + 1 - before);
        piece.lock = Some(Access::Modify);
        piece.reads_first = true;
    }
}

/// Locks the sectors of a piece that changes some. Returns false when others have them: then the piece has to
/// wait. So it is when they are never coming back, but then the request has failed.
#[inline]
pub(super) fn lock(locker: &mut Option<Locker>, active: &mut Active, piece: &Piece) -> bool {
    let (Some(access), Some(locker)) = (piece.lock, locker) else { return true };
    match locker.lock(piece.range, access, &mut active.in_line) {
        Attempt::Locked => true,
        Attempt::Wait => false,
        Attempt::Abandoned => {
            active.fail(Status::IoError);
            false
        }
    }
}

impl<E: Engine> Worker<E> {
    /// Goes on with a piece whose sector has been read into `slot`: changes its part and writes it back.
    pub(super) fn write_back(&mut self, piece: Piece, slot: Option<Slot>) {
        let mut slot = slot.expect("a read comes back with its slot");
        let volume = &self.disk.volume;
        let request = &self.requests.get(piece.request).request;
        let data = matches!(request.kind, RequestKind::Write(_)).then_some(&request.data);
        let mut cursor: Cursor = piece.cursor;
        volume.change_part(&mut slot, piece.range, data, &mut cursor);
        let sector = volume.sectors_of(piece.range);
        let op = Op::Write {
            slot,
            offset_bytes: volume.backing_offset(sector.offset_bytes),
            len_bytes: sector.len_bytes as u32,
            durability: volume.write_durability(),
        };
        self.start(Piece { reads_first: false, ..piece }, op);
    }

    /// Takes a request that has failed out of the line for its next piece, which is not to begin any more.
    #[cold]
    pub(super) fn leave_line(&mut self, id: RequestId) {
        let active = self.requests.get(id);
        let piece = next_piece(&self.disk.volume, id, active, self.slots.largest_bytes() as u64);
        if let (Some(number), Some(locker)) = (active.in_line.take(), &self.locker) {
            locker.give_up(piece.range, number);
        }
    }

    /// Unlocks the sectors of a piece that has ended.
    #[inline]
    pub(super) fn unlock(&mut self, piece: &Piece) {
        if let (Some(access), Some(locker)) = (piece.lock, &mut self.locker) {
            locker.unlock(piece.range, access);
        }
    }
}

/// A piece as an operation on its sectors. Those that are written without being read first are encrypted here.
pub(super) fn transfer(
    volume: &Volume,
    active: &mut Active,
    piece: &Piece,
    mut slot: Slot,
    sectors: SectorRange,
) -> Op {
    let (offset_bytes, len_bytes) = (volume.backing_offset(sectors.offset_bytes), sectors.len_bytes as u32);
    let (first, len) = (piece.range.first(), piece.range.len_bytes as usize);
    let (data, cursor) = (&active.request.data, &mut active.plan.cursor);
    match active.request.kind {
        RequestKind::Write(_) if !piece.reads_first => volume.encrypt(data, cursor, &mut slot, first, len),
        RequestKind::WriteZeroes(_) if !piece.reads_first => volume.encrypt_zeroes(&mut slot, first, len),
        _ => {
            data.skip(cursor, len);
            return Op::Read { slot, offset_bytes, len_bytes };
        }
    }
    Op::Write { slot, offset_bytes, len_bytes, durability: volume.write_durability() }
}

#[cfg(test)]
#[path = "parts_tests.rs"]
mod tests;
