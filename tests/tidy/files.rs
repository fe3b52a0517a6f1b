//! Files that nothing uses: tests that no target reaches, data that no test reads, targets without a corpus.

use std::collections::BTreeSet;
use std::path::Path;

use proc_macro2::TokenTree;

use crate::tokens::{as_word, attributes, each_place, is_for_tests, is_punct, is_word};
use crate::{Complaints, TextFile};

/// Rust files under `folders` that no target of the package in `manifest` reaches through its `mod` lines.
pub(crate) fn forgotten_sources(manifest: &str, texts: &[TextFile], folders: &[&str]) -> Complaints {
    let find = |path: &str| texts.iter().find(|file| file.path == path);
    let package = find(manifest).unwrap_or_else(|| panic!("{manifest} is there"));
    let package_folder = manifest.strip_suffix("Cargo.toml").expect("a manifest is named so");

    let mut reached = BTreeSet::new();
    let mut roots: Vec<String> =
        target_paths(&package.text).iter().map(|path| format!("{package_folder}{path}")).collect();
    let mut is_root = true;
    while !roots.is_empty() {
        let mut next = Vec::new();
        for path in roots {
            if let Some(file) = find(&path) {
                next.extend(declared_modules(file, is_root).into_iter().map(|module| module.path));
                reached.insert(path);
            }
        }
        roots = next.into_iter().filter(|path| !reached.contains(path)).collect();
        is_root = false;
    }

    let in_folders = |path: &str| folders.iter().any(|folder| path.starts_with(folder));
    let sources = texts.iter().filter(|file| file.path.ends_with(".rs") && in_folders(&file.path));
    let forgotten = sources.filter(|file| !reached.contains(&file.path));
    forgotten.map(|file| format!("{}: no target of {manifest} reaches it", file.path)).collect()
}

/// The paths of the library and of all tests, benches and binaries that a manifest names, given or implied.
fn target_paths(manifest: &str) -> Vec<String> {
    let manifest: toml::Table = manifest.parse().expect("a manifest is TOML");
    let mut paths = vec!["src/lib.rs".to_owned()];
    for (kind, folder) in [("test", "tests"), ("bench", "benches"), ("bin", "src/bin")] {
        let targets = manifest.get(kind).and_then(toml::Value::as_array).into_iter().flatten();
        for target in targets {
            let text = |key: &str| target.get(key).and_then(toml::Value::as_str);
            let name = text("name").expect("a target has a name");
            paths.push(text("path").map_or_else(|| format!("{folder}/{name}.rs"), str::to_owned));
        }
    }
    paths
}

/// Marks the files of `src/` that only tests see: declared under `cfg(test)`, or by such a file.
pub(crate) fn mark_tests(texts: &mut [TextFile]) {
    loop {
        let is_crate_root = |path: &str| matches!(path, "src/lib.rs" | "src/main.rs");
        let sources = texts.iter().filter(|file| file.is_rust_under("src/"));
        let declared = sources.flat_map(|file| {
            let modules = declared_modules(file, is_crate_root(&file.path)).into_iter();
            modules.filter(|module| module.is_for_tests || file.is_test).map(|module| module.path)
        });
        let for_tests: BTreeSet<String> = declared.collect();
        let mut changed = false;
        for file in texts.iter_mut().filter(|file| !file.is_test && for_tests.contains(&file.path)) {
            file.is_test = true;
            changed = true;
        }
        if !changed {
            return;
        }
    }
}

/// A file that a `mod name;` line may stand for.
struct DeclaredModule {
    path: String,
    is_for_tests: bool,
}

/// The files that the `mod name;` lines of `file` may stand for.
fn declared_modules(file: &TextFile, is_root: bool) -> Vec<DeclaredModule> {
    let folder =
        Path::new(&file.path).parent().expect("a file is in a folder").to_str().expect("UTF-8").to_owned();
    let own_folder = match file.path.strip_suffix(".rs") {
        Some(stem) if !is_root && !stem.ends_with("/mod") => stem.to_owned(),
        _ => folder.clone(),
    };
    let mut modules = Vec::new();
    each_place(file, |place| {
        let [keyword, name, semicolon, ..] = place.tokens else { return };
        let Some(name) = as_word(name).filter(|_| is_word(keyword, "mod") && is_punct(semicolon, ';')) else {
            return;
        };
        let paths = match path_attribute(place.before) {
            Some(path) => vec![format!("{folder}/{path}")],
            None => vec![format!("{own_folder}/{name}.rs"), format!("{own_folder}/{name}/mod.rs")],
        };
        let is_for_tests = place.in_tests || is_for_tests(place.before);
        modules.extend(paths.into_iter().map(|path| DeclaredModule { path, is_for_tests }));
    });
    modules
}

/// The value of a `#[path = "..."]` among the attributes at the end of `before`.
fn path_attribute(before: &[TokenTree]) -> Option<String> {
    attributes(before).find_map(|attribute| {
        let tokens: Vec<TokenTree> = attribute.stream().into_iter().collect();
        match tokens.as_slice() {
            [path, equals, value] if is_word(path, "path") && is_punct(equals, '=') => {
                Some(value.to_string().trim_matches('"').to_owned())
            }
            _ => None,
        }
    })
}

/// Fuzz targets that start from nothing, and corpora of no target.
pub(crate) fn missing_corpora(texts: &[TextFile], paths: &[String]) -> Complaints {
    let manifest =
        texts.iter().find(|file| file.path == "fuzz/Cargo.toml").expect("fuzz/Cargo.toml is there");
    let manifest: toml::Table = manifest.text.parse().expect("a manifest is TOML");
    let targets: BTreeSet<&str> = manifest["bin"]
        .as_array()
        .expect("the fuzz targets are a list")
        .iter()
        .filter_map(|target| target["name"].as_str())
        .collect();
    let corpora: BTreeSet<&str> = paths
        .iter()
        .filter_map(|path| path.strip_prefix("fuzz/corpus/")?.split_once('/'))
        .map(|(target, _)| target)
        .collect();
    targets
        .symmetric_difference(&corpora)
        .map(|name| format!("fuzz/corpus/{name}: target without corpus, or the reverse"))
        .collect()
}

/// Files of `tests/data` whose name stands in no other text under `tests/`.
pub(crate) fn unused_data(paths: &[String], texts: &[TextFile]) -> Complaints {
    let data = paths.iter().filter(|path| path.starts_with("tests/data/"));
    let is_named = |path: &str| {
        let (_, name) = path.rsplit_once('/').expect("it is in a folder");
        texts
            .iter()
            .any(|file| file.path.starts_with("tests/") && file.path != path && file.text.contains(name))
    };
    let unused = data.filter(|path| !path.ends_with("/README.md") && !is_named(path));
    unused.map(|path| format!("{path}: no test names it")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package() -> Vec<TextFile> {
        vec![
            TextFile::new(
                "Cargo.toml",
                "[[test]]\nname = \"it\"\npath = \"tests/it/main.rs\"\n[[bench]]\nname = \"b\"\n",
            ),
            TextFile::new("tests/it/main.rs", "mod harness;\n#[path = \"odd/place.rs\"]\nmod ring;\n"),
            TextFile::new("tests/it/harness/mod.rs", "mod qemu;"),
            TextFile::new("tests/it/harness/qemu.rs", "mod deep;"),
            TextFile::new("tests/it/harness/qemu/deep.rs", ""),
            TextFile::new("tests/it/odd/place.rs", ""),
            TextFile::new("benches/b.rs", ""),
        ]
    }

    #[test]
    fn complains_of_a_forgotten_source() {
        let folders = &["tests/", "benches/"];
        let mut texts = package();
        assert_eq!(forgotten_sources("Cargo.toml", &texts, folders), [""; 0]);
        for forgotten in ["tests/it/device.rs", "tests/it/harness.rs/x.rs", "tests/alone.rs", "benches/c.rs"]
        {
            texts.push(TextFile::new(forgotten, ""));
            assert_eq!(forgotten_sources("Cargo.toml", &texts, folders).len(), 1, "{forgotten}");
            texts.pop();
        }
        texts[1].text = "// mod harness;\nmod ring;".to_owned();
        assert_eq!(forgotten_sources("Cargo.toml", &texts, folders).len(), 4, "nothing below is reached");
    }

    #[test]
    fn knows_which_sources_are_for_tests() {
        let mut texts = [
            TextFile::new("src/lib.rs", "mod io;\nmod toil;"),
            TextFile::new("src/io/mod.rs", "#[cfg(test)]\npub(crate) mod disks;\nmod ring;"),
            TextFile::new("src/io/disks.rs", "mod deep;"),
            TextFile::new("src/io/disks/deep.rs", ""),
            TextFile::new(
                "src/io/ring.rs",
                "#[cfg(test)]\n#[path = \"ring_tests.rs\"]\n#[rustfmt::skip]\nmod tests;",
            ),
            TextFile::new("src/io/ring_tests.rs", ""),
            TextFile::new("src/toil.rs", "mod tests;"),
            TextFile::new("src/toil/tests.rs", ""),
        ];
        mark_tests(&mut texts);
        let marked: Vec<&str> =
            texts.iter().filter(|file| file.is_test).map(|file| file.path.as_str()).collect();
        assert_eq!(marked, ["src/io/disks.rs", "src/io/disks/deep.rs", "src/io/ring_tests.rs"]);
    }

    #[test]
    fn complains_of_a_missing_or_orphaned_corpus() {
        let texts = [TextFile::new("fuzz/Cargo.toml", "[[bin]]\nname = \"turn\"\n")];
        let paths = |list: &[&str]| list.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
        assert_eq!(missing_corpora(&texts, &paths(&["fuzz/corpus/turn/1"])), [""; 0]);
        assert_eq!(missing_corpora(&texts, &paths(&[])).len(), 1);
        assert_eq!(missing_corpora(&texts, &paths(&["fuzz/corpus/turn/1", "fuzz/corpus/gone/1"])).len(), 1);
    }

    #[test]
    fn complains_of_unused_data() {
        let paths = ["tests/data/used.img".to_owned(), "tests/data/unused.img".to_owned()];
        let texts = [TextFile::new("tests/it/main.rs", "read(\"data/used.img\")")];
        assert_eq!(unused_data(&paths, &texts), ["tests/data/unused.img: no test names it"]);
    }
}
