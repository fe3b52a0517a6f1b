//! The AVX-512 kernel on no operating system at all, so that an emulator can run it: known answers in, "RESULT" out.
//!
//! The kernel's own files are compiled as they are. Around them stands just enough of the crate and of `std`.
#![no_std]
#![no_main]
#![allow(dead_code, reason = "the check uses a part of what it includes")]

extern crate self as std;

pub use core::{arch, marker, mem};

use core::arch::{asm, global_asm};
use core::slice;

use keys::KeySchedule;
use vector::{Decrypt, Encrypt};

/// `std::io`.
pub mod io {
    /// Nothing fails here.
    pub type Result<T> = core::result::Result<T, core::convert::Infallible>;
}

mod locked {
    pub(crate) struct Locked<T>(T);

    impl<T> Locked<T> {
        pub(crate) fn new(make: impl FnOnce() -> T) -> crate::io::Result<Self> {
            Ok(Self(make()))
        }
    }

    impl<T> core::ops::Deref for Locked<T> {
        type Target = T;
        fn deref(&self) -> &T {
            &self.0
        }
    }
}

/// The emulated CPU is one that has everything.
#[macro_export]
macro_rules! is_x86_feature_detected {
    ($feature:literal) => {
        true
    };
}

mod cipher {
    #[derive(Clone, Copy)]
    pub(crate) struct Run {
        pub(crate) src: *const u8,
        pub(crate) dst: *mut u8,
        pub(crate) sector_count: usize,
        pub(crate) sector_bytes: usize,
        pub(crate) ivs: iv::IvSequence,
    }

    /// Numbers that count sectors, as plain64.
    pub(crate) mod iv {
        #[derive(Clone, Copy)]
        pub(crate) struct IvSequence(pub(crate) u64);

        #[derive(Clone, Copy)]
        pub(crate) struct Positions {
            pub(crate) first: u64,
            pub(crate) step: u64,
            pub(crate) shift: u32,
        }

        impl IvSequence {
            pub(crate) fn skip(&mut self, count: u64) -> Positions {
                let first = self.0;
                self.0 = first.wrapping_add(count);
                Positions { first, step: 1, shift: 0 }
            }

            pub(crate) fn layout(&self) -> &'static [u8; 16] {
                &[0, 1, 2, 3, 4, 5, 6, 7, 128, 128, 128, 128, 128, 128, 128, 128]
            }
        }
    }
}

/// Proof that the CPU has been asked.
pub(crate) struct Width;

#[path = "../../../src/cipher/x86/keys.rs"]
mod keys;
#[path = "../../../src/cipher/x86/pipeline.rs"]
mod pipeline;
#[path = "../../../src/cipher/x86/vaes512.rs"]
mod vaes512;
#[path = "../../../src/cipher/x86/vector.rs"]
mod vector;

/// RAM that nothing else lies in.
const SCRATCH: *mut u8 = 0x20_0000 as *mut u8;

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
        u32::from_le_bytes(self.bytes(4).try_into().unwrap()) as usize
    }
}

#[unsafe(no_mangle)]
extern "C" fn check() -> ! {
    let mut reader = Reader(KNOWN_ANSWERS);
    let (mut right, mut wrong) = (0, 0);
    while !reader.0.is_empty() {
        let (key_bytes, sector_bytes, sector_count) = (reader.number(), reader.number(), reader.number());
        let first = u64::from_le_bytes(reader.bytes(8).try_into().unwrap());
        let (data_key, tweak_key) = reader.bytes(key_bytes).split_at(key_bytes / 2);
        let ciphertext = reader.bytes(sector_bytes * sector_count);
        // SAFETY: the only slice of this memory.
        let data = unsafe { slice::from_raw_parts_mut(SCRATCH, ciphertext.len()) };
        data.iter_mut().enumerate().for_each(|(i, byte)| *byte = (i % 251) as u8);
        let run = cipher::Run {
            src: data.as_ptr(),
            dst: data.as_mut_ptr(),
            sector_count,
            sector_bytes,
            ivs: cipher::iv::IvSequence(first),
        };
        // SAFETY: the run is `data`, and the CPU has AVX-512.
        let is_right = unsafe {
            if key_bytes == 32 {
                turn::<10>(data_key, tweak_key, run, ciphertext, data)
            } else {
                turn::<14>(data_key, tweak_key, run, ciphertext, data)
            }
        };
        if is_right { right += 1 } else { wrong += 1 }
    }
    print(b"RESULT right ");
    print_number(right);
    print(b" wrong ");
    print_number(wrong);
    print(b"\n");
    power_off()
}

/// Encrypts, compares, decrypts, and compares with what there was.
unsafe fn turn<const ROUNDS: usize>(
    data_key: &[u8],
    tweak_key: &[u8],
    run: cipher::Run,
    ciphertext: &[u8],
    data: &[u8],
) -> bool {
    let Ok(keys) = KeySchedule::<ROUNDS>::locked(Width, data_key, tweak_key);
    // SAFETY: the caller's promise.
    unsafe { vaes512::crypt::<Encrypt, ROUNDS>(&keys, run) };
    let is_encrypted = data == ciphertext;
    // SAFETY: the caller's promise.
    unsafe { vaes512::crypt::<Decrypt, ROUNDS>(&keys, run) };
    is_encrypted && data.iter().enumerate().all(|(i, byte)| *byte == (i % 251) as u8)
}

fn out(port: u16, byte: u8) {
    // SAFETY: ports of the emulator.
    unsafe { asm!("out dx, al", in("dx") port, in("al") byte, options(nomem, nostack)) }
}

fn print(text: &[u8]) {
    text.iter().for_each(|byte| out(0xe9, *byte));
}

fn print_number(number: u32) {
    if number >= 10 {
        print_number(number / 10);
    }
    out(0xe9, b'0' + (number % 10) as u8);
}

fn power_off() -> ! {
    b"Shutdown".iter().for_each(|byte| out(0x8900, *byte));
    loop {
        // SAFETY: nothing is left to do.
        unsafe { asm!("hlt") }
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    print(b"PANIC\n");
    power_off()
}

// What the compiler calls: in assembly, as a loop in Rust would be turned into a call to itself.
global_asm!(
    ".section .start, \"ax\"",
    ".globl _start, memcpy, memmove, memset, memcmp, bcmp",
    "_start: jmp check",
    "memmove:",
    "memcpy: mov rax, rdi",
    "mov rcx, rdx",
    "rep movsb",
    "ret",
    "memset: mov r8, rdi",
    "mov eax, esi",
    "mov rcx, rdx",
    "rep stosb",
    "mov rax, r8",
    "ret",
    "bcmp:",
    "memcmp: xor eax, eax",
    "mov rcx, rdx",
    "cmp eax, eax",
    "repe cmpsb",
    "setne al",
    "ret",
);
