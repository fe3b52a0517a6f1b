//! Served disks side by side: sealblk, and what else there is to encrypt the disk of a guest, or not to.
//!
//! Every back end is a process of its own over a file of its own, and answers the same front end, which has one CPU for
//! itself. All of them are measured in one run, one after the other within each job, and each job several times:
//! figures of one run can be compared, those of different runs hardly. `scripts/bench-peers` is the way to run it.

#[path = "../client/mod.rs"]
mod client;
mod contender;
#[path = "../glue/mod.rs"]
mod glue;
mod job;
mod measurement;
mod picture;
mod table;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;

use contender::{CONTENDERS, Running, Site};
use job::JOBS;
use measurement::{Machine, Report, Result};

/// Measures served disks side by side.
#[derive(Debug, Parser)]
struct Options {
    /// Folder for the disks' files: a tmpfs, or a file system on a disk
    #[arg(long, default_value = "/dev/shm")]
    folder: PathBuf,
    /// Size of each disk in MiB
    #[arg(long, default_value_t = 1024)]
    size_mib: u64,
    /// How often every job is measured with every back end
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of each measurement
    #[arg(long, default_value_t = 1000)]
    milliseconds: u64,
    /// Queues of each disk
    #[arg(long, default_value_t = 1)]
    queues: usize,
    /// Only jobs whose names contain this
    #[arg(long, default_value = "")]
    job: String,
    /// Only back ends whose names contain this
    #[arg(long, default_value = "")]
    back_end: String,
    /// New folder for results.json, table.md and picture.svg
    #[arg(long)]
    out: Option<PathBuf>,
    /// What `cargo bench` passes, and `cargo test` does not: then it is every back end with every job for a moment
    #[arg(long, hide = true)]
    bench: bool,
    /// Be the glued back end: socket, image and key
    #[arg(long, hide = true, num_args = 3)]
    serve_glue: Option<Vec<PathBuf>>,
}

impl Options {
    fn settled(self) -> Self {
        match self.bench {
            true => self,
            false => Self { size_mib: 32, rounds: 1, milliseconds: 20, queues: 2, ..self },
        }
    }
}

fn main() -> io::Result<()> {
    let options = Options::parse().settled();
    if let Some([socket, image, key]) = options.serve_glue.as_deref() {
        let image = File::options().read(true).write(true).open(image)?;
        return glue::serve(socket, image, &fs::read(key)?, options.queues)
            .map_err(|error| io::Error::other(error.to_string()));
    }
    let machine = Machine::take_client_cpu()?;
    let mut running = start(&options, &machine)?;
    let mut results = Vec::new();
    for job in JOBS.iter().filter(|job| job.name().contains(&options.job)) {
        let mut of_job: Vec<Result> =
            running.iter().map(|one| Result::new(one.name, job, options.queues)).collect();
        for round in 0..options.rounds {
            // Each takes every place in the order: what one leaves behind in caches is not always the same one's gain.
            for turn in 0..running.len() {
                let index = (turn + round) % running.len();
                let time = Duration::from_millis(options.milliseconds);
                of_job[index].measure(&mut running[index], job, time)?;
            }
        }
        of_job.iter_mut().for_each(Result::settle);
        println!("{}", table::of_job(job, &of_job));
        results.extend(of_job);
    }
    if !options.bench {
        println!("Success");
    }
    let report = Report { machine, results };
    options.out.as_deref().map_or(Ok(()), |folder| save(&report, folder))
}

/// Starts every back end that this machine has, and sees that its disk keeps what is written to it.
fn start(options: &Options, machine: &Machine) -> io::Result<Vec<Running>> {
    let mut prepared = Vec::new();
    for contender in CONTENDERS.iter().filter(|contender| contender.name.contains(&options.back_end)) {
        if let Some(missing) = contender.missing() {
            println!("not measured: {} ({missing})", contender.name);
            continue;
        }
        let site = Site::new(&options.folder, options.size_mib << 20, options.queues)?;
        (contender.prepare)(&site)?;
        prepared.push((contender, site));
    }
    contender::allocate_alternately(prepared.iter().map(|(_, site)| site))?;
    let started = prepared.into_iter().map(|(contender, site)| {
        let mut running = contender.start(site, machine)?;
        running.client.verify()?;
        Ok(running)
    });
    started.collect()
}

fn save(report: &Report, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    fs::write(folder.join("results.json"), serde_json::to_string_pretty(report)?)?;
    fs::write(folder.join("table.md"), table::markdown(report))?;
    picture::draw(report, &folder.join("picture.svg"))
}
