//! A back end's engine that ends its process at a chosen call.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::resume_unwind;
use std::rc::Rc;
use std::sync::Arc;

use sealblk::io::sim::Sim;
use sealblk::io::{Completion, Engine, Op, Tag, Wait, Wake};

/// What is thrown when a process dies.
pub struct Died;

/// Ends the process: everything that it held is gone, nothing that it began goes on.
pub fn die() -> ! {
    resume_unwind(Box::new(Died))
}

/// The simulated engine. Its storage goes on by itself, with each look at it, so that nobody has to wait; how long a
/// worker waits depends on the clock, and nothing may depend on that here.
pub struct Mortal {
    pub engine: Sim,
    /// Calls of all engines of this process before it dies.
    pub calls_left: Rc<Cell<u32>>,
}

impl Mortal {
    fn live_on(&self) {
        match self.calls_left.get() {
            0 => die(),
            calls => self.calls_left.set(calls - 1),
        }
    }
}

impl Engine for Mortal {
    fn start(&mut self, tag: Tag, op: Op) {
        self.live_on();
        self.engine.start(tag, op);
    }

    fn submit(&mut self, _wait: Wait) -> io::Result<()> {
        self.live_on();
        self.engine.submit(Wait::No)
    }

    fn reap(&mut self) -> Option<Completion> {
        self.live_on();
        self.engine.submit(Wait::No).expect("the simulated disk goes on");
        self.engine.reap()
    }

    fn watch(&mut self, wake: Wake, fd: Option<OwnedFd>) -> io::Result<()> {
        self.engine.watch(wake, fd)
    }

    fn set_volume(&mut self, volume: Arc<OwnedFd>) -> io::Result<()> {
        self.engine.set_volume(volume)
    }
}
