//! The `sealblk` program: parse, run, say in one line what went wrong, exit.
#![expect(unsafe_code, reason = "inherited descriptors are noted before there are any others")]

use std::env;
use std::io::{self, Write};
use std::process::ExitCode;

use sealblk::cli::{self, CliError, Exit};
use sealblk::inherited;
use sealblk::server::harden::harden_process;

fn main() -> ExitCode {
    // SAFETY: nothing ran before this that could own a descriptor: the standard library opens none above 2.
    // Without /proc nothing is noted, and an option that names a descriptor is answered accordingly.
    let _ = unsafe { inherited::record() };
    match harden_process().map_err(CliError::Harden).and_then(|()| cli::run(env::args_os())) {
        Ok(()) => Exit::Success.into(),
        Err(error) => {
            // Nobody is left to tell when standard error is closed.
            let _ = writeln!(io::stderr(), "sealblk: {}", error.one_line());
            error.exit().into()
        }
    }
}
