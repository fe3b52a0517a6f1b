//! sealblk encrypts virtual machine disks on the virtualization host, before data reaches storage.
//!
//! One process serves one disk as a vhost-user-blk back end. (This page is completed with the worker.)

pub mod cipher;
pub mod format;
pub mod geometry;
pub mod io;
pub mod keys;
pub mod locked;
