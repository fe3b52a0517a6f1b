//! The command line: one file or folder for each family of subcommands, and what they share.

mod bench;
mod confirm;
mod control;
mod convert;
mod ephemeral;
mod exit;
mod formats;
mod key;
mod key_config;
mod keystore;
mod log;
mod output;
mod progress;
mod resolve;
mod serve;
mod suspend;
mod tool_error;
mod volume;

#[cfg(any(fuzzing, test))]
pub mod fuzzing {
    //! What the fuzzer gets at.

    /// Reads a configuration file of `serve` as far as that touches nothing outside the process.
    ///
    /// # Errors
    /// What there is to say of it.
    pub fn serve_options(text: &str) -> Result<(), String> {
        super::serve::ServeOptions::understand(text)
    }
}

use std::ffi::OsString;
use std::io::{self, Write};

use clap::error::{ContextKind, ErrorKind};
use clap::{CommandFactory, Parser, Subcommand};

pub use exit::{CliError, Exit};
pub use keystore::PrincipalNameError;
pub use tool_error::ToolError;

/// Encrypts virtual machine disks on the host, as a vhost-user-blk back end.
#[derive(Debug, Parser)]
#[command(
    name = "sealblk",
    version,
    arg_required_else_help = true,
    after_help = "Options without a subcommand are those of `serve`, as VMM tooling expects of a back end."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve one encrypted volume as one virtio disk
    Serve(Box<serve::ServeCommand>),
    /// Make a LUKS volume
    Format(volume::FormatCommand),
    /// Show what a volume is and whether it would be served; needs no key
    Inspect(volume::InspectCommand),
    /// Show, add, change and remove the keys of a LUKS volume, also while it is served
    Slot(volume::SlotCommand),
    /// Back up and restore the header of a LUKS volume
    Header(volume::HeaderCommand),
    /// Make, list, move, rotate and destroy keys in a key manager
    Key(key::KeyCommand),
    /// Make an embedded keystore, check and copy it, and say who may use its keys and what they are encrypted under
    Keystore(keystore::KeystoreCommand),
    /// Make, list and destroy disks that end with their key
    Ephemeral(ephemeral::EphemeralCommand),
    /// Make a volume from a raw disk, an image or another volume, or the reverse
    Convert(convert::ConvertCommand),
    /// Show a disk that is being served, its queues and what they have done
    Status(control::StatusCommand),
    /// Look after a disk that is being served: status, drain, flush, shutdown
    Control(control::ControlCommand),
    /// Take the key of a served disk away, and hold its requests until it is back
    Suspend(suspend::SuspendCommand),
    /// Fetch the key of a suspended disk and bring it back
    Resume(Box<suspend::ResumeCommand>),
    /// Become a program that reads disk images, with no rights but to the one on standard input
    #[command(hide = true)]
    ImageTool(convert::ImageToolCommand),
    /// Measure the cipher on this machine, beside OpenSSL, memcpy and the CPU's own limit
    Bench(bench::BenchCommand),
}

/// Runs the command that `arguments` (program name included) ask for.
///
/// # Errors
/// See [`CliError`]; nothing was printed about it yet.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Result<(), CliError> {
    let arguments = with_default_subcommand(arguments.into_iter().collect());
    if serve::asks_for_capabilities(&arguments) {
        return print(serve::CAPABILITIES);
    }
    let help = help_command(&arguments);
    match Cli::try_parse_from(arguments) {
        Ok(Cli { command }) => command.run(),
        Err(answer) if matches!(answer.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            answer.print().map_err(CliError::Output)
        }
        Err(error) => Err(CliError::Usage(usage_line(&error, &help))),
    }
}

impl Command {
    fn run(self) -> Result<(), CliError> {
        match self {
            Self::Serve(command) => return command.run(),
            Self::Bench(command) => return command.run(),
            Self::Status(command) => return command.run(),
            Self::Control(command) => return command.run(),
            Self::Suspend(command) => return command.run(),
            Self::Resume(command) => return command.run(),
            Self::Format(command) => command.run(),
            Self::Inspect(command) => command.run(),
            Self::Slot(command) => command.run(),
            Self::Header(command) => command.run(),
            Self::Key(command) => command.run(),
            Self::Keystore(command) => command.run(),
            Self::Ephemeral(command) => command.run(),
            Self::Convert(command) => return command.run(),
            Self::ImageTool(command) => return command.run(),
        }
        .map_err(CliError::from)
    }
}

/// The command that explains how the one in `arguments` is to be used.
fn help_command(arguments: &[OsString]) -> String {
    let mut command = Cli::command();
    let mut help = "sealblk".to_owned();
    for argument in arguments.iter().skip(1) {
        let Some(next) = argument.to_str().and_then(|name| command.find_subcommand(name)).cloned() else {
            break;
        };
        help += &format!(" {}", next.get_name());
        command = next;
    }
    help + " --help"
}

/// QEMU's conventions for back-end programs know no subcommands: an option where one is expected means `serve`.
fn with_default_subcommand(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let ours = ["--help", "--version"];
    let option = arguments.get(1).and_then(|first| first.to_str()).filter(|first| first.starts_with("--"));
    if option.is_some_and(|option| !ours.contains(&option)) {
        arguments.insert(1, "serve".into());
    }
    arguments
}

fn print(line: &str) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}").and_then(|()| stdout.flush()).map_err(CliError::Output)
}

/// What clap has to say, without its layout: the statement, and its advice if it has any.
fn usage_line(error: &clap::Error, help: &str) -> String {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return format!("nothing to do; see `{help}`");
    }
    let text = error.render().to_string();
    let statement = text.split("\n\n").next().unwrap_or_default();
    let mut line = statement.trim_start_matches("error: ").split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some(suggestion) = error.get(ContextKind::SuggestedArg) {
        line += &format!("; did you mean {suggestion}?");
    }
    line + &format!("; see `{help}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn the_parser_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_option_in_place_of_a_subcommand_means_serve() {
        for (given, meant) in [
            ("sealblk --read-only", "sealblk serve --read-only"),
            ("sealblk serve --read-only", "sealblk serve --read-only"),
            ("sealblk --help", "sealblk --help"),
            ("sealblk --version", "sealblk --version"),
            ("sealblk -h", "sealblk -h"),
            ("sealblk", "sealblk"),
        ] {
            assert_eq!(with_default_subcommand(arguments(given)), arguments(meant));
        }
    }

    #[test]
    fn usage_errors_are_one_line_with_advice() {
        let line = |text| match run(arguments(text)).unwrap_err() {
            CliError::Usage(line) => line,
            error => panic!("{error}"),
        };
        assert_eq!(
            line("sealblk serve --format luks9"),
            "invalid value 'luks9' for '--format <FORMAT>' [possible values: luks, luks1, luks2, plain, none]; see `sealblk serve --help`"
        );
        assert!(line("sealblk --sockt-path=x").contains("did you mean --socket-path?"));
        assert!(line("sealblk frobnicate").ends_with("see `sealblk --help`"));
        assert!(line("sealblk bench --key-size 1").ends_with("see `sealblk bench --help`"));
        assert!(line("sealblk").contains("sealblk --help"));
    }
}
