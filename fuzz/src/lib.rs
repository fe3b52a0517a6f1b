//! What the fuzz targets share: a guest's memory.

use std::cell::OnceCell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, memfd_create};
use sealblk::guest::{GuestMemory, Region};

/// Memory of a guest: some regions, seen by the device through its mappings and from here through their file.
pub struct Ram {
    file: File,
    regions: &'static [RamRegion],
    mapped: Arc<GuestMemory>,
}

/// A range of guest addresses that is backed by memory.
#[derive(Clone, Copy, Debug)]
pub struct RamRegion {
    pub start: u64,
    pub len_bytes: u64,
}

impl RamRegion {
    pub fn end(&self) -> u64 {
        self.start + self.len_bytes
    }
}

impl Ram {
    /// Zeroed memory of these regions: the same at each call, since new pages cost more than most inputs take.
    /// Whoever had it before does not use it any more.
    pub fn reused(regions: &'static [RamRegion]) -> Rc<Self> {
        thread_local!(static RAM: OnceCell<Rc<Ram>> = const { OnceCell::new() });
        let ram = RAM.with(|ram| Rc::clone(ram.get_or_init(|| Rc::new(Self::new(regions)))));
        assert_eq!(Rc::strong_count(&ram), 2, "one user at a time");
        ram.file.write_all_at(&vec![0; size(regions)], 0).expect("memory can be written");
        ram
    }

    fn new(regions: &'static [RamRegion]) -> Self {
        let file = File::from(memfd_create(c"guest", MemfdFlags::CLOEXEC).expect("memory for a guest"));
        file.set_len(size(regions) as u64).expect("memory for a guest");
        let mut offset = 0;
        let map = |region: &RamRegion| {
            let file = file.try_clone().expect("a descriptor");
            offset += region.len_bytes;
            Region::map(region.start, region.start, region.len_bytes, file, offset - region.len_bytes)
                .expect("a sane region")
        };
        let mapped = GuestMemory::from_regions(regions.iter().map(map)).expect("sane regions");
        Self { file, regions, mapped: Arc::new(mapped) }
    }

    /// The device's view.
    pub fn map(&self) -> Arc<GuestMemory> {
        Arc::clone(&self.mapped)
    }

    pub fn regions(&self) -> &'static [RamRegion] {
        self.regions
    }

    /// Whether one byte is mapped.
    pub fn is_mapped(&self, address: u64) -> bool {
        self.file_offset(address).is_some()
    }

    /// Whether all bytes of a range are mapped. A range may not be longer than all regions together.
    pub fn is_range_mapped(&self, mut address: u64, mut len_bytes: u64) -> bool {
        while len_bytes > 0 {
            let Some(region) = self.regions.iter().find(|r| (r.start..r.end()).contains(&address)) else {
                return false;
            };
            let here = len_bytes.min(region.end() - address);
            (address, len_bytes) = (address + here, len_bytes - here);
        }
        true
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.each_part(address, bytes.len(), |at, range| self.file.write_all_at(&bytes[range], at));
    }

    pub fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.each_part(address, len, |at, range| self.file.read_exact_at(&mut bytes[range], at));
        bytes
    }

    pub fn read_u16(&self, address: u64) -> u16 {
        u16::from_le_bytes(self.read(address, 2).try_into().expect("two bytes"))
    }

    /// Everything, region after region.
    pub fn read_all(&self) -> Vec<u8> {
        let mut bytes = vec![0; size(self.regions)];
        self.file.read_exact_at(&mut bytes, 0).expect("memory can be read");
        bytes
    }

    /// Position of a guest address in the file, and in [`Ram::read_all`].
    pub fn file_offset(&self, address: u64) -> Option<u64> {
        let mut before = 0;
        for region in self.regions {
            if (region.start..region.end()).contains(&address) {
                return Some(before + address - region.start);
            }
            before += region.len_bytes;
        }
        None
    }

    fn each_part(
        &self,
        address: u64,
        len: usize,
        mut visit: impl FnMut(u64, std::ops::Range<usize>) -> std::io::Result<()>,
    ) {
        let mut done = 0;
        while done < len {
            let here = address + done as u64;
            let region = self.regions.iter().find(|r| (r.start..r.end()).contains(&here));
            let region = region.unwrap_or_else(|| panic!("{here:#x} is not the guest's"));
            let part = (len - done).min((region.end() - here) as usize);
            let at = self.file_offset(here).expect("it is in a region");
            visit(at, done..done + part).expect("memory can be accessed");
            done += part;
        }
    }
}

fn size(regions: &[RamRegion]) -> usize {
    regions.iter().map(|region| region.len_bytes as usize).sum()
}
