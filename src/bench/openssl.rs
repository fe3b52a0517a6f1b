//! OpenSSL, from the shared library that is installed, if one is: nothing is linked to it.
#![expect(unsafe_code, reason = "functions of a shared library are found and called by name")]

use std::ffi::{CStr, c_char, c_int, c_uchar, c_void};
use std::ptr::{self, NonNull};

use libloading::Library;

use super::contender::Direction;

/// The versions whose functions are as declared here, the preferred one first.
const LIBRARIES: [&str; 2] = ["libcrypto.so.3", "libcrypto.so.1.1"];

/// `OPENSSL_VERSION`: the whole version, in words.
const VERSION_IN_WORDS: c_int = 0;

/// Why OpenSSL cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum OpensslError {
    /// No library, or one without a function that is needed.
    #[error("its shared library cannot be used")]
    Library(#[source] libloading::Error),
    /// It refuses, as a build for FIPS might.
    #[error("it offers no AES-XTS")]
    Refused,
}

type EvpCipher = unsafe extern "C" fn() -> *const c_void;
type ContextNew = unsafe extern "C" fn() -> *mut c_void;
type ContextFree = unsafe extern "C" fn(*mut c_void);
type CipherInit = unsafe extern "C" fn(
    context: *mut c_void,
    cipher: *const c_void,
    engine: *mut c_void,
    key: *const c_uchar,
    iv: *const c_uchar,
    encrypt: c_int,
) -> c_int;
type CipherUpdate = unsafe extern "C" fn(
    context: *mut c_void,
    to: *mut c_uchar,
    to_len: *mut c_int,
    from: *const c_uchar,
    from_len: c_int,
) -> c_int;
type Version = unsafe extern "C" fn(c_int) -> *const c_char;

/// OpenSSL's library, loaded.
pub(super) struct Libcrypto {
    aes_128_xts: EvpCipher,
    aes_256_xts: EvpCipher,
    context_new: ContextNew,
    context_free: ContextFree,
    cipher_init: CipherInit,
    cipher_update: CipherUpdate,
    version: Version,
    /// Last, as the functions are part of it.
    _library: Library,
}

impl Libcrypto {
    /// Loads it.
    pub(super) fn load() -> Result<Self, OpensslError> {
        let mut result = Self::load_named(LIBRARIES[0]);
        for name in &LIBRARIES[1..] {
            result = result.or_else(|first| Self::load_named(name).map_err(|_| first));
        }
        result.map_err(OpensslError::Library)
    }

    fn load_named(name: &str) -> Result<Self, libloading::Error> {
        // SAFETY: OpenSSL's initializers may run at any time, in any program. The types of the functions are those of
        // its headers, the same in both versions; each lives in this value, beside the library.
        unsafe {
            let library = Library::new(name)?;
            Ok(Self {
                aes_128_xts: *library.get(b"EVP_aes_128_xts\0")?,
                aes_256_xts: *library.get(b"EVP_aes_256_xts\0")?,
                context_new: *library.get(b"EVP_CIPHER_CTX_new\0")?,
                context_free: *library.get(b"EVP_CIPHER_CTX_free\0")?,
                cipher_init: *library.get(b"EVP_CipherInit_ex\0")?,
                cipher_update: *library.get(b"EVP_CipherUpdate\0")?,
                version: *library.get(b"OpenSSL_version\0")?,
                _library: library,
            })
        }
    }

    /// In its own words, such as `OpenSSL 3.0.19 27 Jan 2026`.
    pub(super) fn version(&self) -> String {
        // SAFETY: the answer to any number is a static string.
        let text = unsafe { CStr::from_ptr((self.version)(VERSION_IN_WORDS)) };
        text.to_string_lossy().into_owned()
    }

    /// AES-XTS with `key`, of 32 or 64 bytes.
    pub(super) fn context(&self, key: &[u8], direction: Direction) -> Result<Context<'_>, OpensslError> {
        let cipher = match key.len() {
            32 => self.aes_128_xts,
            64 => self.aes_256_xts,
            _ => return Err(OpensslError::Refused),
        };
        let encrypt = c_int::from(direction == Direction::Encrypt);
        // SAFETY: the context is a new one, and the cipher takes as many bytes of key as there are.
        unsafe {
            let raw = NonNull::new((self.context_new)()).ok_or(OpensslError::Refused)?;
            let context = Context { libcrypto: self, raw };
            let (cipher, none) = (cipher(), ptr::null_mut());
            let done = (self.cipher_init)(raw.as_ptr(), cipher, none, key.as_ptr(), ptr::null(), encrypt);
            if done == 1 { Ok(context) } else { Err(OpensslError::Refused) }
        }
    }
}

/// A key and a direction.
pub(super) struct Context<'l> {
    libcrypto: &'l Libcrypto,
    raw: NonNull<c_void>,
}

// SAFETY: OpenSSL binds a context to no thread; it must not be used by two at once, and whoever uses it has it alone.
unsafe impl Send for Context<'_> {}

impl Context<'_> {
    /// Turns one data unit: `dst` is as long as `src`.
    pub(super) fn crypt(&mut self, iv: [u8; 16], src: &[u8], dst: &mut [u8]) {
        assert_eq!(src.len(), dst.len());
        let (raw, mut done) = (self.raw.as_ptr(), 0);
        let len = c_int::try_from(src.len()).expect("a data unit has 4096 bytes at most");
        // SAFETY: the context has its key and keeps it; the IV of this mode has 16 bytes; the output of this mode is as
        // long as the input.
        let results = unsafe {
            let set = (self.libcrypto.cipher_init)(
                raw,
                ptr::null(),
                ptr::null_mut(),
                ptr::null(),
                iv.as_ptr(),
                -1, // the direction stays
            );
            (set, (self.libcrypto.cipher_update)(raw, dst.as_mut_ptr(), &raw mut done, src.as_ptr(), len))
        };
        assert!(results == (1, 1) && done == len, "OpenSSL turns a whole data unit: {results:?}, {done}");
    }
}

impl Drop for Context<'_> {
    fn drop(&mut self) {
        // SAFETY: our own context, used for the last time. OpenSSL wipes its key.
        unsafe { (self.libcrypto.context_free)(self.raw.as_ptr()) };
    }
}
