//! Volumes in a temporary folder: an image file, its key, and how it is laid out.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Length of an XTS key, both halves together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyBits {
    /// AES-128-XTS.
    Bits256,
    /// AES-256-XTS.
    Bits512,
}

impl KeyBits {
    /// The length as cryptsetup and sealblk take it.
    pub(crate) fn count(self) -> usize {
        match self {
            Self::Bits256 => 256,
            Self::Bits512 => 512,
        }
    }
}

/// What `--format plain` needs to know beside the key; sectors of `offset` and `skip` have 512 bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlainLayout {
    pub(crate) key: KeyBits,
    pub(crate) sector_bytes: u32,
    pub(crate) iv_large_sectors: bool,
    pub(crate) offset_sectors: u64,
    pub(crate) skip_sectors: u64,
}

impl Default for PlainLayout {
    fn default() -> Self {
        Self {
            key: KeyBits::Bits512,
            sector_bytes: 512,
            iv_large_sectors: false,
            offset_sectors: 0,
            skip_sectors: 0,
        }
    }
}

/// A volume whose header says the rest; its key file holds a passphrase.
#[derive(Debug)]
pub(crate) struct LuksLayout {
    /// Where the header is, if it does not lie on the image.
    pub(crate) header: Option<PathBuf>,
}

/// An image file and the key file beside it.
#[derive(Debug)]
pub(crate) struct Volume {
    pub(crate) image: PathBuf,
    pub(crate) key_file: PathBuf,
    /// What counts unless it is a LUKS volume.
    pub(crate) layout: PlainLayout,
    pub(crate) luks: Option<LuksLayout>,
}

impl Volume {
    /// Makes a volume of `bytes` zero bytes, and a key, in `folder`. The key is the same for the same key length, so
    /// that a failure can be repeated.
    pub(crate) fn create(folder: &Path, name: &str, bytes: u64, layout: PlainLayout) -> Self {
        let image = folder.join(format!("{name}.img"));
        File::create_new(&image).and_then(|file| file.set_len(bytes)).expect("the image can be made");
        let key_file = folder.join(format!("{name}.key"));
        let key: Vec<u8> = (0..layout.key.count() / 8).map(|i| (i * 37 + 11) as u8).collect();
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&key_file)
            .and_then(|mut file| file.write_all(&key))
            .expect("the key can be made");
        Self { image, key_file, layout, luks: None }
    }

    /// Size of the disk that the guest sees.
    pub(crate) fn capacity_bytes(&self) -> u64 {
        fs::metadata(&self.image).expect("the image exists").len() - self.layout.offset_sectors * 512
    }
}

/// How often `needle` occurs in the file at `path`.
pub(crate) fn occurrences(path: &Path, needle: &[u8]) -> usize {
    const PIECE: usize = 1 << 20;
    let mut file = File::open(path).expect("the image can be opened");
    let mut window = Vec::with_capacity(PIECE + needle.len());
    let mut count = 0;
    loop {
        let kept = window.len();
        let read = (&mut file).take(PIECE as u64).read_to_end(&mut window).expect("the image can be read");
        if read == 0 {
            return count;
        }
        count += window.windows(needle.len()).filter(|candidate| *candidate == needle).count();
        // What is kept is shorter than the needle: no occurrence counts twice.
        window.drain(..(kept + read).saturating_sub(needle.len() - 1));
    }
}
