//! Opening files that others may have put there, and whether one is ours alone, by its owner and mode.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Opens a file for reading, whatever it is, without waiting for anybody and without becoming anybody's terminal.
pub(super) fn open(path: &Path) -> io::Result<File> {
    // Without O_NONBLOCK, a FIFO would make the open wait for a writer.
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

/// What group and others may be able to do with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Others {
    /// Nothing: it is secret.
    MayNothing,
    /// Read it, not change it: it is trusted.
    MayRead,
}

/// Why a file is not used.
#[derive(Debug)]
pub(super) struct Refusal {
    /// What speaks against it.
    pub(super) problem: String,
    /// What to do.
    pub(super) remedy: String,
}

/// Checks a file that was opened, so that nothing can be put in its place any more. `path` is for the remedy.
pub(super) fn check(metadata: &Metadata, path: &Path, others: Others) -> Result<(), Refusal> {
    check_apart_from_owner(metadata, path, others)?;
    let owner = metadata.uid();
    if owner != 0 && owner != effective_user() {
        return Err(Refusal {
            problem: format!("it belongs to user {owner}, who can change it"),
            remedy: format!("run `chown {} {}`", effective_user(), quoted(path)),
        });
    }
    Ok(())
}

/// The same, for a file whose folder is what keeps others away from it.
pub(super) fn check_apart_from_owner(
    metadata: &Metadata,
    path: &Path,
    others: Others,
) -> Result<(), Refusal> {
    let refused = |problem: String, remedy: String| Err(Refusal { problem, remedy });
    if !metadata.is_file() {
        return refused("it is not a regular file".to_owned(), "name a regular file".to_owned());
    }
    let mode = metadata.mode() & 0o7777;
    let path = quoted(path);
    match others {
        Others::MayNothing if mode & 0o077 != 0 => {
            return refused(
                format!("mode {mode:04o} lets group or others at it"),
                format!("run `chmod 600 {path}`, and change the key if anyone may have read it"),
            );
        }
        Others::MayRead if mode & 0o022 != 0 => {
            return refused(
                format!("mode {mode:04o} lets group or others change it"),
                format!("look it through and run `chmod go-w {path}`"),
            );
        }
        _ => {}
    }
    Ok(())
}

/// The user that files have to belong to, if not to root.
pub(super) fn effective_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The path as a shell takes it.
pub(super) fn quoted(path: &Path) -> String {
    let path = path.to_string_lossy();
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+,:@%".contains(&byte);
    if path.bytes().all(harmless) && !path.starts_with('-') {
        return path.into_owned();
    }
    let dashed = if path.starts_with('-') { "./" } else { "" };
    format!("'{dashed}{}'", path.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remedy_can_be_pasted_into_a_shell() {
        assert_eq!(quoted(Path::new("/run/keys/vm-1")), "/run/keys/vm-1");
        assert_eq!(quoted(Path::new("a b'c")), r"'a b'\''c'");
        assert_eq!(quoted(Path::new("-rf")), "'./-rf'");
    }
}
