//! The one shape of all x86-64 kernels: AES units kept busy all the time, everything else hidden beside them.
//!
//! A *unit* is [`IN_FLIGHT`] vectors of data. While its AES rounds run in the vector units, the integer units double
//! the tweaks of the unit after next, which cost nothing there: as vector instructions (a carry-less multiplication
//! for each vector, as is usual) they would take a fifth of the AES units' time.
//!
//! Doubled tweaks go through memory to become vectors. A CPU cannot forward two small stores to one large load, so a
//! load that comes soon after waits until both have reached the cache: [`AHEAD_UNITS`].

use std::arch::x86_64::__m128i;
use std::mem::MaybeUninit;

use super::keys::{KeySchedule, RoundKeys};
use super::vector::{Encrypt, IN_FLIGHT, Tweak, Vector, Way, fetch, forget_origin};
use crate::cipher::Run;
use crate::cipher::iv::IvSequence;

/// How far tweaks are made ahead of their use. Zen 3 needs 65 cycles for a unit with 1, and 58 with 2 or more.
const AHEAD_UNITS: usize = 2;

/// Units in the ring of tweaks: a power of two above [`AHEAD_UNITS`].
const RING_UNITS: usize = 4;

/// How far ahead of its use data is asked for. Guest memory is in no cache as a rule, and a core looks only a unit or
/// two ahead, which covers a quarter of the way to memory: on Zen 3, encrypting from there gets 25 % faster and
/// decrypting to there 10 %, and data in the cache no slower.
const FETCH_AHEAD_BYTES: usize = 1024;

const LINE_BYTES: usize = 64;

/// Every sector is a multiple of it.
const SECTOR_BYTES_MIN: usize = 512;

/// Parts of a round between which doublings are spread.
///
/// A core takes in instructions in order and has room for some sixty that wait for AES units, so scalar ones in
/// bunches starve these: on Zen 3, AES-128 takes 4 % longer with 1 part. AES-256 has more rounds to hide them under.
const ROUND_PARTS: usize = 4;

/// Tweaks on their way: derived from `K2`, and worth no more than the data next to them on the caller's side, so not
/// wiped.
struct Scratch<V> {
    /// The tweaks of the next units; that of unit `i` at `i % RING_UNITS`.
    ring: [[V; IN_FLIGHT]; RING_UNITS],
    /// The first tweaks of sectors, in two batches; that of sector `i` is block `i % (2 * batch)`.
    first_tweaks: [[V; IN_FLIGHT]; 2],
}

/// Turns the sectors of `run`.
///
/// # Safety
/// As for [`Xts::encrypt`](crate::cipher::Xts::encrypt), for the sectors of `run`, which are multiples of 512 bytes;
/// the caller enables the instructions of `V`.
#[inline(always)]
pub(super) unsafe fn crypt<V: Vector, W: Way, const ROUNDS: usize>(keys: &KeySchedule<ROUNDS>, run: Run) {
    const { assert!(SECTOR_BYTES_MIN.is_multiple_of(turn_bytes::<V>()), "sectors are whole turns") };
    if run.sector_count == 0 {
        return;
    }
    let mut scratch = MaybeUninit::<Scratch<V>>::uninit();
    let (mut src, mut dst) = (run.src, run.dst);
    // SAFETY: `scratch` outlives the pointers into it. Each unit of it is written before it is read: those of the ring
    // by `expand_unit` or two units earlier, first tweaks by `encrypt_batch`. The run's pointers advance over the sectors
    // that the caller vouches for, and to the end at most.
    unsafe {
        // Taken once: taken again, it would end the right of the pointers that came from it.
        let scratch = scratch.as_mut_ptr();
        let ring = (&raw mut (*scratch).ring).cast::<[V; IN_FLIGHT]>();
        let first_tweaks = (&raw mut (*scratch).first_tweaks).cast::<__m128i>();
        let turn_count = run.sector_count * (run.sector_bytes / turn_bytes::<V>());
        // While the first tweaks are made.
        for turn in 0..turn_count.min(const { fetch_turns::<V>() }) {
            fetch_turn::<V>(src.add(turn * turn_bytes::<V>()), dst.add(turn * turn_bytes::<V>()));
        }
        let mut tweaks = Tweaks::<V, ROUNDS>::new(&keys.tweak, first_tweaks, &run);
        for unit in 0..AHEAD_UNITS {
            if unit % const { turn_units::<V>() } == 0 {
                tweaks.next_turn();
            }
            tweaks.expand_unit(ring.add(unit).cast());
        }
        let data_keys = W::data_keys(keys).as_ptr();
        for turn in 0..turn_count {
            if turn + const { fetch_turns::<V>() } < turn_count {
                fetch_turn::<V>(src.add(FETCH_AHEAD_BYTES), dst.add(FETCH_AHEAD_BYTES));
            }
            let unit = turn * turn_units::<V>();
            let ready = ring.add(unit % RING_UNITS);
            let ahead = ring.add((unit + AHEAD_UNITS) % RING_UNITS);
            tweaks.next_turn();
            crypt_unit::<V, W, ROUNDS>(data_keys, ready.cast(), src, dst, &mut tweaks.next, ahead.cast());
            if const { turn_units::<V>() == 2 } {
                let (ready, ahead) = (ready.add(1).cast(), ahead.add(1).cast());
                let (src, dst) = (src.add(unit_bytes::<V>()), dst.add(unit_bytes::<V>()));
                crypt_unit::<V, W, ROUNDS>(data_keys, ready, src, dst, &mut tweaks.next, ahead);
            }
            src = src.add(turn_bytes::<V>());
            dst = dst.add(turn_bytes::<V>());
        }
    }
}

/// Asks for the cache lines of a turn that is to come.
#[inline(always)]
unsafe fn fetch_turn<V>(src: *const u8, dst: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe {
        for line in 0..turn_bytes::<V>() / LINE_BYTES {
            fetch(src.add(line * LINE_BYTES), dst.add(line * LINE_BYTES));
        }
    }
}

/// Units of one turn of the loop: two if they fit into every sector. Half as many instructions then go into counting,
/// which is worth 3 % of AES-128 on Zen 3.
const fn turn_units<V>() -> usize {
    if 2 * unit_bytes::<V>() <= SECTOR_BYTES_MIN { 2 } else { 1 }
}

/// Turns between asking for data and its use.
const fn fetch_turns<V>() -> usize {
    FETCH_AHEAD_BYTES / turn_bytes::<V>()
}

const fn turn_bytes<V>() -> usize {
    turn_units::<V>() * unit_bytes::<V>()
}

const fn unit_bytes<V>() -> usize {
    IN_FLIGHT * size_of::<V>()
}

const fn unit_blocks<V: Vector>() -> usize {
    IN_FLIGHT * V::BLOCKS
}

/// `dst = E(src xor tweaks) xor tweaks` for one unit; and from the tweak `next` on, writes a unit of tweaks to `ahead`.
#[inline(always)]
unsafe fn crypt_unit<V: Vector, W: Way, const ROUNDS: usize>(
    keys: *const __m128i,
    tweaks: *const V,
    src: *const u8,
    dst: *mut u8,
    next: &mut Tweak,
    ahead: *mut [u64; 2],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let keys = forget_origin(keys);
        let (src, dst) = (centred::<V, _>(src), centred::<V, _>(dst).cast_mut());
        let (tweaks, ahead) = (centred::<V, _>(tweaks), centred::<V, _>(ahead).cast_mut());
        let whitening = V::broadcast(keys);
        let mut state = [whitening; IN_FLIGHT];
        for (i, vector) in state.iter_mut().enumerate() {
            *vector = V::load(src.add(i * size_of::<V>())).xor(whitening);
        }
        V::fence(&mut state, next);
        for (i, vector) in state.iter_mut().enumerate() {
            *vector = vector.xor(*tweaks.add(i));
        }
        // One call for each round: a loop would depend on the compiler's mood to unroll it.
        round::<V, W, ROUNDS, 1>(keys, &mut state, next, ahead);
        round::<V, W, ROUNDS, 2>(keys, &mut state, next, ahead);
        round::<V, W, ROUNDS, 3>(keys, &mut state, next, ahead);
        round::<V, W, ROUNDS, 4>(keys, &mut state, next, ahead);
        round::<V, W, ROUNDS, 5>(keys, &mut state, next, ahead);
        round::<V, W, ROUNDS, 6>(keys, &mut state, next, ahead);
        round::<V, W, ROUNDS, 7>(keys, &mut state, next, ahead);
        round::<V, W, ROUNDS, 8>(keys, &mut state, next, ahead);
        round::<V, W, ROUNDS, 9>(keys, &mut state, next, ahead);
        if ROUNDS == 14 {
            round::<V, W, ROUNDS, 10>(keys, &mut state, next, ahead);
            round::<V, W, ROUNDS, 11>(keys, &mut state, next, ahead);
            round::<V, W, ROUNDS, 12>(keys, &mut state, next, ahead);
            round::<V, W, ROUNDS, 13>(keys, &mut state, next, ahead);
        }
        // The last round ends with adding its key, so adding the tweak to the key saves doing it after.
        let last_key = V::broadcast(keys.add(ROUNDS));
        for (i, vector) in state.iter_mut().enumerate() {
            *vector = W::last_round(*vector, last_key.xor(*tweaks.add(i)));
        }
        for (i, vector) in state.iter().enumerate() {
            vector.store(dst.add(i * size_of::<V>()));
        }
    }
}

/// Round `ROUND` on each vector, and this round's share of the tweaks ahead.
#[inline(always)]
unsafe fn round<V: Vector, W: Way, const ROUNDS: usize, const ROUND: usize>(
    keys: *const __m128i,
    state: &mut [V; IN_FLIGHT],
    next: &mut Tweak,
    ahead: *mut [u64; 2],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let key = V::broadcast(keys.add(ROUND));
        let share = |part: usize| part * unit_blocks::<V>() / (ROUND_PARTS * (ROUNDS - 1));
        for part in 0..ROUND_PARTS {
            let vectors = part * IN_FLIGHT / ROUND_PARTS..(part + 1) * IN_FLIGHT / ROUND_PARTS;
            for vector in &mut state[vectors] {
                *vector = W::round(*vector, key);
            }
            let part = (ROUND - 1) * ROUND_PARTS + part;
            for i in share(part)..share(part + 1) {
                ahead.add(i).write([next.low, next.high]);
                next.double();
            }
            V::fence(state, next);
        }
    }
}

/// The same pointer to a unit, in a register that points to the unit's middle: the compiler reaches all of it with
/// offsets of one byte (-128 to 127) instead of four. A core takes in so many bytes of code at a time; with the longer
/// instructions, AES-128 takes 6 % longer on Zen 3.
#[inline(always)]
unsafe fn centred<V, T>(unit: *const T) -> *const T {
    let middle = unit_bytes::<V>() / 2;
    // SAFETY: the caller's promise: a unit is there.
    unsafe { forget_origin(unit.byte_add(middle)).byte_sub(middle) }
}

/// Where the making of tweaks has got to, [`AHEAD_UNITS`] ahead of their use.
struct Tweaks<'keys, V, const ROUNDS: usize> {
    /// The first tweak of the next unit.
    next: Tweak,
    turns_left_in_sector: usize,
    turns_in_sector: usize,
    /// Sectors of the run that have not begun.
    sectors_left: usize,
    /// Index of the next sector's first tweak.
    next_sector: usize,
    /// Two batches.
    first_tweaks: *mut __m128i,
    keys: &'keys RoundKeys,
    ivs: IvSequence,
    vector: std::marker::PhantomData<V>,
}

impl<'keys, V: Vector, const ROUNDS: usize> Tweaks<'keys, V, ROUNDS> {
    #[inline(always)]
    unsafe fn new(keys: &'keys RoundKeys, first_tweaks: *mut __m128i, run: &Run) -> Self {
        let mut tweaks = Self {
            next: Tweak { low: 0, high: 0 },
            turns_left_in_sector: 0,
            turns_in_sector: run.sector_bytes / turn_bytes::<V>(),
            sectors_left: run.sector_count,
            next_sector: 0,
            first_tweaks,
            keys,
            ivs: run.ivs,
            vector: std::marker::PhantomData,
        };
        // SAFETY: the caller's promise.
        unsafe {
            match run.sector_count.div_ceil(V::BLOCKS) {
                1 => tweaks.encrypt_batch::<1>(0),
                2..=4 => tweaks.encrypt_batch::<4>(0),
                _ => tweaks.encrypt_batch::<IN_FLIGHT>(0),
            }
        }
        tweaks
    }

    /// Moves on to the next sector when one is done, so that `next` is the next turn's first tweak.
    #[inline(always)]
    unsafe fn next_turn(&mut self) {
        if self.turns_left_in_sector == 0 {
            // SAFETY: the caller's promise.
            unsafe { self.begin_sector() };
            self.turns_left_in_sector = self.turns_in_sector;
        }
        self.turns_left_in_sector -= 1;
    }

    /// Takes up the first tweak of the next sector. Behind the last sector any tweaks do, as nobody uses them.
    #[inline(always)]
    unsafe fn begin_sector(&mut self) {
        if self.sectors_left == 0 {
            return;
        }
        self.sectors_left -= 1;
        let batch_sectors = unit_blocks::<V>();
        // SAFETY: the caller's promise; the index is taken within the two batches.
        unsafe {
            // The next batch is made one sector early, while there is other work to fill the time: made on demand, it
            // costs 7 % with sectors of 512 bytes.
            if self.next_sector % batch_sectors == batch_sectors - 2 && self.sectors_left > 1 {
                self.encrypt_batch::<IN_FLIGHT>((self.next_sector + 2) % (2 * batch_sectors));
            }
            let first = self.first_tweaks.add(self.next_sector % (2 * batch_sectors));
            let [low, high] = forget_origin(first).cast::<[u64; 2]>().read();
            self.next = Tweak { low, high };
        }
        self.next_sector += 1;
    }

    /// Writes the first tweaks of the next `N * V::BLOCKS` sectors, at `index` of the first tweaks.
    ///
    /// A sector's first tweak takes all rounds of AES before any of its data can begin. For one sector at a time that
    /// would be half of the time of 512 bytes; for many at a time it is what one vector of data takes.
    #[inline(always)]
    unsafe fn encrypt_batch<const N: usize>(&mut self, index: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let place = self.first_tweaks.add(index);
            let keys = forget_origin(self.keys.as_ptr());
            let place = place.cast::<V>();
            let layout = self.ivs.layout();
            let whitening = V::broadcast(keys);
            let mut state = [whitening; N];
            for vector in state.iter_mut() {
                *vector = V::ivs(self.ivs.skip(V::BLOCKS as u64), layout).xor(whitening);
            }
            for round in 1..ROUNDS {
                let key = V::broadcast(keys.add(round));
                for vector in state.iter_mut() {
                    *vector = Encrypt::round(*vector, key);
                }
            }
            let last_key = V::broadcast(keys.add(ROUNDS));
            for (i, vector) in state.iter().enumerate() {
                place.add(i).write(Encrypt::last_round(*vector, last_key));
            }
        }
    }

    /// Writes the next unit's tweaks by vector instructions: 20 cycles instead of 80 until the first data can begin.
    #[inline(always)]
    unsafe fn expand_unit(&mut self, to: *mut V) {
        // SAFETY: the caller's promise.
        unsafe {
            let spread = V::spread(self.next);
            for i in 0..IN_FLIGHT {
                to.add(i).write(spread.times_x_to((i * V::BLOCKS) as u32));
            }
        }
        self.next = self.next.times_x_to(unit_blocks::<V>() as u32);
    }
}

/// Rounds of AES on a unit of vectors and nothing else, which is the limit of what [`crypt`] can reach: at least
/// `count` instructions. Returns how many they were.
///
/// # Safety
/// The caller enables the instructions of `V`.
#[inline(always)]
pub(super) unsafe fn run_aes<V: Vector>(count: usize) -> usize {
    const ROUNDS: usize = 16;
    let turns = count.div_ceil(ROUNDS * IN_FLIGHT);
    let zero = [0_u8; 16];
    // SAFETY: the caller's promise; a vector is filled from 16 bytes, which need no alignment when read by value.
    unsafe {
        let zero = zero.as_ptr().cast::<__m128i>().read_unaligned();
        let key = V::broadcast(&raw const zero);
        let mut state = [key; IN_FLIGHT];
        let mut unused = Tweak { low: 0, high: 0 };
        for _ in 0..turns {
            for _ in 0..ROUNDS {
                for vector in &mut state {
                    *vector = vector.encrypt(key);
                }
                V::fence(&mut state, &mut unused);
            }
        }
    }
    turns * ROUNDS * IN_FLIGHT
}
