//! Volumes that cryptsetup formatted, to be changed and made consistent again.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{MemfdFlags, memfd_create};
use sealblk::cipher::{EqualHalves, IvNumbering};
use sealblk::format::luks::{LuksFormat, Policy};
use sealblk::format::{FormatError, VolumeFormat};
use sealblk::geometry::Geometry;
use sealblk::keys::Secret;
use serde_json::Value;
use sha2::{Digest, Sha256};

pub(super) const PASSPHRASE: &[u8] = b"correct horse";

/// Bytes of one copy of the header of [`luks2`].
pub(super) const COPY_BYTES: usize = 16 << 10;
const JSON_OFFSET: usize = 4096;

fn golden(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden").join(name);
    let mut image = Vec::new();
    flate2::read::GzDecoder::new(File::open(path).unwrap()).read_to_end(&mut image).unwrap();
    image
}

/// AES-256-XTS with SHA-256, slot 0; the payload begins at 2 MiB.
pub(super) fn luks1() -> Vec<u8> {
    golden("luks1-512-sha256.img.gz")
}

/// AES-256-XTS in sectors of 4096 bytes, slot 0 with a small Argon2id; the payload begins at 2 MiB.
pub(super) fn luks2() -> Vec<u8> {
    golden("luks2-4096-argon2id.img.gz")
}

/// [`luks2`] with other metadata in both copies.
pub(super) fn luks2_with(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut image = luks2();
    let mut json = metadata(&image);
    change(&mut json);
    put_metadata(&mut image, json.to_string().as_bytes());
    image
}

/// The metadata of the first copy.
pub(super) fn metadata(image: &[u8]) -> Value {
    let json = &image[JSON_OFFSET..COPY_BYTES];
    let end = json.iter().position(|byte| *byte == 0).unwrap();
    serde_json::from_slice(&json[..end]).unwrap()
}

/// Writes `json` into both copies, which is valid or not, and makes their checksums right.
pub(super) fn put_metadata(image: &mut [u8], json: &[u8]) {
    for copy in 0..2 {
        let area = &mut image[copy * COPY_BYTES..][..COPY_BYTES][JSON_OFFSET..];
        area.fill(0);
        let fitting = json.len().min(area.len());
        area[..fitting].copy_from_slice(&json[..fitting]);
        seal(image, copy, COPY_BYTES);
    }
}

/// Makes the checksum of a copy right, as if it had `copy_bytes` bytes.
pub(super) fn seal(image: &mut [u8], copy: usize, copy_bytes: usize) {
    let end = (copy * COPY_BYTES + copy_bytes).min(image.len());
    let header = &mut image[copy * COPY_BYTES..end];
    header[448..512].fill(0);
    let checksum = Sha256::digest(&header[..]);
    header[448..480].copy_from_slice(&checksum);
}

/// Unlocks `image` under `policy`: where its payload lies and how its sectors are numbered.
pub(super) fn unlock_with(policy: Policy, image: &[u8]) -> Result<(Geometry, IvNumbering), FormatError> {
    let volume = volume_of(image);
    unlock_volume(policy, &volume, image.len() as u64)
}

/// A volume in memory: these tests make thousands of them.
pub(super) fn volume_of(image: &[u8]) -> File {
    let volume = File::from(memfd_create("volume", MemfdFlags::CLOEXEC).unwrap());
    volume.write_all_at(image, 0).unwrap();
    volume
}

/// Unlocks the first `volume_bytes` of `volume`, all there are.
pub(super) fn unlock_volume(
    policy: Policy,
    volume: &File,
    volume_bytes: u64,
) -> Result<(Geometry, IvNumbering), FormatError> {
    let format = LuksFormat { header: None, policy, equal_halves: EqualHalves::Refuse };
    let secret = Secret::read_from(PASSPHRASE).unwrap();
    let unlocked = format.unlock(volume, volume_bytes, Some(secret))?;
    Ok((unlocked.geometry, unlocked.encryption.expect("LUKS encrypts").iv))
}

/// [`unlock_with`] the policy that is the default.
pub(super) fn unlock(image: &[u8]) -> Result<(Geometry, IvNumbering), FormatError> {
    unlock_with(Policy::default(), image)
}
