//! Writes the known answers that the image compares with, computed by the `xts-mode` crate on the machine that builds.

use std::path::Path;

use aes::cipher::KeyInit;
use xts_mode::{Xts128, get_tweak_default};

fn main() {
    println!("cargo::rerun-if-changed=known_answers.rs");
    let mut file = Vec::new();
    for key_bytes in [32, 64] {
        for (sector_bytes, counts) in [(512, &[1, 2, 3, 17, 33, 65][..]), (4096, &[1, 2, 9])] {
            for &sector_count in counts {
                // So that numbers pass 2^32 on the way.
                let first = (1_u64 << 32) - 2;
                let mut data: Vec<u8> = (0..sector_bytes * sector_count).map(|i| (i % 251) as u8).collect();
                let key: Vec<u8> = (0..key_bytes).map(|i| i as u8 * 7 + sector_count as u8).collect();
                encrypt(&key, sector_bytes, first, &mut data);
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

fn encrypt(key: &[u8], sector_bytes: usize, first: u64, data: &mut [u8]) {
    let (k1, k2) = key.split_at(key.len() / 2);
    let first = u128::from(first);
    if key.len() == 32 {
        let expand = |half| aes::Aes128::new_from_slice(half).expect("16 bytes");
        Xts128::new(expand(k1), expand(k2)).encrypt_area(data, sector_bytes, first, get_tweak_default);
    } else {
        let expand = |half| aes::Aes256::new_from_slice(half).expect("32 bytes");
        Xts128::new(expand(k1), expand(k2)).encrypt_area(data, sector_bytes, first, get_tweak_default);
    }
}
