//! Ephemeral disks: each has a key of its own that is in a key manager and nowhere else, so that the end of the key is the
//! end of the data, wherever copies of the ciphertext may lie.
//!
//! A key's record names its disk, and a disk carries the same UUID (`association`). The key is made first and destroyed
//! first. So at every moment, whatever is interrupted, there are three things at most: a disk with its key, a key without a
//! disk, which opens nothing, or a disk without a key, which nothing opens. [`list`] finds all three, and
//! [`Doomed::destroy`] ends them.

mod association;
mod create;
mod destroy;
mod disk;
mod error;
mod keys;
mod list;
mod lvm;
mod place;

pub use association::{Association, DiskFormat, NotOurs};
pub use create::{CreatedDisk, NewDisk, NewFormat, create};
pub use destroy::{Destroyed, Doomed, Remains, Target};
pub use error::EphemeralError;
pub use keys::DiskKeys;
pub use list::{DiskState, ListedDisk, Listing, list};
pub use lvm::LvmError;
pub use place::{LvName, Place, PlaceError};
