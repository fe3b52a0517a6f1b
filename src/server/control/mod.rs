//! The control socket: what an operator may see of a served disk, and ask of it (`docs/control.md`).
//!
//! One line of JSON each way ([`protocol`]). A thread for each client reads requests (`service`) and answers what
//! it can see by itself. What changes the disk or its rings is put to the main thread as an order (`orders`): it
//! alone does that, and it waits for orders beside the front end's messages. The other end is [`client`].

pub mod client;
mod incoming;
pub(super) mod orders;
pub mod protocol;
pub(super) mod service;
