//! `sealblk bench`: options, table and chart. What is measured, and how, is in [`bench`](crate::bench).

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use clap::Args;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, Table};
use indicatif::{ProgressBar, ProgressStyle};

use super::exit::CliError;
use crate::bench::{self, Contender, Figure, Plan, Report};
use crate::geometry::SectorSize;

/// A small request, what fits into a core's caches, and what fits into none.
const BUFFERS_BYTES: [usize; 3] = [4 << 10, 64 << 10, 128 << 20];
const BUFFER_BYTES_MAX: u64 = 4 << 30;
const SECONDS_MAX: f64 = 60.0;

/// Characters of the chart's longest bar.
const BAR_WIDTH: f64 = 48.0;
/// Resolution of the progress bar.
const PROGRESS_STEPS: f64 = 1000.0;

/// Measures the cipher on this machine
#[derive(Debug, Args)]
#[command(
    after_help = "Prints tables and a chart. Every figure is the fastest of many samples. The bound is what the CPU's \
                  AES units could do if everything else took no time."
)]
pub(super) struct BenchCommand {
    /// Measure only this: vaes512, vaes256, aesni, portable, openssl, memcpy, or auto for the kernel that `serve` would
    /// choose; may be repeated [default: all that there are]
    #[arg(long, value_name = "NAME")]
    kernel: Vec<String>,
    /// Size of both halves of the key in bits: 256 (AES-128) or 512 (AES-256); may be repeated [default: both]
    #[arg(long, value_name = "BITS", value_parser = key_bits)]
    key_size: Vec<usize>,
    /// Encryption sector size: 512, 1024, 2048 or 4096; may be repeated [default: 512 and 4096]
    #[arg(long, value_name = "BYTES", value_parser = sector_size)]
    sector_size: Vec<SectorSize>,
    /// Length of source and destination each; may be repeated [default: 4096, 65536 and 134217728]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(512..=BUFFER_BYTES_MAX))]
    buffer_size: Vec<u64>,
    /// Time for each figure
    #[arg(long, value_name = "SECONDS", default_value = "0.05", value_parser = seconds)]
    seconds: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn key_bits(text: &str) -> Result<usize, String> {
    match text {
        "256" => Ok(256),
        "512" => Ok(512),
        _ => Err("it is 256 or 512".to_owned()),
    }
}

fn sector_size(text: &str) -> Result<SectorSize, String> {
    let size = text.parse().ok().and_then(SectorSize::new);
    size.ok_or_else(|| "it is 512, 1024, 2048 or 4096".to_owned())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: Option<f64> = text.parse().ok().filter(|seconds| (0.0..=SECONDS_MAX).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| format!("it is a number from 0 to {SECONDS_MAX}"))
}

impl BenchCommand {
    pub(super) fn run(self) -> Result<(), CliError> {
        let json = self.json;
        let plan = self.plan()?;
        // Hides itself where standard error is no terminal.
        let bar = ProgressBar::new(PROGRESS_STEPS as u64)
            .with_style(ProgressStyle::with_template("measuring {bar:40} {percent} %").expect("it is valid"));
        let report = bench::run(&plan, &mut |done| bar.set_position((done * PROGRESS_STEPS) as u64));
        bar.finish_and_clear();
        let report = report?;
        if json {
            let text = serde_json::to_string_pretty(&report).expect("a report is plain data");
            super::print(&text)
        } else {
            super::print(text(&report).trim_end())
        }
    }

    fn plan(self) -> Result<Plan, CliError> {
        let usage = |error: String| CliError::Usage(format!("{error}; see `sealblk bench --help`"));
        let mut contenders = Vec::new();
        for name in &self.kernel {
            let contender = name.parse::<Contender>().map_err(|_| {
                usage(format!(
                    "unknown kernel `{name}`: there are auto, vaes512, vaes256, aesni, portable, openssl and memcpy"
                ))
            })?;
            if !contenders.contains(&contender) {
                contenders.push(contender);
            }
        }
        let plan = Plan {
            contenders: if contenders.is_empty() { Contender::all() } else { contenders },
            key_bits: or_default(self.key_size, &[256, 512]),
            sector_sizes: or_default(self.sector_size, &[SectorSize::BYTES_512, SectorSize::BYTES_4096]),
            buffers_bytes: or_default(
                self.buffer_size.iter().map(|bytes| usize::try_from(*bytes).unwrap_or(usize::MAX)).collect(),
                &BUFFERS_BYTES,
            ),
            time: self.seconds,
        };
        for buffer_bytes in &plan.buffers_bytes {
            let cut =
                plan.sector_sizes.iter().find(|size| !buffer_bytes.is_multiple_of(size.bytes() as usize));
            if let Some(sector_size) = cut {
                let sector_bytes = sector_size.bytes();
                return Err(usage(format!(
                    "the buffer size of {buffer_bytes} bytes is not a multiple of the sector size ({sector_bytes} bytes)"
                )));
            }
        }
        Ok(plan)
    }
}

/// Each value once, in the order given.
fn or_default<T: Copy + PartialEq>(given: Vec<T>, default: &[T]) -> Vec<T> {
    let mut values = Vec::new();
    for value in if given.is_empty() { default.to_vec() } else { given } {
        if !values.contains(&value) {
            values.push(value);
        }
    }
    values
}

/// All of the report, for people.
fn text(report: &Report) -> String {
    let mut text = String::new();
    heading(&mut text, report).expect("a string takes any text");
    write!(text, "\nOne core, GB/s (10^9 bytes), encryption / decryption:\n{}\n", table(&report.results))
        .expect("a string takes any text");
    if !report.results_all_cores.is_empty() {
        write!(
            text,
            "\nAll {} cores at once, together; buffers above 1 MiB are shared out:\n{}\n",
            report.cores,
            table(&report.results_all_cores)
        )
        .expect("a string takes any text");
    }
    chart(&mut text, report).expect("a string takes any text");
    text
}

fn heading(text: &mut String, report: &Report) -> std::fmt::Result {
    let Report { cpu, cores, auto_kernel, .. } = report;
    writeln!(text, "{cpu}, {cores} cores; `--cipher-kernel auto` chooses {auto_kernel}")?;
    match &report.openssl {
        Some(version) => writeln!(text, "openssl is {version}, called once for each sector")?,
        None => writeln!(text, "openssl is not measured: no libcrypto was found")?,
    }
    match &report.bound {
        Some(bound) => writeln!(
            text,
            "Bound: {:.2} GHz x {:.2} AES instructions a cycle x {} bytes, all measured, where {}",
            bound.clock_ghz, bound.aes_instructions_per_cycle, bound.vector_bytes, bound.assumption
        ),
        None => writeln!(text, "Bound: not known on this kind of CPU"),
    }
}

fn cipher_name(key_bits: usize) -> &'static str {
    if key_bits == 256 { "AES-128" } else { "AES-256" }
}

fn bytes_name(bytes: usize) -> String {
    match bytes {
        0x10_0000.. if bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        0x400.. if bytes.is_multiple_of(1 << 10) => format!("{} KiB", bytes >> 10),
        _ => format!("{bytes} B"),
    }
}

/// A line for each kernel, key and sector size, a column for each buffer.
fn table(figures: &[Figure]) -> Table {
    let buffers: BTreeSet<usize> = figures.iter().map(|figure| figure.buffer_bytes).collect();
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY);
    let columns = ["cipher", "sector", "kernel"].map(str::to_owned).into_iter();
    table.set_header(
        columns.chain(buffers.iter().map(|bytes| bytes_name(*bytes))).chain(["of bound".to_owned()]),
    );
    let mut lines: Vec<(usize, u32, &str)> = Vec::new();
    for figure in figures {
        let line = (figure.key_bits, figure.sector_size, figure.kernel.as_str());
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    for (key_bits, sector_size, kernel) in lines {
        let of_line: Vec<&Figure> = figures
            .iter()
            .filter(|figure| {
                (figure.key_bits, figure.sector_size, figure.kernel.as_str())
                    == (key_bits, sector_size, kernel)
            })
            .collect();
        let mut cells = vec![cipher_name(key_bits).to_owned(), sector_size.to_string(), kernel.to_owned()];
        for bytes in &buffers {
            let figure = of_line.iter().find(|figure| figure.buffer_bytes == *bytes);
            cells.push(figure.map_or_else(String::new, |figure| {
                format!("{:.1} / {:.1}", figure.encrypt_gb_per_s, figure.decrypt_gb_per_s)
            }));
        }
        let share = |figure: &&Figure| Some(figure.encrypt_gb_per_s / figure.bound_gb_per_s?);
        let best = of_line.iter().filter_map(share).reduce(f64::max);
        cells.push(best.map_or_else(String::new, |share| format!("{:.0} %", share * 100.0)));
        table.add_row(cells);
    }
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// One case on one core as bars: the ciphers and their bound, without `memcpy`, which would dwarf them.
fn chart(text: &mut String, report: &Report) -> std::fmt::Result {
    let ciphers = || report.results.iter().filter(|figure| figure.kernel != "memcpy");
    // The last case with a buffer that caches can hold.
    let in_cache = |figure: &&Figure| figure.buffer_bytes <= 64 << 10;
    let Some(shown) = ciphers().rfind(in_cache).or_else(|| ciphers().next_back()) else {
        return Ok(());
    };
    let case = |figure: &Figure| (figure.key_bits, figure.sector_size, figure.buffer_bytes);
    let figures: Vec<&Figure> = ciphers().filter(|figure| case(figure) == case(shown)).collect();
    let bars = figures.iter().map(|figure| (figure.kernel.as_str(), figure.encrypt_gb_per_s));
    let bars: Vec<(&str, f64)> = bars.chain(shown.bound_gb_per_s.map(|bound| ("bound", bound))).collect();
    let longest = bars.iter().map(|(_, gb_per_s)| *gb_per_s).fold(f64::MIN_POSITIVE, f64::max);
    writeln!(
        text,
        "\n{}, sectors of {} bytes, {}, one core, encryption, GB/s:",
        cipher_name(shown.key_bits),
        shown.sector_size,
        bytes_name(shown.buffer_bytes)
    )?;
    for (name, gb_per_s) in bars {
        writeln!(text, "{name:>9} {} {gb_per_s:.1}", bar(gb_per_s / longest))?;
    }
    if let Some(fastest) = figures.iter().max_by(|a, b| a.encrypt_gb_per_s.total_cmp(&b.encrypt_gb_per_s)) {
        let request = ciphers().find(|figure| {
            figure.buffer_bytes == 4096
                && figure.kernel == fastest.kernel
                && figure.key_bits == fastest.key_bits
                && figure.sector_size == fastest.sector_size
        });
        if let Some(request) = request {
            let microseconds = 4.096 / request.encrypt_gb_per_s;
            writeln!(text, "A request of 4 KiB takes {} {microseconds:.2} us.", request.kernel)?;
        }
    }
    Ok(())
}

/// Eighths of a character at the end.
fn bar(share: f64) -> String {
    const PARTS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (share * BAR_WIDTH * 8.0).round() as usize;
    "█".repeat(eighths / 8) + PARTS[eighths % 8]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(kernel: &str, buffer_bytes: usize, gb_per_s: f64) -> Figure {
        Figure {
            kernel: kernel.to_owned(),
            key_bits: 512,
            sector_size: 4096,
            buffer_bytes,
            encrypt_gb_per_s: gb_per_s,
            decrypt_gb_per_s: gb_per_s + 0.5,
            bound_gb_per_s: (kernel != "memcpy").then_some(16.0),
        }
    }

    fn report() -> Report {
        Report {
            cpu: "Some CPU".to_owned(),
            auto_kernel: "vaes256".to_owned(),
            openssl: None,
            bound_gb_per_s: Some(16.0),
            bound: None,
            results: vec![
                figure("vaes256", 4096, 10.24),
                figure("memcpy", 4096, 80.0),
                figure("vaes256", 65536, 12.0),
                figure("memcpy", 65536, 40.0),
            ],
            cores: 1,
            results_all_cores: Vec::new(),
        }
    }

    #[test]
    fn people_get_a_table_and_a_chart() {
        let text = text(&report());
        let line =
            |part: &str| text.lines().find(|line| line.contains(part)).unwrap_or_else(|| panic!("{text}"));
        assert!(line("Some CPU").ends_with("chooses vaes256"), "{text}");
        assert!(line("no libcrypto").starts_with("openssl is not measured"), "{text}");
        let row: Vec<_> = line("AES-256 ").split_whitespace().filter(|word| *word != "│").collect();
        assert_eq!(row.join(" "), "AES-256 4096 vaes256 10.2 / 10.7 12.0 / 12.5 75 %");
        assert_eq!(line("  vaes256 █").trim(), format!("vaes256 {} 12.0", "█".repeat(36)));
        assert_eq!(line("bound █").trim(), format!("bound {} 16.0", "█".repeat(48)));
        assert_eq!(line("A request"), "A request of 4 KiB takes vaes256 0.40 us.");
        assert!(!text.contains("All 1 cores"), "{text}");
        assert!(!text.contains("memcpy █"), "{text}");
    }

    #[test]
    fn bars_end_in_eighths() {
        assert_eq!(bar(0.5), "█".repeat(24));
        assert_eq!(bar(1.0 / 48.0 / 4.0), "▎");
        assert_eq!(bar(0.0), "");
    }

    #[test]
    fn sizes_have_names() {
        assert_eq!([512, 4096, 1536, 128 << 20].map(bytes_name), ["512 B", "4 KiB", "1536 B", "128 MiB"]);
    }
}
