//! The kernels without locked memory and with little data, so that Miri can watch the pointers. It takes the flags of the
//! widths to be watched, and interprets everything but the assembly, which is replaced:
//!
//! ```text
//! RUSTFLAGS='-C target-feature=+aes,+avx2,+bmi2,+pclmulqdq,+vaes,+vpclmulqdq --cfg aes_backend="soft"' \
//!     cargo +nightly miri test --lib cipher::x86
//! ```

use aes::cipher::KeyInit;
use xts_mode::{Xts128, get_tweak_default};

use super::*;
use crate::cipher::{IvMode, IvNumbering};
use crate::geometry::{SectorNumber, SectorSize};

/// Enough for a second batch of first tweaks of the narrower vectors.
const SECTOR_COUNT: usize = 18;

fn check<const ROUNDS: usize>(width: Width, key: &[u8], plaintext: &[u8], ciphertext: &[u8]) {
    let (data_key, tweak_key) = key.split_at(key.len() / 2);
    // SAFETY: a CPU with any width of vectors has AES-NI.
    let keys = unsafe { KeySchedule::<ROUNDS>::expand(data_key, tweak_key) };
    let numbering = IvNumbering { mode: IvMode::Plain64, offset_sectors: 0, large_sectors: false };
    let ivs = numbering.sequence(SectorSize::BYTES_512, SectorNumber(7));
    let run = |src, dst| Run { src, dst, sector_count: SECTOR_COUNT, sector_bytes: 512, ivs };

    let mut in_place = plaintext.to_vec();
    let start = in_place.as_mut_ptr();
    // SAFETY: one buffer of `SECTOR_COUNT` sectors is both sides.
    unsafe { width.crypt(&keys, Direction::Encrypt, run(start, start)) };
    assert!(in_place == ciphertext, "{width:?}");

    let mut unaligned = vec![0; plaintext.len() + 1];
    // SAFETY: two buffers of `SECTOR_COUNT` sectors, one of them an odd byte into its allocation.
    unsafe {
        let dst = unaligned.as_mut_ptr().add(1);
        width.crypt(&keys, Direction::Decrypt, run(in_place.as_ptr(), dst));
    }
    assert!(unaligned[1..] == *plaintext, "{width:?}");
}

fn widths() -> Vec<Width> {
    let widths: Vec<_> = [Width::aesni(), Width::vaes256(), Width::vaes512()].into_iter().flatten().collect();
    assert!(!widths.is_empty() || !cfg!(miri), "no width to watch: see the head of this file");
    widths
}

#[test]
fn aes_128_in_place_and_apart() {
    let key: [u8; 32] = std::array::from_fn(|i| i as u8);
    let plaintext: Vec<u8> = (0..SECTOR_COUNT * 512).map(|i| i as u8).collect();
    let mut ciphertext = plaintext.clone();
    let expand = |half| aes::Aes128::new_from_slice(half).unwrap();
    let reference = Xts128::new(expand(&key[..16]), expand(&key[16..]));
    reference.encrypt_area(&mut ciphertext, 512, 7, get_tweak_default);
    widths().into_iter().for_each(|width| check::<10>(width, &key, &plaintext, &ciphertext));
}

#[test]
fn aes_256_in_place_and_apart() {
    let key: [u8; 64] = std::array::from_fn(|i| i as u8);
    let plaintext: Vec<u8> = (0..SECTOR_COUNT * 512).map(|i| i as u8).collect();
    let mut ciphertext = plaintext.clone();
    let expand = |half| aes::Aes256::new_from_slice(half).unwrap();
    let reference = Xts128::new(expand(&key[..32]), expand(&key[32..]));
    reference.encrypt_area(&mut ciphertext, 512, 7, get_tweak_default);
    widths().into_iter().for_each(|width| check::<14>(width, &key, &plaintext, &ciphertext));
}
