//! The back ends that are measured.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::FallocateFlags;
use tempfile::TempDir;

use super::client::Client;
use super::measurement::Machine;

const SEALBLK: &str = env!("CARGO_BIN_EXE_sealblk");
const QSD: &str = "qemu-storage-daemon";
const START_PATIENCE: Duration = Duration::from_secs(20);
/// How much of a file is allocated at a time by [`allocate_alternately`].
const ALLOCATION_BYTES: u64 = 1 << 20;

/// A back end.
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    /// Makes the volume.
    pub(crate) prepare: fn(&Site) -> io::Result<()>,
    command: fn(&Site) -> Command,
    program: &'static str,
}

/// All of them; sealblk, its peers, and the baseline.
pub(crate) const CONTENDERS: [Contender; 6] = [
    Contender {
        name: "sealblk LUKS2, sectors 4096",
        prepare: |site| site.format(&["--type", "luks2", "--sector-size", "4096"]),
        command: |site| site.sealblk(&["--key", &site.key_reference()]),
        program: SEALBLK,
    },
    Contender {
        name: "sealblk LUKS1, sectors 512",
        prepare: |site| site.format(&["--type", "luks1"]),
        command: |site| site.sealblk(&["--key", &site.key_reference()]),
        program: SEALBLK,
    },
    Contender {
        name: "sealblk unencrypted",
        prepare: Site::make_raw,
        command: |site| {
            site.sealblk(&["--format", "none", "--insecure", "plaintext", "--sector-size", "4096"])
        },
        program: SEALBLK,
    },
    Contender {
        name: "qemu-storage-daemon raw",
        prepare: Site::make_raw,
        command: |site| site.qsd(&[], "file"),
        program: QSD,
    },
    Contender {
        name: "qemu-storage-daemon LUKS",
        prepare: |site| site.format(&["--type", "luks1"]),
        command: |site| {
            let secret = format!("secret,id=key,file={}", site.key().display());
            site.qsd(
                &["--object", &secret, "--blockdev", "luks,node-name=luks,file=file,key-secret=key"],
                "luks",
            )
        },
        program: QSD,
    },
    Contender {
        name: "glued crates, XTS",
        prepare: Site::make_raw,
        command: |site| {
            let mut command = Command::new(std::env::current_exe().expect("a process knows its program"));
            command.arg("--serve-glue").args([site.socket(), site.image(), site.key()]);
            command.args(["--queues", &site.queue_count.to_string()]);
            command
        },
        program: SEALBLK,
    },
];

impl Contender {
    /// What this machine lacks for it.
    pub(crate) fn missing(&self) -> Option<String> {
        let found = self.program == SEALBLK
            || Command::new(self.program).arg("--version").stdout(Stdio::null()).status().is_ok();
        (!found).then(|| format!("no {} here: scripts/install-guest-tools", self.program))
    }

    /// Serves the volume that was prepared at `site`.
    pub(crate) fn start(&self, site: Site, machine: &Machine) -> io::Result<Running> {
        let plain = (self.command)(&site);
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", &machine.back_end_cpus]).arg(plain.get_program()).args(plain.get_args());
        let process = command.stdin(Stdio::null()).spawn()?;
        let mut process = KilledOnDrop(process);
        let client = connect(&site, &mut process)?;
        Ok(Running { name: self.name, client, process, _site: site })
    }
}

/// A back end at work, and its front end.
pub(crate) struct Running {
    pub(crate) name: &'static str,
    pub(crate) client: Client,
    process: KilledOnDrop,
    _site: Site,
}

impl Running {
    /// The CPU time that its threads have had so far.
    pub(crate) fn cpu_time(&self) -> io::Result<Duration> {
        let mut nanoseconds = 0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.process.0.id()))? {
            // Threads of the kernel's workers come and go.
            let Ok(statistics) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
            let first = statistics.split(' ').next().and_then(|text| text.parse::<u64>().ok());
            nanoseconds += first.ok_or_else(|| io::Error::other("no CPU time in schedstat"))?;
        }
        Ok(Duration::from_nanos(nanoseconds))
    }
}

struct KilledOnDrop(Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        // It may have ended by itself when the client left.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Connects as soon as the back end listens.
fn connect(site: &Site, back_end: &mut KilledOnDrop) -> io::Result<Client> {
    let give_up_at = Instant::now() + START_PATIENCE;
    loop {
        match Client::connect(&site.socket(), site.queue_count) {
            Ok(client) => return Ok(client),
            Err(error) => {
                let ended = back_end.0.try_wait()?;
                if ended.is_some() || Instant::now() > give_up_at {
                    return Err(io::Error::other(format!("no back end: {error}, {ended:?}")));
                }
                thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// Allocates the disks' files, each in turn a piece of each.
///
/// A kernel gives away its scattered pages first, and a file on a tmpfs whose pages follow each other in memory is read
/// and written up to twice as fast as one of scattered pages: files made one after the other would not be alike.
pub(crate) fn allocate_alternately<'a>(sites: impl Iterator<Item = &'a Site>) -> io::Result<()> {
    let open = |site: &Site| File::options().write(true).open(site.image());
    let files: Vec<File> = sites.map(open).collect::<io::Result<_>>()?;
    let sizes: Vec<u64> = files.iter().map(|file| Ok(file.metadata()?.len())).collect::<io::Result<_>>()?;
    let longest_bytes = sizes.iter().copied().max().unwrap_or(0);
    for offset_bytes in (0..longest_bytes).step_by(ALLOCATION_BYTES as usize) {
        for (file, size_bytes) in files.iter().zip(&sizes) {
            let len = size_bytes.saturating_sub(offset_bytes).min(ALLOCATION_BYTES);
            if len > 0 {
                rustix::fs::fallocate(file, FallocateFlags::empty(), offset_bytes, len)?;
            }
        }
    }
    Ok(())
}

/// The files of one served disk.
pub(crate) struct Site {
    folder: TempDir,
    disk_bytes: u64,
    queue_count: usize,
}

impl Site {
    pub(crate) fn new(folder: &Path, disk_bytes: u64, queue_count: usize) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("bench-peers.").tempdir_in(folder)?;
        let site = Self { folder, disk_bytes, queue_count };
        // 64 bytes, and text: the glued back end's volume key, and a passphrase that QEMU takes.
        fs::write(site.key(), (b'!'..).take(64).collect::<Vec<u8>>())?;
        fs::set_permissions(site.key(), Permissions::from_mode(0o600))?;
        Ok(site)
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    fn key(&self) -> PathBuf {
        self.folder.path().join("key")
    }

    fn key_reference(&self) -> String {
        format!("file:{}", self.key().display())
    }

    fn make_raw(&self) -> io::Result<()> {
        File::create(self.image())?.set_len(self.disk_bytes)
    }

    fn format(&self, options: &[&str]) -> io::Result<()> {
        let mut command = Command::new(SEALBLK);
        command.arg("format").arg(self.image()).args(["--key", &self.key_reference()]);
        command.args(["--size", &self.disk_bytes.to_string()]).args(options).stdout(Stdio::null());
        match command.status()?.success() {
            true => Ok(()),
            false => Err(io::Error::other("sealblk format failed")),
        }
    }

    fn sealblk(&self, options: &[&str]) -> Command {
        let mut command = Command::new(SEALBLK);
        command.args(["serve", "--log-level", "error", "--num-queues", &self.queue_count.to_string()]);
        command.arg("--socket-path").arg(self.socket()).arg("--blk-file").arg(self.image()).args(options);
        command
    }

    fn qsd(&self, more: &[&str], node: &str) -> Command {
        let mut command = Command::new(QSD);
        let file =
            format!("file,node-name=file,filename={},aio=io_uring,cache.direct=on", self.image().display());
        let export = format!(
            "vhost-user-blk,id=disk,node-name={node},writable=on,num-queues={},addr.type=unix,addr.path={}",
            self.queue_count,
            self.socket().display()
        );
        command.args(["--blockdev", &file]).args(more).args(["--export", &export]);
        command
    }
}
