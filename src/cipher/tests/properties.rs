//! Any key, numbering, length and place, against two other implementations of XTS.

use aes::cipher::{Array, BlockCipherEncrypt, BlockSizeUser, KeyInit, consts::U16};
use aes::{Aes128, Aes256};
use openssl::cipher::Cipher;
use openssl::cipher_ctx::CipherCtx;
use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
struct Case {
    key: Vec<u8>,
    sector_size: SectorSize,
    iv: IvNumbering,
    first: SectorNumber,
    sector_count: usize,
    /// Where source and destination begin in their buffers: nothing needs to be aligned.
    src_start: usize,
    dst_start: usize,
    seed: u64,
}

/// Small, near the ends of 32 bits (in sectors of 512 and of 4096 bytes) and of 64, or anything.
fn sector_number() -> impl Strategy<Value = u64> {
    let near = |n: u64| (0..2000_u64).prop_map(move |distance| n.wrapping_sub(1000).wrapping_add(distance));
    prop_oneof![0..1000_u64, near(1 << 32), near(1 << 35), near(0), any::<u64>()]
}

fn case() -> impl Strategy<Value = Case> {
    let key = prop_oneof![prop::collection::vec(any::<u8>(), 32), prop::collection::vec(any::<u8>(), 64)];
    let mode = prop::sample::select(vec![IvMode::Plain, IvMode::Plain64, IvMode::Plain64Be]);
    let sector_bytes = prop::sample::select(vec![512, 1024, 2048, 4096]);
    let place = (sector_number(), sector_number(), 1..=300_usize, 0..17_usize, 0..17_usize);
    (key, mode, any::<bool>(), sector_bytes, place, any::<u64>()).prop_map(
        |(key, mode, large_sectors, sector_bytes, place, seed)| {
            let (offset, first, sector_count, src_start, dst_start) = place;
            let sector_size = SectorSize::new(sector_bytes).unwrap();
            let aligned = |n: u64| n / sector_size.units() * sector_size.units();
            let iv = IvNumbering { mode, offset_sectors: aligned(offset), large_sectors };
            let first = SectorNumber(aligned(first));
            Case { key, sector_size, iv, first, sector_count, src_start, dst_start, seed }
        },
    )
}

fn noise(mut seed: u64, len_bytes: usize) -> Vec<u8> {
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 56) as u8
    };
    (0..len_bytes).map(|_| next()).collect()
}

/// The IV of the case's sector `i`, as dm-crypt's documentation has it.
fn reference_iv(case: &Case, i: usize) -> [u8; 16] {
    let units = u128::from(case.sector_size.bytes() / 512);
    let position = u128::from(case.first.0) + u128::from(case.iv.offset_sectors) + i as u128 * units;
    let mut number = position % (1 << 64);
    if case.iv.large_sectors {
        number /= units;
    }
    let mut iv = [0; 16];
    match case.iv.mode {
        IvMode::Plain => iv[..4].copy_from_slice(&((number % (1 << 32)) as u32).to_le_bytes()),
        IvMode::Plain64 => iv[..8].copy_from_slice(&(number as u64).to_le_bytes()),
        IvMode::Plain64Be => iv[8..].copy_from_slice(&(number as u64).to_be_bytes()),
    }
    iv
}

fn encrypt_with_xts_mode<C>(case: &Case, data: &mut [u8])
where
    C: KeyInit + BlockSizeUser<BlockSize = U16> + BlockCipherEncrypt,
{
    let (data_key, tweak_key) = case.key.split_at(case.key.len() / 2);
    let xts =
        xts_mode::Xts128::new(C::new_from_slice(data_key).unwrap(), C::new_from_slice(tweak_key).unwrap());
    for (i, sector) in data.chunks_mut(case.sector_size.bytes() as usize).enumerate() {
        xts.encrypt_sector(sector, Array(reference_iv(case, i)));
    }
}

fn encrypt_with_openssl(case: &Case, data: &mut [u8]) {
    let cipher = if case.key.len() == 32 { Cipher::aes_128_xts() } else { Cipher::aes_256_xts() };
    let mut context = CipherCtx::new().unwrap();
    for (i, sector) in data.chunks_mut(case.sector_size.bytes() as usize).enumerate() {
        context.encrypt_init(Some(cipher), Some(&case.key), Some(&reference_iv(case, i))).unwrap();
        context.cipher_update_inplace(sector, sector.len()).unwrap();
    }
}

/// `turn` from one buffer to another, at the case's places; nothing else may be touched.
fn apart(case: &Case, data: &[u8], turn: impl FnOnce(*const u8, *mut u8)) -> Vec<u8> {
    const BEYOND: usize = 64;
    let mut src = noise(!case.seed, case.src_start + data.len() + BEYOND);
    let mut dst = noise(!case.seed, case.dst_start + data.len() + BEYOND);
    src[case.src_start..][..data.len()].copy_from_slice(data);
    let (src_before, dst_before) = (src.clone(), dst.clone());
    turn(src[case.src_start..].as_ptr(), dst[case.dst_start..].as_mut_ptr());
    assert!(src == src_before, "the source is not written to");
    let end = case.dst_start + data.len();
    assert!(
        dst[..case.dst_start] == dst_before[..case.dst_start],
        "nothing is written before the destination"
    );
    assert!(dst[end..] == dst_before[end..], "nothing is written behind the destination");
    dst[case.dst_start..end].to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_kernel_agrees_with_xts_mode_and_openssl_and_reverses_itself(case in case()) {
        let plaintext = noise(case.seed, case.sector_count * case.sector_size.bytes() as usize);

        let mut expected = plaintext.clone();
        match case.key.len() {
            32 => encrypt_with_xts_mode::<Aes128>(&case, &mut expected),
            _ => encrypt_with_xts_mode::<Aes256>(&case, &mut expected),
        }
        let mut openssl = plaintext.clone();
        encrypt_with_openssl(&case, &mut openssl);
        prop_assert!(openssl == expected, "xts-mode and OpenSSL agree");

        for xts in ciphers(&case.key, case.sector_size, case.iv) {
            let kernel = xts.kernel();
            // SAFETY: both pointers are to `sector_count` sectors of buffers apart.
            let encrypt = |src, dst| unsafe { xts.encrypt(case.first, src, dst, case.sector_count) };
            // SAFETY: as above.
            let decrypt = |src, dst| unsafe { xts.decrypt(case.first, src, dst, case.sector_count) };
            prop_assert!(apart(&case, &plaintext, encrypt) == expected, "{kernel}: encrypt");
            prop_assert!(apart(&case, &expected, decrypt) == plaintext, "{kernel}: decrypt");

            let mut data = plaintext.clone();
            xts.encrypt_in_place(case.first, &mut data);
            prop_assert!(data == expected, "{kernel}: encrypt in place");
            xts.decrypt_in_place(case.first, &mut data);
            prop_assert!(data == plaintext, "{kernel}: decrypt in place");
        }
    }
}
