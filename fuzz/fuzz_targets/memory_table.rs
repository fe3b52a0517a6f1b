//! Memory tables as a front end might send them, and reads and writes at any address: regions never overlap, what the
//! table says is mapped can be touched, and is what a plain map of bytes says.
#![no_main]

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};
use sealblk::guest::{GuestAddress, GuestMemory, Region};

const REGIONS_MAX: usize = 24;

#[derive(Arbitrary, Debug)]
struct Input {
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Add { guest: Number, user: u32, len: Number, file_bytes: u16, offset: Number, fill: u8 },
    Remove { which: u8 },
    RemoveAny { guest: Number, len: Number },
    Read { address: Number, len: u8 },
    Write { address: Number, value: u8 },
}

/// Mostly small, so that numbers meet.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Number {
    Pages(u8),
    Near(u16),
    Any(u64),
}

impl Number {
    fn value(self) -> u64 {
        match self {
            Self::Pages(count) => u64::from(count) * 4096,
            Self::Near(value) => u64::from(value),
            Self::Any(value) => value,
        }
    }
}

/// What the table is to hold: the start of each region with its length and bytes.
type Model = BTreeMap<u64, Vec<u8>>;

fn byte_of(model: &Model, address: u64) -> Option<u8> {
    let (start, bytes) = model.range(..=address).next_back()?;
    bytes.get(usize::try_from(address - start).ok()?).copied()
}

fuzz_target!(|input: Input| {
    let (mut memory, mut model) = (GuestMemory::default(), Model::new());
    for step in input.steps.iter().take(256) {
        match *step {
            Step::Add { guest, user, len, file_bytes, offset, fill } => {
                let file = File::from(memfd_create("region", MemfdFlags::CLOEXEC).expect("a memory file"));
                file.write_all_at(&vec![fill; usize::from(file_bytes)], 0).expect("memory can be written");
                let (guest, len, offset) = (guest.value(), len.value(), offset.value());
                let Ok(region) = Region::map(guest, u64::from(user), len, file, offset) else { continue };
                assert!(len > 0 && offset.checked_add(len).is_some_and(|end| end <= u64::from(file_bytes)));
                let end = guest.checked_add(len).expect("a region ends within the address space");
                let apart =
                    model.iter().all(|(start, bytes)| end <= *start || start + bytes.len() as u64 <= guest);
                if model.len() >= REGIONS_MAX {
                    continue;
                }
                match memory.with_region(region) {
                    Ok(larger) => memory = larger,
                    Err(error) => {
                        assert!(!apart, "{error}");
                        continue;
                    }
                }
                assert!(apart, "regions overlap");
                model.insert(guest, vec![fill; len as usize]);
            }
            Step::Remove { which } => {
                let start = model.keys().nth(usize::from(which) % model.len().max(1)).copied();
                let Some(start) = start else { continue };
                let len = model.remove(&start).expect("it was found").len() as u64;
                memory = memory.without_region(start, len).expect("it is there");
            }
            Step::RemoveAny { guest, len } => {
                let known = model.get(&guest.value()).is_some_and(|bytes| bytes.len() as u64 == len.value());
                assert!(known || memory.without_region(guest.value(), len.value()).is_err());
            }
            Step::Read { address, len } => {
                let mut bytes = vec![0; usize::from(len)];
                let start = address.value();
                let expected: Option<Vec<u8>> =
                    (0..u64::from(len)).map(|i| byte_of(&model, start.checked_add(i)?)).collect();
                let read = memory.read_into(GuestAddress(start), &mut bytes).map(|()| bytes);
                assert_eq!(read, expected);
            }
            Step::Write { address, value } => {
                let address = address.value();
                let mapped = byte_of(&model, address).is_some();
                assert_eq!(memory.write_byte(GuestAddress(address), value), mapped);
                if let Some((start, bytes)) = model.range_mut(..=address).next_back().filter(|_| mapped) {
                    bytes[(address - start) as usize] = value;
                }
            }
        }
    }
});
