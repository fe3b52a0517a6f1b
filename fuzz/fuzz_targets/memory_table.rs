//! Memory tables as a front end might send them, and reads and writes at any address: regions never overlap, what the
//! table says is mapped can be touched, and everything that is asked of it is answered as by a plain map of bytes.
#![no_main]

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};
use sealblk::guest::{GuestAddress, GuestMemory, Region};

const REGIONS_MAX: usize = 24;
const STEPS_MAX: usize = 128;
const PAGE_BYTES: u64 = 4096;

#[derive(Arbitrary, Debug)]
struct Input {
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Add { guest: Place, user: Place, len: Number, file: FileLen, offset: Number, fill: u8 },
    Remove { which: u8 },
    RemoveAny { guest: Place, len: Number },
    Read { address: Place, len: u16 },
    Write { address: Place, value: u8 },
    Translate { user: Place },
}

/// An address, mostly where something begins or ends.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Place {
    Near { region: u8, end: bool, distance: i8 },
    PagesFrom { region: u8, distance: i8 },
    At(Number),
}

/// Mostly small, so that numbers meet.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Number {
    Pages(u8),
    Near(u16),
    Any(u64),
}

/// The size of a file, compared with the end of what is wanted of it.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum FileLen {
    Fitting,
    Off(i8),
    Pages(u8),
}

impl Number {
    fn value(self) -> u64 {
        match self {
            Self::Pages(count) => u64::from(count % 16) * PAGE_BYTES,
            Self::Near(value) => u64::from(value),
            Self::Any(value) => value,
        }
    }
}

impl FileLen {
    fn value(self, end: u64) -> u64 {
        let bytes = match self {
            Self::Fitting => end,
            Self::Off(by) => end.saturating_add_signed(by.into()),
            Self::Pages(count) => u64::from(count % 32) * PAGE_BYTES,
        };
        bytes.min(32 * PAGE_BYTES)
    }
}

/// A region, as it is to be.
struct Area {
    user: u64,
    bytes: Vec<u8>,
}

/// What the table is to hold: the start of each region, and the region.
#[derive(Default)]
struct Model(BTreeMap<u64, Area>);

impl Model {
    fn place(&self, place: Place, is_user: bool) -> u64 {
        let edge = |region: u8, end: bool| {
            let (start, area) = self.0.iter().nth(usize::from(region).checked_rem(self.0.len())?)?;
            let start = if is_user { area.user } else { *start };
            Some(if end { start + area.bytes.len() as u64 } else { start })
        };
        match place {
            Place::Near { region, end, distance } => {
                edge(region, end).unwrap_or(0).wrapping_add_signed(i64::from(distance) / 8)
            }
            Place::PagesFrom { region, distance } => {
                let pages = i64::from(distance % 16) * PAGE_BYTES as i64;
                edge(region, distance > 0).unwrap_or(0).wrapping_add_signed(pages)
            }
            Place::At(number) => number.value(),
        }
    }

    fn byte(&self, address: u64) -> Option<u8> {
        let (start, area) = self.0.range(..=address).next_back()?;
        area.bytes.get(usize::try_from(address - start).ok()?).copied()
    }

    /// Whether nothing is where these bytes would be.
    fn is_free(&self, guest: u64, len: u64) -> bool {
        self.0.iter().all(|(start, area)| guest + len <= *start || start + area.bytes.len() as u64 <= guest)
    }

    fn end(&self) -> u64 {
        self.0.last_key_value().map_or(0, |(start, area)| start + area.bytes.len() as u64)
    }

    fn translate(&self, user: u64) -> Option<u64> {
        let holds = |area: &Area| user.checked_sub(area.user).filter(|at| *at < area.bytes.len() as u64);
        self.0.iter().find_map(|(start, area)| Some(start + holds(area)?))
    }
}

struct Rig {
    memory: GuestMemory,
    model: Model,
}

/// Bytes of which each tells where in its file it is.
fn content(fill: u8, len: u64) -> Vec<u8> {
    (0..len).map(|at| fill ^ (at as u8) ^ ((at >> 8) as u8).wrapping_mul(31)).collect()
}

impl Rig {
    fn add(&mut self, guest: u64, user: u64, len: u64, file_bytes: u64, offset: u64, fill: u8) {
        let file = File::from(memfd_create("region", MemfdFlags::CLOEXEC).expect("a memory file"));
        let content = content(fill, file_bytes);
        file.write_all_at(&content, 0).expect("memory can be written");
        let is_sound = len > 0
            && offset.is_multiple_of(PAGE_BYTES)
            && offset.checked_add(len).is_some_and(|end| end <= file_bytes)
            && [guest, user].iter().all(|start| start.checked_add(len).is_some());
        let mapped = Region::map(guest, user, len, file, offset);
        assert_eq!(mapped.is_ok(), is_sound, "{len} bytes at {offset} of {file_bytes}: {:?}", mapped.err());
        let Ok(region) = mapped else { return };
        if self.model.0.len() >= REGIONS_MAX {
            return;
        }
        let is_free = self.model.is_free(guest, len);
        match self.memory.with_region(region) {
            Ok(larger) => {
                assert!(is_free, "regions overlap");
                self.memory = larger;
                let bytes = content[offset as usize..(offset + len) as usize].to_vec();
                self.model.0.insert(guest, Area { user, bytes });
            }
            Err(error) => assert!(!is_free, "{error}"),
        }
    }

    fn remove(&mut self, guest: u64, len: u64) {
        let known = self.model.0.get(&guest).is_some_and(|area| area.bytes.len() as u64 == len);
        match self.memory.without_region(guest, len) {
            Ok(smaller) => {
                assert!(known, "a region of {len} bytes at {guest:#x} was not there");
                self.memory = smaller;
                self.model.0.remove(&guest);
            }
            Err(error) => assert!(!known, "{error}"),
        }
    }

    fn read(&self, start: u64, len: u16) {
        let mut bytes = vec![0; usize::from(len)];
        let expected: Option<Vec<u8>> =
            (0..u64::from(len)).map(|i| self.model.byte(start.checked_add(i)?)).collect();
        let address = GuestAddress(start);
        assert_eq!(self.memory.is_mapped(address, len.into()), expected.is_some());
        let read = self.memory.read_into(address, &mut bytes).map(|()| bytes);
        assert!(read == expected, "{len} bytes at {start:#x}");
        if len > 0 {
            let holder = self.model.0.range(..=start).next_back();
            let is_whole = holder.is_some_and(|(region, area)| {
                (start - region).saturating_add(len.into()) <= area.bytes.len() as u64
            });
            assert_eq!(self.memory.host_pointer(address, len.into()).is_some(), is_whole);
        }
    }

    fn write(&mut self, address: u64, value: u8) {
        let mapped = self.model.byte(address).is_some();
        assert_eq!(self.memory.write_byte(GuestAddress(address), value), mapped);
        if let Some((start, area)) = self.model.0.range_mut(..=address).next_back().filter(|_| mapped) {
            area.bytes[(address - start) as usize] = value;
        }
    }

    /// All that is there, and the first byte that is not.
    fn check(&self) {
        assert_eq!(self.memory.end_bytes(), self.model.end());
        for (start, area) in &self.model.0 {
            let mut bytes = vec![0; area.bytes.len()];
            self.memory.read_into(GuestAddress(*start), &mut bytes).expect("all of it is mapped");
            assert!(bytes == area.bytes, "the region at {start:#x} holds something else");
            let end = start + area.bytes.len() as u64;
            assert_eq!(self.memory.is_mapped(GuestAddress(end), 1), self.model.byte(end).is_some());
        }
    }
}

fuzz_target!(|input: Input| {
    let mut rig = Rig { memory: GuestMemory::default(), model: Model::default() };
    for step in input.steps.iter().take(STEPS_MAX) {
        match *step {
            Step::Add { guest, user, len, file, offset, fill } => {
                let (guest, user) = (rig.model.place(guest, false), rig.model.place(user, true));
                let (len, offset) = (len.value(), offset.value());
                rig.add(guest, user, len, file.value(offset.saturating_add(len)), offset, fill);
                rig.check();
            }
            Step::Remove { which } => {
                let known = rig.model.0.iter().nth(usize::from(which) % rig.model.0.len().max(1));
                let Some((start, area)) = known else { continue };
                rig.remove(*start, area.bytes.len() as u64);
                rig.check();
            }
            Step::RemoveAny { guest, len } => rig.remove(rig.model.place(guest, false), len.value()),
            Step::Read { address, len } => rig.read(rig.model.place(address, false), len % 8192),
            Step::Write { address, value } => rig.write(rig.model.place(address, false), value),
            Step::Translate { user } => {
                let user = rig.model.place(user, true);
                let found = rig.memory.guest_address(user).map(|address| address.0);
                assert_eq!(found, rig.model.translate(user), "{user:#x} of the front end's");
            }
        }
    }
    rig.check();
});
