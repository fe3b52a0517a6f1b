//! What clients of the control socket want of the main thread, and the way back for its answer.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};

use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, send, sendmsg};
use serde_json::Value;
use signal_hook::consts::SIGHUP;

use super::protocol::{Answer, Fault, FaultKind};

/// What the main thread is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::server) enum Order {
    Drain,
    Resume,
    Suspend,
    ResumeKey,
    Resize,
    TakeOver,
    Shutdown,
}

/// Who waits for the answer to an order. Dropped without one, it sees its connection end.
#[derive(Debug)]
pub(in crate::server) struct Caller {
    stream: UnixStream,
    id: Option<Value>,
    /// What came with the order.
    descriptor: Option<OwnedFd>,
    /// Its client's thread reads on when it is told here.
    waiting: Sender<()>,
}

impl Caller {
    /// Someone who is told here that it was answered; the way ends when it was not.
    pub(super) fn new(stream: UnixStream, id: Option<Value>) -> (Self, Receiver<()>) {
        let (waiting, answered) = mpsc::channel();
        (Self { stream, id, descriptor: None, waiting }, answered)
    }

    /// The same with the descriptor that came with the order.
    pub(super) fn with_descriptor(self, descriptor: Option<OwnedFd>) -> Self {
        Self { descriptor, ..self }
    }

    /// The descriptor that came with the order, once.
    pub(in crate::server) fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptor.take()
    }

    /// Says what came of the order. The main thread waits for nobody: who does not read is cut off.
    pub(in crate::server) fn answer(self, outcome: Result<Value, Fault>) {
        self.answer_with(outcome, &[]);
    }

    /// Says what came of the order, with descriptors. Returns whether all of it was sent.
    pub(in crate::server) fn answer_with(
        self,
        outcome: Result<Value, Fault>,
        descriptors: &[BorrowedFd<'_>],
    ) -> bool {
        let line = Answer::new(self.id.clone(), outcome).line();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fits = descriptors.is_empty() || control.push(SendAncillaryMessage::ScmRights(descriptors));
        assert!(fits, "no answer has more than one descriptor");
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent =
            sendmsg(&self.stream, &[IoSlice::new(&line)], &mut control, flags).ok() == Some(line.len());
        if sent {
            let _ = self.waiting.send(());
        } else {
            // It may have gone already.
            let _ = self.stream.shutdown(std::net::Shutdown::Both);
        }
        sent
    }
}

impl Fault {
    /// Not now; nothing has changed.
    pub(in crate::server) fn refused(message: impl Into<String>) -> Self {
        Self { kind: FaultKind::Refused, message: message.into() }
    }

    /// Tried in vain.
    pub(in crate::server) fn failed(message: impl ToString) -> Self {
        Self { kind: FaultKind::Failed, message: message.to_string() }
    }
}

/// Where orders are given.
#[derive(Clone, Debug)]
pub(in crate::server) struct Desk {
    orders: Sender<(Order, Caller)>,
    wake: Arc<UnixStream>,
}

impl Desk {
    /// Makes SIGHUP the order to resize, from here on.
    ///
    /// # Errors
    /// When the signal cannot be had.
    pub(in crate::server) fn heed_hangups(&self, inbox: &Inbox) -> io::Result<()> {
        // First the note, then what wakes the reader of it.
        signal_hook::flag::register(SIGHUP, Arc::clone(&inbox.hung_up))?;
        signal_hook::low_level::pipe::register(SIGHUP, self.wake.try_clone()?)?;
        Ok(())
    }

    /// Gives an order. When the main thread takes none any more, the caller's connection ends.
    pub(super) fn give(&self, order: Order, caller: Caller) {
        if self.orders.send((order, caller)).is_ok() {
            // A full socket wakes as well.
            let _ = send(&*self.wake, &[0], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        }
    }
}

/// Where the main thread takes orders.
#[derive(Debug)]
pub(in crate::server) struct Inbox {
    orders: Receiver<(Order, Caller)>,
    woken: UnixStream,
    /// SIGHUP has come.
    hung_up: Arc<AtomicBool>,
}

/// The two ends of the way to the main thread.
///
/// # Errors
/// When there is no descriptor left for it.
pub(in crate::server) fn channel() -> io::Result<(Desk, Inbox)> {
    let (woken, wake) = UnixStream::pair()?;
    let (sender, orders) = mpsc::channel();
    let inbox = Inbox { orders, woken, hung_up: Arc::default() };
    Ok((Desk { orders: sender, wake: Arc::new(wake) }, inbox))
}

impl Inbox {
    /// Readable as long as there are orders.
    pub(in crate::server) fn readiness(&self) -> BorrowedFd<'_> {
        self.woken.as_fd()
    }

    /// The next order, and who waits for its answer if anybody does.
    pub(in crate::server) fn take(&self) -> Option<(Order, Option<Caller>)> {
        self.look().or_else(|| {
            // First this, then another look: an order that comes in between has its own byte, or is seen.
            let mut bytes = [0; 64];
            let _ = recv(&self.woken, &mut bytes, RecvFlags::DONTWAIT);
            self.look()
        })
    }

    fn look(&self) -> Option<(Order, Option<Caller>)> {
        if self.hung_up.swap(false, Ordering::Relaxed) {
            return Some((Order::Resize, None));
        }
        self.orders.try_recv().ok().map(|(order, caller)| (order, Some(caller)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use serde_json::json;

    use super::*;

    fn is_ready(inbox: &Inbox) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(inbox.readiness(), PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() > 0
    }

    #[test]
    fn orders_come_in_turn_and_leave_nothing_to_wake_for() {
        let (desk, inbox) = channel().unwrap();
        assert!(!is_ready(&inbox));
        let (mut client, server) = UnixStream::pair().unwrap();
        let mut answered = Vec::new();
        for order in [Order::Drain, Order::Resume] {
            let (caller, waits) = Caller::new(server.try_clone().unwrap(), Some(json!(1)));
            desk.give(order, caller);
            answered.push(waits);
        }
        for (order, waits) in [Order::Drain, Order::Resume].into_iter().zip(answered) {
            assert!(is_ready(&inbox));
            let (taken, caller) = inbox.take().unwrap();
            assert_eq!(taken, order);
            assert!(matches!(waits.try_recv(), Err(mpsc::TryRecvError::Empty)));
            caller.unwrap().answer(Ok(json!({})));
            assert_eq!(waits.try_recv(), Ok(()));
            let expected = b"{\"version\":1,\"id\":1,\"result\":{}}\n";
            let mut line = vec![0; expected.len()];
            client.read_exact(&mut line).unwrap();
            assert_eq!(line, expected);
        }
        while is_ready(&inbox) {
            assert!(inbox.take().is_none());
        }
    }

    #[test]
    fn a_hangup_is_the_order_to_resize() {
        let (desk, inbox) = channel().unwrap();
        desk.heed_hangups(&inbox).unwrap();
        signal_hook::low_level::raise(SIGHUP).unwrap();
        assert!(is_ready(&inbox));
        assert!(matches!(inbox.take(), Some((Order::Resize, None))));
        assert!(inbox.take().is_none());
    }

    #[test]
    fn a_caller_who_does_not_read_is_cut_off_and_not_waited_for() {
        let (mut client, server) = UnixStream::pair().unwrap();
        let answered = |_: &u32| {
            let (caller, waits) = Caller::new(server.try_clone().unwrap(), None);
            caller.answer(Ok(json!("x".repeat(10_000))));
            waits.recv().is_ok()
        };
        let count = (0..1000).take_while(answered).count();
        assert!((1..1000).contains(&count), "{count} were sent");
        let mut read = Vec::new();
        client.read_to_end(&mut read).unwrap();
        assert!(read.len() > 10_000 * count, "then the connection ended");
    }
}
