//! Volumes and their LUKS headers: made, looked at, and given other keys. One file for each command; here is what they
//! share.

mod format;
mod header;
mod inspect;
mod kdf;
mod key;
mod preallocate;
mod rotate;
mod size;
mod slot;
mod target;

pub(super) use format::FormatCommand;
pub(super) use header::HeaderCommand;
pub(super) use inspect::InspectCommand;
pub(super) use rotate::VolumeRotation;
pub(super) use size::ByteSize;
pub(super) use slot::SlotCommand;

use std::path::PathBuf;

/// What every command about a volume is told.
#[derive(Debug, clap::Args)]
struct VolumeArgs {
    /// File or block device
    volume: PathBuf,
    /// File or device with the header, if that is not on the volume itself
    #[arg(long, value_name = "FILE")]
    header: Option<PathBuf>,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}
