//! The guest's RAM: regions backed by memfds, shared with the served disk.
//!
//! Addresses are guest-physical. The default layout has everything that a translation can get wrong: nothing at
//! address 0, two regions that touch without sharing a file, a hole, and a region above it.
//!
//! ```text
//! 1 MiB      2 MiB      3 MiB                 64 MiB
//! | rings    | near     | hole ...            | data ...
//! ```

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::rc::Rc;
use std::sync::atomic::Ordering;

use rustix::fs::MemfdFlags;
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

pub const MIB: u64 = 1 << 20;
/// Where rings, descriptor tables and small buffers live.
pub const RINGS_BASE: u64 = MIB;
/// The region right behind it, in a file of its own.
pub const NEAR_BASE: u64 = 2 * MIB;
/// First address behind `NEAR_BASE`'s region that no region holds.
pub const HOLE_BASE: u64 = 3 * MIB;
/// The region above the hole.
pub const DATA_BASE: u64 = 64 * MIB;
/// What memory holds that nobody has written yet.
pub const POISON: u8 = 0xa5;

/// The front end's own address of guest-physical 0: ring addresses travel as such.
const USER_BASE: u64 = 0x7f12_0000_0000;
/// Every region begins this far into its file, so that an ignored mmap offset shows.
const FILE_OFFSET_BYTES: u64 = 0x3000;

/// One contiguous piece of guest RAM and the file behind it.
#[derive(Clone)]
pub struct Region {
    pub base: u64,
    pub len: u64,
    map: Rc<MmapRegion>,
    shadow: Rc<RefCell<Option<Vec<u8>>>>,
}

impl Region {
    /// Makes a region full of [`POISON`].
    pub fn new(base: u64, len: u64) -> Self {
        let fd = rustix::fs::memfd_create("guest-ram", MemfdFlags::CLOEXEC).expect("memfd");
        let file = File::from(fd);
        file.set_len(FILE_OFFSET_BYTES + len).expect("size the memfd");
        let map = MmapRegion::from_file(FileOffset::new(file, FILE_OFFSET_BYTES), len as usize).expect("map");
        let region = Self { base, len, map: Rc::new(map), shadow: Rc::default() };
        let poison = vec![POISON; len as usize];
        region.map.as_volatile_slice().write_slice(&poison, 0).expect("the slice is the region");
        region
    }

    /// The region as vhost-user messages describe it.
    pub fn info(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: self.base,
            memory_size: self.len,
            userspace_addr: user_address(self.base),
            mmap_offset: FILE_OFFSET_BYTES,
            mmap_handle: self.fd().as_raw_fd(),
        }
    }

    /// The file behind the region.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.map.file_offset().expect("regions have files").file().as_fd()
    }

    fn range(&self) -> Range<u64> {
        self.base..self.base + self.len
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len as usize];
        self.map.as_volatile_slice().read_slice(&mut bytes, 0).expect("the slice is the region");
        bytes
    }
}

/// The address by which the front end itself would reach guest-physical `address`.
pub fn user_address(address: u64) -> u64 {
    USER_BASE + address
}

/// All RAM of one guest, and a bump allocator over it.
pub struct GuestRam {
    regions: RefCell<Vec<Region>>,
    next_small: Cell<u64>,
    next_data: Cell<u64>,
}

impl GuestRam {
    /// The default layout with `data_bytes` above the hole.
    pub fn new(data_bytes: u64) -> Rc<Self> {
        let regions = vec![
            Region::new(RINGS_BASE, NEAR_BASE - RINGS_BASE),
            Region::new(NEAR_BASE, HOLE_BASE - NEAR_BASE),
            Region::new(DATA_BASE, data_bytes),
        ];
        Rc::new(Self {
            regions: RefCell::new(regions),
            next_small: Cell::new(RINGS_BASE),
            next_data: Cell::new(DATA_BASE),
        })
    }

    /// The regions as messages describe them.
    pub fn infos(&self) -> Vec<VhostUserMemoryRegionInfo> {
        self.regions.borrow().iter().map(Region::info).collect()
    }

    /// The region that holds `address`.
    pub fn region(&self, address: u64) -> Region {
        self.regions.borrow().iter().find(|r| r.range().contains(&address)).expect("address in RAM").clone()
    }

    /// Puts another region into the guest; the back end still has to be told.
    pub fn plug(&self, region: Region) {
        self.regions.borrow_mut().push(region);
    }

    /// Takes the region at `base` out of the guest.
    pub fn unplug(&self, base: u64) -> Region {
        let mut regions = self.regions.borrow_mut();
        let index = regions.iter().position(|r| r.base == base).expect("region exists");
        regions.remove(index)
    }

    /// Memory beside the rings, with unallocated poison around it.
    pub fn alloc(&self, len: u64, align: u64) -> u64 {
        if len > 16 << 10 {
            return Self::bump(&self.next_data, self.region(DATA_BASE).range().end, len, align);
        }
        Self::bump(&self.next_small, NEAR_BASE, len, align)
    }

    fn bump(next: &Cell<u64>, end: u64, len: u64, align: u64) -> u64 {
        let at = (next.get() + 48).next_multiple_of(align);
        assert!(at + len + 48 <= end, "guest RAM exhausted: this test needs a larger guest");
        next.set(at + len);
        at
    }

    /// Remembers how much is allocated, for [`Self::release`].
    pub fn mark(&self) -> (u64, u64) {
        (self.next_small.get(), self.next_data.get())
    }

    /// Frees everything allocated since `mark`.
    pub fn release(&self, mark: (u64, u64)) {
        self.next_small.set(mark.0);
        self.next_data.set(mark.1);
    }

    /// Copies guest memory out; the range may span touching regions.
    pub fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.each_piece(address, len, |region, offset, piece| {
            let slice = region.map.as_volatile_slice();
            slice.read_slice(&mut bytes[piece], offset).expect("piece inside its region");
        });
        bytes
    }

    /// Writes guest memory as the guest would.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.each_piece(address, bytes.len(), |region, offset, piece| {
            let source = &bytes[piece];
            region.map.as_volatile_slice().write_slice(source, offset).expect("piece inside its region");
            if let Some(shadow) = region.shadow.borrow_mut().as_mut() {
                shadow[offset..offset + source.len()].copy_from_slice(source);
            }
        });
    }

    fn each_piece(&self, address: u64, len: usize, mut visit: impl FnMut(&Region, usize, Range<usize>)) {
        let mut done = 0;
        while done < len {
            let at = address + done as u64;
            let region = self.region(at);
            let piece = ((region.range().end - at) as usize).min(len - done);
            visit(&region, (at - region.base) as usize, done..done + piece);
            done += piece;
        }
    }

    /// Loads one little-endian index that the device may be storing.
    pub fn load_u16(&self, address: u64) -> u16 {
        let region = self.region(address);
        let value: u16 = region
            .map
            .as_volatile_slice()
            .load((address - region.base) as usize, Ordering::SeqCst)
            .expect("aligned and inside its region");
        u16::from_le(value)
    }

    /// Stores one little-endian index that the device may be loading.
    pub fn store_u16(&self, address: u64, value: u16) {
        let region = self.region(address);
        let offset = (address - region.base) as usize;
        let slice = region.map.as_volatile_slice();
        slice.store(value.to_le(), offset, Ordering::SeqCst).expect("aligned and inside its region");
        if let Some(shadow) = region.shadow.borrow_mut().as_mut() {
            shadow[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
        }
    }

    /// From here on, tells what the device writes from what the guest writes.
    pub fn watch(&self) {
        for region in self.regions.borrow().iter() {
            *region.shadow.borrow_mut() = Some(region.bytes());
        }
    }

    /// Every byte that differs from what the guest left there since [`Self::watch`], outside `granted`.
    pub fn device_writes_outside(&self, granted: &[Range<u64>]) -> Vec<u64> {
        let mut stray = Vec::new();
        for region in self.regions.borrow().iter() {
            let shadow = region.shadow.borrow();
            let expected = shadow.as_ref().expect("watch() came first");
            let now = region.bytes();
            let pages = (region.base..).step_by(4096).zip(now.chunks(4096).zip(expected.chunks(4096)));
            for (base, (now, before)) in pages.filter(|(_, (now, before))| now != before) {
                let changed = (base..).zip(now.iter().zip(before)).filter(|(_, (now, before))| now != before);
                stray.extend(
                    changed.map(|(at, _)| at).filter(|at| !granted.iter().any(|range| range.contains(at))),
                );
            }
        }
        stray
    }
}
