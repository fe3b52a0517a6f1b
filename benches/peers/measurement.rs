//! Figures of a back end with a job: each round's, and the medians.

use std::fs;
use std::io;
use std::time::Duration;

use serde::Serialize;

use super::client::{Outcome, Stop};
use super::contender::Running;
use super::job::Job;

const WARM_UP: Duration = Duration::from_millis(100);

/// What it was measured on.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) kernel: String,
    pub(crate) client_cpu: usize,
    /// As `taskset` takes them.
    pub(crate) back_end_cpus: String,
}

/// All figures of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) results: Vec<Result>,
}

/// Figures of one back end with one job.
#[derive(Debug, Serialize)]
pub(crate) struct Result {
    pub(crate) back_end: &'static str,
    pub(crate) job: String,
    pub(crate) queues: usize,
    /// Medians of the rounds.
    pub(crate) median: Figures,
    pub(crate) rounds: Vec<Figures>,
    #[serde(skip)]
    request_bytes: f64,
}

/// Figures of one measurement.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Figures {
    pub(crate) requests_per_s: f64,
    pub(crate) gb_per_s: f64,
    /// CPU time of the back end's process.
    pub(crate) cpu_s_per_million_requests: f64,
    pub(crate) cpu_s_per_gb: f64,
    pub(crate) latency_p50_us: f64,
    pub(crate) latency_p99_us: f64,
    pub(crate) latency_p99_9_us: f64,
}

impl Machine {
    /// Keeps the last CPU for the front end, on this thread, and leaves the others to the back ends.
    pub(crate) fn take_client_cpu() -> io::Result<Self> {
        let cpu_count = std::thread::available_parallelism()?.get();
        let client_cpu = cpu_count - 1;
        let mut cpus = rustix::thread::CpuSet::new();
        cpus.set(client_cpu);
        if cpu_count > 1 {
            rustix::thread::sched_setaffinity(None, &cpus)?;
        }
        let information = fs::read_to_string("/proc/cpuinfo")?;
        let name = information.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
        Ok(Self {
            cpu: name.unwrap_or("unknown CPU").to_owned(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            client_cpu,
            back_end_cpus: format!("0-{}", client_cpu.saturating_sub(1)),
        })
    }
}

impl Result {
    pub(crate) fn new(back_end: &'static str, job: &Job, queues: usize) -> Self {
        Self {
            back_end,
            job: job.name(),
            queues,
            median: Figures::default(),
            rounds: Vec::new(),
            request_bytes: job.load().request_bytes as f64,
        }
    }

    pub(crate) fn measure(&mut self, running: &mut Running, job: &Job, time: Duration) -> io::Result<()> {
        running.client.run(job.load(), Stop::After(WARM_UP.min(time)))?;
        let before = running.cpu_time()?;
        let outcome = running.client.run(job.load(), Stop::After(time))?;
        let cpu_time = running.cpu_time()? - before;
        self.rounds.push(Figures::new(outcome, cpu_time, self.request_bytes));
        Ok(())
    }

    pub(crate) fn settle(&mut self) {
        let median = |figure: fn(&Figures) -> f64| {
            let mut values: Vec<f64> = self.rounds.iter().map(figure).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        self.median = Figures {
            requests_per_s: median(|round| round.requests_per_s),
            gb_per_s: median(|round| round.gb_per_s),
            cpu_s_per_million_requests: median(|round| round.cpu_s_per_million_requests),
            cpu_s_per_gb: median(|round| round.cpu_s_per_gb),
            latency_p50_us: median(|round| round.latency_p50_us),
            latency_p99_us: median(|round| round.latency_p99_us),
            latency_p99_9_us: median(|round| round.latency_p99_9_us),
        };
    }

    /// How far the rounds' requests per second lie apart, as a part of the median.
    pub(crate) fn spread(&self) -> f64 {
        let rates = || self.rounds.iter().map(|round| round.requests_per_s);
        (rates().fold(f64::MIN, f64::max) - rates().fold(f64::MAX, f64::min)) / self.median.requests_per_s
    }
}

impl Figures {
    fn new(mut outcome: Outcome, cpu_time: Duration, request_bytes: f64) -> Self {
        let count = outcome.request_count as f64;
        let (seconds, gigabytes) = (outcome.elapsed.as_secs_f64(), count * request_bytes / 1e9);
        outcome.latencies_ns.sort_unstable();
        let latency_us = |part: f64| {
            let last = outcome.latencies_ns.len() - 1;
            f64::from(outcome.latencies_ns[(last as f64 * part) as usize]) / 1e3
        };
        Self {
            requests_per_s: count / seconds,
            gb_per_s: gigabytes / seconds,
            cpu_s_per_million_requests: cpu_time.as_secs_f64() / count * 1e6,
            cpu_s_per_gb: cpu_time.as_secs_f64() / gigabytes,
            latency_p50_us: latency_us(0.5),
            latency_p99_us: latency_us(0.99),
            latency_p99_9_us: latency_us(0.999),
        }
    }
}
