//! sealblk encrypts the disks of virtual machines on the virtualization host, before their data reaches storage.
//!
//! One `sealblk serve` process serves one disk: it is a vhost-user-blk back end. It maps the guest's memory, takes
//! requests straight from the guest's virtqueues, runs AES-XTS on each sector, and moves ciphertext with io_uring.
//! Neither the host kernel's block layer, nor device-mapper, nor the VMM's block layer handles guest data.
//!
//! # The journey of one request
//!
//! ```text
//!      guest                    queue thread (one per virtqueue; owns everything below)                storage
//!  +-----------+   pop    +--------+  parse  +---------+  begin  +-------------+   start/submit   +----------+
//!  | avail ring| -------> |  Head  | ------> | Request | ------> | Op { slot } | ---------------> | io_uring |
//!  +-----------+          +--------+         +---------+ encrypt +-------------+                  +----+-----+
//!                                                        guest->slot                                   | reap
//!  +-----------+ complete +--------+               finish                +------------+                |
//!  | used ring | <------- |  Done  | <------------------------------------ | Completion | <--------------+
//!  +-----------+          +--------+         decrypt slot->guest         +------------+
//!        ^                                                               whole, or an error
//!        +---- published once, and at most one notification, per turn
//! ```
//!
//! Six names take a request from the guest to storage and back: [`pop`](virtio::Virtq::pop),
//! [`parse`](virtio::request::parse), *begin*, [`start`](io::Engine::start), *finish*,
//! [`complete`](virtio::Virtq::complete). Each arrow is one function, each box one type, and a request is passed
//! by value from state to state. [`worker`] is the loop they run in: read it first.
//!
//! **Encryption is the copy.** A write is encrypted from guest memory into a private slot, a read is decrypted
//! from a slot into guest memory: one pass over the bytes each way. So guest memory is never the target of DMA,
//! alignment is always right, buffers are registered with the kernel once, a guest that changes its buffer during
//! the I/O hurts only itself, and the guest never sees ciphertext.
//!
//! # Floors
//!
//! Each stands on those below it and names nothing above (`tests/tidy.rs` checks it):
//!
//! | floor | what it knows |
//! |---|---|
//! | [`cli`] | the command line and configuration file |
//! | [`convert`](mod@convert) | a volume made from another, or from an image |
//! | [`ephemeral`] | disks whose key is their own and goes with them |
//! | [`server`] | one served disk: start-up in order, the vhost-user session, the socket, the control socket |
//! | [`worker`] | one queue's loop, and the volume: cipher, offset, write cache |
//! | [`virtio`] | what the guest says: the split ring, requests (parsed without any I/O) |
//! | [`guest`] | memory shared with the guest |
//! | [`bench`](mod@bench) | how fast the cipher is on this machine |
//! | [`cipher`], [`io`], [`keys`], [`format`](mod@format) | AES-XTS; moving bytes; key managers; what lies on a volume. None of them knows of virtio |
//! | [`sandbox`] | what the process gives up before it reads what a guest has written |
//! | [`geometry`], [`locked`], [`inherited`], [`throttle`] | units; memory for secrets; descriptors from the parent process; a log that stays readable |
//!
//! Three joints have several implementations: [`io::Engine`] (io_uring, blocking, simulated),
//! [`keys::KeyManager`] and [`format::VolumeFormat`]. The last two end at start-up: they yield a key and a
//! [`geometry::Geometry`], and the data path never hears of them.
//!
//! # What is promised
//!
//! * A completed read or write was whole. Anything less reaches the guest as an I/O error, never as data.
//! * A completed flush means that every write completed before it is durable. Without a write cache each
//!   write is durable before it completes. A failed `fdatasync` fails all that follow.
//! * Writes of different blocks never undo each other, where several share an encryption sector too.
//! * Written zeroes read as zeroes. Discards reach storage only where the operator allowed it.
//! * No guest input crashes the process, stops it serving other requests, or makes it touch memory or sectors
//!   outside the grant; every request that can be answered is answered once. Impossible ring indices stop that
//!   ring only.
//! * A volume's header is copied once, judged by an allow-list with caps on its costs, and the key it yields checked
//!   against its digest, before the first request.
//! * The process may die at any moment: its successor repeats what was under way, before anything new, and not before
//!   the last transfer of the dead has ended ([`guest::inflight`], `docs/reliability.md`). The front end has to keep the
//!   in-flight region.
//! * A guest that is migrated takes the volume with it: one process at a time has running rings, and what the one has
//!   answered is durable before the next begins (`server::tenure`, `docs/migration.md`). Every page of the guest's memory
//!   that is written meanwhile is in the front end's log ([`guest::dirty`]).
//! * A stopped ring has nothing under way: its requests are answered and the guest's memory is left alone.
//! * A request that storage fails is an I/O error to the guest, or is held until the operator has it tried again. What a
//!   repetition could hide, a failed flush, is never held.
//! * Key bytes live in [`keys::Secret`], [`cipher::VolumeKey`] and [`cipher::Xts`] only, and beside them, while a
//!   volume is unlocked, in libcryptsetup, and what an open keystore derives from its key-encryption key: locked,
//!   wiped, redacted. A suspended disk's process holds no byte of its key.
//!
//! # What is assumed
//!
//! * The host's kernel and CPU, and whoever controls this process, are trusted. The VMM may misbehave; it owns the
//!   guest's memory anyway, but must not get at the key. The guest is hostile.
//! * Storage may be read, copied, swapped and rolled back by others at any time. XTS hides content; it does not
//!   prove that content is what was written.
//! * A write that storage acknowledged and a later `fdatasync` that succeeded make data survive power failure.
//! * Nobody else writes to the volume: `flock`, and `O_EXCL` on block devices, keep cooperating processes out. (Between
//!   hosts, where storage does not pass locks on, whoever starts VMs does.)

pub mod bench;
pub mod cipher;
pub mod cli;
pub mod convert;
pub mod ephemeral;
pub mod format;
pub mod geometry;
pub mod guest;
pub mod inherited;
pub mod io;
pub mod keys;
pub mod locked;
pub mod sandbox;
pub mod server;
pub mod throttle;
pub mod virtio;
pub mod worker;
