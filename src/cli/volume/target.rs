//! The volume that a command is about, and the file or device with its header.

use std::fs::File;
use std::io::ErrorKind;

use super::super::tool_error::ToolError;
use super::VolumeArgs;
use crate::format::header_lock;
use crate::format::luks::{EditError, Header, LuksError, Placement};
use crate::server::config::VolumeConfig;
use crate::server::volume_file::{OpenedVolume, open_beside_others, open_volume};

/// A volume and where its header is.
#[derive(Debug)]
pub(super) struct Target {
    volume: OpenedVolume,
    detached: Option<OpenedVolume>,
}

impl VolumeArgs {
    /// Opens volume and header without a lock, so that it does not matter whether the volume is being served. Only the
    /// header is opened for writing, if anything is.
    pub(super) fn open_beside_others(&self, write: bool) -> Result<Target, ToolError> {
        let volume = open_beside_others(&self.volume, write && self.header.is_none())?;
        let detached = self.header.as_ref().map(|path| open_beside_others(path, write)).transpose()?;
        Ok(Target { volume, detached })
    }

    /// Opens volume and header for writing, locked: nobody else serves them, or has them mounted.
    pub(super) fn open_alone(&self) -> Result<Target, ToolError> {
        let config = |path| VolumeConfig { path, read_only: false, direct: false };
        let volume = open_volume(&config(self.volume.clone()))?;
        let detached = self.header.clone().map(|path| open_volume(&config(path))).transpose()?;
        let target = Target { volume, detached };
        claim(target.header_device())?;
        Ok(target)
    }
}

impl Target {
    /// The file or device that the header is on.
    pub(super) fn header_device(&self) -> &OpenedVolume {
        self.detached.as_ref().unwrap_or(&self.volume)
    }

    /// The same, open.
    pub(super) fn into_header_file(self) -> File {
        self.detached.unwrap_or(self.volume).file
    }

    /// Where header and payload lie.
    pub(super) fn placement(&self) -> Placement {
        Placement { volume_bytes: self.volume.size_bytes, detached: self.detached.is_some() }
    }

    /// Reads the header.
    pub(super) fn read_header(&self) -> Result<Header, LuksError> {
        let device = self.header_device();
        Header::read(&device.file, device.size_bytes)
    }
}

/// Claims the header's place on `device` for as long as it is open. QEMU leaves locks there too, on images that it has
/// open.
pub(super) fn claim(device: &OpenedVolume) -> Result<(), ToolError> {
    match header_lock::claim(&device.file) {
        Ok(true) => Ok(()),
        Ok(false) => Err(EditError::Busy { who: "QEMU, or another `sealblk`" }.into()),
        // No such locks there: then nobody has any.
        Err(error)
            if error.kind() == ErrorKind::Unsupported || error.raw_os_error() == Some(libc::EINVAL) =>
        {
            Ok(())
        }
        Err(error) => Err(EditError::Write(error).into()),
    }
}
