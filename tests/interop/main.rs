//! Volumes exchanged with other programs: cryptsetup, QEMU's tools and nbdkit are the oracles, on plain files, without
//! device-mapper. What only the kernel's dm-crypt can tell is tested in a guest (`tests/guest`).
//!
//! Needs `scripts/install-tools interop`, hence the feature `interop-tests`.
#![allow(unreachable_pub, missing_docs, reason = "a test binary has no outside")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test ends where its expectations do")]

mod convert;
mod recipes;

use std::process::Command;

#[allow(dead_code, unused_imports, reason = "it serves tests/it as well")]
#[path = "../it/harness/mod.rs"]
mod harness;
mod luks;
mod made;
mod tools;

/// A missing oracle would be noticed in every test; here it is named.
#[test]
fn the_oracles_are_installed() {
    for program in ["cryptsetup", "qemu-img", "qemu-io", "qemu-nbd", "nbdkit", "nbdcopy", "keyctl"] {
        let answer = Command::new(program).arg("--version").output();
        let answer = answer.unwrap_or_else(|e| panic!("{program}: {e}; run `scripts/install-tools interop`"));
        assert!(answer.status.success(), "{program}: {answer:?}");
    }
}
