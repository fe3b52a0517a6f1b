//! Where a disk lies: a file, or a logical volume of LVM.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::format::new_file::folder_of;

/// Where a disk lies. As text: the whole path of a file, or `VG/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// A file, by its whole path.
    File(PathBuf),
    /// A logical volume.
    Lvm(LvName),
}

/// The name of a logical volume: `VG/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LvName {
    /// The volume group.
    pub vg: String,
    /// The volume in it.
    pub lv: String,
}

/// Why something is no place for a disk.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The folder is not there, or cannot be looked up.
    #[error("cannot find the folder of {path}")]
    Folder {
        /// The file.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// It cannot be written down at the key.
    #[error("the path {path:?} does not end in a name, or is not printable text")]
    NotText {
        /// The file.
        path: PathBuf,
    },
    /// No name of a logical volume.
    #[error(
        "a logical volume is named VG/NAME: letters, digits and + _ . - for each, not beginning with a hyphen"
    )]
    NotLogicalVolume,
}

impl Place {
    /// The file `path`, which need not be there, in a folder that is. Links in the folder's path are followed, so that
    /// the name means the same wherever it is read later.
    ///
    /// # Errors
    /// See [`PlaceError`].
    pub fn file(path: &Path) -> Result<Self, PlaceError> {
        let not_text = || PlaceError::NotText { path: path.to_owned() };
        let name = path.file_name().ok_or_else(not_text)?;
        let folder = fs::canonicalize(folder_of(path))
            .map_err(|source| PlaceError::Folder { path: path.to_owned(), source })?;
        let path = folder.join(name);
        match path.to_str() {
            Some(text) if !text.chars().any(char::is_control) => Ok(Self::File(path)),
            _ => Err(not_text()),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Lvm(name) => name.fmt(f),
        }
    }
}

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.starts_with('/') {
            true => Ok(Self::File(PathBuf::from(text))),
            false => text.parse().map(Self::Lvm),
        }
    }
}

impl fmt::Display for LvName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.vg, self.lv)
    }
}

impl FromStr for LvName {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_name = |name: &str| {
            // As lvm(8) has it. What begins with a hyphen would be an option to its tools.
            let possible = |c: char| c.is_ascii_alphanumeric() || "+_.-".contains(c);
            !name.is_empty()
                && !name.starts_with('-')
                && name.chars().all(possible)
                && !matches!(name, "." | "..")
        };
        match text.split_once('/') {
            Some((vg, lv)) if is_name(vg) && is_name(lv) => Ok(Self { vg: vg.to_owned(), lv: lv.to_owned() }),
            _ => Err(PlaceError::NotLogicalVolume),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn names_of_logical_volumes_cannot_be_options() {
        assert_eq!("vg0/vm-1.x".parse::<Place>().unwrap().to_string(), "vg0/vm-1.x");
        for text in
            ["", "vg0", "vg0/", "/vg0", "vg0/a/b", "-f/x", "vg0/-x", "vg0/..", "vg 0/x", "vg0/x\n", "vg0/@x"]
        {
            assert!(text.parse::<LvName>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_file_is_known_by_its_whole_path() {
        let folder = tempfile::tempdir().unwrap();
        let real = fs::canonicalize(folder.path()).unwrap();
        symlink(folder.path(), folder.path().join("link")).unwrap();
        let place = Place::file(&folder.path().join("link/disk")).unwrap();
        assert_eq!(place, Place::File(real.join("disk")));
        assert_eq!(place.to_string().parse::<Place>().unwrap(), place);
        assert!(matches!(Place::file(&folder.path().join("no/disk")), Err(PlaceError::Folder { .. })));
        for path in ["..", "/", "a\nb"] {
            assert!(
                matches!(Place::file(&folder.path().join(path)), Err(PlaceError::NotText { .. })),
                "{path}"
            );
        }
    }
}
