//! What the disk must contain: one version number a sector, or no knowledge. Sectors are the guest's here, its
//! logical blocks.
//!
//! A write that fails, and writes that overlap in time, leave sectors about which nothing is promised until
//! a write by itself succeeds. A read that overlaps a write in time may see anything there.

use std::ops::Range;

/// What a sector contains: zeroes, or the pattern of the write with this number. `None` when it is unknown.
pub type Version = Option<u32>;

pub const ZEROES: u32 = 0;
pub const INITIAL: u32 = 1;

#[derive(Clone, Copy, Debug)]
struct Sector {
    version: Version,
    writers: u32,
    /// Some of the current group of overlapping writes failed, or there were several.
    disturbed: bool,
}

/// The sectors that a request observes, with what it has to find there.
#[derive(Debug)]
pub struct Observation {
    pub sectors: Range<usize>,
    pub expected: Vec<Version>,
}

#[derive(Debug)]
pub struct Model {
    sectors: Vec<Sector>,
    pub sector_bytes: usize,
}

impl Model {
    pub fn new(sector_count: usize, sector_bytes: usize) -> Self {
        let sector = Sector { version: Some(INITIAL), writers: 0, disturbed: false };
        Self { sectors: vec![sector; sector_count], sector_bytes }
    }

    pub fn capacity_bytes(&self) -> usize {
        self.sectors.len() * self.sector_bytes
    }

    /// A write to `sectors` begins, while `observations` are going on.
    pub fn begin_write<'a>(
        &mut self,
        sectors: Range<usize>,
        observations: impl Iterator<Item = &'a mut Observation>,
    ) {
        for observation in observations {
            let common =
                sectors.start.max(observation.sectors.start)..sectors.end.min(observation.sectors.end);
            for sector in common {
                observation.expected[sector - observation.sectors.start] = None;
            }
        }
        for sector in &mut self.sectors[sectors] {
            sector.disturbed |= sector.writers > 0;
            sector.writers += 1;
        }
    }

    /// A write ends, with `version` or with an error.
    pub fn end_write(&mut self, sectors: Range<usize>, version: Version) {
        for sector in &mut self.sectors[sectors] {
            sector.writers -= 1;
            sector.disturbed |= version.is_none();
            sector.version = if sector.disturbed { None } else { version };
            sector.disturbed &= sector.writers > 0;
        }
    }

    /// What a read that begins now has to find.
    pub fn observe(&self, sectors: Range<usize>) -> Observation {
        let expected = |sector: &Sector| if sector.writers > 0 { None } else { sector.version };
        Observation { expected: self.sectors[sectors.clone()].iter().map(expected).collect(), sectors }
    }

    pub fn all(&self) -> Range<usize> {
        0..self.sectors.len()
    }

    /// Compares `content`, which begins at the first observed sector, with what was expected.
    pub fn check(&self, observation: &Observation, content: &[u8], what: &str) {
        let contents = content.chunks(self.sector_bytes);
        assert_eq!(contents.len(), observation.expected.len());
        for ((number, expected), content) in
            observation.sectors.clone().zip(&observation.expected).zip(contents)
        {
            let Some(version) = *expected else { continue };
            let mut wanted = vec![0; self.sector_bytes];
            fill(&mut wanted, number, version);
            assert!(content == wanted, "{what}: sector {number} does not contain version {version}");
        }
    }

    /// The content of `sectors` as the write `version` makes it.
    pub fn content(&self, sectors: Range<usize>, version: u32) -> Vec<u8> {
        let mut content = vec![0; sectors.len() * self.sector_bytes];
        for (number, sector) in sectors.zip(content.chunks_mut(self.sector_bytes)) {
            fill(sector, number, version);
        }
        content
    }
}

/// The pattern of a version: different in every sector, or the wrong sector would look right.
fn fill(sector: &mut [u8], number: usize, version: u32) {
    if version == ZEROES {
        return sector.fill(0);
    }
    // Mixed, so that no byte is likely to be what was there before.
    let word = (u64::from(version) << 32 | number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for (position, chunk) in (0..).zip(sector.chunks_mut(8)) {
        chunk.copy_from_slice(&(word ^ position).to_le_bytes());
    }
}
