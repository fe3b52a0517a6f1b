//! The data path's own source with the tests beside it, compiled as it is and without the rest of the package: what
//! an interpreter can build and run.
#![allow(
    dead_code,
    unused_imports,
    missing_docs,
    reason = "a part of the package, which the package uses whole"
)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "as in the package"))]

#[path = "../../../src/cipher/mod.rs"]
pub mod cipher;
#[path = "../../../src/geometry.rs"]
pub mod geometry;
#[path = "../../../src/guest/mod.rs"]
pub mod guest;
#[path = "../../../src/io/mod.rs"]
pub mod io;
pub mod locked;
#[path = "../../../src/throttle.rs"]
pub mod throttle;
#[path = "../../../src/virtio/mod.rs"]
pub mod virtio;
#[path = "../../../src/worker/mod.rs"]
pub mod worker;
