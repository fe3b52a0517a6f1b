//! What the tests stand on: a served disk, a guest's memory, and a front end that does what it is told.

pub mod backend;
pub mod case;
pub mod control;
pub mod driver;
pub mod fd;
pub mod frontend;
pub mod load;
pub mod log;
pub mod memory;
pub mod page_cache;
pub mod request;
pub mod ring;
pub mod seed;
pub mod volume;
pub mod wire;
pub mod write_log;

pub use backend::{Backend, Serve};
pub use control::Control;
pub use frontend::{Frontend, Setup};
pub use request::Request;
pub use volume::{Layout, Random, pattern};
