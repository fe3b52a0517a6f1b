//! The AES units of the CPU as something to be timed: what no cipher can surpass.

#[cfg(target_arch = "x86_64")]
use super::x86;

/// The AES instructions of this CPU on vectors of one width, to be run with nothing else.
#[derive(Clone, Copy, Debug)]
pub struct AesUnits {
    #[cfg(target_arch = "x86_64")]
    width: x86::Width,
    #[cfg(not(target_arch = "x86_64"))]
    none: std::convert::Infallible,
}

impl AesUnits {
    /// Those that this CPU has, from narrow to wide vectors. Known on x86-64 only.
    pub fn available() -> Vec<Self> {
        #[cfg(target_arch = "x86_64")]
        {
            let widths = [x86::Width::aesni(), x86::Width::vaes256(), x86::Width::vaes512()];
            widths.into_iter().flatten().map(|width| Self { width }).collect()
        }
        #[cfg(not(target_arch = "x86_64"))]
        Vec::new()
    }

    /// Bytes in one vector.
    pub fn vector_bytes(self) -> usize {
        #[cfg(target_arch = "x86_64")]
        {
            self.width.vector_bytes()
        }
        #[cfg(not(target_arch = "x86_64"))]
        match self.none {}
    }

    /// Runs at least `count` AES instructions, several of which are always independent of each other, and little
    /// else. Returns how many they were.
    pub fn run_instructions(self, count: usize) -> usize {
        #[cfg(target_arch = "x86_64")]
        {
            self.width.run_aes(count)
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = count;
            match self.none {}
        }
    }

    /// Takes `count` cycles of the core's clock, and at most a few more: additions that wait for each other.
    pub fn run_cycles(self, count: usize) {
        #[cfg(target_arch = "x86_64")]
        x86::run_cycles(count);
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = count;
            match self.none {}
        }
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn at_least_as_many_instructions_are_run_as_asked_for() {
        for units in AesUnits::available() {
            assert!(matches!(units.vector_bytes(), 16 | 32 | 64));
            for count in [1, 100, 1000] {
                let run = units.run_instructions(count);
                assert!((count..count + 200).contains(&run), "{units:?}: {run}");
            }
            units.run_cycles(1000);
        }
    }
}
