//! From a chain of descriptors to a request that is known to be valid. No I/O happens here.
//!
//! The device-readable descriptors of a chain are one byte stream and the device-writable ones another,
//! wherever the driver cut them (virtio 1.2, section 2.7.4): the header is the first 16 readable bytes, the
//! status is the last writable byte, and what is between belongs to the data.

use super::virtq::{Chain, Descriptor, Head};
use super::wire::{self, Status, request_type};
use crate::geometry::{Geometry, SECTOR_BYTES, SectorNumber, SectorSize};
use crate::guest::{DirtyLog, GuestAddress, GuestBuffer, GuestMemory, LocalMemory};

/// What a request is checked against.
#[derive(Clone, Copy, Debug)]
pub struct DiskView {
    /// Size and sector size.
    pub geometry: Geometry,
    /// The guest's block size: the encryption sector size, or less.
    pub logical_block: SectorSize,
    /// Whether everything that changes the disk is refused.
    pub read_only: bool,
    /// Whether discards are passed on; otherwise their type is not supported.
    pub discard: bool,
}

/// A part of the disk: whole logical blocks, inside its capacity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SectorRange {
    /// Position from the start of the payload.
    pub offset_bytes: u64,
    /// Length, a multiple of the logical block size.
    pub len_bytes: u64,
}

impl SectorRange {
    /// The first sector of the range.
    pub fn first(&self) -> SectorNumber {
        SectorNumber::containing(self.offset_bytes)
    }

    /// First byte behind the range. No overflow: the range lies inside the disk.
    fn end_bytes(&self) -> u64 {
        self.offset_bytes + self.len_bytes
    }

    /// Whether the range consists of whole encryption sectors.
    pub fn is_whole(&self, sector_size: SectorSize) -> bool {
        (self.offset_bytes | self.len_bytes) & sector_size.mask() == 0
    }

    /// The encryption sectors that the range touches.
    pub fn widened(&self, sector_size: SectorSize) -> Self {
        let mask = sector_size.mask();
        let (offset_bytes, end_bytes) = (self.offset_bytes & !mask, (self.end_bytes() + mask) & !mask);
        Self { offset_bytes, len_bytes: end_bytes - offset_bytes }
    }

    /// The encryption sectors that the range covers; empty when there is none.
    fn narrowed(&self, sector_size: SectorSize) -> Self {
        let mask = sector_size.mask();
        let (offset_bytes, end_bytes) = ((self.offset_bytes + mask) & !mask, self.end_bytes() & !mask);
        Self { offset_bytes, len_bytes: end_bytes.saturating_sub(offset_bytes) }
    }
}

/// What a request wants. Small, since it moves with every request: the two rare kinds keep their ranges aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// Sectors to be read into the data buffer.
    Read(SectorRange),
    /// Sectors to be written from the data buffer.
    Write(SectorRange),
    /// Everything completed before to be made durable.
    Flush,
    /// The serial number, into the data buffer.
    GetId,
    /// Ranges that the guest has no use for any more, in whole encryption sectors.
    Discard(Box<Ranges>),
    /// Ranges that are to read as zero.
    WriteZeroes(Box<Ranges>),
}

impl RequestKind {
    /// Whether it stores something.
    pub fn writes(&self) -> bool {
        matches!(self, Self::Write(_) | Self::WriteZeroes(_))
    }

    /// Whether the data buffer is the guest's to receive something in.
    pub fn fills_data(&self) -> bool {
        matches!(self, Self::Read(_) | Self::GetId)
    }
}

/// The segments of a discard or write-zeroes request, empty ones left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    ranges: [SectorRange; wire::MAX_RANGES],
    count: usize,
}

impl Ranges {
    /// The ranges in the driver's order.
    pub fn as_slice(&self) -> &[SectorRange] {
        &self.ranges[..self.count]
    }

    fn push(&mut self, range: SectorRange) {
        self.ranges[self.count] = range;
        self.count += 1;
    }
}

/// Where the status of a request goes: its last writable byte, known to be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusAddress(GuestAddress);

impl StatusAddress {
    /// Writes the status, before the head is completed.
    pub fn write(self, memory: &GuestMemory, status: Status) {
        // The byte was mapped when the request was parsed, and memory that requests point into stays.
        let written = memory.write_byte(self.0, status as u8);
        debug_assert!(written, "status byte at {:?} is not mapped", self.0);
    }

    /// Notes that the status was written.
    pub fn mark_written(self, log: &DirtyLog) {
        log.mark(self.0, 1);
    }
}

/// A request that is valid for its disk.
#[derive(Debug)]
pub struct Request {
    /// Its place in the ring.
    pub head: Head,
    /// Where its outcome goes.
    pub status: StatusAddress,
    /// What it wants.
    pub kind: RequestKind,
    /// The data: to be read for a write, to be written for a read or the serial number.
    pub data: GuestBuffer,
}

/// A request that is refused without touching the disk.
#[derive(Debug)]
pub struct Refusal {
    /// Its place in the ring.
    pub head: Head,
    /// Why, and where to say so; `None` for a chain without a usable status byte.
    pub answer: Option<(StatusAddress, Status)>,
    /// The data buffer, for use again.
    pub data: GuestBuffer,
}

/// What became of a chain.
#[derive(Debug)]
pub enum Parsed {
    /// A valid request.
    Request(Request),
    /// Not one.
    Refused(Refusal),
}

impl Parsed {
    /// What a valid request wants.
    pub fn kind(&self) -> Option<&RequestKind> {
        match self {
            Self::Request(request) => Some(&request.kind),
            Self::Refused(_) => None,
        }
    }
}

/// Reads the chain of `head` as a request to `disk`. `data` is an empty buffer in the memory that the chain
/// points into.
pub fn parse(
    head: Head,
    chain: &Chain,
    mut data: GuestBuffer,
    memory: &LocalMemory,
    disk: &DiskView,
) -> Parsed {
    data.reset(memory.clone());
    let Some(status) = status_address(chain.descriptors(), memory) else {
        return Parsed::Refused(Refusal { head, answer: None, data });
    };
    match parse_kind(chain.descriptors(), &mut data, memory, disk) {
        Ok(kind) => Parsed::Request(Request { head, status, kind, data }),
        Err(refused) => Parsed::Refused(Refusal { head, answer: Some((status, refused)), data }),
    }
}

/// The last writable byte of the chain, when it is mapped.
fn status_address(descriptors: &[Descriptor], memory: &GuestMemory) -> Option<StatusAddress> {
    let last = descriptors.iter().rev().find(|d| d.writable && d.len_bytes > 0)?;
    let address = last.address.checked_add(u64::from(last.len_bytes) - 1)?;
    memory.is_mapped(address, 1).then_some(StatusAddress(address))
}

fn parse_kind(
    descriptors: &[Descriptor],
    data: &mut GuestBuffer,
    memory: &GuestMemory,
    disk: &DiskView,
) -> Result<RequestKind, Status> {
    let split = descriptors.iter().position(|d| d.writable).unwrap_or(descriptors.len());
    let (readable, writable) = descriptors.split_at(split);
    if writable.iter().any(|d| !d.writable) {
        // Readable after writable (2.7.4.2): no telling what is meant.
        return Err(Status::IoError);
    }
    let readable = Stream::new(readable);
    let writable = Stream::new(writable);
    let mut header = [0; wire::HEADER_BYTES as usize];
    readable.read(0, &mut header, memory).ok_or(Status::IoError)?;
    let payload = Payload {
        to_device: readable.slice(wire::HEADER_BYTES, readable.len_bytes - wire::HEADER_BYTES),
        to_driver: writable.slice(0, writable.len_bytes - 1),
    };
    let [kind, _reserved, sector @ ..]: [u32; 4] =
        std::array::from_fn(|i| u32::from_le_bytes(header[4 * i..4 * i + 4].try_into().expect("four bytes")));
    let sector = u64::from(sector[0]) | u64::from(sector[1]) << 32;
    match kind {
        request_type::IN => Ok(RequestKind::Read(payload.read_range(sector, data, disk)?)),
        request_type::OUT => Ok(RequestKind::Write(payload.write_range(sector, data, disk)?)),
        request_type::FLUSH => Ok(RequestKind::Flush),
        request_type::GET_ID => {
            payload.to_driver.append_to(data)?;
            Ok(RequestKind::GetId)
        }
        request_type::DISCARD if disk.discard => {
            Ok(RequestKind::Discard(payload.ranges(RangeRules::DISCARD, memory, disk)?))
        }
        request_type::WRITE_ZEROES => {
            Ok(RequestKind::WriteZeroes(payload.ranges(RangeRules::WRITE_ZEROES, memory, disk)?))
        }
        _ => Err(Status::Unsupported),
    }
}

/// Descriptors of one direction, as one stream of bytes.
#[derive(Clone, Copy)]
struct Stream<'a> {
    descriptors: &'a [Descriptor],
    /// Bytes of the descriptors before the stream begins.
    start: u64,
    len_bytes: u64,
}

impl<'a> Stream<'a> {
    fn new(descriptors: &'a [Descriptor]) -> Self {
        // At most 1024 lengths of 32 bits: no overflow.
        let len_bytes = descriptors.iter().map(|d| u64::from(d.len_bytes)).sum();
        Self { descriptors, start: 0, len_bytes }
    }

    /// `len_bytes` bytes from `offset_bytes` on; the caller knows that they are there.
    fn slice(self, offset_bytes: u64, len_bytes: u64) -> Self {
        debug_assert!(offset_bytes + len_bytes <= self.len_bytes);
        Self { start: self.start + offset_bytes, len_bytes, ..self }
    }

    /// The parts of the stream as guest ranges; `None` in place of one whose address overflows.
    fn parts(self) -> impl Iterator<Item = Option<(GuestAddress, u64)>> + use<'a> {
        let (mut skip, mut left) = (self.start, self.len_bytes);
        self.descriptors.iter().filter_map(move |descriptor| {
            let len = u64::from(descriptor.len_bytes);
            let skipped = skip.min(len);
            skip -= skipped;
            let taken = left.min(len - skipped);
            left -= taken;
            (taken > 0).then(|| Some((descriptor.address.checked_add(skipped)?, taken)))
        })
    }

    /// Copies `destination.len()` bytes at `offset_bytes`, each read once. `None` when the stream is shorter
    /// or not mapped.
    fn read(self, offset_bytes: u64, destination: &mut [u8], memory: &GuestMemory) -> Option<()> {
        let len_bytes = destination.len() as u64;
        if offset_bytes.checked_add(len_bytes)? > self.len_bytes {
            return None;
        }
        let mut filled = 0;
        for part in self.slice(offset_bytes, len_bytes).parts() {
            let (address, len) = part?;
            let to = &mut destination[filled..filled + len as usize];
            memory.read_into(address, to)?;
            filled += len as usize;
        }
        Some(())
    }

    fn append_to(self, data: &mut GuestBuffer) -> Result<(), Status> {
        for part in self.parts() {
            let (address, len_bytes) = part.ok_or(Status::IoError)?;
            if !data.append(address, len_bytes) {
                return Err(Status::IoError);
            }
        }
        Ok(())
    }
}

/// What is left of a chain without header and status.
struct Payload<'a> {
    to_device: Stream<'a>,
    to_driver: Stream<'a>,
}

impl Payload<'_> {
    fn read_range(
        &self,
        sector: u64,
        data: &mut GuestBuffer,
        disk: &DiskView,
    ) -> Result<SectorRange, Status> {
        if self.to_device.len_bytes > 0 || self.to_driver.len_bytes > wire::MAX_DATA_BYTES {
            return Err(Status::IoError);
        }
        let range = checked_range(sector, self.to_driver.len_bytes, disk)?;
        self.to_driver.append_to(data)?;
        Ok(range)
    }

    fn write_range(
        &self,
        sector: u64,
        data: &mut GuestBuffer,
        disk: &DiskView,
    ) -> Result<SectorRange, Status> {
        if self.to_driver.len_bytes > 0 || self.to_device.len_bytes > wire::MAX_DATA_BYTES || disk.read_only {
            return Err(Status::IoError);
        }
        let range = checked_range(sector, self.to_device.len_bytes, disk)?;
        self.to_device.append_to(data)?;
        Ok(range)
    }

    /// The segments of a discard or write-zeroes request (5.2.6), all checked before any is acted on.
    fn ranges(
        &self,
        rules: RangeRules,
        memory: &GuestMemory,
        disk: &DiskView,
    ) -> Result<Box<Ranges>, Status> {
        let (len_bytes, each) = (self.to_device.len_bytes, wire::RANGE_BYTES);
        if disk.read_only || len_bytes == 0 || !len_bytes.is_multiple_of(each) {
            return Err(Status::IoError);
        }
        if len_bytes / each > rules.max_ranges as u64 {
            return Err(Status::IoError);
        }
        let mut ranges = Box::<Ranges>::default();
        for at in (0..len_bytes).step_by(each as usize) {
            let mut segment = [0; wire::RANGE_BYTES as usize];
            self.to_device.read(at, &mut segment, memory).ok_or(Status::IoError)?;
            let range = rules.check(segment, disk)?;
            if range.len_bytes > 0 {
                ranges.push(range);
            }
        }
        Ok(ranges)
    }
}

/// What a segment of a discard or write-zeroes request may say.
#[derive(Clone, Copy)]
struct RangeRules {
    max_ranges: usize,
    max_sectors: u32,
    known_flags: u32,
    /// Only whole encryption sectors of a segment count: the rest of it may stay as it is.
    whole_sectors: bool,
}

impl RangeRules {
    const DISCARD: Self = Self {
        max_ranges: wire::MAX_RANGES,
        max_sectors: wire::MAX_DISCARD_SECTORS,
        known_flags: 0,
        whole_sectors: true,
    };
    const WRITE_ZEROES: Self = Self {
        max_ranges: wire::MAX_WRITE_ZEROES_RANGES,
        max_sectors: wire::MAX_WRITE_ZEROES_SECTORS,
        known_flags: wire::WRITE_ZEROES_UNMAP,
        whole_sectors: false,
    };

    fn check(
        self,
        segment: [u8; wire::RANGE_BYTES as usize],
        disk: &DiskView,
    ) -> Result<SectorRange, Status> {
        let (sector, rest) = segment.split_at(8);
        let sector = u64::from_le_bytes(sector.try_into().expect("eight bytes"));
        let sector_count = u32::from_le_bytes(rest[..4].try_into().expect("four bytes"));
        let flags = u32::from_le_bytes(rest[4..].try_into().expect("four bytes"));
        if flags & !self.known_flags != 0 {
            return Err(Status::Unsupported);
        }
        if sector_count > self.max_sectors {
            return Err(Status::IoError);
        }
        let range = checked_range(sector, u64::from(sector_count) * SECTOR_BYTES, disk)?;
        Ok(if self.whole_sectors { range.narrowed(disk.geometry.sector_size) } else { range })
    }
}

/// A range of whole logical blocks inside the disk, or the status that says that it is not one.
fn checked_range(sector: u64, len_bytes: u64, disk: &DiskView) -> Result<SectorRange, Status> {
    let offset_bytes = sector.checked_mul(SECTOR_BYTES).ok_or(Status::IoError)?;
    let end = offset_bytes.checked_add(len_bytes).ok_or(Status::IoError)?;
    let whole = (offset_bytes | len_bytes) & disk.logical_block.mask() == 0;
    if !whole || end > disk.geometry.capacity_bytes {
        return Err(Status::IoError);
    }
    Ok(SectorRange { offset_bytes, len_bytes })
}

#[cfg(test)]
mod tests;
