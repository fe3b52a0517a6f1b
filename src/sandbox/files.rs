//! The files that remain within reach (Landlock).

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};

/// The newest rules that are known here; an older kernel gets those that it knows.
const RULES: ABI = ABI::V6;

/// What tells whose lock is on a file, beside the file itself.
const LOCKS: &str = "/proc/locks";

/// What a thread may open, change or remove. By default nothing; what is open already stays open.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// The volume, to be opened again, by descriptor, when a guest moves.
    pub volume: Option<Arc<OwnedFd>>,
    /// Whether it is written.
    pub writable: bool,
    /// Folders in which sockets of ours lie, to be removed at the end.
    pub socket_folders: Vec<PathBuf>,
    /// The VMM's socket, where we connect to that.
    pub vmm_socket: Option<PathBuf>,
}

impl Files {
    pub(super) fn confine(&self) -> io::Result<()> {
        match self.restrict_self() {
            Ok(RulesetStatus::FullyEnforced) => Ok(()),
            Ok(RulesetStatus::PartiallyEnforced) => {
                tracing::debug!("an older Landlock: not all of its rules are there");
                Ok(())
            }
            Ok(RulesetStatus::NotEnforced) => Err(io::Error::other("this kernel has no Landlock")),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    fn restrict_self(&self) -> Result<RulesetStatus, RulesetError> {
        let mut rules = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(RULES))?
            .handle_access(AccessNet::from_all(RULES))?
            .scope(Scope::from_all(RULES))?
            .create()?
            .add_rules(path_beneath_rules(&self.socket_folders, AccessFs::RemoveFile))?;
        if let Some(volume) = &self.volume {
            rules = rules
                .add_rule(PathBeneath::new(volume.as_ref(), self.volume_access()))?
                .add_rules(path_beneath_rules([LOCKS], AccessFs::ReadFile))?;
            if let Some(flag) = read_only_flag(volume) {
                rules = rules.add_rule(PathBeneath::new(flag, AccessFs::ReadFile))?;
            }
        }
        Ok(rules.restrict_self()?.ruleset)
    }

    fn volume_access(&self) -> BitFlags<AccessFs> {
        let read = AccessFs::ReadFile | AccessFs::IoctlDev;
        if self.writable { read | AccessFs::WriteFile } else { read }
    }
}

/// Where the kernel tells whether a block device was set read-only.
fn read_only_flag(volume: &OwnedFd) -> Option<File> {
    let device = rustix::fs::fstat(volume).ok()?;
    let is_device = rustix::fs::FileType::from_raw_mode(device.st_mode) == rustix::fs::FileType::BlockDevice;
    let (major, minor) = (rustix::fs::major(device.st_rdev), rustix::fs::minor(device.st_rdev));
    is_device.then(|| File::open(format!("/sys/dev/block/{major}:{minor}/ro")).ok()).flatten()
}
