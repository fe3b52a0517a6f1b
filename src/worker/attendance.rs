//! How a worker's thread and the control thread meet: a command is sent and the thread woken; it is followed between two
//! turns; who asked waits for the answer.

use std::io;

use super::between_threads::mpsc::{self, Receiver, Sender, TryRecvError};
use super::thread::WorkerGone;

/// What a thread does, that follows commands besides.
pub(super) trait Attendant {
    /// What it can be told to do.
    type Command;
    /// One turn of its work. Returns whether there was anything to do. May be what learns that it was woken.
    fn turn(&mut self) -> io::Result<bool>;
    /// Waits for more to do, unless it was woken since it learnt of that last.
    fn wait(&mut self) -> io::Result<()>;
    /// Follows a command.
    fn obey(&mut self, command: Self::Command) -> io::Result<()>;
    /// Ends its work: nobody is left to command it.
    fn end(self) -> io::Result<()>;
}

/// The loop of a thread: its work, then commands, then sleep.
pub(super) fn attend<A: Attendant>(mut attendant: A, inbox: &Receiver<A::Command>) -> io::Result<()> {
    loop {
        // The turn may be what learns of a command's wake-up: the look into the inbox comes after it, or the
        // wait would begin with a command in the inbox and nothing left to end it.
        let busy = attendant.turn()?;
        match inbox.try_recv() {
            Ok(command) => attendant.obey(command)?,
            Err(TryRecvError::Empty) if busy => {}
            Err(TryRecvError::Empty) => attendant.wait()?,
            Err(TryRecvError::Disconnected) => return attendant.end(),
        }
    }
}

/// Sends a command with the way back for its answer, and waits for that.
pub(super) fn ask<C, T>(
    commands: &Sender<C>,
    command: impl FnOnce(Sender<T>) -> C,
    wake: impl FnOnce(),
) -> Result<T, WorkerGone> {
    let (reply, answer) = mpsc::channel();
    commands.send(command(reply)).map_err(|_| WorkerGone)?;
    // After it is sent: who is woken looks into the inbox once.
    wake();
    answer.recv().map_err(|_| WorkerGone)
}
