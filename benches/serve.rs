//! A whole served disk, as a VMM sees it: the same front end against `sealblk serve` and against the back end that
//! one gets by gluing the usual crates together.
//!
//! Each back end is a process of its own, with one queue, over a file in the page cache: what is measured is the
//! software between the ring and the kernel, not a disk. Read the figures against each other, not by themselves.
//!
//! `TMPDIR` chooses where the disk's file lies; `cargo bench --bench serve -- --serve-glue SOCKET IMAGE KEY` serves
//! a disk with the glued back end, to put another client in front of it.

#[path = "client/mod.rs"]
mod client;
#[path = "glue/mod.rs"]
mod glue;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use client::{Access, Client, Load, Order, Stop};
use criterion::{BenchmarkId, Criterion, Throughput};
use tempfile::TempDir;

const DISK_BYTES: u64 = 64 << 20;
const KIB: usize = 1024;

/// A back end under measurement.
#[derive(Clone, Copy)]
struct Contender {
    name: &'static str,
    command: fn(&Disk) -> Command,
}

/// The same disk by sector and block size, for requests of a block and of a large sector.
const SECTORS_AND_BLOCKS: [Contender; 3] = [
    Contender { name: "sectors 512", command: |disk| sealblk_plain_command(disk, "512", "512") },
    Contender {
        name: "sectors 4096, blocks 512",
        command: |disk| sealblk_plain_command(disk, "4096", "512"),
    },
    Contender { name: "sectors 4096", command: |disk| sealblk_plain_command(disk, "4096", "4096") },
];

const CONTENDERS: [Contender; 3] = [
    Contender { name: "glue", command: glue_command },
    Contender {
        name: "sealblk",
        command: |disk| sealblk_command(disk, &["--format", "plain", "--key-size", "512"]),
    },
    Contender { name: "sealblk-unencrypted", command: sealblk_unencrypted_command },
];

/// The files of one served disk.
struct Disk {
    folder: TempDir,
}

impl Disk {
    fn new() -> io::Result<Self> {
        let disk = Self { folder: tempfile::tempdir()? };
        File::create(disk.image())?.set_len(DISK_BYTES)?;
        let key: Vec<u8> = (0..64).collect();
        fs::write(disk.key(), key)?;
        let only_ours = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o600);
        fs::set_permissions(disk.key(), only_ours)?;
        Ok(disk)
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
}

fn glue_command(disk: &Disk) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("a process knows its program"));
    command.arg("--serve-glue").args([disk.socket(), disk.image(), disk.key()]);
    command
}

fn sealblk_command(disk: &Disk, format: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealblk"));
    command.args(["serve", "--num-queues", "1", "--direct", "off", "--log-level", "error"]);
    command.arg("--socket-path").arg(disk.socket()).arg("--blk-file").arg(disk.image()).args(format);
    if format.contains(&"plain") {
        command.arg("--key").arg(format!("file:{}", disk.key().display()));
    }
    command
}

fn sealblk_plain_command(disk: &Disk, sector_bytes: &str, block_bytes: &str) -> Command {
    let sizes = ["--sector-size", sector_bytes, "--logical-block-size", block_bytes];
    sealblk_command(disk, &[&["--format", "plain"][..], &sizes].concat())
}

fn sealblk_unencrypted_command(disk: &Disk) -> Command {
    sealblk_command(disk, &["--format", "none", "--insecure", "plaintext"])
}

/// A running back end, killed when dropped.
struct Backend {
    process: Child,
    disk: Disk,
}

impl Backend {
    fn start(contender: Contender) -> (Self, Client) {
        let disk = Disk::new().expect("a temporary folder can be made");
        let mut process = (contender.command)(&disk).spawn().expect("the back end can be started");
        let client = connect(&disk.socket(), &mut process);
        (Self { process, disk }, client)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // It may have ended by itself when the client left.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Connects as soon as the back end listens.
fn connect(socket: &Path, backend: &mut Child) -> Client {
    let give_up_at = Instant::now() + Duration::from_secs(10);
    loop {
        match Client::connect(socket, 1) {
            Ok(client) => return client,
            Err(error) => {
                let ended = backend.try_wait().expect("the back end is our child");
                assert!(ended.is_none(), "the back end ended: {ended:?}");
                assert!(Instant::now() < give_up_at, "no back end at {}: {error}", socket.display());
                thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

fn random(access: Access, request_bytes: usize, depth: usize) -> Load {
    Load { access, order: Order::Random, request_bytes, depth }
}

fn served_disk(criterion: &mut Criterion) {
    let loads = [(Access::Read, 4, 1), (Access::Read, 4, 32), (Access::Read, 128, 8)];
    let writes = loads.map(|(_, kib, depth)| (Access::Write, kib, depth));
    let loads: Vec<Load> = loads
        .into_iter()
        .chain(writes)
        .map(|(access, kib, depth)| random(access, kib * KIB, depth))
        .collect();

    let mut backends = CONTENDERS.map(|contender| (contender.name, Backend::start(contender)));
    for (_, (_, client)) in &mut backends {
        client.verify().expect("the back end answers");
    }
    let [ours, glue, unencrypted] = [1, 0, 2]
        .map(|index: usize| fs::read(backends[index].1.0.disk.image()).expect("the image is readable"));
    assert!(ours == glue, "both do the same work: the same data became the same ciphertext");
    assert!(ours != unencrypted, "which is not the data");
    drop([ours, glue, unencrypted]);

    measure(criterion, "serve", &loads, &mut backends.each_mut());
}

/// What blocks smaller than sectors cost, and what they do not.
fn small_blocks(criterion: &mut Criterion) {
    let mut backends = SECTORS_AND_BLOCKS.map(|contender| (contender.name, Backend::start(contender)));
    for (_, (_, client)) in &mut backends {
        client.verify().expect("the back end answers");
    }
    let [by_512, in_blocks, by_4096] = &mut backends;
    for depth in [1, 32] {
        let loads = [Access::Read, Access::Write].map(|access| random(access, 512, depth));
        measure(criterion, "blocks", &loads, &mut [&mut *by_512, &mut *in_blocks]);
        let loads = loads.map(|load| Load { request_bytes: 4 * KIB, ..load });
        measure(criterion, "blocks", &loads, &mut [&mut *by_512, &mut *in_blocks, &mut *by_4096]);
    }
}

/// Measures each load with every back end.
fn measure(
    criterion: &mut Criterion,
    what: &str,
    loads: &[Load],
    backends: &mut [&mut (&'static str, (Backend, Client))],
) {
    for load in loads {
        let size =
            if load.request_bytes < KIB { "0.5".to_owned() } else { (load.request_bytes / KIB).to_string() };
        let title = format!("{what}/{:?}/{size} KiB/depth {}", load.access, load.depth);
        let mut group = criterion.benchmark_group(title.to_lowercase());
        group.throughput(Throughput::Bytes(load.request_bytes as u64));
        group
            .warm_up_time(Duration::from_millis(500))
            .measurement_time(Duration::from_secs(3))
            .sample_size(20);
        for (name, (_, client)) in &mut *backends {
            group.bench_function(BenchmarkId::from_parameter(*name), |bencher| {
                bencher.iter_custom(|count| {
                    client.run(*load, Stop::Requests(count)).expect("the back end answers").elapsed
                });
            });
        }
        group.finish();
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, flag, socket, image, key] = arguments.as_slice()
        && flag == "--serve-glue"
    {
        let image = File::options().read(true).write(true).open(image).expect("the image can be opened");
        let key = fs::read(key).expect("the key can be read");
        glue::serve(Path::new(socket), image, &key, 1).expect("the back end ran");
        return;
    }
    let mut criterion = Criterion::default().configure_from_args();
    served_disk(&mut criterion);
    small_blocks(&mut criterion);
    criterion.final_summary();
}
