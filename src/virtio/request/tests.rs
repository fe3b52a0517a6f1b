//! What a chain means does not depend on where the driver cut it.

use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::Bytes;

use super::*;
use crate::geometry::SectorSize;
use crate::guest::Cursor;
use crate::virtio::virtq::tests::{DATA, Driver};

const CAPACITY_SECTORS: u64 = 1024;

fn disk(sector_bytes: u32) -> DiskView {
    let sector_size = SectorSize::new(sector_bytes).unwrap();
    let geometry =
        Geometry { sector_size, payload_offset_bytes: 0, capacity_bytes: CAPACITY_SECTORS * SECTOR_BYTES };
    DiskView { geometry, logical_block: sector_size, read_only: false, discard: true }
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

/// Lays `readable` and `writable_bytes` bytes out in guest memory, cut into descriptors at the given places.
fn chain(driver: &Driver, readable: &[u8], writable_bytes: usize, cuts: &[usize]) -> Chain {
    driver.memory.write_slice(readable, vm_memory::GuestAddress(DATA)).unwrap();
    let mut descriptors = Vec::new();
    for (start, len, writable) in [(0, readable.len(), false), (readable.len(), writable_bytes, true)] {
        let mut at = 0;
        let ends = cuts.iter().map(|cut| cut % (len + 1)).collect::<std::collections::BTreeSet<_>>();
        for end in ends.into_iter().chain([len]) {
            let address = GuestAddress(DATA + (start + at) as u64);
            descriptors.push(Descriptor { address, len_bytes: (end - at) as u32, writable });
            at = end;
        }
    }
    Chain::from_descriptors(descriptors)
}

/// The request, or the status it is refused with; `None` when there is no place for a status.
fn parsed(
    driver: &Driver,
    chain: &Chain,
    disk: &DiskView,
) -> Result<(RequestKind, u64, Vec<u8>), Option<Status>> {
    let memory = LocalMemory::new(Arc::clone(&driver.device_memory));
    let data = GuestBuffer::new(memory.clone());
    match parse(Head::for_tests(), chain, data, &memory, disk) {
        Parsed::Request(request) => {
            request.head.forget_in_tests();
            let mut bytes = vec![0; request.data.len_bytes() as usize];
            request.data.copy_in(&mut Cursor::default(), &mut bytes);
            Ok((request.kind, request.status.0.0, bytes))
        }
        Parsed::Refused(refusal) => {
            refusal.head.forget_in_tests();
            Err(refusal.answer.map(|(_, status)| status))
        }
    }
}

proptest! {
    #[test]
    fn framing_means_nothing(
        cuts in prop::collection::vec(0_usize..3000, 0..12),
        sector in 0_u64..CAPACITY_SECTORS - 4,
        sector_count in 0_usize..4,
    ) {
        let driver = Driver::new(8);
        let (disk, len) = (disk(512), 512 * sector_count);
        let range = SectorRange { offset_bytes: sector * 512, len_bytes: len as u64 };
        let data: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();

        let write = [header(1, sector), data.clone()].concat();
        let (kind, status, bytes) = parsed(&driver, &chain(&driver, &write, 1, &cuts), &disk).unwrap();
        prop_assert_eq!((kind, bytes), (RequestKind::Write(range), data));
        prop_assert_eq!(status, DATA + write.len() as u64);

        let (kind, status, bytes) =
            parsed(&driver, &chain(&driver, &header(0, sector), len + 1, &cuts), &disk).unwrap();
        prop_assert_eq!((kind, bytes.len()), (RequestKind::Read(range), len));
        prop_assert_eq!(status, DATA + 16 + len as u64);
    }
}

#[test]
fn what_is_not_whole_sectors_inside_the_disk_is_refused() {
    let driver = Driver::new(8);
    for (sector_bytes, sector, len, accepted) in [
        (512, 0, 512, true),
        (512, 1023, 512, true),
        (512, 1024, 0, true),
        (512, 1024, 512, false),
        (512, 1023, 1024, false),
        (512, 0, 511, false),
        (512, u64::MAX, 512, false),
        (512, u64::MAX / 512, 512, false),
        (512, u64::MAX, 0, false),
        (4096, 0, 4096, true),
        (4096, 8, 8192, true),
        (4096, 4, 4096, false),
        (4096, 0, 2048, false),
    ] {
        let chain = chain(&driver, &header(0, sector), len + 1, &[]);
        let answer = parsed(&driver, &chain, &disk(sector_bytes));
        let expected = if accepted { None } else { Some(Err(Some(Status::IoError))) };
        assert_eq!(answer.is_ok(), accepted, "{sector_bytes} {sector} {len}");
        assert!(expected.is_none_or(|expected| answer == expected));
    }
}

/// Sector numbers where something could go wrong, and any others.
fn sector() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..CAPACITY_SECTORS + 16,
        Just(u64::MAX / 512),
        (0_u64..64).prop_map(|i| u64::MAX - i),
        any::<u64>()
    ]
}

proptest! {
    /// Ranges against numbers that do not overflow, and against sectors counted one by one.
    #[test]
    fn ranges_are_those_of_wide_numbers(
        sector in sector(),
        len_bytes in prop_oneof![0_u64..1 << 20, any::<u64>()],
        sizes in (0_u32..4).prop_flat_map(|large| (Just(512 << large), (0..=large).prop_map(|small| 512 << small))),
        cut_bytes in 0_u64..8192,
    ) {
        let (sector_bytes, block_bytes): (u32, u32) = sizes;
        let mut disk = disk(sector_bytes);
        disk.logical_block = SectorSize::new(block_bytes).unwrap();
        disk.geometry.capacity_bytes -= cut_bytes / u64::from(sector_bytes) * u64::from(sector_bytes);
        let (wide_offset, wide_len) = (u128::from(sector) * 512, u128::from(len_bytes));
        let inside = wide_offset + wide_len <= u128::from(disk.geometry.capacity_bytes);
        let whole = (wide_offset | wide_len) % u128::from(block_bytes) == 0;
        let checked = checked_range(sector, len_bytes, &disk);
        prop_assert_eq!(checked.is_ok(), inside && whole);
        let Ok(range) = checked else { return Ok(()) };
        prop_assert_eq!((u128::from(range.offset_bytes), u128::from(range.len_bytes)), (wide_offset, wide_len));

        let sector_size = disk.geometry.sector_size;
        let each = u64::from(sector_bytes);
        let (start, end) = (range.offset_bytes, range.offset_bytes + range.len_bytes);
        let covered = |first: u64| start <= first * each && (first + 1) * each <= end;
        let touched = |first: u64| first * each < end && start < (first + 1) * each;
        let sectors_of = |range: SectorRange| range.offset_bytes / each..(range.offset_bytes + range.len_bytes) / each;
        let all = 0..disk.geometry.capacity_bytes / each;
        let narrowed = range.narrowed(sector_size);
        prop_assert!(narrowed.is_whole(sector_size) && range.widened(sector_size).is_whole(sector_size));
        prop_assert!(all.clone().filter(|first| covered(*first)).eq(sectors_of(narrowed)));
        if range.len_bytes > 0 {
            prop_assert!(all.filter(|first| touched(*first)).eq(sectors_of(range.widened(sector_size))));
        }
        prop_assert_eq!(range.is_whole(sector_size), range == narrowed || (range.len_bytes == 0 && start % each == 0));
    }
}

#[test]
fn the_wrong_direction_is_refused() {
    let driver = Driver::new(8);
    let read_with_readable_data = [header(0, 0), vec![0; 512]].concat();
    let write_with_writable_data = header(1, 0);
    let mut read_only = disk(512);
    read_only.read_only = true;
    let write = [header(1, 0), vec![0; 512]].concat();
    for (readable, writable_bytes, disk) in [
        (&read_with_readable_data, 1, disk(512)),
        (&write_with_writable_data, 513, disk(512)),
        (&write, 1, read_only),
    ] {
        let chain = chain(&driver, readable, writable_bytes, &[]);
        assert_eq!(parsed(&driver, &chain, &disk), Err(Some(Status::IoError)));
    }
}

#[test]
fn a_chain_without_a_status_byte_has_no_answer() {
    let driver = Driver::new(8);
    for (readable, writable_bytes) in [(16, 0), (0, 0), (600, 0)] {
        let chain = chain(&driver, &vec![0; readable], writable_bytes, &[]);
        assert_eq!(parsed(&driver, &chain, &disk(512)), Err(None));
    }
    let outside = Descriptor { address: GuestAddress(u64::MAX - 3), len_bytes: 8, writable: true };
    assert_eq!(parsed(&driver, &Chain::from_descriptors(vec![outside]), &disk(512)), Err(None));
    // Fifteen bytes are no header, but there is a place to say so.
    assert_eq!(parsed(&driver, &chain(&driver, &[0; 15], 1, &[]), &disk(512)), Err(Some(Status::IoError)));
}

#[test]
fn unknown_types_are_unsupported() {
    let driver = Driver::new(8);
    let mut no_discard = disk(512);
    no_discard.discard = false;
    for (kind, disk) in [(2, disk(512)), (14, disk(512)), (0x8000_0000, disk(512)), (11, no_discard)] {
        let chain = chain(&driver, &[header(kind, 0), vec![0; 16]].concat(), 1, &[]);
        assert_eq!(parsed(&driver, &chain, &disk), Err(Some(Status::Unsupported)), "{kind}");
    }
}
