//! Storage that fails: what the guest is told, what is held back, and how it ends.

mod held;
mod matrix;
