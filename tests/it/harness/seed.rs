//! Where random tests get their seed.

use std::env;
use std::time::{SystemTime, UNIX_EPOCH};

/// Decides everything but the timing. Another each time, unless `SEALBLK_TEST_SEED` says which.
pub fn seed() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
    let seed = number("SEALBLK_TEST_SEED").unwrap_or(since_epoch.as_nanos() as u64 % 1_000_000_007);
    println!("SEALBLK_TEST_SEED={seed}");
    seed
}

/// A number from the environment.
pub fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|value| value.parse().expect("a number"))
}
