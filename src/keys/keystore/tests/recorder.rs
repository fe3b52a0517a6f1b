//! A disk that remembers everything SQLite does to it, so that it can be shown as it was at any moment, and that fails on
//! demand.
//!
//! It is SQLite's own VFS with a few functions replaced: each write, truncation, sync, creation and deletion is noted, in
//! order, and then done. From the notes come the files as they are when the process is killed between any two of them or
//! inside one ([`killed`]), and as they may be when the power fails ([`without_power`]).
//!
//! What is taken for granted about disks is what SQLite takes for granted: a sync makes durable what was written to that
//! file before, the first sync of a new log also makes its name durable, and a write that is lost or torn leaves the bytes
//! around it alone. The shared memory between processes (`-shm`) is rebuilt by whoever opens first, so it is not followed.
#![expect(unsafe_code, reason = "SQLite's interface to the system is a table of C functions")]

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fs;
use std::path::Path;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use rusqlite::ffi;

/// Files by name, with their content.
pub(super) type Files = BTreeMap<String, Vec<u8>>;

/// The piece that a power failure keeps or loses as a whole.
const PIECE_BYTES: usize = 512;

/// Something that was done to a file.
#[derive(Clone, Debug)]
pub(super) enum Event {
    Create(String),
    Write(String, usize, Vec<u8>),
    Truncate(String, usize),
    Sync(String),
    /// With the folder synced afterwards, or not.
    Delete(String, bool),
}

/// When the disk fails: at the call of this number, and at all that follow if it does not recover.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    pub(super) at_call: usize,
    pub(super) recovers: bool,
}

/// One disk, under a name of its own in SQLite's list.
pub(super) struct Recorder {
    name: CString,
    notes: Mutex<Notes>,
}

#[derive(Default)]
struct Notes {
    events: Vec<Event>,
    calls: usize,
    fault: Option<Fault>,
}

/// What is open, by the address that SQLite knows it by.
static OPEN: LazyLock<Mutex<HashMap<usize, OpenFile>>> = LazyLock::new(Mutex::default);
/// The recorders, by the addresses of their tables.
static RECORDERS: LazyLock<Mutex<HashMap<usize, &'static Recorder>>> = LazyLock::new(Mutex::default);

#[derive(Clone)]
struct OpenFile {
    recorder: &'static Recorder,
    name: String,
    methods: &'static ffi::sqlite3_io_methods,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Recorder {
    /// Adds a recorder to SQLite's list. It stays there: there is no telling when the last file is closed.
    pub(super) fn install() -> &'static Self {
        let mut recorders = lock(&RECORDERS);
        let name = CString::new(format!("recorder-{}", recorders.len())).unwrap();
        let recorder: &'static Self = Box::leak(Box::new(Self { name, notes: Mutex::default() }));
        // SAFETY: the name of the usual VFS, whose table is static.
        let usual = unsafe { &*ffi::sqlite3_vfs_find(std::ptr::null()) };
        let table = Box::leak(Box::new(ffi::sqlite3_vfs {
            pNext: std::ptr::null_mut(),
            zName: recorder.name.as_ptr(),
            xOpen: Some(open),
            xDelete: Some(delete),
            ..*usual
        }));
        recorders.insert(std::ptr::from_mut(table) as usize, recorder);
        // SAFETY: the table lives as long as the process.
        assert_eq!(unsafe { ffi::sqlite3_vfs_register(table, 0) }, ffi::SQLITE_OK);
        recorder
    }

    pub(super) fn name(&'static self) -> &'static CStr {
        &self.name
    }

    pub(super) fn events(&self) -> Vec<Event> {
        lock(&self.notes).events.clone()
    }

    /// How many calls there were that could have failed.
    pub(super) fn calls(&self) -> usize {
        lock(&self.notes).calls
    }

    pub(super) fn set_fault(&self, fault: Option<Fault>) {
        let mut notes = lock(&self.notes);
        notes.calls = 0;
        notes.fault = fault;
    }

    /// Counts a call, and says whether it fails.
    fn fails(&self) -> bool {
        let mut notes = lock(&self.notes);
        notes.calls += 1;
        let call = notes.calls - 1;
        notes.fault.is_some_and(
            |fault| {
                if fault.recovers { call == fault.at_call } else { call >= fault.at_call }
            },
        )
    }

    fn note(&self, event: Event) {
        lock(&self.notes).events.push(event);
    }
}

fn usual() -> &'static ffi::sqlite3_vfs {
    // SAFETY: the usual VFS is always there, and its table is static.
    unsafe { &*ffi::sqlite3_vfs_find(std::ptr::null()) }
}

fn file_name(path: &CStr) -> String {
    Path::new(path.to_str().unwrap()).file_name().unwrap().to_str().unwrap().to_owned()
}

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    path: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    let recorder = lock(&RECORDERS)[&(vfs as usize)];
    // SAFETY: SQLite passes a path, or null for a nameless temporary file, of which a keystore makes none.
    let path_text = unsafe { CStr::from_ptr(path) };
    let name = file_name(path_text);
    let is_new = flags & ffi::SQLITE_OPEN_CREATE != 0 && !Path::new(path_text.to_str().unwrap()).exists();
    if is_new && recorder.fails() {
        // SAFETY: SQLite's own memory for the file; a null table tells it that nothing is open.
        unsafe { (*file).pMethods = std::ptr::null() };
        return ffi::SQLITE_CANTOPEN;
    }
    // SAFETY: the arguments are SQLite's own.
    let code = unsafe { usual().xOpen.unwrap()(vfs, path, file, flags, out_flags) };
    if code != ffi::SQLITE_OK {
        return code;
    }
    if is_new {
        recorder.note(Event::Create(name.clone()));
    }
    // SAFETY: the usual VFS has just filled it in, with one of its static tables.
    let methods: &'static ffi::sqlite3_io_methods = unsafe { &*(*file).pMethods };
    let watched = ffi::sqlite3_io_methods {
        xClose: Some(close),
        xWrite: Some(write),
        xTruncate: Some(truncate),
        xSync: Some(sync),
        ..*methods
    };
    // SAFETY: SQLite's own memory for the file; the table lives as long as the process.
    unsafe { (*file).pMethods = Box::leak(Box::new(watched)) };
    lock(&OPEN).insert(file as usize, OpenFile { recorder, name, methods });
    code
}

fn opened(file: *mut ffi::sqlite3_file) -> OpenFile {
    lock(&OPEN)[&(file as usize)].clone()
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    let opened = lock(&OPEN).remove(&(file as usize)).unwrap();
    // SAFETY: an open file of the usual VFS.
    unsafe { opened.methods.xClose.unwrap()(file) }
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    bytes: *const c_void,
    length: c_int,
    offset: i64,
) -> c_int {
    let opened = opened(file);
    if opened.recorder.fails() {
        return ffi::SQLITE_FULL;
    }
    // SAFETY: SQLite passes that many bytes.
    let content = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), length as usize) };
    opened.recorder.note(Event::Write(opened.name, offset as usize, content.to_vec()));
    // SAFETY: an open file of the usual VFS.
    unsafe { opened.methods.xWrite.unwrap()(file, bytes, length, offset) }
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, length: i64) -> c_int {
    let opened = opened(file);
    if opened.recorder.fails() {
        return ffi::SQLITE_IOERR_TRUNCATE;
    }
    opened.recorder.note(Event::Truncate(opened.name, length as usize));
    // SAFETY: an open file of the usual VFS.
    unsafe { opened.methods.xTruncate.unwrap()(file, length) }
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    let opened = opened(file);
    if opened.recorder.fails() {
        return ffi::SQLITE_IOERR_FSYNC;
    }
    opened.recorder.note(Event::Sync(opened.name));
    // SAFETY: an open file of the usual VFS.
    unsafe { opened.methods.xSync.unwrap()(file, flags) }
}

unsafe extern "C" fn delete(vfs: *mut ffi::sqlite3_vfs, path: *const c_char, sync_folder: c_int) -> c_int {
    let recorder = lock(&RECORDERS)[&(vfs as usize)];
    // SAFETY: SQLite passes a path.
    let path_text = unsafe { CStr::from_ptr(path) };
    if Path::new(path_text.to_str().unwrap()).exists() {
        if recorder.fails() {
            return ffi::SQLITE_IOERR_DELETE;
        }
        recorder.note(Event::Delete(file_name(path_text), sync_folder != 0));
    }
    // SAFETY: the arguments are SQLite's own.
    unsafe { usual().xDelete.unwrap()(vfs, path, sync_folder) }
}

/// The files when the process is killed after `done` events, and in the middle of the next one if `torn`.
pub(super) fn killed(before: &Files, events: &[Event], done: usize, torn: bool) -> Files {
    let mut files = before.clone();
    for event in &events[..done] {
        apply(&mut files, event);
    }
    if let (true, Some(Event::Write(name, offset, content))) = (torn, events.get(done)) {
        let half = content[..content.len() / 2].to_vec();
        apply(&mut files, &Event::Write(name.clone(), *offset, half));
    }
    files
}

/// The files when the power fails after `done` events: of what was not synced, `keeps` decides piece by piece.
pub(super) fn without_power(
    before: &Files,
    events: &[Event],
    done: usize,
    keeps: &mut dyn FnMut() -> bool,
) -> Files {
    let mut files = before.clone();
    let mut unsynced: BTreeMap<String, Vec<Event>> = BTreeMap::new();
    for event in &events[..done] {
        match event {
            Event::Sync(name) => {
                for event in unsynced.remove(name).unwrap_or_default() {
                    apply(&mut files, &event);
                }
            }
            Event::Delete(name, true) => {
                unsynced.remove(name);
                files.remove(name);
            }
            Event::Create(name)
            | Event::Write(name, ..)
            | Event::Truncate(name, _)
            | Event::Delete(name, false) => {
                unsynced.entry(name.clone()).or_default().push(event.clone());
            }
        }
    }
    for event in unsynced.into_values().flatten() {
        match event {
            Event::Write(name, offset, content) => {
                for (offset, piece) in pieces(offset, &content) {
                    // What is written to a file whose name is lost is lost.
                    if files.contains_key(&name) && keeps() {
                        apply(&mut files, &Event::Write(name.clone(), offset, piece.to_vec()));
                    }
                }
            }
            event => {
                if keeps() {
                    apply(&mut files, &event);
                }
            }
        }
    }
    files
}

fn apply(files: &mut Files, event: &Event) {
    match event {
        Event::Create(name) => {
            files.insert(name.clone(), Vec::new());
        }
        Event::Write(name, offset, content) => {
            let file = files.get_mut(name).unwrap();
            let end = offset + content.len();
            file.resize(file.len().max(end), 0);
            file[*offset..end].copy_from_slice(content);
        }
        Event::Truncate(name, length) => {
            if let Some(file) = files.get_mut(name) {
                file.resize(*length, 0);
            }
        }
        Event::Delete(name, _) => {
            files.remove(name);
        }
        Event::Sync(_) => {}
    }
}

/// A write cut where the disk's pieces end.
fn pieces(offset: usize, content: &[u8]) -> Vec<(usize, &[u8])> {
    let mut pieces = Vec::new();
    let (mut at, mut rest) = (offset, content);
    while !rest.is_empty() {
        let length = (PIECE_BYTES - at % PIECE_BYTES).min(rest.len());
        let (piece, more) = rest.split_at(length);
        pieces.push((at, piece));
        (at, rest) = (at + length, more);
    }
    pieces
}

/// The files of a folder, but for the shared memory.
pub(super) fn files_of(folder: &Path) -> Files {
    let mut files = Files::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if !name.ends_with("-shm") {
            files.insert(name, fs::read(entry.path()).unwrap());
        }
    }
    files
}

#[test]
fn the_notes_give_the_files_as_they_are() {
    let folder = super::fast_folder();
    let recorder = Recorder::install();
    let path = folder.path().join("db");
    let flags = rusqlite::OpenFlags::default();
    let connection = rusqlite::Connection::open_with_flags_and_vfs(&path, flags, recorder.name()).unwrap();
    connection
        .execute_batch("PRAGMA journal_mode = wal; PRAGMA wal_autocheckpoint = 2; CREATE TABLE t (x);")
        .unwrap();
    let as_noted = || {
        let events = recorder.events();
        killed(&Files::new(), &events, events.len(), false)
    };
    for i in 0..20 {
        connection.execute("INSERT INTO t VALUES (zeroblob(500))", []).unwrap();
        assert!(as_noted() == files_of(folder.path()), "{i}");
    }
    let events = recorder.events();
    let survivors = without_power(&Files::new(), &events, events.len(), &mut || false);
    assert!(survivors.contains_key("db") && survivors != files_of(folder.path()), "not all is synced");
    connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    drop(connection);
    assert!(as_noted() == files_of(folder.path()));
    let events = recorder.events();
    let survivors = without_power(&Files::new(), &events, events.len(), &mut || false);
    assert!(survivors["db"] == files_of(folder.path())["db"]);
    for kind in ["Create", "Write", "Sync", "Truncate", "Delete"] {
        assert!(events.iter().any(|event| format!("{event:?}").starts_with(kind)), "{kind}");
    }
}
