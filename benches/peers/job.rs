//! What is asked of every back end.

use super::client::{Access, Load, Order};

const KIB: usize = 1024;

/// A load, and what it is called.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    access: Access,
    order: Order,
    request_kib: usize,
    depth: usize,
}

const fn job(access: Access, order: Order, request_kib: usize, depth: usize) -> Job {
    Job { access, order, request_kib, depth }
}

/// All of them.
pub(crate) const JOBS: [Job; 12] = [
    job(Access::Read, Order::Random, 4, 1),
    job(Access::Read, Order::Random, 4, 32),
    job(Access::Read, Order::Random, 4, 128),
    job(Access::Write, Order::Random, 4, 1),
    job(Access::Write, Order::Random, 4, 32),
    job(Access::Write, Order::Random, 4, 128),
    job(Access::Mixed, Order::Random, 4, 32),
    job(Access::WriteAndFlush, Order::Random, 4, 1),
    job(Access::Read, Order::Sequential, 128, 16),
    job(Access::Write, Order::Sequential, 128, 16),
    job(Access::Read, Order::Sequential, 1024, 16),
    job(Access::Write, Order::Sequential, 1024, 16),
];

impl Job {
    pub(crate) fn load(&self) -> Load {
        Load {
            access: self.access,
            order: self.order,
            request_bytes: self.request_kib * KIB,
            depth: self.depth,
        }
    }

    pub(crate) fn name(&self) -> String {
        let size = match self.request_kib {
            1024 => "1 MiB".to_owned(),
            kib => format!("{kib} KiB"),
        };
        let access = match (self.access, self.order) {
            (Access::Mixed, _) => "70 % read, 30 % write",
            (Access::WriteAndFlush, _) => "write and flush",
            (Access::Read, Order::Random) => "random read",
            (Access::Read, Order::Sequential) => "read",
            (Access::Write, Order::Random) => "random write",
            (Access::Write, Order::Sequential) => "write",
        };
        format!("{size} {access} QD {}", self.depth)
    }

    /// Whether requests count, rather than bytes.
    pub(crate) fn is_small(&self) -> bool {
        self.request_kib <= 4
    }
}
