//! Every option of the command line is explained in the README, or in the document that it refers to.

use std::process::Command;

use crate::{Complaints, TextFile};

/// Each command with the document that explains its options.
const EXPLAINED: &[(&str, &str)] = &[
    ("serve", "README.md"),
    ("bench", "README.md"),
    ("control", "docs/control.md"),
    ("suspend", "docs/control.md"),
    ("resume", "README.md"),
    ("format", "docs/volumes.md"),
    ("inspect", "docs/volumes.md"),
    ("slot list", "docs/volumes.md"),
    ("slot add", "docs/volumes.md"),
    ("slot change", "docs/volumes.md"),
    ("slot remove", "docs/volumes.md"),
    ("convert", "docs/volumes.md"),
    ("ephemeral create", "docs/ephemeral.md"),
    ("ephemeral destroy", "docs/ephemeral.md"),
    ("ephemeral list", "docs/ephemeral.md"),
    ("header backup", "docs/volumes.md"),
    ("header restore", "docs/volumes.md"),
    ("key create", "docs/keys.md"),
    ("key list", "docs/keys.md"),
    ("key show", "docs/keys.md"),
    ("key rotate", "docs/keys.md"),
    ("key destroy", "docs/keys.md"),
    ("key import", "docs/keys.md"),
    ("key export", "docs/keys.md"),
    ("key audit", "docs/keys.md"),
    ("key doctor", "docs/keys.md"),
    ("keystore init", "docs/keystore.md"),
    ("keystore verify", "docs/keystore.md"),
    ("keystore rotate-kek", "docs/keystore.md"),
    ("keystore copy", "docs/keystore.md"),
    ("keystore grant", "docs/keystore.md"),
    ("keystore revoke", "docs/keystore.md"),
    ("keystore access", "docs/keystore.md"),
];

/// Options of any command that its document does not mention.
pub(crate) fn missing_options(texts: &[TextFile]) -> Complaints {
    EXPLAINED.iter().flat_map(|(command, document)| missing_options_of(command, document, texts)).collect()
}

fn missing_options_of(command: &str, document: &str, texts: &[TextFile]) -> Complaints {
    let output = Command::new(env!("CARGO_BIN_EXE_sealblk"))
        .args(command.split(' '))
        .arg("--help")
        .output()
        .expect("the program can be started");
    assert!(output.status.success(), "sealblk {command} --help: {output:?}");
    let help = String::from_utf8(output.stdout).expect("help is text");
    let text = texts.iter().find(|file| file.path == document).map_or("", |file| file.text.as_str());
    missing(&options(&help), text).into_iter().map(|option| format!("{document}: {option}")).collect()
}

/// The long options that the lines of a help text begin with, or have behind a short one.
fn options(help: &str) -> Vec<&str> {
    let lines = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    let words = lines.flat_map(|line| line.split([' ', ',', '=', '[']).take(3));
    let options: Vec<&str> = words.filter(|word| word.starts_with("--")).collect();
    assert!(options.contains(&"--help"), "these are not the options of a help text: {options:?}");
    options
}

fn missing(options: &[&str], text: &str) -> Complaints {
    let ends_there = |rest: &str| !rest.starts_with(|next: char| next.is_ascii_alphanumeric() || next == '-');
    let is_there =
        |option: &str| text.match_indices(option).any(|(at, _)| ends_there(&text[at + option.len()..]));
    let missing = options.iter().filter(|option| **option != "--help" && !is_there(option));
    missing.map(|option| format!("`{option}` is not mentioned")).collect()
}

#[test]
fn complains_of_a_missing_option() {
    let help =
        "Serves\n\nOptions:\n      --fd <N>\n          not --this one\n  -h, --help\n      --key[=<K>]\n";
    let found = options(help);
    assert_eq!(found, ["--fd", "--help", "--key"]);
    assert_eq!(missing(&found, "`--fd N` and `--key=K`"), [""; 0]);
    assert_eq!(missing(&found, "`--fd N` and `--key-size N`"), ["`--key` is not mentioned"]);
}
