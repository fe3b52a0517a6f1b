//! What the operator asks over the control socket, seen from there and from the guest.

mod drain;
mod leaving;
mod limits;
mod protocol;
mod resize;
mod takeover;
