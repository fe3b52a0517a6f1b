//! What lies on a volume: where its payload is and how that is encrypted. Start-up only; the data path never
//! hears of formats.
//!
//! [`VolumeFormat`] is one of the project's three joints. The format is always declared by the operator,
//! never probed from bytes that a guest can write.

pub mod plain;

use std::fs::File;

use crate::cipher::{IvNumbering, VolumeKey};
use crate::geometry::Geometry;
use crate::keys::Secret;

/// A volume made ready for the data path.
#[derive(Debug)]
pub struct Unlocked {
    /// Where the payload lies.
    pub geometry: Geometry,
    /// How it is encrypted; `None` for a volume that is not.
    pub encryption: Option<Encryption>,
}

/// The key of an unlocked volume and what its cipher needs beside it.
#[derive(Debug)]
pub struct Encryption {
    /// Both halves of the XTS key.
    pub key: VolumeKey,
    /// Which IV each sector gets.
    pub iv: IvNumbering,
}

/// Reads a volume's layout and turns the secret it is locked with into its key.
pub trait VolumeFormat {
    /// Whether [`unlock`](Self::unlock) needs a secret.
    fn needs_secret(&self) -> bool;
    /// Unlocks `volume`, whose size is `volume_bytes`. For `plain` the secret is the volume key itself; for
    /// formats with a header it is a passphrase.
    ///
    /// # Errors
    /// See [`FormatError`]; none of them names secret bytes.
    fn unlock(&self, volume: &File, volume_bytes: u64, secret: Option<Secret>) -> Result<Unlocked, FormatError>;
}
