//! Volumes that the Linux kernel's dm-crypt wrote, read through our device.

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::harness::volume::{golden, golden_path};
use crate::harness::*;

/// The documented plaintext: block `i` of 32 bytes is SHA-256 of "rv-golden-v1" and `i` as 64 bits, little endian.
fn stream(offset_bytes: usize, len: usize) -> Vec<u8> {
    let first = offset_bytes / 32;
    let block = |i: usize| {
        Sha256::new().chain_update(b"rv-golden-v1").chain_update((i as u64).to_le_bytes()).finalize()
    };
    let bytes: Vec<u8> = (first..(offset_bytes + len).div_ceil(32)).flat_map(block).collect();
    bytes[offset_bytes % 32..][..len].to_vec()
}

fn reads_back(name: &str) {
    let manifest = std::fs::read_to_string(golden_path("manifest.json")).expect("read the manifest");
    let manifest: Value = serde_json::from_str(&manifest).expect("the manifest is JSON");
    let images = manifest["images"].as_array().expect("a list of images");
    let entry = images.iter().find(|image| image["name"] == name).expect("the image is in the manifest");
    let image = golden(entry["file"].as_str().expect("a file name"));
    assert_eq!(image.len() as u64, entry["image_bytes"].as_u64().expect("a size"));
    let sector_bytes = entry["block_size"].as_u64().expect("a block size");
    let original = image.clone();
    let serve = match entry["key_hex"].as_str() {
        Some(key) => {
            let key = Some(unhex(key));
            let layout =
                Layout { key, sector_bytes: sector_bytes as usize, ..Layout::encrypted(image.len()) };
            Serve::volume(layout).image(image)
        }
        None => Serve::luks(image, entry["passphrase"].as_str().expect("a passphrase").as_bytes()),
    };
    let mut backend = serve.start();
    let mut frontend = Frontend::connect(backend.socket());
    // virtio-blk's configuration: capacity in sectors of 512 bytes, and from byte 20 the block size.
    let config = frontend.config(0, 24).expect("the configuration");
    let capacity = u64::from_le_bytes(config[..8].try_into().expect("eight bytes")) * 512;
    assert_eq!(Some(capacity), entry["payload_bytes"].as_u64(), "{name}");
    let block_bytes = u32::from_le_bytes(config[20..24].try_into().expect("four bytes"));
    assert_eq!(u64::from(block_bytes), sector_bytes, "{name}");
    let mut hash = Sha256::new();
    for extent in entry["extents"].as_array().expect("extents") {
        let number = |i: usize| extent[i].as_u64().expect("a number") as usize;
        let data = frontend.run(&Request::read(number(0) as u64 / 512, number(1))).ok();
        assert!(data == stream(number(0), number(1)), "{name}: {} bytes at {}", number(1), number(0));
        hash.update(&data);
    }
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, entry["extents_sha256"].as_str().expect("a digest"));
    // Writing the plaintext again must make the very same ciphertext.
    for extent in entry["extents"].as_array().expect("extents") {
        let number = |i: usize| extent[i].as_u64().expect("a number") as usize;
        frontend.run(&Request::write(number(0) as u64 / 512, &stream(number(0), number(1)))).ok();
    }
    drop(frontend);
    backend.terminate();
    assert!(backend.volume.raw() == original, "{name}: rewriting the plaintext changed the volume");
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal");
    (0..text.len()).step_by(2).map(digit).collect()
}

#[test]
fn plain_512() {
    reads_back("plain-512");
}

#[test]
fn plain_4096() {
    reads_back("plain-4096");
}

#[test]
fn luks1_512_sha256() {
    reads_back("luks1-512-sha256");
}

#[test]
fn luks2_4096_argon2id() {
    reads_back("luks2-4096-argon2id");
}
