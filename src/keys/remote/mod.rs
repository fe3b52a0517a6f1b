//! What key managers on the network have in common: TLS with pinned roots, and an end to every wait.
//!
//! A conversation is one [`Connection`] to one [`Endpoint`], which ends at its [`Deadline`] whatever the server does.
//! What goes wrong is told apart into [`Failure::Unreachable`], where another server or another attempt may help, and
//! [`Failure::Refused`], where a person has to do something.

mod connection;
mod failure;
mod tls;

pub use connection::{Connection, Deadline, Endpoint};
pub use failure::Failure;
pub use tls::{TlsClient, TlsProfile};
