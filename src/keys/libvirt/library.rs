//! libvirt's library, if one is installed: nothing is linked to it. Calls block; who calls is in a thread of its own.
#![expect(unsafe_code, reason = "functions of a shared library are found and called by name")]

use std::ffi::{CStr, CString, c_char, c_int, c_uchar, c_uint, c_void};
use std::ptr;
use std::sync::OnceLock;

use libloading::Library;
use zeroize::Zeroize;

use super::super::{Secret, SecretError};

/// What the dynamic loader knows it as.
pub(super) const LIBRARY: &str = "libvirt.so.0";

/// `VIR_UUID_STRING_BUFLEN`.
const UUID_TEXT_BYTES: usize = 37;

type Handle = *mut c_void;

/// The functions of `libvirt/libvirt-secret.h` and their company that are used, as declared there since 4.5.
struct Functions {
    open: unsafe extern "C" fn(*const c_char) -> Handle,
    close: unsafe extern "C" fn(Handle) -> c_int,
    lookup_by_uuid: unsafe extern "C" fn(Handle, *const c_char) -> Handle,
    lookup_by_usage: unsafe extern "C" fn(Handle, c_int, *const c_char) -> Handle,
    free: unsafe extern "C" fn(Handle) -> c_int,
    value: unsafe extern "C" fn(Handle, *mut usize, c_uint) -> *mut c_uchar,
    set_value: unsafe extern "C" fn(Handle, *const c_uchar, usize, c_uint) -> c_int,
    define: unsafe extern "C" fn(Handle, *const c_char, c_uint) -> Handle,
    undefine: unsafe extern "C" fn(Handle) -> c_int,
    list: unsafe extern "C" fn(Handle, *mut *mut Handle, c_uint) -> c_int,
    uuid: unsafe extern "C" fn(Handle, *mut c_char) -> c_int,
    description: unsafe extern "C" fn(Handle, c_uint) -> *mut c_char,
    last_error: unsafe extern "C" fn() -> *const LastError,
    /// Never unloaded: libvirt keeps threads and state of its own.
    _library: Library,
}

/// `virError` of `libvirt/virterror.h`, without its end.
#[repr(C)]
struct LastError {
    code: c_int,
    domain: c_int,
    message: *const c_char,
    level: c_int,
    connection: *const c_void,
    domain_of_error: *const c_void,
    texts: [*const c_char; 3],
    /// Of `VIR_ERR_SYSTEM_ERROR`, its `errno`.
    number: c_int,
}

/// Why something did not happen.
#[derive(Debug)]
pub(super) enum VirError {
    /// There is no library, or one without a function that is needed.
    Library(libloading::Error),
    /// What libvirt says: a number of `virErrorNumber`, and words.
    Said { code: i32, message: String },
    /// What a secret holds makes no key.
    Secret(SecretError),
}

impl From<SecretError> for VirError {
    fn from(error: SecretError) -> Self {
        Self::Secret(error)
    }
}

fn functions() -> Result<&'static Functions, VirError> {
    static FUNCTIONS: OnceLock<Functions> = OnceLock::new();
    if let Some(functions) = FUNCTIONS.get() {
        return Ok(functions);
    }
    let functions = load().map_err(VirError::Library)?;
    Ok(FUNCTIONS.get_or_init(|| functions))
}

fn load() -> Result<Functions, libloading::Error> {
    /// Errors are taken from where they happen; without this they are printed as well.
    unsafe extern "C" fn quiet(_: *mut c_void, _: *mut c_void) {}
    // SAFETY: libvirt's initializers may run at any time, in any program. The types of the functions are those of its
    // headers; each lives in this value, beside the library. A handler may be set at any time, and ours does nothing.
    unsafe {
        let library = Library::new(LIBRARY)?;
        let set_handler: unsafe extern "C" fn(*mut c_void, unsafe extern "C" fn(*mut c_void, *mut c_void)) =
            *library.get(b"virSetErrorFunc\0")?;
        set_handler(ptr::null_mut(), quiet);
        Ok(Functions {
            open: *library.get(b"virConnectOpen\0")?,
            close: *library.get(b"virConnectClose\0")?,
            lookup_by_uuid: *library.get(b"virSecretLookupByUUIDString\0")?,
            lookup_by_usage: *library.get(b"virSecretLookupByUsage\0")?,
            free: *library.get(b"virSecretFree\0")?,
            value: *library.get(b"virSecretGetValue\0")?,
            set_value: *library.get(b"virSecretSetValue\0")?,
            define: *library.get(b"virSecretDefineXML\0")?,
            undefine: *library.get(b"virSecretUndefine\0")?,
            list: *library.get(b"virConnectListAllSecrets\0")?,
            uuid: *library.get(b"virSecretGetUUIDString\0")?,
            description: *library.get(b"virSecretGetXMLDesc\0")?,
            last_error: *library.get(b"virGetLastError\0")?,
            _library: library,
        })
    }
}

impl Functions {
    /// What went wrong in the last call of this thread.
    fn error(&self) -> VirError {
        // SAFETY: it may be called at any time. What it points to lives until this thread's next call, as does the text.
        let said = unsafe {
            (self.last_error)().as_ref().map(|error| {
                let text = error.message.as_ref().map(|text| CStr::from_ptr(text).to_string_lossy());
                (error.code, error.number, text.unwrap_or_default())
            })
        };
        let (code, number, message) = said.unwrap_or((0, 0, "no error".into()));
        let message = message.replace(char::is_control, " ").chars().take(300).collect();
        // The mode of the daemon's socket decides who is let in, as its policy does.
        let is_denial = code == super::SYSTEM_ERROR && [libc::EACCES, libc::EPERM].contains(&number);
        VirError::Said { code: if is_denial { super::ACCESS_DENIED } else { code }, message }
    }
}

/// Loads the library, if that was not done before.
pub(super) fn load_library() -> Result<(), VirError> {
    functions().map(drop)
}

/// Text for libvirt. A zero byte is in no name that it knows.
fn text(text: &str) -> Result<CString, VirError> {
    CString::new(text)
        .map_err(|_| VirError::Said { code: super::NO_SECRET, message: "a name has a zero byte".to_owned() })
}

/// A connection to a daemon.
pub(super) struct Connection {
    functions: &'static Functions,
    handle: Handle,
}

impl Connection {
    pub(super) fn open(uri: &str) -> Result<Self, VirError> {
        let functions = functions()?;
        let uri = text(uri)?;
        // SAFETY: the text ends in a zero byte and lives longer than the call.
        let handle = unsafe { (functions.open)(uri.as_ptr()) };
        if handle.is_null() { Err(functions.error()) } else { Ok(Self { functions, handle }) }
    }

    pub(super) fn by_uuid(&self, uuid: &str) -> Result<VirSecret<'_>, VirError> {
        let uuid = text(uuid)?;
        // SAFETY: the connection is open, and the text as above.
        self.secret(unsafe { (self.functions.lookup_by_uuid)(self.handle, uuid.as_ptr()) })
    }

    pub(super) fn by_usage(&self, kind: i32, usage: &str) -> Result<VirSecret<'_>, VirError> {
        let usage = text(usage)?;
        // SAFETY: as above.
        self.secret(unsafe { (self.functions.lookup_by_usage)(self.handle, kind, usage.as_ptr()) })
    }

    pub(super) fn define(&self, xml: &str) -> Result<VirSecret<'_>, VirError> {
        let xml = text(xml)?;
        // SAFETY: as above.
        self.secret(unsafe { (self.functions.define)(self.handle, xml.as_ptr(), 0) })
    }

    pub(super) fn list(&self) -> Result<Vec<VirSecret<'_>>, VirError> {
        let mut handles: *mut Handle = ptr::null_mut();
        // SAFETY: the connection is open, and there is a place for the list.
        let count = unsafe { (self.functions.list)(self.handle, &raw mut handles, 0) };
        let count = usize::try_from(count).map_err(|_| self.functions.error())?;
        // SAFETY: so many handles were put into the list, which is ours to free, as each handle is.
        unsafe {
            let secrets = (0..count).map(|index| VirSecret { connection: self, handle: *handles.add(index) });
            let secrets = secrets.collect();
            libc::free(handles.cast());
            Ok(secrets)
        }
    }

    fn secret(&self, handle: Handle) -> Result<VirSecret<'_>, VirError> {
        if handle.is_null() {
            Err(self.functions.error())
        } else {
            Ok(VirSecret { connection: self, handle })
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: nothing of it is used afterwards.
        unsafe { (self.functions.close)(self.handle) };
    }
}

/// A secret that libvirt knows.
pub(super) struct VirSecret<'c> {
    connection: &'c Connection,
    handle: Handle,
}

impl VirSecret<'_> {
    fn functions(&self) -> &'static Functions {
        self.connection.functions
    }

    /// What it holds. What libvirt hands over is wiped; what it read from its socket is not ours.
    pub(super) fn value(&self) -> Result<Secret, VirError> {
        let mut length = 0;
        // SAFETY: the secret is there, and a place for the length.
        let bytes = unsafe { (self.functions().value)(self.handle, &raw mut length, 0) };
        if bytes.is_null() {
            return Err(self.functions().error());
        }
        // SAFETY: so many bytes were put there, which are ours to wipe and to free.
        unsafe {
            let value = std::slice::from_raw_parts_mut(bytes, length);
            let secret = Secret::read_from(&value[..]);
            value.zeroize();
            libc::free(bytes.cast());
            Ok(secret?)
        }
    }

    pub(super) fn set_value(&self, value: &[u8]) -> Result<(), VirError> {
        // SAFETY: the secret is there, and so many bytes.
        let done = unsafe { (self.functions().set_value)(self.handle, value.as_ptr(), value.len(), 0) };
        if done == 0 { Ok(()) } else { Err(self.functions().error()) }
    }

    pub(super) fn undefine(&self) -> Result<(), VirError> {
        // SAFETY: the secret is there; the handle stays valid.
        let done = unsafe { (self.functions().undefine)(self.handle) };
        if done == 0 { Ok(()) } else { Err(self.functions().error()) }
    }

    pub(super) fn uuid(&self) -> Result<String, VirError> {
        let mut buffer = [0; UUID_TEXT_BYTES];
        // SAFETY: the buffer is as long as libvirt demands.
        let done = unsafe { (self.functions().uuid)(self.handle, buffer.as_mut_ptr()) };
        if done != 0 {
            return Err(self.functions().error());
        }
        let bytes = buffer.iter().take_while(|byte| **byte != 0);
        Ok(bytes.map(|byte| char::from(byte.cast_unsigned())).collect())
    }

    /// What is known of it, in XML, without its value.
    pub(super) fn description(&self) -> Result<String, VirError> {
        // SAFETY: the secret is there.
        let xml = unsafe { (self.functions().description)(self.handle, 0) };
        if xml.is_null() {
            return Err(self.functions().error());
        }
        // SAFETY: it is text that ends in a zero byte, and ours to free.
        unsafe {
            let text = CStr::from_ptr(xml).to_string_lossy().into_owned();
            libc::free(xml.cast());
            Ok(text)
        }
    }
}

impl Drop for VirSecret<'_> {
    fn drop(&mut self) {
        // SAFETY: nothing of it is used afterwards.
        unsafe { (self.functions().free)(self.handle) };
    }
}
