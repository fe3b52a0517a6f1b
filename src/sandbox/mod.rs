//! What the process gives up before it reads the first byte that a guest or a VMM has written: whoever takes it over by
//! such bytes is to find a process that can do nothing but serve this one disk.
//!
//! Each layer holds where another has a hole:
//!
//! | layer | what it takes away |
//! |---|---|
//! | user and group ([`Identity`]) | the rights of whoever started the process, if the operator names another |
//! | capabilities, `no_new_privs` | what root may do beyond the files that it owns; gaining any of it back |
//! | Landlock ([`Files`]) | every file but the volume, every TCP port, signals and abstract sockets of others |
//! | seccomp ([`Role`]) | every system call but those that the thread's work consists of |
//! | restrictions of the io_uring | what a filter of system calls does not see: operations other than the engine's |
//!
//! All but the first concern the thread that asks for them, and those that it starts. So each thread comes here, when it
//! has everything that it will ever need: its ring, its sockets, the volume.
//!
//! A system call that is not allowed ends the process, with a line that says which (`alarm`). A layer that the
//! kernel does not have is named in the log, and refused with [`Mode::Strict`].

mod alarm;
mod calls;
mod files;
mod identity;
mod privileges;

use std::io;

pub use alarm::report_violations;
pub use calls::Role;
pub use files::Files;
pub use identity::{Identity, IdentityError};
pub use privileges::Needs;

/// How much a kernel without some layer is worth
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Every layer that the kernel has; the log names those that it has not
    #[default]
    On,
    /// Every layer, or the disk is not served
    Strict,
    /// None; needs --insecure no-sandbox
    Off,
}

/// One of the layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Capabilities and `no_new_privs`.
    Privileges,
    /// Landlock.
    Files,
    /// seccomp.
    SystemCalls,
    /// `IORING_REGISTER_RESTRICTIONS`.
    UringOperations,
}

impl Layer {
    fn name(self) -> &'static str {
        match self {
            Self::Privileges => "capabilities and no_new_privs",
            Self::Files => "Landlock (files and ports)",
            Self::SystemCalls => "seccomp (system calls)",
            Self::UringOperations => "restrictions of the io_uring (Linux 5.10)",
        }
    }
}

/// Why the process is not shut in as it was to be.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// With [`Mode::Strict`].
    #[error("the sandbox lacks a layer, {}: --sandbox on does without it", .layer.name())]
    Lacks {
        /// Which.
        layer: Layer,
        /// What the kernel says.
        source: io::Error,
    },
    /// Another user cannot be had.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// The sandbox of a process.
#[derive(Clone, Copy, Debug)]
pub struct Sandbox {
    mode: Mode,
}

impl Sandbox {
    /// A sandbox that nobody is in yet.
    pub fn new(mode: Mode) -> Self {
        Self { mode }
    }

    /// Shuts this thread in, and those that it starts from now on, but for its system calls: it keeps the capabilities
    /// that `needs` names, and `files`.
    ///
    /// # Errors
    /// [`SandboxError::Lacks`]
    pub fn enclose(self, needs: Needs, files: &Files) -> Result<(), SandboxError> {
        if self.mode == Mode::Off {
            return Ok(());
        }
        self.settle(Layer::Privileges, privileges::drop_all_but(needs))?;
        self.settle(Layer::Files, files.confine())
    }

    /// Leaves this thread, and those that it starts from now on, the system calls of its role.
    ///
    /// # Errors
    /// [`SandboxError::Lacks`]
    pub fn confine(self, role: Role) -> Result<(), SandboxError> {
        if self.mode == Mode::Off {
            return Ok(());
        }
        self.settle(Layer::SystemCalls, calls::confine(role))
    }

    /// Judges a layer that somebody else has put in place, or not.
    ///
    /// # Errors
    /// [`SandboxError::Lacks`]
    pub fn settle(self, layer: Layer, placed: io::Result<()>) -> Result<(), SandboxError> {
        match (self.mode, placed) {
            (Mode::Off, _) | (_, Ok(())) => Ok(()),
            (Mode::Strict, Err(source)) => Err(SandboxError::Lacks { layer, source }),
            (Mode::On, Err(error)) => {
                let thread = std::thread::current();
                let thread = thread.name().unwrap_or_default();
                tracing::warn!(thread, %error, "the sandbox lacks a layer: {}", layer.name());
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests;
