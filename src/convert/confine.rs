//! The programs that read image formats, shut in: an image names other files as it likes (a backing file, extents),
//! and whoever could write to the image chose those names. So the program gets to see the one image that it was
//! given, and what it needs to start.
//!
//! This process starts itself anew as a hidden command, which gives up its rights (Landlock, where the kernel has it)
//! and becomes QEMU's program. The program ends with the process that asked for it, however that ends.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use landlock::{
    ABI, Access, AccessFs, AccessNet, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    path_beneath_rules,
};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};

use crate::inherited;

/// What the linker, the C library and QEMU's modules are found in. Nothing there is private.
const PROGRAM_FOLDERS: [&str; 7] =
    ["/usr", "/lib", "/lib64", "/bin", "/opt", "/nix/store", "/etc/ld.so.cache"];

/// What the kernel tells of the process itself and of block devices.
const KERNEL_FOLDERS: [&str; 4] = ["/proc/self", "/sys/dev", "/sys/devices", "/sys/class/block"];

/// The newest rules that are known here; an older kernel gets those that it knows.
const RULES: ABI = ABI::V5;

/// The first descriptor of socket activation (`sd_listen_fds`).
const ACTIVATED_FD: i32 = 3;

/// What the hidden command is to become.
#[derive(Debug)]
pub struct ImageTool {
    /// The process that asks for it.
    pub parent: i32,
    /// Whether standard output is a listening socket, to be handed on as with socket activation.
    pub listen: bool,
    /// Whether the image may name other files.
    pub linked_files: bool,
    /// The program and its arguments.
    pub command: Vec<OsString>,
}

impl ImageTool {
    /// Becomes the program. Standard input is the image.
    ///
    /// # Errors
    /// Why it did not; there is no other way to return.
    pub fn exec(&self) -> io::Error {
        match self.prepare() {
            Ok(mut command) => command.exec(),
            Err(error) => error,
        }
    }

    fn prepare(&self) -> io::Result<Command> {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        if getppid().map(Pid::as_raw_pid) != Some(self.parent) {
            return Err(io::Error::other("whoever asked for it is gone"));
        }
        let (program, arguments) =
            self.command.split_first().ok_or_else(|| io::Error::other("no program is named"))?;
        let mut command = Command::new(program);
        command.args(arguments);
        if self.listen {
            pass_listening_socket()?;
            command.env("LISTEN_FDS", "1").env("LISTEN_PID", getpid().as_raw_pid().to_string());
        }
        if !self.linked_files {
            confine().map_err(io::Error::other)?;
        }
        Ok(command)
    }
}

/// Puts the socket on standard output where socket activation expects it.
fn pass_listening_socket() -> io::Result<()> {
    // Whatever else is there was left open by somebody who did not mean this program.
    drop(inherited::take(ACTIVATED_FD));
    let socket = fcntl_dupfd_cloexec(io::stdout(), ACTIVATED_FD)?;
    fcntl_setfd(&socket, FdFlags::empty())?;
    // Open until the program is there.
    std::mem::forget(socket);
    Ok(())
}

fn confine() -> Result<(), RulesetError> {
    let read = AccessFs::from_read(RULES);
    let image = AccessFs::ReadFile | AccessFs::IoctlDev;
    Ruleset::default()
        .handle_access(AccessFs::from_all(RULES))?
        .handle_access(AccessNet::from_all(RULES))?
        .create()?
        .add_rules(path_beneath_rules(PROGRAM_FOLDERS, read))?
        .add_rules(path_beneath_rules(KERNEL_FOLDERS, AccessFs::ReadFile | AccessFs::ReadDir))?
        .add_rules(path_beneath_rules(["/dev/null"], AccessFs::ReadFile | AccessFs::WriteFile))?
        .add_rule(PathBeneath::new(io::stdin(), image))?
        .restrict_self()?;
    Ok(())
}
