//! Files that appear whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, linkat};
use uuid::Uuid;

/// A file without a name that is being written. Dropped before [`publish`](Self::publish), or when the process is
/// killed, it leaves nothing behind.
///
/// Where the file system has no nameless files (NFS, say), it has a name that nobody asked for,
/// `.NAME.RANDOM.partial`, which a killed process does leave behind.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    folder: File,
    destination: PathBuf,
    /// The provisional name, where one is needed.
    provisional: Option<PathBuf>,
    /// Whether it takes the place of a file of that name.
    replaces: bool,
}

impl NewFile {
    /// Begins a file that is to be called `destination`, readable and writable by its owner only.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] when something has that name; or when the folder cannot be written to.
    pub fn create(destination: &Path) -> io::Result<Self> {
        if fs::symlink_metadata(destination).is_ok() {
            return Err(ErrorKind::AlreadyExists.into());
        }
        Self::begin(destination, false)
    }

    /// Begins a file that is to take the place of `destination`, which stays what it is until then. So does its
    /// content for whoever has it open.
    ///
    /// # Errors
    /// When the folder cannot be written to.
    pub fn replacing(destination: &Path) -> io::Result<Self> {
        Self::begin(destination, true)
    }

    fn begin(destination: &Path, replaces: bool) -> io::Result<Self> {
        let folder_path = folder_of(destination);
        let folder = File::open(folder_path)?;
        let (file, provisional) = match private().custom_flags(libc::O_TMPFILE).open(folder_path) {
            Ok(file) => (file, None),
            Err(error) if has_no_nameless_files(&error) => {
                let path = provisional_name(destination)?;
                (private().create_new(true).open(&path)?, Some(path))
            }
            Err(error) => return Err(error),
        };
        Ok(Self { file, folder, destination: destination.to_owned(), provisional, replaces })
    }

    /// The file, open for reading and writing.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Makes the content durable and gives the file its name, then makes that durable. Overwrites nothing but what it
    /// was to replace.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] when something got that name meanwhile; or when storage fails.
    pub fn publish(mut self) -> io::Result<File> {
        self.file.sync_all()?;
        if self.replaces {
            // A rename puts one file in the place of another at once; linking cannot.
            let name = match self.provisional.take() {
                Some(name) => name,
                None => self.link_to(provisional_name(&self.destination)?)?,
            };
            fs::rename(&*self.provisional.insert(name), &self.destination)?;
            self.provisional = None;
        } else {
            match &self.provisional {
                None => drop(self.link_to(self.destination.clone())?),
                Some(path) => linkat(CWD, path, CWD, &self.destination, AtFlags::empty())?,
            }
        }
        self.folder.sync_all()?;
        // The file is there: a provisional name that stays is litter, not a failure. `Drop` removes it.
        self.file.try_clone()
    }

    fn link_to(&self, path: PathBuf) -> io::Result<PathBuf> {
        let nameless = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        linkat(CWD, nameless, CWD, &path, AtFlags::SYMLINK_FOLLOW)?;
        Ok(path)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(path) = &self.provisional {
            let _ = fs::remove_file(path);
        }
    }
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

/// The folder that `path` lies in.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// What kernel and file systems answer that do not know `O_TMPFILE`.
fn has_no_nameless_files(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL))
}

fn provisional_name(destination: &Path) -> io::Result<PathBuf> {
    let name = destination.file_name().ok_or(ErrorKind::InvalidInput)?.to_string_lossy();
    Ok(destination.with_file_name(format!(".{name}.{}.partial", Uuid::new_v4().simple())))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// The same file under a provisional name, as on a file system without nameless ones.
    fn with_provisional_name(destination: &Path) -> NewFile {
        let provisional = provisional_name(destination).unwrap();
        let file = private().create_new(true).open(&provisional).unwrap();
        let folder = File::open(folder_of(destination)).unwrap();
        NewFile {
            file,
            folder,
            destination: destination.to_owned(),
            provisional: Some(provisional),
            replaces: false,
        }
    }

    #[test]
    fn a_file_is_there_when_it_is_published_and_not_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new");
        for begin in [|path: &Path| NewFile::create(path).unwrap(), with_provisional_name] {
            let new = begin(&path);
            new.file().write_all(b"whole").unwrap();
            assert!(!path.exists());
            new.publish().unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"whole");
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            assert_eq!(names(folder.path()), ["new"]);
            fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn a_file_that_is_given_up_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        for begin in [|path: &Path| NewFile::create(path).unwrap(), with_provisional_name] {
            drop(begin(&folder.path().join("new")));
            assert_eq!(names(folder.path()), [""; 0]);
        }
    }

    #[test]
    fn nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("there");
        for begin in [|path: &Path| NewFile::create(path).unwrap(), with_provisional_name] {
            let new = begin(&path);
            fs::write(&path, b"other").unwrap();
            assert_eq!(new.publish().unwrap_err().kind(), ErrorKind::AlreadyExists);
            assert_eq!(fs::read(&path).unwrap(), b"other");
            assert_eq!(names(folder.path()), ["there"]);
            fs::remove_file(&path).unwrap();
        }
        symlink("nowhere", &path).unwrap();
        assert_eq!(NewFile::create(&path).unwrap_err().kind(), ErrorKind::AlreadyExists);
    }

    #[test]
    fn a_file_is_replaced_when_the_new_one_is_published_and_not_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("there");
        let nameless = |path: &Path| NewFile::replacing(path).unwrap();
        let named = |path: &Path| {
            let mut new = with_provisional_name(path);
            new.replaces = true;
            new
        };
        for begin in [nameless as fn(&Path) -> NewFile, named] {
            fs::write(&path, b"old").unwrap();
            drop(begin(&path));
            let new = begin(&path);
            new.file().write_all(b"new").unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"old");
            new.publish().unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"new");
            assert_eq!(names(folder.path()), ["there"]);
        }
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let error = NewFile::create(&folder.path().join("missing/new")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(folder_of(Path::new("new")), Path::new("."));
    }
}
