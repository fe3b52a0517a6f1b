//! `keystore:ID`: keys in a file of this machine, each encrypted under a key-encryption key (KEK) that is kept elsewhere.
//!
//! The file is an SQLite database; `docs/keys.md` says what lies in it. In short:
//!
//! * Key material is wrapped with AES-256-GCM, bound to everything about the key that never changes. A seal
//!   (HMAC-SHA-256) covers the rest: names, states, who may use it. Without the KEK nothing can be read, swapped or
//!   edited without its being noticed. What cannot be noticed here is a whole file replaced by an older copy of itself:
//!   [`Keystore::verify`] notices it by an [`AuditAnchor`] that was kept elsewhere.
//! * Every use of a key is in the audit log, durably, before the key is given out. Nothing is given out when it cannot be
//!   written.
//! * Every operation is one transaction: after a crash it has happened or it has not, and can be repeated.
//! * Only `create` and `store` make keys, and only [`Keystore::initialise`] makes keystores.
//! * A destroyed version is overwritten in the file and in its log before `destroy` returns.
//!
//! Who can read both the file and the KEK can decrypt everything: [`Principal`]s and [`Right`]s bind whoever comes through
//! this module, which is what keeps processes of one machine from each other's keys by mistake, not by force.

mod access;
mod audit;
mod canonical;
mod error;
mod kek;

mod operations;
mod place;
mod profile;
mod record;
mod rotation;
mod schema;
mod session;
#[cfg(test)]
mod tests;
mod verify;

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::backup::Backup;
use rusqlite::{Connection, TransactionBehavior};

use super::Secret;

pub use access::{Principal, PrincipalError, Right, RightError};
pub use audit::{AnchorError, AuditAnchor, AuditEntry, AuditEvent, AuditOutcome};
pub use error::KeystoreError;
pub use kek::KEK_BYTES_MIN;
pub(super) use profile::SCHEME;
pub use profile::{KeystoreManager, Profile};
pub use rotation::KekRotation;
pub use verify::Verified;

use audit::Happening;
use kek::Keyring;
use place::Place;
use session::Session;

/// Pages that a copy moves at a time, so that it does not keep others waiting.
const COPY_PAGES: i32 = 256;

/// An open keystore. One process writes at a time, and any number read.
pub struct Keystore {
    place: Place,
    principal: Principal,
    open: Mutex<Open>,
}

struct Open {
    connection: Connection,
    ring: Keyring,
}

/// Why a transaction ends early.
enum Stop {
    /// What was asked for is refused, and the audit log says so: commit.
    Refused(KeystoreError),
    /// Nothing shall have happened: roll back.
    Failed(KeystoreError),
}

impl<E: Into<KeystoreError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl Keystore {
    /// Makes a new, empty keystore at `path`, in a folder that is there and that only its owner can get at. Whoever this
    /// process runs as becomes its administrator.
    ///
    /// `kek` is any secret of at least [`KEK_BYTES_MIN`] random bytes; keys are derived from it. It is not stored.
    ///
    /// # Errors
    /// See [`KeystoreError`]. After an error, or a crash, there is no keystore at `path`.
    pub fn initialise(path: &Path, kek: Secret) -> Result<(), KeystoreError> {
        Self::initialise_at(&Place::new(path), kek)
    }

    fn initialise_at(place: &Place, kek: Secret) -> Result<(), KeystoreError> {
        let mut ring = Keyring::new(vec![kek])?;
        let principal = Principal::of_process();
        place.make(|connection| {
            place::found(connection)?;
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut session = Session::found(&transaction, &principal, &mut ring)?;
            audit::begin_epoch(&session)?;
            audit::append(&mut session, &Happening::done(AuditEvent::Initialise))?;
            transaction.commit()?;
            Ok(())
        })
    }

    /// Opens the keystore at `path`. Never makes one.
    ///
    /// `keks` holds the KEK, and while it is being rotated the old and the new one, in any order. They stay in locked
    /// memory until the keystore is dropped.
    ///
    /// # Errors
    /// See [`KeystoreError`].
    pub fn open(path: &Path, keks: Vec<Secret>) -> Result<Self, KeystoreError> {
        Self::open_at(Place::new(path), keks)
    }

    fn open_at(place: Place, keks: Vec<Secret>) -> Result<Self, KeystoreError> {
        let ring = Keyring::new(keks)?;
        let connection = place.open()?;
        let keystore =
            Self { place, principal: Principal::of_process(), open: Mutex::new(Open { connection, ring }) };
        keystore.read(|_| Ok(()))?;
        Ok(keystore)
    }

    /// The same keystore, used on behalf of `principal`: for a process that serves others.
    #[must_use]
    pub fn acting_as(self, principal: Principal) -> Self {
        Self { principal, ..self }
    }

    /// Copies the keystore as it is now into a new file at `path`, while others go on using it.
    ///
    /// The copy opens with the same KEK. Keys that are destroyed later live on in it, for as long as that KEK does.
    ///
    /// # Errors
    /// See [`KeystoreError`].
    pub fn copy_to(&self, path: &Path) -> Result<(), KeystoreError> {
        let open = self.lock();
        Place::new(path).make(|to| {
            let copy = Backup::new(&open.connection, to)?;
            copy.run_to_completion(COPY_PAGES, std::time::Duration::ZERO, None)?;
            Ok(())
        })
    }

    /// Runs `work` on a snapshot, beside any writer.
    fn read<T>(
        &self,
        work: impl FnOnce(&Session<'_>) -> Result<T, KeystoreError>,
    ) -> Result<T, KeystoreError> {
        let mut open = self.lock();
        let Open { connection, ring } = &mut *open;
        let transaction = connection.transaction()?;
        let session = Session::load(&transaction, &self.principal, ring)?;
        work(&session)
    }

    /// Runs `work` in a transaction of its own: it is durable when this returns without an error, and has not happened
    /// when it returns with one, except that the audit log may tell of a refusal.
    fn write<T>(
        &self,
        work: impl FnOnce(&mut Session<'_>, &mut Keyring) -> Result<T, Stop>,
    ) -> Result<T, KeystoreError> {
        let mut open = self.lock();
        let Open { connection, ring } = &mut *open;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut session = Session::load(&transaction, &self.principal, ring)?;
        match work(&mut session, ring) {
            Ok(value) => {
                transaction.commit()?;
                Ok(value)
            }
            Err(Stop::Refused(error)) => {
                transaction.commit()?;
                Err(error)
            }
            Err(Stop::Failed(error)) => Err(error),
        }
    }

    /// Waits until nothing that was overwritten is left in the file and its log.
    fn wipe_log(&self) -> Result<(), KeystoreError> {
        place::wipe_log(&self.lock().connection)
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        // Whoever panicked had its transaction rolled back.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Keystore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keystore")
            .field("place", &self.place)
            .field("principal", &self.principal)
            .finish_non_exhaustive()
    }
}
