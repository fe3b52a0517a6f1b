//! What a header says, in few words for people.

use std::fmt;

use super::description::{Argon2, Kdf, Priority, Slot};
use super::on_disk::CopyState;

impl fmt::Display for Kdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pbkdf2 { hash, iterations } => write!(f, "pbkdf2 {hash}, {iterations} iterations"),
            Self::Argon2i(costs) => write!(f, "argon2i, {costs}"),
            Self::Argon2id(costs) => write!(f, "argon2id, {costs}"),
            Self::Other { name } => f.write_str(name),
        }
    }
}

impl fmt::Display for Argon2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passes, memory_kib, threads } = self;
        write!(f, "{passes} passes, {memory_kib} KiB, {threads} threads")
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ignored => "ignored",
            Self::Normal => "normal",
            Self::Preferred => "preferred",
        })
    }
}

impl fmt::Display for CopyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Good => "good",
            Self::Older => "older",
            Self::Damaged => "damaged",
        })
    }
}

impl Slot {
    /// What is in it and how it is opened.
    pub fn summary(&self) -> String {
        let kdf = self.kdf.as_ref().map_or_else(|| self.kind.clone(), ToString::to_string);
        let priority = match self.priority {
            Priority::Normal => String::new(),
            other => format!(", {other}"),
        };
        let unbound = if self.digest.is_none() { ", not of this volume's key" } else { "" };
        format!("{kdf}{priority}{unbound}")
    }
}
