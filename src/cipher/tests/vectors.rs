//! Published vectors (`tests/data/xts`), on every kernel.
//!
//! Most have data units shorter than a sector, which kernels do not take. But a block of XTS depends on nothing behind
//! it, so such a unit is the start of a sector, and checked as that: on the code that serves volumes.

use super::*;

struct Vector {
    name: String,
    key: Vec<u8>,
    number: u64,
    plaintext: Vec<u8>,
    ciphertext: Vec<u8>,
}

fn unhex(digits: &str) -> Vec<u8> {
    let pairs = digits.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

/// Reads NIST's response format.
fn parse(file: &str) -> Vec<Vector> {
    let mut vectors = Vec::new();
    for paragraph in file.split("\n\n").filter(|paragraph| paragraph.contains("COUNT")) {
        let field = |name: &str| {
            let value = paragraph.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
            value.unwrap_or_else(|| panic!("no {name} in {paragraph}")).trim()
        };
        vectors.push(Vector {
            name: format!("COUNT = {}", field("COUNT")),
            key: unhex(field("Key")),
            number: field("DataUnitSeqNumber").parse().unwrap(),
            plaintext: unhex(field("PT")),
            ciphertext: unhex(field("CT")),
        });
    }
    vectors
}

/// Turns one data unit of up to 512 bytes: the start of a sector whose rest is zeroes.
fn crypt(kernel: &Kernel, direction: Direction, number: u64, data: &[u8]) -> Vec<u8> {
    let mut sector = [0; 512];
    sector[..data.len()].copy_from_slice(data);
    let start = sector.as_mut_ptr();
    let ivs = plain64(0).sequence(SectorSize::BYTES_512, SectorNumber(number));
    let run = Run { src: start, dst: start, sector_count: 1, sector_bytes: sector.len(), ivs };
    // SAFETY: source and destination are the same sector.
    unsafe { kernel.crypt(direction, run) };
    sector[..data.len()].to_vec()
}

fn check(file: &str, expected_count: usize) {
    let vectors = parse(file);
    assert_eq!(vectors.len(), expected_count);
    for Vector { name, key, number, plaintext, ciphertext } in vectors {
        let key = VolumeKey::new(&key, EqualHalves::Accept).unwrap();
        for choice in available_kernels() {
            let kernel = Kernel::resolve(&key, choice).unwrap();
            assert!(crypt(&kernel, Direction::Encrypt, number, &plaintext) == ciphertext, "{choice}: {name}");
            assert!(crypt(&kernel, Direction::Decrypt, number, &ciphertext) == plaintext, "{choice}: {name}");
        }
    }
}

#[test]
fn ieee_1619() {
    check(include_str!("../../../tests/data/xts/ieee1619.rsp"), 14);
}

#[test]
fn nist_aes_128() {
    check(include_str!("../../../tests/data/xts/nist-aes128.rsp"), 30);
}

#[test]
fn nist_aes_256() {
    check(include_str!("../../../tests/data/xts/nist-aes256.rsp"), 30);
}

/// The vectors whose data units are whole sectors, through the door that everyone uses.
#[test]
fn ieee_1619_as_sectors() {
    let vectors = parse(include_str!("../../../tests/data/xts/ieee1619.rsp"));
    let sectors: Vec<_> = vectors.into_iter().filter(|vector| vector.plaintext.len() == 512).collect();
    assert_eq!(sectors.len(), 11);
    for Vector { name, key, number, plaintext, ciphertext } in sectors {
        for xts in ciphers(&key, SectorSize::BYTES_512, plain64(0)) {
            let mut data = plaintext.clone();
            xts.encrypt_in_place(SectorNumber(number), &mut data);
            assert!(data == ciphertext, "{}: {name}", xts.kernel());
            xts.decrypt_in_place(SectorNumber(number), &mut data);
            assert!(data == plaintext, "{}: {name}", xts.kernel());
        }
    }
}
