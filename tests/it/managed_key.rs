//! A disk whose key is in the embedded keystore, from the making of both to their end.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::request::*;
use crate::harness::volume::write_key;
use crate::harness::*;

const KEY_EXIT: i32 = 5;

/// A host with an empty keystore and no volume.
struct Host {
    folder: TempDir,
}

impl Host {
    fn new() -> Self {
        let host = Self { folder: tempfile::tempdir().expect("temporary directory") };
        DirBuilder::new().mode(0o700).create(host.path("keys")).expect("a folder for the keystore");
        let kek = write_key(host.folder.path(), &pattern(7, 32));
        let profile = format!(
            "[keystore.default]\npath = '{}'\nkek = 'file:{}'\n",
            host.path("keys/store").display(),
            kek.display()
        );
        fs::write(host.path("keys.toml"), profile).expect("write the key configuration");
        host.run("keystore init");
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn output(&self, arguments: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealblk"));
        command.args(arguments.split(' ')).args(["--key-config", "keys.toml"]);
        command.current_dir(&self.folder).output().expect("run the program")
    }

    /// Runs a command that succeeds, for what it says as JSON.
    fn run(&self, arguments: &str) -> Value {
        let output = self.output(&format!("{arguments} --json"));
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("the result is JSON")
    }

    /// Serves the volume with `key`.
    fn serve(&self, key: &str) -> Backend {
        let config = self.path("keys.toml");
        let config = config.to_str().expect("temporary paths are text");
        Serve::luks_at(&self.path("disk"), &["--key", key, "--key-config", config]).start()
    }

    /// Asserts that `serve` ends because of its key, and says what is in `part`.
    fn assert_refuses(&self, key: &str, part: &str) {
        let output = self.output(&format!("serve --socket-path s --blk-file disk --key {key}"));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(KEY_EXIT) && stderr.contains(part), "{stderr}");
    }
}

#[test]
fn a_disk_lives_as_long_as_its_key_in_the_keystore() {
    let host = Host::new();
    let made = host.run("key create --name vm1 --volume disk");
    let key = made["reference"].as_str().expect("a reference");
    host.run(&format!("format disk --size 4M --key {key}"));
    let data = pattern(1, 1 << 16);

    let mut backend = host.serve(key);
    let frontend = Frontend::connect(backend.socket());
    frontend.run(&Request::write(64, &data)).ok();
    frontend.run(&Request::flush()).ok();
    // Nothing of the guest's notices that its disk has another key from here on.
    let rotated = host.run(&format!("key rotate --volume disk --key {key} --destroy-old --yes"));
    assert_eq!(rotated["key"], format!("{key}#2"));
    assert!(frontend.run(&Request::read(64, data.len())).ok() == data, "beside a rotation");
    frontend.run(&Request::write(1024, &data)).ok();
    drop(frontend);
    backend.terminate();

    host.assert_refuses(&format!("{key}#1"), "version 1 was destroyed");
    let mut backend = host.serve(key);
    let frontend = Frontend::connect(backend.socket());
    for sector in [64, 1024] {
        assert!(frontend.run(&Request::read(sector, data.len())).ok() == data, "with the new version");
    }
    drop(frontend);
    backend.terminate();

    host.run(&format!("key destroy {key} --yes"));
    host.assert_refuses(key, "was destroyed");
    // Nor does any other key of this host.
    let other = host.run("key create");
    host.assert_refuses(other["reference"].as_str().expect("a reference"), "opens no key slot");
    host.run("keystore verify");
}

#[test]
fn an_ephemeral_disk_lives_as_long_as_its_key() {
    let host = Host::new();
    for format in ["luks2", "plain --sector-size 4096"] {
        let made = host.run(&format!("ephemeral create --file disk --size 4M --format {format}"));
        let arguments = made["serve"]["arguments"].as_array().expect("what serve is to be told").iter();
        let arguments: Vec<&str> = arguments.map(|word| word.as_str().expect("a word")).collect();
        let (file, others) = arguments.split_at(2);
        assert_eq!(file[0], "--blk-file");
        let data = pattern(3, 1 << 16);

        let mut backend = Serve::luks_at(&PathBuf::from(file[1]), others).start();
        let frontend = Frontend::connect(backend.socket());
        frontend.run(&Request::write(64, &data)).ok();
        frontend.run(&Request::flush()).ok();
        assert!(frontend.run(&Request::read(64, data.len())).ok() == data);
        drop(frontend);
        backend.terminate();
        let image = fs::read(file[1]).expect("the disk is there");
        assert!(!image.windows(64).any(|window| window == &data[..64]), "the guest's data shows");

        host.run("ephemeral destroy --file disk --yes");
        // A copy that somebody kept.
        fs::write(host.path("disk"), image).expect("bring the disk back");
        host.assert_refuses(made["key"].as_str().expect("a reference"), "was destroyed");
        fs::remove_file(host.path("disk")).expect("remove the copy");
    }
    host.run("keystore verify");
}
