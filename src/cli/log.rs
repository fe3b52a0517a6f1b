//! Logs: to standard error, coloured only on a terminal.

use std::io::{self, IsTerminal};

use tracing_subscriber::filter::LevelFilter;

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum LogLevel {
    /// What went wrong
    Error,
    /// And what may go wrong
    Warn,
    /// And what happens to the disk as a whole
    #[default]
    Info,
    /// And each message of the VMM
    Debug,
    /// And everything else
    Trace,
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

/// Sends the logs of the whole process to standard error. A second call changes nothing.
pub(super) fn start(level: LogLevel) {
    let _ = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_max_level(level)
        .try_init();
}
