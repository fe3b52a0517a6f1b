//! Every option of the command line is explained in the README.

use std::process::Command;

use crate::{Complaints, TextFile};

/// Options of `sealblk serve` that README.md does not mention.
pub(crate) fn missing_options(texts: &[TextFile]) -> Complaints {
    let output = Command::new(env!("CARGO_BIN_EXE_sealblk"))
        .args(["serve", "--help"])
        .output()
        .expect("the program can be started");
    assert!(output.status.success(), "sealblk serve --help: {output:?}");
    let help = String::from_utf8(output.stdout).expect("help is text");
    let readme = texts.iter().find(|file| file.path == "README.md").map_or("", |file| file.text.as_str());
    missing(&options(&help), readme)
}

/// The long options that the lines of a help text begin with, or have behind a short one.
fn options(help: &str) -> Vec<&str> {
    let lines = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    let words = lines.flat_map(|line| line.split([' ', ',', '=', '[']).take(3));
    let options: Vec<&str> = words.filter(|word| word.starts_with("--")).collect();
    assert!(options.contains(&"--help"), "these are not the options of a help text: {options:?}");
    options
}

fn missing(options: &[&str], readme: &str) -> Complaints {
    let ends_there = |rest: &str| !rest.starts_with(|next: char| next.is_ascii_alphanumeric() || next == '-');
    let is_there =
        |option: &str| readme.match_indices(option).any(|(at, _)| ends_there(&readme[at + option.len()..]));
    let missing = options.iter().filter(|option| **option != "--help" && !is_there(option));
    missing.map(|option| format!("README.md does not mention `{option}`")).collect()
}

#[test]
fn complains_of_a_missing_option() {
    let help =
        "Serves\n\nOptions:\n      --fd <N>\n          not --this one\n  -h, --help\n      --key[=<K>]\n";
    let found = options(help);
    assert_eq!(found, ["--fd", "--help", "--key"]);
    assert_eq!(missing(&found, "`--fd N` and `--key=K`"), [""; 0]);
    assert_eq!(missing(&found, "`--fd N` and `--key-size N`"), ["README.md does not mention `--key`"]);
}
