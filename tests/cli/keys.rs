//! Keys from everywhere they may come from, as an operator gives them, and key managers that are away.

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use base64ct::{Base64, Encoding};
use linux_keyutils::{KeyRing, KeyRingIdentifier};
use rustix::process::{Pid, Signal, kill_process};

use super::*;

const KEY_UNREACHABLE: i32 = 8;
const SERVE: &str = "serve --socket-path s --format plain --blk-file vol";
const FIXED_KEY: &str = "00000000-0000-0000-0000-000000000000";

/// A server whose log goes to the file `log` of its bench; killed with the test.
struct Server<'a> {
    bench: &'a Bench,
    child: Child,
}

impl<'a> Server<'a> {
    fn start(bench: &'a Bench, command: &mut Command) -> Self {
        let log = File::create(bench.path("log")).unwrap();
        let command = command.current_dir(&bench.folder).stdin(Stdio::null()).stdout(Stdio::null());
        Self { bench, child: command.stderr(log).spawn().unwrap() }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.bench.path("log")).unwrap()
    }

    #[track_caller]
    fn wait_for(&mut self, what: &str, is_there: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !is_there(self) {
            assert!(self.child.try_wait().unwrap().is_none(), "ended without {what}: {}", self.log());
            assert!(Instant::now() < deadline, "{what} in vain: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[track_caller]
    fn wait_for_socket(&mut self) {
        self.wait_for("a socket", |server| Path::new(&server.bench.path("s")).exists());
    }

    #[track_caller]
    fn wait_for_log(&mut self, line: &str) {
        self.wait_for(line, |server| server.log().contains(line));
    }

    fn terminate(mut self) -> (ExitStatus, String) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        (self.child.wait().unwrap(), self.log())
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A key configuration file for everything that these tests take keys from.
fn write_key_config(bench: &Bench) {
    let table = |name: &str, script: &str| {
        format!("[command.{name}]\nargv = ['/bin/sh', '-c', \"{script}\", 'sh', '{}']\n", bench.path(""))
    };
    let text = table("vm1", "cat $1/key")
        + &table("away", "cat $1/key; cat $1/key >&2; exit 75")
        + &table("later", "test -e $1/now && cat $1/key")
        + &table("nosy", "test -e /proc/self/fd/7 && exit 77; exit 66")
        + &format!("[config.nova]\npath = '{}'\n", bench.path("nova.conf"));
    fs::write(bench.path("keys.toml"), text).unwrap();
}

fn program(arguments: &str) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(arguments.split_ascii_whitespace());
    command
}

/// Every way in which a key is given, each ready to run, with `more` options.
fn ways_to_give_a_key(bench: &Bench, more: &str) -> Vec<(&'static str, Command)> {
    let hexadecimal: String = KEY_BYTES.iter().map(|byte| format!("{byte:02x}")).collect();
    bench.write_key("key.hex", format!("{hexadecimal}\n").as_bytes());
    fs::create_dir(bench.path("credentials")).unwrap();
    bench.write_key("credentials/vm1", Base64::encode_string(KEY_BYTES).as_bytes());
    fs::write(bench.path("nova.conf"), format!("[key_manager]\nfixed_key = {hexadecimal}\n")).unwrap();
    write_key_config(bench);
    own_session_keyring();
    let ring = KeyRing::from_special_id(KeyRingIdentifier::Session, false).unwrap();
    ring.add_key("sealblk test vm1", KEY_BYTES).unwrap();

    let with = |key: &str| program(&format!("{SERVE} {more} {key}"));
    let mut descriptor = Command::new("sh");
    descriptor.args(["-c", &format!("exec \"$S\" {SERVE} {more} --key fd:7 7<key")]).env("S", PROGRAM);
    let mut credential = with("--key credential+base64:vm1");
    credential.env("CREDENTIALS_DIRECTORY", bench.path("credentials"));
    let mut keyring = with("--key");
    keyring.arg("keyring:sealblk test vm1");
    let fixed_key = format!("--key-config keys.toml --insecure fixed-key --key config@nova:{FIXED_KEY}");
    vec![
        ("file", with("--key file:key")),
        ("file+hex", with("--key file+hex:key.hex")),
        ("fd", descriptor),
        ("command", with("--key-config keys.toml --key command:vm1")),
        ("credential", credential),
        ("keyring", keyring),
        ("config", with(&fixed_key)),
        ("the second of two", with("--key file:missing --key file:key")),
    ]
}

/// Gives this thread, and what it starts, a session keyring that ends with it.
#[expect(unsafe_code, reason = "no library has this call")]
fn own_session_keyring() {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    let no_name = std::ptr::null::<libc::c_char>();
    // SAFETY: the call reads no memory when the name is null.
    let serial = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, no_name) };
    assert!(serial > 0, "{}", std::io::Error::last_os_error());
}

/// Asserts that `bytes` hold no part of the key in any usual spelling.
#[track_caller]
fn assert_no_key(place: &str, bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for part in KEY_BYTES.chunks_exact(6) {
        let hexadecimal: String = part.iter().map(|byte| format!("{byte:02x}")).collect();
        for shown in [str::from_utf8(part).unwrap(), &hexadecimal, &Base64::encode_string(part)] {
            assert!(!text.contains(shown), "the key shows in {place}");
        }
    }
}

#[test]
fn a_key_shows_nowhere_wherever_it_comes_from() {
    let bench = Bench::new();
    for (way, mut command) in ways_to_give_a_key(&bench, "--log-level trace") {
        let mut server = Server::start(&bench, &mut command);
        server.wait_for_socket();
        for file in ["cmdline", "environ"] {
            match fs::read(format!("/proc/{}/{file}", server.child.id())) {
                Ok(bytes) => assert_no_key(file, &bytes),
                // The kernel lets nobody but root look at it.
                Err(error) => assert!(!rustix::process::geteuid().is_root(), "{way}: {error}"),
            }
        }
        let (status, log) = server.terminate();
        assert_eq!(status.code(), Some(0), "{way}: {log}");
        assert!(log.contains("disk is ready"), "{way}: {log}");
        assert_no_key("the log", log.as_bytes());
    }
}

#[test]
fn a_key_of_the_wrong_length_shows_nowhere_either() {
    let bench = Bench::new();
    for (way, mut command) in ways_to_give_a_key(&bench, "--key-size 256 --log-level error") {
        let ended = bench.finish(&mut command);
        assert!(ended.code == KEY && ended.stderr.contains("64 bytes"), "{way}: {}", ended.stderr);
        assert_no_key("standard error", ended.stderr.as_bytes());
    }
}

#[test]
fn a_manager_that_is_away_is_told_from_a_key_that_is_wrong() {
    let bench = Bench::new();
    write_key_config(&bench);
    let serve = |more: &str| bench.run(&format!("{SERVE} --log-level error --key-config keys.toml {more}"));
    let away = ["command:away", "cannot be reached", "75", "show-errors"];
    serve("--key command:away --key-timeout 0").refused(KEY_UNREACHABLE, &away);
    serve("--key command:away --key-timeout 1").refused(KEY_UNREACHABLE, &away);
    serve("--key file:missing --key command:away --key-timeout 0").refused(KEY_UNREACHABLE, &away);
    serve("--key command:away --key file:missing --key-timeout 0").refused(KEY_UNREACHABLE, &away);
    serve("--key command:nowhere --key file:missing").refused(KEY, &["command:nowhere", "not found"]);
    bench.write_key("short", b"short");
    bench.write_key("open", KEY_BYTES);
    bench.set_mode("open", 0o644);
    bench.write_key("empty", b"");
    serve("--key file:open --key file:key").refused(KEY, &["file:open", "mode 0644"]);
    serve("--key command:away --key file:empty --key file:key").refused(KEY, &["file:empty", "is empty"]);
    serve("--key command:away --key file:short").refused(KEY, &["the key has 5 bytes"]);
}

#[test]
fn every_attempt_is_logged() {
    let bench = Bench::new();
    write_key_config(&bench);
    let ended = bench.run(&format!("{SERVE} --key-config keys.toml --key command:away --key-timeout 1"));
    assert_eq!(ended.code, KEY_UNREACHABLE);
    let retries = ended.stderr.lines().filter(|line| line.contains("trying again")).count();
    let last = ended.stderr.lines().filter(|line| line.contains("giving up")).collect::<Vec<_>>();
    // After half a second at least, and when the second is over; fewer when the attempts themselves take long.
    assert!(retries <= 2, "{}", ended.stderr);
    assert!(last.len() == 1 && last[0].contains(&format!("attempt={}", retries + 1)), "{}", ended.stderr);
}

#[test]
fn a_manager_that_comes_back_is_noticed() {
    let bench = Bench::new();
    write_key_config(&bench);
    let arguments = format!("{SERVE} --key-config keys.toml --key command:later --key-timeout 3600");
    let mut server = Server::start(&bench, &mut program(&arguments));
    server.wait_for_log("trying again");
    File::create(bench.path("now")).unwrap();
    server.wait_for_socket();
    assert_eq!(server.terminate().0.code(), Some(0));
}

#[test]
fn a_wait_for_a_manager_ends_with_sigterm() {
    let bench = Bench::new();
    write_key_config(&bench);
    let arguments = format!("{SERVE} --key-config keys.toml --key command:away --key-timeout 3600");
    let mut server = Server::start(&bench, &mut program(&arguments));
    server.wait_for_log("trying again");
    assert_eq!(server.terminate().0.signal(), Some(libc::SIGTERM));
}

#[test]
fn a_command_gets_none_of_our_descriptors() {
    let bench = Bench::new();
    write_key_config(&bench);
    let keys = "--key-config keys.toml --key command:nosy --key fd:7";
    let script = format!("$S {SERVE} --log-level error {keys} --key-size 256 7<key");
    bench.shell(&script).refused(KEY, &["the key has 64 bytes"]);
}

#[test]
fn a_key_configuration_that_is_wrong_is_refused() {
    let bench = Bench::new();
    write_key_config(&bench);
    let refused = |more: &str, parts: &[&str]| {
        bench.run(&format!("{SERVE} --key-config {more}")).refused(USAGE, parts);
    };
    refused("missing.toml --key file:key", &["missing.toml", "No such file"]);
    refused("keys.toml --key config@cinder:x --insecure fixed-key", &["[config.cinder]", "--key-config"]);
    refused("keys.toml --key config@nova:x", &["--insecure fixed-key"]);
    refused("keys.toml --key config@no/va:x", &["--key: ", "letters, digits"]);
    refused("keys.toml --key file+rot13:key", &["--key: ", "raw, hex, base64, openstack"]);
    refused("keys.toml --key file@nova:key", &["--key: ", "write file:PATH"]);
    for (text, parts) in [
        ("[comand.vm1]\n", &["wrong.toml, line 1", "comand"][..]),
        ("[command.vm1]\nargv = 'cat key'\n", &["wrong.toml, line 2"]),
        ("\n[command.vm1]\nargv = ['cat', 'key']\n", &["wrong.toml, line 3", "whole path"]),
    ] {
        fs::write(bench.path("wrong.toml"), text).unwrap();
        refused("wrong.toml --key file:key", parts);
    }
    for mode in [0o666, 0o620, 0o602] {
        bench.set_mode("keys.toml", mode);
        refused("keys.toml --key command:vm1", &["keys.toml", &format!("mode {mode:04o}"), "chmod go-w"]);
    }
}
