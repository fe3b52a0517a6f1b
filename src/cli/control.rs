//! `sealblk control`: what an operator asks of a disk that is being served.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use comfy_table::{CellAlignment, Table, presets};
use serde_json::Value;

use super::exit::{CliError, Exit};
use super::output;
use super::resolve::checked_rate;
use super::volume::ByteSize;
use crate::server::control::client::Client;
use crate::server::control::protocol::{
    Command, Limits, QueueState, QueueView, Rate, Resized, Status, Tally,
};

/// The options of `sealblk control`.
#[derive(Debug, Args)]
#[command(after_help = Exit::table())]
pub(super) struct ControlCommand {
    /// The control socket that `serve --control-socket` has made
    #[arg(value_name = "SOCKET")]
    socket: PathBuf,
    #[command(subcommand)]
    verb: Verb,
    /// Print JSON, for programs
    #[arg(long, global = true)]
    json: bool,
}

/// The options of `sealblk status`, which is `sealblk control SOCKET status` in short.
#[derive(Debug, Args)]
#[command(after_help = Exit::table())]
pub(super) struct StatusCommand {
    /// The control socket that `serve --control-socket` has made
    #[arg(value_name = "SOCKET")]
    socket: PathBuf,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

impl StatusCommand {
    pub(super) fn run(self) -> Result<(), CliError> {
        let Self { socket, json } = self;
        ControlCommand { socket, verb: Verb::Status, json }.run()
    }
}

/// What becomes of the limits.
#[derive(Clone, Copy, Debug, Args)]
struct LimitOptions {
    /// Most requests a second [default: no limit]
    #[arg(long, value_name = "COUNT")]
    iops: Option<u64>,
    /// Most requests at once after a pause [default: a tenth of a second's]
    #[arg(long, value_name = "COUNT")]
    iops_burst: Option<u64>,
    /// Most bytes a second: 100M, say [default: no limit]
    #[arg(long, value_name = "SIZE")]
    bytes: Option<ByteSize>,
    /// Most bytes at once after a pause [default: a tenth of a second's]
    #[arg(long, value_name = "SIZE")]
    bytes_burst: Option<ByteSize>,
}

impl LimitOptions {
    fn limits(self) -> Result<Limits, CliError> {
        let bytes = |size: Option<ByteSize>| size.map(|ByteSize(bytes)| bytes);
        Ok(Limits {
            requests: checked_rate(("--iops", self.iops), ("--iops-burst", self.iops_burst))?,
            bytes: checked_rate(("--bytes", bytes(self.bytes)), ("--bytes-burst", bytes(self.bytes_burst)))?,
        })
    }
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Verb {
    /// Show the disk, its queues and what they have done
    Status,
    /// Answer what the guest has asked for, make it durable, and take nothing more until `resume`
    Drain,
    /// End a drain
    Resume,
    /// Show the guest how far the volume has grown
    Resize,
    /// Make everything that the guest has written durable
    Flush,
    /// Try the requests again that storage has failed and that are held (`serve --on-error stop`)
    Retry,
    /// Limit how much the guest may ask for, in place of the limits that there were; without options there are none
    Limit(LimitOptions),
    /// End the process as SIGTERM does, and wait until it has ended
    Shutdown,
}

impl ControlCommand {
    pub(super) fn run(self) -> Result<(), CliError> {
        let command = self.verb.command()?;
        let mut client = Client::connect(&self.socket)?;
        let result = client.ask(command)?;
        let text = match self.verb {
            Verb::Status => status_text(&client.understand(&result)?),
            Verb::Drain => "drained: everything is durable, and no queue runs until `resume`".to_owned(),
            Verb::Resume => "the queues run".to_owned(),
            Verb::Resize => resize_text(&client.understand(&result)?),
            Verb::Flush => "everything is durable".to_owned(),
            Verb::Retry => format!("requests that are tried again: {}", result["retried"]),
            Verb::Limit(_) => limits_text(&client.understand(&result)?),
            Verb::Shutdown => {
                client.wait_for_end()?;
                "ended, and everything is durable".to_owned()
            }
        };
        Ok(output::print(self.json, &result, |_: &Value| text)?)
    }
}

impl Verb {
    fn command(self) -> Result<Command, CliError> {
        Ok(match self {
            Self::Status => Command::Status,
            Self::Drain => Command::Drain,
            Self::Resume => Command::Resume,
            Self::Resize => Command::Resize,
            Self::Flush => Command::Flush,
            Self::Retry => Command::Retry,
            Self::Limit(options) => Command::Limit(options.limits()?),
            Self::Shutdown => Command::Shutdown,
        })
    }
}

fn resize_text(resized: &Resized) -> String {
    let Resized { before_bytes, capacity_bytes, vmm_told } = *resized;
    let size = output::bytes(capacity_bytes);
    match (capacity_bytes == before_bytes, vmm_told) {
        (true, _) => format!("the disk has {size}, as before"),
        (false, true) => format!("the disk has {size} now, and the VMM knows"),
        (false, false) => format!("the disk has {size} now; the VMM will see that when it connects again"),
    }
}

fn limits_text(limits: &Limits) -> String {
    let rate = |Rate { per_second, burst }: Rate, show: fn(u64) -> String| {
        let burst = burst.map_or(String::new(), |burst| format!(", {} at once", show(burst.get())));
        format!("{} a second{burst}", show(per_second.get()))
    };
    let requests = limits.requests.map(|requests| rate(requests, |count| format!("{count} requests")));
    let bytes = limits.bytes.map(|bytes| rate(bytes, output::bytes));
    let both: Vec<String> = requests.into_iter().chain(bytes).collect();
    if both.is_empty() { "no limits".to_owned() } else { both.join("; ") }
}

fn status_text(status: &Status) -> String {
    let volume = &status.volume;
    let choose = |holds: bool, yes: &'static str, no: &'static str| if holds { yes } else { no };
    let mut text = String::new();
    let mut line = |label: &str, value: &str| {
        writeln!(text, "{label:<13}{}", output::printable(value)).expect("a string takes any text");
    };
    line("process", &format!("{}, sealblk {}", status.pid, status.sealblk));
    line("volume", &volume.path);
    line(
        "disk",
        &format!(
            "{}, {}, {}, sectors of {} bytes, blocks of {}",
            output::bytes(volume.capacity_bytes),
            choose(volume.encrypted, "encrypted", "not encrypted"),
            choose(volume.read_only, "read-only", "writable"),
            volume.sector_bytes,
            volume.block_bytes,
        ),
    );
    line("write cache", choose(volume.write_cache, "on", "off"));
    line("VMM", choose(status.vmm_connected, "connected", "not connected"));
    if status.suspended {
        line("suspended", "the key is wiped, and no queue runs until `sealblk resume`");
    } else if status.drained {
        line("drained", "no queue runs until `resume`");
    }
    if status.limits != Limits::default() {
        line("limits", &limits_text(&status.limits));
    }
    if volume.sync_failed {
        line("flushes", "fail, since one has failed: what was lost cannot be told; serve the volume anew");
    }
    for (index, queue) in status.queues.iter().enumerate() {
        if queue.held > 0 {
            line(
                "held",
                &format!("{} requests of queue {index} that storage failed, until `retry`", queue.held),
            );
        }
        if let Some(error) = &queue.last_error {
            line("last error", &format!("queue {index}: {error}"));
        }
    }
    text + "\n" + &queue_table(&status.queues).to_string()
}

fn queue_table(queues: &[QueueView]) -> Table {
    const HEAD: [&str; 9] =
        ["QUEUE", "STATE", "IN FLIGHT", "READS", "WRITES", "FLUSHES", "DISCARDS", "ZEROES", "REFUSED"];
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(HEAD);
    for (index, queue) in queues.iter().enumerate() {
        table.add_row([
            index.to_string(),
            state_name(queue.state).to_owned(),
            queue.in_flight.to_string(),
            tally_text(&queue.read),
            tally_text(&queue.write),
            tally_text(&queue.flush),
            tally_text(&queue.discard),
            tally_text(&queue.write_zeroes),
            queue.refused.to_string(),
        ]);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn state_name(state: QueueState) -> &'static str {
    match state {
        QueueState::Stopped => "stopped",
        QueueState::Running => "running",
        QueueState::Disabled => "disabled",
        QueueState::Broken => "broken by its driver",
        QueueState::Held => "held",
    }
}

/// Requests, with their bytes and failures where there are some.
fn tally_text(tally: &Tally) -> String {
    let mut text = tally.requests.to_string();
    if tally.bytes > 0 {
        text += &format!(" ({:.1} MiB)", tally.bytes as f64 / f64::from(1 << 20));
    }
    if tally.errors > 0 {
        text += &format!(", {} failed", tally.errors);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;
    use crate::server::control::protocol::VolumeStatus;

    #[test]
    fn people_get_a_summary_and_a_line_for_each_queue() {
        let volume = VolumeStatus {
            path: "vol\x1b[2J".into(),
            capacity_bytes: 1 << 30,
            sector_bytes: 4096,
            block_bytes: 512,
            encrypted: true,
            read_only: false,
            write_cache: true,
            sync_failed: true,
        };
        let busy = QueueView {
            state: QueueState::Running,
            in_flight: 3,
            read: Tally { requests: 10, bytes: 3 << 19, errors: 2 },
            ..QueueView::default()
        };
        let status = Status {
            sealblk: "1.2.3".into(),
            pid: 77,
            vmm_connected: true,
            drained: true,
            suspended: false,
            limits: Limits {
                requests: Some(Rate { per_second: NonZeroU64::MIN, burst: Some(NonZeroU64::MIN) }),
                bytes: None,
            },
            volume,
            queues: vec![busy, QueueView::default()],
        };
        let text = status_text(&status);
        for part in [
            "process      77, sealblk 1.2.3\n",
            r"vol\u{1b}[2J",
            "1 GiB (1073741824 bytes), encrypted, writable, sectors of 4096 bytes, blocks of 512\n",
            "VMM          connected\n",
            "drained ",
            "limits       1 requests a second, 1 requests at once\n",
            "serve the volume anew",
        ] {
            assert!(text.contains(part), "no `{part}` in:\n{text}");
        }
        let rows: Vec<String> = text
            .lines()
            .rev()
            .take(2)
            .map(|row| row.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(rows, ["1 stopped 0 0 0 0 0 0 0", "0 running 3 10 (1.5 MiB), 2 failed 0 0 0 0 0"]);
    }
}
