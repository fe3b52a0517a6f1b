//! `sealblk key create`.

use clap::{Args, ValueEnum};

use super::ManagerArgs;
use super::list::{Shown, details};
use crate::cli::output;
use crate::cli::resolve::impossible;
use crate::cli::tool_error::ToolError;
use crate::keys::{KeyKind, KeySpec, SECRET_BYTES_MAX};

const BITS_MIN: u32 = 128;

/// The options of `sealblk key create`.
#[derive(Debug, Args)]
pub(super) struct CreateCommand {
    #[command(flatten)]
    manager: ManagerArgs,
    #[command(flatten)]
    spec: SpecArgs,
    /// Length in bits: 256 opens a LUKS volume, 512 is a volume key for plain mode
    #[arg(long, value_name = "BITS", default_value_t = 256)]
    bits: u32,
}

/// What is said of a key that is new in its manager.
#[derive(Debug, Args)]
pub(super) struct SpecArgs {
    /// Name for people, unique in the key manager
    #[arg(long)]
    name: Option<String>,
    /// What the bytes are used as
    #[arg(long, default_value = "symmetric")]
    kind: KindName,
    /// The volume that the key is for, as a name for people
    #[arg(long)]
    volume: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum KindName {
    /// Random bytes
    Symmetric,
    /// Text, taken as it is
    Passphrase,
}

impl SpecArgs {
    /// The specification of a key of so many bits.
    pub(super) fn of_bits(self, bits: u32) -> KeySpec {
        let kind = match self.kind {
            KindName::Symmetric => KeyKind::Symmetric,
            KindName::Passphrase => KeyKind::Passphrase,
        };
        KeySpec { name: self.name, kind, bits, volume: self.volume }
    }
}

impl CreateCommand {
    pub(super) fn run(self) -> Result<(), ToolError> {
        let bits_max = u32::try_from(SECRET_BYTES_MAX * 8).expect("secrets are small");
        if !(BITS_MIN..=bits_max).contains(&self.bits) || !self.bits.is_multiple_of(8) {
            return Err(impossible("--bits", self.bits, "a multiple of 8 from 128 to 65536").into());
        }
        let metadata = self.manager.admin()?.create(&self.spec.of_bits(self.bits))?;
        let shown = Shown::new(&self.manager.name()?, metadata);
        output::print(self.manager.json, &shown, details)
    }
}
