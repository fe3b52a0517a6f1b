//! How far long work is, shown on a terminal and nowhere else.

use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressStyle};

use crate::convert::{Observer, Phase};

const TEMPLATE: &str =
    "{msg:8} {wide_bar} {binary_bytes:>11}/{binary_total_bytes} {binary_bytes_per_sec:>13} {eta:>4}";

/// A bar on standard error. Hidden where that is no terminal.
#[derive(Debug, Default)]
pub(super) struct TerminalProgress {
    bar: Mutex<Option<ProgressBar>>,
}

impl TerminalProgress {
    /// Takes the bar off the screen.
    pub(super) fn clear(&self) {
        if let Some(bar) = self.bar.lock().expect("no holder panics").take() {
            bar.finish_and_clear();
        }
    }
}

impl Observer for TerminalProgress {
    fn begin(&self, phase: Phase, total_bytes: u64) {
        self.clear();
        let style = ProgressStyle::with_template(TEMPLATE).expect("the template is well-formed");
        let bar = ProgressBar::new(total_bytes).with_style(style).with_message(match phase {
            Phase::Copy => "copying",
            Phase::Verify => "verifying",
        });
        *self.bar.lock().expect("no holder panics") = Some(bar);
    }

    fn advance(&self, bytes: u64) {
        if let Some(bar) = &*self.bar.lock().expect("no holder panics") {
            bar.inc(bytes);
        }
    }
}
