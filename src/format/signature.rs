//! What a volume holds, as far as its bytes tell: asked before something is written over them, and to describe a
//! volume. Never asked to decide how a volume is served, since a guest can write any signature it likes.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use libblkid_rs::{BlkidErr, BlkidProbe, BlkidProbeRet, BlkidSafeprobeRet, BlkidSublks, BlkidSublksFlags};

/// How much is looked at for data at either end of a volume.
const EDGE_BYTES: u64 = 1 << 20;

/// What lies on a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Nothing known, and the first and the last MiB are zero.
    Zeroes,
    /// Something that libblkid knows, by its name.
    Signature(String),
    /// Nothing known, but not zero either: ciphertext looks like this.
    UnknownData,
}

impl Contents {
    /// Whether it is a LUKS header, whole or not.
    pub fn is_luks(&self) -> bool {
        matches!(self, Self::Signature(name) if name.starts_with("LUKS"))
    }
}

impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zeroes => f.write_str("zeroes"),
            Self::Signature(name) => f.write_str(name),
            Self::UnknownData => f.write_str("data without a known signature"),
        }
    }
}

/// Looks at both ends of `volume` and for every signature that libblkid knows.
///
/// # Errors
/// When the volume cannot be read.
pub fn examine(volume: &File, volume_bytes: u64) -> io::Result<Contents> {
    if let Some(name) = probe(volume).map_err(as_io_error)? {
        return Ok(Contents::Signature(name));
    }
    let last_edge = volume_bytes.saturating_sub(EDGE_BYTES);
    let zero = is_zero(volume, 0, EDGE_BYTES.min(volume_bytes))?
        && is_zero(volume, last_edge, volume_bytes - last_edge)?;
    Ok(if zero { Contents::Zeroes } else { Contents::UnknownData })
}

/// Overwrites every signature that libblkid finds, so that nobody takes the volume for what it was.
///
/// # Errors
/// When the volume cannot be read or written.
pub fn wipe(volume: &File) -> io::Result<()> {
    let mut probe = superblock_probe(volume).map_err(as_io_error)?;
    // Each round removes a signature; a volume has a handful at most.
    for _ in 0..64 {
        match probe.do_probe().map_err(as_io_error)? {
            BlkidProbeRet::Success => probe.do_wipe(false).map_err(as_io_error)?,
            BlkidProbeRet::Done => return Ok(()),
        }
    }
    Err(io::Error::other("signatures are found again and again"))
}

fn superblock_probe(volume: &File) -> Result<BlkidProbe, BlkidErr> {
    let mut probe = BlkidProbe::new()?;
    probe.set_device(volume.as_raw_fd(), 0, 0)?;
    probe.enable_superblocks(true)?;
    probe.set_superblock_flags(BlkidSublksFlags::new(vec![
        BlkidSublks::Type,
        BlkidSublks::Usage,
        BlkidSublks::Version,
        BlkidSublks::Magic,
    ]))?;
    probe.enable_partitions(true)?;
    Ok(probe)
}

/// The name of what libblkid takes the volume for.
fn probe(volume: &File) -> Result<Option<String>, BlkidErr> {
    let mut probe = superblock_probe(volume)?;
    let value = |probe: &BlkidProbe, name: &str| probe.lookup_value(name).ok();
    match probe.do_safeprobe()? {
        BlkidSafeprobeRet::None => Ok(None),
        BlkidSafeprobeRet::Ambiguous => Ok(Some("signatures of several kinds".to_owned())),
        BlkidSafeprobeRet::Success => Ok(Some(match (value(&probe, "TYPE"), value(&probe, "PTTYPE")) {
            (Some(kind), _) => described(&kind, value(&probe, "USAGE"), value(&probe, "VERSION")),
            (None, Some(kind)) => format!("partition table ({kind})"),
            (None, None) => "a signature without a name".to_owned(),
        })),
    }
}

fn described(kind: &str, usage: Option<String>, version: Option<String>) -> String {
    match (kind, usage.as_deref(), version) {
        ("crypto_LUKS", _, Some(version)) => format!("LUKS{version} header"),
        (kind, Some("filesystem"), _) => format!("file system ({kind})"),
        (kind, Some("raid"), _) => format!("part of a RAID or volume group ({kind})"),
        (kind, Some("crypto"), _) => format!("encrypted volume ({kind})"),
        (kind, ..) => format!("signature of {kind}"),
    }
}

fn is_zero(volume: &File, offset_bytes: u64, length_bytes: u64) -> io::Result<bool> {
    let mut block = vec![0_u8; 1 << 16];
    let end = offset_bytes + length_bytes;
    let mut at = offset_bytes;
    while at < end {
        let wanted = block.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
        match volume.read_at(&mut block[..wanted], at)? {
            0 => return Ok(true),
            read_bytes if block[..read_bytes].iter().any(|byte| *byte != 0) => return Ok(false),
            read_bytes => at += read_bytes as u64,
        }
    }
    Ok(true)
}

fn as_io_error(error: BlkidErr) -> io::Error {
    match error {
        BlkidErr::IO(error) => error,
        error => io::Error::other(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME_BYTES: u64 = 64 << 20;

    fn volume_with(bytes: &[u8], offset_bytes: u64) -> File {
        let volume = tempfile::tempfile().unwrap();
        volume.set_len(VOLUME_BYTES).unwrap();
        volume.write_all_at(bytes, offset_bytes).unwrap();
        volume
    }

    fn contents(bytes: &[u8], offset_bytes: u64) -> Contents {
        examine(&volume_with(bytes, offset_bytes), VOLUME_BYTES).unwrap()
    }

    /// A swap area is the signature that is easiest to write by hand.
    fn swap_area() -> Vec<u8> {
        let mut page = vec![0; 4096];
        page[1024..1032].copy_from_slice(&[1, 0, 0, 0, 255, 0, 0, 0]);
        page[4086..].copy_from_slice(b"SWAPSPACE2");
        page
    }

    #[test]
    fn a_single_byte_at_either_end_is_data() {
        assert_eq!(contents(&[], 0), Contents::Zeroes);
        for offset_bytes in [0, EDGE_BYTES - 1, VOLUME_BYTES - EDGE_BYTES, VOLUME_BYTES - 1] {
            assert_eq!(contents(&[7], offset_bytes), Contents::UnknownData, "{offset_bytes}");
        }
    }

    #[test]
    fn signatures_are_named() {
        assert_eq!(contents(&swap_area(), 0), Contents::Signature("signature of swap".to_owned()));
        let mut mbr = vec![0; 512];
        mbr[446..462].copy_from_slice(&[0x80, 0, 2, 0, 0x83, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0]);
        mbr[510..].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(contents(&mbr, 0), Contents::Signature("partition table (dos)".to_owned()));
    }

    #[test]
    fn a_volume_shorter_than_an_edge_is_looked_at_whole() {
        for (volume_bytes, at) in [(0, None), (1, Some(0)), (5000, Some(4999))] {
            let volume = tempfile::tempfile().unwrap();
            volume.set_len(volume_bytes).unwrap();
            assert_eq!(examine(&volume, volume_bytes).unwrap(), Contents::Zeroes);
            if let Some(at) = at {
                volume.write_all_at(&[1], at).unwrap();
                assert_eq!(examine(&volume, volume_bytes).unwrap(), Contents::UnknownData);
            }
        }
    }

    #[test]
    fn a_wiped_signature_is_not_found_again() {
        let volume = volume_with(&swap_area(), 0);
        wipe(&volume).unwrap();
        assert!(!matches!(examine(&volume, VOLUME_BYTES).unwrap(), Contents::Signature(_)));
    }
}
