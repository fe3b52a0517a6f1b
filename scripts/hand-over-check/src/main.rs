//! What the threads of a server share, compiled as it is, in every order in which they may meet, or in so many of
//! these as there is time for. A wake-up that is missed shows as a deadlock.
//!
//! `hand-over-check ROUNDS` tries so many orders of each check. The last line is
//! "checks: N passed, N failed".
#![allow(dead_code, unused_imports, reason = "the check uses a part of what it includes")]

use std::panic;
use std::process::ExitCode;

#[path = "../../../src/geometry.rs"]
mod geometry;
mod worker;

/// What of the guest's side the source names.
mod guest {
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    #[derive(Debug, Default)]
    pub(crate) struct InflightRegion(AtomicBool);

    impl InflightRegion {
        pub(crate) fn has_sync_failed(&self) -> bool {
            self.0.load(SeqCst)
        }

        pub(crate) fn note_sync_failed(&self, failed: bool) {
            self.0.store(failed, SeqCst);
        }
    }
}

mod virtio {
    pub(crate) mod request {
        use crate::geometry::SectorSize;

        #[derive(Clone, Copy, Debug)]
        pub(crate) struct SectorRange {
            pub(crate) offset_bytes: u64,
            pub(crate) len_bytes: u64,
        }

        impl SectorRange {
            pub(crate) fn widened(&self, sector_size: SectorSize) -> Self {
                let mask = sector_size.mask();
                let end_bytes = (self.offset_bytes + self.len_bytes + mask) & !mask;
                let offset_bytes = self.offset_bytes & !mask;
                Self { offset_bytes, len_bytes: end_bytes - offset_bytes }
            }
        }
    }
}

fn main() -> ExitCode {
    let Some(rounds): Option<usize> = std::env::args().nth(1).and_then(|rounds| rounds.parse().ok()) else {
        eprintln!("usage: hand-over-check ROUNDS");
        return ExitCode::from(2);
    };
    let (mut passed, mut failed) = (0, 0);
    for (name, check) in worker::CHECKS {
        // Half of the rounds at random, half with few changes of the thread that runs, at the worst places.
        let outcome = panic::catch_unwind(|| {
            shuttle::check_random(*check, rounds / 2);
            shuttle::check_pct(*check, rounds / 2, 3);
        });
        let verdict = if outcome.is_ok() { "passed" } else { "FAILED" };
        println!("{name}: {verdict}");
        if outcome.is_ok() { passed += 1 } else { failed += 1 }
    }
    println!("checks: {passed} passed, {failed} failed");
    ExitCode::from(u8::from(failed > 0))
}
