//! One boot of the guest: its disks, its script, its results.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::backend::Served;
use super::process::{self, Process};

/// Long enough for a boot and a script under emulation on a busy machine; a hang is what it is for.
const DEFAULT_LIMIT: Duration = Duration::from_secs(240);

/// A guest to be booted.
#[derive(Debug)]
pub(crate) struct Guest {
    folder: PathBuf,
    script: &'static str,
    arguments: Vec<String>,
    /// What QEMU itself is told besides.
    qemu_arguments: Vec<String>,
    /// Logs of the back ends, for the message of a failing test.
    logs: Vec<PathBuf>,
    limit: Duration,
}

/// What a guest's script reported.
#[derive(Debug)]
pub(crate) struct Report {
    results: BTreeMap<String, String>,
}

/// The tests' folder in the source tree.
fn source(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(relative)
}

impl Guest {
    /// A guest that runs `tests/guest/scripts/<script>.sh`. Its logs go to `folder`.
    pub(crate) fn new(folder: &Path, script: &'static str) -> Self {
        let path = source("tests/guest/scripts").join(script).with_extension("sh");
        let guest = Self {
            folder: folder.to_owned(),
            script,
            arguments: Vec::new(),
            qemu_arguments: Vec::new(),
            logs: Vec::new(),
            limit: DEFAULT_LIMIT,
        };
        guest.option("--script", path.display())
    }

    /// Attaches a served disk. Disks are numbered from 0 in the order in which they are attached.
    pub(crate) fn disk(mut self, served: &Served) -> Self {
        let socket = served.socket.display().to_string();
        self.logs.push(served.log.clone());
        self.option("--socket", socket)
    }

    /// Attaches a file as it is, served by QEMU itself.
    pub(crate) fn raw_disk(self, file: &Path) -> Self {
        self.option("--raw", file.display())
    }

    /// Attaches a disk with programs of this machine, and the libraries that they are linked to.
    pub(crate) fn programs_disk(self, programs: &[&Path]) -> Self {
        let (tree, image) = (self.folder.join("programs"), self.folder.join("programs.img"));
        let output = Command::new(source("tests/guest/image/copy-programs"))
            .arg("--disk")
            .args([&image, &tree])
            .args(programs)
            .output()
            .expect("the script can be started");
        assert!(output.status.success(), "{output:?}");
        self.raw_disk(&image)
    }

    /// Attaches the disk that `run_fio` needs.
    pub(crate) fn with_fio(mut self) -> Self {
        self.arguments.push("--fio".to_owned());
        self
    }

    /// Gives the guest `count` processors, and each served disk as many queues.
    pub(crate) fn cpus_and_queues(self, count: u16) -> Self {
        self.option("--cpus", count).option("--queues", count)
    }

    /// Sets a variable for the script.
    pub(crate) fn var(self, name: &str, value: impl std::fmt::Display) -> Self {
        self.option("--var", format!("{name}={value}"))
    }

    /// Hands over a file, which the script finds as `/run/job/<name>`.
    pub(crate) fn file(self, name: &str, path: &Path) -> Self {
        self.option("--file", format!("{name}={}", path.display()))
    }

    /// Further arguments of QEMU.
    pub(crate) fn qemu(mut self, arguments: &[&str]) -> Self {
        self.qemu_arguments.extend(arguments.iter().map(ToString::to_string));
        self
    }

    /// Gives the script more time than others have.
    pub(crate) fn limit(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// Boots the guest and waits until its script has ended, which must be with status 0.
    pub(crate) fn run(self) -> Report {
        self.boot().finish()
    }

    /// Boots the guest.
    pub(crate) fn boot(mut self) -> Running {
        let console = self.folder.join(format!("{}.console", self.script));
        let results = self.folder.join(format!("{}.results", self.script));
        let arguments = std::mem::take(&mut self.arguments);
        let end = vec!["--results".to_owned(), results.display().to_string(), "--".to_owned()];
        let arguments = [arguments, end, std::mem::take(&mut self.qemu_arguments)].concat();
        let qemu = Process::spawn("the guest", &source("scripts/boot-guest"), &arguments, &console);
        let began = Instant::now();
        Running { guest: self, qemu, results, began }
    }

    fn option(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.arguments.extend([name.to_owned(), value.to_string()]);
        self
    }
}

/// A guest that has been booted.
#[derive(Debug)]
pub(crate) struct Running {
    guest: Guest,
    qemu: Process,
    results: PathBuf,
    began: Instant,
}

impl Running {
    /// Waits until the script has reported `key`.
    pub(crate) fn wait_for(&mut self, key: &str) {
        let line = format!("result {key}=");
        while !self.reported().lines().any(|reported| reported.starts_with(&line)) {
            if self.qemu.wait(Duration::from_millis(50)).is_some() {
                self.fail(&format!("it ended before it reported '{key}'"));
            }
            if self.began.elapsed() > self.guest.limit {
                self.fail(&format!("it did not report '{key}' in time"));
            }
        }
    }

    /// Waits until the script has ended, which must be with status 0.
    pub(crate) fn finish(mut self) -> Report {
        let status = self.qemu.wait(self.guest.limit.saturating_sub(self.began.elapsed()));
        let text = self.reported();
        let why = match status {
            None => format!("did not end within {} s", self.guest.limit.as_secs()),
            Some(status) if !status.success() => format!("QEMU ended with {status}"),
            Some(_) => match Report::parse(&text) {
                Ok(report) => {
                    let seconds = self.began.elapsed().as_secs_f64();
                    println!("guest '{}': {seconds:.1} s\n{text}", self.guest.script);
                    return report;
                }
                Err(why) => why,
            },
        };
        self.fail(&why)
    }

    /// How often the script has reported `key`.
    pub(crate) fn count(&self, key: &str) -> usize {
        let line = format!("result {key}=");
        self.reported().lines().filter(|reported| reported.starts_with(&line)).count()
    }

    /// Waits until QEMU has ended, the guest being elsewhere or nowhere.
    pub(crate) fn wait_for_end(&mut self) {
        if self.qemu.wait(self.guest.limit).is_none() {
            self.fail("QEMU did not end");
        }
    }

    /// Fails over what the monitor of this QEMU said, and tells how QEMU ended, should it have.
    pub(crate) fn fail_over_monitor(&mut self, why: &str) -> ! {
        match self.qemu.wait(Duration::from_secs(5)) {
            Some(status) => self.fail(&format!("{why}; QEMU ended with {status}")),
            None => self.fail(why),
        }
    }

    fn reported(&self) -> String {
        fs::read_to_string(&self.results).unwrap_or_default()
    }

    fn fail(&self, why: &str) -> ! {
        let logged = |log: &PathBuf| format!("--- {}:\n{}\n", log.display(), process::tail(log));
        let back_ends: String = self.guest.logs.iter().map(logged).collect();
        panic!("the guest of '{}' failed: {why}\n{}{back_ends}", self.guest.script, self.qemu.tail());
    }
}

impl Report {
    /// Reads the lines that the guest wrote to its second serial port.
    fn parse(text: &str) -> Result<Self, String> {
        let mut results = BTreeMap::new();
        let mut end = None;
        for line in text.lines() {
            match line.split_once(' ') {
                Some(("result", result)) => {
                    let (key, value) =
                        result.split_once('=').ok_or(format!("a result without value: {line}"))?;
                    results.insert(key.to_owned(), value.to_owned());
                }
                Some(("end", status)) => end = Some(status.to_owned()),
                _ => {}
            }
        }
        match end.as_deref() {
            Some("0") => Ok(Self { results }),
            Some(status) => Err(format!("its script ended with status {status}")),
            None => Err("it ended before its script did".to_owned()),
        }
    }

    /// The value that the script reported as `key`.
    pub(crate) fn get(&self, key: &str) -> &str {
        self.results
            .get(key)
            .unwrap_or_else(|| panic!("the script reported no '{key}', only {:?}", self.results))
    }
}

#[test]
fn a_report_counts_only_with_status_0() {
    let report = Report::parse("boot 2.5\nresult a=1=2\nend 0\n").unwrap();
    assert_eq!(report.get("a"), "1=2");
    assert!(Report::parse("boot 2.5\nresult a=1\nend 1\n").unwrap_err().contains("status 1"));
    assert!(Report::parse("boot 2.5\nresult a=1\n").unwrap_err().contains("before its script"));
    assert!(Report::parse("").unwrap_err().contains("before its script"));
}
