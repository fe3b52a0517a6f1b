//! `sealblk control` as an operator meets it: what it prints, how it exits, and sockets that lead nowhere.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use serde_json::{Value, json};

use super::sockets::{Running, wait_for};
use super::*;

const COMMANDS: [&str; 8] = ["status", "drain", "resume", "resize", "flush", "retry", "limit", "shutdown"];

impl Bench {
    /// Serves the volume, with the control socket `c`.
    fn controlled(&self, more: &str) -> Running {
        let server = Running::start(
            self,
            &format!(
                "serve --socket-path s --control-socket c --format plain --blk-file vol --key file:key {more}"
            ),
        );
        wait_for(|| UnixStream::connect(self.path("c")).is_ok());
        server
    }

    /// Gives a command that succeeds, and returns what it prints.
    #[track_caller]
    fn control(&self, command: &str) -> String {
        let ended = self.run(&format!("control c {command}"));
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{command}");
        ended.stdout
    }

    #[track_caller]
    fn control_json(&self, command: &str) -> Value {
        let text = self.control(&format!("{command} --json"));
        assert_eq!(text.lines().count(), 1, "one JSON object: {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// A server of another kind at the socket `c`: it answers the first line with `answer`, and hangs up.
    fn impostor(&self, answer: &'static [u8]) -> thread::JoinHandle<String> {
        let _ = fs::remove_file(self.path("c"));
        let listener = UnixListener::bind(self.path("c")).unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            // Whoever asks may not want to hear all of it.
            let _ = stream.write_all(answer);
            line
        })
    }
}

#[test]
fn each_command_says_what_it_did() {
    let bench = Bench::new();
    let server = bench.controlled("");
    for (command, text, result) in [
        (
            "drain",
            "drained: everything is durable, and no queue runs until `resume`\n",
            json!({"drained": true}),
        ),
        ("resume", "the queues run\n", json!({"drained": false})),
        ("flush", "everything is durable\n", json!({})),
        ("retry", "requests that are tried again: 0\n", json!({"retried": 0})),
        (
            "resize",
            "the disk has 1 MiB (1048576 bytes), as before\n",
            json!({"before_bytes": 1 << 20, "capacity_bytes": 1 << 20, "vmm_told": false}),
        ),
    ] {
        assert_eq!(bench.control(command), text);
        assert_eq!(bench.control_json(command), result, "{command}");
    }
    OpenOptions::new().write(true).open(bench.path("vol")).unwrap().set_len(2 << 20).unwrap();
    assert_eq!(
        bench.control("resize"),
        "the disk has 2 MiB (2097152 bytes) now; the VMM will see that when it connects again\n"
    );
    assert_eq!(server.terminate(), 0);
}

#[test]
fn status_is_a_summary_for_people_and_an_object_for_programs() {
    let bench = Bench::new();
    let server = bench.controlled("--num-queues 2 --read-only");
    let text = bench.control("status");
    for part in [
        &format!("process      {}, sealblk {}\n", server.id(), env!("CARGO_PKG_VERSION")),
        "volume       vol\n",
        "disk         1 MiB (1048576 bytes), encrypted, read-only, sectors of 512 bytes, blocks of 512\n",
        "VMM          not connected\n",
    ] {
        assert!(text.contains(part), "no `{part}` in:\n{text}");
    }
    assert!(!text.contains("drained"), "{text}");
    let status = bench.control_json("status");
    assert_eq!(bench.control_json("status"), status, "asking changes nothing");
    let short = bench.run("status c --json").stdout;
    assert_eq!(serde_json::from_str::<Value>(&short).unwrap(), status);
    let members = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let expected = ["drained", "limits", "pid", "queues", "sealblk", "suspended", "vmm_connected", "volume"];
    assert_eq!(members(&status), expected);
    assert_eq!((&status["pid"], &status["vmm_connected"]), (&server.id().into(), &false.into()));
    assert_eq!(
        members(&status["volume"]),
        [
            "block_bytes",
            "capacity_bytes",
            "encrypted",
            "path",
            "read_only",
            "sector_bytes",
            "sync_failed",
            "write_cache",
        ]
    );
    assert_eq!(status["queues"].as_array().unwrap().len(), 2);
    assert_eq!(status["queues"][1]["state"], "stopped");
    bench.control("drain");
    assert!(bench.control("status").contains("drained      no queue runs until `resume`\n"));
    assert_eq!(bench.control_json("status")["drained"], true);
}

#[test]
fn limits_are_given_changed_and_lifted() {
    let bench = Bench::new();
    let server = bench.controlled("--limit-iops 500 --limit-bytes 1M --limit-bytes-burst 8M");
    let shown = "500 requests a second, 50 requests at once; \
                 1 MiB (1048576 bytes) a second, 8 MiB (8388608 bytes) at once\n";
    assert!(bench.control("status").contains(&format!("limits       {shown}")));
    assert_eq!(bench.control("limit --iops 7 --iops-burst 9"), "7 requests a second, 9 requests at once\n");
    let limits = json!({"requests": {"per_second": 7, "burst": 9}, "bytes": null});
    assert_eq!(bench.control_json("status")["limits"], limits);
    assert_eq!(bench.control_json("limit --iops 7 --iops-burst 9"), limits);
    assert_eq!(bench.control("limit"), "no limits\n");
    assert!(!bench.control("status").contains("limits"));
    bench.run("control c limit --iops 0").refused(USAGE, &["--iops 0 is not possible", "1 or more"]);
    bench.run("control c limit --bytes-burst 1M").refused(USAGE, &["--bytes-burst", "only with --bytes"]);
    assert_eq!(server.terminate(), 0);
}

#[test]
fn what_is_refused_says_why_in_one_line() {
    let bench = Bench::new();
    let server = bench.controlled("");
    OpenOptions::new().write(true).open(bench.path("vol")).unwrap().set_len(VOLUME_BYTES / 2).unwrap();
    for json in ["", " --json"] {
        bench.run(&format!("control c resize{json}")).refused(FAILURE, &["shrunk", "1048576"]);
    }
    assert_eq!(bench.control_json("status")["volume"]["capacity_bytes"], VOLUME_BYTES);
    bench.run("control c dance").refused(USAGE, &["dance", "sealblk control --help"]);
    bench.run("control c").refused(USAGE, &["sealblk control"]);
    assert_eq!(server.terminate(), 0);
}

#[test]
fn shutdown_returns_when_the_process_has_ended() {
    for json in ["", " --json"] {
        let bench = Bench::new();
        let server = bench.controlled("");
        let told = bench.control(&format!("shutdown{json}"));
        assert_eq!(told, if json.is_empty() { "ended, and everything is durable\n" } else { "{}\n" });
        assert!(!Path::new(&bench.path("c")).exists() && !Path::new(&bench.path("s")).exists());
        assert_eq!(server.end(), 0);
        // The volume is free.
        drop(bench.controlled(""));
    }
}

#[test]
fn a_socket_where_nobody_listens_is_named() {
    let bench = Bench::new();
    for command in COMMANDS {
        bench
            .run(&format!("control c {command}"))
            .refused(SOCKET, &["cannot connect to control socket c", "No such file"]);
    }
    drop(UnixListener::bind(bench.path("c")).unwrap());
    bench.run("control c status").refused(SOCKET, &["control socket c", "Connection refused"]);
    fs::write(bench.path("file"), "").unwrap();
    bench.run("control file status").refused(SOCKET, &["control socket file", "Connection refused"]);
    let long = "x".repeat(108);
    bench.run(&format!("control {long} status")).refused(SOCKET, &["control socket", &long]);

    // What a killed server has left makes way for the next one.
    let killed = bench.controlled("");
    drop(killed);
    bench.run("control c status").refused(SOCKET, &["Connection refused"]);
    let server = bench.controlled("");
    bench.control("status");
    assert_eq!(server.terminate(), 0);
}

#[test]
fn who_else_listens_there_is_not_believed() {
    let bench = Bench::new();
    for (answer, why) in [
        (&b""[..], "unexpected end of file"),
        (b"HTTP/1.1 400 Bad Request\r\n", "expected value"),
        (b"{\"version\":1,\"result\":{}", "unexpected end of file"),
        (b"{\"version\":2,\"result\":{}}\n", "it speaks version 2, this is version 1"),
        (b"{\"version\":1}\n", "no answer"),
        (b"{\"version\":1,\"result\":{\"pid\":\"x\"}}\n", "expected u32"),
    ] {
        let server = bench.impostor(answer);
        bench.run("control c status").refused(FAILURE, &["no answer from control socket c", why]);
        assert_eq!(server.join().unwrap(), "{\"version\":1,\"command\":\"status\"}\n");
    }
    let server = bench.impostor(b"{\"version\":1,\"error\":{\"kind\":\"refused\",\"message\":\"a\\nb\"}}\n");
    bench.run("control c flush").refused(FAILURE, &["a"]);
    server.join().unwrap();
}

#[test]
fn a_control_socket_in_use_is_left_alone() {
    let bench = Bench::new();
    File::create(bench.path("vol2")).unwrap().set_len(VOLUME_BYTES).unwrap();
    let server = bench.controlled("");
    let second = "serve --socket-path s2 --control-socket c --format plain --blk-file vol2 --key file:key";
    bench
        .run(&format!("{second} --log-level error"))
        .refused(SOCKET, &["socket c", "in use by a live process"]);
    assert_eq!(bench.control_json("status")["pid"], server.id());
    // Nor is the VMM's socket mistaken for it.
    fs::write(bench.path("file"), "a file").unwrap();
    bench
        .run(&format!("{second} --log-level error").replace("socket c", "socket file"))
        .refused(SOCKET, &["file exists and is not a socket"]);
    assert_eq!(fs::read(bench.path("file")).unwrap(), b"a file");
    assert_eq!(server.terminate(), 0);
}
