//! virtio-blk requests, well formed and not, laid out as chains of descriptors.

use std::ops::Range;
use std::rc::Rc;

use super::memory::GuestRam;
use super::ring::{Desc, Ring, Used, chained};

pub const T_IN: u32 = 0;
pub const T_OUT: u32 = 1;
pub const T_FLUSH: u32 = 4;
pub const T_GET_ID: u32 = 8;
pub const T_GET_LIFETIME: u32 = 10;
pub const T_DISCARD: u32 = 11;
pub const T_WRITE_ZEROES: u32 = 13;
pub const T_SECURE_ERASE: u32 = 14;

pub const S_OK: u8 = 0;
pub const S_IOERR: u8 = 1;
pub const S_UNSUPP: u8 = 2;
/// What a status byte holds before the device answers.
pub const S_UNTOUCHED: u8 = 0xff;

/// How a stream of bytes is cut into descriptors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Header or status in a descriptor of its own, data in another: what drivers usually do.
    Usual,
    /// Everything in one descriptor.
    One,
    /// Descriptors of this many bytes.
    Every(usize),
    /// Descriptors of these lengths; the last takes the rest.
    At(Vec<usize>),
}

/// A request, as bytes for the device to read and room for it to write.
#[derive(Clone, Debug)]
pub struct Request {
    pub header: Vec<u8>,
    /// What the device reads after the header.
    pub payload: Vec<u8>,
    /// Bytes of data that the device may write before the status byte.
    pub room: usize,
    pub readable: Cut,
    pub writable: Cut,
    /// Whether the chain lies in an indirect table.
    pub indirect: bool,
    /// Guest-physical address of the data, wherever the test wants it: payload or room.
    pub data_at: Option<u64>,
}

/// The 16 bytes that every request begins with.
pub fn header(kind: u32, ioprio: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &ioprio.to_le_bytes(), &sector.to_le_bytes()].concat()
}

/// One range of a DISCARD or WRITE_ZEROES request.
pub fn segment(sector: u64, sector_count: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sector_count.to_le_bytes(), &flags.to_le_bytes()].concat()
}

impl Request {
    /// A request of any type, with `payload` for the device to read and `room` for it to write.
    pub fn new(kind: u32, sector: u64, payload: Vec<u8>, room: usize) -> Self {
        Self {
            header: header(kind, 0, sector),
            payload,
            room,
            readable: Cut::Usual,
            writable: Cut::Usual,
            indirect: false,
            data_at: None,
        }
    }

    /// Reads `len` bytes at `sector`.
    pub fn read(sector: u64, len: usize) -> Self {
        Self::new(T_IN, sector, Vec::new(), len)
    }

    /// Writes `data` at `sector`.
    pub fn write(sector: u64, data: &[u8]) -> Self {
        Self::new(T_OUT, sector, data.to_vec(), 0)
    }

    /// Makes completed writes durable.
    pub fn flush() -> Self {
        Self::new(T_FLUSH, 0, Vec::new(), 0)
    }

    /// Asks for the serial number with room for `len` bytes.
    pub fn get_id(len: usize) -> Self {
        Self::new(T_GET_ID, 0, Vec::new(), len)
    }

    /// Discards one range.
    pub fn discard(sector: u64, sector_count: u32) -> Self {
        Self::new(T_DISCARD, 0, segment(sector, sector_count, 0), 0)
    }

    /// Zeroes one range.
    pub fn write_zeroes(sector: u64, sector_count: u32) -> Self {
        Self::new(T_WRITE_ZEROES, 0, segment(sector, sector_count, 0), 0)
    }

    /// Chooses how header and payload are cut.
    pub fn readable(mut self, cut: Cut) -> Self {
        self.readable = cut;
        self
    }

    /// Chooses how data and status are cut.
    pub fn writable(mut self, cut: Cut) -> Self {
        self.writable = cut;
        self
    }

    /// Puts the chain into an indirect table.
    pub fn indirect(mut self) -> Self {
        self.indirect = true;
        self
    }

    /// Places the data.
    pub fn data_at(mut self, address: u64) -> Self {
        self.data_at = Some(address);
        self
    }

    /// Replaces the header.
    pub fn header(mut self, header: Vec<u8>) -> Self {
        self.header = header;
        self
    }

    /// Lays the request out in guest memory and takes descriptors for it, without making it available.
    pub fn prepare(&self, ram: &Rc<GuestRam>, ring: &Ring) -> Prepared {
        let read_lens = pieces(&self.readable, self.header.len(), self.payload.len());
        let write_lens = pieces(&self.writable, self.room, 1);
        let read_data = if self.payload.is_empty() { None } else { self.data_at };
        let readable = place(ram, &read_lens, self.header.len(), self.payload.len(), read_data);
        let writable =
            place(ram, &write_lens, 0, self.room, self.data_at.filter(|_| self.payload.is_empty()));
        let mut stream = [&self.header[..], &self.payload].concat();
        for (at, len) in &readable {
            let rest = stream.split_off(*len);
            ram.write(*at, &stream);
            stream = rest;
        }
        let mut prepared = Prepared {
            ram: ram.clone(),
            head: 0,
            descs: Vec::new(),
            table: None,
            readable,
            writable,
            room: self.room,
        };
        prepared.forget();
        prepared.link(ring, self.indirect);
        prepared
    }
}

fn pieces(cut: &Cut, first: usize, second: usize) -> Vec<usize> {
    let total = first + second;
    let lens = match cut {
        Cut::Usual => vec![first, second],
        Cut::One => vec![total],
        Cut::Every(step) => {
            let whole = vec![*step; total / step];
            if total.is_multiple_of(*step) { whole } else { [whole, vec![total % step]].concat() }
        }
        Cut::At(lens) => {
            let used: usize = lens.iter().sum();
            assert!(used <= total, "cuts beyond the {total} bytes of the request");
            [lens.clone(), vec![total - used]].concat()
        }
    };
    lens.into_iter().filter(|len| *len > 0).collect()
}

/// Gives each piece an address. Data at a chosen address lies there in one run, cut or not.
fn place(
    ram: &GuestRam,
    lens: &[usize],
    data_start: usize,
    data_len: usize,
    data_at: Option<u64>,
) -> Vec<(u64, usize)> {
    let mut position = 0;
    let mut placed = Vec::new();
    for len in lens {
        let inside = position >= data_start && position + len <= data_start + data_len;
        let at = match data_at {
            Some(base) if inside => base + (position - data_start) as u64,
            _ => ram.alloc(*len as u64, 1),
        };
        placed.push((at, *len));
        position += len;
    }
    placed
}

/// A request in guest memory, ready to be made available, as often as one likes.
pub struct Prepared {
    ram: Rc<GuestRam>,
    pub head: u16,
    /// The ring's descriptors that the chain holds.
    pub descs: Vec<u16>,
    /// The indirect table, if there is one.
    pub table: Option<u64>,
    pub readable: Vec<(u64, usize)>,
    pub writable: Vec<(u64, usize)>,
    room: usize,
}

impl Prepared {
    fn link(&mut self, ring: &Ring, indirect: bool) {
        let readable = self.readable.iter().map(|(at, len)| Desc::readable(*at, *len as u32));
        let writable = self.writable.iter().map(|(at, len)| Desc::writable(*at, *len as u32));
        let descs: Vec<Desc> = readable.chain(writable).collect();
        if indirect {
            let table: Vec<u8> = chained(&descs, 0).into_iter().flat_map(Desc::to_bytes).collect();
            let at = self.ram.alloc(table.len() as u64, 16);
            self.ram.write(at, &table);
            self.table = Some(at);
            self.descs = ring.take_descs(1);
            ring.set_desc(self.descs[0], Desc::indirect(at, table.len() as u32));
        } else {
            self.descs = ring.take_descs(descs.len());
            for (i, desc) in descs.iter().enumerate() {
                let next = self.descs.get(i + 1);
                ring.set_desc(self.descs[i], next.map_or(*desc, |next| desc.then(*next)));
            }
        }
        self.head = self.descs[0];
    }

    /// Poisons what the device is to write, status included.
    pub fn forget(&self) {
        for (at, len) in &self.writable {
            self.ram.write(*at, &vec![S_UNTOUCHED; *len]);
        }
    }

    /// What the device may write.
    pub fn granted(&self) -> Vec<Range<u64>> {
        self.writable.iter().map(|(at, len)| *at..*at + *len as u64).collect()
    }

    /// The status byte, wherever it lies.
    pub fn status(&self) -> u8 {
        *self.written().last().expect("a status byte")
    }

    /// Everything that the device may have written, status included.
    pub fn written(&self) -> Vec<u8> {
        self.writable.iter().flat_map(|(at, len)| self.ram.read(*at, *len)).collect()
    }

    /// The answer that belongs to `used`.
    pub fn answer(&self, used: Used) -> Answer {
        assert_eq!(used.head, u32::from(self.head), "answer for another head");
        let mut data = self.written();
        let status = data.pop().expect("a status byte");
        data.truncate(self.room);
        Answer { status, used_len: used.len, data }
    }
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u8,
    pub used_len: u32,
    pub data: Vec<u8>,
}

impl Answer {
    /// Asserts success with the right used length, and gives the data.
    #[track_caller]
    pub fn ok(self) -> Vec<u8> {
        assert_eq!(self.status, S_OK, "status");
        assert_eq!(self.used_len as usize, self.data.len() + 1, "used length of a success: data and status");
        self.data
    }

    /// Asserts a failure with `status` and the used length of a bare status byte.
    #[track_caller]
    pub fn failed(self, status: u8) {
        assert_eq!(self.status, status, "status");
        assert_eq!(self.used_len, 1, "used length of a failure: the status byte");
    }
}
