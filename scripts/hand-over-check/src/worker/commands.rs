//! A thread that follows commands, and one that gives them.

use std::io;
use std::sync::Arc;

use shuttle::thread;

use super::attendance::{Attendant, ask, attend};
use super::between_threads::mpsc::{self, Sender};
use super::peers::Bell;

struct Order(u32, Sender<u32>);

/// Its engine may learn of a wake-up in any turn, and does not sleep then: the worst for whoever relies on it.
struct Worker {
    bell: Arc<Bell>,
    requests_left: u32,
    obeyed: u32,
}

impl Attendant for Worker {
    type Command = Order;

    fn turn(&mut self) -> io::Result<bool> {
        self.bell.hear();
        let busy = self.requests_left > 0;
        self.requests_left -= u32::from(busy);
        Ok(busy)
    }

    fn wait(&mut self) -> io::Result<()> {
        self.bell.wait();
        Ok(())
    }

    fn obey(&mut self, Order(number, reply): Order) -> io::Result<()> {
        self.obeyed += 1;
        self.requests_left = number % 3;
        reply.send(10 * number).expect("it waits");
        Ok(())
    }

    fn end(self) -> io::Result<()> {
        assert_eq!(self.obeyed, 4);
        Ok(())
    }
}

pub(super) fn every_command_is_answered() {
    let (commands, inbox) = mpsc::channel();
    let bell = Arc::<Bell>::default();
    let worker = Worker { bell: Arc::clone(&bell), requests_left: 2, obeyed: 0 };
    let worker = thread::spawn(move || attend(worker, &inbox).expect("no engine breaks down"));
    for number in 0..4 {
        let answer = ask(&commands, |reply| Order(number, reply), || bell.ring());
        assert_eq!(answer.expect("it is there"), 10 * number);
    }
    // As the handle of a queue's thread does when it is dropped.
    drop(commands);
    bell.ring();
    worker.join().expect("it ended well");
}
