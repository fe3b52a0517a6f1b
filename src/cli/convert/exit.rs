//! The exit codes of a conversion.

use crate::cli::exit::{Exit, format_exit, key_exit, luks_exit, volume_exit};
use crate::convert::ConvertError;
use crate::format::luks::EditError;

/// The code that a failed conversion exits with.
pub(in crate::cli) fn convert_exit(error: &ConvertError) -> Exit {
    match error {
        ConvertError::Open { source, .. } => volume_exit(source),
        ConvertError::Key { source, .. } => key_exit(source),
        ConvertError::Secret(_) | ConvertError::Cipher { .. } => Exit::Key,
        ConvertError::Format { source, .. } => format_exit(source),
        ConvertError::Header { source: EditError::Luks(error) } => luks_exit(error),
        ConvertError::SizeTooSmall { .. }
        | ConvertError::SizeTooLarge
        | ConvertError::HeaderIsVolume { .. }
        | ConvertError::SparseZeroes
        | ConvertError::SparseDevice => Exit::Usage,
        ConvertError::Exists { .. } | ConvertError::DeviceInUse { .. } | ConvertError::NoHeader { .. } => {
            Exit::Refused
        }
        ConvertError::Image { .. }
        | ConvertError::NothingThere { .. }
        | ConvertError::DeviceTooSmall { .. }
        | ConvertError::SameFile
        | ConvertError::Create { .. } => Exit::Volume,
        ConvertError::Reserve { .. }
        | ConvertError::Descriptors { .. }
        | ConvertError::Read { .. }
        | ConvertError::Write { .. }
        | ConvertError::Sync { .. }
        | ConvertError::Mismatch { .. }
        | ConvertError::Header { .. }
        | ConvertError::Interrupted
        | ConvertError::Incomplete { .. } => Exit::Failure,
    }
}
