//! The cipher's own source, compiled as it is, against known answers of another implementation: small enough for
//! emulated machines and interpreters, where the package itself cannot be built.
//!
//! `cipher-check KERNEL...` checks these kernels, and fails when the CPU cannot run one of them.
#![allow(dead_code, unused_imports, reason = "the check uses a part of what it includes")]

use std::process::ExitCode;

use cipher::{EqualHalves, IvMode, IvNumbering, KernelChoice, VolumeKey, Xts};
use geometry::{SectorNumber, SectorSize};

#[path = "../../../src/cipher/mod.rs"]
mod cipher;
#[path = "../../../src/geometry.rs"]
mod geometry;

#[path = "../../data-path-check/src/locked.rs"]
mod locked;

static KNOWN_ANSWERS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/known_answers"));

/// Takes bytes from the front of the known answers.
struct Reader(&'static [u8]);

impl Reader {
    fn bytes(&mut self, len_bytes: usize) -> &'static [u8] {
        let (bytes, rest) = self.0.split_at(len_bytes);
        self.0 = rest;
        bytes
    }

    fn number(&mut self) -> usize {
        u32::from_le_bytes(self.bytes(4).try_into().expect("four bytes")) as usize
    }
}

/// Encrypts apart, into memory that is not aligned, and decrypts in place.
fn is_right(xts: &Xts, first: SectorNumber, ciphertext: &[u8]) -> bool {
    let plaintext: Vec<u8> = (0..ciphertext.len()).map(|i| (i % 251) as u8).collect();
    let mut unaligned = vec![0; ciphertext.len() + 1];
    xts.encrypt_to(first, &plaintext, &mut unaligned[1..]);
    let is_encrypted = unaligned[1..] == *ciphertext;
    let mut data = ciphertext.to_vec();
    xts.decrypt_in_place(first, &mut data);
    is_encrypted && data == plaintext
}

fn main() -> ExitCode {
    let kernels: Vec<KernelChoice> =
        std::env::args().skip(1).map(|name| name.parse().expect("the name of a kernel")).collect();
    println!("AES instructions: {}", if has_aes_instructions() { "yes" } else { "no" });
    let (mut passed, mut failed) = (0, 0);
    for kernel in kernels {
        let mut reader = Reader(KNOWN_ANSWERS);
        while !reader.0.is_empty() {
            let (key_bytes, sector_bytes, sector_count) = (reader.number(), reader.number(), reader.number());
            let first = u64::from_le_bytes(reader.bytes(8).try_into().expect("eight bytes"));
            let key = VolumeKey::new(reader.bytes(key_bytes), EqualHalves::Refuse).expect("a good key");
            let sector_size = SectorSize::new(sector_bytes as u32).expect("a sector size");
            let iv = IvNumbering { mode: IvMode::Plain64, offset_sectors: 0, large_sectors: false };
            let xts = Xts::with_kernel(&key, sector_size, iv, kernel).expect("a kernel for this CPU");
            let ciphertext = reader.bytes(sector_bytes * sector_count);
            if is_right(&xts, SectorNumber(first), ciphertext) {
                passed += 1;
            } else {
                failed += 1;
                println!("{kernel}: {key_bytes} bytes of key, {sector_count} x {sector_bytes} bytes: wrong");
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    if passed > 0 && failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn has_aes_instructions() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("aes")
    }
    #[cfg(target_arch = "aarch64")]
    {
        std::arch::is_aarch64_feature_detected!("aes")
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        false
    }
}
