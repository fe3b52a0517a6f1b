//! What a VMM might say to the server, with whatever descriptors: messages in any order, of any shape, about memory of
//! any content. Each input is one connection. Nothing crashes, no queue thread ends, and every connection has an end.
#![no_main]

use std::fs::File;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use sealblk::server::fuzzing::Bench;

/// Where the front end has its memory, by its own account.
const USER_START: u64 = 0x7000_0000;
/// So few that the answers fit into the socket's buffer: nobody reads them.
const MESSAGES_MAX: usize = 32;
const DESCRIPTORS_MAX: usize = 8;
/// As in every header: the version, and that an answer is wanted.
const VERSION: u32 = 1;
const NEED_REPLY: u32 = 1 << 3;

#[derive(Arbitrary, Debug)]
struct Input {
    messages: Vec<Message>,
    /// What the memory begins with: rings, or what is taken for rings.
    memory: Vec<u8>,
}

#[derive(Arbitrary, Debug)]
struct Message {
    request: Request,
    needs_reply: bool,
    /// Flags that no message has.
    odd_flags: Option<u32>,
    /// A size that is not the body's.
    odd_size: Option<u16>,
    descriptors: Vec<Descriptor>,
}

#[derive(Arbitrary, Debug)]
enum Request {
    Any {
        code: u8,
        body: Vec<u8>,
    },
    Number {
        code: u8,
        value: u64,
    },
    Features(u64),
    ProtocolFeatures(u64),
    MemoryTable(Vec<Region>),
    AddRegion(Region),
    RemoveRegion(Region),
    Size {
        queue: u8,
        count: u16,
    },
    Base {
        queue: u8,
        index: u16,
    },
    Stop {
        queue: u8,
    },
    Enable {
        queue: u8,
        enabled: bool,
    },
    Addresses {
        queue: u8,
        flags: u8,
        places: [u16; 3],
        log: u32,
    },
    /// Kick, call or error descriptor.
    Signal {
        which: u8,
        queue: u8,
        none: bool,
    },
    ReadConfig {
        offset: u16,
        size: u16,
    },
    WriteConfig {
        offset: u16,
        bytes: Vec<u8>,
    },
    Inflight {
        set: bool,
        len_bytes: u32,
        offset_bytes: u16,
        queues: u8,
        size: u16,
    },
    Log {
        len_bytes: u32,
        offset_bytes: u16,
    },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Region {
    guest_kib: u16,
    len_kib: u16,
    user_kib: u16,
    file_kib: u8,
    odd: Option<u64>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Descriptor {
    Memory { kib: u8 },
    Sealed { kib: u8 },
    Event,
    Socket,
    File,
}

impl Region {
    fn bytes(self) -> Vec<u8> {
        let kib = |count: u16| u64::from(count) << 10;
        let [guest, len] = [kib(self.guest_kib), self.odd.unwrap_or(kib(self.len_kib))];
        words(&[guest, len, USER_START + kib(self.user_kib), u64::from(self.file_kib) << 10])
    }
}

fn words(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

fn halves(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

impl Request {
    /// The code and the body, by the vhost-user specification.
    fn encode(&self) -> (u32, Vec<u8>) {
        let state = |queue: &u8, number: u32| halves(&[u32::from(*queue), number]);
        match self {
            Self::Any { code, body } => (u32::from(*code), body.clone()),
            Self::Number { code, value } => (u32::from(*code), words(&[*value])),
            Self::Features(features) => (2, words(&[*features])),
            Self::ProtocolFeatures(features) => (16, words(&[*features])),
            Self::MemoryTable(regions) => {
                let regions = &regions[..regions.len().min(16)];
                let table = regions.iter().flat_map(|region| region.bytes());
                (5, halves(&[regions.len() as u32, 0]).into_iter().chain(table).collect())
            }
            Self::AddRegion(region) => (37, [words(&[0]), region.bytes()].concat()),
            Self::RemoveRegion(region) => (38, [words(&[0]), region.bytes()].concat()),
            Self::Size { queue, count } => (8, state(queue, u32::from(*count))),
            Self::Base { queue, index } => (10, state(queue, u32::from(*index))),
            Self::Stop { queue } => (11, state(queue, 0)),
            Self::Enable { queue, enabled } => (18, state(queue, u32::from(*enabled))),
            Self::Addresses { queue, flags, places, log } => {
                let [descriptors, used, available] = places.map(|place| USER_START + u64::from(place) * 16);
                let head = halves(&[u32::from(*queue), u32::from(*flags)]);
                (9, [head, words(&[descriptors, used, available, u64::from(*log)])].concat())
            }
            Self::Signal { which, queue, none } => {
                (12 + u32::from(which % 3), words(&[u64::from(*queue) | u64::from(*none) << 8]))
            }
            Self::ReadConfig { offset, size } => {
                let head = halves(&[u32::from(*offset), u32::from(*size), 0]);
                (24, [head, vec![0; usize::from(*size).min(4096)]].concat())
            }
            Self::WriteConfig { offset, bytes } => {
                let head = halves(&[u32::from(*offset), bytes.len() as u32, 1]);
                (25, [&head[..], bytes].concat())
            }
            Self::Inflight { set, len_bytes, offset_bytes, queues, size } => {
                let place = words(&[u64::from(*len_bytes), u64::from(*offset_bytes)]);
                let shape = [u16::from(*queues), *size].map(u16::to_ne_bytes).concat();
                (31 + u32::from(*set), [place, shape].concat())
            }
            Self::Log { len_bytes, offset_bytes } => {
                (6, words(&[u64::from(*len_bytes), u64::from(*offset_bytes)]))
            }
        }
    }
}

impl Descriptor {
    fn open(self, content: &[u8]) -> OwnedFd {
        let memory = |kib: u8| {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let file = File::from(memfd_create("memory", flags).expect("a memory file"));
            file.write_all_at(content, 0).expect("memory can be written");
            file.set_len(u64::from(kib) << 10).expect("memory can be sized");
            OwnedFd::from(file)
        };
        match self {
            Self::Memory { kib } => memory(kib),
            Self::Sealed { kib } => {
                let file = memory(kib);
                fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW).expect("it may be sealed");
                file
            }
            Self::Event => eventfd(1, EventfdFlags::NONBLOCK).expect("a descriptor"),
            Self::Socket => UnixStream::pair().expect("a pair of sockets").0.into(),
            Self::File => File::open("/dev/null").expect("it is everywhere").into(),
        }
    }
}

/// Sends one message. What does not fit is left out; there is room for more than the messages of an input.
fn send(stream: &UnixStream, message: &Message, memory: &[u8]) {
    let (code, mut body) = message.request.encode();
    body.truncate(4096);
    let needs_reply = if message.needs_reply { NEED_REPLY } else { 0 };
    let flags = message.odd_flags.unwrap_or(VERSION | needs_reply);
    let size = message.odd_size.map_or(body.len() as u32, u32::from);
    let bytes = [halves(&[code, flags, size]), body].concat();
    let files: Vec<OwnedFd> =
        message.descriptors.iter().take(DESCRIPTORS_MAX).map(|descriptor| descriptor.open(memory)).collect();
    let descriptors: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)), "there is room for them");
    }
    let _ = sendmsg(stream, &[IoSlice::new(&bytes)], &mut control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
}

thread_local!(static BENCH: Bench = Bench::new());

fuzz_target!(|input: Input| {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let memory = &input.memory[..input.memory.len().min(1 << 16)];
    for message in input.messages.iter().take(MESSAGES_MAX) {
        send(&ours, message, memory);
    }
    ours.shutdown(Shutdown::Write).expect("it is connected");
    BENCH.with(|bench| bench.converse(theirs));
});
