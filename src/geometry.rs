//! Units and shape of a volume: sectors, offsets and sizes that every floor agrees on.

/// Bytes in one virtio sector, the unit of every sector number in the virtio-blk protocol and in
/// dm-crypt's tables, whatever the encryption sector size is.
pub const SECTOR_BYTES: u64 = 512;

/// A position on the guest's disk in units of 512 bytes, counted from the start of the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SectorNumber(pub u64);

impl SectorNumber {
    /// The sector that holds byte `offset_bytes` of the payload.
    pub fn containing(offset_bytes: u64) -> Self {
        Self(offset_bytes / SECTOR_BYTES)
    }
}

/// Size of one encryption sector (the XTS data unit): 512, 1024, 2048 or 4096 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectorSize(u32);

impl SectorSize {
    /// 512 bytes, dm-crypt's default.
    pub const BYTES_512: Self = Self(512);
    /// 4096 bytes, the largest that dm-crypt knows.
    pub const BYTES_4096: Self = Self(4096);

    /// Accepts the four sizes that dm-crypt accepts.
    pub fn new(bytes: u32) -> Option<Self> {
        matches!(bytes, 512 | 1024 | 2048 | 4096).then_some(Self(bytes))
    }

    /// The size in bytes.
    pub fn bytes(self) -> u32 {
        self.0
    }

    /// The bits of an offset that lie inside a sector.
    pub fn mask(self) -> u64 {
        u64::from(self.0) - 1
    }

    /// How many 512-byte units one encryption sector spans: 1, 2, 4 or 8.
    pub fn units(self) -> u64 {
        u64::from(self.0) / SECTOR_BYTES
    }
}

/// Where the payload lies on the backing volume and how it is cut into sectors. Fixed at start-up, but for the capacity,
/// which may grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The encryption sector size; the guest's block size too, unless it is shown smaller blocks.
    pub sector_size: SectorSize,
    /// First byte of the payload on the backing volume.
    pub payload_offset_bytes: u64,
    /// Length of the payload, a multiple of the sector size: the size of the guest's disk.
    pub capacity_bytes: u64,
}

impl Geometry {
    /// The disk's size as virtio counts it.
    pub fn capacity_sectors(&self) -> u64 {
        self.capacity_bytes / SECTOR_BYTES
    }
}
