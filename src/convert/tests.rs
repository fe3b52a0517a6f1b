//! Whole conversions, with somebody who interferes.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::*;

const DISK_BYTES: u64 = 3 * PIECE_BYTES as u64 + 700;

/// Does something when a phase begins.
struct Interference<F: Fn(Phase)>(F);

impl<F: Fn(Phase) + Sync> Observer for Interference<F> {
    fn begin(&self, phase: Phase, _: u64) {
        (self.0)(phase);
    }

    fn advance(&self, _: u64) {}
}

fn to_raw(folder: &Path) -> ConvertConfig {
    let source = folder.join("source");
    fs::write(&source, vec![0x5a; DISK_BYTES as usize]).unwrap();
    ConvertConfig {
        source: SourceConfig { path: source, format: SourceFormat::Raw { offset_sectors: 0 }, key: None },
        destination: DestinationConfig {
            path: folder.join("destination"),
            format: DestinationFormat::Raw,
            sector_size: None,
            key: None,
            overwrite: Overwrite::Refuse,
        },
        size_bytes: None,
        unwritten: Unwritten::Read,
        verify: true,
    }
}

#[test]
fn verification_finds_the_first_byte_that_differs() {
    for offset_bytes in [0, PIECE_BYTES as u64 + 12_345, DISK_BYTES - 1] {
        let folder = tempfile::tempdir().unwrap();
        let config = to_raw(folder.path());
        let source = File::options().write(true).open(&config.source.path).unwrap();
        let spoil = Interference(|phase| {
            if phase == Phase::Verify {
                source.write_all_at(&[0xa5], offset_bytes).unwrap();
            }
        });
        let error = convert(config, &spoil, &AtomicBool::new(false)).unwrap_err();
        assert!(
            matches!(error, ConvertError::Mismatch { offset_bytes: found } if found == offset_bytes),
            "{error}"
        );
        assert!(!folder.path().join("destination").exists());
    }
}

#[test]
fn a_stop_counts_until_the_destination_has_its_name() {
    for phase in [Phase::Copy, Phase::Verify] {
        let folder = tempfile::tempdir().unwrap();
        let stop = AtomicBool::new(false);
        let observer = Interference(|begun| {
            if begun == phase {
                stop.store(true, Ordering::Relaxed);
            }
        });
        let error = convert(to_raw(folder.path()), &observer, &stop).unwrap_err();
        assert!(matches!(error, ConvertError::Interrupted), "{error}");
        assert!(!folder.path().join("destination").exists());
    }
}

#[test]
fn a_source_that_becomes_shorter_is_an_error_and_no_zeroes() {
    let folder = tempfile::tempdir().unwrap();
    let config = to_raw(folder.path());
    let source = File::options().write(true).open(&config.source.path).unwrap();
    let shorten = Interference(|_| source.set_len(DISK_BYTES - 1).unwrap());
    let error = convert(config, &shorten, &AtomicBool::new(false)).unwrap_err();
    assert!(matches!(error, ConvertError::Read { end: End::Source, .. }), "{error}");
}

#[test]
fn a_destination_that_somebody_else_makes_meanwhile_is_theirs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("destination");
    let intrude = Interference(|_| fs::write(&path, b"theirs").unwrap());
    let error = convert(to_raw(folder.path()), &intrude, &AtomicBool::new(false)).unwrap_err();
    assert!(matches!(error, ConvertError::Exists { .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"theirs");
}
