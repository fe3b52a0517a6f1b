//! What the main thread does by order of the control socket.

use serde_json::{Value, json};

use super::control::orders::{Caller, Order};
use super::control::protocol::{Fault, Resized};
use super::device::Device;
use super::front_end::{End, Reception};
use super::session::Session;
use super::socket::Socket;
use super::suspension::{resume_with_key, suspend};
use crate::format::PayloadExtent;
use crate::worker::QueueThread;

/// Takes the next order, if there is one, and carries it out, with or without a front end. Returns the end of serving,
/// if that was the order.
pub(super) fn obey_next(reception: &Reception<'_>, session: Option<&mut Session<'_>>) -> Option<End> {
    let Reception { device, threads, stop, hands_over, .. } = reception;
    let (order, mut caller) = stop.next_order()?;
    tracing::info!(?order, "order of the operator");
    let outcome = match order {
        Order::Drain => drain(device, threads, session),
        Order::Resume => resume(device, session),
        Order::Suspend => suspend(device, threads, session),
        Order::ResumeKey => {
            let key = caller.as_mut().and_then(Caller::take_descriptor);
            resume_with_key(device, threads, session, key)
        }
        Order::Resize => resize(device, threads, session).map(|resized| json!(resized)),
        Order::Shutdown => return caller.map(End::Shutdown),
        Order::TakeOver if *hands_over => return caller.map(End::TakeOver),
        Order::TakeOver => {
            Err(Fault::refused("the VMM's connection was inherited: there is no socket to hand over"))
        }
    };
    if let Err(fault) = &outcome {
        tracing::warn!(?order, %fault, "could not follow an order of the operator");
    }
    if let Some(caller) = caller {
        caller.answer(outcome);
    }
    None
}

/// Gives the socket to a successor, once everything is durable. Returns whether that has it; if not, it is served on.
pub(super) fn hand_over(device: &Device, socket: &mut Socket, caller: Caller) -> bool {
    if let Err(error) = device.sync() {
        tracing::warn!(%error, "cannot be taken over: not all is durable");
        caller.answer(Err(Fault::failed(format!("not all is durable: {error}"))));
        return false;
    }
    let (handed_over, listener) = socket.description();
    let sent = caller.answer_with(Ok(json!(handed_over)), listener.as_slice());
    if sent {
        socket.leave();
    } else {
        tracing::warn!("who wanted to take over has gone: serving on");
    }
    sent
}

/// Lets no queue run, and makes durable what they did.
pub(super) fn drain(
    device: &Device,
    threads: &[QueueThread],
    session: Option<&mut Session<'_>>,
) -> Result<Value, Fault> {
    let held: u32 = threads.iter().map(|thread| thread.watcher().view().held).sum();
    if held > 0 {
        return Err(Fault::refused(format!(
            "{held} requests that storage failed are held, and draining would fail them for good: mend it and retry"
        )));
    }
    device.set_drained(true);
    session.map_or(Ok(()), Session::halt).map_err(Fault::failed)?;
    device
        .sync()
        .map_err(|error| Fault::failed(format!("the queues rest, but not all is durable: {error}")))?;
    Ok(json!({ "drained": true }))
}

/// Ends a drain.
pub(super) fn resume(device: &Device, session: Option<&mut Session<'_>>) -> Result<Value, Fault> {
    if device.is_suspended() {
        return Err(Fault::refused("the key is wiped: `sealblk resume` brings it back"));
    }
    device.set_drained(false);
    if let Some(session) = session {
        session.proceed().map_err(Fault::failed)?;
        session.tell_of_growth();
    }
    Ok(json!({ "drained": false }))
}

/// Lets the disk grow with its volume: first the queues, then what front ends are told.
fn resize(
    device: &Device,
    threads: &[QueueThread],
    session: Option<&mut Session<'_>>,
) -> Result<Resized, Fault> {
    let before_bytes = device.capacity_bytes();
    let capacity_bytes = match device.measure().map_err(Fault::failed)? {
        (PayloadExtent::Fixed, _) => {
            return Err(Fault::refused(
                "the LUKS header fixes the size of the payload: the disk cannot grow",
            ));
        }
        (PayloadExtent::WholeVolume, capacity_bytes) => capacity_bytes,
    };
    if capacity_bytes < before_bytes {
        return Err(Fault::refused(format!(
            "the volume has shrunk, to {capacity_bytes} bytes for the guest: a disk in use cannot follow and keeps its \
             {before_bytes}"
        )));
    }
    let mut vmm_told = false;
    if capacity_bytes > before_bytes {
        device.grow(capacity_bytes, threads).map_err(Fault::failed)?;
        vmm_told = session.is_some_and(Session::tell_of_growth);
        tracing::info!(before_bytes, capacity_bytes, vmm_told, "the disk has grown");
    }
    Ok(Resized { before_bytes, capacity_bytes, vmm_told })
}
