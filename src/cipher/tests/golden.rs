//! Volumes that the Linux kernel's dm-crypt has written (`tests/data/golden`).

use std::io::Read;
use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::*;

fn golden_file(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn unhex(digits: &Value) -> Vec<u8> {
    let digits = digits.as_str().unwrap();
    (0..digits.len()).step_by(2).map(|i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap()).collect()
}

fn number(value: &Value) -> usize {
    value.as_u64().unwrap().try_into().unwrap()
}

/// What lies at `offset_bytes` of the decrypted volume, by the manifest's rule.
fn plaintext(offset_bytes: usize, len_bytes: usize) -> Vec<u8> {
    let piece = |i: usize| Sha256::new().chain_update(b"rv-golden-v1").chain_update((i as u64).to_le_bytes());
    (offset_bytes / 32..(offset_bytes + len_bytes) / 32).flat_map(|i| piece(i).finalize()).collect()
}

fn check(name: &str, sector_size: SectorSize) {
    let manifest: Value = serde_json::from_slice(&golden_file("manifest.json")).unwrap();
    let images = manifest["images"].as_array().unwrap();
    let image = images.iter().find(|image| image["name"] == name).unwrap();
    assert_eq!(number(&image["block_size"]), sector_size.bytes() as usize);
    let xts = cipher(&unhex(&image["key_hex"]), sector_size, plain64(0));

    let mut volume = Vec::new();
    let compressed = golden_file(image["file"].as_str().unwrap());
    flate2::read::GzDecoder::new(&compressed[..]).read_to_end(&mut volume).unwrap();
    assert_eq!(Sha256::digest(&volume)[..], unhex(&image["image_sha256"]));

    let mut all = Sha256::new();
    for extent in image["extents"].as_array().unwrap() {
        let (offset_bytes, len_bytes) = (number(&extent[0]), number(&extent[1]));
        let ciphertext = &volume[offset_bytes..offset_bytes + len_bytes];
        let first = SectorNumber::containing(offset_bytes as u64);
        let mut data = ciphertext.to_vec();
        xts.decrypt_in_place(first, &mut data);
        assert!(data == plaintext(offset_bytes, len_bytes), "extent at {offset_bytes} reads as documented");
        all.update(&data);
        xts.encrypt_in_place(first, &mut data);
        assert!(data == ciphertext, "extent at {offset_bytes} is written as dm-crypt wrote it");
    }
    assert_eq!(all.finalize()[..], unhex(&image["extents_sha256"]));
}

#[test]
fn dm_crypt_volume_with_512_byte_sectors() {
    check("plain-512", SectorSize::BYTES_512);
}

#[test]
fn dm_crypt_volume_with_4096_byte_sectors() {
    check("plain-4096", SectorSize::BYTES_4096);
}
