//! From options to a configuration: what is required, what it defaults to, what excludes what.

use std::io;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use super::serve::{InsecureGate, ServeOptions, Switch};
use super::volume::ByteSize;
use crate::cipher::CipherError;
use crate::format::FormatError;
use crate::geometry::SectorSize;
use crate::inherited::{self, TakeError};
use crate::keys::{FixedKey, KeyConfigError, KeyManagers, KeyReference, KeySource, ReferenceError};
use crate::sandbox::{Identity, IdentityError, Mode};
use crate::server::config::{
    Confinement, DeviceConfig, Endpoint, KeyConfig, Limits, NUM_QUEUES_MAX, QUEUE_SIZE_MAX, QUEUE_SIZE_MIN,
    Rate, SERIAL_BYTES, ServeConfig, VolumeConfig,
};

/// Less than the 90 s that systemd gives a service to start.
const DEFAULT_KEY_TIMEOUT: Duration = Duration::from_secs(60);
/// As long as storage may take to end the last transfers of a process that has been killed.
const DEFAULT_INCOMING_TIMEOUT: Duration = Duration::from_secs(60);
/// Most queues that are offered without being asked for.
const DEFAULT_NUM_QUEUES_MAX: u16 = 16;

/// Why options make no configuration. Options are named as on the command line wherever they came from.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is no such file, or none that can be read.
    #[error("cannot read configuration file {path}")]
    FileUnreadable {
        /// The file.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// It is no TOML, or holds what is no option.
    #[error("configuration file {path}, line {line}: {message}")]
    FileSyntax {
        /// The file.
        path: PathBuf,
        /// Where in it, from 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// Something that has no default.
    #[error("{0} is required")]
    Missing(&'static str),
    /// More than one where one is needed.
    #[error("{0} and {1} exclude each other")]
    Exclusive(&'static str, &'static str),
    /// Not one of the values that the option takes.
    #[error("{option} {value} is not possible: {possible}")]
    Impossible {
        /// The option.
        option: &'static str,
        /// What it was given.
        value: String,
        /// What it may be given.
        possible: String,
    },
    /// An option of another format.
    #[error("{option} has no meaning with --format {format}")]
    Meaningless {
        /// The option.
        option: &'static str,
        /// The format that was declared.
        format: &'static str,
    },
    /// Something unsafe that was not asked for by name.
    #[error("{what}: pass --insecure {gate} if that is what you want")]
    Gated {
        /// What would happen.
        what: &'static str,
        /// The gate that opens it.
        gate: &'static str,
    },
    /// No name of a key.
    #[error("--key: {0}")]
    Key(ReferenceError),
    /// A key manager that is not set up for it.
    #[error(transparent)]
    Keys(#[from] KeyConfigError),
    /// No cipher that there is.
    #[error("{option}")]
    Cipher {
        /// The option.
        option: &'static str,
        /// What is wrong with it.
        source: CipherError,
    },
    /// No socket to take over.
    #[error("--fd")]
    Descriptor(#[source] TakeError),
    /// Nobody to go on as.
    #[error("--user or --group")]
    Identity(#[source] IdentityError),
    /// Options that do not fit together.
    #[error(transparent)]
    Format(#[from] FormatError),
}

impl ServeOptions {
    /// Settles every default and takes over an inherited socket.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub(super) fn resolve(self) -> Result<ServeConfig, ConfigError> {
        let device = self.device_config()?;
        let key = self.resolve_key()?;
        let volume = VolumeConfig {
            path: key.volume.clone(),
            read_only: device.read_only,
            direct: self.direct.unwrap_or(Switch::On) == Switch::On,
        };
        let (engine, once) = (self.engine.unwrap_or_default(), self.once.unwrap_or(false));
        let cipher_kernel = self.cipher_kernel.unwrap_or_default();
        let (on_error, control_socket) = (self.on_error.unwrap_or_default(), self.control_socket.clone());
        let (incoming, confinement) = (self.incoming()?, self.confinement()?);
        let endpoint = self.endpoint()?;
        Ok(ServeConfig {
            endpoint,
            volume,
            key,
            cipher_kernel,
            device,
            engine,
            incoming,
            once,
            on_error,
            control_socket,
            confinement,
        })
    }

    /// Settles what concerns the key only.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub(super) fn resolve_key(&self) -> Result<KeyConfig, ConfigError> {
        let format = self.format_config()?;
        let sources = self.key_sources()?;
        let timeout =
            self.key_timeout.map_or(DEFAULT_KEY_TIMEOUT, |seconds| Duration::from_secs(seconds.into()));
        let volume = self.blk_file.clone().ok_or(ConfigError::Missing("--blk-file PATH"))?;
        Ok(KeyConfig { volume, format, sources, timeout })
    }

    /// How long to wait for the volume of a VM that comes from elsewhere, if one does.
    fn incoming(&self) -> Result<Option<Duration>, ConfigError> {
        if self.incoming == Some(true) && self.takeover.is_some() {
            // One VM comes from another host, the other is here already.
            return Err(ConfigError::Exclusive("--incoming", "--takeover"));
        }
        match (self.incoming.unwrap_or(false), self.incoming_timeout) {
            (true, None) => Ok(Some(DEFAULT_INCOMING_TIMEOUT)),
            (true, Some(seconds)) => Ok(Some(Duration::from_secs(seconds.into()))),
            (false, None) => Ok(None),
            (false, Some(seconds)) => Err(impossible("--incoming-timeout", seconds, "only with --incoming")),
        }
    }

    /// What the process gives up, and whom it listens to.
    fn confinement(&self) -> Result<Confinement, ConfigError> {
        let mode = self.sandbox.unwrap_or_default();
        if mode == Mode::Off && !self.insecure.contains(&InsecureGate::NoSandbox) {
            let what = "a process that reads what guests write would keep all its rights";
            return Err(ConfigError::Gated { what, gate: "no-sandbox" });
        }
        let (user, group) = (self.user.as_deref(), self.group.as_deref());
        let identity = match (user, group) {
            (None, None) => None,
            _ => Some(Identity::look_up(user, group).map_err(ConfigError::Identity)?),
        };
        Ok(Confinement { mode, identity, allowed_uids: self.allow_uid.clone() })
    }

    fn endpoint(self) -> Result<Endpoint, ConfigError> {
        let given = [
            ("--socket-path", self.socket_path.is_some()),
            ("--fd", self.fd.is_some()),
            ("--connect", self.connect.is_some()),
            ("--takeover", self.takeover.is_some()),
        ];
        let mut given = given.iter().filter(|(_, is_given)| *is_given).map(|(option, _)| *option);
        if let (Some(first), Some(second)) = (given.next(), given.next()) {
            return Err(ConfigError::Exclusive(first, second));
        }
        let listen = self.socket_path.map(Endpoint::Listen);
        let connect = self.connect.map(Endpoint::Connect);
        match (self.fd, listen.or(connect).or(self.takeover.map(Endpoint::TakeOver))) {
            (Some(fd), _) => inherited::take(fd).map(Endpoint::Inherited).map_err(ConfigError::Descriptor),
            (None, Some(endpoint)) => Ok(endpoint),
            (None, None) => {
                Err(ConfigError::Missing("--socket-path PATH (or --fd N, --connect PATH, --takeover SOCKET)"))
            }
        }
    }

    /// What the references mean. Nothing is fetched yet.
    fn key_sources(&self) -> Result<Vec<KeySource>, ConfigError> {
        let fixed_key = match self.insecure.contains(&InsecureGate::FixedKey) {
            true => FixedKey::Accept,
            false => FixedKey::Refuse,
        };
        let managers = KeyManagers::new(self.key_config.as_deref(), fixed_key)?;
        let source = |reference: &String| {
            let reference: KeyReference = reference.parse().map_err(ConfigError::Key)?;
            Ok(managers.source(&reference)?)
        };
        self.key.iter().map(source).collect()
    }

    /// How much the guest may ask for.
    fn limits(&self) -> Result<Limits, ConfigError> {
        let bytes = |size: Option<ByteSize>| size.map(|ByteSize(bytes)| bytes);
        Ok(Limits {
            requests: checked_rate(
                ("--limit-iops", self.limit_iops),
                ("--limit-iops-burst", self.limit_iops_burst),
            )?,
            bytes: checked_rate(
                ("--limit-bytes", bytes(self.limit_bytes)),
                ("--limit-bytes-burst", bytes(self.limit_bytes_burst)),
            )?,
        })
    }

    pub(super) fn device_config(&self) -> Result<DeviceConfig, ConfigError> {
        let num_queues = self.num_queues.unwrap_or_else(default_num_queues);
        if !(1..=NUM_QUEUES_MAX).contains(&num_queues) {
            return Err(impossible("--num-queues", num_queues, &format!("1 to {NUM_QUEUES_MAX}")));
        }
        let queue_size = self.queue_size.unwrap_or(QUEUE_SIZE_MAX.into());
        let queue_size_max = u16::try_from(queue_size)
            .ok()
            .filter(|size| size.is_power_of_two() && (QUEUE_SIZE_MIN..=QUEUE_SIZE_MAX).contains(size))
            .ok_or_else(|| {
                let possible = format!("a power of two from {QUEUE_SIZE_MIN} to {QUEUE_SIZE_MAX}");
                impossible("--queue-size", queue_size, &possible)
            })?;
        Ok(DeviceConfig {
            num_queues,
            queue_size_max,
            logical_block: self
                .logical_block_size
                .map(|bytes| checked_sector_size("--logical-block-size", bytes))
                .transpose()?,
            serial: padded_serial(self.serial.as_deref().unwrap_or_default())?,
            cache: self.cache.unwrap_or_default(),
            discard: self.discard.unwrap_or_default(),
            limits: self.limits()?,
            read_only: self.read_only.unwrap_or(false),
        })
    }
}

pub(super) fn impossible(option: &'static str, value: impl ToString, possible: &str) -> ConfigError {
    ConfigError::Impossible { option, value: value.to_string(), possible: possible.to_owned() }
}

pub(super) fn checked_sector_size(option: &'static str, bytes: u32) -> Result<SectorSize, ConfigError> {
    SectorSize::new(bytes).ok_or_else(|| impossible(option, bytes, "512, 1024, 2048 or 4096 bytes"))
}

/// A rate and its burst, each with the option that gives it.
pub(super) fn checked_rate(
    (rate_option, rate): (&'static str, Option<u64>),
    (burst_option, burst): (&'static str, Option<u64>),
) -> Result<Option<Rate>, ConfigError> {
    let nonzero = |option, count: Option<u64>| match count.map(NonZeroU64::new) {
        None => Ok(None),
        Some(Some(count)) => Ok(Some(count)),
        Some(None) => Err(impossible(option, 0, "1 or more; without the option there is no limit")),
    };
    match (nonzero(rate_option, rate)?, nonzero(burst_option, burst)?) {
        (Some(per_second), burst) => Ok(Some(Rate { per_second, burst })),
        (None, Some(burst)) => Err(impossible(burst_option, burst, &format!("only with {rate_option}"))),
        (None, None) => Ok(None),
    }
}

fn default_num_queues() -> u16 {
    let cpus = thread::available_parallelism().map_or(1, |cpus| cpus.get());
    u16::try_from(cpus).unwrap_or(u16::MAX).clamp(1, DEFAULT_NUM_QUEUES_MAX)
}

fn padded_serial(text: &str) -> Result<[u8; SERIAL_BYTES], ConfigError> {
    let mut serial = [0; SERIAL_BYTES];
    let printable = text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    match serial.get_mut(..text.len()) {
        Some(start) if printable => start.copy_from_slice(text.as_bytes()),
        _ => return Err(impossible("--serial", text, "up to 20 printable ASCII characters")),
    }
    Ok(serial)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cipher::{CipherSpec, EqualHalves, IvMode, KernelChoice};
    use crate::format::passphrase::PassphraseHash;
    use crate::format::plain::{KeySize, PlainFormat, PlainSecret};
    use crate::geometry::SectorSize;
    use crate::server::config::{CacheMode, DiscardPolicy, EngineChoice, FormatConfig};

    const LEAST: &str = "socket-path = '/s'\nblk-file = '/v'\n";

    fn resolve(text: &str) -> Result<ServeConfig, ConfigError> {
        toml::from_str::<ServeOptions>(&format!("{LEAST}{text}")).unwrap().resolve()
    }

    fn plain(text: &str) -> Result<ServeConfig, ConfigError> {
        resolve(&format!("format = 'plain'\nkey = 'fd:9'\n{text}"))
    }

    fn refused(text: &str) -> String {
        plain(text).unwrap_err().to_string()
    }

    #[test]
    fn defaults_are_those_of_the_help() {
        let config = plain("").unwrap();
        let format = PlainFormat {
            cipher: CipherSpec { iv_mode: IvMode::Plain64 },
            key_size: KeySize::Bits512,
            secret: PlainSecret::Key,
            sector_size: SectorSize::BYTES_512,
            iv_large_sectors: false,
            offset_sectors: 0,
            skip_sectors: 0,
            equal_halves: EqualHalves::Refuse,
        };
        assert_eq!(config.key.format, FormatConfig::Plain(format));
        assert_eq!(config.key.timeout, Duration::from_secs(60));
        assert_eq!(config.volume, VolumeConfig { path: "/v".into(), read_only: false, direct: true });
        let device = DeviceConfig {
            num_queues: default_num_queues(),
            queue_size_max: 1024,
            logical_block: None,
            serial: [0; 20],
            cache: CacheMode::Writeback,
            discard: DiscardPolicy::Ignore,
            limits: Limits::default(),
            read_only: false,
        };
        assert_eq!(config.device, device);
        assert!((1..=16).contains(&default_num_queues()));
        assert_eq!((config.engine, config.once), (EngineChoice::Auto, false));
        assert_eq!(config.control_socket, None);
        assert_eq!(config.incoming, None);
        assert_eq!(config.confinement, Confinement::default());
        assert_eq!(plain("incoming = true").unwrap().incoming, Some(Duration::from_secs(60)));
        assert_eq!(config.cipher_kernel, KernelChoice::Auto);
        assert!(matches!(config.endpoint, Endpoint::Listen(path) if path.as_os_str() == "/s"));
    }

    #[test]
    fn every_option_arrives() {
        let config = plain(
            "cipher = 'aes-xts-plain64be'\nkey-size = 256\nsector-size = 4096\niv-large-sectors = true\n\
             offset = 3\nskip = 16\ninsecure = ['equal-key-halves']\nnum-queues = 5\nqueue-size = 64\n\
             logical-block-size = 512\nserial = 'disk 1'\ncache = 'writethrough'\ndiscard = 'pass'\ndirect = 'off'\n\
             engine = 'blocking'\nkey-timeout = 5\nonce = true\ncontrol-socket = '/c'\nread-only = true\n\
             cipher-kernel = 'portable'\nplain-hash = 'ripemd160'\nincoming = true\nincoming-timeout = 7\n\
             limit-iops = 500\nlimit-bytes = '1M'\nlimit-bytes-burst = '8M'",
        )
        .unwrap();
        let format = PlainFormat {
            cipher: CipherSpec { iv_mode: IvMode::Plain64Be },
            key_size: KeySize::Bits256,
            secret: PlainSecret::Passphrase(PassphraseHash::Ripemd160),
            sector_size: SectorSize::BYTES_4096,
            iv_large_sectors: true,
            offset_sectors: 3,
            skip_sectors: 16,
            equal_halves: EqualHalves::Accept,
        };
        assert_eq!(config.key.format, FormatConfig::Plain(format));
        assert_eq!(config.volume, VolumeConfig { path: "/v".into(), read_only: true, direct: false });
        let nonzero = |count| NonZeroU64::new(count).unwrap();
        let device = DeviceConfig {
            num_queues: 5,
            queue_size_max: 64,
            logical_block: Some(SectorSize::BYTES_512),
            serial: *b"disk 1\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            cache: CacheMode::Writethrough,
            discard: DiscardPolicy::Pass,
            limits: Limits {
                requests: Some(Rate { per_second: nonzero(500), burst: None }),
                bytes: Some(Rate { per_second: nonzero(1 << 20), burst: Some(nonzero(8 << 20)) }),
            },
            read_only: true,
        };
        assert_eq!(config.device, device);
        assert_eq!((config.engine, config.once), (EngineChoice::Blocking, true));
        assert_eq!(config.control_socket, Some("/c".into()));
        assert_eq!(config.incoming, Some(Duration::from_secs(7)));
        assert_eq!(config.cipher_kernel, KernelChoice::Portable);
        let keys: Vec<String> = config.key.sources.iter().map(|key| key.reference().to_string()).collect();
        assert_eq!(keys, ["fd:9"]);
        assert_eq!(config.key.timeout, Duration::from_secs(5));
    }

    #[test]
    fn a_limit_of_nothing_or_a_burst_of_no_limit_is_refused() {
        assert!(refused("limit-iops = 0").contains("--limit-iops 0 is not possible"));
        assert!(refused("limit-bytes = 7\nlimit-bytes-burst = '0'").contains("--limit-bytes-burst 0"));
        assert!(refused("limit-iops-burst = 9").contains("only with --limit-iops"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let missing = |text: &str| match toml::from_str::<ServeOptions>(text).unwrap().resolve().unwrap_err()
        {
            ConfigError::Missing(option) => option,
            error => panic!("{error}"),
        };
        assert!(missing("").contains("--key"));
        assert!(missing("format = 'plain'").contains("--key"));
        assert!(missing("format = 'plain'\nkey = 'fd:3'").contains("--blk-file"));
        assert!(missing("format = 'plain'\nkey = 'fd:3'\nblk-file = '/v'").contains("--socket-path"));
    }

    #[test]
    fn sockets_exclude_each_other() {
        assert_eq!(refused("fd = 3"), "--socket-path and --fd exclude each other");
        assert_eq!(refused("connect = '/c'"), "--socket-path and --connect exclude each other");
        let neither = "format = 'none'\ninsecure = ['plaintext']\nblk-file = '/v'\nfd = 3\nconnect = '/c'";
        let error = toml::from_str::<ServeOptions>(neither).unwrap().resolve().unwrap_err();
        assert_eq!(error.to_string(), "--fd and --connect exclude each other");
    }

    #[test]
    fn impossible_values_are_answered_with_the_possible_ones() {
        for (text, option, possible) in [
            ("sector-size = 8192", "--sector-size 8192", "512, 1024, 2048 or 4096"),
            ("sector-size = 0", "--sector-size 0", "512, 1024, 2048 or 4096"),
            ("logical-block-size = 768", "--logical-block-size 768", "512, 1024, 2048 or 4096"),
            ("logical-block-size = 8192", "--logical-block-size 8192", "512, 1024, 2048 or 4096"),
            ("key-size = 128", "--key-size 128", "256 or 512"),
            ("num-queues = 0", "--num-queues 0", "1 to 64"),
            ("num-queues = 65", "--num-queues 65", "1 to 64"),
            ("queue-size = 0", "--queue-size 0", "a power of two from 4 to 1024"),
            ("queue-size = 2", "--queue-size 2", "a power of two from 4 to 1024"),
            ("queue-size = 100", "--queue-size 100", "a power of two from 4 to 1024"),
            ("queue-size = 2048", "--queue-size 2048", "a power of two from 4 to 1024"),
            ("serial = '123456789012345678901'", "--serial", "up to 20"),
            ("serial = 'é'", "--serial", "ASCII"),
            ("incoming-timeout = 5", "--incoming-timeout 5", "only with --incoming"),
            ("iv-large-sectors = true", "--iv-large-sectors", "--sector-size"),
            ("skip = 1\nsector-size = 1024", "--skip 1", "multiple of the 2"),
        ] {
            let message = refused(text);
            assert!(message.contains(option) && message.contains(possible), "{text}: {message}");
        }
        assert!(matches!(plain("cipher = 'aes-cbc-essiv:sha256'"), Err(ConfigError::Cipher { .. })));
        plain("queue-size = 4\nserial = '12345678901234567890'\nnum-queues = 64").unwrap();
    }

    #[test]
    fn a_vm_comes_from_another_host_or_from_another_process() {
        let message = refused("incoming = true\ntakeover = '/c'");
        assert!(message.contains("--incoming") && message.contains("--takeover"), "{message}");
    }

    #[test]
    fn a_key_written_in_place_of_its_name_is_not_repeated() {
        let message =
            resolve("format = 'plain'\nkey = '00112233445566778899aabbccddeeff'").unwrap_err().to_string();
        assert!(message.starts_with("--key: ") && !message.contains("0011"), "{message}");
    }
}
