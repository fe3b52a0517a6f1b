//! Tests of the cipher as a whole; each of its files tests its own parts.

mod golden;
mod guard_pages;
mod kernels;
mod properties;
mod secrecy;
mod vectors;

use super::*;

fn cipher(key: &[u8], sector_size: SectorSize, iv: IvNumbering) -> Xts {
    let key = VolumeKey::new(key, EqualHalves::Refuse).unwrap();
    Xts::new(&key, sector_size, iv).unwrap()
}

/// The kernels that this CPU can run.
fn available_kernels() -> impl Iterator<Item = KernelChoice> {
    KernelChoice::KERNELS.into_iter().filter(|kernel| kernel.is_available())
}

/// The cipher on each kernel that this CPU can run.
fn ciphers(key: &[u8], sector_size: SectorSize, iv: IvNumbering) -> Vec<Xts> {
    let key = VolumeKey::new(key, EqualHalves::Refuse).unwrap();
    let cipher = |kernel| Xts::with_kernel(&key, sector_size, iv, kernel).unwrap();
    available_kernels().map(cipher).collect()
}

fn plain64(offset_sectors: u64) -> IvNumbering {
    IvNumbering { mode: IvMode::Plain64, offset_sectors, large_sectors: false }
}

fn key_bytes<const N: usize>() -> [u8; N] {
    std::array::from_fn(|i| i as u8 + 1)
}

#[test]
fn a_key_has_32_or_64_bytes() {
    for len_bytes in [0, 16, 31, 33, 48, 63, 65, 128] {
        let error = VolumeKey::new(&key_bytes::<128>()[..len_bytes], EqualHalves::Accept).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "a volume key for AES-XTS has 32 bytes (AES-128) or 64 bytes (AES-256), this one has {len_bytes}"
            )
        );
    }
    assert_eq!(VolumeKey::new(&key_bytes::<32>(), EqualHalves::Refuse).unwrap().key_bits(), 256);
    assert_eq!(VolumeKey::new(&key_bytes::<64>(), EqualHalves::Refuse).unwrap().key_bits(), 512);
}

#[test]
fn equal_halves_are_refused_unless_accepted() {
    for len_bytes in [32, 64] {
        let mut key = vec![7; len_bytes];
        let error = VolumeKey::new(&key, EqualHalves::Refuse).unwrap_err();
        assert!(matches!(error, CipherError::EqualHalves));
        assert!(error.to_string().contains("--insecure equal-key-halves"), "{error}");
        assert_eq!(VolumeKey::new(&key, EqualHalves::Accept).unwrap().key_bits(), len_bytes * 8);
        key[len_bytes - 1] ^= 0x80;
        VolumeKey::new(&key, EqualHalves::Refuse).unwrap();
    }
}

#[test]
fn an_iv_offset_that_cuts_a_sector_is_refused() {
    let key = VolumeKey::new(&key_bytes::<64>(), EqualHalves::Refuse).unwrap();
    for (sector_bytes, offset_sectors, accepted) in [
        (512, 1, true),
        (1024, 2, true),
        (1024, 3, false),
        (4096, 4, false),
        (4096, 8, true),
        (4096, 0, true),
    ] {
        let made = Xts::new(&key, SectorSize::new(sector_bytes).unwrap(), plain64(offset_sectors));
        assert_eq!(made.is_ok(), accepted, "{offset_sectors} sectors, {sector_bytes} bytes");
        if let Err(error) = made {
            assert_eq!(
                error.to_string(),
                format!(
                    "the IV offset of {offset_sectors} 512-byte sectors is not a multiple of the encryption \
                     sector size ({sector_bytes} bytes)"
                )
            );
        }
    }
}

#[test]
#[should_panic = "only whole sectors are encrypted"]
fn part_of_a_sector_is_a_mistake_of_the_caller() {
    cipher(&key_bytes::<64>(), SectorSize::BYTES_4096, plain64(0))
        .encrypt_in_place(SectorNumber(0), &mut [0; 512]);
}

#[test]
#[should_panic = "as many sectors come out as go in"]
fn a_destination_of_another_length_is_a_mistake_of_the_caller() {
    cipher(&key_bytes::<64>(), SectorSize::BYTES_512, plain64(0)).encrypt_to(
        SectorNumber(0),
        &[0; 1024],
        &mut [0; 512],
    );
}

#[test]
fn slices_are_turned_as_pointers_are() {
    let xts = cipher(&key_bytes::<64>(), SectorSize::BYTES_512, plain64(0));
    let plaintext: Vec<u8> = (0..2048).map(|i| i as u8).collect();
    let mut expected = plaintext.clone();
    xts.encrypt_in_place(SectorNumber(3), &mut expected);
    let mut apart = vec![0; 2048];
    xts.encrypt_to(SectorNumber(3), &plaintext, &mut apart);
    assert!(apart == expected);
    xts.decrypt_to(SectorNumber(3), &expected, &mut apart);
    assert!(apart == plaintext);
}

#[test]
fn no_sectors_are_no_work() {
    for xts in ciphers(&key_bytes::<32>(), SectorSize::BYTES_512, plain64(0)) {
        xts.encrypt_in_place(SectorNumber(0), &mut []);
        // SAFETY: pointers to no bytes need not point anywhere.
        unsafe { xts.decrypt(SectorNumber(0), std::ptr::null(), std::ptr::null_mut(), 0) };
    }
}

#[test]
fn one_cipher_serves_many_threads() {
    let xts = cipher(&key_bytes::<64>(), SectorSize::BYTES_512, plain64(0));
    let expected = {
        let mut data = [0x5a; 8192];
        xts.encrypt_in_place(SectorNumber(3), &mut data);
        data
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut data = [0x5a; 8192];
                xts.encrypt_in_place(SectorNumber(3), &mut data);
                assert_eq!(data, expected);
            });
        }
    });
}
