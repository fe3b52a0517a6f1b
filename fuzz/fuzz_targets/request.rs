//! Chains of descriptors, from the ring to a request: the same descriptors as `virtio-queue` finds, the same request
//! as a plain reading of the specification, and a status that goes to one byte only.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use sealblk::geometry::{Geometry, SectorSize};
use sealblk::guest::{Cursor, GuestAddress, GuestBuffer, LocalMemory};
use sealblk::virtio::request::SectorRange;
use sealblk::virtio::virtq::{Descriptor, MAX_CHAIN};
use sealblk::virtio::wire::Status;
use sealblk::virtio::{Chain, DiskView, Parsed, RequestKind, RingAddresses, RingSetup, Virtq, request};
use sealblk_fuzz::{Ram, RamRegion};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestMemoryMmap};

const LOW: RamRegion = RamRegion { start: 0x1000, len_bytes: 0x2000 };
const HIGH: RamRegion = RamRegion { start: 0x3000, len_bytes: 0x1000 };
const ISLAND: RamRegion = RamRegion { start: 0x1_0000, len_bytes: 0x1000 };
const REGIONS: &[RamRegion] = &[LOW, HIGH, ISLAND];

const RING_SIZE: u16 = 32;
const DESCRIPTORS: u64 = LOW.start;
const AVAILABLE: u64 = LOW.start + 0x200;
const USED: u64 = LOW.start + 0x300;
/// What addresses count from: indirect tables and buffers, across the border of two regions.
const CONTENT: u64 = LOW.start + 0x800;
const HEADERS: u64 = CONTENT;
const HEADERS_MAX: u64 = 24;
const PLANS_MAX: usize = 6;
const HEADERS_PER_PLAN: u64 = 4;
const TABLE: u64 = CONTENT + HEADERS_MAX * 16;
const TABLE_ENTRIES_MAX: u64 = 40;

const CAPACITY_BYTES: u64 = 1 << 20;
const INDIRECT: u16 = 4;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// Random bytes have to make chains that are mostly good, or nothing deep is ever reached.
#[derive(Arbitrary, Debug)]
struct Input<'a> {
    /// Of the encryption sectors, and how much smaller blocks are.
    sector_sizes: u8,
    read_only: bool,
    discard: bool,
    indirect: bool,
    /// Chains of header, data and status, which the rest may then spoil.
    plans: Vec<Plan>,
    /// The ring's descriptor table, and another one behind the headers.
    tables: [Vec<Entry>; 2],
    headers: Vec<Header>,
    heads: Vec<u8>,
    content: &'a [u8],
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Plan {
    header: Header,
    ranges: [Header; 3],
    range_count: u8,
    data: Length,
    data_offset: u16,
}

impl Plan {
    /// What lies where the header does.
    fn headers(&self) -> Vec<Header> {
        let ranges = self.ranges.iter().take(usize::from(self.range_count % 4));
        [&self.header].into_iter().chain(ranges).copied().collect()
    }

    /// Three entries of the descriptor table.
    fn entries(&self, header: u8) -> [Entry; 3] {
        let count = self.headers().len() as u8;
        let is_write = matches!(self.header, Header::Write(_));
        let entry = |address, len_bytes, role| Entry { address, len_bytes, role };
        [
            entry(Address::Header(header), Length::Headers(count), Role::Readable),
            entry(
                Address::Data(self.data_offset),
                self.data,
                if is_write { Role::Readable } else { Role::Writable },
            ),
            entry(Address::Data(0x27ff), Length::One, Role::LastWritable),
        ]
    }
}

/// 16 bytes that begin a request or tell a range.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Header {
    Read(Sector),
    Write(Sector),
    Other(u8),
    Range(Sector, u8, u8),
    Raw([u8; 16]),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Sector {
    Inside(u16),
    Start,
    NearEnd(u8),
    Raw(u64),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Entry {
    address: Address,
    len_bytes: Length,
    role: Role,
}

/// Whether an entry is the last one of its chain, and its direction.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Role {
    Readable,
    LastReadable,
    Writable,
    LastWritable,
    Table,
    Strange { flags: u8, next: u8 },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Address {
    Header(u8),
    Table(u8),
    Data(u16),
    Island(u16),
    Raw(u64),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Length {
    One,
    Small(u8),
    Headers(u8),
    Sectors(u8),
    SectorsAndOne(u8),
    Raw(u32),
}

impl Sector {
    fn number(self) -> u64 {
        match self {
            Self::Inside(number) => u64::from(number) % (CAPACITY_BYTES / 512) / 8 * 8,
            Self::Start => 0,
            Self::NearEnd(before) => CAPACITY_BYTES / 512 - u64::from(before),
            Self::Raw(number) => number,
        }
    }
}

impl Header {
    fn bytes(self) -> [u8; 16] {
        let request = |kind: u32, sector: u64| (u64::from(kind), sector);
        let (low, high) = match self {
            Self::Read(sector) => request(0, sector.number()),
            Self::Write(sector) => request(1, sector.number()),
            Self::Other(kind) => request([4, 8, 11, 13, 11, 13, 2, 14][usize::from(kind % 8)], 0),
            Self::Range(sector, count, flags) => {
                let flags = if flags < 240 { u64::from(flags % 2) } else { u64::from(flags) };
                (sector.number(), (u64::from(count) * 8) | flags << 32)
            }
            Self::Raw(bytes) => return bytes,
        };
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&low.to_le_bytes());
        bytes[8..].copy_from_slice(&high.to_le_bytes());
        bytes
    }
}

impl Entry {
    /// The bytes of the entry at `index` of its table.
    fn bytes(self, index: u16) -> [u8; 16] {
        let address = match self.address {
            Address::Header(number) => HEADERS + u64::from(number) % HEADERS_MAX * 16,
            Address::Table(number) => TABLE + u64::from(number) % TABLE_ENTRIES_MAX * 16,
            Address::Data(offset) => CONTENT + u64::from(offset) % 0x2800,
            Address::Island(offset) => ISLAND.start + u64::from(offset) % 0x1010,
            Address::Raw(address) => address,
        };
        let len_bytes = match self.len_bytes {
            Length::One => 1,
            Length::Small(len) => u32::from(len),
            Length::Headers(count) => u32::from(count % 24) * 16,
            Length::Sectors(count) => u32::from(count % 24) * 512,
            Length::SectorsAndOne(count) => u32::from(count % 24) * 512 + 1,
            Length::Raw(len) => len,
        };
        let (flags, next) = match self.role {
            Role::Readable => (NEXT, index + 1),
            Role::LastReadable => (0, 0),
            Role::Writable => (NEXT | WRITE, index + 1),
            Role::LastWritable => (WRITE, 0),
            Role::Table => (INDIRECT, 0),
            Role::Strange { flags, next } => (u16::from(flags % 8), u16::from(next)),
        };
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len_bytes.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        bytes
    }
}

fuzz_target!(|input: Input<'_>| {
    let doublings = input.sector_sizes % 4;
    let block_doublings = doublings - doublings.min(input.sector_sizes / 4 % 4);
    let size = |doublings: u8| SectorSize::new(512 << doublings).expect("one of four sizes");
    let geometry =
        Geometry { sector_size: size(doublings), payload_offset_bytes: 0, capacity_bytes: CAPACITY_BYTES };
    let logical_block = size(block_doublings);
    let disk = DiskView { geometry, logical_block, read_only: input.read_only, discard: input.discard };
    let ram = Ram::reused(REGIONS);
    fill(&ram, &input);
    let memory = LocalMemory::new(ram.map());
    let addresses = RingAddresses {
        descriptors: GuestAddress(DESCRIPTORS),
        available: GuestAddress(AVAILABLE),
        used: GuestAddress(USED),
    };
    let setup = RingSetup {
        size: RING_SIZE,
        addresses,
        next_available: 0,
        event_idx: false,
        indirect: input.indirect,
    };
    let oracle = Oracle::new(&ram);
    let mut ring = Virtq::new(&setup, memory.clone()).expect("a sane ring");
    let mut chain = Chain::new();
    // Each head is completed at once, so none is passed over but those that are not the ring's.
    for (number, expected) in oracle.chains {
        let head = ring.pop(&mut chain).expect("a sane index").expect("as many chains as the oracle's");
        let descriptors = chain.descriptors();
        match expected {
            Some(expected) if is_acceptable(&ram, number, input.indirect) => {
                assert_eq!(descriptors, expected)
            }
            _ => assert!(descriptors.is_empty() || is_enormous(descriptors), "broken: {descriptors:?}"),
        }
        let status = status_of(descriptors, &ram);
        let data = GuestBuffer::new(memory.clone());
        let head = match request::parse(head, &chain, data, &memory, &disk) {
            Parsed::Request(request) => {
                let meaning = Meaning::from(request.kind);
                assert_eq!(Ok(&meaning), meaning_of(descriptors, &ram, &disk).as_ref(), "{descriptors:?}");
                check_data(&request.data, descriptors, &meaning, &ram);
                check_status(&ram, status, |code| request.status.write(&memory, code));
                request.head
            }
            Parsed::Refused(refusal) => {
                let wanted =
                    status.map(|_| meaning_of(descriptors, &ram, &disk).expect_err("a good request"));
                assert_eq!(refusal.answer.map(|(_, code)| code), wanted, "{descriptors:?}");
                if let Some((address, _)) = refusal.answer {
                    check_status(&ram, status, |code| address.write(&memory, code));
                }
                refusal.head
            }
        };
        ring.complete(head, 0);
        // An indirect table may lie in the used ring, and must be there for both.
        ram.write(USED, &[0; 4 + 8 * RING_SIZE as usize]);
    }
    if let Some(head) = ring.pop(&mut chain).expect("a sane index") {
        ring.complete(head, 0);
        panic!("more chains than the oracle's");
    }
});

/// Lays out the ring and what it points to.
fn fill(ram: &Ram, input: &Input<'_>) {
    let content = &input.content[..input.content.len().min((HIGH.end() - CONTENT) as usize)];
    ram.write(CONTENT, content);
    for (at, header) in (HEADERS..).step_by(16).zip(input.headers.iter().take(HEADERS_MAX as usize)) {
        ram.write(at, &header.bytes());
    }
    for (number, plan) in (0..).zip(input.plans.iter().take(PLANS_MAX)) {
        for (at, header) in (HEADERS + number * HEADERS_PER_PLAN * 16..).step_by(16).zip(plan.headers()) {
            ram.write(at, &header.bytes());
        }
        let first = 3 * number as u16;
        for (index, entry) in (first..).zip(plan.entries((number * HEADERS_PER_PLAN) as u8)) {
            ram.write(DESCRIPTORS + 16 * u64::from(index), &entry.bytes(index));
        }
    }
    let lengths = [u64::from(RING_SIZE), TABLE_ENTRIES_MAX];
    // The ring's own entries come behind those of the plans, and may use them.
    let planned = 3 * input.plans.len().min(PLANS_MAX) as u64;
    for ((table, entries), len) in [DESCRIPTORS, TABLE].into_iter().zip(&input.tables).zip(lengths) {
        let first = if table == DESCRIPTORS { planned } else { 0 };
        for (index, entry) in (first as u16..len as u16).zip(entries) {
            ram.write(table + 16 * u64::from(index), &entry.bytes(index));
        }
    }
    let plan_heads = (0..planned as u16).step_by(3);
    let heads: Vec<u16> = plan_heads.chain(input.heads.iter().map(|head| u16::from(*head % 40))).collect();
    let heads = &heads[..heads.len().min(usize::from(RING_SIZE))];
    for (index, head) in heads.iter().enumerate() {
        ram.write(AVAILABLE + 4 + 2 * index as u64, &head.to_le_bytes());
    }
    ram.write(AVAILABLE + 2, &(heads.len() as u16).to_le_bytes());
}

/// What `virtio-queue` finds in the same memory.
struct Oracle {
    /// Each head with the descriptors of its chain, if that is whole.
    chains: Vec<(u16, Option<Vec<Descriptor>>)>,
}

impl Oracle {
    fn new(ram: &Ram) -> Self {
        let address = vm_memory::GuestAddress;
        let ranges: Vec<_> = REGIONS.iter().map(|r| (address(r.start), r.len_bytes as usize)).collect();
        let memory = GuestMemoryMmap::<()>::from_ranges(&ranges).expect("memory for the oracle");
        for region in REGIONS {
            let content = ram.read(region.start, region.len_bytes as usize);
            memory.write_slice(&content, address(region.start)).expect("the same layout");
        }
        let mut queue = Queue::new(RING_SIZE).expect("a sane size");
        queue.set_desc_table_address(Some(DESCRIPTORS as u32), None);
        queue.set_avail_ring_address(Some(AVAILABLE as u32), None);
        queue.set_used_ring_address(Some(USED as u32), None);
        queue.set_ready(true);
        let chain = |chain: virtio_queue::DescriptorChain<_>| {
            let head = chain.head_index();
            let found: Vec<_> = chain.collect();
            let is_whole = found.last().is_some_and(|last| !last.has_next());
            (head, is_whole.then(|| found.iter().map(descriptor).collect()))
        };
        let chains =
            queue.iter(&memory).expect("a sane index").map(chain).filter(|(head, _)| *head < RING_SIZE);
        Self { chains: chains.collect() }
    }
}

fn descriptor(found: &virtio_queue::desc::split::Descriptor) -> Descriptor {
    Descriptor {
        address: GuestAddress(found.addr().0),
        len_bytes: found.len(),
        writable: found.is_write_only(),
    }
}

/// Whether a chain that `virtio-queue` takes is one for us: we refuse a table that claims to go on, or that was not
/// negotiated, and long ones.
fn is_acceptable(ram: &Ram, head: u16, indirect: bool) -> bool {
    let mut index = head;
    for _ in 0..RING_SIZE {
        let entry = ram.read(DESCRIPTORS + 16 * u64::from(index), 16);
        let word = |at: usize| u16::from_le_bytes([entry[at], entry[at + 1]]);
        let table_entries = u32::from_le_bytes([entry[8], entry[9], entry[10], entry[11]]) / 16;
        match word(12) {
            flags if flags & INDIRECT != 0 => {
                return indirect && flags & NEXT == 0 && table_entries <= MAX_CHAIN as u32;
            }
            flags if flags & NEXT == 0 => return true,
            _ => index = word(14),
        }
    }
    true
}

/// Whether a chain is longer than 4 GiB: forbidden, and broken for `virtio-queue`; we only refuse the request.
fn is_enormous(chain: &[Descriptor]) -> bool {
    chain.iter().map(|d| u64::from(d.len_bytes)).sum::<u64>() > u64::from(u32::MAX)
}

/// A request in the words of the specification, ranges in bytes.
#[derive(Debug, PartialEq, Eq)]
enum Meaning {
    Read(Extent),
    Write(Extent),
    Flush,
    GetId,
    Discard(Vec<Extent>),
    WriteZeroes(Vec<Extent>),
}

type Extent = (u64, u64);

impl From<RequestKind> for Meaning {
    fn from(kind: RequestKind) -> Self {
        let extent = |range: &SectorRange| (range.offset_bytes, range.len_bytes);
        match kind {
            RequestKind::Read(range) => Self::Read(extent(&range)),
            RequestKind::Write(range) => Self::Write(extent(&range)),
            RequestKind::Flush => Self::Flush,
            RequestKind::GetId => Self::GetId,
            RequestKind::Discard(ranges) => Self::Discard(ranges.as_slice().iter().map(extent).collect()),
            RequestKind::WriteZeroes(ranges) => {
                Self::WriteZeroes(ranges.as_slice().iter().map(extent).collect())
            }
        }
    }
}

/// Where the status of a chain goes.
fn status_of(chain: &[Descriptor], ram: &Ram) -> Option<u64> {
    let last = chain.iter().rfind(|d| d.writable && d.len_bytes > 0)?;
    let address = last.address.0.checked_add(u64::from(last.len_bytes) - 1)?;
    ram.is_mapped(address).then_some(address)
}

/// What a chain that has a status asks for.
fn meaning_of(chain: &[Descriptor], ram: &Ram, disk: &DiskView) -> Result<Meaning, Status> {
    if !chain.is_sorted_by_key(|d| d.writable) {
        return Err(Status::IoError);
    }
    let header =
        Stream { chain, writable: false, skip: 0, len_bytes: 16 }.read(ram).ok_or(Status::IoError)?;
    let total = |writable| -> u64 {
        chain.iter().filter(|d| d.writable == writable).map(|d| u64::from(d.len_bytes)).sum()
    };
    let to_device = Stream { chain, writable: false, skip: 16, len_bytes: total(false) - 16 };
    let to_driver = Stream { chain, writable: true, skip: 0, len_bytes: total(true) - 1 };
    let sector = u64::from_le_bytes(header[8..].try_into().expect("eight bytes"));
    let transfer = |data: &Stream<'_>, other: &Stream<'_>| {
        let extent = extent_of(sector, data.len_bytes, disk).ok_or(Status::IoError)?;
        let is_right = other.len_bytes == 0 && data.is_mapped(ram);
        if is_right { Ok(extent) } else { Err(Status::IoError) }
    };
    match u32::from_le_bytes(header[..4].try_into().expect("four bytes")) {
        0 => transfer(&to_driver, &to_device).map(Meaning::Read),
        1 if disk.read_only => Err(Status::IoError),
        1 => transfer(&to_device, &to_driver).map(Meaning::Write),
        4 => Ok(Meaning::Flush),
        8 if to_driver.is_mapped(ram) => Ok(Meaning::GetId),
        8 => Err(Status::IoError),
        11 if disk.discard => {
            extents_of(&to_device, 16, 0, ram, disk).map(|all| Meaning::Discard(whole_sectors(all, disk)))
        }
        13 => extents_of(&to_device, 1, 1, ram, disk).map(Meaning::WriteZeroes),
        _ => Err(Status::Unsupported),
    }
}

fn extents_of(
    stream: &Stream<'_>,
    count_max: u64,
    flags_allowed: u32,
    ram: &Ram,
    disk: &DiskView,
) -> Result<Vec<Extent>, Status> {
    let is_list = stream.len_bytes.is_multiple_of(16) && (1..=count_max).contains(&(stream.len_bytes / 16));
    if disk.read_only || !is_list {
        return Err(Status::IoError);
    }
    let mut extents = Vec::new();
    for skip in (stream.skip..stream.skip + stream.len_bytes).step_by(16) {
        let segment = Stream { skip, len_bytes: 16, ..*stream }.read(ram).ok_or(Status::IoError)?;
        let word = |at: usize| u32::from_le_bytes(segment[at..at + 4].try_into().expect("four bytes"));
        if word(12) & !flags_allowed != 0 {
            return Err(Status::Unsupported);
        }
        let sector = u64::from_le_bytes(segment[..8].try_into().expect("eight bytes"));
        extents.push(extent_of(sector, u64::from(word(8)) * 512, disk).ok_or(Status::IoError)?);
    }
    extents.retain(|(_, len_bytes)| *len_bytes > 0);
    Ok(extents)
}

/// What of `extents` can be discarded: the sectors of which nothing stays.
fn whole_sectors(extents: Vec<Extent>, disk: &DiskView) -> Vec<Extent> {
    let sector_bytes = u64::from(disk.geometry.sector_size.bytes());
    let whole = extents.into_iter().map(|(offset, len_bytes)| {
        let (first, end) = (offset.div_ceil(sector_bytes), (offset + len_bytes) / sector_bytes);
        (first * sector_bytes, end.saturating_sub(first) * sector_bytes)
    });
    whole.filter(|(_, len_bytes)| *len_bytes > 0).collect()
}

/// A part of the disk in whole logical blocks, in 128 bits: nothing to overflow.
fn extent_of(sector: u64, len_bytes: u64, disk: &DiskView) -> Option<Extent> {
    let (offset, unit) = (u128::from(sector) * 512, u128::from(disk.logical_block.bytes()));
    let is_whole = offset % unit == 0 && u128::from(len_bytes) % unit == 0;
    let is_inside = offset + u128::from(len_bytes) <= u128::from(CAPACITY_BYTES);
    (is_whole && is_inside).then_some((offset as u64, len_bytes))
}

/// A part of the bytes of one direction.
struct Stream<'a> {
    chain: &'a [Descriptor],
    writable: bool,
    skip: u64,
    len_bytes: u64,
}

impl Stream<'_> {
    /// The guest's ranges, without addresses that overflow. `None` when the stream is shorter.
    fn parts(&self) -> Option<Vec<(Option<u64>, u64)>> {
        let (mut skip, mut left, mut parts) = (self.skip, self.len_bytes, Vec::new());
        for descriptor in self.chain.iter().filter(|d| d.writable == self.writable) {
            let len_bytes = u64::from(descriptor.len_bytes);
            let skipped = skip.min(len_bytes);
            let taken = left.min(len_bytes - skipped);
            (skip, left) = (skip - skipped, left - taken);
            if taken > 0 {
                parts.push((descriptor.address.0.checked_add(skipped), taken));
            }
        }
        (left == 0).then_some(parts)
    }

    fn is_mapped(&self, ram: &Ram) -> bool {
        let is_mapped =
            |(address, len): &(Option<u64>, u64)| address.is_some_and(|a| ram.is_range_mapped(a, *len));
        self.parts().is_some_and(|parts| parts.iter().all(is_mapped))
    }

    fn read(&self, ram: &Ram) -> Option<Vec<u8>> {
        let parts = self.parts().filter(|_| self.is_mapped(ram))?;
        Some(
            parts
                .iter()
                .flat_map(|(address, len)| ram.read(address.expect("mapped"), *len as usize))
                .collect(),
        )
    }
}

/// Checks that the data buffer is as long as the request and lies where the chain says.
fn check_data(data: &GuestBuffer, chain: &[Descriptor], meaning: &Meaning, ram: &Ram) {
    let total = |writable| -> u64 {
        chain.iter().filter(|d| d.writable == writable).map(|d| u64::from(d.len_bytes)).sum()
    };
    let stream = match meaning {
        Meaning::Read(_) | Meaning::GetId => {
            Stream { chain, writable: true, skip: 0, len_bytes: total(true) - 1 }
        }
        Meaning::Write(_) => Stream { chain, writable: false, skip: 16, len_bytes: total(false) - 16 },
        _ => Stream { chain, writable: false, skip: 0, len_bytes: 0 },
    };
    assert_eq!(data.len_bytes(), stream.len_bytes);
    let mut found = vec![0; stream.len_bytes as usize];
    assert_eq!(data.copy_in(&mut Cursor::default(), &mut found), found.len());
    assert!(stream.read(ram).is_some_and(|expected| expected == found), "the data is not the chain's");
}

/// Checks that `write` changes the byte at `address` only, and puts that back.
fn check_status(ram: &Ram, address: Option<u64>, write: impl FnOnce(Status)) {
    let address = address.expect("a chain without a place for its status is refused without one");
    let before = ram.read_all();
    let at = ram.file_offset(address).expect("it is mapped") as usize;
    let code = if before[at] == Status::IoError as u8 { Status::Unsupported } else { Status::IoError };
    write(code);
    let mut after = ram.read_all();
    assert_eq!(after[at], code as u8);
    after[at] = before[at];
    assert!(after == before, "more than the status byte was changed");
    ram.write(address, &before[at..=at]);
}
