//! Figures as tables: of one job for the terminal, of all for a document.

use std::fmt::Write as _;

use comfy_table::{Table, presets};

use super::job::{JOBS, Job};
use super::measurement::{Report, Result};

/// What the others are compared with: the unencrypted disk of the most used of them.
const REFERENCE: &str = "qemu-storage-daemon raw";

fn reference_rate(results: &[&Result]) -> Option<f64> {
    results.iter().find(|result| result.back_end == REFERENCE).map(|result| result.median.requests_per_s)
}

fn rate(job: &Job, result: &Result) -> String {
    match job.is_small() {
        true => format!("{:.1}k IOPS", result.median.requests_per_s / 1e3),
        false => format!("{:.2} GB/s", result.median.gb_per_s),
    }
}

fn cpu(job: &Job, result: &Result) -> String {
    match job.is_small() {
        true => format!("{:.2} s/M", result.median.cpu_s_per_million_requests),
        false => format!("{:.3} s/GB", result.median.cpu_s_per_gb),
    }
}

/// One job with every back end.
pub(crate) fn of_job(job: &Job, results: &[Result]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        job.name().as_str(),
        "MEDIAN",
        "OF RAW",
        "SPREAD",
        "CPU",
        "P50 us",
        "P99 us",
        "P99.9 us",
    ]);
    let reference = reference_rate(&results.iter().collect::<Vec<_>>());
    for result in results {
        let ratio =
            reference.map_or("-".to_owned(), |rate| format!("{:.2}", result.median.requests_per_s / rate));
        table.add_row([
            format!("  {}", result.back_end),
            rate(job, result),
            ratio,
            format!("{:.0} %", 100.0 * result.spread()),
            cpu(job, result),
            format!("{:.1}", result.median.latency_p50_us),
            format!("{:.1}", result.median.latency_p99_us),
            format!("{:.1}", result.median.latency_p99_9_us),
        ]);
    }
    table.to_string()
}

/// All jobs down, all back ends across; in brackets the back end's CPU seconds for a million requests, or a gigabyte.
pub(crate) fn markdown(report: &Report) -> String {
    let machine = &report.machine;
    let mut text = format!("{}, Linux {}.\n\n", machine.cpu, machine.kernel);
    let mut back_ends: Vec<&str> = Vec::new();
    for result in &report.results {
        if !back_ends.contains(&result.back_end) {
            back_ends.push(result.back_end);
        }
    }
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    text += &line(["job"].iter().chain(&back_ends).map(ToString::to_string).collect());
    text += &line(vec!["---".to_owned(); back_ends.len() + 1]);
    for job in &JOBS {
        let of_job: Vec<&Result> = report.results.iter().filter(|result| result.job == job.name()).collect();
        let Some(first) = of_job.first() else { continue };
        let mut cells = vec![first.job.clone()];
        let reference = reference_rate(&of_job);
        for result in &of_job {
            let mut cell = format!("{} ({})", rate(job, result), cpu(job, result));
            if let Some(reference) = reference.filter(|_| result.back_end != REFERENCE) {
                write!(cell, ", {:.2}x", result.median.requests_per_s / reference)
                    .expect("a string takes any text");
            }
            cells.push(cell);
        }
        text += &line(cells);
    }
    text
}
