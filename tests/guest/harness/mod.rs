//! Starts back ends and guests for the tests, within limits of time, and leaves nothing behind.

pub(crate) mod backend;
pub(crate) mod patience;
pub(crate) mod process;
pub(crate) mod qemu;
pub(crate) mod qmp;
pub(crate) mod volume;

pub(crate) use backend::{BackEnd, ServeOptions, Served};
pub(crate) use patience::{wait_for_write, wait_until};
pub(crate) use qemu::Guest;
pub(crate) use qmp::Qmp;
pub(crate) use volume::{KeyBits, LuksLayout, PlainLayout, Volume};
