//! Throughput of AES-XTS beside what it is measured against: the `xts-mode` crate, OpenSSL, and `memcpy`
//! (what the copy that encryption is fused with would cost alone). Every kernel that this CPU can run is in each group,
//! so that ratios come from one run.
//!
//! `cargo bench --bench cipher`, or only some of it: `cargo bench --bench cipher -- 'aes-256/4096/65536'`.

use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser, KeyInit, consts::U16};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use openssl::cipher::{Cipher, CipherRef};
use openssl::cipher_ctx::CipherCtx;
use sealblk::cipher::{EqualHalves, IvMode, IvNumbering, KernelChoice, VolumeKey, Xts};
use sealblk::geometry::{SectorNumber, SectorSize};
use xts_mode::{Xts128, get_tweak_default};

const BUFFER_BYTES: [usize; 3] = [4 << 10, 64 << 10, 1 << 20];
const SECTOR_SIZES: [SectorSize; 2] = [SectorSize::BYTES_512, SectorSize::BYTES_4096];

fn key(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i * 7 + 1) as u8).collect()
}

fn ours(group: &mut BenchmarkGroup<'_, WallTime>, key: &[u8], sector_size: SectorSize, buffer_bytes: usize) {
    let key = VolumeKey::new(key, EqualHalves::Refuse).expect("a good key");
    let iv = IvNumbering { mode: IvMode::Plain64, offset_sectors: 0, large_sectors: false };
    let (src, mut dst) = (vec![0x5a; buffer_bytes], vec![0; buffer_bytes]);
    let first = SectorNumber(1 << 20);
    for kernel in KernelChoice::KERNELS.into_iter().filter(|kernel| kernel.is_available()) {
        let xts = Xts::with_kernel(&key, sector_size, iv, kernel).expect("a kernel for this CPU");
        group.bench_function(format!("{kernel} encrypt"), |b| {
            b.iter(|| xts.encrypt_to(first, black_box(&src), &mut dst));
        });
        group.bench_function(format!("{kernel} decrypt"), |b| {
            b.iter(|| xts.decrypt_to(first, black_box(&src), &mut dst));
        });
        group.bench_function(format!("{kernel} encrypt in place"), |b| {
            b.iter(|| xts.encrypt_in_place(first, black_box(&mut dst)));
        });
    }
}

fn memcpy(group: &mut BenchmarkGroup<'_, WallTime>, buffer_bytes: usize) {
    let (src, mut dst) = (vec![0x5a_u8; buffer_bytes], vec![0; buffer_bytes]);
    group.bench_function("memcpy", |b| b.iter(|| black_box(&mut dst).copy_from_slice(black_box(&src))));
}

fn xts_mode<C>(group: &mut BenchmarkGroup<'_, WallTime>, key: &[u8], sector_bytes: usize, buffer_bytes: usize)
where
    C: KeyInit + BlockSizeUser<BlockSize = U16> + BlockCipherEncrypt + BlockCipherDecrypt,
{
    let (data, tweak) = key.split_at(key.len() / 2);
    let expand = |half| C::new_from_slice(half).expect("a key for this cipher");
    let xts = Xts128::new(expand(data), expand(tweak));
    let mut buffer = vec![0x5a; buffer_bytes];
    let tweak = |number: u128| -> Array<u8, U16> { get_tweak_default(number) };
    group.bench_function("xts-mode encrypt", |b| {
        b.iter(|| xts.encrypt_area(black_box(&mut buffer), sector_bytes, 1 << 20, tweak));
    });
    group.bench_function("xts-mode decrypt", |b| {
        b.iter(|| xts.decrypt_area(black_box(&mut buffer), sector_bytes, 1 << 20, tweak));
    });
}

fn openssl(
    group: &mut BenchmarkGroup<'_, WallTime>,
    cipher: &CipherRef,
    key: &[u8],
    sector_bytes: usize,
    buffer_bytes: usize,
) {
    let (src, mut dst) = (vec![0x5a; buffer_bytes], vec![0; buffer_bytes]);
    let mut encrypt = CipherCtx::new().expect("a context");
    encrypt.encrypt_init(Some(cipher), Some(key), Some(&[0; 16])).expect("a key");
    let mut decrypt = CipherCtx::new().expect("a context");
    decrypt.decrypt_init(Some(cipher), Some(key), Some(&[0; 16])).expect("a key");
    let sectors = |number: usize| u128::try_from(number).expect("fits").to_le_bytes();
    group.bench_function("OpenSSL encrypt", |b| {
        b.iter(|| {
            let pairs = src.chunks_exact(sector_bytes).zip(dst.chunks_exact_mut(sector_bytes));
            for (number, (src, dst)) in pairs.enumerate() {
                encrypt.encrypt_init(None, None, Some(&sectors(number))).expect("an IV");
                encrypt.cipher_update(black_box(src), Some(dst)).expect("a sector");
            }
        });
    });
    group.bench_function("OpenSSL decrypt", |b| {
        b.iter(|| {
            let pairs = src.chunks_exact(sector_bytes).zip(dst.chunks_exact_mut(sector_bytes));
            for (number, (src, dst)) in pairs.enumerate() {
                decrypt.decrypt_init(None, None, Some(&sectors(number))).expect("an IV");
                decrypt.cipher_update(black_box(src), Some(dst)).expect("a sector");
            }
        });
    });
}

fn aes_xts(criterion: &mut Criterion) {
    for sector_size in SECTOR_SIZES {
        let sector_bytes = sector_size.bytes() as usize;
        for buffer_bytes in BUFFER_BYTES {
            for aes_bits in [128, 256] {
                let key = key(aes_bits / 8 * 2);
                let name = format!("aes-{aes_bits}/{sector_bytes}/{buffer_bytes}");
                let mut group = criterion.benchmark_group(name);
                group.throughput(Throughput::Bytes(buffer_bytes as u64));
                memcpy(&mut group, buffer_bytes);
                ours(&mut group, &key, sector_size, buffer_bytes);
                if aes_bits == 128 {
                    xts_mode::<aes::Aes128>(&mut group, &key, sector_bytes, buffer_bytes);
                    openssl(&mut group, Cipher::aes_128_xts(), &key, sector_bytes, buffer_bytes);
                } else {
                    xts_mode::<aes::Aes256>(&mut group, &key, sector_bytes, buffer_bytes);
                    openssl(&mut group, Cipher::aes_256_xts(), &key, sector_bytes, buffer_bytes);
                }
                group.finish();
            }
        }
    }
}

/// Between a slot, which is in the cache, and guest memory, which is not.
fn far(criterion: &mut Criterion) {
    const SLOT_BYTES: usize = 128 << 10;
    const GUEST_BYTES: usize = 64 << 20;
    let (mut guest, mut slot) = (vec![0x5a_u8; GUEST_BYTES], vec![0_u8; SLOT_BYTES]);
    let key = VolumeKey::new(&key(64), EqualHalves::Refuse).expect("a good key");
    let iv = IvNumbering { mode: IvMode::Plain64, offset_sectors: 0, large_sectors: false };
    let mut group = criterion.benchmark_group("aes-256/4096/far");
    group.throughput(Throughput::Bytes(SLOT_BYTES as u64));
    let mut start = 0;
    let mut place = |guest: &mut [u8], work: &mut dyn FnMut(&mut [u8])| {
        start = (start + SLOT_BYTES) % GUEST_BYTES;
        work(&mut guest[start..][..SLOT_BYTES]);
    };
    group.bench_function("memcpy from there", |b| {
        b.iter(|| place(&mut guest, &mut |guest| slot.copy_from_slice(black_box(guest))));
    });
    group.bench_function("memcpy to there", |b| {
        b.iter(|| place(&mut guest, &mut |guest| guest.copy_from_slice(black_box(&slot))));
    });
    for kernel in KernelChoice::KERNELS.into_iter().filter(|kernel| kernel.is_available()) {
        let xts = Xts::with_kernel(&key, SectorSize::BYTES_4096, iv, kernel).expect("a kernel for this CPU");
        group.bench_function(format!("{kernel} encrypt from there"), |b| {
            b.iter(|| place(&mut guest, &mut |guest| xts.encrypt_to(SectorNumber(0), guest, &mut slot)));
        });
        group.bench_function(format!("{kernel} decrypt to there"), |b| {
            b.iter(|| place(&mut guest, &mut |guest| xts.decrypt_to(SectorNumber(0), &slot, guest)));
        });
    }
    group.finish();
}

/// What a large read from page cache costs without a server around it: one that does not encrypt reads into the guest's
/// memory; one that does, into a slot first.
fn page_cache(criterion: &mut Criterion) {
    const SLOT_BYTES: usize = 128 << 10;
    const GUEST_BYTES: usize = 16 << 20;
    const FILE_BYTES: usize = 256 << 20;
    let file = rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).expect("memory");
    let file = std::fs::File::from(file);
    for start in (0..FILE_BYTES).step_by(GUEST_BYTES) {
        file.write_all_at(&vec![0x5a; GUEST_BYTES], start as u64).expect("memory");
    }
    let (mut guest, mut slot) = (vec![0x5a_u8; GUEST_BYTES], vec![0_u8; SLOT_BYTES]);
    let key = VolumeKey::new(&key(64), EqualHalves::Refuse).expect("a good key");
    let iv = IvNumbering { mode: IvMode::Plain64, offset_sectors: 0, large_sectors: false };
    let mut group = criterion.benchmark_group("aes-256/page-cache");
    group.throughput(Throughput::Bytes(SLOT_BYTES as u64));
    let mut start = 0;
    let mut next = || {
        start = (start + SLOT_BYTES) % FILE_BYTES;
        (start as u64, start % GUEST_BYTES)
    };
    group.bench_function("read", |b| {
        b.iter(|| {
            let (from, to) = next();
            file.read_exact_at(&mut guest[to..][..SLOT_BYTES], from).expect("in the file");
        });
    });
    group.bench_function("read to a slot", |b| {
        b.iter(|| file.read_exact_at(&mut slot, next().0).expect("in the file"));
    });
    for sector_size in SECTOR_SIZES {
        let xts = Xts::new(&key, sector_size, iv).expect("a numbering for these sectors");
        group.bench_function(format!("read to a slot and decrypt, sectors {}", sector_size.bytes()), |b| {
            b.iter(|| {
                let (from, to) = next();
                file.read_exact_at(&mut slot, from).expect("in the file");
                xts.decrypt_to(SectorNumber(0), &slot, &mut guest[to..][..SLOT_BYTES]);
            });
        });
    }
    group.finish();
}

fn short() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(50))
        .measurement_time(Duration::from_millis(250))
        .sample_size(20)
        .configure_from_args()
}

criterion_group! { name = benches; config = short(); targets = aes_xts, far, page_cache }
criterion_main!(benches);
