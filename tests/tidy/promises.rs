//! What SECURITY.md promises is held by tests that exist.

use std::path::Path;

use crate::{Complaints, TextFile, repository};

/// Where the promises stand.
const DOCUMENT: &str = "SECURITY.md";
const HEADING: &str = "## What is promised";
/// What a word begins with that names a test, or files of tests.
const PLACES: [&str; 4] = ["fuzz/", "scripts/", "src/", "tests/"];

/// Promises without a test, and tests that are not there.
pub(crate) fn complaints(texts: &[TextFile]) -> Complaints {
    let text = texts.iter().find(|file| file.path == DOCUMENT).map_or("", |file| &file.text);
    promises(text).iter().flat_map(|promise| flaws(promise, texts)).collect()
}

/// The points of the list under the heading.
fn promises(text: &str) -> Vec<String> {
    let section = text.split_once(HEADING).map_or("", |(_, behind)| behind);
    let section = section.split_once("\n## ").map_or(section, |(section, _)| section);
    section.split("\n* ").skip(1).map(str::to_owned).collect()
}

fn flaws(promise: &str, texts: &[TextFile]) -> Complaints {
    let title = promise.lines().next().unwrap_or_default();
    let words = promise.split('`').skip(1).step_by(2);
    let references: Vec<&str> =
        words.filter(|word| PLACES.iter().any(|place| word.starts_with(place))).collect();
    if references.is_empty() {
        return vec![format!("{DOCUMENT}: no test holds this: {title}")];
    }
    let missing = references.iter().filter(|reference| !is_there(reference, texts));
    missing.map(|reference| format!("{DOCUMENT}: there is no `{reference}`: {title}")).collect()
}

/// Whether there is such a file or folder, or such a function in a file.
fn is_there(reference: &str, texts: &[TextFile]) -> bool {
    match reference.split_once("::") {
        None => repository().join(Path::new(reference)).exists(),
        Some((path, name)) => {
            let function = format!("fn {name}(");
            texts.iter().any(|file| file.path == path && file.text.contains(&function))
        }
    }
}

#[test]
fn complains_of_promises_that_nothing_holds() {
    let document = |promise: &str| {
        let text = format!("# S\n\n{HEADING}\n\nEach.\n\n* {promise}\n\n## Not\n\n* **Else.** Nothing.\n");
        let test = "#[test]\nfn it_holds() {}\n#[test]\nfn it_holds_too() {}\n";
        [TextFile::new(DOCUMENT, &text), TextFile::new("tests/it/x.rs", test)]
    };
    let count = |promise: &str| complaints(&document(promise)).len();
    assert_eq!(count("**It holds.**\n  (`tests/it/x.rs::it_holds`, `tests/it/`)"), 0);
    assert_eq!(count("**It holds.** See `x`."), 1);
    assert_eq!(count("**It holds.** (`tests/it/x.rs::it`)"), 1);
    assert_eq!(
        count("**It holds.** (`tests/it/x.rs::it_holds`)\n* **So does this.** (`tests/it/y.rs::it_holds`)"),
        1
    );
    assert_eq!(count("**It holds.** (`tests/it/x.rs::it_holds`, `tests/no-such-folder/`)"), 1);
    assert_eq!(promises("no such heading\n* a"), [""; 0]);
}
