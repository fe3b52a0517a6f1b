//! Where key bytes are, and where they are not.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::mpsc;
use std::thread;

use zeroize::{Zeroize, Zeroizing};

use super::*;
use crate::locked::wipe_dead_stack;

/// The complement of each 16-byte part of a key, so that the process holds a pattern to look for without
/// holding what it looks for.
type Complement = [[u8; 16]; 4];

#[inline(never)]
fn random_key() -> (VolumeKey, Complement) {
    let mut complement = [[0; 16]; 4];
    File::open("/dev/urandom").unwrap().read_exact(complement.as_flattened_mut()).unwrap();
    let mut bytes: [u8; 64] = std::array::from_fn(|i| !complement[i / 16][i % 16]);
    let key = VolumeKey::new(&bytes, EqualHalves::Refuse).unwrap();
    bytes.zeroize();
    (key, complement)
}

/// Writable memory of this process that is not locked, as address ranges.
fn unlocked_memory() -> Vec<(u64, u64)> {
    let mut ranges = Vec::new();
    let mut current = None;
    for line in fs::read_to_string("/proc/self/smaps").unwrap().lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            let has = |wanted: &str| flags.split(' ').any(|flag| flag == wanted);
            ranges.extend(current.take().filter(|_| has("rd") && has("wr") && !has("lo") && !has("io")));
        } else if let Some((start, end)) = line.split(' ').next().and_then(|range| range.split_once('-')) {
            current = u64::from_str_radix(start, 16).ok().zip(u64::from_str_radix(end, 16).ok());
        }
    }
    ranges
}

/// How often a part of the key lies in memory that is not locked.
fn copies_in_unlocked_memory(complement: &Complement) -> usize {
    let memory = File::open("/proc/self/mem").unwrap();
    let mut piece = vec![0; 1 << 20];
    let mut copies = 0;
    for (start, end) in unlocked_memory() {
        for address in (start..end).step_by(piece.len()) {
            let wanted = piece.len().min((end - address) as usize);
            // Pieces that went away meanwhile, or cannot be read, hold nothing.
            let Ok(len) = memory.read_at(&mut piece[..wanted], address) else { continue };
            // Keys and their copies are aligned to words at least.
            copies +=
                piece[..len].windows(16).step_by(4).filter(|window| is_part(window, complement)).count();
        }
    }
    copies
}

fn is_part(window: &[u8], complement: &Complement) -> bool {
    complement.iter().any(|part| part.iter().zip(window).all(|(a, b)| *a == !*b))
}

/// The key and cipher are made and used by a thread that then only waits: what it leaves on its stack stays there, as
/// the searching thread uses another.
fn check_for_copies(kernel: KernelChoice) {
    let (made, wait_for_made) = mpsc::sync_channel(1);
    let (finish, wait_for_finish) = mpsc::sync_channel::<()>(1);
    thread::scope(|scope| {
        scope.spawn(move || {
            let (key, complement) = random_key();
            // Clears away the test's own traces: those of the cipher come after.
            wipe_dead_stack();
            let xts = Xts::with_kernel(&key, SectorSize::BYTES_512, plain64(0), kernel).unwrap();
            // The code of the `aes` crate that an AVX-512 machine gets keeps round keys on its stack: see `portable`.
            if kernel != KernelChoice::Portable {
                let mut data = vec![0x5a; 512 * 100];
                xts.encrypt_in_place(SectorNumber(0), &mut data);
                xts.decrypt_in_place(SectorNumber(0), &mut data);
            }
            made.send((key, xts, complement)).unwrap();
            let _ = wait_for_finish.recv();
        });
        let (key, _xts, complement) = wait_for_made.recv().unwrap();
        assert_eq!(copies_in_unlocked_memory(&complement), 0, "{kernel}");

        // The search does find what there is to find.
        let _copy = Zeroizing::new(key.halves().0.to_vec());
        assert!(copies_in_unlocked_memory(&complement) > 0);
        drop(finish);
    });
}

/// The first round keys are the key itself, so this sees round keys that a kernel has spilled too.
#[test]
fn neither_making_nor_using_a_cipher_leaves_a_copy_of_its_key_outside_locked_memory() {
    available_kernels().for_each(check_for_copies);
}

#[test]
fn debug_shows_no_key_bytes() {
    let key = VolumeKey::new(&key_bytes::<64>(), EqualHalves::Refuse).unwrap();
    assert_eq!(format!("{key:?}"), "VolumeKey([redacted], 512 bits)");
    let xts = Xts::new(&key, SectorSize::BYTES_512, plain64(0)).unwrap();
    let shown = format!("{xts:?}");
    assert!(shown.starts_with("Xts { kernel: "), "{shown}");
}
