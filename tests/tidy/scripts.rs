//! Every script can be run, says how, and is offered in the README or in the contributor's guide.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use crate::{Complaints, TextFile, repository};

/// What is wrong with the scripts among `texts`. Runs each of them with `--help`.
pub(crate) fn complaints(texts: &[TextFile]) -> Complaints {
    let guides = texts.iter().filter(|file| matches!(file.path.as_str(), "README.md" | "CONTRIBUTING.md"));
    let guides: String = guides.map(|file| file.text.as_str()).collect();
    let mut complaints = Complaints::new();
    // Folders under scripts/ hold what a script works with.
    let is_script =
        |path: &str| path.starts_with(".ci/") || path.rsplit_once('/').is_some_and(|p| p.0 == "scripts");
    for script in texts.iter().filter(|file| is_script(&file.path)) {
        let metadata = fs::metadata(repository().join(&script.path)).expect("the script is there");
        let found = flaws(script, metadata.permissions().mode(), &guides);
        if found.is_empty() {
            complaints.extend(help_flaw(&script.path));
        }
        complaints.extend(found);
    }
    complaints
}

fn flaws(script: &TextFile, mode: u32, guides: &str) -> Complaints {
    let is_executable = mode & 0o111 == 0o111;
    let explains_itself = script.text.contains("--help") && script.text.contains("\nusage: ");
    let is_strict =
        !script.text.starts_with("#!/usr/bin/env bash") || script.text.contains("\nset -euo pipefail\n");
    let is_offered = guides.contains(&script.path) || script.path.starts_with(".ci/");
    let checks = [
        (script.text.starts_with("#!"), "has no #! line"),
        (is_executable, "is not executable"),
        (is_strict, "goes on after an error: `set -euo pipefail`"),
        (explains_itself, "does not explain itself: `--help`, and a line that starts with `usage: `"),
        (is_offered, "is not in README.md or CONTRIBUTING.md"),
    ];
    let failed = checks.iter().filter(|(is_right, _)| !is_right);
    failed.map(|(_, flaw)| format!("{}: {flaw}", script.path)).collect()
}

/// What is wrong with what the script at `path` prints when asked for help.
fn help_flaw(path: &str) -> Option<String> {
    let output = Command::new(repository().join(path))
        .arg("--help")
        .stdin(Stdio::null())
        .output()
        .expect("an executable script can be started");
    let is_right = output.status.success() && output.stdout.starts_with(format!("usage: {path} ").as_bytes());
    (!is_right).then(|| format!("{path} --help: does not print `usage: {path} ...` and succeed"))
}

#[test]
fn complains_of_a_flawed_script() {
    let good = "#!/usr/bin/env bash\nset -euo pipefail\ncat <<'X'\nusage: scripts/x [--help]\nX\n";
    let flaws_of = |text: &str, mode, readme| flaws(&TextFile::new("scripts/x", text), mode, readme).len();
    assert_eq!(flaws_of(good, 0o100755, "run `scripts/x`"), 0);
    assert_eq!(flaws_of(good, 0o100644, "run `scripts/x`"), 1);
    assert_eq!(flaws_of(good, 0o100755, "run `scripts/y`"), 1);
    assert_eq!(flaws_of(&good.replace("usage: ", ""), 0o100755, "run `scripts/x`"), 1);
    assert_eq!(flaws_of(&good.replace("--help", ""), 0o100755, "run `scripts/x`"), 1);
    assert_eq!(flaws_of(&good.replace("set -euo pipefail", ""), 0o100755, "run `scripts/x`"), 1);
    assert_eq!(flaws_of(&good[1..], 0o100755, "run `scripts/x`"), 1);
}
