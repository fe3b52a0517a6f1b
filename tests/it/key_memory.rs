//! Where the memory of a running server holds the key: on locked pages, and nowhere once it is suspended.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::{Command, Output, Stdio};

use rustix::process::geteuid;
use serde_json::json;

use crate::harness::request::*;
use crate::harness::*;

const PAGE_BYTES: usize = 4096;

/// Bytes to look for, and what they are.
struct Needle {
    name: String,
    bytes: Vec<u8>,
}

/// Something that was found, to be shown.
#[derive(Debug)]
struct Find {
    what: String,
    locked: bool,
    /// The mapping, as the kernel describes it.
    #[expect(dead_code, reason = "for whoever reads the failure")]
    mapping: String,
}

/// Every place in the process's memory where one of the needles is.
fn search(pid: u32, needles: &[Needle]) -> Vec<Find> {
    // The first four bytes of each needle, hashed: most places hold none of them.
    let hash = |bytes: &[u8]| usize::from(u16::from_ne_bytes([bytes[0] ^ bytes[2], bytes[1] ^ bytes[3]]));
    let mut begins = vec![false; 1 << 16];
    needles.iter().for_each(|needle| begins[hash(&needle.bytes)] = true);
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut finds = Vec::new();
    for (range, mapping, locked) in mappings(pid) {
        let mut content = vec![0; range.1 - range.0];
        // Some mappings cannot be read by anybody else: those of devices, and secret memory.
        if memory.read_exact_at(&mut content, range.0 as u64).is_err() {
            continue;
        }
        for page_start in (0..content.len()).step_by(PAGE_BYTES) {
            // Most pages were never written.
            if content[page_start..][..PAGE_BYTES] == [0; PAGE_BYTES] {
                continue;
            }
            let places = page_start..(page_start + PAGE_BYTES).min(content.len() - 3);
            for at in places.filter(|at| begins[hash(&content[*at..*at + 4])]) {
                for needle in needles.iter().filter(|needle| content[at..].starts_with(&needle.bytes)) {
                    finds.push(Find { what: needle.name.clone(), mapping: mapping.clone(), locked });
                }
            }
        }
    }
    finds
}

/// Each mapping's addresses, description, and whether it is locked and left out of core dumps.
fn mappings(pid: u32) -> Vec<((usize, usize), String, bool)> {
    let mut mappings: Vec<((usize, usize), String, bool)> = Vec::new();
    for line in fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap().lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            let has = |flag| flags.split_whitespace().any(|has| has == flag);
            mappings.last_mut().unwrap().2 = has("lo") && has("dd");
        } else if let Some((start, rest)) = line.split_once('-')
            && let (Ok(start), Some(end)) = (usize::from_str_radix(start, 16), rest.split(' ').next())
            && let Ok(end) = usize::from_str_radix(end, 16)
        {
            mappings.push(((start, end), line.to_owned(), false));
        }
    }
    mappings
}

/// Whether the kernel keeps what is on locked pages from everybody else, root included: then no key is found at all, but
/// for what a kernel has spilled.
fn has_secret_memory(pid: u32) -> bool {
    mappings(pid).iter().any(|(_, mapping, locked)| *locked && mapping.contains("/secretmem"))
}

/// AES, as much of it as makes round keys (FIPS 197), from its definition.
mod aes {
    fn times(mut a: u8, mut b: u8) -> u8 {
        let mut product = 0;
        while b > 0 {
            product ^= if b & 1 == 1 { a } else { 0 };
            a = a << 1 ^ if a & 0x80 == 0 { 0 } else { 0x1b };
            b >>= 1;
        }
        product
    }

    fn substitute(byte: u8) -> u8 {
        let inverse = (0..=255).find(|other| times(byte, *other) == 1).unwrap_or(0);
        (0..5).fold(0x63, |sum, turn| sum ^ inverse.rotate_left(turn))
    }

    /// The 15 round keys of a 256-bit key.
    pub(super) fn round_keys(key: &[u8]) -> Vec<[u8; 16]> {
        let mut words: Vec<[u8; 4]> = key.chunks(4).map(|word| word.try_into().unwrap()).collect();
        let mut constant = 1;
        for i in words.len()..60 {
            let mut word = words[i - 1];
            if i % 8 == 0 {
                word.rotate_left(1);
                word = word.map(substitute);
                word[0] ^= constant;
                constant = times(constant, 2);
            } else if i % 8 == 4 {
                word = word.map(substitute);
            }
            words.push(std::array::from_fn(|j| word[j] ^ words[i - 8][j]));
        }
        words.chunks(4).map(|words| words.concat().try_into().unwrap()).collect()
    }

    /// The same for the inverse cipher that processors have: through the inverse of the columns' mixing.
    pub(super) fn inverse(round_key: &[u8; 16]) -> [u8; 16] {
        std::array::from_fn(|i| {
            let column = &round_key[i / 4 * 4..][..4];
            [14, 11, 13, 9].iter().enumerate().fold(0, |sum, (j, by)| sum ^ times(column[(i + j) % 4], *by))
        })
    }

    #[test]
    fn round_keys_are_those_of_the_standard() {
        // FIPS 197, appendix A.3.
        let key: Vec<u8> = "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4"
            .as_bytes()
            .chunks(2)
            .map(|digits| u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap())
            .collect();
        let last = round_keys(&key)[14];
        assert_eq!(last[..4], [0xfe, 0x48, 0x90, 0xd1]);
        assert_eq!(last[12..], [0x70, 0x6c, 0x63, 0x1e]);
        // FIPS 197, appendix B: what the mixing of columns makes of this column is d4bf5d30.
        let column = [0x04, 0x66, 0x81, 0xe5];
        assert_eq!(inverse(&column.repeat(4).try_into().unwrap())[..4], [0xd4, 0xbf, 0x5d, 0x30]);
    }
}

/// A key that no memory holds by chance, and everything that is made from it.
fn needles(key: &[u8]) -> Vec<Needle> {
    let mut needles = Vec::new();
    for (half, name) in key.chunks(key.len() / 2).zip(["data key", "tweak key"]) {
        for part in [0, 16] {
            needles
                .push(Needle { name: format!("{name}, from {part}"), bytes: half[part..part + 16].to_vec() });
        }
        for (round, bytes) in aes::round_keys(half).iter().enumerate().skip(2) {
            needles.push(Needle { name: format!("{name}, round {round}"), bytes: bytes.to_vec() });
            let bytes = aes::inverse(bytes).to_vec();
            needles.push(Needle { name: format!("{name}, round {round} of decryption"), bytes });
        }
    }
    needles
}

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealblk"));
    command.args(arguments).stdin(Stdio::null()).output().unwrap()
}

#[track_caller]
fn succeed(arguments: &[&str]) {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_key_is_on_locked_pages_only_and_nowhere_while_it_is_suspended() {
    if !geteuid().is_root() {
        eprintln!("not root: nothing was looked at");
        return;
    }
    for kernel in ["auto", "portable"] {
        let args = ["--cipher-kernel", kernel];
        let mut backend = Serve::encrypted().queues(2).controlled().args(&args).start();
        let key = backend.volume.layout.key.clone().unwrap();
        let needles = needles(&key);
        let frontend = Frontend::with(backend.socket(), Setup { queues: 2, ..Setup::default() });
        let served = || {
            for queue in 0..2 {
                frontend.assert_serves(queue, 64 * queue as u64, 3 + queue as u64);
            }
            let finds = search(backend.pid(), &needles);
            let found: Vec<&str> = finds.iter().map(|find| &*find.what).collect();
            if has_secret_memory(backend.pid()) {
                let image = backend.volume.image.to_str().unwrap().as_bytes().to_vec();
                let known = [Needle { name: "the volume's path".into(), bytes: image }];
                assert!(!search(backend.pid(), &known).is_empty(), "the search finds what is there");
            } else {
                for name in ["data key, round 14", "tweak key, round 14", "data key, from 0"] {
                    assert!(found.contains(&name), "the search finds what is there: {name} in {found:?}");
                }
            }
            // Some kernels spill round keys onto the stack of their thread, which is locked for that.
            let stray: Vec<&Find> = finds.iter().filter(|find| !find.locked).collect();
            assert!(stray.is_empty(), "{kernel}: {stray:#?}");
        };
        served();
        let (socket, image) = (backend.control_socket(), &backend.volume.image);
        let (socket, image) = (socket.to_str().unwrap(), image.to_str().unwrap());
        let key_file = format!("file:{}", backend.volume.key_file.as_ref().unwrap().display());
        succeed(&["suspend", socket]);
        let finds = search(backend.pid(), &needles);
        assert!(finds.is_empty(), "{kernel}: {finds:#?}");
        let format = ["--format", "plain", "--sector-size", "512", "--blk-file", image];
        succeed(&[&["resume", socket, "--key", &key_file][..], &format].concat());
        served();
        drop(frontend);
        backend.terminate();
    }
}

#[test]
fn a_suspended_disk_holds_its_requests_until_its_own_key_is_back() {
    let mut backend = Serve::encrypted().controlled().start();
    let frontend = Frontend::connect(backend.socket());
    frontend.assert_serves(0, 0, 1);
    let (socket, image) = (backend.control_socket(), backend.volume.image.clone());
    let (socket, image) = (socket.to_str().unwrap(), image.to_str().unwrap());
    let resume = |key: &str| {
        run(&[
            "resume",
            socket,
            "--key",
            key,
            "--format",
            "plain",
            "--sector-size",
            "512",
            "--blk-file",
            image,
        ])
    };
    let key_file = format!("file:{}", backend.volume.key_file.as_ref().unwrap().display());
    let refusal = |output: Output| {
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(refusal(resume(&key_file)).contains("the disk is not suspended"));
    succeed(&["suspend", socket]);
    let mut control = backend.control();
    assert_eq!(control.done("status")["suspended"], true);
    // Twice is as good as once.
    assert_eq!(control.done("suspend"), json!({"suspended": true}));
    let write = frontend.prepare(0, &Request::write(8, &pattern(5, 4096)));
    frontend.rings[0].publish(&[write.head]);
    frontend.rings[0].kick();
    frontend.rings[0].expect_silence();
    // Neither without a key nor with another one does anything go on.
    let wrong = tempfile::tempdir().unwrap();
    let wrong = volume::write_key(wrong.path(), &pattern(77, 64));
    assert!(refusal(resume(&format!("file:{}", wrong.display()))).contains("not the key that the disk was"));
    assert!(refusal(run(&["control", socket, "resume"])).contains("the key is wiped"));
    frontend.rings[0].expect_silence();
    assert!(resume(&key_file).status.success());
    write.answer(frontend.rings[0].collect(1)[0]).ok();
    assert_eq!(control.done("status")["suspended"], false);
    frontend.assert_serves(0, 64, 3);
    drop(frontend);
    backend.terminate();
}

#[test]
fn a_disk_without_a_key_cannot_be_suspended() {
    let backend = Serve::volume(Layout { key: None, ..Layout::encrypted(1 << 20) }).controlled().start();
    let output = run(&["suspend", backend.control_socket().to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("there is no key to wipe"), "{output:?}");
    Frontend::connect(backend.socket()).assert_serves(0, 0, 1);
}

#[test]
fn a_passphrase_is_gone_once_the_volume_is_open() {
    if !geteuid().is_root() {
        eprintln!("not root: nothing was looked at");
        return;
    }
    let phrase = b"a phrase that is nowhere else: 6f1d0c52".to_vec();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk");
    let key_file = volume::write_key(folder.path(), &phrase);
    let key = format!("file:{}", key_file.display());
    fs::write(&image, vec![0; 20 << 20]).unwrap();
    succeed(&["format", image.to_str().unwrap(), "--key", &key, "--pbkdf", "pbkdf2", "--force"]);
    let backend = Serve::luks_at(&image, &["--key", &key]).start();
    Frontend::connect(backend.socket()).assert_serves(0, 0, 1);
    let finds = search(backend.pid(), &[Needle { name: "passphrase".into(), bytes: phrase }]);
    assert!(finds.is_empty(), "{finds:#?}");
}

#[test]
fn there_is_no_core_dump() {
    let backend = Serve::encrypted().start();
    let limits = fs::read_to_string(format!("/proc/{}/limits", backend.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
    // What the kernel would do is told by the owner of these files: root's, whoever runs the process.
    let mut process = backend;
    let pid = rustix::process::Pid::from_raw(process.pid() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::ABORT).unwrap();
    let status = process.wait();
    assert!(!std::os::unix::process::ExitStatusExt::core_dumped(&status), "{status}");
}
