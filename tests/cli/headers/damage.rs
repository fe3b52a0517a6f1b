//! Headers that time and accidents have changed.

use sealblk::cipher::EqualHalves;
use sealblk::format::luks::{Header, Placement, Policy};
use sealblk::geometry::{Geometry, SectorSize};
use sealblk::keys::Secret;

use super::image::{
    COPY_BYTES, PASSPHRASE, luks1, luks2, metadata, put_metadata, seal, unlock, unlock_volume, volume_of,
};

const PAYLOAD_OFFSET: usize = 2 << 20;

/// Numbers that look random and are the same in every run (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % below as u64) as usize
    }
}

fn assert_refused(image: &[u8], what: &str) -> String {
    match unlock(image) {
        Ok(found) => panic!("{what}: served as {found:?}"),
        Err(error) => error.to_string(),
    }
}

/// Whatever is served lies on the volume, behind the header, in sectors that there are.
fn assert_in_bounds(image: &[u8], geometry: Geometry, header_bytes: u64) {
    assert!(geometry.payload_offset_bytes >= header_bytes, "{geometry:?}");
    assert!(geometry.payload_offset_bytes + geometry.capacity_bytes <= image.len() as u64, "{geometry:?}");
    assert!(geometry.capacity_bytes.is_multiple_of(geometry.sector_size.bytes().into()), "{geometry:?}");
}

#[test]
fn a_volume_cut_off_at_any_sector_is_refused_until_there_is_payload() {
    for (image, sector_bytes) in [(luks1(), 512), (luks2(), 4096)] {
        let volume = volume_of(&image);
        for end in (0..=PAYLOAD_OFFSET as u64).rev().step_by(512) {
            volume.set_len(end).unwrap();
            let message = unlock_volume(Policy::default(), &volume, end).unwrap_err().to_string();
            let expected =
                ["empty", "no LUKS header", "not valid", "the volume or header file ends", "payload"];
            assert!(expected.iter().any(|part| message.contains(part)), "at {end}: {message}");
        }
        let whole = &image[..PAYLOAD_OFFSET + sector_bytes];
        assert_eq!(unlock(whole).unwrap().0.capacity_bytes, sector_bytes as u64);
        if sector_bytes > 512 {
            let message = assert_refused(&whole[..whole.len() - 512], "part of a sector");
            assert!(message.contains("not a multiple of the sector size"), "{message}");
        }
    }
}

/// The fields of a LUKS1 header by offset and length, and of a slot (LUKS1 On-Disk Format, figures 1 and 3).
const LUKS1_FIELDS: [(usize, usize); 11] = [
    (0, 6),
    (6, 2),
    (8, 32),
    (40, 32),
    (72, 32),
    (104, 4),
    (108, 4),
    (112, 20),
    (132, 32),
    (164, 4),
    (168, 40),
];
const LUKS1_SLOT_FIELDS: [(usize, usize); 5] = [(0, 4), (4, 4), (8, 32), (40, 4), (44, 4)];

#[test]
fn flipped_bits_in_any_field_of_luks1_do_no_harm() {
    let good = luks1();
    let slots = (0..8).flat_map(|slot| LUKS1_SLOT_FIELDS.map(|(at, len)| (208 + slot * 48 + at, len)));
    let mut numbers = Numbers(1);
    let mut served = 0;
    for (at, len) in LUKS1_FIELDS.into_iter().chain(slots) {
        for _ in 0..12 {
            let mut image = good.clone();
            for _ in 0..1 + numbers.next(3) {
                image[at + numbers.next(len)] ^= 1 << numbers.next(8);
            }
            // Costs of PBKDF2 that are allowed but take seconds are not what is looked for.
            if (at == 164 || (at >= 208 && (at - 208) % 48 == 4)) && image[at..at + 2] != [0, 0] {
                continue;
            }
            match unlock(&image) {
                Ok((geometry, _)) => {
                    served += 1;
                    assert_in_bounds(&image, geometry, 2_068_480);
                }
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
    }
    assert!(served > 0, "flips in the UUID and in unused slots are harmless");
}

/// The fields of the binary part of a LUKS2 header (LUKS2 specification, figure 2).
const LUKS2_FIELDS: [(usize, usize); 12] = [
    (0, 6),
    (6, 2),
    (8, 8),
    (16, 8),
    (24, 48),
    (72, 32),
    (104, 64),
    (168, 40),
    (208, 48),
    (256, 8),
    (264, 184),
    (448, 64),
];

#[test]
fn flipped_bits_in_one_copy_of_luks2_leave_the_other() {
    let good = luks2();
    let expected = unlock(&good).unwrap();
    let mut numbers = Numbers(2);
    let json = (4096, metadata(&good).to_string().len());
    for copy in 0..2 {
        for (at, len) in LUKS2_FIELDS.into_iter().chain([json]) {
            for _ in 0..3 {
                let mut image = good.clone();
                image[copy * COPY_BYTES + at + numbers.next(len)] ^= 1 << numbers.next(8);
                assert_eq!(unlock(&image).unwrap(), expected, "copy {copy}, field at {at}");
            }
        }
    }
}

#[test]
fn flipped_bits_in_both_copies_of_luks2_are_refused() {
    let good = luks2();
    let mut numbers = Numbers(3);
    for (at, len) in LUKS2_FIELDS.into_iter().chain([(4096, 12288)]) {
        for _ in 0..6 {
            let mut image = good.clone();
            let (byte, bit) = (at + numbers.next(len), numbers.next(8));
            // Of the checksum's field only the first 32 bytes are in use.
            if (480..512).contains(&byte) {
                continue;
            }
            for copy in 0..2 {
                image[copy * COPY_BYTES + byte] ^= 1 << bit;
            }
            assert_refused(&image, &format!("bit {bit} of byte {byte} in both copies"));
        }
    }
}

#[test]
fn flipped_bits_under_a_right_checksum_do_no_harm() {
    let good = luks2();
    let mut numbers = Numbers(4);
    for (at, len) in LUKS2_FIELDS.into_iter().chain([(4096, 1200)]) {
        for _ in 0..12 {
            let mut image = good.clone();
            let (byte, bit) = (at + numbers.next(len), numbers.next(8));
            for copy in 0..2 {
                image[copy * COPY_BYTES + byte] ^= 1 << bit;
                seal(&mut image, copy, COPY_BYTES);
            }
            if let Ok((geometry, _)) = unlock(&image) {
                assert_in_bounds(&image, geometry, 2 * COPY_BYTES as u64);
            }
        }
    }
}

/// Storage that answers otherwise once the header was read gains nothing.
#[test]
fn a_header_is_read_once() {
    for image in [luks1(), luks2()] {
        let volume = volume_of(&image);
        let header = Header::read(&volume, image.len() as u64).unwrap();
        volume.set_len(0).unwrap();
        let placement = Placement { volume_bytes: image.len() as u64, detached: false };
        let passphrase = Secret::read_from(PASSPHRASE).unwrap();
        let policy = Policy::default();
        let (key, _) = header.unlock(&policy, placement, &passphrase, EqualHalves::Refuse).unwrap();
        assert_eq!(key.key_bits(), 512);
    }
}

#[test]
fn the_newer_copy_counts_whichever_it_is() {
    for newer in 0..2 {
        let mut image = luks2();
        let mut json = metadata(&image);
        json["segments"]["0"]["size"] = "8192".into();
        let older = image.clone();
        put_metadata(&mut image, json.to_string().as_bytes());
        let other = 1 - newer;
        image[other * COPY_BYTES..][..COPY_BYTES].copy_from_slice(&older[other * COPY_BYTES..][..COPY_BYTES]);
        image[newer * COPY_BYTES + 16..][..8].copy_from_slice(&1000_u64.to_be_bytes());
        seal(&mut image, newer, COPY_BYTES);
        assert_eq!(unlock(&image).unwrap().0.capacity_bytes, 8192, "copy {newer} is newer");
        // Damage to the newer one brings the older one back: cryptsetup would do the same.
        image[newer * COPY_BYTES + 300] ^= 1;
        assert_eq!(unlock(&image).unwrap().0.capacity_bytes, 14 << 20);
    }
}

#[test]
fn key_material_that_changed_opens_nothing() {
    for (mut image, at) in [(luks1(), 4096), (luks2(), 2 * COPY_BYTES)] {
        image[at + 100_000] ^= 1;
        assert!(assert_refused(&image, "other key material").contains("opens no key slot"));
    }
}

#[test]
fn what_is_something_else_is_said_to_be() {
    let sector = |start: &[u8]| [start, &[0x55; 8192]].concat();
    for (image, part) in [
        (sector(b"QFI\xfb"), "qcow2"),
        (vec![0; 1 << 20], "blank"),
        (sector(b"LUKS\xba\xbe\x00\x03"), "unknown version"),
        (sector(b""), "no LUKS header"),
    ] {
        let message = assert_refused(&image, part);
        assert!(message.contains("no LUKS header") && message.contains(part), "{message}");
    }
}

#[test]
fn sector_sizes_are_as_the_header_says() {
    let image = super::image::luks2_with(|json| json["segments"]["0"]["sector_size"] = 512.into());
    assert_eq!(unlock(&image).unwrap().0.sector_size, SectorSize::BYTES_512);
}
