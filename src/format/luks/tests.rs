//! Headers that cryptsetup made (`tests/data/golden`), whole and damaged.

use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::*;
use crate::geometry::{Geometry, SectorSize};

const PASSPHRASE: &[u8] = b"correct horse";

/// A volume that cryptsetup 2.6.1 formatted.
pub(super) fn golden(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden").join(format!("{name}.img.gz"));
    let compressed = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut image = Vec::new();
    flate2::read::GzDecoder::new(compressed).read_to_end(&mut image).unwrap();
    image
}

pub(super) fn luks1() -> Vec<u8> {
    golden("luks1-512-sha256")
}

pub(super) fn luks2() -> Vec<u8> {
    golden("luks2-4096-argon2id")
}

pub(super) fn file_of(bytes: &[u8]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file
}

pub(super) fn format() -> LuksFormat {
    LuksFormat { header: None, policy: Policy::default(), equal_halves: EqualHalves::Refuse }
}

pub(super) fn unlock(format: &LuksFormat, volume: &[u8], passphrase: &[u8]) -> Result<Unlocked, FormatError> {
    let secret = Some(Secret::read_from(passphrase).unwrap());
    format.unlock(&file_of(volume), volume.len() as u64, secret)
}

#[test]
fn both_versions_open_with_their_passphrase_alone() {
    for (image, sector_size, payload_offset_bytes, capacity_bytes) in [
        (luks1(), SectorSize::BYTES_512, 2 << 20, 6 << 20),
        (luks2(), SectorSize::BYTES_4096, 2 << 20, 14 << 20),
    ] {
        let unlocked = unlock(&format(), &image, PASSPHRASE).unwrap();
        assert_eq!(unlocked.geometry, Geometry { sector_size, payload_offset_bytes, capacity_bytes });
        let encryption = unlocked.encryption.unwrap();
        assert_eq!(encryption.key.key_bits(), 512);
        for (wrong, hint) in [(&b"correct horsf"[..], ""), (b"correct horse\n", "newline")] {
            let error = unlock(&format(), &image, wrong).unwrap_err();
            assert!(matches!(error, FormatError::Luks(LuksError::WrongKey(_))), "{error}");
            assert!(error.to_string().contains(hint), "{error}");
        }
    }
}
