//! Logical volumes, through the tools of LVM: they are found on `PATH`, run by their whole path and without a shell, and
//! asked for JSON (lvmreport(7)).

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde::Deserialize;
use uuid::Uuid;

use super::place::LvName;

/// Begins the tag of a volume that is an ephemeral disk; its UUID follows.
const TAG: &str = "sealblk-ephemeral=";

/// Most of a tool's complaint that is repeated.
const COMPLAINT_CHARS_MAX: usize = 500;

/// Why LVM does not do what it is asked for.
#[derive(Debug, thiserror::Error)]
pub enum LvmError {
    /// There is no such tool.
    #[error("there is no `{tool}` on PATH: install LVM (package lvm2), or use --file")]
    Missing {
        /// What was looked for.
        tool: &'static str,
    },
    /// It is there and cannot be run.
    #[error("cannot run {program}")]
    Run {
        /// The tool.
        program: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// It ran and failed.
    #[error("{program} fails: {complaint}")]
    Failed {
        /// The tool.
        program: PathBuf,
        /// What it said.
        complaint: String,
    },
    /// It answered in a way that is not known.
    #[error("{program} answers in an unknown way")]
    Answer {
        /// The tool.
        program: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// It says that it was done, and it was not.
    #[error("{program} says that it was done, but there is no logical volume {name}")]
    NotThere {
        /// The tool.
        program: PathBuf,
        /// What should be there.
        name: LvName,
    },
}

/// A logical volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LogicalVolume {
    pub(super) name: LvName,
    /// Its device.
    pub(super) path: PathBuf,
    /// Which ephemeral disk it is, if it is one.
    pub(super) disk: Option<Uuid>,
}

/// What `lvs` prints.
#[derive(Deserialize)]
struct Report {
    report: Vec<Rows>,
}

#[derive(Deserialize)]
struct Rows {
    #[serde(default)]
    lv: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    vg_name: String,
    lv_name: String,
    lv_path: String,
    lv_tags: String,
}

/// The volumes of one group, or of all. Those inside others (the parts of a pool or a mirror) have no device, and are
/// left out.
pub(super) fn volumes(vg: Option<&str>) -> Result<Vec<LogicalVolume>, LvmError> {
    let program = tool("lvs")?;
    let mut arguments = vec!["--reportformat", "json", "--options", "vg_name,lv_name,lv_path,lv_tags"];
    arguments.extend(vg);
    let output = run(&program, &arguments)?;
    let report: Report = serde_json::from_slice(&output.stdout)
        .map_err(|source| LvmError::Answer { program: program.clone(), source })?;
    let rows = report.report.into_iter().flat_map(|rows| rows.lv).filter(|row| !row.lv_path.is_empty());
    Ok(rows.map(LogicalVolume::from).collect())
}

/// The volume `name`, if there is one. A group that is not there is an error.
pub(super) fn volume(name: &LvName) -> Result<Option<LogicalVolume>, LvmError> {
    Ok(volumes(Some(&name.vg))?.into_iter().find(|volume| volume.name == *name))
}

/// Makes a volume of at least `size_bytes`, marked as the disk `uuid` from the beginning.
pub(super) fn create(name: &LvName, size_bytes: u64, uuid: Uuid) -> Result<LogicalVolume, LvmError> {
    let program = tool("lvcreate")?;
    let (size, tag) = (format!("{size_bytes}b"), format!("{TAG}{uuid}"));
    // What an earlier volume left at its beginning is no reason to ask anybody.
    let wipe = ["--yes", "--wipesignatures", "y", "--zero", "y"];
    let wanted = ["--size", &size, "--addtag", &tag, "--name", &name.lv, &name.vg];
    run(&program, &[&wipe[..], &wanted[..]].concat())?;
    volume(name)?.ok_or_else(|| LvmError::NotThere { program, name: name.clone() })
}

/// Removes the volume. LVM refuses while somebody has it open.
pub(super) fn remove(name: &LvName) -> Result<(), LvmError> {
    run(&tool("lvremove")?, &["--yes", &name.to_string()]).map(drop)
}

impl From<Row> for LogicalVolume {
    fn from(row: Row) -> Self {
        let disk = row.lv_tags.split(',').find_map(|tag| Uuid::try_parse(tag.strip_prefix(TAG)?).ok());
        Self { name: LvName { vg: row.vg_name, lv: row.lv_name }, path: row.lv_path.into(), disk }
    }
}

fn tool(name: &'static str) -> Result<PathBuf, LvmError> {
    let path = env::var_os("PATH").unwrap_or_default();
    find(name, &path).ok_or(LvmError::Missing { tool: name })
}

/// The program `name` in a folder of `path`. Relative folders are passed over: what runs must not depend on where it is
/// run.
fn find(name: &str, path: &OsStr) -> Option<PathBuf> {
    let folders = env::split_paths(path);
    let mut candidates = folders.filter(|folder| folder.is_absolute()).map(|folder| folder.join(name));
    let is_program = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    candidates.find(is_program)
}

fn run(program: &Path, arguments: &[&str]) -> Result<Output, LvmError> {
    let output = Command::new(program).args(arguments).env("LC_ALL", "C").stdin(Stdio::null()).output();
    let output = output.map_err(|source| LvmError::Run { program: program.to_owned(), source })?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let lines = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>();
    let complaint = match lines.is_empty() {
        true => output.status.to_string(),
        false => lines.join("; ").chars().take(COMPLAINT_CHARS_MAX).collect(),
    };
    Err(LvmError::Failed { program: program.to_owned(), complaint })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read() {
        let text = r#"{"report": [{"lv": [
            {"vg_name":"vg0", "lv_name":"vm1", "lv_path":"/dev/vg0/vm1",
             "lv_tags":"backup,sealblk-ephemeral=8e5b1a4e-2f0c-4f0e-9d54-3a0d1f6a7b11"},
            {"vg_name":"vg0", "lv_name":"root", "lv_path":"/dev/vg0/root", "lv_tags":"sealblk-ephemeral=x"}
        ]}], "log": []}"#;
        let report: Report = serde_json::from_str(text).unwrap();
        let volumes: Vec<_> =
            report.report.into_iter().flat_map(|rows| rows.lv).map(LogicalVolume::from).collect();
        assert_eq!(volumes[0].name.to_string(), "vg0/vm1");
        assert_eq!(volumes[0].path, Path::new("/dev/vg0/vm1"));
        assert_eq!(volumes[0].disk.unwrap().to_string(), "8e5b1a4e-2f0c-4f0e-9d54-3a0d1f6a7b11");
        assert_eq!(volumes[1].disk, None);
    }

    #[test]
    fn only_programs_in_absolute_folders_are_run() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("lv-of-a-test");
        fs::write(&program, "").unwrap();
        let find = |path: &str| find("lv-of-a-test", OsStr::new(path));
        let path = format!("bin::{}", folder.path().display());
        assert_eq!(find(&path), None, "it is no program");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find(&path), Some(program));
        assert_eq!(find("bin:"), None);
    }

    #[test]
    fn a_failure_says_what_the_tool_said() {
        let script = "echo '  WARNING: a' >&2; echo '  b' >&2; exit 5";
        let error = run(Path::new("/bin/sh"), &["-c", script]).unwrap_err();
        assert_eq!(error.to_string(), "/bin/sh fails: WARNING: a; b");
        let error = run(Path::new("/bin/sh"), &["-c", "exit 3"]).unwrap_err();
        assert_eq!(error.to_string(), "/bin/sh fails: exit status: 3");
    }
}
