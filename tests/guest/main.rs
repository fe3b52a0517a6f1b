//! A real guest on our disks: QEMU boots Debian's kernel, and scripts in the guest use the disks as anyone would.
//!
//! ```text
//! scripts/install-guest-tools && scripts/guest-image && cargo test --features guest-tests --test guest
//! ```
//!
//! Each test is one `#[test]` here and one script or more in `scripts/`, which run inside the guest. A script that
//! ends with status 0 has passed; `result KEY VALUE` hands values back for the host to judge. Every wait has a limit,
//! because a lost request shows as a hang, not as an error.
//!
//! With `SEALBLK_GUEST_BACKEND=qsd` in the environment, `qemu-storage-daemon` serves the disks, unencrypted: where a
//! test fails with ours and passes with that, the fault is ours. Tests of what only sealblk does fail then, and say so.

mod control;
mod device;
mod dm_crypt;
mod ephemeral;
mod filesystem;
mod harness;
mod luks;
mod migration;
mod recovery;
mod small_blocks;
