//! Options for the KDF of a new key slot.

use clap::{Args, ValueEnum};

use super::super::resolve::{ConfigError, impossible};
use super::size::ByteSize;
use crate::format::luks::{SlotKdf, Version};
use crate::keys::Secret;

const PBKDF2_ITERATIONS_MIN: u32 = 1000;
const ARGON2_PASSES_MIN: u32 = 4;
const ARGON2_MEMORY_KIB_MIN: u32 = 32;
const ARGON2_MEMORY_KIB_MAX: u32 = 4 << 20;
const ARGON2_THREADS_MAX: u32 = 4;

/// How the new slot makes its key from the passphrase.
#[derive(Debug, Args)]
pub(super) struct KdfArgs {
    /// KDF of the new key slot
    #[arg(long, default_value = "auto")]
    pbkdf: KdfName,
    /// Iterations of pbkdf2 (at least 1000) or passes of argon2id (at least 4) [default: what suits the KDF]
    #[arg(long, value_name = "COUNT")]
    pbkdf_iterations: Option<u32>,
    /// Memory of argon2id, up to 4G [default: 256M]
    #[arg(long, value_name = "SIZE")]
    pbkdf_memory: Option<ByteSize>,
    /// Threads of argon2id, 1 to 4 [default: 4]
    #[arg(long, value_name = "COUNT")]
    pbkdf_threads: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum KdfName {
    /// pbkdf2 with the fewest iterations for a key that looks like 256 random bits, else what a passphrase needs
    Auto,
    /// PBKDF2 with HMAC-SHA-256
    Pbkdf2,
    /// Argon2id (LUKS2 only)
    Argon2id,
}

impl KdfArgs {
    /// The KDF for `secret` in a header of `version`.
    pub(super) fn resolve(&self, secret: &Secret, version: Version) -> Result<SlotKdf, ConfigError> {
        self.check_costs(version)?;
        let suited = SlotKdf::suited_to(secret, version);
        Ok(match (self.pbkdf, suited) {
            (KdfName::Auto, suited) => suited,
            (KdfName::Pbkdf2, SlotKdf::Pbkdf2 { .. }) => self.pbkdf2(suited),
            (KdfName::Pbkdf2, SlotKdf::Argon2id { .. }) => self.pbkdf2(SlotKdf::PASSPHRASE_LUKS1),
            (KdfName::Argon2id, _) => self.argon2id(),
        })
    }

    fn check_costs(&self, version: Version) -> Result<(), ConfigError> {
        let argon2 = self.pbkdf == KdfName::Argon2id;
        if argon2 && version == Version::Luks1 {
            return Err(impossible("--pbkdf", "argon2id", "LUKS1 has pbkdf2 only"));
        }
        if let Some(iterations) = self.pbkdf_iterations {
            let (least, possible) = match self.pbkdf {
                KdfName::Auto => return Err(needs("--pbkdf-iterations", iterations)),
                KdfName::Pbkdf2 => (PBKDF2_ITERATIONS_MIN, "1000 and more for pbkdf2"),
                KdfName::Argon2id => (ARGON2_PASSES_MIN, "4 and more for argon2id"),
            };
            if iterations < least {
                return Err(impossible("--pbkdf-iterations", iterations, possible));
            }
        }
        if let Some(ByteSize(bytes)) = self.pbkdf_memory {
            let (least, most) =
                (u64::from(ARGON2_MEMORY_KIB_MIN) << 10, u64::from(ARGON2_MEMORY_KIB_MAX) << 10);
            if !argon2 {
                return Err(needs("--pbkdf-memory", bytes));
            }
            if !(least..=most).contains(&bytes) {
                return Err(impossible("--pbkdf-memory", bytes, "32K to 4G"));
            }
        }
        match self.pbkdf_threads {
            Some(threads) if !argon2 => Err(needs("--pbkdf-threads", threads)),
            Some(threads) if !(1..=ARGON2_THREADS_MAX).contains(&threads) => {
                Err(impossible("--pbkdf-threads", threads, "1 to 4"))
            }
            _ => Ok(()),
        }
    }

    fn pbkdf2(&self, default: SlotKdf) -> SlotKdf {
        self.pbkdf_iterations.map_or(default, |iterations| SlotKdf::Pbkdf2 { iterations })
    }

    fn argon2id(&self) -> SlotKdf {
        let SlotKdf::Argon2id { passes, memory_kib, threads } = SlotKdf::PASSPHRASE else {
            unreachable!("the KDF for passphrases is Argon2id")
        };
        SlotKdf::Argon2id {
            passes: self.pbkdf_iterations.unwrap_or(passes),
            memory_kib: self
                .pbkdf_memory
                .map_or(memory_kib, |size| u32::try_from(size.0 >> 10).expect("checked to be 4 GiB at most")),
            threads: self.pbkdf_threads.unwrap_or(threads),
        }
    }
}

fn needs(option: &'static str, value: impl ToString) -> ConfigError {
    impossible(option, value, "costs need a KDF that has them, see --pbkdf")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct OnlyOptions {
        #[command(flatten)]
        kdf: KdfArgs,
    }

    fn resolve(arguments: &str, key: &[u8], version: Version) -> Result<SlotKdf, String> {
        let arguments = std::iter::once("sealblk").chain(arguments.split_ascii_whitespace());
        let secret = Secret::read_from(key).unwrap();
        OnlyOptions::parse_from(arguments).kdf.resolve(&secret, version).map_err(|error| error.to_string())
    }

    const PASSPHRASE: &[u8] = b"correct horse";
    const RANDOM: &[u8] = b"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    #[test]
    fn the_key_decides_unless_somebody_else_does() {
        let pbkdf2 = |iterations| Ok(SlotKdf::Pbkdf2 { iterations });
        let argon2id = |passes, memory_kib, threads| Ok(SlotKdf::Argon2id { passes, memory_kib, threads });
        for (arguments, key, version, kdf) in [
            ("", RANDOM, Version::Luks2, pbkdf2(1000)),
            ("", RANDOM, Version::Luks1, pbkdf2(1000)),
            ("", PASSPHRASE, Version::Luks2, argon2id(4, 262_144, 4)),
            ("", PASSPHRASE, Version::Luks1, pbkdf2(2_000_000)),
            ("--pbkdf pbkdf2", PASSPHRASE, Version::Luks2, pbkdf2(2_000_000)),
            ("--pbkdf pbkdf2 --pbkdf-iterations 5000", RANDOM, Version::Luks1, pbkdf2(5000)),
            ("--pbkdf argon2id", RANDOM, Version::Luks2, argon2id(4, 262_144, 4)),
            (
                "--pbkdf argon2id --pbkdf-iterations 5 --pbkdf-memory 64M --pbkdf-threads 1",
                RANDOM,
                Version::Luks2,
                argon2id(5, 65_536, 1),
            ),
        ] {
            assert_eq!(resolve(arguments, key, version), kdf, "{arguments}");
        }
    }

    #[test]
    fn impossible_costs_are_refused_with_the_possible_ones() {
        for (arguments, version, part) in [
            ("--pbkdf argon2id", Version::Luks1, "pbkdf2 only"),
            ("--pbkdf-iterations 5000", Version::Luks2, "see --pbkdf"),
            ("--pbkdf pbkdf2 --pbkdf-iterations 999", Version::Luks2, "1000 and more"),
            ("--pbkdf argon2id --pbkdf-iterations 3", Version::Luks2, "4 and more"),
            ("--pbkdf pbkdf2 --pbkdf-memory 64M", Version::Luks2, "see --pbkdf"),
            ("--pbkdf argon2id --pbkdf-memory 16K", Version::Luks2, "32K to 4G"),
            ("--pbkdf argon2id --pbkdf-memory 5G", Version::Luks2, "32K to 4G"),
            ("--pbkdf argon2id --pbkdf-threads 0", Version::Luks2, "1 to 4"),
            ("--pbkdf argon2id --pbkdf-threads 5", Version::Luks2, "1 to 4"),
            ("--pbkdf-threads 1", Version::Luks2, "see --pbkdf"),
        ] {
            let error = resolve(arguments, PASSPHRASE, version).unwrap_err();
            assert!(error.contains(part), "{arguments}: {error}");
        }
    }
}
