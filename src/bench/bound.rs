//! The limit that the CPU's AES units set.

use std::time::Duration;

use serde::Serialize;

use super::timing;
use crate::cipher::AesUnits;
use crate::geometry::SectorSize;

/// Cycles, and AES instructions, of one sample: some ten microseconds.
const SAMPLE: usize = 40_000;

/// The core's clock and its AES units, both measured.
#[derive(Clone, Debug, Serialize)]
pub struct Bound {
    /// Cycles in a nanosecond.
    pub clock_ghz: f64,
    /// Bytes in the vectors that get most done.
    pub vector_bytes: usize,
    /// AES instructions on such vectors in a cycle.
    pub aes_instructions_per_cycle: f64,
    /// What is taken for granted beside the above.
    pub assumption: &'static str,
}

impl Bound {
    /// Measures; `None` on CPUs whose AES units we do not know how to measure.
    pub(super) fn measure(time: Duration) -> Option<Self> {
        let available = AesUnits::available();
        let clock = available.first()?;
        let clock_ghz = timing::fastest(time, || {
            clock.run_cycles(SAMPLE);
            SAMPLE
        });
        let rates = available.iter().map(|units| {
            let instructions_per_ns = timing::fastest(time, || units.run_instructions(SAMPLE));
            (units.vector_bytes(), instructions_per_ns)
        });
        let bytes_per_ns = |(vector_bytes, rate): &(usize, f64)| *vector_bytes as f64 * rate;
        let (vector_bytes, rate) = rates.max_by(|a, b| bytes_per_ns(a).total_cmp(&bytes_per_ns(b)))?;
        Some(Self {
            clock_ghz: super::rounded(clock_ghz),
            vector_bytes,
            aes_instructions_per_cycle: super::rounded(rate / clock_ghz),
            assumption: "each 16 bytes of data, and each sector's tweak, take 14 AES rounds (AES-256) or 10 (AES-128); \
                         everything else takes no time",
        })
    }

    /// The speed that no cipher can surpass on one core, in 10^9 bytes a second.
    pub fn gb_per_s(&self, key_bits: usize, sector_size: SectorSize) -> f64 {
        const BLOCK_BYTES: f64 = 16.0;
        let rounds = if key_bits == 256 { 10.0 } else { 14.0 };
        let sector_bytes = f64::from(sector_size.bytes());
        let round_bytes = (sector_bytes + BLOCK_BYTES) * rounds;
        let round_bytes_per_ns = self.clock_ghz * self.aes_instructions_per_cycle * self.vector_bytes as f64;
        round_bytes_per_ns * sector_bytes / round_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_of_data_and_tweaks_are_counted() {
        let bound =
            Bound { clock_ghz: 3.0, vector_bytes: 32, aes_instructions_per_cycle: 2.0, assumption: "none" };
        let near = |key_bits, sector_size, expected: f64| {
            let gb_per_s = bound.gb_per_s(key_bits, sector_size);
            assert!((gb_per_s - expected).abs() < 0.005, "{gb_per_s} is not {expected}");
        };
        // 64 bytes a cycle through one round: 192 / 14, less one block in 256 or 32.
        near(512, SectorSize::BYTES_4096, 13.66);
        near(512, SectorSize::BYTES_512, 13.30);
        near(256, SectorSize::BYTES_4096, 19.13);
        near(256, SectorSize::BYTES_512, 18.62);
    }
}
