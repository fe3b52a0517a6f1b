//! LUKS headers, as whoever controls the storage might write them: valid ones, edited in their structure and made
//! consistent again, or damaged. Whatever is approved is in bounds and within the limits; nothing crashes, and trying
//! a passphrase costs no more than the limits say.
#![no_main]

mod header;

use std::fs::File;
use std::os::unix::fs::FileExt;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};
use sealblk::cipher::EqualHalves;
use sealblk::format::luks::{
    Approved, Description, Expectations, Header, Kdf, KdfLimits, LuksError, Placement, Policy,
};
use sealblk::keys::Secret;

use header::{Luks1Edit, Luks2Edits};

/// Low enough that each input is quick.
const LIMITS: KdfLimits = KdfLimits { memory_mib: 1, work_gib: 1, threads: 2, iterations: 20_000 };
/// What Argon2 may go through in one input, in KiB; the limit itself would take a second.
const WORK_KIB_TRIED: u64 = 4096;

#[derive(Arbitrary, Debug)]
struct Input {
    start: Start,
    /// Bytes that are changed after checksums were made.
    damage: Vec<(u16, u8)>,
    volume_kib: u16,
    detached: bool,
    slot: Option<u8>,
}

#[derive(Arbitrary, Debug)]
enum Start {
    Luks1(Vec<Luks1Edit>),
    Luks2(Luks2Edits),
}

fuzz_target!(|input: Input| {
    let mut bytes = match &input.start {
        Start::Luks1(edits) => header::luks1(edits),
        Start::Luks2(edits) => header::luks2(edits),
    };
    for (offset, byte) in input.damage.iter().take(8) {
        if let Some(damaged) = bytes.get_mut(usize::from(*offset)) {
            *damaged ^= byte;
        }
    }
    let volume_bytes = u64::from(input.volume_kib) << 10;
    let volume = File::from(memfd_create("volume", MemfdFlags::CLOEXEC).expect("memory for a volume"));
    let kept = bytes.len().min(volume_bytes as usize);
    volume.write_all_at(&bytes[..kept], 0).expect("memory can be written");
    volume.set_len(volume_bytes).expect("memory can be sized");

    let Ok(header) = Header::read(&volume, volume_bytes) else { return };
    // The storage changes its mind; the copy does not.
    volume.set_len(0).expect("memory can be sized");
    let placement = Placement { volume_bytes, detached: input.detached };
    let policy = Policy { kdf: LIMITS, expect: Expectations::default(), slot: input.slot.map(u32::from) };
    match policy.verdict(header.description(), placement) {
        Err(refusals) => {
            assert!(!refusals.0.is_empty(), "refused without a reason");
            assert!(!refusals.to_string().is_empty());
        }
        Ok(approved) => {
            check(header.description(), &approved, placement, policy.slot);
            if work_kib(header.description(), policy.slot) <= WORK_KIB_TRIED {
                try_passphrase(&header, &policy, placement);
            }
        }
    }
});

/// What must be true of everything that is served.
fn check(header: &Description, approved: &Approved, placement: Placement, slot: Option<u32>) {
    let geometry = approved.geometry;
    let end_bytes = geometry.payload_offset_bytes + geometry.capacity_bytes;
    assert!(end_bytes <= placement.volume_bytes && geometry.capacity_bytes > 0, "{geometry:?}");
    assert!(placement.detached || geometry.payload_offset_bytes >= header.header_bytes, "{geometry:?}");
    assert!(geometry.capacity_bytes.is_multiple_of(geometry.sector_size.bytes().into()), "{geometry:?}");
    assert!(approved.iv.offset_sectors.is_multiple_of(geometry.sector_size.units()), "{:?}", approved.iv);
    assert!(matches!(approved.key_bytes, 32 | 64));
    let [segment] = &header.segments[..] else { panic!("{} segments", header.segments.len()) };
    assert!(matches!(segment.cipher.as_deref(), Some("aes-xts-plain64" | "aes-xts-plain")));
    assert!(segment.integrity.is_none() && segment.flags.is_empty() && header.requirements.is_empty());
    let mut iterations = 0;
    for tried in header.slots_tried(slot) {
        assert!(tried.cipher.as_deref().is_some_and(|cipher| cipher.starts_with("aes-")), "{tried:?}");
        match tried.kdf.as_ref().expect("a KDF") {
            Kdf::Pbkdf2 { iterations: more, .. } => iterations += u64::from(*more),
            Kdf::Argon2i(costs) | Kdf::Argon2id(costs) => {
                assert!(costs.memory_kib <= 1024 && costs.threads <= 2, "{costs:?}");
            }
            Kdf::Other { name } => panic!("unknown KDF {name}"),
        }
    }
    assert!(iterations <= u64::from(LIMITS.iterations), "{iterations} iterations");
    assert!(work_kib(header, slot) <= u64::from(LIMITS.work_gib) << 20);
}

fn work_kib(header: &Description, slot: Option<u32>) -> u64 {
    let costs = header.slots_tried(slot).filter_map(|slot| slot.kdf.as_ref().and_then(Kdf::argon2));
    costs.map(|costs| u64::from(costs.passes) * u64::from(costs.memory_kib)).sum()
}

/// No slot holds a key, so that none must open.
fn try_passphrase(header: &Header, policy: &Policy, placement: Placement) {
    let passphrase = Secret::read_from(&b"a passphrase"[..]).expect("locked memory");
    let opened = header.unlock(policy, placement, &passphrase, EqualHalves::Refuse);
    match opened.map(|_| ()) {
        Err(LuksError::WrongKey(_) | LuksError::Unlock(_)) => {}
        other => panic!("there is no key: {other:?}, {:#?}", header.description()),
    }
}
