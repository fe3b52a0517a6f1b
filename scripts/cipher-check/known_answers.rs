//! Writes the known answers that the check compares with, computed by the `xts-mode` crate on the machine that builds.

use std::path::Path;

use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser, KeyInit, consts::U16};
use xts_mode::Xts128;

/// Sector sizes with numbers of sectors: single ones, the borders of batches of the widest vectors, and beyond.
const RUNS: [(usize, &[usize]); 4] = [(512, &[1, 2, 17, 33]), (1024, &[3]), (2048, &[2]), (4096, &[1, 2])];

fn main() {
    println!("cargo::rerun-if-changed=known_answers.rs");
    let mut file = Vec::new();
    for key_bytes in [32, 64] {
        for (sector_bytes, counts) in RUNS {
            for &sector_count in counts {
                let units = (sector_bytes / 512) as u64;
                // So that numbers pass 2^32 on the way.
                let first = (1_u64 << 32) - units;
                let mut data: Vec<u8> = (0..sector_bytes * sector_count).map(|i| (i % 251) as u8).collect();
                let key: Vec<u8> = (0..key_bytes).map(|i| (i * 7 + sector_count) as u8).collect();
                let (k1, k2) = key.split_at(key.len() / 2);
                match key_bytes {
                    32 => encrypt(aes128(k1), aes128(k2), sector_bytes, first, &mut data),
                    _ => encrypt(aes256(k1), aes256(k2), sector_bytes, first, &mut data),
                }
                for number in [key_bytes, sector_bytes, sector_count] {
                    file.extend((number as u32).to_le_bytes());
                }
                file.extend(first.to_le_bytes());
                file.extend(key);
                file.extend(data);
            }
        }
    }
    let folder = std::env::var("OUT_DIR").expect("Cargo says where to");
    std::fs::write(Path::new(&folder).join("known_answers"), file).expect("the folder is there");
}

fn aes128(key: &[u8]) -> aes::Aes128 {
    aes::Aes128::new_from_slice(key).expect("16 bytes")
}

fn aes256(key: &[u8]) -> aes::Aes256 {
    aes::Aes256::new_from_slice(key).expect("32 bytes")
}

/// Numbers count 512-byte units, as dm-crypt's do.
fn encrypt<C>(k1: C, k2: C, sector_bytes: usize, first: u64, data: &mut [u8])
where
    C: BlockSizeUser<BlockSize = U16> + BlockCipherEncrypt + BlockCipherDecrypt,
{
    let xts = Xts128::new(k1, k2);
    for (i, sector) in data.chunks_exact_mut(sector_bytes).enumerate() {
        let number = first + (i * sector_bytes / 512) as u64;
        let tweak: Array<u8, U16> = u128::from(number).to_le_bytes().into();
        xts.encrypt_sector(sector, tweak);
    }
}
