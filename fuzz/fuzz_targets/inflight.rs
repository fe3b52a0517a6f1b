//! The content of an in-flight region, as a front end might forge it, before and while a ring goes on from it: whatever it
//! says, the ring starts or is refused, each request is repeated at most once, and none that is not in the ring.
#![no_main]

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use sealblk::guest::{GuestAddress, InflightGeometry, InflightRegion, LocalMemory, inflight};
use sealblk::virtio::{Chain, RingAddresses, RingSetup, Tracking, Virtq};
use sealblk_fuzz::{Ram, RamRegion};

const RAM: &[RamRegion] = &[RamRegion { start: 0, len_bytes: 1 << 16 }];
const ADDRESSES: RingAddresses = RingAddresses {
    descriptors: GuestAddress(0),
    available: GuestAddress(0x8000),
    used: GuestAddress(0xc000),
};

#[derive(Arbitrary, Debug)]
struct Input {
    size_doublings: u8,
    /// What the region is larger by.
    spare_heads: u8,
    /// Bytes of the region, and of the guest's memory.
    region: Vec<u8>,
    available: Vec<u8>,
    used_index: u16,
    descriptors: Vec<u8>,
    /// What is written to the region between two steps.
    forged: Vec<(u16, u8)>,
    steps: u8,
}

fuzz_target!(|input: Input| {
    let size = 1_u16 << (input.size_doublings % 8);
    let ram = Ram::reused(RAM);
    ram.write(ADDRESSES.descriptors.0, &input.descriptors[..input.descriptors.len().min(0x8000)]);
    ram.write(ADDRESSES.available.0, &input.available[..input.available.len().min(0x4000)]);
    ram.write(ADDRESSES.used.0 + 2, &input.used_index.to_le_bytes());

    let geometry = InflightGeometry::of(1, size + u16::from(input.spare_heads)).expect("a small ring");
    let file = inflight::create_file(&geometry).expect("memory for a region");
    let forging = file.try_clone().expect("a descriptor");
    forging
        .write_all_at(&input.region[..input.region.len().min(geometry.len_bytes as usize)], 0)
        .expect("in it");
    let region = Arc::new(InflightRegion::map(file, &geometry).expect("it is our own"));
    let _ = region.remembered();

    let setup = RingSetup { size, addresses: ADDRESSES, next_available: 0, event_idx: false, indirect: true };
    let Ok(mut ring) = Virtq::new(&setup, LocalMemory::new(ram.map())) else { return };
    let region = region.queue(0).expect("it has one queue");
    if ring.track(Tracking { region, recover: true }).is_err() {
        return;
    }
    let mut chain = Chain::new();
    let mut repeated_count = 0;
    let mut forged = input.forged.iter();
    while let Some(head) = ring.pop_repeat(&mut chain) {
        repeated_count += 1;
        assert!(repeated_count <= size, "more heads than the ring has");
        if let Some((offset, byte)) = forged.next() {
            let offset = u64::from(*offset) % geometry.len_bytes;
            forging.write_all_at(&[*byte], offset).expect("in the region");
        }
        ring.complete(head, 0);
    }
    let _notified = ring.publish();
    let answered = answered_last(&ram, size, repeated_count);
    assert_eq!(answered.len(), usize::from(repeated_count), "a head was repeated twice: {answered:?}");
    assert!(
        answered.iter().all(|head| *head < u32::from(size)),
        "a head that the ring has not: {answered:?}"
    );
    for _ in 0..input.steps {
        let Ok(Some(head)) = ring.pop(&mut chain) else { break };
        ring.complete(head, 0);
        let _notified = ring.publish();
    }
    assert_eq!(ring.in_flight_count(), 0);
});

/// The heads of the last `count` elements of the used ring.
fn answered_last(ram: &Ram, size: u16, count: u16) -> BTreeSet<u32> {
    let end = ram.read_u16(ADDRESSES.used.0 + 2);
    let element = |back: u16| {
        let slot = end.wrapping_sub(back) % size;
        let id = ram.read(ADDRESSES.used.0 + 4 + 8 * u64::from(slot), 4);
        u32::from_le_bytes(id.try_into().expect("four bytes"))
    };
    (1..=count).map(element).collect()
}
