//! Keys in a key manager: made, moved, rotated and destroyed.

mod access;
mod commands;
pub(super) mod killing;
mod rotation;
mod secrecy;
mod terminal;

use serde_json::Value;

use super::volumes::REFUSED;
use super::*;

/// Where every command here finds its key managers.
const CONFIG: &str = "--key-config keys.toml";

/// 48 bytes that are text, so that any output which holds part of them can be searched for it.
const KEK_BYTES: &[u8; 48] = b"K3kThatWr4psAllTheKeys/ofThisT3st+AndN0thingElse";

impl Bench {
    /// A folder without a volume, with two keys in files and `keys.toml`, which says where a keystore is to be.
    fn before_keystore() -> Self {
        let bench = Self::without_volume();
        bench.write_key("kek", KEK_BYTES);
        fs::create_dir(bench.path("ks")).unwrap();
        bench.set_mode("ks", 0o700);
        bench.write_keystore_profile(&format!("file:{}", bench.path("kek")));
        bench
    }

    /// The same with an empty keystore.
    fn with_keystore() -> Self {
        let bench = Self::before_keystore();
        bench.manage("keystore init");
        bench
    }

    fn write_keystore_profile(&self, kek: &str) {
        let text = format!("[keystore.default]\npath = '{}'\nkek = '{kek}'\n", self.path("ks/keystore"));
        fs::write(self.path("keys.toml"), text).unwrap();
    }

    /// Runs a command on the keystore that succeeds, for what it says as JSON.
    #[track_caller]
    fn manage(&self, arguments: &str) -> Value {
        self.done(&format!("{arguments} {CONFIG}"))
    }

    /// Makes a key, for the reference to it.
    #[track_caller]
    fn create_key(&self) -> String {
        self.manage("key create")["reference"].as_str().unwrap().to_owned()
    }

    /// Whether `reference` names a key that is there and opens the volume.
    fn opens(&self, reference: &str) -> bool {
        let ended =
            self.run(&format!("slot add vol --key {reference} --new-key {reference} --json {CONFIG}"));
        assert!([0, KEY].contains(&ended.code), "{}", ended.stderr);
        ended.code == 0
    }
}
