//! The oracles as functions: each runs one program and fails with all that it said.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// A folder with a passphrase, for the programs to work in.
pub struct Workshop {
    folder: TempDir,
}

impl Workshop {
    pub fn new(passphrase: &[u8]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join("pass"), passphrase).expect("the folder is ours");
        Self { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).expect("the folder is ours");
    }

    /// A sparse file.
    pub fn blank(&self, name: &str, bytes: u64) {
        fs::File::create(self.path(name)).and_then(|file| file.set_len(bytes)).expect("the folder is ours");
    }

    /// Runs `line` in the folder, cut at spaces; the passphrase is in the file `pass`.
    #[track_caller]
    pub fn run(&self, line: &str) -> String {
        let mut words = line.split_ascii_whitespace();
        let program = words.next().expect("a program");
        let Output { status, stdout, stderr } = Command::new(program)
            .args(words)
            .current_dir(self.folder.path())
            .output()
            .unwrap_or_else(|error| panic!("{program}: {error}; run `scripts/install-tools interop`"));
        let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        assert!(status.success(), "{line}: {status}\n{stdout}{stderr}");
        stdout.into_owned()
    }

    /// `cryptsetup luksFormat` of the file `name`, or of a header for it.
    #[track_caller]
    pub fn format(&self, name: &str, options: &str) {
        self.run(&format!("cryptsetup --batch-mode luksFormat --key-file pass {options} {name}"));
    }

    /// The payload of the LUKS1 volume `name`, read by QEMU.
    #[track_caller]
    pub fn qemu_reads(&self, name: &str) -> Vec<u8> {
        self.run(&format!(
            "qemu-img convert --object secret,id=pass,file=pass --image-opts \
             driver=luks,key-secret=pass,file.filename={name} -O raw {name}.qemu"
        ));
        self.read(&format!("{name}.qemu"))
    }

    /// Lets QEMU write `bytes` to the payload of the LUKS1 volume `name`.
    #[track_caller]
    pub fn qemu_writes(&self, name: &str, bytes: &[u8]) {
        self.write("plaintext", bytes);
        self.run(&format!(
            "qemu-img convert --object secret,id=pass,file=pass -n -f raw plaintext --target-image-opts \
             driver=luks,key-secret=pass,file.filename={name}"
        ));
    }

    /// The payload of the LUKS1 volume `name`, read by nbdkit.
    #[track_caller]
    pub fn nbdkit_reads(&self, name: &str) -> Vec<u8> {
        let line = format!(
            "nbdkit -U - file {name} --filter=luks passphrase=+pass --run 'nbdcopy \"$uri\" {name}.nbd'"
        );
        self.shell(&line);
        self.read(&format!("{name}.nbd"))
    }

    #[track_caller]
    fn shell(&self, script: &str) {
        let output = Command::new("sh")
            .args(["-c", script])
            .current_dir(self.folder.path())
            .output()
            .expect("a shell");
        assert!(output.status.success(), "{script}: {output:?}");
    }

    /// The volume key, as cryptsetup tells it.
    #[track_caller]
    pub fn volume_key(&self, name: &str) -> Vec<u8> {
        let _ = fs::remove_file(self.path("vk"));
        self.run(&format!(
            "cryptsetup --batch-mode luksDump --dump-volume-key --volume-key-file vk --key-file pass {name}"
        ));
        self.read("vk")
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}
