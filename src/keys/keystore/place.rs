//! The file that a keystore is: whose it is, how it comes to be, how it is opened and copied.

use std::ffi::{CStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};

use super::super::owned_file::{self, Others, Refusal, effective_user, quoted};
use super::error::KeystoreError;
use super::schema::{self, APPLICATION_ID, MIGRATIONS};

/// How long to wait for other processes. A writer is done in milliseconds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Larger files are not read through whenever they are opened: `verify` does it.
const CHECKED_PAGES_MAX: i64 = 4096;

/// What SQLite puts beside the file while it is open.
const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// Durable at commit, wiped when overwritten, and nothing in the file is taken for code.
const SETTINGS: &str = "
PRAGMA foreign_keys = ON;
PRAGMA secure_delete = ON;
PRAGMA synchronous = FULL;
PRAGMA temp_store = MEMORY;
PRAGMA mmap_size = 0;
PRAGMA cell_size_check = ON;
";

/// Where a keystore is, or is to be.
#[derive(Clone, Debug)]
pub(super) struct Place {
    path: PathBuf,
    /// SQLite's way to the disk, if not the usual one.
    vfs: Option<&'static CStr>,
}

impl Place {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), vfs: None }
    }

    #[cfg(test)]
    pub(super) fn with_vfs(self, vfs: &'static CStr) -> Self {
        Self { vfs: Some(vfs), ..self }
    }

    /// Opens the keystore that is there, and brings its schema up to date.
    ///
    /// # Errors
    /// When there is none, when others can get at it, when it is of another kind, newer or damaged.
    pub(super) fn open(&self) -> Result<Connection, KeystoreError> {
        let path = fs::canonicalize(&self.path).map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => {
                KeystoreError::Missing { path: self.path.clone() }
            }
            _ => KeystoreError::io(format!("cannot get at {}", self.path.display()), error),
        })?;
        check_folder(folder_of(&path))?;
        check_file(&path)?;
        for companion in companions(&path) {
            check_companion(&companion)?;
        }
        let mut connection = self.connect(&path)?;
        check_kind(&connection, &path)?;
        schema::migrate(&mut connection, MIGRATIONS)?;
        use_write_ahead_log(&connection)?;
        schema::check(&connection, MIGRATIONS)?;
        check_pages(&connection)?;
        Ok(connection)
    }

    /// Makes the file, lets `fill` write into it, and gives it its name last: what has the name is complete.
    ///
    /// # Errors
    /// When something of this name is there, or what `fill` returns; nothing is left behind.
    pub(super) fn make(
        &self,
        fill: impl FnOnce(&mut Connection) -> Result<(), KeystoreError>,
    ) -> Result<(), KeystoreError> {
        let Some(name) = self.path.file_name() else {
            return Err(KeystoreError::io(
                format!("{} names no file", self.path.display()),
                io::Error::from(ErrorKind::InvalidInput),
            ));
        };
        let named = folder_of(&self.path);
        let folder = fs::canonicalize(named)
            .map_err(|error| KeystoreError::io(format!("cannot get at folder {}", named.display()), error))?;
        check_folder(&folder)?;
        let lock = File::open(&folder).and_then(|lock| {
            flock(&lock, FlockOperation::LockExclusive)?;
            Ok(lock)
        });
        let lock = lock.map_err(|error| {
            KeystoreError::io(format!("folder {} cannot be locked", folder.display()), error)
        })?;
        let path = folder.join(name);
        if fs::symlink_metadata(&path).is_ok() {
            return Err(KeystoreError::Exists { path });
        }
        let workshop = folder.join(appended(Path::new(name), ".new"));
        let made = self.make_in(&workshop, &path, fill);
        let cleared = clear(&workshop);
        made?;
        cleared
            .and_then(|()| lock.sync_all())
            .map_err(|error| KeystoreError::io(format!("cannot finish {}", path.display()), error))
    }

    /// Makes the file in a folder of its own, which whoever is killed leaves behind for the next one to clear, and
    /// moves it to `path`.
    fn make_in(
        &self,
        workshop: &Path,
        path: &Path,
        fill: impl FnOnce(&mut Connection) -> Result<(), KeystoreError>,
    ) -> Result<(), KeystoreError> {
        let failed = |error: io::Error| KeystoreError::io(format!("cannot make {}", path.display()), error);
        clear(workshop).map_err(failed)?;
        DirBuilder::new().mode(0o700).create(workshop).map_err(failed)?;
        let draft = workshop.join("keystore");
        let file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft).map_err(failed)?;
        let mut connection = self.connect(&draft)?;
        fill(&mut connection)?;
        connection.close().map_err(|(_, error)| KeystoreError::from(error))?;
        if let Some(left) = companions(&draft).find(|companion| companion.exists()) {
            return Err(KeystoreError::io(
                format!("SQLite did not finish {}", left.display()),
                io::Error::from(ErrorKind::ResourceBusy),
            ));
        }
        file.sync_all().map_err(failed)?;
        renameat_with(CWD, &draft, CWD, path, RenameFlags::NOREPLACE).map_err(|errno| match errno {
            rustix::io::Errno::EXIST => KeystoreError::Exists { path: path.to_owned() },
            errno => failed(errno.into()),
        })
    }

    fn connect(&self, path: &Path) -> Result<Connection, KeystoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW
            | OpenFlags::SQLITE_OPEN_EXRESCODE;
        let connection = match self.vfs {
            Some(vfs) => Connection::open_with_flags_and_vfs(path, flags, vfs)?,
            None => Connection::open_with_flags(path, flags)?,
        };
        connection.busy_timeout(BUSY_TIMEOUT)?;
        for (option, on) in [
            (DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true),
            (DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false),
            (DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false),
            (DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false),
        ] {
            connection.set_db_config(option, on)?;
        }
        connection.execute_batch(SETTINGS).map_err(|error| foreign(error, path))?;
        Ok(connection)
    }
}

/// Waits until what was overwritten is nowhere in the file or its log any more.
///
/// # Errors
/// [`KeystoreError::NotYetWiped`] when other processes keep it from happening.
pub(super) fn wipe_log(connection: &Connection) -> Result<(), KeystoreError> {
    let result = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0));
    match result.map_err(KeystoreError::from) {
        Ok(false) => {}
        Ok(true) | Err(KeystoreError::Busy) => return Err(KeystoreError::NotYetWiped),
        Err(error) => return Err(error),
    }
    // SQLite does not sync the log after cutting it. It takes its locks on the other two files, so that closing
    // this one here does not give any up.
    let log = appended(Path::new(connection.path().expect("it is a file")), "-wal");
    match File::open(&log).and_then(|log| log.sync_all()) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(KeystoreError::io(format!("cannot sync {}", log.display()), error))
        }
        _ => Ok(()),
    }
}

/// Writes the marks of a keystore and its tables into an empty file.
///
/// # Errors
/// When the disk fails.
pub(super) fn found(connection: &mut Connection) -> Result<(), KeystoreError> {
    connection.pragma_update(None, "application_id", APPLICATION_ID)?;
    use_write_ahead_log(connection)?;
    schema::migrate(connection, MIGRATIONS)
}

fn use_write_ahead_log(connection: &Connection) -> Result<(), KeystoreError> {
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
    if mode == "wal" {
        return Ok(());
    }
    let source = io::Error::from(ErrorKind::Unsupported);
    Err(KeystoreError::io("the file system cannot share memory between processes: move the keystore", source))
}

fn check_kind(connection: &Connection, path: &Path) -> Result<(), KeystoreError> {
    let id: u32 = connection
        .pragma_query_value(None, "application_id", |row| row.get(0))
        .map_err(|error| foreign(error, path))?;
    if id == APPLICATION_ID { Ok(()) } else { Err(KeystoreError::Foreign { path: path.to_owned() }) }
}

/// The error, which means that `path` is of another kind if SQLite says that it is none of its files.
fn foreign(error: rusqlite::Error, path: &Path) -> KeystoreError {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::NotADatabase) => KeystoreError::Foreign { path: path.to_owned() },
        _ => error.into(),
    }
}

fn check_pages(connection: &Connection) -> Result<(), KeystoreError> {
    let pages: i64 = connection.pragma_query_value(None, "page_count", |row| row.get(0))?;
    if pages > CHECKED_PAGES_MAX {
        return Ok(());
    }
    let finding: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if finding == "ok" { Ok(()) } else { Err(KeystoreError::damaged(finding)) }
}

fn check_folder(path: &Path) -> Result<(), KeystoreError> {
    let metadata = fs::metadata(path)
        .map_err(|error| KeystoreError::io(format!("cannot get at folder {}", path.display()), error))?;
    let exposed = |problem, remedy| KeystoreError::Exposed { path: path.to_owned(), problem, remedy };
    let (mode, owner) = (metadata.mode() & 0o7777, metadata.uid());
    if mode & 0o077 != 0 {
        return Err(exposed(
            format!("mode {mode:04o} of the keystore's folder lets group or others at it"),
            format!("run `chmod 700 {}`, or give the keystore a folder of its own", quoted(path)),
        ));
    }
    if owner != 0 && owner != effective_user() {
        return Err(exposed(
            format!("the keystore's folder belongs to user {owner}, who can change it"),
            format!("run this as that user, or `chown {} {}`", effective_user(), quoted(path)),
        ));
    }
    Ok(())
}

fn check_file(path: &Path) -> Result<(), KeystoreError> {
    let metadata = fs::symlink_metadata(path)
        .map_err(|error| KeystoreError::io(format!("cannot get at {}", path.display()), error))?;
    owned_file::check(&metadata, path, Others::MayNothing).map_err(|refusal| exposed(path, refusal))
}

/// Checks what SQLite may have put beside the file. It belongs to whichever user of the keystore opened it first: those
/// who get through the folder, and nobody else can have made it.
fn check_companion(path: &Path) -> Result<(), KeystoreError> {
    let Some(metadata) = fs::symlink_metadata(path).ok().filter(|metadata| !metadata.is_dir()) else {
        return Ok(());
    };
    owned_file::check_apart_from_owner(&metadata, path, Others::MayNothing)
        .map_err(|refusal| exposed(path, refusal))
}

fn exposed(path: &Path, Refusal { problem, remedy }: Refusal) -> KeystoreError {
    KeystoreError::Exposed { path: path.to_owned(), problem, remedy }
}

/// Removes what an interrupted [`Place::make`] left.
fn clear(workshop: &Path) -> io::Result<()> {
    match fs::remove_dir_all(workshop) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
        None => path,
    }
}

fn companions(path: &Path) -> impl Iterator<Item = PathBuf> {
    COMPANIONS.into_iter().map(|suffix| appended(path, suffix))
}

fn appended(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}
