//! How much work and memory a header may ask for.

use super::description::{Argon2, Description, Kdf};
use super::refusal::Refusal;

/// The most that the KDFs of a header may cost. A header asks for as much as it likes, and a passphrase that is wrong is
/// tried on every slot: so work is summed over them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KdfLimits {
    /// Memory of Argon2.
    pub memory_mib: u32,
    /// Memory that Argon2 goes through in all slots: passes times memory.
    pub work_gib: u32,
    /// Lanes of Argon2.
    pub threads: u32,
    /// Iterations of PBKDF2 in all slots, and of the digests.
    pub iterations: u32,
}

impl Default for KdfLimits {
    /// What cryptsetup makes by default on any machine (1 GiB, 4 threads, two seconds), in several slots.
    fn default() -> Self {
        Self { memory_mib: 1024, work_gib: 128, threads: 4, iterations: 100_000_000 }
    }
}

impl KdfLimits {
    pub(super) fn check(&self, header: &Description, slot: Option<u32>, refusals: &mut Vec<Refusal>) {
        let (mut work_kib, mut iterations, mut slots) = (0_u64, 0_u64, Vec::new());
        let unknown = |what: String, kdf: Option<&Kdf>| {
            let name = match kdf {
                Some(Kdf::Other { name }) => name.clone(),
                _ => "none".to_owned(),
            };
            Refusal::UnknownKdf { what, name }
        };
        for tried in header.slots_tried(slot) {
            slots.push(tried.id.to_string());
            match &tried.kdf {
                Some(Kdf::Pbkdf2 { iterations: more, .. }) => {
                    iterations = iterations.saturating_add((*more).into())
                }
                Some(Kdf::Argon2i(costs) | Kdf::Argon2id(costs)) => {
                    let work = u64::from(costs.passes) * u64::from(costs.memory_kib);
                    work_kib = work_kib.saturating_add(work);
                    self.check_argon2(tried.id, *costs, refusals);
                }
                kdf => refusals.push(unknown(format!("key slot {}", tried.id), kdf.as_ref())),
            }
        }
        // Each key that a slot gives is checked against a digest, and the right one once more in the end.
        let checks = slots.len() as u64 + 1;
        for digest in &header.digests {
            match &digest.kdf {
                Kdf::Pbkdf2 { iterations: more, .. } => {
                    iterations = iterations.saturating_add(u64::from(*more).saturating_mul(checks));
                }
                kdf => refusals.push(unknown(format!("digest {}", digest.id), Some(kdf))),
            }
        }
        let work_gib = work_kib.div_ceil(1 << 20);
        if work_gib > self.work_gib.into() {
            let slots = slots.join(", ");
            refusals.push(Refusal::KdfWork { slots, work_gib, limit_gib: self.work_gib });
        }
        if iterations > self.iterations.into() {
            let slots = slots.join(", ");
            refusals.push(Refusal::KdfIterations { slots, iterations, limit: self.iterations });
        }
    }

    fn check_argon2(&self, slot: u32, costs: Argon2, refusals: &mut Vec<Refusal>) {
        let Argon2 { memory_kib, threads, .. } = costs;
        if memory_kib.div_ceil(1024) > self.memory_mib {
            refusals.push(Refusal::KdfMemory { slot, memory_kib, limit_mib: self.memory_mib });
        }
        if threads > self.threads {
            refusals.push(Refusal::KdfThreads { slot, threads, limit: self.threads });
        }
    }
}
