//! Results on standard output: for people as text, for programs as one JSON object.

use std::io::{self, Write};

use serde::Serialize;

use super::tool_error::ToolError;

/// Prints `result` as JSON, or else as `text` puts it.
pub(super) fn print<T: Serialize>(
    json: bool,
    result: &T,
    text: impl FnOnce(&T) -> String,
) -> Result<(), ToolError> {
    let line = match json {
        true => serde_json::to_string(result).expect("results have string keys only"),
        false => text(result),
    };
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{}", line.trim_end()).and_then(|()| stdout.flush()).map_err(ToolError::Output)
}

/// What headers and paths say may hold anything; a terminal is not to obey it.
pub(super) fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// A number of bytes, and the same in a unit that people read.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [(u32, &str); 4] = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    match UNITS.into_iter().find(|(power, _)| count >= 1 << power) {
        Some((power, unit)) if count.is_multiple_of(1 << power) => {
            format!("{} {unit} ({count} bytes)", count >> power)
        }
        Some((power, unit)) => {
            format!("{:.1} {unit} ({count} bytes)", count as f64 / f64::from(power).exp2())
        }
        None => format!("{count} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_shown_in_the_largest_unit_that_fits() {
        for (count, shown) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1 KiB (1024 bytes)"),
            (1536, "1.5 KiB (1536 bytes)"),
            (10 << 30, "10 GiB (10737418240 bytes)"),
        ] {
            assert_eq!(bytes(count), shown);
        }
    }

    #[test]
    fn a_label_cannot_steer_the_terminal() {
        assert_eq!(printable("a\x1b[2J\nb"), r"a\u{1b}[2J\nb");
    }
}
