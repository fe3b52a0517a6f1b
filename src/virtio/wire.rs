//! Numbers and layouts of virtio-blk (virtio 1.2, section 5.2), in host terms. Everything on the wire is little
//! endian.

use virtio_bindings::{virtio_blk, virtio_config, virtio_ring};

use crate::geometry::{Geometry, SECTOR_BYTES, SectorSize};

/// Bytes of the header that begins every request: type, reserved, sector.
pub const HEADER_BYTES: u64 = 16;
/// Bytes of one segment of a discard or write-zeroes request.
pub const RANGE_BYTES: u64 = 16;
/// Most segments that one discard request may have, and room for those of a write-zeroes request.
pub const MAX_RANGES: usize = 16;
/// Most segments that one write-zeroes request may have. Linux sends no more.
pub const MAX_WRITE_ZEROES_RANGES: usize = 1;
/// Most sectors that one write-zeroes segment may have: 16 MiB. Zeroes are encrypted and written, and a queue
/// cannot stop before they are.
pub const MAX_WRITE_ZEROES_SECTORS: u32 = (16 << 20) / SECTOR_BYTES as u32;
/// Most sectors that one discard segment may have: 1 GiB.
pub const MAX_DISCARD_SECTORS: u32 = (1 << 30) / SECTOR_BYTES as u32;
/// Most data segments we ask of a driver: fits a ring of 128 with header and status, QEMU's default.
pub const SEG_MAX: u32 = 126;
/// Largest data segment we ask of a driver.
pub const SIZE_MAX: u32 = 1 << 20;
/// Most data of one read or write: what a driver that heeds these limits can send at most.
pub const MAX_DATA_BYTES: u64 = SEG_MAX as u64 * SIZE_MAX as u64;
/// Bytes of the serial number that `VIRTIO_BLK_T_GET_ID` returns.
pub const ID_BYTES: usize = virtio_blk::VIRTIO_BLK_ID_BYTES as usize;

/// The status byte of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = virtio_blk::VIRTIO_BLK_S_OK as u8,
    /// Failed, or refused.
    IoError = virtio_blk::VIRTIO_BLK_S_IOERR as u8,
    /// Of a kind that this device does not know.
    Unsupported = virtio_blk::VIRTIO_BLK_S_UNSUPP as u8,
}

/// Request types that this device answers with more than [`Status::Unsupported`].
pub mod request_type {
    use super::virtio_blk;

    /// Read sectors.
    pub const IN: u32 = virtio_blk::VIRTIO_BLK_T_IN;
    /// Write sectors.
    pub const OUT: u32 = virtio_blk::VIRTIO_BLK_T_OUT;
    /// Make completed writes durable.
    pub const FLUSH: u32 = virtio_blk::VIRTIO_BLK_T_FLUSH;
    /// Read the serial number.
    pub const GET_ID: u32 = virtio_blk::VIRTIO_BLK_T_GET_ID;
    /// Tell that ranges are not needed any more.
    pub const DISCARD: u32 = virtio_blk::VIRTIO_BLK_T_DISCARD;
    /// Make ranges read as zero.
    pub const WRITE_ZEROES: u32 = virtio_blk::VIRTIO_BLK_T_WRITE_ZEROES;
}

/// Flag of a write-zeroes segment that lets the device unmap.
pub const WRITE_ZEROES_UNMAP: u32 = virtio_blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;

/// Feature bits, as masks.
pub mod feature {
    use super::{virtio_blk, virtio_config, virtio_ring};

    /// `VIRTIO_BLK_F_SIZE_MAX`
    pub const SIZE_MAX: u64 = 1 << virtio_blk::VIRTIO_BLK_F_SIZE_MAX;
    /// `VIRTIO_BLK_F_SEG_MAX`
    pub const SEG_MAX: u64 = 1 << virtio_blk::VIRTIO_BLK_F_SEG_MAX;
    /// `VIRTIO_BLK_F_RO`
    pub const RO: u64 = 1 << virtio_blk::VIRTIO_BLK_F_RO;
    /// `VIRTIO_BLK_F_BLK_SIZE`
    pub const BLK_SIZE: u64 = 1 << virtio_blk::VIRTIO_BLK_F_BLK_SIZE;
    /// `VIRTIO_BLK_F_FLUSH`
    pub const FLUSH: u64 = 1 << virtio_blk::VIRTIO_BLK_F_FLUSH;
    /// `VIRTIO_BLK_F_TOPOLOGY`
    pub const TOPOLOGY: u64 = 1 << virtio_blk::VIRTIO_BLK_F_TOPOLOGY;
    /// `VIRTIO_BLK_F_CONFIG_WCE`
    pub const CONFIG_WCE: u64 = 1 << virtio_blk::VIRTIO_BLK_F_CONFIG_WCE;
    /// `VIRTIO_BLK_F_MQ`
    pub const MQ: u64 = 1 << virtio_blk::VIRTIO_BLK_F_MQ;
    /// `VIRTIO_BLK_F_DISCARD`
    pub const DISCARD: u64 = 1 << virtio_blk::VIRTIO_BLK_F_DISCARD;
    /// `VIRTIO_BLK_F_WRITE_ZEROES`
    pub const WRITE_ZEROES: u64 = 1 << virtio_blk::VIRTIO_BLK_F_WRITE_ZEROES;
    /// `VIRTIO_F_INDIRECT_DESC`
    pub const INDIRECT_DESC: u64 = 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
    /// `VIRTIO_F_EVENT_IDX`
    pub const EVENT_IDX: u64 = 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;
    /// `VIRTIO_F_VERSION_1`
    pub const VERSION_1: u64 = 1 << virtio_config::VIRTIO_F_VERSION_1;
}

/// Offset of the writeback byte in the configuration space: the only one that a driver may write.
pub const CONFIG_WRITEBACK_OFFSET: usize = 32;
/// Bytes of the configuration space, up to and with the write-zeroes fields.
pub const CONFIG_BYTES: usize = 60;

/// What the configuration space tells beside the volume's geometry.
#[derive(Clone, Copy, Debug)]
pub struct ConfigFields {
    /// The guest's block size: the encryption sector size, or less.
    pub logical_block: SectorSize,
    /// Number of request queues.
    pub num_queues: u16,
    /// Whether the write cache is on.
    pub writeback: bool,
    /// Whether discard limits are told.
    pub discard: bool,
    /// Whether write-zeroes limits are told.
    pub write_zeroes: bool,
}

/// Lays out `struct virtio_blk_config` (virtio 1.2, section 5.2.4).
pub fn config_space(geometry: &Geometry, fields: ConfigFields) -> [u8; CONFIG_BYTES] {
    let mut config = [0; CONFIG_BYTES];
    let mut put = |offset: usize, bytes: &[u8]| config[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0, &geometry.capacity_sectors().to_le_bytes());
    put(8, &SIZE_MAX.to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    put(20, &fields.logical_block.bytes().to_le_bytes());
    // Topology: one encryption sector is one physical block, aligned at 0 (byte 25), and the smallest request that
    // performs well; the best size is not told.
    let blocks_per_sector = geometry.sector_size.bytes() / fields.logical_block.bytes();
    put(24, &[blocks_per_sector.ilog2() as u8]);
    put(26, &(blocks_per_sector as u16).to_le_bytes());
    put(CONFIG_WRITEBACK_OFFSET, &[u8::from(fields.writeback)]);
    put(34, &fields.num_queues.to_le_bytes());
    let sector_aligned = (geometry.sector_size.units() as u32).to_le_bytes();
    if fields.discard {
        put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
        put(40, &(MAX_RANGES as u32).to_le_bytes());
        put(44, &sector_aligned);
    }
    if fields.write_zeroes {
        put(48, &MAX_WRITE_ZEROES_SECTORS.to_le_bytes());
        put(52, &(MAX_WRITE_ZEROES_RANGES as u32).to_le_bytes());
        // Byte 56, write_zeroes_may_unmap, stays 0: unmapped sectors would not decrypt to zeroes.
    }
    config
}
