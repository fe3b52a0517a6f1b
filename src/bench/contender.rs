//! Those that are measured, ready to work.

use std::fmt;
use std::str::FromStr;

use super::BenchError;
use super::openssl::{Context, Libcrypto, OpensslError};
use crate::cipher::{CipherError, EqualHalves, IvMode, IvNumbering, KernelChoice, VolumeKey, Xts};
use crate::geometry::{SECTOR_BYTES, SectorNumber, SectorSize};

/// Sectors are numbered from here on: no speed depends on it.
const FIRST: SectorNumber = SectorNumber(1 << 20);

/// Bytes that are encrypted by all contenders before they are measured, and compared.
const TRIAL_BYTES: usize = 64 << 10;

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    /// One of our implementations; never [`KernelChoice::Auto`].
    Kernel(KernelChoice),
    /// OpenSSL's `EVP_aes_*_xts`, one call for each sector, as it has no other way.
    Openssl,
    /// Copying alone.
    Memcpy,
}

impl Contender {
    /// All that this machine may have, ours first.
    pub fn all() -> Vec<Self> {
        let kernels = KernelChoice::KERNELS.into_iter().filter(|kernel| kernel.is_available());
        kernels.map(Self::Kernel).chain([Self::Openssl, Self::Memcpy]).collect()
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel(kernel) => kernel.fmt(f),
            Self::Openssl => f.pad("openssl"),
            Self::Memcpy => f.pad("memcpy"),
        }
    }
}

impl FromStr for Contender {
    type Err = CipherError;
    fn from_str(name: &str) -> Result<Self, CipherError> {
        match name {
            "openssl" => Ok(Self::Openssl),
            "memcpy" => Ok(Self::Memcpy),
            _ => match name.parse()? {
                KernelChoice::Auto => Ok(Self::Kernel(KernelChoice::preferred())),
                kernel => Ok(Self::Kernel(kernel)),
            },
        }
    }
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Encrypt,
    Decrypt,
}

impl Direction {
    pub(super) const BOTH: [Self; 2] = [Self::Encrypt, Self::Decrypt];
}

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) key_bits: usize,
    pub(super) sector_size: SectorSize,
    pub(super) buffer_bytes: usize,
}

/// A contender with what all its threads share.
pub(super) enum Prepared<'l> {
    Xts(Xts),
    Openssl { libcrypto: &'l Libcrypto, key: Vec<u8>, sector_size: SectorSize },
    Memcpy,
}

impl<'l> Prepared<'l> {
    /// `libcrypto` is there if OpenSSL is a contender.
    pub(super) fn new(
        contender: Contender,
        case: Case,
        libcrypto: Option<&'l Libcrypto>,
    ) -> Result<Self, BenchError> {
        // No speed depends on the key, and nothing is protected with this one.
        let key: Vec<u8> = (0..case.key_bits / 8).map(|i| (i * 7 + 1) as u8).collect();
        let sector_size = case.sector_size;
        Ok(match contender {
            Contender::Kernel(kernel) => {
                let key = VolumeKey::new(&key, EqualHalves::Refuse)?;
                let iv = IvNumbering { mode: IvMode::Plain64, offset_sectors: 0, large_sectors: false };
                Self::Xts(Xts::with_kernel(&key, sector_size, iv, kernel)?)
            }
            Contender::Openssl => {
                let libcrypto = libcrypto.expect("OpenSSL is a contender only where it was loaded");
                Self::Openssl { libcrypto, key, sector_size }
            }
            Contender::Memcpy => Self::Memcpy,
        })
    }

    pub(super) fn contender(&self) -> Contender {
        match self {
            Self::Xts(xts) => Contender::Kernel(xts.kernel()),
            Self::Openssl { .. } => Contender::Openssl,
            Self::Memcpy => Contender::Memcpy,
        }
    }

    /// One more to do the work.
    pub(super) fn worker(&self) -> Result<Worker<'_>, OpensslError> {
        Ok(match self {
            Self::Xts(xts) => Worker::Xts(xts),
            Self::Openssl { libcrypto, key, sector_size } => Worker::Openssl {
                encrypt: libcrypto.context(key, Direction::Encrypt)?,
                decrypt: libcrypto.context(key, Direction::Decrypt)?,
                sector_size: *sector_size,
            },
            Self::Memcpy => Worker::Memcpy,
        })
    }
}

/// What one thread works with.
pub(super) enum Worker<'p> {
    Xts(&'p Xts),
    Openssl { encrypt: Context<'p>, decrypt: Context<'p>, sector_size: SectorSize },
    Memcpy,
}

impl Worker<'_> {
    /// Turns `src` into `dst`, as long and of whole sectors.
    pub(super) fn crypt(&mut self, direction: Direction, src: &[u8], dst: &mut [u8]) {
        match (self, direction) {
            (Self::Xts(xts), Direction::Encrypt) => xts.encrypt_to(FIRST, src, dst),
            (Self::Xts(xts), Direction::Decrypt) => xts.decrypt_to(FIRST, src, dst),
            (Self::Openssl { encrypt, sector_size, .. }, Direction::Encrypt) => {
                with_openssl(encrypt, *sector_size, src, dst);
            }
            (Self::Openssl { decrypt, sector_size, .. }, Direction::Decrypt) => {
                with_openssl(decrypt, *sector_size, src, dst);
            }
            (Self::Memcpy, _) => dst.copy_from_slice(std::hint::black_box(src)),
        }
    }
}

fn with_openssl(context: &mut Context<'_>, sector_size: SectorSize, src: &[u8], dst: &mut [u8]) {
    let sector_bytes = sector_size.bytes() as usize;
    let mut number = FIRST.0;
    for (src, dst) in src.chunks_exact(sector_bytes).zip(dst.chunks_exact_mut(sector_bytes)) {
        context.crypt(u128::from(number).to_le_bytes(), src, dst);
        number += u64::from(sector_size.bytes()) / SECTOR_BYTES;
    }
}

/// That all ciphers encrypt to the same bytes, and back.
pub(super) fn check_agreement(prepared: &[Prepared<'_>]) -> Result<(), BenchError> {
    let plaintext: Vec<u8> = (0..TRIAL_BYTES).map(|i| (i % 251) as u8).collect();
    let mut expected: Option<(Contender, Vec<u8>)> = None;
    for prepared in prepared.iter().filter(|prepared| !matches!(prepared, Prepared::Memcpy)) {
        let mut worker = prepared.worker()?;
        let (mut ciphertext, mut back) = (vec![0; TRIAL_BYTES], vec![0; TRIAL_BYTES]);
        worker.crypt(Direction::Encrypt, &plaintext, &mut ciphertext);
        worker.crypt(Direction::Decrypt, &ciphertext, &mut back);
        let other = prepared.contender();
        let (one, expected) = expected.get_or_insert_with(|| (other, ciphertext.clone()));
        if *expected != ciphertext || back != plaintext {
            return Err(BenchError::Disagreement { one: *one, other });
        }
    }
    Ok(())
}
