//! From options to a volume format: each takes its own options and refuses those of the others.

use base16ct::mixed;
use uuid::Uuid;

use super::resolve::{ConfigError, checked_sector_size, impossible};
use super::serve::{FormatName, InsecureGate, PlainHash, ServeOptions};
use crate::cipher::{CipherSpec, EqualHalves};
use crate::format::luks::{Expectations, ExpectedCipher, KdfLimits, LuksFormat, Policy, Version};
use crate::format::passphrase::PassphraseHash;
use crate::format::plain::{KeySize, PlainFormat, PlainSecret};
use crate::format::unencrypted::UnencryptedFormat;
use crate::geometry::SectorSize;
use crate::server::config::FormatConfig;

const DEFAULT_CIPHER: &str = "aes-xts-plain64";
const DEFAULT_KEY_SIZE_BITS: u32 = 512;
const DEFAULT_SECTOR_SIZE_BYTES: u32 = 512;

impl ServeOptions {
    pub(super) fn format_config(&self) -> Result<FormatConfig, ConfigError> {
        match self.format.unwrap_or_default() {
            FormatName::Luks => self.luks_format("luks", None),
            FormatName::Luks1 => self.luks_format("luks1", Some(Version::Luks1)),
            FormatName::Luks2 => self.luks_format("luks2", Some(Version::Luks2)),
            FormatName::Plain => self.plain_format().map(FormatConfig::Plain),
            FormatName::None => self.unencrypted_format().map(FormatConfig::Unencrypted),
        }
    }

    fn luks_format(&self, name: &'static str, version: Option<Version>) -> Result<FormatConfig, ConfigError> {
        refuse(name, &self.layout_options())?;
        refuse(name, &self.plain_options())?;
        self.require_key()?;
        let default = KdfLimits::default();
        let kdf = KdfLimits {
            memory_mib: self.kdf_memory_max.unwrap_or(default.memory_mib),
            work_gib: self.kdf_work_max.unwrap_or(default.work_gib),
            threads: self.kdf_threads_max.unwrap_or(default.threads),
            iterations: self.kdf_iterations_max.unwrap_or(default.iterations),
        };
        let policy = Policy { kdf, expect: self.expectations(version)?, slot: self.key_slot };
        let equal_halves = self.equal_halves();
        Ok(FormatConfig::Luks(LuksFormat { header: self.header.clone(), policy, equal_halves }))
    }

    fn expectations(&self, version: Option<Version>) -> Result<Expectations, ConfigError> {
        let uuid = self.expect_uuid.as_deref().map(|text| {
            Uuid::try_parse(text).map_err(|_| impossible("--expect-uuid", text, "a UUID, as in `blkid`"))
        });
        let cipher = self.expect_cipher.as_deref().map(|text| {
            let failed = |source| ConfigError::Cipher { option: "--expect-cipher", source };
            text.parse::<ExpectedCipher>().map_err(failed)
        });
        let header_digest = self.expect_header_digest.as_deref().map(|text| {
            let mut digest = [0; 32];
            match mixed::decode(text, &mut digest) {
                Ok(decoded) if decoded.len() == 32 => Ok(digest),
                _ => {
                    let possible = "a SHA-256 in hexadecimal, 64 digits";
                    Err(impossible("--expect-header-digest", text, possible))
                }
            }
        });
        Ok(Expectations {
            version,
            uuid: uuid.transpose()?,
            cipher: cipher.transpose()?,
            header_digest: header_digest.transpose()?,
        })
    }

    fn plain_format(&self) -> Result<PlainFormat, ConfigError> {
        refuse("plain", &self.header_options())?;
        self.require_key()?;
        let key_size_bits = self.key_size.unwrap_or(DEFAULT_KEY_SIZE_BITS);
        let format = PlainFormat {
            cipher: self
                .cipher
                .as_deref()
                .unwrap_or(DEFAULT_CIPHER)
                .parse::<CipherSpec>()
                .map_err(|source| ConfigError::Cipher { option: "--cipher", source })?,
            key_size: KeySize::from_bits(key_size_bits)
                .ok_or_else(|| impossible("--key-size", key_size_bits, "256 or 512 bits"))?,
            secret: self.plain_hash.map_or(PlainSecret::Key, PlainHash::secret),
            sector_size: self.sector_size()?,
            iv_large_sectors: self.iv_large_sectors.unwrap_or(false),
            offset_sectors: self.offset.unwrap_or(0),
            skip_sectors: self.skip.unwrap_or(0),
            equal_halves: self.equal_halves(),
        };
        format.check()?;
        if format.iv_large_sectors && format.sector_size == SectorSize::BYTES_512 {
            let possible = "it changes nothing when sectors have 512 bytes, see --sector-size";
            return Err(impossible("--iv-large-sectors", true, possible));
        }
        Ok(format)
    }

    fn unencrypted_format(&self) -> Result<UnencryptedFormat, ConfigError> {
        if !self.insecure.contains(&InsecureGate::Plaintext) {
            let what = "--format none stores the guest's data unencrypted";
            return Err(ConfigError::Gated { what, gate: "plaintext" });
        }
        refuse("none", &self.key_options())?;
        refuse("none", &self.plain_options())?;
        refuse("none", &self.header_options())?;
        Ok(UnencryptedFormat { sector_size: self.sector_size()?, offset_sectors: self.offset.unwrap_or(0) })
    }

    /// Options about where the payload lies, which a header says too.
    fn layout_options(&self) -> [GivenOption; 2] {
        [("--sector-size", self.sector_size.is_some()), ("--offset", self.offset.is_some())]
    }

    /// Options about keys and what is done with them.
    fn key_options(&self) -> [GivenOption; 4] {
        [
            ("--key", !self.key.is_empty()),
            ("--key-config", self.key_config.is_some()),
            ("--key-timeout", self.key_timeout.is_some()),
            ("--cipher-kernel", self.cipher_kernel.is_some()),
        ]
    }

    /// Options about encryption without a header.
    fn plain_options(&self) -> [GivenOption; 5] {
        [
            ("--cipher", self.cipher.is_some()),
            ("--key-size", self.key_size.is_some()),
            ("--plain-hash", self.plain_hash.is_some()),
            ("--skip", self.skip.is_some()),
            ("--iv-large-sectors", self.iv_large_sectors == Some(true)),
        ]
    }

    /// Options about headers.
    fn header_options(&self) -> [GivenOption; 9] {
        [
            ("--header", self.header.is_some()),
            ("--key-slot", self.key_slot.is_some()),
            ("--expect-uuid", self.expect_uuid.is_some()),
            ("--expect-cipher", self.expect_cipher.is_some()),
            ("--expect-header-digest", self.expect_header_digest.is_some()),
            ("--kdf-memory-max", self.kdf_memory_max.is_some()),
            ("--kdf-work-max", self.kdf_work_max.is_some()),
            ("--kdf-threads-max", self.kdf_threads_max.is_some()),
            ("--kdf-iterations-max", self.kdf_iterations_max.is_some()),
        ]
    }

    fn require_key(&self) -> Result<(), ConfigError> {
        match self.key.is_empty() {
            true => Err(ConfigError::Missing("--key REFERENCE (file:PATH, say)")),
            false => Ok(()),
        }
    }

    fn equal_halves(&self) -> EqualHalves {
        match self.insecure.contains(&InsecureGate::EqualKeyHalves) {
            true => EqualHalves::Accept,
            false => EqualHalves::Refuse,
        }
    }

    fn sector_size(&self) -> Result<SectorSize, ConfigError> {
        checked_sector_size("--sector-size", self.sector_size.unwrap_or(DEFAULT_SECTOR_SIZE_BYTES))
    }
}

/// An option's name, and whether it was given.
type GivenOption = (&'static str, bool);

fn refuse(format: &'static str, options: &[GivenOption]) -> Result<(), ConfigError> {
    match options.iter().find(|(_, given)| *given) {
        Some((option, _)) => Err(ConfigError::Meaningless { option, format }),
        None => Ok(()),
    }
}

impl PlainHash {
    pub(super) fn secret(self) -> PlainSecret {
        PlainSecret::Passphrase(match self {
            Self::None => return PlainSecret::AnyKey,
            Self::Ripemd160 => PassphraseHash::Ripemd160,
            Self::Sha1 => PassphraseHash::Sha1,
            Self::Sha224 => PassphraseHash::Sha224,
            Self::Sha256 => PassphraseHash::Sha256,
            Self::Sha384 => PassphraseHash::Sha384,
            Self::Sha512 => PassphraseHash::Sha512,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str) -> Result<FormatConfig, ConfigError> {
        toml::from_str::<ServeOptions>(text).unwrap().format_config()
    }

    fn luks(text: &str) -> Result<LuksFormat, ConfigError> {
        resolve(&format!("key = 'fd:9'\n{text}")).map(|config| match config {
            FormatConfig::Luks(format) => format,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn luks_of_either_version_is_the_default() {
        let expected =
            LuksFormat { header: None, policy: Policy::default(), equal_halves: EqualHalves::Refuse };
        assert_eq!(luks("").unwrap(), expected);
        assert_eq!(luks("format = 'luks'").unwrap(), expected);
        for (name, version) in [("luks1", Version::Luks1), ("luks2", Version::Luks2)] {
            let policy = luks(&format!("format = '{name}'")).unwrap().policy;
            assert_eq!(policy.expect.version, Some(version));
        }
        assert!(matches!(resolve(""), Err(ConfigError::Missing(option)) if option.contains("--key")));
    }

    #[test]
    fn every_option_of_headers_arrives() {
        let digest = "00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF";
        let format = luks(&format!(
            "header = '/h'\nkey-slot = 3\nexpect-uuid = '5de6ed73-ee5a-4183-993d-b5549c5be6a5'\n\
             expect-cipher = 'aes-xts-plain64:512'\nexpect-header-digest = '{digest}'\n\
             kdf-memory-max = 64\nkdf-work-max = 8\nkdf-threads-max = 2\nkdf-iterations-max = 5000\n\
             insecure = ['equal-key-halves']"
        ))
        .unwrap();
        let cipher = ExpectedCipher { name: "aes-xts-plain64".to_owned(), key_bits: Some(512) };
        let half: Vec<u8> = (0..16).map(|i| i * 0x11).collect();
        let expect = Expectations {
            version: None,
            uuid: Some(Uuid::from_u128(0x5de6_ed73_ee5a_4183_993d_b554_9c5b_e6a5)),
            cipher: Some(cipher),
            header_digest: [&half[..], &half].concat().try_into().ok(),
        };
        let kdf = KdfLimits { memory_mib: 64, work_gib: 8, threads: 2, iterations: 5000 };
        let policy = Policy { kdf, expect, slot: Some(3) };
        let equal_halves = EqualHalves::Accept;
        assert_eq!(format, LuksFormat { header: Some("/h".into()), policy, equal_halves });
    }

    #[test]
    fn impossible_expectations_are_refused() {
        for (text, part) in [
            ("expect-uuid = '5de6'", "--expect-uuid 5de6 is not possible"),
            ("expect-cipher = 'aes-cbc-essiv:sha256'", "--expect-cipher"),
            ("expect-cipher = 'aes-xts-plain64:128'", "--expect-cipher"),
            ("expect-header-digest = '00'", "64 digits"),
            ("expect-header-digest = 'no digits'", "64 digits"),
        ] {
            let error = luks(text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn plaintext_is_gated() {
        let error = resolve("format = 'none'").unwrap_err().to_string();
        assert!(error.contains("--insecure plaintext"), "{error}");
        let config =
            resolve("format = 'none'\ninsecure = ['plaintext']\nsector-size = 1024\noffset = 8").unwrap();
        let format = UnencryptedFormat { sector_size: SectorSize::new(1024).unwrap(), offset_sectors: 8 };
        assert_eq!(config, FormatConfig::Unencrypted(format));
    }

    #[test]
    fn each_format_refuses_the_options_of_others() {
        const LAYOUT: &[(&str, &str)] = &[("sector-size", "512"), ("offset", "0")];
        const PLAIN: &[(&str, &str)] = &[
            ("cipher", "'aes-xts-plain64'"),
            ("key-size", "512"),
            ("plain-hash", "'sha256'"),
            ("skip", "0"),
            ("iv-large-sectors", "true"),
        ];
        const HEADER: &[(&str, &str)] = &[
            ("header", "'/h'"),
            ("key-slot", "0"),
            ("expect-uuid", "'5de6ed73-ee5a-4183-993d-b5549c5be6a5'"),
            ("expect-cipher", "'aes-xts-plain64'"),
            ("expect-header-digest", "'00'"),
            ("kdf-memory-max", "1"),
            ("kdf-work-max", "1"),
            ("kdf-threads-max", "1"),
            ("kdf-iterations-max", "1"),
        ];
        const KEY: &[(&str, &str)] =
            &[("key", "'fd:3'"), ("key-config", "'/k'"), ("key-timeout", "0"), ("cipher-kernel", "'auto'")];
        for (format, more, refused) in [
            ("luks", "key = 'fd:3'", [LAYOUT, PLAIN].concat()),
            ("luks1", "key = 'fd:3'", [LAYOUT, PLAIN].concat()),
            ("luks2", "key = 'fd:3'", [LAYOUT, PLAIN].concat()),
            ("plain", "key = 'fd:3'", HEADER.to_vec()),
            ("none", "insecure = ['plaintext']", [PLAIN, HEADER, KEY].concat()),
        ] {
            for (option, value) in refused {
                let text = format!("format = '{format}'\n{more}\n{option} = {value}");
                let error = resolve(&text).unwrap_err().to_string();
                assert_eq!(error, format!("--{option} has no meaning with --format {format}"));
            }
        }
    }

    #[test]
    fn a_plain_secret_is_what_the_hash_says() {
        let secret = |text: &str| match resolve(&format!("format = 'plain'\nkey = 'fd:3'\n{text}")).unwrap() {
            FormatConfig::Plain(format) => format.secret,
            other => panic!("{other:?}"),
        };
        assert_eq!(secret(""), PlainSecret::Key);
        assert_eq!(secret("plain-hash = 'none'"), PlainSecret::AnyKey);
        for (name, hash) in [
            ("ripemd160", PassphraseHash::Ripemd160),
            ("sha1", PassphraseHash::Sha1),
            ("sha224", PassphraseHash::Sha224),
            ("sha256", PassphraseHash::Sha256),
            ("sha384", PassphraseHash::Sha384),
            ("sha512", PassphraseHash::Sha512),
        ] {
            assert_eq!(secret(&format!("plain-hash = '{name}'")), PlainSecret::Passphrase(hash));
        }
    }
}
