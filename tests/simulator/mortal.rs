//! A back end's engine that ends its process at a chosen call.

use std::cell::Cell;
use std::collections::{HashSet, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::panic::resume_unwind;
use std::rc::Rc;
use std::sync::Arc;

use sealblk::guest::InflightRegion;
use sealblk::io::sim::Sim;
use sealblk::io::{Completion, Durability, Engine, Op, Tag, Wait, Wake};

/// What is thrown when a process dies.
pub struct Died;

/// A process, as far as its end goes.
pub struct Life {
    /// Calls of all its engines before it dies.
    calls_left: Cell<u32>,
    /// Syncs that storage has failed and the process has not learned of. Whoever dies then takes the word of it
    /// along, and there is nothing that could be done about that: in these moments nobody dies here.
    unheard: Cell<u32>,
    region: Arc<InflightRegion>,
    /// What the region says of syncs that have failed, when the process dies.
    last_word: Cell<bool>,
}

impl Life {
    pub fn of_calls(calls: u32, region: Arc<InflightRegion>) -> Rc<Self> {
        Rc::new(Self {
            calls_left: Cell::new(calls),
            unheard: Cell::new(0),
            region,
            last_word: Cell::new(false),
        })
    }

    /// Ends the process: everything that it held is gone, nothing that it began goes on.
    pub fn end(&self) {
        if self.unheard.get() == 0 {
            self.last_word.set(self.region.has_sync_failed());
            resume_unwind(Box::new(Died));
        }
    }

    /// Takes back what its remains have left word of: those of a process that is killed leave none.
    pub fn bury(&self) {
        self.region.note_sync_failed(self.last_word.get());
    }

    fn count_call(&self) {
        match self.calls_left.get() {
            0 => self.end(),
            calls => self.calls_left.set(calls - 1),
        }
    }
}

/// The simulated engine. Its storage goes on by itself, with each look at it, so that nobody has to wait; how long a
/// worker waits depends on the clock, and nothing may depend on that here.
pub struct Mortal {
    engine: Sim,
    life: Rc<Life>,
    syncs: HashSet<u32>,
    finished: VecDeque<Completion>,
}

impl Mortal {
    pub fn new(engine: Sim, life: &Rc<Life>) -> Self {
        Self { engine, life: Rc::clone(life), syncs: HashSet::new(), finished: VecDeque::new() }
    }

    fn is_unheard(&self, completion: &Completion) -> bool {
        completion.result.is_err() && self.syncs.contains(&completion.tag.0)
    }

    /// Storage goes on.
    fn advance(&mut self) -> io::Result<()> {
        self.engine.submit(Wait::No)?;
        self.collect();
        Ok(())
    }

    fn collect(&mut self) {
        while let Some(completion) = self.engine.reap() {
            if self.is_unheard(&completion) {
                self.life.unheard.update(|unheard| unheard + 1);
            }
            self.finished.push_back(completion);
        }
    }
}

impl Engine for Mortal {
    fn start(&mut self, tag: Tag, op: Op) {
        self.life.count_call();
        if matches!(op, Op::Sync | Op::Write { durability: Durability::Durable, .. }) {
            self.syncs.insert(tag.0);
        } else {
            self.syncs.remove(&tag.0);
        }
        self.engine.start(tag, op);
        // Some take place at once.
        self.collect();
    }

    fn submit(&mut self, _wait: Wait) -> io::Result<()> {
        self.life.count_call();
        self.advance()
    }

    fn reap(&mut self) -> Option<Completion> {
        self.life.count_call();
        self.advance().expect("the simulated disk goes on");
        let completion = self.finished.pop_front()?;
        if self.is_unheard(&completion) {
            self.life.unheard.update(|unheard| unheard - 1);
        }
        Some(completion)
    }

    fn watch(&mut self, wake: Wake, fd: Option<OwnedFd>) -> io::Result<()> {
        self.engine.watch(wake, fd)
    }

    fn set_volume(&mut self, volume: Arc<OwnedFd>) -> io::Result<()> {
        self.engine.set_volume(volume)
    }
}
