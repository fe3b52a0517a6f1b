//! Volumes of OpenStack, which open by the ID of their key in Barbican and the name of their provider alone.
//!
//! They are made here as os-brick and Nova make them (os_brick/encryptors, nova/virt/libvirt/storage/dmcrypt.py), by
//! cryptsetup; what is on them is encrypted by OpenSSL, since dm-crypt would need a kernel that has it.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use openssl::symm::{Cipher, Crypter, Mode};

use super::cloud::cloud;
use super::{Host, sealblk, succeeds};

/// The key in Barbican, whose hexadecimal text is the passphrase.
const KEY: [u8; 32] = {
    let mut key = [0; 32];
    let mut at = 0;
    while at < key.len() {
        key[at] = at as u8;
        at += 1;
    }
    key
};

/// The volume keys that libcryptsetup makes of that passphrase in plain mode, 256 bits long, by the hash that cryptsetup
/// has as its default: before version 2.7, and from it on.
const PLAIN_KEYS: [(&str, &str); 2] = [
    ("ripemd160", "543317950f1817f3fc5152532a196b15d5e426136cd2393a8710011f6844a477"),
    ("sha256", "6c86c6aac5fb24bcf5d9939cb7d7d5645ce39418f449e03b262dd4fa14b4b92b"),
];

/// Bytes in a unit of the IV.
const IV_UNIT_BYTES: usize = 512;

fn content() -> Vec<u8> {
    (0..1 << 20).map(|at: u32| (at / 512 + at % 251) as u8).collect()
}

/// A volume of one sector size.
struct Brick {
    key: Vec<u8>,
    offset_bytes: u64,
    sector_bytes: usize,
}

impl Brick {
    /// Writes `content` to `file` through AES-XTS, IV mode plain64.
    fn write(&self, file: &File, content: &[u8]) {
        let cipher = match self.key.len() {
            32 => Cipher::aes_128_xts(),
            _ => Cipher::aes_256_xts(),
        };
        let mut encrypted = Vec::with_capacity(content.len());
        for (index, sector) in content.chunks(self.sector_bytes).enumerate() {
            let iv = (index * self.sector_bytes / IV_UNIT_BYTES) as u128;
            let mut crypter =
                Crypter::new(cipher, Mode::Encrypt, &self.key, Some(&iv.to_le_bytes())).unwrap();
            let mut into = vec![0; sector.len() + cipher.block_size()];
            let written_bytes = crypter.update(sector, &mut into).unwrap();
            encrypted.extend_from_slice(&into[..written_bytes]);
        }
        file.write_all_at(&encrypted, self.offset_bytes).unwrap();
    }
}

/// Runs cryptsetup in `folder` with the passphrase on standard input, as os-brick does.
fn cryptsetup(folder: &Path, line: &str) -> String {
    let mut child = Command::new("cryptsetup")
        .args(line.split_ascii_whitespace())
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("cryptsetup: run `scripts/install-tools key-servers`");
    let passphrase = base16ct::lower::encode_string(&KEY);
    // Whoever needs none may be gone already.
    let _ = child.stdin.take().unwrap().write_all(passphrase.as_bytes());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "cryptsetup {line}");
    String::from_utf8(output.stdout).unwrap()
}

/// Formats the file `brick` as os-brick's encryptor of `provider` does, but for a quick PBKDF.
fn format(folder: &Path, provider: &str) -> Brick {
    let (kind, kdf) = match provider {
        "luks" => ("luks1", ""),
        _ => ("luks2", "--pbkdf pbkdf2"),
    };
    cryptsetup(
        folder,
        &format!(
            "--batch-mode luksFormat --type {kind} --key-file=- --cipher aes-xts-plain64 --key-size 256 {kdf} \
             --pbkdf-force-iterations 1000 brick"
        ),
    );
    cryptsetup(
        folder,
        "--batch-mode luksDump --dump-volume-key --volume-key-file volume-key --key-file=- brick",
    );
    let key = fs::read(folder.join("volume-key")).unwrap();
    fs::remove_file(folder.join("volume-key")).unwrap();
    let dump = cryptsetup(folder, "luksDump brick");
    let number = |label: &str| -> u64 {
        let line = dump.lines().find_map(|line| line.trim().strip_prefix(label)).expect(label);
        line.split_ascii_whitespace().next().unwrap().parse().unwrap()
    };
    match provider {
        "luks" => Brick { key, offset_bytes: number("Payload offset:") * 512, sector_bytes: 512 },
        _ => Brick { key, offset_bytes: number("offset:"), sector_bytes: number("sector:") as usize },
    }
}

/// What `sealblk` reads of the file `brick` by the key `uuid`.
fn read(host: &Host, format: &str, uuid: &str) -> std::process::Output {
    let _ = fs::remove_file(host.path().join("out"));
    sealblk(
        host,
        &format!(
            "convert --from {format} --to raw --key-config keys.toml --src-key barbican+openstack:{uuid} brick out"
        ),
    )
}

fn assert_reads(host: &Host, format: &str, uuid: &str) {
    succeeds(&read(host, format, uuid));
    let read = fs::read(host.path().join("out")).unwrap();
    assert!(read.starts_with(&content()), "{format}: not what was written");
}

#[test]
fn volumes_of_openstack_open_by_their_key_id() {
    let project = cloud().project();
    let host = Host::new(&[("default", &project)]);
    let uuid = project.put("symmetric", &KEY).1.unwrap();
    let other = project.put("symmetric", &[9; 32]).1.unwrap();
    for (provider, kind) in [("luks", "luks1"), ("luks2", "luks2")] {
        let file = File::create(host.path().join("brick")).unwrap();
        file.set_len(20 << 20).unwrap();
        let brick = format(host.path(), provider);
        assert_eq!(brick.key.len(), 32, "{provider}: both halves of the key count");
        brick.write(&file, &content());
        assert_reads(&host, kind, &uuid);
        assert_eq!(read(&host, kind, &other).status.code(), Some(5), "another key opens it");
    }
    for (hash, key) in PLAIN_KEYS {
        let file = File::create(host.path().join("brick")).unwrap();
        file.set_len(2 << 20).unwrap();
        let key = base16ct::lower::decode_vec(key).unwrap();
        Brick { key, offset_bytes: 0, sector_bytes: 512 }.write(&file, &content());
        assert_reads(&host, &format!("plain --src-key-size 256 --src-plain-hash {hash}"), &uuid);
    }
}
