//! All cases, on the disk of whoever includes them.

#[path = "blk.rs"]
mod blk;
#[path = "blk_ranges.rs"]
mod blk_ranges;
#[path = "chains.rs"]
mod chains;
#[path = "indices.rs"]
mod indices;
#[path = "indirect.rs"]
mod indirect;
#[path = "state.rs"]
mod state;

use super::serve;
