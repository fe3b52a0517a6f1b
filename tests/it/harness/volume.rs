//! A backing image with known content, and the oracle that says what its ciphertext must be: xts-mode.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use aes::cipher::consts::U16;
use aes::cipher::{Array, KeyInit};
use aes::{Aes128, Aes256};
use xts_mode::Xts128;

/// How a volume is encrypted, in cryptsetup's words. Sectors are 512 bytes in `offset` and `skip`.
#[derive(Clone, Debug)]
pub struct Layout {
    /// `None` passes data through unencrypted.
    pub key: Option<Vec<u8>>,
    pub sector_bytes: usize,
    pub offset_sectors: u64,
    pub skip_sectors: u64,
    pub iv_large_sectors: bool,
    pub payload_bytes: usize,
}

impl Layout {
    /// A plain volume with a 512-bit key and 512-byte sectors.
    pub fn encrypted(payload_bytes: usize) -> Self {
        Self {
            key: Some((0..64u8).map(|i| i.wrapping_mul(37) ^ 0x5c).collect()),
            sector_bytes: 512,
            offset_sectors: 0,
            skip_sectors: 0,
            iv_large_sectors: false,
            payload_bytes,
        }
    }

    fn payload_start(&self) -> usize {
        self.offset_sectors as usize * 512
    }

    fn tweak(&self, sector: usize) -> Array<u8, U16> {
        let units = (sector * self.sector_bytes / 512) as u64 + self.skip_sectors;
        let number = if self.iv_large_sectors { units / (self.sector_bytes as u64 / 512) } else { units };
        Array(u128::from(number).to_le_bytes())
    }

    /// The payload as it must lie on the volume.
    pub fn encrypt(&self, plaintext: &[u8]) -> Vec<u8> {
        let mut bytes = plaintext.to_vec();
        let sectors = bytes.chunks_exact_mut(self.sector_bytes).enumerate();
        match Key::new(self.key.as_deref()) {
            Key::None => {}
            Key::Aes128(xts) => sectors.for_each(|(i, s)| xts.encrypt_sector(s, self.tweak(i))),
            Key::Aes256(xts) => sectors.for_each(|(i, s)| xts.encrypt_sector(s, self.tweak(i))),
        }
        bytes
    }

    /// What a guest must read where `ciphertext` lies.
    pub fn decrypt(&self, ciphertext: &[u8]) -> Vec<u8> {
        self.decrypt_from(0, ciphertext)
    }

    /// The same for whole encryption sectors, the first of which is number `first` of the payload.
    pub fn decrypt_from(&self, first: usize, ciphertext: &[u8]) -> Vec<u8> {
        let mut bytes = ciphertext.to_vec();
        let sectors = (first..).zip(bytes.chunks_exact_mut(self.sector_bytes));
        match Key::new(self.key.as_deref()) {
            Key::None => {}
            Key::Aes128(xts) => sectors.for_each(|(i, s)| xts.decrypt_sector(s, self.tweak(i))),
            Key::Aes256(xts) => sectors.for_each(|(i, s)| xts.decrypt_sector(s, self.tweak(i))),
        }
        bytes
    }
}

enum Key {
    None,
    Aes128(Box<Xts128<Aes128>>),
    Aes256(Box<Xts128<Aes256>>),
}

impl Key {
    fn new(bytes: Option<&[u8]>) -> Self {
        let Some(bytes) = bytes else { return Self::None };
        let (data, tweak) = bytes.split_at(bytes.len() / 2);
        match bytes.len() {
            32 => {
                let cipher = |half| Aes128::new(&Array::try_from(half).expect("16 bytes"));
                Self::Aes128(Box::new(Xts128::new(cipher(data), cipher(tweak))))
            }
            64 => {
                let cipher = |half| Aes256::new(&Array::try_from(half).expect("32 bytes"));
                Self::Aes256(Box::new(Xts128::new(cipher(data), cipher(tweak))))
            }
            other => panic!("no XTS key has {other} bytes"),
        }
    }
}

/// An image file, its layout and the plaintext that it started with.
pub struct Volume {
    pub layout: Layout,
    pub image: PathBuf,
    pub key_file: Option<PathBuf>,
    /// What the payload decrypted to when the volume was made.
    pub original: Vec<u8>,
    /// What lay before the payload then.
    header: Vec<u8>,
}

impl Volume {
    /// Makes an image in `dir` whose payload decrypts to [`pattern`]`(1, ..)`.
    pub fn create(dir: &Path, layout: Layout) -> Self {
        let original = pattern(1, layout.payload_bytes);
        let mut bytes = vec![0xee; layout.payload_start()];
        bytes.extend(layout.encrypt(&original));
        let image = dir.join("disk.img");
        fs::write(&image, &bytes).expect("write the image");
        let key_file = layout.key.as_ref().map(|key| write_key(dir, key));
        let header = bytes[..layout.payload_start()].to_vec();
        Self { layout, image, key_file, original, header }
    }

    /// Serves an image that exists already.
    pub fn adopt(dir: &Path, image: &[u8], layout: Layout) -> Self {
        let path = dir.join("disk.img");
        fs::write(&path, image).expect("write the image");
        let key_file = layout.key.as_ref().map(|key| write_key(dir, key));
        let (header, payload) = image.split_at(layout.payload_start());
        let (header, original) = (header.to_vec(), layout.decrypt(payload));
        Self { layout, image: path, key_file, original, header }
    }

    /// The bytes in the image file.
    pub fn raw(&self) -> Vec<u8> {
        fs::read(&self.image).expect("read the image")
    }

    /// Whether its key is in a header of its own: then its `original` is ciphertext, unless somebody has read it.
    pub fn is_luks(&self) -> bool {
        self.layout.key.is_none() && self.key_file.is_some()
    }

    /// Asserts that what lies before the payload is as it was.
    #[track_caller]
    pub fn assert_header_untouched(&self) {
        assert!(self.raw()[..self.header.len()] == self.header, "what lies before the payload was written");
    }

    /// The payload's ciphertext.
    pub fn ciphertext(&self) -> Vec<u8> {
        self.raw().split_off(self.layout.payload_start())
    }

    /// The payload as the guest must see it.
    pub fn plaintext(&self) -> Vec<u8> {
        self.layout.decrypt(&self.ciphertext())
    }

    /// Asserts that the whole image is what xts-mode makes of `plaintext`.
    pub fn assert_holds(&self, plaintext: &[u8]) {
        let raw = self.raw();
        let (front, payload) = raw.split_at(self.layout.payload_start());
        assert!(front.iter().all(|byte| *byte == 0xee), "the area before the payload was written");
        let expected = self.layout.encrypt(plaintext);
        assert_eq!(payload.len(), expected.len(), "the image changed its length");
        let wrong: Vec<usize> = (0..expected.len() / 512)
            .filter(|i| payload[i * 512..(i + 1) * 512] != expected[i * 512..(i + 1) * 512])
            .collect();
        assert!(
            wrong.is_empty(),
            "{} sectors hold other ciphertext than expected: {:?}",
            wrong.len(),
            &wrong[..wrong.len().min(16)]
        );
    }
}

/// Where the volumes are that the Linux kernel wrote.
pub fn golden_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden").join(name)
}

/// One of them, unpacked.
pub fn golden(name: &str) -> Vec<u8> {
    let mut image = Vec::new();
    let compressed = File::open(golden_path(name)).expect("open the image");
    flate2::read::GzDecoder::new(compressed).read_to_end(&mut image).expect("unpack the image");
    image
}

/// Puts a key or passphrase where the server accepts it from.
pub fn write_key(dir: &Path, key: &[u8]) -> PathBuf {
    let path = dir.join("key");
    let mut file: File =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).expect("create key file");
    file.write_all(key).expect("write key file");
    path
}

/// Reproducible bytes that repeat nowhere: `seed` and position decide each of them.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend(random.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// SplitMix64: small, seeded, good enough to choose test cases.
pub struct Random(u64);

impl Random {
    /// The sequence that belongs to `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
