//! The sandbox around one served disk: what its threads keep, and when it closes.
//!
//! Everything that needs rights is there by then: the volume, the key, the rings, the sockets. Nobody has been served.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::process::{DumpableBehavior, getegid, geteuid, set_dumpable_behavior};

use super::config::EngineKind;
use super::error::ServeError;
use crate::sandbox::{Files, Identity, Needs, Role, Sandbox, SandboxError};
use crate::worker::QueueThread;

/// What is shut in.
#[derive(Debug)]
pub(super) struct Enclosure<'a> {
    pub(super) sandbox: Sandbox,
    pub(super) identity: Option<Identity>,
    pub(super) engine: EngineKind,
    pub(super) threads: &'a [QueueThread],
    pub(super) files: Files,
}

impl Enclosure<'_> {
    /// Shuts the queue threads in, and this one but for its system calls: it has to start another thread yet.
    pub(super) fn close(self) -> Result<(), ServeError> {
        if let Some(identity) = &self.identity {
            identity.assume().map_err(SandboxError::from)?;
            // A change of user may have undone it.
            set_dumpable_behavior(DumpableBehavior::NotDumpable)
                .map_err(|e| ServeError::Session(e.into()))?;
            tracing::info!(uid = identity.uid(), gid = identity.gid(), "the process goes on as another user");
        }
        let needs = self.needs();
        self.warn_of_lost_volume();
        let (sandbox, role) = (self.sandbox, queue_role(self.engine));
        for thread in self.threads {
            let confine = move || {
                sandbox.enclose(Needs::default(), &Files::default())?;
                sandbox.confine(role)
            };
            thread.run_there(confine).map_err(|gone| ServeError::Session(io::Error::other(gone)))??;
        }
        Ok(sandbox.enclose(needs, &self.files)?)
    }

    /// Root that is not the owner of its files needs a capability to open or remove them.
    fn needs(&self) -> Needs {
        let folders = self.files.socket_folders.iter();
        let foreign_folder = folders.into_iter().any(|folder| !is_permitted(folder, 0o3));
        Needs { foreign_files: geteuid().is_root() && (foreign_folder || !self.reopens_as_owner()) }
    }

    fn reopens_as_owner(&self) -> bool {
        let wanted = if self.files.writable { 0o6 } else { 0o4 };
        self.volume_place().is_none_or(|place| is_permitted(&place, wanted))
    }

    /// Another user may not be able to open the volume again, which nothing but a migration asks for.
    fn warn_of_lost_volume(&self) {
        let access = if self.files.writable { Access::READ_OK | Access::WRITE_OK } else { Access::READ_OK };
        let reopens = |place: PathBuf| accessat(CWD, &place, access, AtFlags::EACCESS);
        if let Some(Err(error)) = self.volume_place().map(reopens) {
            tracing::warn!(%error, "the volume could not be opened again: the VM cannot be migrated from or to here");
        }
    }

    fn volume_place(&self) -> Option<PathBuf> {
        self.files.volume.as_ref().map(super::volume_file::descriptor_path)
    }
}

fn queue_role(engine: EngineKind) -> Role {
    match engine {
        EngineKind::Uring => Role::UringQueue,
        EngineKind::Blocking => Role::BlockingQueue,
    }
}

/// Whether this process's user may do with a file what the bits say (4 read, 2 write, 1 search), without being root.
fn is_permitted(path: &Path, wanted: u32) -> bool {
    let Ok(file) = std::fs::metadata(path) else { return false };
    let granted = if file.uid() == geteuid().as_raw() {
        file.mode() >> 6
    } else if file.gid() == getegid().as_raw() {
        file.mode() >> 3
    } else {
        file.mode()
    };
    granted & wanted == wanted
}
