//! Programs that `scripts/install-tools key-servers` has installed, started and stopped.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How long a server may take to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A server that is stopped when dropped.
pub struct Server {
    process: Mutex<Child>,
    pub address: SocketAddr,
}

impl Server {
    /// Starts `command`, which is to listen on `port` of loopback; what it says goes to `log`.
    pub fn start(command: &mut Command, port: u16, log: &Path) -> Self {
        let output = File::create(log).unwrap();
        let mut process = command
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let address = (Ipv4Addr::LOCALHOST, port).into();
        let started = Instant::now();
        while TcpStream::connect(address).is_err() {
            let said = || std::fs::read_to_string(log).unwrap_or_default();
            if let Some(status) = process.try_wait().unwrap() {
                panic!("{command:?} ended, {status}: {}", said());
            }
            assert!(started.elapsed() < PATIENCE, "{command:?} does not listen: {}", said());
            std::thread::sleep(Duration::from_millis(50));
        }
        Self { process: Mutex::new(process), address }
    }
}

impl Server {
    /// Kills it with all that it has started, and waits until it is gone.
    pub fn stop(&self) {
        let mut process = self.process.lock().unwrap();
        // Once it has been waited for, its number may be somebody else's.
        if let Ok(None) = process.try_wait() {
            let group = rustix::process::Pid::from_child(&process);
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            let _ = process.wait();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A port of loopback that was free just now.
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// The program `name` of what was installed as `environment`.
pub fn program(environment: &str, name: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target"));
    let path = target.join("key-servers").join(environment).join("bin").join(name);
    assert!(path.exists(), "{} is not there: run `scripts/install-tools key-servers`", path.display());
    path
}
