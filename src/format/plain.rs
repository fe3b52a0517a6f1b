//! dm-crypt's plain mode: no header, the whole volume from `--offset` on is payload, and the secret is the
//! volume key itself, or a [passphrase](super::passphrase) that is hashed to one.
//!
//! The same volume opens with cryptsetup, given a key *file* (text on standard input would be hashed first):
//!
//! ```text
//! cryptsetup open --type plain --cipher aes-xts-plain64 --key-size 512 --sector-size 4096 \
//!     --offset OFFSET --skip SKIP --key-file KEY VOLUME NAME
//! ```
//!
//! In dm-crypt's terms the table is `0 LENGTH crypt CIPHER KEY SKIP VOLUME OFFSET`: the sector with number `n`
//! of the payload, in 512-byte units, lies at `OFFSET + n` and has the IV of number `SKIP + n`, divided by the
//! units in an encryption sector where `iv_large_sectors` is set.

use std::fs::File;

use super::passphrase::PassphraseHash;
use super::{Encryption, FormatError, PayloadExtent, Unlocked, VolumeFormat, payload_geometry, warn_of_size};
use crate::cipher::{CipherSpec, EqualHalves, IvNumbering, VolumeKey};
use crate::geometry::SectorSize;
use crate::keys::Secret;

/// Everything that a header would say, if there were one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlainFormat {
    /// Cipher and IV rule.
    pub cipher: CipherSpec,
    /// Both halves of the XTS key together.
    pub key_size: KeySize,
    /// What the secret is.
    pub secret: PlainSecret,
    /// The encryption sector size.
    pub sector_size: SectorSize,
    /// Whether IVs count encryption sectors instead of 512-byte units.
    pub iv_large_sectors: bool,
    /// Begin of the payload on the volume, in 512-byte sectors.
    pub offset_sectors: u64,
    /// Number that the payload's first sector has for its IV, in 512-byte units.
    pub skip_sectors: u64,
    /// Whether a key is accepted whose halves are equal.
    pub equal_halves: EqualHalves,
}

/// What the secret of a plain volume is. Bytes do not tell, and a wrong guess would show the guest a disk of noise, to
/// be formatted anew: what looks like the other kind is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlainSecret {
    /// The volume key, unless it is text.
    Key,
    /// The volume key, whatever it looks like (`--plain-hash none`).
    AnyKey,
    /// A passphrase.
    Passphrase(PassphraseHash),
}

/// Length of an XTS key, both halves together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeySize {
    /// Two keys of AES-128.
    Bits256,
    /// Two keys of AES-256.
    Bits512,
}

impl KeySize {
    /// The size of which cryptsetup says `bits`, if AES-XTS has it.
    pub fn from_bits(bits: u32) -> Option<Self> {
        match bits {
            256 => Some(Self::Bits256),
            512 => Some(Self::Bits512),
            _ => None,
        }
    }

    /// The size in bytes.
    pub fn bytes(self) -> usize {
        match self {
            Self::Bits256 => 32,
            Self::Bits512 => 64,
        }
    }
}

impl PlainFormat {
    /// Checks what can be checked before there is a volume.
    ///
    /// # Errors
    /// [`FormatError::SkipInsideSector`], which dm-crypt refuses as well.
    pub fn check(&self) -> Result<(), FormatError> {
        let units = self.sector_size.units();
        if !self.skip_sectors.is_multiple_of(units) {
            let sector_bytes = self.sector_size.bytes();
            return Err(FormatError::SkipInsideSector {
                skip_sectors: self.skip_sectors,
                units,
                sector_bytes,
            });
        }
        Ok(())
    }

    fn volume_key(&self, secret: &Secret) -> Result<VolumeKey, FormatError> {
        let (actual_bytes, expected_bytes) = (secret.expose().len(), self.key_size.bytes());
        if let PlainSecret::Passphrase(hash) = self.secret {
            return hash.volume_key(secret.expose(), expected_bytes, self.equal_halves);
        }
        if actual_bytes != expected_bytes {
            let hint = length_hint(secret.expose(), expected_bytes);
            return Err(FormatError::KeyLength { actual_bytes, expected_bytes, hint });
        }
        if self.secret == PlainSecret::Key && secret.expose().iter().all(u8::is_ascii_hexdigit) {
            return Err(FormatError::KeyIsText { bytes: actual_bytes });
        }
        Ok(VolumeKey::new(secret.expose(), self.equal_halves)?)
    }
}

impl VolumeFormat for PlainFormat {
    fn unlock(&self, _: &File, volume_bytes: u64, secret: Option<Secret>) -> Result<Unlocked, FormatError> {
        self.check()?;
        let geometry = payload_geometry(volume_bytes, self.offset_sectors, self.sector_size)?;
        let key = self.volume_key(&secret.ok_or(FormatError::SecretMissing)?)?;
        let iv = IvNumbering {
            mode: self.cipher.iv_mode,
            offset_sectors: self.skip_sectors,
            large_sectors: self.iv_large_sectors,
        };
        warn_of_size(&geometry, iv);
        Ok(Unlocked {
            geometry,
            encryption: Some(Encryption { key, iv }),
            extent: PayloadExtent::WholeVolume,
        })
    }
}

/// What usually lies behind a key of the wrong length.
fn length_hint(key: &[u8], expected_bytes: usize) -> &'static str {
    let text = key.strip_suffix(b"\n").unwrap_or(key);
    let hexadecimal = text.iter().all(u8::is_ascii_hexdigit);
    if key.len() == expected_bytes + 1 {
        "; is there a trailing newline?"
    } else if hexadecimal && text.len() == expected_bytes * 2 {
        "; it looks like hexadecimal text: if it is a passphrase name its hash with --plain-hash, else raw bytes \
         are needed (xxd -r -p)"
    } else if KeySize::from_bits(u32::try_from(key.len() * 8).unwrap_or(u32::MAX)).is_some() {
        "; is --key-size right?"
    } else {
        "; if it is a passphrase, name its hash with --plain-hash"
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::cipher::IvMode;
    use crate::format::PLAIN_IV_PERIOD_SECTORS;
    use crate::geometry::Geometry;

    const GIB: u64 = 1 << 30;

    fn format() -> PlainFormat {
        PlainFormat {
            cipher: CipherSpec { iv_mode: IvMode::Plain64 },
            key_size: KeySize::Bits512,
            secret: PlainSecret::Key,
            sector_size: SectorSize::BYTES_4096,
            iv_large_sectors: false,
            offset_sectors: 0,
            skip_sectors: 0,
            equal_halves: EqualHalves::Refuse,
        }
    }

    fn key(bytes: impl IntoIterator<Item = u8>) -> Option<Secret> {
        let bytes: Vec<u8> = bytes.into_iter().collect();
        Some(Secret::read_from(&bytes[..]).unwrap())
    }

    fn unlock(
        format: &PlainFormat,
        volume_bytes: u64,
        secret: Option<Secret>,
    ) -> Result<Unlocked, FormatError> {
        format.unlock(&tempfile::tempfile().unwrap(), volume_bytes, secret)
    }

    #[test]
    fn the_payload_is_what_follows_the_offset() {
        let format = PlainFormat { offset_sectors: 9, skip_sectors: 16, iv_large_sectors: true, ..format() };
        let unlocked = unlock(&format, 9 * 512 + GIB, key(0..64)).unwrap();
        let expected =
            Geometry { sector_size: SectorSize::BYTES_4096, payload_offset_bytes: 4608, capacity_bytes: GIB };
        assert_eq!(unlocked.geometry, expected);
        let iv = IvNumbering { mode: IvMode::Plain64, offset_sectors: 16, large_sectors: true };
        assert_eq!(unlocked.encryption.unwrap().iv, iv);
    }

    #[test]
    fn an_offset_at_or_beyond_the_end_is_refused() {
        for (offset_sectors, volume_bytes) in [(8, 4096), (9, 4096), (u64::MAX, GIB), (1 << 55, GIB)] {
            let format = PlainFormat { offset_sectors, ..format() };
            let error = unlock(&format, volume_bytes, key(0..64)).unwrap_err();
            assert!(matches!(error, FormatError::OffsetBeyondEnd { .. }), "{offset_sectors}: {error}");
        }
        assert!(matches!(unlock(&format(), 0, key(0..64)), Err(FormatError::Empty)));
    }

    #[test]
    fn a_partial_sector_is_refused_with_both_numbers() {
        let error = unlock(&format(), GIB + 512, key(0..64)).unwrap_err().to_string();
        for number in ["1073742336 bytes", "4096 bytes", "by 3584 bytes"] {
            assert!(error.contains(number), "{error}");
        }
        let small_sectors = PlainFormat { sector_size: SectorSize::BYTES_512, ..format() };
        assert_eq!(unlock(&small_sectors, GIB + 512, key(0..64)).unwrap().geometry.capacity_bytes, GIB + 512);
    }

    #[test]
    fn skip_counts_whole_encryption_sectors() {
        for (skip_sectors, accepted) in [(0, true), (8, true), (1, false), (4, false), (12, false)] {
            let format = PlainFormat { skip_sectors, ..format() };
            assert_eq!(format.check().is_ok(), accepted, "{skip_sectors}");
            assert_eq!(unlock(&format, GIB, key(0..64)).is_ok(), accepted, "{skip_sectors}");
        }
        PlainFormat { skip_sectors: 3, sector_size: SectorSize::BYTES_512, ..format() }.check().unwrap();
    }

    #[test]
    fn a_key_of_the_wrong_length_is_refused_with_a_hint() {
        let refused = |format: &PlainFormat, secret| unlock(format, GIB, secret).unwrap_err().to_string();
        let half = PlainFormat { key_size: KeySize::Bits256, ..format() };
        let passphrase = "; if it is a passphrase, name its hash with --plain-hash";
        let expected = format!("the key has 63 bytes, --key-size 512 needs 64{passphrase}");
        assert_eq!(refused(&format(), key(0..63)), expected);
        assert!(refused(&format(), key(0..65)).contains("trailing newline"));
        assert!(refused(&half, key(0..33)).contains("trailing newline"));
        assert!(refused(&format(), key(0..32)).contains("is --key-size right?"));
        assert!(refused(&half, key(0..64)).contains("is --key-size right?"));
        assert!(refused(&half, key([b'a'; 64])).contains("hexadecimal"));
        assert!(refused(&format(), key([b'0'; 128])).contains("hexadecimal"));
        assert!(refused(&format(), key([b'0'; 128].into_iter().chain(*b"\n"))).contains("hexadecimal"));
        unlock(&half, GIB, key(0..32)).unwrap();
    }

    #[test]
    fn a_missing_key_and_one_with_equal_halves_are_refused() {
        assert!(matches!(unlock(&format(), GIB, None), Err(FormatError::SecretMissing)));
        assert!(matches!(unlock(&format(), GIB, key([7; 64])), Err(FormatError::UnfitKey(_))));
        let gated = PlainFormat { equal_halves: EqualHalves::Accept, ..format() };
        unlock(&gated, GIB, key([7; 64])).unwrap();
    }

    #[test]
    fn a_passphrase_is_hashed_and_a_key_that_looks_like_one_refused() {
        let hexadecimal = || key([b'a'; 32].into_iter().chain([b'0'; 32]));
        let error = unlock(&format(), GIB, hexadecimal()).unwrap_err();
        assert!(matches!(error, FormatError::KeyIsText { bytes: 64 }), "{error}");
        for secret in [PlainSecret::AnyKey, PlainSecret::Passphrase(PassphraseHash::Sha256)] {
            unlock(&PlainFormat { secret, ..format() }, GIB, hexadecimal()).unwrap();
        }
        let passphrase = PlainSecret::Passphrase(PassphraseHash::Ripemd160);
        unlock(&PlainFormat { secret: passphrase, ..format() }, GIB, key(*b"any length")).unwrap();
    }

    /// What is logged while `unlock` runs on a volume of this size.
    fn logged(format: &PlainFormat, volume_bytes: u64) -> String {
        let log = Arc::new(Mutex::new(Vec::new()));
        let writer = {
            let log = Arc::clone(&log);
            move || LogWriter(Arc::clone(&log))
        };
        let subscriber = tracing_subscriber::fmt().with_writer(writer).finish();
        tracing::subscriber::with_default(subscriber, || unlock(format, volume_bytes, key(0..64)).unwrap());
        String::from_utf8(log.lock().unwrap().clone()).unwrap()
    }

    struct LogWriter(Arc<Mutex<Vec<u8>>>);

    impl io::Write for LogWriter {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(text)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn volumes_too_large_for_their_key_or_iv_are_warned_of() {
        assert_eq!(logged(&format(), 1024 * GIB), "");
        assert!(logged(&format(), 1024 * GIB + 4096).contains("than is advised"));
        let plain = PlainFormat { cipher: CipherSpec { iv_mode: IvMode::Plain }, ..format() };
        assert!(!logged(&plain, 2048 * GIB).contains("repeat"));
        assert!(logged(&plain, 2048 * GIB + 4096).contains("repeat after 2 TiB"));
        let skipping = PlainFormat { skip_sectors: PLAIN_IV_PERIOD_SECTORS, ..plain };
        assert!(logged(&skipping, GIB).contains("repeat after 2 TiB"));
    }
}
