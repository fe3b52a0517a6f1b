//! How the process ends: one line and one number for each kind of failure.

use std::error::Error;
use std::fmt::Write as _;
use std::io;
use std::process::ExitCode;

use super::convert::convert_exit;
use super::resolve::ConfigError;
use super::tool_error::ToolError;
use crate::bench::BenchError;
use crate::cipher::CipherError;
use crate::convert::ConvertError;
use crate::format::FormatError;
use crate::format::luks::LuksError;
use crate::keys::KeyError;
use crate::server::ServeError;
use crate::server::control::client::ControlError;
use crate::server::volume_file::VolumeError;

/// Longest line about an error: names in a hostile header may be megabytes.
const LINE_CHARS_MAX: usize = 4000;

/// The exit codes, a contract with whoever supervises the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Ended as it was told to.
    Success = 0,
    /// Failed while running.
    Failure = 1,
    /// Options or configuration file are wrong.
    Usage = 2,
    /// The volume cannot be opened or does not fit its options.
    Volume = 3,
    /// Another process has the volume.
    VolumeLocked = 4,
    /// The key cannot be fetched or used.
    Key = 5,
    /// The vhost-user or control socket cannot be set up, or nobody listens on the latter.
    Socket = 6,
    /// The kernel offers no io_uring.
    UringUnavailable = 7,
    /// The key manager cannot be reached; trying again later may help.
    KeyUnreachable = 8,
    /// Something would be lost that nobody said may be.
    Refused = 9,
}

impl Exit {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 10] = [
        Self::Success,
        Self::Failure,
        Self::Usage,
        Self::Volume,
        Self::VolumeLocked,
        Self::Key,
        Self::Socket,
        Self::UringUnavailable,
        Self::KeyUnreachable,
        Self::Refused,
    ];

    /// What the code means, in a few words.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Success => "ended as it was told to",
            Self::Failure => "failed while running",
            Self::Usage => "options or configuration file are wrong",
            Self::Volume => "volume cannot be opened, or does not fit its options",
            Self::VolumeLocked => "volume is in use by another process",
            Self::Key => "key cannot be fetched or used",
            Self::Socket => "vhost-user or control socket cannot be set up or connected to",
            Self::UringUnavailable => "io_uring is not available (see --engine)",
            Self::KeyUnreachable => "key manager cannot be reached (see --key-timeout); try again later",
            Self::Refused => "refused, because data or access to it could be lost (see --force and --yes)",
        }
    }

    /// The table for help texts.
    pub(super) fn table() -> String {
        Self::ALL.iter().fold("Exit codes:".to_owned(), |mut table, exit| {
            write!(table, "\n  {}  {}", *exit as u8, exit.meaning()).expect("a string takes any text");
            table
        })
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The command line cannot be understood.
    #[error("{0}")]
    Usage(String),
    /// It can, but makes no sense, alone or together with the configuration file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Serving a disk failed.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Making or changing a volume failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// Measuring failed.
    #[error(transparent)]
    Bench(#[from] BenchError),
    /// A served disk cannot be asked, or says no.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Converting a volume failed.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// A program that reads images cannot be started.
    #[error("cannot become {program}")]
    ImageTool {
        /// Which one.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// Signals cannot be received.
    #[error("cannot prepare for signals")]
    Signals(#[source] io::Error),
    /// Standard output is gone.
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
    /// The process cannot protect its memory.
    #[error("cannot shield the process from debuggers and core files")]
    Harden(#[source] io::Error),
}

impl CliError {
    /// The code to exit with.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) | Self::Config(_) => Exit::Usage,
            Self::Tool(error) => error.exit(),
            Self::Bench(BenchError::Cipher(CipherError::KernelUnavailable { .. })) => Exit::Usage,
            Self::Convert(error) => convert_exit(error),
            Self::Control(error) => control_exit(error),
            Self::Bench(_)
            | Self::Output(_)
            | Self::Harden(_)
            | Self::Signals(_)
            | Self::ImageTool { .. } => Exit::Failure,
            Self::Serve(error) => match error {
                ServeError::Volume(error) => volume_exit(error),
                ServeError::Key(error) => key_exit(error),
                ServeError::Format(error) => format_exit(error),
                ServeError::LogicalBlockTooLarge { .. } => Exit::Volume,
                ServeError::Socket(_) => Exit::Socket,
                ServeError::TakeOver(error) => control_exit(error),
                ServeError::Uring(_) => Exit::UringUnavailable,
                ServeError::Cipher(_) => Exit::Key,
                ServeError::Sandbox(_) | ServeError::Session(_) => Exit::Failure,
            },
        }
    }

    /// The error and its causes on one line of bounded length, whatever paths, files and headers had to say.
    pub fn one_line(&self) -> String {
        let mut line = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            write!(line, ": {error}").expect("a string takes any text");
            cause = error.source();
        }
        line.chars()
            .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
            .take(LINE_CHARS_MAX)
            .collect()
    }
}

fn control_exit(error: &ControlError) -> Exit {
    match error {
        ControlError::Connect { .. } => Exit::Socket,
        ControlError::NoAnswer { .. } | ControlError::Fault(_) => Exit::Failure,
    }
}

pub(super) fn key_exit(error: &KeyError) -> Exit {
    match error {
        KeyError::Unreachable { .. } => Exit::KeyUnreachable,
        _ => Exit::Key,
    }
}

pub(super) fn volume_exit(error: &VolumeError) -> Exit {
    match error {
        VolumeError::Locked { .. } | VolumeError::Claimed { .. } | VolumeError::Interrupted { .. } => {
            Exit::VolumeLocked
        }
        _ => Exit::Volume,
    }
}

pub(super) fn format_exit(error: &FormatError) -> Exit {
    match error {
        FormatError::Empty | FormatError::OffsetBeyondEnd { .. } | FormatError::PartialSector { .. } => {
            Exit::Volume
        }
        FormatError::SkipInsideSector { .. } => Exit::Usage,
        FormatError::SecretMissing
        | FormatError::SecretUnused
        | FormatError::KeyLength { .. }
        | FormatError::KeyIsText { .. }
        | FormatError::UnfitKey(_) => Exit::Key,
        FormatError::Luks(error) => luks_exit(error),
    }
}

pub(super) fn luks_exit(error: &LuksError) -> Exit {
    match error {
        LuksError::WrongKey(_)
        | LuksError::Unlock(_)
        | LuksError::WrongVolumeKey(_)
        | LuksError::UnfitKey(_) => Exit::Key,
        LuksError::Memory(_) => Exit::Failure,
        LuksError::HeaderFile { .. }
        | LuksError::HeaderKind { .. }
        | LuksError::NotLuks(_)
        | LuksError::Read(_)
        | LuksError::Truncated { .. }
        | LuksError::Invalid { .. }
        | LuksError::Load { .. }
        | LuksError::Refused(_) => Exit::Volume,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_numbered_as_listed() {
        assert!(Exit::ALL.iter().map(|exit| *exit as u8).eq(0..10));
    }

    #[test]
    fn a_line_has_an_end() {
        assert_eq!(CliError::Usage("x".repeat(1 << 20)).one_line().len(), LINE_CHARS_MAX);
    }

    #[test]
    fn an_error_with_causes_is_one_line() {
        let path = "dir\n/\x1b[31mvol".into();
        let source = io::Error::other("first\nsecond");
        let error = CliError::Serve(VolumeError::Open { path, source }.into());
        assert_eq!(error.one_line(), r"cannot open volume dir\n/\u{1b}[31mvol: first\nsecond");
    }
}
