//! LUKS volumes in both directions: what others wrote reads right through our disk, and what was written through our
//! disk they read right.

use std::fs;

use crate::harness::{Frontend, Layout, Request, Serve, pattern};
use crate::tools::Workshop;

const PASSPHRASE: &[u8] = b"correct horse battery staple";

/// The disks' size, where nothing else decides it.
const PAYLOAD_BYTES: usize = 1 << 20;

/// Whole pieces that a request holds.
const PIECE_BYTES: usize = 64 << 10;

/// A small Argon2id, and PBKDF2 as quick as cryptsetup allows.
const ARGON2ID: &str = "--pbkdf argon2id --pbkdf-force-iterations 4 --pbkdf-memory 64 --pbkdf-parallel 1";
const PBKDF2: &str = "--pbkdf pbkdf2 --pbkdf-force-iterations 1000";

/// What of a disk a guest would see.
struct Seen {
    capacity_bytes: usize,
    block_bytes: u32,
    data: Vec<u8>,
}

/// Serves the volume `name` of `workshop`, reads it whole, and writes `replacement` where that is given. The file is
/// then what we made of it.
fn serve(workshop: &Workshop, name: &str, args: &[&str], replacement: Option<&[u8]>) -> Seen {
    let passphrase = workshop.read("pass");
    let mut backend = Serve::luks(workshop.read(name), &passphrase).args(args).start();
    let mut frontend = Frontend::connect(backend.socket());
    let config = frontend.config(0, 24).expect("the configuration");
    let capacity_bytes = u64::from_le_bytes(config[..8].try_into().expect("eight bytes")) as usize * 512;
    let block_bytes = u32::from_le_bytes(config[20..24].try_into().expect("four bytes"));
    let mut data = Vec::with_capacity(capacity_bytes);
    while data.len() < capacity_bytes {
        let piece = PIECE_BYTES.min(capacity_bytes - data.len());
        data.extend(frontend.run(&Request::read(data.len() as u64 / 512, piece)).ok());
    }
    for (index, piece) in replacement.unwrap_or_default().chunks(PIECE_BYTES).enumerate() {
        frontend.run(&Request::write((index * PIECE_BYTES / 512) as u64, piece)).ok();
    }
    drop(frontend);
    backend.terminate();
    workshop.write(name, &backend.volume.raw());
    Seen { capacity_bytes, block_bytes, data }
}

/// The payload of a volume as the standard says it must lie there, given the volume key that cryptsetup tells.
fn decrypt(
    workshop: &Workshop,
    name: &str,
    header: &str,
    sector_bytes: usize,
    offset_bytes: usize,
) -> Vec<u8> {
    let key = workshop.volume_key(header);
    let layout = Layout { key: Some(key), sector_bytes, ..Layout::encrypted(0) };
    layout.decrypt(&workshop.read(name)[offset_bytes..])
}

/// LUKS1 as QEMU knows it too: both directions, with nbdkit as a third reader.
fn exchange_with_qemu(workshop: &Workshop, name: &str, payload_bytes: usize) {
    let theirs = pattern(1, payload_bytes);
    workshop.qemu_writes(name, &theirs);
    let ours = pattern(2, payload_bytes);
    let seen = serve(workshop, name, &[], Some(&ours));
    assert_eq!((seen.capacity_bytes, seen.block_bytes), (payload_bytes, 512));
    assert!(seen.data == theirs, "we read something else than QEMU wrote");
    assert!(workshop.qemu_reads(name) == ours, "QEMU reads something else than we wrote");
    assert!(workshop.nbdkit_reads(name) == ours, "nbdkit reads something else than we wrote");
}

#[test]
fn luks1_of_cryptsetup() {
    for options in ["--key-size 512 --hash sha512", "--key-size 256 --hash sha1"] {
        let workshop = Workshop::new(PASSPHRASE);
        workshop.blank("vol", (2 << 20) + PAYLOAD_BYTES as u64);
        workshop.format("vol", &format!("--type luks1 {options} --pbkdf-force-iterations 1000"));
        exchange_with_qemu(&workshop, "vol", PAYLOAD_BYTES);
    }
}

/// The payload begins at sector 4040 with a key of 512 bits, and the volume is larger than what was asked for.
#[test]
fn luks1_of_qemu() {
    for cipher in ["aes-256", "aes-128"] {
        let workshop = Workshop::new(PASSPHRASE);
        workshop.run(&format!(
            "qemu-img create -q -f luks --object secret,id=pass,file=pass -o key-secret=pass,iter-time=10,\
             cipher-alg={cipher},cipher-mode=xts,ivgen-alg=plain64 vol {PAYLOAD_BYTES}"
        ));
        if cipher == "aes-256" {
            assert_eq!(workshop.read("vol").len(), 4040 * 512 + PAYLOAD_BYTES);
        }
        exchange_with_qemu(&workshop, "vol", PAYLOAD_BYTES);
    }
}

#[test]
fn luks2_with_its_header_in_front() {
    for (sector_bytes, key_bits, kdf) in
        [(512, 512, ARGON2ID), (4096, 256, PBKDF2), (1024, 512, PBKDF2), (4096, 512, ARGON2ID)]
    {
        let workshop = Workshop::new(PASSPHRASE);
        workshop.blank("vol", (16 << 20) + PAYLOAD_BYTES as u64);
        workshop
            .format("vol", &format!("--type luks2 --sector-size {sector_bytes} --key-size {key_bits} {kdf}"));
        let ours = pattern(3, PAYLOAD_BYTES);
        let seen = serve(&workshop, "vol", &[], Some(&ours));
        assert_eq!((seen.capacity_bytes, seen.block_bytes), (PAYLOAD_BYTES, sector_bytes));
        let read = decrypt(&workshop, "vol", "vol", sector_bytes as usize, 16 << 20);
        assert!(read == ours, "sectors of {sector_bytes}, {key_bits} bits");
        // The header is as it was: cryptsetup still opens it.
        workshop.run("cryptsetup --batch-mode open --test-passphrase --key-file pass vol");
    }
}

/// cryptsetup encrypts a file in place, with its header elsewhere, and decrypts what we wrote.
#[test]
fn luks2_with_a_detached_header_encrypted_and_decrypted_by_cryptsetup() {
    for (sector_bytes, key_bits, kdf) in [
        (512, 512, PBKDF2),
        (512, 256, ARGON2ID),
        (2048, 512, PBKDF2),
        (4096, 512, ARGON2ID),
        (4096, 256, PBKDF2),
    ] {
        let workshop = Workshop::new(PASSPHRASE);
        let theirs = pattern(4, PAYLOAD_BYTES);
        workshop.write("vol", &theirs);
        workshop.run(&format!(
            "cryptsetup --batch-mode reencrypt --encrypt --header header --type luks2 --key-file pass \
             --cipher aes-xts-plain64 --sector-size {sector_bytes} --key-size {key_bits} {kdf} vol"
        ));
        let ours = pattern(5, PAYLOAD_BYTES);
        let header = workshop.path("header");
        let header = header.to_str().expect("a plain path");
        let seen = serve(&workshop, "vol", &["--header", header], Some(&ours));
        assert_eq!((seen.capacity_bytes, seen.block_bytes), (PAYLOAD_BYTES, sector_bytes));
        assert!(seen.data == theirs, "we read something else than cryptsetup encrypted");
        workshop.run(
            "cryptsetup --batch-mode reencrypt --decrypt --force-offline-reencrypt --header header \
             --key-file pass vol",
        );
        assert!(workshop.read("vol") == ours, "cryptsetup decrypts something else than we wrote");
    }
}

#[test]
fn luks1_with_a_detached_header() {
    let workshop = Workshop::new(PASSPHRASE);
    workshop.blank("vol", PAYLOAD_BYTES as u64);
    workshop.blank("header", 4 << 20);
    workshop.format("vol", "--type luks1 --header header --pbkdf-force-iterations 1000");
    let ours = pattern(6, PAYLOAD_BYTES);
    let header = workshop.path("header");
    let seen = serve(&workshop, "vol", &["--header", header.to_str().expect("a plain path")], Some(&ours));
    assert_eq!((seen.capacity_bytes, seen.block_bytes), (PAYLOAD_BYTES, 512));
    assert!(decrypt(&workshop, "vol", "header", 512, 0) == ours);
}

/// Several passphrases, and the slot named.
#[test]
fn slots_added_by_cryptsetup() {
    let workshop = Workshop::new(PASSPHRASE);
    workshop.blank("vol", (16 << 20) + PAYLOAD_BYTES as u64);
    workshop.format("vol", &format!("--type luks2 --sector-size 512 {PBKDF2}"));
    workshop.write("second", b"another passphrase");
    workshop.run(&format!(
        "cryptsetup --batch-mode luksAddKey --key-file pass --key-slot 5 {ARGON2ID} vol second"
    ));
    let data = pattern(7, PAYLOAD_BYTES);
    serve(&workshop, "vol", &[], Some(&data));
    workshop.write("pass", b"another passphrase");
    for args in [&[][..], &["--key-slot", "5"]] {
        assert!(serve(&workshop, "vol", args, None).data == data);
    }
}

/// As os-brick formats a volume of type `luks` or `luks2`, and Cinder one on RBD or NFS: the passphrase is the managed
/// key in hexadecimal.
#[test]
fn volumes_of_openstack() {
    let managed_key: Vec<u8> = (0..32).collect();
    let passphrase: String = managed_key.iter().map(|byte| format!("{byte:02x}")).collect();
    let os_brick = "--cipher aes-xts-plain64 --key-size 256";
    let workshop = Workshop::new(passphrase.as_bytes());
    workshop.blank("brick", (2 << 20) + PAYLOAD_BYTES as u64);
    workshop.format("brick", &format!("--type luks1 {os_brick} --pbkdf-force-iterations 1000"));
    assert_eq!(workshop.volume_key("brick").len(), 32);
    exchange_with_qemu(&workshop, "brick", PAYLOAD_BYTES);

    workshop.run(&format!(
        "qemu-img create -q -f luks --object secret,id=pass,file=pass -o key-secret=pass,iter-time=50,\
         cipher-alg=aes-256,cipher-mode=xts,ivgen-alg=plain64 cinder {PAYLOAD_BYTES}"
    ));
    assert_eq!(workshop.volume_key("cinder").len(), 64);
    exchange_with_qemu(&workshop, "cinder", PAYLOAD_BYTES);

    workshop.blank("brick2", (16 << 20) + PAYLOAD_BYTES as u64);
    workshop.format("brick2", &format!("--type luks2 {os_brick} {PBKDF2}"));
    let ours = pattern(8, PAYLOAD_BYTES);
    let seen = serve(&workshop, "brick2", &[], Some(&ours));
    let sector_bytes = seen.block_bytes as usize;
    assert!(decrypt(&workshop, "brick2", "brick2", sector_bytes, 16 << 20) == ours);
}

/// A volume whose re-encryption has begun is left alone, whoever holds the key.
#[test]
fn a_volume_under_reencryption_is_refused() {
    let workshop = Workshop::new(PASSPHRASE);
    workshop.write("vol", &pattern(9, PAYLOAD_BYTES));
    workshop.run(&format!(
        "cryptsetup --batch-mode reencrypt --encrypt --init-only --header header --type luks2 --key-file pass {PBKDF2} vol"
    ));
    fs::set_permissions(workshop.path("pass"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .expect("the file is ours");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_sealblk"))
        .args("serve --socket-path s --blk-file vol --direct off --header header --key file:pass".split(' '))
        .current_dir(workshop.folder())
        .output()
        .expect("the program runs");
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{message}");
    assert!(message.contains("re-encrypted") && message.contains("cryptsetup reencrypt"), "{message}");
}
