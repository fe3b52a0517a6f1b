//! The rules of the source tree, checked: layering, where `unsafe` may stand, lengths, words, forgotten files.
//!
//! A rule is a function from text to complaints, so that each has a test beside it that feeds it bad text and
//! sees it complain. Here the rules meet the real tree.

#[path = "tidy/files.rs"]
mod files;
#[path = "tidy/layering.rs"]
mod layering;
#[path = "tidy/lengths.rs"]
mod lengths;
#[path = "tidy/promises.rs"]
mod promises;
#[path = "tidy/readme.rs"]
mod readme;
#[path = "tidy/scripts.rs"]
mod scripts;
#[path = "tidy/tokens.rs"]
mod tokens;
#[path = "tidy/words.rs"]
mod words;

use std::fs;
use std::path::{Path, PathBuf};

/// A text file of the repository.
pub(crate) struct TextFile {
    /// Relative to the repository, with forward slashes.
    pub(crate) path: String,
    pub(crate) text: String,
    /// Whether it is compiled for tests only.
    pub(crate) is_test: bool,
}

impl TextFile {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned(), is_test: !path.starts_with("src/") }
    }

    fn is_rust_under(&self, folder: &str) -> bool {
        self.path.starts_with(folder) && self.path.ends_with(".rs")
    }
}

/// What a rule says against a file: where, what, and what to do.
pub(crate) type Complaints = Vec<String>;

pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file of the repository, build products aside.
pub(crate) fn all_paths() -> Vec<String> {
    const NOT_OURS: [&str; 5] = [".git", "target", "fuzz/target", "fuzz/artifacts", "fuzz/coverage"];
    let mut paths = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let entries =
            fs::read_dir(repository().join(&folder)).expect("a folder of the repository is readable");
        for entry in entries {
            let entry = entry.expect("a folder of the repository is readable");
            let path = folder.join(entry.file_name());
            let name = path.to_str().expect("a path of the repository is UTF-8").to_owned();
            if NOT_OURS.contains(&name.as_str()) {
                continue;
            }
            if entry.file_type().expect("a file of the repository has a type").is_dir() {
                folders.push(path);
            } else {
                paths.push(name);
            }
        }
    }
    paths.sort();
    paths
}

/// Every text file of the repository.
pub(crate) fn all_texts() -> Vec<TextFile> {
    let read = |path: String| {
        let bytes = fs::read(repository().join(&path)).expect("a file of the repository is readable");
        String::from_utf8(bytes).ok().map(|text| TextFile::new(&path, &text))
    };
    let mut texts: Vec<_> = all_paths().into_iter().filter_map(read).collect();
    files::mark_tests(&mut texts);
    assert!(texts.iter().any(|file| file.path == "src/lib.rs"), "the walk found the sources");
    texts
}

#[track_caller]
fn assert_tidy(complaints: Complaints) {
    assert!(complaints.is_empty(), "\n\n{}\n", complaints.join("\n"));
}

/// Runs `rule` over the Rust files under `folder`.
#[track_caller]
fn assert_rust_tidy(folder: &str, rule: impl Fn(&TextFile) -> Complaints) {
    let texts = all_texts();
    assert_tidy(texts.iter().filter(|file| file.is_rust_under(folder)).flat_map(rule).collect());
}

#[test]
fn every_floor_names_only_floors_below_it() {
    assert_rust_tidy("src/", layering::complaints);
}

#[test]
fn the_floors_have_no_cycle() {
    assert_tidy(layering::cycles(layering::FLOORS));
}

#[test]
fn unsafe_code_is_where_it_may_be() {
    assert_rust_tidy("src/", words::unsafe_elsewhere);
}

#[test]
fn files_are_short() {
    assert_rust_tidy("src/", |file| lengths::long_file(file, lengths::LONG_FILES));
    assert_tidy(lengths::stale_entries(lengths::LONG_FILES, &all_paths()));
}

#[test]
fn functions_fit_a_screen() {
    assert_rust_tidy("src/", |file| lengths::long_functions(file, lengths::LONG_FUNCTIONS));
}

#[test]
fn modules_say_what_they_are_for() {
    assert_rust_tidy("", words::banned_module_names);
}

#[test]
fn nothing_is_left_to_do() {
    assert_rust_tidy("", words::leftover_macros);
}

#[test]
fn serving_a_disk_only_fetches_keys() {
    assert_rust_tidy("src/", words::key_administration);
}

#[test]
fn nothing_unwraps_outside_tests() {
    assert_rust_tidy("src/", words::unwraps);
}

#[test]
fn no_file_names_a_place_on_somebodys_machine() {
    assert_tidy(all_texts().iter().flat_map(words::machine_paths).collect());
}

#[test]
fn no_test_bench_or_fuzz_target_is_forgotten() {
    let texts = all_texts();
    assert_tidy(files::forgotten_sources("Cargo.toml", &texts, &["tests/", "benches/"]));
    assert_tidy(files::forgotten_sources("fuzz/Cargo.toml", &texts, &["fuzz/"]));
}

#[test]
fn every_fuzz_target_has_a_corpus() {
    assert_tidy(files::missing_corpora(&all_texts(), &all_paths()));
}

#[test]
fn every_piece_of_test_data_is_used() {
    assert_tidy(files::unused_data(&all_paths(), &all_texts()));
}

#[test]
fn every_script_runs_explains_itself_and_is_offered() {
    assert_tidy(scripts::complaints(&all_texts()));
}

#[test]
fn every_option_is_in_the_readme() {
    assert_tidy(readme::missing_options(&all_texts()));
}

#[test]
fn every_promise_is_held_by_a_test() {
    let texts = all_texts();
    let promised =
        texts.iter().any(|file| file.path == "SECURITY.md" && file.text.contains("## What is promised"));
    assert!(promised, "SECURITY.md says what is promised");
    assert_tidy(promises::complaints(&texts));
}
