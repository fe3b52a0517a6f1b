//! Served disks, driven from outside: one binary for all tests that need a running `sealblk serve`.
//!
//! Nothing here looks inside the server. Each test starts its own process on its own volume, talks vhost-user
//! to it, and compares what comes back, and what lies in the image, with oracles of its own.
#![allow(unreachable_pub, missing_docs, reason = "a test binary has no outside")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test ends where its expectations do")]

mod budget;
mod cache;
mod control;
mod crash;
mod data;
mod device;
mod drivers;
mod durability;
mod failing_storage;
mod golden;
mod hand_over;
mod harness;
mod hostile;
mod key_memory;
mod late_writes;
mod lifecycle;
mod managed_key;
mod messages;
mod migration;
mod notifications;
mod power_failure;
mod sandbox;
mod small_blocks;
mod system_calls;
