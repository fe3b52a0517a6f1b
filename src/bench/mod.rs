//! How fast the cipher is on this machine, beside what it is measured against: OpenSSL, `memcpy`, and the limit that the
//! CPU's AES units set.
//!
//! Every figure is the fastest of many short samples: whatever else the machine does can only make a sample slower.
//! Contenders take turns, sample by sample, so that those of one case are measured in the same moments and can be
//! compared even on a busy machine.

mod bound;
mod contender;
mod openssl;
mod timing;

use std::fs;
use std::num::NonZero;
use std::thread;
use std::time::Duration;

use serde::Serialize;

use crate::cipher::{CipherError, KernelChoice};
use crate::geometry::SectorSize;

pub use bound::Bound;
pub use contender::Contender;
pub use openssl::OpensslError;

use contender::{Case, Prepared};
use openssl::Libcrypto;

/// What to measure: every contender with every combination of the rest.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In the order of the report. OpenSSL is left out where it is not installed, unless it is the only one.
    pub contenders: Vec<Contender>,
    /// 256 (AES-128) or 512 (AES-256), as LUKS counts.
    pub key_bits: Vec<usize>,
    /// Bytes that are encrypted as one.
    pub sector_sizes: Vec<SectorSize>,
    /// Lengths of source and destination each: multiples of every sector size.
    pub buffers_bytes: Vec<usize>,
    /// For one figure.
    pub time: Duration,
}

/// What came out. As JSON, an interface to other programs.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The model's name.
    pub cpu: String,
    /// What `--cipher-kernel auto` chooses here.
    pub auto_kernel: String,
    /// OpenSSL's own words of its version; `None` where there is none.
    pub openssl: Option<String>,
    /// No cipher can be faster than this on one core, with AES-256 and sectors of 4096 bytes. `None` where it is not
    /// known; `results` have one for each key and sector size.
    pub bound_gb_per_s: Option<f64>,
    /// What the bounds were computed from.
    pub bound: Option<Bound>,
    /// On one core.
    pub results: Vec<Figure>,
    /// How many cores there are for this process.
    pub cores: usize,
    /// On all of them at once, together; empty if there is only one. Buffers above a megabyte are shared out.
    pub results_all_cores: Vec<Figure>,
}

/// One line of the report. Speeds in 10^9 bytes a second.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// Whose.
    pub kernel: String,
    /// 256 (AES-128) or 512 (AES-256), as LUKS counts. `memcpy`, which knows no key and no sectors, is measured beside
    /// each all the same.
    pub key_bits: usize,
    /// Bytes.
    pub sector_size: u32,
    /// Length of source and destination each.
    pub buffer_bytes: usize,
    /// Speed of encryption.
    pub encrypt_gb_per_s: f64,
    /// Speed of decryption.
    pub decrypt_gb_per_s: f64,
    /// What the AES units of as many cores could do at most.
    pub bound_gb_per_s: Option<f64>,
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The CPU cannot run a kernel, or there is no locked memory.
    #[error(transparent)]
    Cipher(#[from] CipherError),
    /// It was asked for, but cannot be used.
    #[error("OpenSSL cannot be measured")]
    Openssl(#[from] OpensslError),
    /// Figures of something else than AES-XTS would say nothing.
    #[error("`{one}` and `{other}` encrypt to different bytes: one of them is broken on this CPU")]
    Disagreement {
        /// One of them.
        one: Contender,
        /// The other.
        other: Contender,
    },
}

/// Measures everything in `plan`, and tells `progress` what share of it is done.
///
/// # Errors
/// See [`BenchError`].
pub fn run(plan: &Plan, progress: &mut dyn FnMut(f64)) -> Result<Report, BenchError> {
    let openssl = Libcrypto::load();
    let only_openssl = plan.contenders.iter().all(|contender| *contender == Contender::Openssl);
    let (libcrypto, contenders) = match openssl {
        Ok(libcrypto) => (Some(libcrypto), plan.contenders.clone()),
        Err(error) if only_openssl => return Err(error.into()),
        Err(_) => {
            let others = plan.contenders.iter().filter(|contender| **contender != Contender::Openssl);
            (None, others.copied().collect())
        }
    };
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let bound = Bound::measure(plan.time);
    let cases = cases(plan);
    let case_count = cases.len();

    let mut report = Report {
        cpu: cpu_name(),
        auto_kernel: KernelChoice::preferred().to_string(),
        openssl: libcrypto.as_ref().map(Libcrypto::version),
        bound_gb_per_s: bound.as_ref().map(|bound| rounded(bound.gb_per_s(512, SectorSize::BYTES_4096))),
        bound,
        results: Vec::new(),
        cores,
        results_all_cores: Vec::new(),
    };
    for (done, case) in cases.into_iter().enumerate() {
        let prepared = contenders
            .iter()
            .map(|contender| Prepared::new(*contender, case, libcrypto.as_ref()))
            .collect::<Result<Vec<_>, _>>()?;
        contender::check_agreement(&prepared)?;
        let bound = report.bound.as_ref().map(|bound| bound.gb_per_s(case.key_bits, case.sector_size));
        let speeds = timing::one_core(&prepared, case.buffer_bytes, plan.time)?;
        report.results.extend(figures(&prepared, case, &speeds, bound));
        if cores > 1 {
            let speeds = timing::all_cores(&prepared, case.buffer_bytes, plan.time, cores)?;
            let bound = bound.map(|bound| bound * cores as f64);
            report.results_all_cores.extend(figures(&prepared, case, &speeds, bound));
        }
        progress((done + 1) as f64 / case_count as f64);
    }
    Ok(report)
}

fn cases(plan: &Plan) -> Vec<Case> {
    let mut cases = Vec::new();
    for &key_bits in &plan.key_bits {
        for &sector_size in &plan.sector_sizes {
            for &buffer_bytes in &plan.buffers_bytes {
                cases.push(Case { key_bits, sector_size, buffer_bytes });
            }
        }
    }
    cases
}

fn figures(
    prepared: &[Prepared<'_>],
    case: Case,
    speeds: &[timing::Speeds],
    bound: Option<f64>,
) -> impl Iterator<Item = Figure> {
    prepared.iter().zip(speeds).map(move |(prepared, speeds)| {
        let contender = prepared.contender();
        Figure {
            kernel: contender.to_string(),
            key_bits: case.key_bits,
            sector_size: case.sector_size.bytes(),
            buffer_bytes: case.buffer_bytes,
            encrypt_gb_per_s: rounded(speeds.encrypt_gb_per_s),
            decrypt_gb_per_s: rounded(speeds.decrypt_gb_per_s),
            bound_gb_per_s: bound.filter(|_| contender != Contender::Memcpy).map(rounded),
        }
    })
}

/// To a megabyte a second: there is no truth in more digits.
fn rounded(gb_per_s: f64) -> f64 {
    (gb_per_s * 1000.0).round() / 1000.0
}

/// As Linux names it; some architectures have no name.
fn cpu_name() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

#[cfg(test)]
mod tests;
