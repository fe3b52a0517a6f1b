//! What to tell `serve` of an ephemeral disk.

use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use crate::ephemeral::DiskFormat;
use crate::keys::KeyReference;

/// The options by which `serve` finds disk and key: all that it needs but the socket, whose place is the VMM's choice.
/// The field names are those of its configuration file.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct DiskOptions {
    blk_file: PathBuf,
    format: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sector_size: Option<u32>,
    key: KeyReference,
    #[serde(skip_serializing_if = "Option::is_none")]
    expect_uuid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_config: Option<PathBuf>,
}

/// The same, as it is printed: `arguments` for a command line, `config` for a configuration file.
#[derive(Debug)]
pub(super) struct ServeOptions(DiskOptions);

impl ServeOptions {
    /// For the disk at `path`. `key_config` is the key configuration file, if it is not the usual one.
    pub(super) fn new(
        path: &Path,
        format: DiskFormat,
        uuid: uuid::Uuid,
        key: KeyReference,
        key_config: Option<PathBuf>,
    ) -> Self {
        let (format, sector_size, expect_uuid) = match format {
            DiskFormat::Luks2 => ("luks2", None, Some(uuid.to_string())),
            DiskFormat::Plain(sector_size) => ("plain", Some(sector_size.bytes()), None),
        };
        Self(DiskOptions { blk_file: path.to_owned(), format, sector_size, key, expect_uuid, key_config })
    }

    /// For an argument vector.
    fn arguments(&self) -> Vec<String> {
        let options = &self.0;
        let path = |path: &PathBuf| path.display().to_string();
        let optional = [
            ("--sector-size", options.sector_size.map(|bytes| bytes.to_string())),
            ("--key", Some(options.key.to_string())),
            ("--expect-uuid", options.expect_uuid.clone()),
            ("--key-config", options.key_config.as_ref().map(path)),
        ];
        let mut arguments = vec!["--blk-file".to_owned(), path(&options.blk_file)];
        arguments.extend(["--format".to_owned(), options.format.to_owned()]);
        for (option, value) in optional {
            arguments.extend(value.into_iter().flat_map(|value| [option.to_owned(), value]));
        }
        arguments
    }

    /// For a configuration file.
    fn config(&self) -> String {
        toml::to_string(&self.0).expect("paths of disks are text, and so is everything else")
    }

    /// For a shell.
    pub(super) fn command_line(&self) -> String {
        let words = self.arguments().into_iter().map(|argument| quoted(&argument));
        format!("sealblk serve --socket-path SOCKET {}", words.collect::<Vec<_>>().join(" "))
    }
}

impl Serialize for ServeOptions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shown {
            arguments: Vec<String>,
            config: String,
        }
        Shown { arguments: self.arguments(), config: self.config() }.serialize(serializer)
    }
}

/// A word that a shell takes as it is.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+=:@#%,".contains(c);
    // A `#` begins a comment only where a word begins.
    match word.chars().all(is_plain) && !word.is_empty() && !word.starts_with('#') {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::SectorSize;

    #[test]
    fn both_ways_say_the_same() {
        let key: KeyReference = "keystore@prod:8e5b".parse().unwrap();
        let uuid = uuid::Uuid::nil();
        let luks = ServeOptions::new(Path::new("/a b/it's"), DiskFormat::Luks2, uuid, key.clone(), None);
        assert_eq!(
            luks.command_line(),
            format!(
                r"sealblk serve --socket-path SOCKET --blk-file '/a b/it'\''s' --format luks2 --key keystore@prod:8e5b --expect-uuid {uuid}"
            )
        );
        let plain = DiskFormat::Plain(SectorSize::BYTES_4096);
        let plain = ServeOptions::new(Path::new("/d"), plain, uuid, key, Some("/k.toml".into()));
        assert_eq!(
            plain.config(),
            "blk-file = \"/d\"\nformat = \"plain\"\nsector-size = 4096\nkey = \"keystore@prod:8e5b\"\n\
             key-config = \"/k.toml\"\n"
        );
        let table: toml::Table = luks.config().parse().unwrap();
        for (option, value) in luks.arguments().iter().zip(luks.arguments().iter().skip(1)).step_by(2) {
            assert_eq!(table[option.trim_start_matches("--")].as_str(), Some(value.as_str()));
        }
        assert_eq!(quoted("#x"), "'#x'");
        assert_eq!(quoted(""), "''");
    }
}
