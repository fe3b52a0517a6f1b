//! The built program against everything that can be wrong with its input before a VMM is there: each mistake is
//! answered with one clear line on standard error and the documented exit code, and no key ever shows.

#![expect(clippy::unwrap_used, reason = "the steps around a test fail as loudly as the test")]

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

mod bench;
mod control;
mod convert;
mod ephemeral;
mod headers;
mod keys;
mod managed;
mod sockets;
mod volumes;

const PROGRAM: &str = env!("CARGO_BIN_EXE_sealblk");

const FAILURE: i32 = 1;
const USAGE: i32 = 2;
const VOLUME: i32 = 3;
const VOLUME_LOCKED: i32 = 4;
const KEY: i32 = 5;
const SOCKET: i32 = 6;

/// 64 bytes that are text, so that any output which holds part of them can be searched for it.
const KEY_BYTES: &[u8; 64] = b"Th1sIsTh3FirstHalfOfTheSecretKey+Th1sIsIts0therHalf,f1lledUpToIt";
const VOLUME_BYTES: u64 = 1 << 20;

/// A folder with a volume and a key that are in order, and what is done to them.
struct Bench {
    folder: TempDir,
}

/// How a run ended.
struct Ended {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bench = Self { folder };
        File::create(bench.path("vol")).unwrap().set_len(VOLUME_BYTES).unwrap();
        bench.write_key("key", KEY_BYTES);
        bench
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn write_key(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
        self.set_mode(name, 0o600);
    }

    fn set_mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), Permissions::from_mode(mode)).unwrap();
    }

    /// Runs the program in the folder, with `arguments` cut at spaces.
    fn run(&self, arguments: &str) -> Ended {
        self.finish(Command::new(PROGRAM).args(arguments.split_ascii_whitespace()))
    }

    /// Runs a shell command in which `$S` is the program.
    fn shell(&self, script: &str) -> Ended {
        self.finish(Command::new("sh").args(["-c", script]).env("S", PROGRAM))
    }

    /// Runs `serve` with what is in order, followed by `more`.
    fn serve(&self, more: &str) -> Ended {
        self.run(&format!("serve --socket-path s --format plain --blk-file vol --key file:key {more}"))
    }

    fn finish(&self, command: &mut Command) -> Ended {
        let Output { status, stdout, stderr } = command.current_dir(&self.folder).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).expect("output is text");
        let code = status.code().unwrap_or_else(|| panic!("killed: {status}"));
        let ended = Ended { code, stdout: text(stdout), stderr: text(stderr) };
        for part in KEY_BYTES.chunks_exact(8) {
            let plain = str::from_utf8(part).unwrap();
            let hexadecimal: String = part.iter().map(|byte| format!("{byte:02x}")).collect();
            for shown in [plain, &hexadecimal] {
                assert!(!format!("{}{}", ended.stdout, ended.stderr).contains(shown), "the key shows");
            }
        }
        ended
    }
}

impl Ended {
    /// Asserts that the program said why it failed, in one line that holds all `parts`, and how to exit.
    #[track_caller]
    fn refused(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.stderr.lines().count(), 1, "not one line: {}", self.stderr);
        assert!(self.stderr.starts_with("sealblk: ") && self.stderr.ends_with('\n'), "{}", self.stderr);
        for part in parts {
            assert!(self.stderr.contains(part), "no `{part}` in: {}", self.stderr);
        }
        assert_eq!((self.code, self.stdout.as_str()), (code, ""), "{}", self.stderr);
    }
}

#[test]
fn capabilities_are_printed_whatever_else_is_asked() {
    let bench = Bench::new();
    for arguments in [
        "--print-capabilities",
        "serve --print-capabilities",
        "--socket-path=s --fd=3 --print-capabilities",
        "serve --nonsense --print-capabilities --format nothing",
    ] {
        let ended = bench.run(arguments);
        assert_eq!(ended.stdout, "{\"type\": \"block\", \"features\": [\"read-only\", \"blk-file\"]}\n");
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{arguments}");
    }
}

#[test]
fn help_and_version_go_to_standard_output() {
    let bench = Bench::new();
    let help = bench.run("serve --help");
    assert_eq!((help.code, help.stderr.as_str()), (0, ""));
    for code in 0..=9 {
        assert!(help.stdout.contains(&format!("\n  {code}  ")), "exit code {code} is documented");
    }
    assert!(bench.run("--help").stdout.contains("serve"));
    assert_eq!(bench.run("--version").stdout, format!("sealblk {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn output_that_nobody_takes_is_a_failure() {
    Bench::new().shell("$S --print-capabilities >/dev/full").refused(FAILURE, &["standard output"]);
}

#[test]
fn wrong_options_are_named() {
    let bench = Bench::new();
    for (more, parts) in [
        ("--fd 3", &["--socket-path", "--fd", "exclude"][..]),
        ("--connect other", &["--socket-path", "--connect", "exclude"]),
        ("--read-onyl", &["--read-onyl", "--read-only"]),
        ("--read-only=perhaps", &["--read-only", "perhaps"]),
        ("--sector-size 8192", &["--sector-size 8192", "512, 1024, 2048 or 4096"]),
        ("--logical-block-size 768", &["--logical-block-size 768", "512, 1024, 2048 or 4096"]),
        ("--sector-size big", &["--sector-size", "big"]),
        ("--cipher aes-cbc-essiv:sha256", &["--cipher", "aes-cbc-essiv:sha256"]),
        ("--key-size 384", &["--key-size 384", "256 or 512"]),
        ("--sector-size 4096 --skip 4", &["--skip 4", "4096"]),
        ("--iv-large-sectors", &["--iv-large-sectors", "--sector-size"]),
        ("--offset -1", &["-1"]),
        ("--num-queues 0", &["--num-queues 0", "1 to 64"]),
        ("--queue-size 1000", &["--queue-size 1000", "power of two"]),
        ("--serial 123456789012345678901", &["--serial", "20"]),
        ("--cache sometimes", &["--cache", "writeback", "writethrough"]),
        ("--discard maybe", &["--discard", "ignore", "pass"]),
        ("--direct perhaps", &["--direct", "on", "off"]),
        ("--engine diesel", &["--engine", "uring", "blocking"]),
        ("--insecure everything", &["--insecure", "plaintext", "equal-key-halves"]),
        ("--log-level loud", &["--log-level", "trace"]),
        ("--key-timeout soon", &["--key-timeout", "soon"]),
        ("surplus", &["surplus"]),
    ] {
        bench.serve(more).refused(USAGE, parts);
    }
    bench.run("").refused(USAGE, &["--help"]);
    bench.run("frobnicate").refused(USAGE, &["frobnicate"]);
}

#[test]
fn what_is_missing_is_asked_for() {
    let bench = Bench::new();
    for (arguments, option) in [
        ("serve --blk-file vol --format plain --key file:key", "--socket-path"),
        ("serve --socket-path s --format plain --key file:key", "--blk-file"),
        ("serve --socket-path s --blk-file vol --format plain", "--key REFERENCE (file:PATH, say)"),
        ("--socket-path=s --blk-file=vol", "--key REFERENCE (file:PATH, say)"),
    ] {
        bench.run(arguments).refused(USAGE, &[option, "is required"]);
    }
}

#[test]
fn an_unencrypted_volume_is_behind_its_gate() {
    let bench = Bench::new();
    let none = "serve --socket-path s --blk-file vol --format none";
    bench.run(none).refused(USAGE, &["--insecure plaintext"]);
    bench.run(&format!("{none} --insecure equal-key-halves")).refused(USAGE, &["--insecure plaintext"]);
    bench
        .run(&format!("{none} --insecure plaintext --key file:key"))
        .refused(USAGE, &["--key", "--format none"]);
}

#[test]
fn a_wrong_configuration_file_is_answered_with_its_line() {
    let bench = Bench::new();
    let refused = |text: &str, parts: &[&str]| {
        fs::write(bench.path("c.toml"), text).unwrap();
        bench.run("serve --config c.toml").refused(USAGE, parts);
    };
    refused("format = 'plain'\nsektor-size = 512\n", &["c.toml, line 2", "sektor-size", "sector-size"]);
    refused("sector-size = '512'\n", &["c.toml, line 1", "u32"]);
    refused("offset = -1\n", &["c.toml, line 1", "-1"]);
    refused("\n\nformat = 'luks9'\n", &["c.toml, line 3", "luks9", "plain"]);
    refused("once = true\nonce = false\n", &["c.toml, line 2"]);
    refused("config = 'other.toml'\n", &["c.toml, line 1", "config"]);
    refused("[table]\n", &["c.toml, line 1", "table"]);
    refused("format = 'plain'\n", &["--key", "is required"]);
    bench.run("serve --config missing.toml").refused(USAGE, &["missing.toml", "No such file"]);
    bench.run("serve --config .").refused(USAGE, &["configuration file ."]);
    fs::write(bench.path("c.toml"), b"\xff\xfe").unwrap();
    bench.run("serve --config c.toml").refused(USAGE, &["c.toml", "UTF-8"]);
}

#[test]
fn a_key_written_where_its_name_belongs_does_not_show() {
    let bench = Bench::new();
    let key = str::from_utf8(KEY_BYTES).unwrap();
    let base = "serve --socket-path s --format plain --blk-file vol";
    let hexadecimal: String = KEY_BYTES.iter().map(|byte| format!("{byte:02x}")).collect();
    for reference in [key.to_owned(), hexadecimal.clone(), format!("{key}:x"), format!("hex:{hexadecimal}")] {
        bench.run(&format!("{base} --key {reference}")).refused(USAGE, &["--key", "file:PATH, fd:N"]);
    }
    for line in [
        format!("key = '{key}'"),
        format!("key = {key}"),
        format!("key = 0x{hexadecimal}"),
        format!("'{key}"),
    ] {
        fs::write(bench.path("c.toml"), &line).unwrap();
        bench.run(&format!("{base} --config c.toml")).refused(USAGE, &[]);
    }
}

#[test]
fn the_configuration_file_says_what_the_command_line_does_not() {
    let bench = Bench::new();
    let text = "socket-path = 's'\nformat = 'plain'\nblk-file = 'missing'\nkey = 'file:key'\ninsecure = []\n";
    fs::write(bench.path("c.toml"), text).unwrap();
    bench.run("serve --config c.toml").refused(VOLUME, &["missing", "No such file"]);
    bench.run("serve --config c.toml --blk-file gone").refused(VOLUME, &["gone", "No such file"]);
}

#[test]
fn what_is_no_volume_is_refused() {
    let bench = Bench::new();
    let fifo = bench.path("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    for (path, parts) in [
        ("missing", &["missing", "No such file"][..]),
        ("vol/below", &["vol/below", "Not a directory"]),
        (".", &["a directory"]),
        ("/dev/null", &["/dev/null", "a character device"]),
        ("fifo", &["fifo", "a pipe"]),
    ] {
        for read_only in ["", "--read-only"] {
            let arguments = "serve --socket-path s --format plain --key file:key";
            bench.run(&format!("{arguments} --blk-file {path} {read_only}")).refused(VOLUME, parts);
        }
    }
}

#[test]
fn a_path_cannot_forge_a_second_line() {
    let bench = Bench::new();
    let path = bench.path("new\nline\x1b[2J");
    let mut command = Command::new(PROGRAM);
    command.args(["serve", "--socket-path=s", "--format=plain", "--key=file:key", "--blk-file", &path]);
    bench.finish(&mut command).refused(VOLUME, &[r"new\nline\u{1b}[2J"]);
}

#[test]
fn a_volume_that_does_not_fit_its_options_is_refused_with_the_numbers() {
    let bench = Bench::new();
    let volume = OpenOptions::new().write(true).open(bench.path("vol")).unwrap();
    volume.set_len(VOLUME_BYTES + 100).unwrap();
    bench.serve("").refused(VOLUME, &["1048676", "512", "412"]);
    volume.set_len(VOLUME_BYTES + 512).unwrap();
    bench.serve("--sector-size 4096").refused(VOLUME, &["1049088", "4096", "3584"]);
    bench
        .serve("--logical-block-size 1024")
        .refused(VOLUME, &["--logical-block-size 1024", "512", "leave it out"]);
    bench.serve("--offset 2049").refused(VOLUME, &["--offset", "2049", "1049088"]);
    bench.serve("--offset 18446744073709551615").refused(VOLUME, &["--offset"]);
    volume.set_len(0).unwrap();
    bench.serve("").refused(VOLUME, &["is empty"]);
}

#[test]
fn a_read_only_file_is_not_served_read_write() {
    let bench = Bench::new();
    bench.set_mode("vol", 0o444);
    bench.serve("").refused(VOLUME, &["vol", "--read-only"]);
}

#[test]
fn a_file_system_without_direct_io_is_told_with_the_remedy() {
    let arguments =
        "serve --socket-path s --format plain --key file:key --read-only --blk-file /proc/version";
    let bench = Bench::new();
    bench.run(arguments).refused(VOLUME, &["/proc/version", "--direct off"]);
    bench.run(&format!("{arguments} --direct off")).refused(VOLUME, &["the volume is empty"]);
}

#[test]
fn two_writers_are_impossible_and_so_is_a_writer_beside_readers() {
    let bench = Bench::new();
    let volume = File::open(bench.path("vol")).unwrap();
    volume.lock_shared().unwrap();
    bench.serve("").refused(VOLUME_LOCKED, &["vol", "in use by another process"]);
    volume.lock().unwrap();
    bench.serve("").refused(VOLUME_LOCKED, &["vol", "in use by another process"]);
    bench.serve("--read-only").refused(VOLUME_LOCKED, &["vol", "may write to it"]);
}

#[test]
fn an_unusable_key_is_refused_with_what_to_do() {
    let bench = Bench::new();
    let refused = |more: &str, parts: &[&str]| {
        let arguments = "serve --log-level trace --socket-path s --format plain --blk-file vol";
        bench.run(&format!("{arguments} {more}")).refused(KEY, parts);
    };
    refused("--key file:missing", &["file:missing", "no such file"]);
    refused("--key file:.", &["file:.", "not a regular file"]);
    refused("--key file:/dev/zero", &["/dev/zero", "not a regular file"]);
    for (name, bytes, parts) in [
        ("empty", &b""[..], &["file:empty", "it is empty"][..]),
        ("short", &KEY_BYTES[..63], &["63 bytes", "--key-size 512", "needs 64"]),
        ("half", &KEY_BYTES[..32], &["32 bytes", "is --key-size right?"]),
        ("newline", &[&KEY_BYTES[..], b"\n"].concat(), &["65 bytes", "trailing newline"]),
        ("endless", &KEY_BYTES.repeat(1000), &["longer than 8192 bytes"]),
        ("equal", &KEY_BYTES[..32].repeat(2), &["halves"]),
    ] {
        bench.write_key(name, bytes);
        refused(&format!("--key file:{name}"), parts);
    }
    for mode in [0o640, 0o604, 0o644, 0o620, 0o666] {
        bench.set_mode("key", mode);
        refused("--key file:key", &[&format!("mode {mode:04o}"), "chmod 600 key"]);
    }
}

#[test]
fn a_key_comes_through_a_descriptor_or_is_missed() {
    let bench = Bench::new();
    let base = "$S serve --socket-path s --format plain --blk-file vol --key";
    let short = "printf 0123456789";
    bench.shell(&format!("{short} | {base} fd:5 5<&0")).refused(KEY, &["the key has 10 bytes"]);
    bench
        .shell(&format!("{base} fd:6 6<key 5</dev/null --key-size 256"))
        .refused(KEY, &["the key has 64 bytes"]);
    bench.shell(&format!("{base} fd:0 <key")).refused(KEY, &["standard stream", "fd:3"]);
    bench.shell(&format!("{base} fd:9 9<&-")).refused(KEY, &["descriptor 9 was not passed"]);
    bench.shell(&format!("{base} fd:5 5>out")).refused(KEY, &["not open for reading"]);
    bench.shell(&format!("{base} fd:5 5</dev/null")).refused(KEY, &["nothing to read"]);
    bench.shell(&format!("{base} fd:5 5<.")).refused(KEY, &["fd:5"]);
    bench.shell(&format!("{base} fd:five")).refused(KEY, &["a descriptor is a number"]);
}

#[test]
fn a_socket_that_was_not_passed_is_not_taken() {
    let bench = Bench::new();
    let base = "$S serve --format plain --blk-file vol --key file:key --fd";
    bench.shell(&format!("{base} 9 9<&-")).refused(USAGE, &["--fd", "descriptor 9 was not passed"]);
    bench.shell(&format!("{base} 1")).refused(USAGE, &["--fd", "standard stream"]);
    // The numbers that the program's own files are likely to get.
    for fd in 3..8 {
        bench.shell(&format!("{base} {fd} {fd}<&-")).refused(USAGE, &["was not passed"]);
    }
}

#[test]
fn a_user_without_permission_is_told_what_to_do() {
    let bench = Bench::new();
    fs::set_permissions(bench.folder.path(), Permissions::from_mode(0o755)).unwrap();
    fs::copy(PROGRAM, bench.path("sealblk")).unwrap();
    let nobody = |arguments: &str| {
        let mut command = Command::new(bench.path("sealblk"));
        command.args(arguments.split(' '));
        if rustix::process::geteuid().is_root() {
            command.uid(65534).gid(65534);
        }
        bench.finish(&mut command)
    };
    let plain = "serve --socket-path s --format plain --blk-file vol --key";
    bench.set_mode("vol", 0o000);
    nobody(&format!("{plain} file:key")).refused(VOLUME, &["vol", "Permission denied"]);
    bench.set_mode("vol", 0o444);
    nobody(&format!("{plain} file:key")).refused(VOLUME, &["vol", "--read-only"]);
    bench.set_mode("vol", 0o666);
    bench.set_mode("key", 0o000);
    nobody(&format!("{plain} file:key")).refused(KEY, &["may not read it", "chown"]);
    nobody(&format!("{plain} fd:3")).refused(KEY, &["descriptor 3 was not passed"]);
}

/// A loop device with sectors of 4096 bytes, until dropped.
struct LoopDevice(String);

impl LoopDevice {
    fn new(backing: &str, more: &[&str]) -> Self {
        let output = Command::new("losetup")
            .args(["--sector-size=4096", "--find", "--show"])
            .args(more)
            .arg(backing)
            .output();
        let output = output.expect("losetup is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self(String::from_utf8(output.stdout).unwrap().trim().to_owned())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
#[ignore = "makes loop devices: needs root"]
fn a_block_device_is_served_alone_and_aligned() {
    let bench = Bench::new();
    let device = LoopDevice::new(&bench.path("vol"), &[]);
    let base = format!("serve --socket-path s --format plain --key file:key --blk-file {}", device.0);
    bench.run(&base).refused(VOLUME, &["4096", "512", "--direct off", "--sector-size 4096"]);
    bench.run(&format!("{base} --sector-size 4096 --offset 1")).refused(VOLUME, &["--sector-size"]);
    // The volume is in order: what fails is the step after it.
    let elsewhere = base.replace("--socket-path s", "--socket-path nowhere/s");
    bench
        .run(&format!("{elsewhere} --sector-size 4096 --offset 8 --log-level error"))
        .refused(SOCKET, &["nowhere/s"]);
    bench.run(&format!("{base} --offset 2048")).refused(VOLUME, &["ends at byte 1048576"]);

    let reader = File::open(&device.0).unwrap();
    reader.lock_shared().unwrap();
    bench.run(&base).refused(VOLUME_LOCKED, &["in use by another process"]);
    drop(reader);
    let claimed = open_exclusively(Path::new(&device.0));
    bench.run(&base).refused(VOLUME_LOCKED, &[&device.0, "mounted, or claimed"]);
    drop(claimed);

    File::create(bench.path("frozen")).unwrap().set_len(VOLUME_BYTES).unwrap();
    let frozen = LoopDevice::new(&bench.path("frozen"), &["--read-only"]);
    let base = format!("serve --socket-path s --format plain --key file:key --blk-file {}", frozen.0);
    bench.run(&base).refused(VOLUME, &[&frozen.0, "--read-only"]);
}

fn open_exclusively(device: &Path) -> File {
    use std::os::unix::fs::OpenOptionsExt;
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_EXCL).open(device).unwrap();
    // Writable for real, not only openable.
    file.write_all_at(&[0; 4096], 0).unwrap();
    (&file).flush().unwrap();
    file
}
