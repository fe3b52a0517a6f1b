//! `sealblk serve`: its options, which are the keys of its configuration file too.
//!
//! Options are translated only: what each means is settled in [`resolve`](super::resolve), what it does below
//! [`server`].

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::{Deserialize, Deserializer};

use super::exit::{CliError, Exit};
use super::log::{self, LogLevel};
use super::resolve::ConfigError;
use super::volume::ByteSize;
use crate::cipher::KernelChoice;
use crate::sandbox::Mode as SandboxMode;
use crate::server;
use crate::server::config::{CacheMode, DiscardPolicy, EngineChoice, ErrorPolicy};

/// What `--print-capabilities` prints: the block features of QEMU's `vhost-user.json`.
pub(super) const CAPABILITIES: &str = r#"{"type": "block", "features": ["read-only", "blk-file"]}"#;

const SOCKET: &str = "Socket (exactly one)";
const VOLUME: &str = "Volume";
const ENCRYPTION: &str = "Encryption";
const HEADER: &str = "What a LUKS header may be";
const DEVICE: &str = "Disk as the guest sees it";
const PROCESS: &str = "Process";

/// The options, and what they may come from or be left unread for.
#[derive(Debug, Args)]
#[command(
    override_usage = "sealblk serve --socket-path PATH --blk-file PATH --key file:PATH [OPTIONS]",
    after_help = Exit::table()
)]
pub(super) struct ServeCommand {
    #[command(flatten)]
    options: ServeOptions,
    /// Read options from a TOML file, each under its long name (sector-size = 4096); the command line overrides it
    #[arg(long, value_name = "FILE", help_heading = PROCESS)]
    config: Option<PathBuf>,
    /// Print what this back end can do, in JSON, and exit; all other options are ignored
    #[arg(long, help_heading = PROCESS)]
    print_capabilities: bool,
}

/// Every option, from the command line or a file: nothing is required and no default settled yet.
#[derive(Debug, Default, PartialEq, Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(super) struct ServeOptions {
    /// Listen for the VMM on a Unix socket made here
    #[arg(long, value_name = "PATH", help_heading = SOCKET)]
    pub(super) socket_path: Option<PathBuf>,
    /// Use an inherited socket, listening or connected
    #[arg(long, value_name = "N", help_heading = SOCKET)]
    pub(super) fd: Option<i32>,
    /// Connect to a VMM that listens here, again and again until it does
    #[arg(long, value_name = "PATH", help_heading = SOCKET)]
    pub(super) connect: Option<PathBuf>,
    /// Take over the socket of the server with this control socket, which ends; the VM runs on
    #[arg(long, value_name = "CONTROL-SOCKET", help_heading = SOCKET)]
    pub(super) takeover: Option<PathBuf>,

    /// Backing file or block device [required]
    #[arg(long, value_name = "PATH", help_heading = VOLUME)]
    pub(super) blk_file: Option<PathBuf>,
    /// Serve the volume read-only
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          hide_possible_values = true, help_heading = VOLUME)]
    pub(super) read_only: Option<bool>,
    /// What lies on the volume; never guessed [default: luks]
    #[arg(long, help_heading = VOLUME)]
    pub(super) format: Option<FormatName>,
    /// LUKS: file or device with the header, where that is not on the volume itself
    #[arg(long, value_name = "PATH", help_heading = VOLUME)]
    pub(super) header: Option<PathBuf>,
    /// Encryption sector size: 512, 1024, 2048 or 4096 bytes [default: 512; LUKS: as the header says]
    #[arg(long, value_name = "BYTES", help_heading = VOLUME)]
    pub(super) sector_size: Option<u32>,
    /// Begin of the data on the volume, in sectors of 512 bytes [default: 0; LUKS: as the header says]
    #[arg(long, value_name = "SECTORS", help_heading = VOLUME)]
    pub(super) offset: Option<u64>,
    /// What becomes of requests that storage fails [default: report]
    #[arg(long, value_name = "POLICY", help_heading = VOLUME)]
    pub(super) on_error: Option<ErrorPolicy>,
    /// Bypass the host's page cache (O_DIRECT) [default: on]
    #[arg(long, help_heading = VOLUME, hide_possible_values = true, value_name = "on|off")]
    pub(super) direct: Option<Switch>,

    /// Where the key comes from: SCHEME[@PROFILE][+ENCODING]:ID, such as file:PATH (mode 0600), fd:N (a pipe, say) or
    /// credential+hex:NAME; may be repeated, and the first key that there is counts. For LUKS it is a
    /// passphrase, for plain the volume key itself, as many bytes as --key-size asks for (or see --plain-hash)
    #[arg(long, value_name = "REFERENCE", help_heading = ENCRYPTION)]
    #[serde(deserialize_with = "one_or_more")]
    pub(super) key: Vec<String>,
    /// How key managers are set up [default: /etc/sealblk/keys.toml, if a key needs it]
    #[arg(long, value_name = "FILE", help_heading = ENCRYPTION)]
    pub(super) key_config: Option<PathBuf>,
    /// How long to try again while no key manager can be reached; 0 is one attempt [default: 60]
    #[arg(long, value_name = "SECONDS", help_heading = ENCRYPTION)]
    pub(super) key_timeout: Option<u32>,
    /// LUKS: try the passphrase on this key slot only [default: on all]
    #[arg(long, value_name = "N", help_heading = ENCRYPTION)]
    pub(super) key_slot: Option<u32>,
    /// Plain: aes-xts-plain64, aes-xts-plain or aes-xts-plain64be [default: aes-xts-plain64]
    #[arg(long, help_heading = ENCRYPTION)]
    pub(super) cipher: Option<String>,
    /// Plain: both halves of the XTS key, 256 (AES-128) or 512 (AES-256) bits [default: 512]
    #[arg(long, value_name = "BITS", help_heading = ENCRYPTION)]
    pub(super) key_size: Option<u32>,
    /// Plain: the key is a passphrase, made into a volume key with this hash (cryptsetup took ripemd160 before 2.7,
    /// sha256 since); `none`: it is the volume key even if it looks like text
    #[arg(long, value_name = "HASH", help_heading = ENCRYPTION)]
    pub(super) plain_hash: Option<PlainHash>,
    /// Plain: number of the first sector's IV, in sectors of 512 bytes [default: 0]
    #[arg(long, value_name = "SECTORS", help_heading = ENCRYPTION)]
    pub(super) skip: Option<u64>,
    /// Plain: count IVs in encryption sectors instead of 512-byte sectors
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          hide_possible_values = true, help_heading = ENCRYPTION)]
    pub(super) iv_large_sectors: Option<bool>,
    /// Which implementation of AES-XTS encrypts; all give the same bytes [default: auto]
    #[arg(long, value_name = "KERNEL", help_heading = ENCRYPTION)]
    pub(super) cipher_kernel: Option<KernelChoice>,
    /// Allow something unsafe by name; may be repeated
    #[arg(long, value_name = "GATE", help_heading = ENCRYPTION)]
    pub(super) insecure: Vec<InsecureGate>,

    /// Refuse a volume with another UUID
    #[arg(long, value_name = "UUID", help_heading = HEADER)]
    pub(super) expect_uuid: Option<String>,
    /// Refuse a volume with another cipher, or a volume key of another size: aes-xts-plain64 or aes-xts-plain64:512
    #[arg(long, value_name = "CIPHER[:BITS]", help_heading = HEADER)]
    pub(super) expect_cipher: Option<String>,
    /// Refuse a header with another SHA-256; `cryptsetup luksHeaderBackup` and sha256sum tell it
    #[arg(long, value_name = "HEX", help_heading = HEADER)]
    pub(super) expect_header_digest: Option<String>,
    /// Most memory that a key slot may need, in MiB [default: 1024]
    #[arg(long, value_name = "MIB", help_heading = HEADER)]
    pub(super) kdf_memory_max: Option<u32>,
    /// Most memory that Argon2 may go through for all key slots, passes times memory, in GiB [default: 128]
    #[arg(long, value_name = "GIB", help_heading = HEADER)]
    pub(super) kdf_work_max: Option<u32>,
    /// Most threads that a key slot may ask for [default: 4]
    #[arg(long, value_name = "COUNT", help_heading = HEADER)]
    pub(super) kdf_threads_max: Option<u32>,
    /// Most iterations of PBKDF2 for all key slots and the digests [default: 100000000]
    #[arg(long, value_name = "COUNT", help_heading = HEADER)]
    pub(super) kdf_iterations_max: Option<u32>,

    /// Most queues, each with its own thread: 1 to 64 [default: host CPUs, at most 16]
    #[arg(long, value_name = "COUNT", help_heading = DEVICE)]
    pub(super) num_queues: Option<u16>,
    /// Largest ring accepted, in descriptors: a power of two from 4 to 1024 [default: 1024]
    #[arg(long, value_name = "COUNT", help_heading = DEVICE)]
    pub(super) queue_size: Option<u32>,
    /// The guest's block size, 512, 1024, 2048 or 4096 bytes: less than the encryption sector size for guests that
    /// cannot use larger blocks; writes of parts of a sector are slower [default: the encryption sector size]
    #[arg(long, value_name = "BYTES", help_heading = DEVICE)]
    pub(super) logical_block_size: Option<u32>,
    /// Serial number: up to 20 printable ASCII characters [default: none]
    #[arg(long, value_name = "TEXT", help_heading = DEVICE)]
    pub(super) serial: Option<String>,
    /// Most requests a second, over all queues [default: no limit]
    #[arg(long, value_name = "COUNT", help_heading = DEVICE)]
    pub(super) limit_iops: Option<u64>,
    /// Most requests at once after a pause [default: a tenth of a second's]
    #[arg(long, value_name = "COUNT", help_heading = DEVICE)]
    pub(super) limit_iops_burst: Option<u64>,
    /// Most bytes a second, over all queues: 100M, say [default: no limit]
    #[arg(long, value_name = "SIZE", help_heading = DEVICE)]
    pub(super) limit_bytes: Option<ByteSize>,
    /// Most bytes at once after a pause [default: a tenth of a second's]
    #[arg(long, value_name = "SIZE", help_heading = DEVICE)]
    pub(super) limit_bytes_burst: Option<ByteSize>,
    /// When a write counts as done, until the guest decides otherwise [default: writeback]
    #[arg(long, value_name = "MODE", help_heading = DEVICE)]
    pub(super) cache: Option<CacheMode>,
    /// What becomes of discards [default: ignore]
    #[arg(long, value_name = "POLICY", help_heading = DEVICE)]
    pub(super) discard: Option<DiscardPolicy>,

    /// What moves bytes between memory and storage [default: auto]
    #[arg(long, help_heading = PROCESS)]
    pub(super) engine: Option<EngineChoice>,
    /// Serve a VM that is migrated to here: the volume stays with the process that serves it until the guest goes on
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          hide_possible_values = true, help_heading = PROCESS)]
    pub(super) incoming: Option<bool>,
    /// How long that process may take to let go of the volume once the guest is to go on here [default: 60]
    #[arg(long, value_name = "SECONDS", help_heading = PROCESS)]
    pub(super) incoming_timeout: Option<u32>,
    /// Exit when the VMM disconnects instead of waiting for the next one
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          hide_possible_values = true, help_heading = PROCESS)]
    pub(super) once: Option<bool>,
    /// What the process gives up before it serves anybody [default: on]
    #[arg(long, value_name = "MODE", help_heading = PROCESS)]
    pub(super) sandbox: Option<SandboxMode>,
    /// User to go on as once everything is open, by name or number; the sockets become his
    #[arg(long, value_name = "USER", help_heading = PROCESS)]
    pub(super) user: Option<String>,
    /// Group to go on as [default: that of --user]
    #[arg(long, value_name = "GROUP", help_heading = PROCESS)]
    pub(super) group: Option<String>,
    /// Serve the VMM of this user, too, by number; may be repeated. The socket is then made with mode 0666, and others
    /// are refused when they connect [default: root, and the process's user]
    #[arg(long, value_name = "UID", help_heading = PROCESS)]
    pub(super) allow_uid: Vec<u32>,
    /// Listen here for `sealblk control`: status, drain, flush and more [default: no control socket]
    #[arg(long, value_name = "PATH", help_heading = PROCESS)]
    pub(super) control_socket: Option<PathBuf>,
    /// How much to log, on standard error [default: info]
    #[arg(long, value_name = "LEVEL", help_heading = PROCESS)]
    pub(super) log_level: Option<LogLevel>,
}

/// The volume formats by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum FormatName {
    /// LUKS1 or LUKS2, whichever the header is
    #[default]
    Luks,
    /// LUKS1 only
    Luks1,
    /// LUKS2 only
    Luks2,
    /// dm-crypt's plain mode: encrypted, without a header
    Plain,
    /// Not encrypted; needs --insecure plaintext
    None,
}

/// What makes a plain volume's key from a passphrase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum PlainHash {
    None,
    Ripemd160,
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

/// A choice that is written out either way; in the file also as a boolean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(from = "SwitchInFile")]
pub(super) enum Switch {
    On,
    Off,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected \"on\", \"off\", true or false")]
enum SwitchInFile {
    Truth(bool),
    Word(SwitchWord),
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum SwitchWord {
    On,
    Off,
}

impl From<SwitchInFile> for Switch {
    fn from(written: SwitchInFile) -> Self {
        match written {
            SwitchInFile::Truth(true) | SwitchInFile::Word(SwitchWord::On) => Self::On,
            SwitchInFile::Truth(false) | SwitchInFile::Word(SwitchWord::Off) => Self::Off,
        }
    }
}

/// What is refused unless the operator names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum InsecureGate {
    /// Serve a volume that is not encrypted
    Plaintext,
    /// Accept an old volume's key whose two halves are equal, which weakens XTS
    EqualKeyHalves,
    /// Use the one key of an OpenStack test set-up, the same for every volume
    FixedKey,
    /// Serve with all the rights of whoever has started the process (--sandbox off)
    NoSandbox,
}

/// Reads what may stand alone or in a list.
fn one_or_more<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a reference to a key, or a list of such")]
    enum Written {
        One(String),
        More(Vec<String>),
    }
    Ok(match Written::deserialize(deserializer)? {
        Written::One(reference) => vec![reference],
        Written::More(references) => references,
    })
}

/// Whether `--print-capabilities` is among the arguments of `serve`: then nothing else matters, not even
/// whether the rest makes sense.
pub(super) fn asks_for_capabilities(arguments: &[OsString]) -> bool {
    arguments.get(1).is_some_and(|command| command == "serve")
        && arguments[2..].iter().take_while(|argument| *argument != "--").any(|a| a == "--print-capabilities")
}

impl ServeCommand {
    pub(super) fn run(self) -> Result<(), CliError> {
        let options = match &self.config {
            Some(path) => ServeOptions::from_file(path)?.overridden_by(self.options),
            None => self.options,
        };
        log::start(options.log_level.unwrap_or_default());
        Ok(server::serve(options.resolve()?)?)
    }
}

impl ServeOptions {
    pub(super) fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path)
            .map_err(|source| ConfigError::FileUnreadable { path: path.to_owned(), source })?;
        // Of a syntax error only the statement is shown: the line itself may hold what does not belong there.
        toml::from_str(&text).map_err(|error| ConfigError::FileSyntax {
            path: path.to_owned(),
            line: 1 + text[..error.span().map_or(0, |span| span.start)].matches('\n').count(),
            message: error.message().to_owned(),
        })
    }

    /// Reads the text of a configuration file and settles what needs nothing from outside the process.
    #[cfg(any(fuzzing, test))]
    pub(super) fn understand(text: &str) -> Result<(), String> {
        let options: Self = toml::from_str(text).map_err(|error| error.message().to_owned())?;
        let settled = options.format_config().and_then(|_| options.device_config());
        settled.map(drop).map_err(|error| error.to_string())
    }

    /// These options, except where `other` has a say. The socket is one choice, whichever option makes it; and
    /// gates are not added up, so that a command line which names its own is all there is to know.
    pub(super) fn overridden_by(self, other: Self) -> Self {
        let has_socket = other.socket_path.is_some()
            || other.fd.is_some()
            || other.connect.is_some()
            || other.takeover.is_some();
        let base = if has_socket {
            Self { socket_path: None, fd: None, connect: None, takeover: None, ..self }
        } else {
            self
        };
        Self {
            socket_path: other.socket_path.or(base.socket_path),
            fd: other.fd.or(base.fd),
            connect: other.connect.or(base.connect),
            takeover: other.takeover.or(base.takeover),
            blk_file: other.blk_file.or(base.blk_file),
            read_only: other.read_only.or(base.read_only),
            format: other.format.or(base.format),
            header: other.header.or(base.header),
            sector_size: other.sector_size.or(base.sector_size),
            offset: other.offset.or(base.offset),
            on_error: other.on_error.or(base.on_error),
            direct: other.direct.or(base.direct),
            key: if other.key.is_empty() { base.key } else { other.key },
            key_config: other.key_config.or(base.key_config),
            key_timeout: other.key_timeout.or(base.key_timeout),
            key_slot: other.key_slot.or(base.key_slot),
            cipher: other.cipher.or(base.cipher),
            key_size: other.key_size.or(base.key_size),
            plain_hash: other.plain_hash.or(base.plain_hash),
            skip: other.skip.or(base.skip),
            iv_large_sectors: other.iv_large_sectors.or(base.iv_large_sectors),
            cipher_kernel: other.cipher_kernel.or(base.cipher_kernel),
            insecure: if other.insecure.is_empty() { base.insecure } else { other.insecure },
            expect_uuid: other.expect_uuid.or(base.expect_uuid),
            expect_cipher: other.expect_cipher.or(base.expect_cipher),
            expect_header_digest: other.expect_header_digest.or(base.expect_header_digest),
            kdf_memory_max: other.kdf_memory_max.or(base.kdf_memory_max),
            kdf_work_max: other.kdf_work_max.or(base.kdf_work_max),
            kdf_threads_max: other.kdf_threads_max.or(base.kdf_threads_max),
            kdf_iterations_max: other.kdf_iterations_max.or(base.kdf_iterations_max),
            num_queues: other.num_queues.or(base.num_queues),
            queue_size: other.queue_size.or(base.queue_size),
            logical_block_size: other.logical_block_size.or(base.logical_block_size),
            serial: other.serial.or(base.serial),
            limit_iops: other.limit_iops.or(base.limit_iops),
            limit_iops_burst: other.limit_iops_burst.or(base.limit_iops_burst),
            limit_bytes: other.limit_bytes.or(base.limit_bytes),
            limit_bytes_burst: other.limit_bytes_burst.or(base.limit_bytes_burst),
            cache: other.cache.or(base.cache),
            discard: other.discard.or(base.discard),
            engine: other.engine.or(base.engine),
            incoming: other.incoming.or(base.incoming),
            incoming_timeout: other.incoming_timeout.or(base.incoming_timeout),
            once: other.once.or(base.once),
            sandbox: other.sandbox.or(base.sandbox),
            user: other.user.or(base.user),
            group: other.group.or(base.group),
            allow_uid: if other.allow_uid.is_empty() { base.allow_uid } else { other.allow_uid },
            control_socket: other.control_socket.or(base.control_socket),
            log_level: other.log_level.or(base.log_level),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::{CommandFactory, Parser};
    use serde::de::value::Error as SerdeError;
    use serde::de::{self, Visitor};

    use super::*;

    #[derive(Parser)]
    struct OnlyOptions {
        #[command(flatten)]
        options: ServeOptions,
    }

    fn from_command_line(arguments: &[&str]) -> ServeOptions {
        OnlyOptions::parse_from(std::iter::once(&"sealblk").chain(arguments)).options
    }

    /// One valid value for every option: as on the command line, and as in the file.
    const SAMPLES: [(&str, &str, &str); 50] = [
        ("socket-path", "--socket-path=/s", "'/s'"),
        ("fd", "--fd=7", "7"),
        ("connect", "--connect=/c", "'/c'"),
        ("takeover", "--takeover=/t", "'/t'"),
        ("blk-file", "--blk-file=/v", "'/v'"),
        ("read-only", "--read-only", "true"),
        ("format", "--format=none", "'none'"),
        ("header", "--header=/h", "'/h'"),
        ("sector-size", "--sector-size=4096", "4096"),
        ("offset", "--offset=2048", "2048"),
        ("on-error", "--on-error=stop", "'stop'"),
        ("direct", "--direct=off", "'off'"),
        ("key", "--key=fd:9", "'fd:9'"),
        ("key-config", "--key-config=/k", "'/k'"),
        ("key-timeout", "--key-timeout=5", "5"),
        ("key-slot", "--key-slot=1", "1"),
        ("cipher", "--cipher=aes-xts-plain", "'aes-xts-plain'"),
        ("key-size", "--key-size=256", "256"),
        ("plain-hash", "--plain-hash=ripemd160", "'ripemd160'"),
        ("skip", "--skip=16", "16"),
        ("iv-large-sectors", "--iv-large-sectors=false", "false"),
        ("cipher-kernel", "--cipher-kernel=portable", "'portable'"),
        ("insecure", "--insecure=equal-key-halves", "['equal-key-halves']"),
        ("expect-uuid", "--expect-uuid=u", "'u'"),
        ("expect-cipher", "--expect-cipher=c", "'c'"),
        ("expect-header-digest", "--expect-header-digest=00", "'00'"),
        ("kdf-memory-max", "--kdf-memory-max=1", "1"),
        ("kdf-work-max", "--kdf-work-max=1", "1"),
        ("kdf-threads-max", "--kdf-threads-max=1", "1"),
        ("kdf-iterations-max", "--kdf-iterations-max=1", "1"),
        ("num-queues", "--num-queues=3", "3"),
        ("queue-size", "--queue-size=64", "64"),
        ("logical-block-size", "--logical-block-size=512", "512"),
        ("serial", "--serial=S", "'S'"),
        ("limit-iops", "--limit-iops=1000", "1000"),
        ("limit-iops-burst", "--limit-iops-burst=50", "50"),
        ("limit-bytes", "--limit-bytes=1M", "'1M'"),
        ("limit-bytes-burst", "--limit-bytes-burst=64K", "'64K'"),
        ("cache", "--cache=writethrough", "'writethrough'"),
        ("discard", "--discard=pass", "'pass'"),
        ("engine", "--engine=blocking", "'blocking'"),
        ("incoming", "--incoming", "true"),
        ("incoming-timeout", "--incoming-timeout=7", "7"),
        ("once", "--once", "true"),
        ("sandbox", "--sandbox=strict", "'strict'"),
        ("user", "--user=sealblk", "'sealblk'"),
        ("group", "--group=kvm", "'kvm'"),
        ("allow-uid", "--allow-uid=107", "[107]"),
        ("control-socket", "--control-socket=/c", "'/c'"),
        ("log-level", "--log-level=trace", "'trace'"),
    ];

    /// Collects the keys that a struct asks for.
    struct KeysOf;

    impl<'de> Deserializer<'de> for KeysOf {
        type Error = SerdeError;
        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            keys: &'static [&'static str],
            _: V,
        ) -> Result<V::Value, SerdeError> {
            Err(de::Error::custom(keys.join(" ")))
        }
        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, SerdeError> {
            unreachable!("only structs are asked for")
        }
        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
            unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    #[test]
    fn command_line_and_file_know_the_same_options() {
        let command = OnlyOptions::command();
        let on_command_line: BTreeSet<_> = command.get_arguments().filter_map(|a| a.get_long()).collect();
        let listing = ServeOptions::deserialize(KeysOf).unwrap_err().to_string();
        let in_file: BTreeSet<_> = listing.split(' ').collect();
        assert_eq!(on_command_line, in_file);
        let sampled: BTreeSet<_> = SAMPLES.iter().map(|(name, ..)| *name).collect();
        assert_eq!(on_command_line, sampled, "an option without a sample is not tested below");
    }

    #[test]
    fn each_option_means_the_same_in_both_places() {
        for (name, argument, value) in SAMPLES {
            let written: ServeOptions = toml::from_str(&format!("{name} = {value}")).unwrap();
            assert_eq!(written, from_command_line(&[argument]), "{name}");
            assert_ne!(written, ServeOptions::default(), "{name}");
        }
    }

    #[test]
    fn each_option_survives_a_merge_from_either_side() {
        for (name, argument, _) in SAMPLES {
            let given = || from_command_line(&[argument]);
            assert_eq!(given().overridden_by(ServeOptions::default()), given(), "{name}");
            assert_eq!(ServeOptions::default().overridden_by(given()), given(), "{name}");
        }
    }

    #[test]
    fn the_command_line_overrides_the_file() {
        let file: ServeOptions =
            toml::from_str("read-only = true\ncache = 'writethrough'\ninsecure = ['plaintext']").unwrap();
        let merged =
            file.overridden_by(from_command_line(&["--read-only=false", "--insecure=equal-key-halves"]));
        assert_eq!(merged.read_only, Some(false));
        assert_eq!(merged.cache, Some(CacheMode::Writethrough));
        assert_eq!(merged.insecure, [InsecureGate::EqualKeyHalves]);
    }

    #[test]
    fn keys_stand_alone_or_in_a_list_and_a_list_is_replaced_whole() {
        let file = |value: &str| toml::from_str::<ServeOptions>(&format!("key = {value}"));
        assert_eq!(file("'fd:3'").unwrap().key, ["fd:3"]);
        let both = || file("['fd:3', 'file:/x']").unwrap();
        assert_eq!(both().key, from_command_line(&["--key=fd:3", "--key", "file:/x"]).key);
        assert_eq!(both().overridden_by(from_command_line(&["--key=fd:9"])).key, ["fd:9"]);
        let error = file("3").unwrap_err();
        assert!(error.message().contains("a reference to a key, or a list"), "{error}");
    }

    #[test]
    fn a_switch_is_a_word_or_a_boolean_in_the_file() {
        let direct =
            |value: &str| toml::from_str::<ServeOptions>(&format!("direct = {value}")).map(|o| o.direct);
        for value in ["true", "'on'"] {
            assert_eq!(direct(value), Ok(Some(Switch::On)));
        }
        for value in ["false", "'off'"] {
            assert_eq!(direct(value), Ok(Some(Switch::Off)));
        }
        assert!(direct("1").unwrap_err().message().contains(r#""on", "off", true or false"#));
    }

    #[test]
    fn a_socket_of_any_kind_overrides_one_of_any_other() {
        let file = || toml::from_str::<ServeOptions>("socket-path = '/s'").unwrap();
        let merged = file().overridden_by(from_command_line(&["--fd=3"]));
        assert_eq!((merged.socket_path, merged.fd), (None, Some(3)));
        assert_eq!(file().overridden_by(ServeOptions::default()).socket_path, Some("/s".into()));
    }

    #[test]
    fn capabilities_are_asked_for_among_the_options_of_serve_only() {
        let asks =
            |line: &str| asks_for_capabilities(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert!(asks("sealblk serve --print-capabilities"));
        assert!(asks("sealblk serve --fd=3 --nonsense --print-capabilities"));
        assert!(!asks("sealblk serve -- --print-capabilities"));
        assert!(!asks("sealblk other --print-capabilities"));
        assert!(!asks("sealblk"));
    }
}
