//! Disks that end with their key: made, served, listed and destroyed, with a real keystore, and with a stand-in for the
//! tools of LVM.

mod crash;
mod files;
mod lvm;

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStderr, Stdio};

use serde_json::Value;

use super::*;

const REFUSED: i32 = 9;
const MIB: u64 = 1 << 20;

/// The standing of a disk, as `list` tells it.
#[derive(Debug, PartialEq, Eq)]
struct Standing {
    uuid: String,
    state: String,
    place: String,
}

impl Bench {
    /// A folder with a keystore, which is empty.
    fn with_disk_keys() -> Self {
        Self::with_disk_keys_in(tempfile::tempdir().unwrap())
    }

    fn with_disk_keys_in(folder: TempDir) -> Self {
        let bench = Self { folder };
        fs::create_dir(bench.path("store")).unwrap();
        bench.set_mode("store", 0o700);
        bench.write_key("kek", &KEY_BYTES[..]);
        let keys = format!(
            "[keystore.default]\npath = '{}'\nkek = 'file:{}'\n",
            bench.path("store/keystore"),
            bench.path("kek")
        );
        bench.write_key("keys.toml", keys.as_bytes());
        bench.ok("keystore init");
        bench
    }

    /// The command for a run with that keystore. The stand-in for LVM is where `PATH` leads first, if there is one.
    fn keystore_command(&self, arguments: &str) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(arguments.split_ascii_whitespace()).args(["--key-config", "keys.toml"]);
        command.current_dir(&self.folder).env("PATH", self.path("bin")).env("STAND_IN", self.path("lvm"));
        command
    }

    fn keystore_run(&self, arguments: &str) -> Ended {
        self.finish(&mut self.keystore_command(arguments))
    }

    /// Runs a command that succeeds, for what it says as JSON.
    #[track_caller]
    fn ok(&self, arguments: &str) -> Value {
        let ended = self.keystore_run(&format!("{arguments} --json"));
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{arguments}");
        assert_eq!(ended.stdout.lines().count(), 1, "one JSON object: {}", ended.stdout);
        serde_json::from_str(&ended.stdout).unwrap()
    }

    /// What `list` says, with the files of the folder.
    #[track_caller]
    fn standings(&self) -> Vec<Standing> {
        let listing = self.ok("ephemeral list --folder .");
        let disks = listing["disks"].as_array().unwrap().iter();
        disks.map(Standing::of).collect()
    }

    #[track_caller]
    fn states(&self) -> Vec<String> {
        self.standings().into_iter().map(|standing| standing.state).collect()
    }

    /// Runs `serve` as `create` or `list` said that it should, until it is ready or has failed; how it failed.
    fn served_as_told(&self, told: &Value) -> Option<Ended> {
        let config = told["serve"]["config"].as_str().unwrap();
        fs::write(self.path("serve.toml"), format!("socket-path = 's'\n{config}")).unwrap();
        let arguments: Vec<&str> = told["serve"]["arguments"]
            .as_array()
            .unwrap()
            .iter()
            .map(|word| word.as_str().unwrap())
            .collect();
        let by_file = self.ready_or_failed(&["--config", "serve.toml"]);
        let by_arguments = self.ready_or_failed(&[&["--socket-path", "s"], &arguments[..]].concat());
        assert_eq!(by_file.as_ref().map(|ended| ended.code), by_arguments.as_ref().map(|ended| ended.code));
        by_file
    }

    fn ready_or_failed(&self, arguments: &[&str]) -> Option<Ended> {
        Served::start(self, arguments).err()
    }
}

/// A `sealblk serve` that waits for its VMM, until dropped.
struct Served {
    process: Child,
    socket: String,
    /// Held open, or the process could not log.
    _log: BufReader<ChildStderr>,
}

impl Served {
    /// Waits until it is ready, or has ended.
    fn start(bench: &Bench, arguments: &[&str]) -> Result<Self, Ended> {
        let mut command = Command::new(PROGRAM);
        command.arg("serve").args(arguments).current_dir(&bench.folder).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("waiting for the VMM") {
            if log.read_line(&mut said).unwrap() == 0 {
                let code = process.wait().unwrap().code().unwrap();
                return Err(Ended { code, stdout: String::new(), stderr: said });
            }
        }
        Ok(Self { process, socket: bench.path("s"), _log: log })
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_file(&self.socket);
    }
}

impl Standing {
    fn of(disk: &Value) -> Self {
        let text = |name: &str| disk[name].as_str().map(str::to_owned);
        Self {
            uuid: text("uuid").unwrap(),
            state: text("state").unwrap(),
            place: text("file").or(text("lvm")).unwrap(),
        }
    }
}
