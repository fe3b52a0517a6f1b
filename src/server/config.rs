//! What one served disk is made from: fully typed, every default settled.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use crate::cipher::KernelChoice;
use crate::format::VolumeFormat;
use crate::format::luks::LuksFormat;
use crate::format::plain::PlainFormat;
use crate::format::unencrypted::UnencryptedFormat;
use crate::geometry::SectorSize;
use crate::io::uring;
use crate::keys::KeySource;
use crate::sandbox::{Identity, Mode};

pub use crate::worker::rate_limits::{Limits, Rate};

/// Most queues that a disk may have: one thread serves each.
pub const NUM_QUEUES_MAX: u16 = 64;

/// Largest ring that is ever accepted; QEMU's own limit as well.
pub const QUEUE_SIZE_MAX: u16 = 1024;

/// Smallest ring in which a request fits without indirect descriptors: header, data and status are three
/// descriptors, and a ring's size is a power of two.
pub const QUEUE_SIZE_MIN: u16 = 4;

/// Bytes of a virtio-blk serial, padded with zeroes.
pub const SERIAL_BYTES: usize = 20;

/// One disk and how to serve it.
#[derive(Debug)]
pub struct ServeConfig {
    /// How the VMM and this process find each other.
    pub endpoint: Endpoint,
    /// Where the bytes lie.
    pub volume: VolumeConfig,
    /// What they mean, and how to learn it.
    pub key: KeyConfig,
    /// What encrypts, for formats that have a key.
    pub cipher_kernel: KernelChoice,
    /// What the guest sees.
    pub device: DeviceConfig,
    /// What moves the bytes.
    pub engine: EngineChoice,
    /// Serve a VM that comes from another process, which has the volume until then: how long that process may take to
    /// let go of it once the guest is to go on here.
    pub incoming: Option<Duration>,
    /// Exit when the VMM disconnects, instead of waiting for the next.
    pub once: bool,
    /// What becomes of requests that storage fails.
    pub on_error: ErrorPolicy,
    /// Where operators connect to.
    pub control_socket: Option<PathBuf>,
    /// What the process gives up before it serves anybody, and who is served.
    pub confinement: Confinement,
}

/// What the process gives up, and whom it listens to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Confinement {
    /// The sandbox.
    pub mode: Mode,
    /// The user and group to go on as; `None` for those who started the process.
    pub identity: Option<Identity>,
    /// Users whose VMMs may connect, beside root and the process's own.
    pub allowed_uids: Vec<u32>,
}

/// A volume's key and format.
#[derive(Debug)]
pub struct KeyConfig {
    /// The volume's path.
    pub volume: PathBuf,
    /// What the bytes on it mean.
    pub format: FormatConfig,
    /// Where to look for the key, in order; none for formats without one.
    pub sources: Vec<KeySource>,
    /// How long to try again while none of them can be reached.
    pub timeout: Duration,
}

/// The vhost-user socket.
#[derive(Debug)]
pub enum Endpoint {
    /// Listen on a socket made at this path.
    Listen(PathBuf),
    /// A socket from the parent process, listening or connected.
    Inherited(OwnedFd),
    /// Connect to a VMM that listens at this path.
    Connect(PathBuf),
    /// Take over what the server behind this control socket has, which ends.
    TakeOver(PathBuf),
    /// A listening socket that was taken over, and its file, to be removed at the end.
    TakenOver(OwnedFd, Option<PathBuf>),
}

/// The backing file or block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeConfig {
    /// Its path.
    pub path: PathBuf,
    /// Never write to it, and let others read it meanwhile.
    pub read_only: bool,
    /// Bypass the host's page cache.
    pub direct: bool,
}

/// The declared format, with what it needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FormatConfig {
    /// LUKS1 or LUKS2.
    Luks(LuksFormat),
    /// dm-crypt's plain mode.
    Plain(PlainFormat),
    /// Not encrypted.
    Unencrypted(UnencryptedFormat),
}

impl FormatConfig {
    /// The format behind the joint that start-up works through.
    pub fn volume_format(&self) -> &dyn VolumeFormat {
        match self {
            Self::Luks(format) => format,
            Self::Plain(format) => format,
            Self::Unencrypted(format) => format,
        }
    }
}

/// The virtio device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Queues offered: 1 to [`NUM_QUEUES_MAX`].
    pub num_queues: u16,
    /// Largest ring accepted: a power of two from [`QUEUE_SIZE_MIN`] to [`QUEUE_SIZE_MAX`].
    pub queue_size_max: u16,
    /// The guest's block size, at most the encryption sector size; `None` for just that.
    pub logical_block: Option<SectorSize>,
    /// What `VIRTIO_BLK_T_GET_ID` answers: ASCII, padded with zeroes.
    pub serial: [u8; SERIAL_BYTES],
    /// How the write cache starts out; the guest may change it.
    pub cache: CacheMode,
    /// What becomes of discards.
    pub discard: DiscardPolicy,
    /// How much the guest may ask for.
    pub limits: Limits,
    /// Refuse writes.
    pub read_only: bool,
}

/// When a write counts as done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CacheMode {
    /// When the host has it; a flush makes it durable
    #[default]
    Writeback,
    /// When it would survive a power failure
    Writethrough,
}

/// What becomes of requests that storage fails
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorPolicy {
    /// The guest gets an I/O error
    #[default]
    Report,
    /// They are held, and their queue rests, until `sealblk control` says retry
    Stop,
}

/// What becomes of the guest's discards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiscardPolicy {
    /// Not offered: storage cannot tell used sectors from unused ones
    #[default]
    Ignore,
    /// Free the space, which shows whoever sees the storage which sectors are unused
    Pass,
}

/// What is to move bytes between memory and storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineChoice {
    /// `blocking` for a volume on tmpfs, where io_uring would hand each operation to a thread of the kernel's; `uring`
    /// for all others
    #[default]
    Auto,
    /// io_uring
    Uring,
    /// One blocking system call at a time: for kernels without io_uring
    Blocking,
}

/// What moves bytes between memory and storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EngineKind {
    /// io_uring.
    Uring,
    /// One blocking system call at a time.
    Blocking,
}

impl EngineChoice {
    /// What it comes to for that volume.
    pub(super) fn settle(self, volume: &OwnedFd) -> EngineKind {
        match self {
            Self::Uring => EngineKind::Uring,
            Self::Blocking => EngineKind::Blocking,
            Self::Auto if uring::works_by_itself_on(volume) => EngineKind::Uring,
            Self::Auto => EngineKind::Blocking,
        }
    }
}
