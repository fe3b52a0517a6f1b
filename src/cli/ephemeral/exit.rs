//! The exit code of each reason why a command about ephemeral disks fails.

use crate::cli::exit::{Exit, format_exit, key_exit, volume_exit};
use crate::cli::tool_error::edit_exit;
use crate::ephemeral::{EphemeralError, PlaceError};

pub(in crate::cli) fn ephemeral_exit(error: &EphemeralError) -> Exit {
    match error {
        EphemeralError::Key(error) => key_exit(error),
        EphemeralError::NoKey { .. } => Exit::Key,
        EphemeralError::Volume(error) => volume_exit(error),
        EphemeralError::Header(error) => edit_exit(error),
        EphemeralError::Format(error) => format_exit(error),
        EphemeralError::Place(PlaceError::Folder { .. })
        | EphemeralError::Lvm(_)
        | EphemeralError::File { .. }
        | EphemeralError::NotRemoved { .. } => Exit::Failure,
        EphemeralError::Place(PlaceError::NotText { .. } | PlaceError::NotLogicalVolume)
        | EphemeralError::Size { .. }
        | EphemeralError::SectorsTooSmall { .. }
        | EphemeralError::TooLong { .. }
        | EphemeralError::Ambiguous { .. } => Exit::Usage,
        EphemeralError::Inactive { .. }
        | EphemeralError::NoAttributes { .. }
        | EphemeralError::NothingThere { .. }
        | EphemeralError::NotEphemeral { .. } => Exit::Volume,
        EphemeralError::ChangedMeanwhile { .. } => Exit::VolumeLocked,
        EphemeralError::Exists { .. } | EphemeralError::Mismatch { .. } => Exit::Refused,
        EphemeralError::NotUndone { source, .. } => ephemeral_exit(source),
    }
}
