//! AES-XTS over the `aes` crate's block-parallel interface: for any machine, without tables, in constant
//! time.
//!
//! Works in batches of whole sectors through a private scratch: `scratch = source xor tweaks`, AES over the
//! whole scratch at once, `destination = scratch xor tweaks`.
//!
//! What the `aes` crate does with its registers is beyond us: on CPUs with VAES and AVX-512, its code keeps copies of
//! round keys on the stack, where they stay. No such CPU gets this kernel unless it is asked for by name.

use std::io;
use std::mem::MaybeUninit;

use aes::cipher::consts::U16;
use aes::cipher::{Block, BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser, KeyInit};

use super::{Direction, Run};
use crate::locked::Locked;

/// Bytes of an AES block; this many bytes alone need no alignment.
const BLOCK_BYTES: usize = 16;

/// Blocks of one batch: one of the largest sectors.
const BATCH_BLOCKS: usize = 4096 / BLOCK_BYTES;

/// Sectors of one batch: as many of the smallest sectors as fit.
const BATCH_SECTORS: usize = 8;

/// `K1` and `K2`, expanded.
pub(super) struct KeySchedule<C> {
    data: C,
    tweak: C,
}

impl<C> KeySchedule<C>
where
    C: KeyInit + BlockSizeUser<BlockSize = U16> + BlockCipherEncrypt + BlockCipherDecrypt,
{
    /// Expands both keys, each as long as `C` wants it, into locked memory.
    pub(super) fn locked(data_key: &[u8], tweak_key: &[u8]) -> io::Result<Locked<Self>> {
        Locked::new(|| Self::new(data_key, tweak_key))
    }

    fn new(data_key: &[u8], tweak_key: &[u8]) -> Self {
        let expand = |key| C::new_from_slice(key).expect("the key's length chose the cipher");
        Self { data: expand(data_key), tweak: expand(tweak_key) }
    }

    /// Turns the sectors of `run`, none of which is larger than 4096 bytes.
    ///
    /// The scratch is not wiped at the end, which would cost a tenth of the time of a 4-KiB run: what it
    /// holds lies in the caller's buffers as well, and these are no better protected than this stack.
    ///
    /// # Safety
    /// As for [`Xts::encrypt`](super::Xts::encrypt), for the sectors of `run`.
    pub(super) unsafe fn crypt(&self, direction: Direction, mut run: Run) {
        let sector_blocks = run.sector_bytes / BLOCK_BYTES;
        // Not zeroed either, for the same reason.
        let mut scratch = [const { MaybeUninit::<Block<C>>::uninit() }; BATCH_BLOCKS];
        let mut tweaks = [const { MaybeUninit::<u128>::uninit() }; BATCH_BLOCKS];
        while run.sector_count > 0 {
            let sectors = run.sector_count.min(BATCH_BLOCKS / sector_blocks).min(BATCH_SECTORS);
            let blocks = sectors * sector_blocks;
            let (scratch, tweaks) = (&mut scratch[..blocks], &mut tweaks[..blocks]);

            let mut first_tweaks = [Block::<C>::default(); BATCH_SECTORS];
            let first_tweaks = &mut first_tweaks[..sectors];
            first_tweaks.iter_mut().for_each(|block| block.0 = run.ivs.next_iv());
            self.tweak.encrypt_blocks(first_tweaks);

            // SAFETY: `scratch` is as long as the next `sectors` sectors of the run, which the caller vouches
            // for; `load` fills it and `tweaks` to their ends.
            let (scratch, tweaks) = unsafe {
                load(run.src, scratch, tweaks, first_tweaks.iter().map(|block| block.0));
                (scratch.assume_init_mut(), tweaks.assume_init_ref())
            };
            match direction {
                Direction::Encrypt => self.data.encrypt_blocks(scratch),
                Direction::Decrypt => self.data.decrypt_blocks(scratch),
            }
            // SAFETY: as above.
            unsafe { store(run.dst, scratch, tweaks) };

            // SAFETY: at most one past the end of what the caller vouches for.
            unsafe {
                run.src = run.src.add(blocks * BLOCK_BYTES);
                run.dst = run.dst.add(blocks * BLOCK_BYTES);
            }
            run.sector_count -= sectors;
        }
    }
}

/// Fills `tweaks`, for sectors of equal length that begin with `first_tweaks`, and `scratch` with the source
/// under these tweaks, to their ends. Both in one loop: the chain of doublings leaves time for the rest.
///
/// # Safety
/// `src` is valid for reads of as many blocks as `scratch` and `tweaks` have. Others may write there.
unsafe fn load<B: From<[u8; BLOCK_BYTES]>>(
    src: *const u8,
    scratch: &mut [MaybeUninit<B>],
    tweaks: &mut [MaybeUninit<u128>],
    first_tweaks: impl ExactSizeIterator<Item = [u8; BLOCK_BYTES]>,
) {
    assert!(scratch.len() == tweaks.len() && scratch.len().is_multiple_of(first_tweaks.len()));
    let sector_blocks = scratch.len() / first_tweaks.len();
    let mut src = src.cast::<[u8; BLOCK_BYTES]>();
    let sectors = scratch.chunks_exact_mut(sector_blocks).zip(tweaks.chunks_exact_mut(sector_blocks));
    for ((scratch, tweaks), first_tweak) in sectors.zip(first_tweaks) {
        let mut tweak = u128::from_le_bytes(first_tweak);
        for (block, slot) in scratch.iter_mut().zip(tweaks) {
            // SAFETY: one step for each block of `scratch`. If another writes there at the same time, any
            // bytes may come of it: all bytes are equally good, and none is looked at twice.
            let source = unsafe { src.read() };
            // SAFETY: at most one past the last block.
            src = unsafe { src.add(1) };
            block.write((u128::from_le_bytes(source) ^ tweak).to_le_bytes().into());
            slot.write(tweak);
            tweak = double(tweak);
        }
    }
}

/// Writes `scratch` under `tweaks` to the destination.
///
/// # Safety
/// `dst` is valid for writes of as many blocks as `scratch` and `tweaks` have. Others may write there.
unsafe fn store<B: Copy + Into<[u8; BLOCK_BYTES]>>(dst: *mut u8, scratch: &[B], tweaks: &[u128]) {
    let dst = dst.cast::<[u8; BLOCK_BYTES]>();
    for (i, (block, tweak)) in scratch.iter().zip(tweaks).enumerate() {
        let result = (u128::from_le_bytes((*block).into()) ^ tweak).to_le_bytes();
        // SAFETY: `i` is below the number of blocks.
        unsafe { dst.add(i).write(result) };
    }
}

/// `tweak * x` in GF(2^128) modulo `x^128 + x^7 + x^2 + x + 1`, without a branch.
fn double(tweak: u128) -> u128 {
    let carry_mask = (tweak.cast_signed() >> 127).cast_unsigned();
    (tweak << 1) ^ (carry_mask & 0x87)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cipher::{IvMode, IvNumbering};
    use crate::geometry::{SectorNumber, SectorSize};

    /// Touches neither locked memory nor foreign code, and little data, so that Miri can watch the pointers:
    /// `RUSTFLAGS='--cfg aes_backend="soft"' cargo +nightly miri test --lib cipher::portable`
    #[test]
    fn batches_join_and_places_do_not_matter() {
        let keys = KeySchedule::<aes::Aes128>::new(&[1; 16], &[2; 16]);
        let numbering = IvNumbering { mode: IvMode::Plain64, offset_sectors: 0, large_sectors: false };
        let sector_count = BATCH_SECTORS + 1;
        let plaintext: Vec<u8> = (0..sector_count * 512).map(|i| i as u8).collect();
        let run = |src, dst| Run {
            src,
            dst,
            sector_count,
            sector_bytes: 512,
            ivs: numbering.sequence(SectorSize::BYTES_512, SectorNumber(7)),
        };

        let mut expected = plaintext.clone();
        let reference = xts_mode::Xts128::new(
            aes::Aes128::new_from_slice(&[1; 16]).unwrap(),
            aes::Aes128::new_from_slice(&[2; 16]).unwrap(),
        );
        reference.encrypt_area(&mut expected, 512, 7, xts_mode::get_tweak_default);

        let mut in_place = plaintext.clone();
        let start = in_place.as_mut_ptr();
        // SAFETY: one buffer of `sector_count` sectors is both sides.
        unsafe { keys.crypt(Direction::Encrypt, run(start, start)) };
        assert!(in_place == expected);

        let mut unaligned = vec![0; plaintext.len() + 1];
        // SAFETY: two buffers of `sector_count` sectors, one of them an odd byte into its allocation.
        unsafe { keys.crypt(Direction::Decrypt, run(in_place.as_ptr(), unaligned.as_mut_ptr().add(1))) };
        assert!(unaligned[1..] == plaintext);
    }
}
