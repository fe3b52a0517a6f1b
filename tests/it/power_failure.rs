//! The power fails at any moment. What a guest was told to be durable is there when it comes back.
//!
//! The volume lies on storage that records each write and flush that reaches it, and the guest notes how much was
//! recorded when it got each answer. Afterwards the record is replayed: whenever the power had failed, the disk would
//! hold everything up to the last flush, and of each sector that was written since either that or a newer version. Each
//! of these has to be one that the guest can live with. That is checked for all moments and all choices of survivors,
//! since sectors are independent of each other.
//!
//! Needs `scripts/install-tools slow-storage` and the right to mount.

use std::collections::HashMap;

use crate::harness::load::{BLOCK_BYTES, Content, Event, Load};
use crate::harness::memory::MIB;
use crate::harness::request::{T_FLUSH, T_IN, T_WRITE_ZEROES};
use crate::harness::seed::seed;
use crate::harness::write_log::{Entry, RecordedFile, last_flush};
use crate::harness::*;

const PAYLOAD_BYTES: usize = 2 << 20;
const QUEUES: usize = 2;
/// Answers that the guest waits for.
const ANSWERS: u64 = 600;
/// What storage keeps or loses as a whole.
const PIECE_BYTES: usize = 512;
const PIECES_PER_BLOCK: usize = BLOCK_BYTES / PIECE_BYTES;

/// How the disk is served.
#[derive(Clone, Copy, Debug)]
struct Way {
    engine: &'static str,
    direct: &'static str,
    cache: &'static str,
}

/// The guest's side: what each block must not fall behind, from which moment on.
struct Promises {
    /// What each block has held and was to hold, oldest first.
    histories: Vec<Vec<Content>>,
    /// How many entries were recorded when a promise was given, and the oldest content (by its place in the history)
    /// that each block may have had since.
    given: Vec<(usize, Vec<usize>)>,
}

impl Promises {
    /// What the guest may rely on after these events. Beside each of them stands how many entries were recorded when
    /// the guest noticed it.
    fn of(events: &[(Event, usize)], write_through: bool) -> Self {
        let mut histories = vec![vec![Content::Original]; PAYLOAD_BYTES / BLOCK_BYTES];
        let (mut sent, mut covered) = (HashMap::new(), HashMap::new());
        let mut answered = vec![0; histories.len()];
        let mut durable = answered.clone();
        let mut given = Vec::new();
        for (event, recorded) in events {
            match event {
                Event::Sent(request) => {
                    let content = match request.kind {
                        T_FLUSH => {
                            covered.insert(request.number, answered.clone());
                            continue;
                        }
                        T_IN => continue,
                        T_WRITE_ZEROES => Content::Zeroes,
                        _ => Content::Written(request.number),
                    };
                    for history in &mut histories[request.block..][..request.count] {
                        history.push(content);
                    }
                    sent.insert(request.number, request.block..request.block + request.count);
                }
                Event::Answered(number) => {
                    let is_flush = covered.contains_key(number);
                    // A block has one request at a time: this one's content is the newest.
                    for block in sent.remove(number).into_iter().flatten() {
                        answered[block] = histories[block].len() - 1;
                    }
                    let promised = match covered.remove(number) {
                        Some(covered) => covered,
                        None if write_through => answered.clone(),
                        None => continue,
                    };
                    for (durable, promised) in durable.iter_mut().zip(promised) {
                        *durable = promised.max(*durable);
                    }
                    if is_flush || write_through {
                        given.push((*recorded, durable.clone()));
                    }
                }
            }
        }
        Self { histories, given }
    }
}

/// What the storage holds, as the guest would know it.
struct Replay<'a> {
    layout: &'a Layout,
    histories: &'a [Vec<Content>],
    /// Everything that a piece can rightly hold: which piece, and what.
    known: HashMap<Vec<u8>, (usize, Content)>,
    /// By piece, with everything that has arrived.
    arrived: Vec<Content>,
    /// By block, the oldest content that it may have.
    oldest: Vec<usize>,
}

impl<'a> Replay<'a> {
    fn new(load: &Load, layout: &'a Layout, histories: &'a [Vec<Content>]) -> Self {
        let mut known = HashMap::new();
        for (block, history) in histories.iter().enumerate() {
            for &content in history.iter().filter(|content| **content != Content::Zeroes) {
                let bytes = load.bytes(block, 1, |_| content);
                let pieces = (block * PIECES_PER_BLOCK..).zip(bytes.chunks(PIECE_BYTES));
                known.extend(pieces.map(|(piece, bytes)| (bytes.to_vec(), (piece, content))));
            }
        }
        let arrived = vec![Content::Original; histories.len() * PIECES_PER_BLOCK];
        Self { layout, histories, known, arrived, oldest: vec![0; histories.len()] }
    }

    /// What these bytes are, as the content of that piece.
    fn identify(&self, piece: usize, bytes: &[u8]) -> Content {
        if bytes.iter().all(|byte| *byte == 0) {
            return Content::Zeroes;
        }
        match self.known.get(bytes) {
            Some((at, content)) if *at == piece => *content,
            Some((at, content)) => panic!("piece {piece} was written with {content:?} of piece {at}"),
            None => panic!("piece {piece} was written with something that the guest never sent"),
        }
    }

    fn assert_suits(&self, piece: usize, content: Content, when: &str) {
        let block = piece / PIECES_PER_BLOCK;
        let allowed = &self.histories[block][self.oldest[block]..];
        assert!(allowed.contains(&content), "{when}, piece {piece} holds {content:?}, not of {allowed:?}");
    }

    /// One write arrives. It may be lost or survive, each piece of it for itself.
    fn write(&mut self, offset_bytes: usize, data: &[u8], when: &str) {
        let sector_bytes = self.layout.sector_bytes;
        assert!(offset_bytes.is_multiple_of(sector_bytes) && data.len().is_multiple_of(sector_bytes));
        let bytes = self.layout.decrypt_from(offset_bytes / sector_bytes, data);
        for (piece, bytes) in (offset_bytes / PIECE_BYTES..).zip(bytes.chunks(PIECE_BYTES)) {
            let content = self.identify(piece, bytes);
            self.assert_suits(piece, content, when);
            self.arrived[piece] = content;
        }
    }

    /// From here on, this is the oldest that each block may hold.
    fn promise(&mut self, oldest: &[usize], when: &str) {
        self.oldest.copy_from_slice(oldest);
        for (piece, content) in self.arrived.iter().enumerate() {
            self.assert_suits(piece, *content, when);
        }
    }
}

/// Replays what was recorded, and checks each moment of it.
fn replay(entries: &[Entry], load: &Load, layout: &Layout, promises: &Promises) {
    let mut replay = Replay::new(load, layout, &promises.histories);
    let mut given = promises.given.iter().peekable();
    let mut keep = |replay: &mut Replay<'_>, flush: Option<usize>| {
        while let Some((_, oldest)) = given.next_if(|(recorded, _)| last_flush(entries, *recorded) <= flush) {
            let when =
                flush.map_or("before any flush".to_owned(), |flush| format!("flushed at entry {flush}"));
            replay.promise(oldest, &when);
        }
    };
    keep(&mut replay, None);
    for (number, entry) in entries.iter().enumerate() {
        match entry {
            Entry::Write { offset_bytes, data } => {
                replay.write(*offset_bytes, data, &format!("written at entry {number}"));
            }
            Entry::Flush => keep(&mut replay, Some(number)),
        }
    }
    assert!(given.next().is_none(), "every promise was looked at");
    assert!(matches!(entries.last(), Some(Entry::Flush)), "a clean end is a durable one");
    let last = load.contents().iter().flat_map(|content| [*content; PIECES_PER_BLOCK]);
    assert!(replay.arrived.iter().copied().eq(last), "in the end the storage holds what the guest knows");
}

/// Serves recording storage to a busy guest, and looks at what each power failure would have left.
fn power_fails(way: Way) {
    let seed = seed();
    let layout = Layout::encrypted(PAYLOAD_BYTES);
    let original = pattern(1, PAYLOAD_BYTES);
    let recorded = RecordedFile::with(&layout.encrypt(&original));
    let Way { engine, direct, cache } = way;
    let mut backend = Serve::volume(layout.clone())
        .behind(&recorded.path())
        .queues(QUEUES)
        .args(&["--engine", engine, "--direct", direct, "--cache", cache])
        .start();
    let setup = Setup { queues: QUEUES, ..Setup::data(QUEUES as u64 * 2 * MIB) };
    let frontend = Frontend::with(backend.socket(), setup);
    let mut load = Load::new(&frontend, &original, seed);
    let mut events: Vec<(Event, usize)> = Vec::new();
    load.fill(&frontend.rings);
    while load.outstanding() > 0 {
        load.wait_for_answer(&frontend.rings);
        let go_on = load.answered < ANSWERS;
        load.take_answers(&frontend.rings, go_on);
        let recorded = recorded.entry_count();
        let new = &load.events[events.len()..];
        events.extend(new.iter().map(|event| (event.clone(), recorded)));
    }
    drop(frontend);
    backend.terminate();
    let entries = recorded.finish();
    let flushes = entries.iter().filter(|entry| matches!(entry, Entry::Flush)).count();
    let promises = Promises::of(&events, cache == "writethrough");
    println!("{way:?}: {} entries, {flushes} flushes, {} promises", entries.len(), promises.given.len());
    replay(&entries, &load, &layout, &promises);
    assert!(promises.given.len() > 20, "only {} promises were given", promises.given.len());
}

#[test]
#[ignore = "needs qemu-storage-daemon and the right to mount"]
fn what_was_flushed_survives() {
    for engine in ["uring", "blocking"] {
        for direct in ["on", "off"] {
            power_fails(Way { engine, direct, cache: "writeback" });
        }
    }
}

#[test]
#[ignore = "needs qemu-storage-daemon and the right to mount"]
fn what_was_written_without_a_cache_survives() {
    for engine in ["uring", "blocking"] {
        for direct in ["on", "off"] {
            power_fails(Way { engine, direct, cache: "writethrough" });
        }
    }
}
