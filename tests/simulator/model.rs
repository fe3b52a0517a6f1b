//! What the disk may contain, for a guest that uses each sector for one request at a time.

use std::ops::Range;

pub const SECTOR_BYTES: usize = 512;

/// What one write, or its zeroes, leave in a sector. Numbers grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    pub number: u64,
    pub zeroes: bool,
}

impl Version {
    /// What the disk contains in the beginning.
    pub const FIRST: Self = Self { number: 0, zeroes: false };

    /// The content of that sector.
    pub fn bytes(self, sector: usize) -> Vec<u8> {
        if self.zeroes {
            return vec![0; SECTOR_BYTES];
        }
        let mut random = Random(self.number << 16 | sector as u64);
        (0..SECTOR_BYTES / 8).flat_map(|_| random.next().to_le_bytes()).collect()
    }
}

#[derive(Clone, Debug)]
struct Sector {
    /// What a read can return. One version, unless a write has failed.
    live: Vec<Version>,
    /// What can be there when the power comes back, oldest first.
    durable: Vec<Version>,
}

pub struct Model {
    sectors: Vec<Sector>,
    /// Sectors that have lost something in a power failure.
    pub set_back: u64,
}

impl Model {
    pub fn new(sector_count: usize) -> Self {
        let sector = Sector { live: vec![Version::FIRST], durable: vec![Version::FIRST] };
        Self { sectors: vec![sector; sector_count], set_back: 0 }
    }

    /// A write was sent: from now on it may have taken place.
    pub fn sent(&mut self, sectors: Range<usize>, version: Version) {
        self.sectors[sectors].iter_mut().for_each(|sector| sector.durable.push(version));
    }

    /// A write was answered.
    pub fn answered(&mut self, sectors: Range<usize>, version: Version, succeeded: bool, durable: bool) {
        for sector in &mut self.sectors[sectors] {
            if succeeded {
                sector.live.clear();
                if durable {
                    sector.durable.clear();
                    sector.durable.push(version);
                }
            }
            sector.live.push(version);
        }
    }

    /// What a flush that is sent now has to make durable: for each sector, no older version may come back.
    pub fn to_flush(&self) -> Vec<u64> {
        let oldest = |sector: &Sector| sector.live.iter().map(|version| version.number).min();
        self.sectors.iter().map(|sector| oldest(sector).expect("it holds something")).collect()
    }

    /// That flush has succeeded.
    pub fn flushed(&mut self, oldest: &[u64]) {
        for (sector, oldest) in self.sectors.iter_mut().zip(oldest) {
            sector.durable.retain(|version| version.number >= *oldest);
        }
    }

    /// Checks what a read has returned, or what lies on the disk.
    pub fn check_live(&mut self, sectors: Range<usize>, bytes: &[u8]) {
        for (at, bytes) in sectors.zip(bytes.chunks(SECTOR_BYTES)) {
            let live = &mut self.sectors[at].live;
            *live = vec![which(live, at, bytes)];
        }
    }

    /// The power has failed and come back.
    pub fn power_failed(&mut self, disk: &[u8]) {
        for (at, bytes) in disk.chunks(SECTOR_BYTES).enumerate() {
            let sector = &mut self.sectors[at];
            let found = which(&sector.durable, at, bytes);
            self.set_back += u64::from(sector.durable.last() != Some(&found));
            (sector.live, sector.durable) = (vec![found], vec![found]);
        }
    }
}

/// The version among these that the sector contains.
fn which(allowed: &[Version], sector: usize, bytes: &[u8]) -> Version {
    // The newest first, since it is what is found most often.
    let found = allowed.iter().rev().find(|version| version.bytes(sector) == bytes);
    *found.unwrap_or_else(|| panic!("sector {sector} holds none of {allowed:?}, but {:x?}...", &bytes[..16]))
}

/// SplitMix64: small, seeded, good enough to choose what happens.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True once in so many times.
    pub fn one_in(&mut self, rate: u64) -> bool {
        self.below(rate) == 0
    }
}
