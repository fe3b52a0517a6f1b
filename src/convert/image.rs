//! Disk images in other programs' formats, read through QEMU: `qemu-img` tells what an image is made of, `qemu-nbd`
//! serves its content, and both get to see nothing but the image ([`confine`](super::confine)).
//!
//! The format is always the declared one. Guessing it from the first bytes would let whoever could write there choose
//! it, and with it which files of this host become the disk's content.

use std::env;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::nbd::NbdClient;

/// Where the image is for the programs: their standard input.
const IMAGE_AS_SEEN: &str = "/proc/self/fd/0";

/// Most bytes of what a program says that are looked at.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;

/// An image format that QEMU reads, by QEMU's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFormat {
    /// QEMU's own.
    Qcow2,
    /// QEMU's, enhanced.
    Qed,
    /// VirtualBox's.
    Vdi,
    /// Hyper-V's.
    Vhdx,
    /// Virtual PC's and Azure's, also called VHD.
    Vpc,
    /// VMware's.
    Vmdk,
}

impl ImageFormat {
    /// What QEMU calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Qed => "qed",
            Self::Vdi => "vdi",
            Self::Vhdx => "vhdx",
            Self::Vpc => "vpc",
            Self::Vmdk => "vmdk",
        }
    }
}

/// An image's format, and how far to trust what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageSource {
    /// As declared.
    pub format: ImageFormat,
    /// Whether other files that the image names (a backing file, a data file, extents) are read too.
    pub linked_files: bool,
}

/// Why an image cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// QEMU's programs are not there.
    #[error("{program}, which reads this format, is not installed: it comes with QEMU (Debian: qemu-utils)")]
    Missing {
        /// Which one.
        program: &'static str,
    },
    /// They are, and do not take the image.
    #[error("{program} does not read it as {format}: {message}", format = .format.name())]
    Unreadable {
        /// Which one.
        program: &'static str,
        /// The declared format.
        format: ImageFormat,
        /// What it says.
        message: String,
    },
    /// The content is in other files as well.
    #[error(
        "the image takes part of its content from another file, {what}: if you trust whoever made it to name \
         files of this host, pass --allow-linked-files"
    )]
    LinkedFile {
        /// Which, as the image has it.
        what: String,
    },
    /// They are, and could not have a file that it names.
    #[error(
        "{program} does not read it as {format}: {message}; if that is a file which the image takes part of its \
         content from, and you trust whoever made it to name files of this host, pass --allow-linked-files",
        format = .format.name()
    )]
    FileDenied {
        /// Which program.
        program: &'static str,
        /// The declared format.
        format: ImageFormat,
        /// What it says.
        message: String,
    },
    /// Its own tables say that something is missing.
    #[error("the image is damaged, and whatever it lost would read as zeroes: {message}")]
    Damaged {
        /// What `qemu-img check` says.
        message: String,
    },
    /// QEMU's encryption inside of the format.
    #[error("the image is encrypted inside of its format: decrypt it with `qemu-img convert` first")]
    Encrypted,
    /// No way to name it to QEMU.
    #[error("the path is no UTF-8 text, as QEMU needs it")]
    PathEncoding,
    /// No way to start or to talk to the program.
    #[error("no connection to QEMU's programs")]
    Connect(#[from] io::Error),
}

/// A running `qemu-nbd`, and connections to it. Ends with this value.
#[derive(Debug)]
pub(super) struct ImageServer {
    program: Child,
    size_bytes: u64,
}

impl ImageServer {
    /// Serves `image`, which was opened at `path`, over `connection_count` connections.
    pub(super) fn start(
        image: &File,
        path: &Path,
        source: ImageSource,
        connection_count: usize,
    ) -> Result<(Self, Vec<NbdClient<UnixStream>>), ImageError> {
        let is_device = image.metadata()?.file_type().is_block_device();
        let node = block_node(path, source, is_device)?;
        if !source.linked_files {
            check_alone(&describe(image, source)?)?;
        }
        check_whole(image, path, source)?;
        let (listener, streams) = connected(connection_count)?;
        let shared = format!("--shared={connection_count}");
        let mut command = tool(source, true, "qemu-nbd")?;
        command.args(["--read-only", &shared, &node]);
        command.stdin(image.try_clone()?).stdout(OwnedFd::from(listener)).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        // The command holds the listening socket: with it gone, the end of the program ends its connections.
        drop(command);
        match streams.into_iter().map(NbdClient::new).collect::<io::Result<Vec<_>>>() {
            Ok(clients) => {
                let size_bytes = clients.first().map_or(0, NbdClient::size_bytes);
                Ok((Self { program: child, size_bytes }, clients))
            }
            Err(error) => Err(failure(&mut child, source, error)),
        }
    }

    /// Size of the disk in the image.
    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}

impl Drop for ImageServer {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

/// What became of a program that does not talk.
fn failure(child: &mut Child, source: ImageSource, error: io::Error) -> ImageError {
    let _ = child.kill();
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(OUTPUT_BYTES_MAX).read_to_end(&mut said);
    }
    let _ = child.wait();
    if said.is_empty() {
        return ImageError::Connect(error);
    }
    refusal("qemu-nbd", source, &said)
}

/// What it means that `program` did not take an image, and `said` why.
fn refusal(program: &'static str, source: ImageSource, said: &[u8]) -> ImageError {
    let (format, message) = (source.format, statement(program, said));
    // A relative name is looked up beside the image, which is nowhere.
    let wanted_more = message.contains("Permission denied") || message.contains("/proc/self/fd/");
    match wanted_more && !source.linked_files {
        true => ImageError::FileDenied { program, format, message: message.replace("/proc/self/fd/", "") },
        false => ImageError::Unreadable { program, format, message },
    }
}

/// The image as QEMU's block layer is told of it: format and access are ours to say, and where other files are not
/// allowed there is no backing file whatever the image says.
fn block_node(path: &Path, source: ImageSource, is_device: bool) -> Result<String, ImageError> {
    let filename = filename(path, source)?;
    let driver = if is_device { "host_device" } else { "file" };
    let mut node = json!({
        "driver": source.format.name(),
        "read-only": true,
        "file": { "driver": driver, "filename": filename },
    });
    if !source.linked_files && has_backing(source.format) {
        node["backing"] = Value::Null;
    }
    Ok(format!("json:{node}"))
}

/// The image as QEMU is to open it.
fn filename(path: &Path, source: ImageSource) -> Result<String, ImageError> {
    if !source.linked_files {
        return Ok(IMAGE_AS_SEEN.to_owned());
    }
    // Names inside of the image are relative to where it lies.
    fs::canonicalize(path)?.into_os_string().into_string().map_err(|_| ImageError::PathEncoding)
}

fn has_backing(format: ImageFormat) -> bool {
    matches!(format, ImageFormat::Qcow2 | ImageFormat::Qed | ImageFormat::Vmdk)
}

/// `program` as the hidden command runs it.
fn tool(source: ImageSource, listen: bool, program: &'static str) -> Result<Command, ImageError> {
    let path = env::var_os("PATH").unwrap_or_default();
    if !env::split_paths(&path).any(|folder| folder.join(program).is_file()) {
        return Err(ImageError::Missing { program });
    }
    let mut command = Command::new("/proc/self/exe");
    command.args(["image-tool", "--parent", &std::process::id().to_string()]);
    command.args(listen.then_some("--listen"));
    command.args(source.linked_files.then_some("--linked-files"));
    command.args(["--", program]);
    Ok(command)
}

/// What `qemu-img` has to say of the image.
fn describe(image: &File, source: ImageSource) -> Result<Value, ImageError> {
    let (program, format) = ("qemu-img", source.format);
    let mut command = tool(source, false, program)?;
    command.args(["info", "--output=json", "-f", format.name(), IMAGE_AS_SEEN]).stdin(image.try_clone()?);
    let output = command.output()?;
    if !output.status.success() {
        return Err(refusal(program, source, &output.stderr));
    }
    let unreadable = |message| ImageError::Unreadable { program, format, message };
    serde_json::from_slice(&output.stdout).map_err(|error| unreadable(error.to_string()))
}

/// Refuses an image that has lost a part of itself, as far as its format lets that be seen. QEMU would read zeroes.
fn check_whole(image: &File, path: &Path, source: ImageSource) -> Result<(), ImageError> {
    const CLEAN: i32 = 0;
    const ONLY_LEAKS: i32 = 3;
    const FORMAT_HAS_NO_CHECK: i32 = 63;
    let program = "qemu-img";
    let mut command = tool(source, false, program)?;
    command.args(["check", "-f", source.format.name(), &filename(path, source)?]).stdin(image.try_clone()?);
    let output = command.output()?;
    match output.status.code() {
        Some(CLEAN | ONLY_LEAKS | FORMAT_HAS_NO_CHECK) => Ok(()),
        _ => {
            let said = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
            // One of possibly thousands of complaints.
            let first = said.split(|byte| *byte == b'\n').next().unwrap_or_default();
            Err(ImageError::Damaged { message: statement(program, first) })
        }
    }
}

/// Refuses an image whose content is not all in its own file, going by its description.
fn check_alone(description: &Value) -> Result<(), ImageError> {
    if description["encrypted"] == true {
        return Err(ImageError::Encrypted);
    }
    let specific = &description["format-specific"]["data"];
    let named = ["backing-filename", "full-backing-filename"].map(|key| &description[key]);
    let named = named.into_iter().chain([&specific["data-file"]]).find_map(Value::as_str);
    let own = description["filename"].as_str();
    let extents = specific["extents"].as_array().into_iter().flatten().map(|extent| &extent["filename"]);
    let extent = extents.filter_map(Value::as_str).find(|name| Some(*name) != own);
    let children = description["children"].as_array().into_iter().flatten();
    let child = children.filter_map(|child| child["name"].as_str()).find(|name| *name != "file");
    match named.or(extent).or(child) {
        None => Ok(()),
        Some(what) => Err(ImageError::LinkedFile { what: what.to_owned() }),
    }
}

/// What `program` said, on one line, without its name.
fn statement(program: &str, said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    let words = said.split_whitespace().collect::<Vec<_>>().join(" ");
    words.trim_start_matches(program).trim_start_matches(": ").replace(IMAGE_AS_SEEN, "the image")
}

/// A listening socket, and connections that wait there to be taken. It has no name any more, so that nobody else
/// can connect and nothing is left behind.
fn connected(count: usize) -> io::Result<(UnixListener, Vec<UnixStream>)> {
    let folder = PrivateFolder::new()?;
    let path = folder.0.join("nbd");
    let listener = UnixListener::bind(&path)?;
    let streams = (0..count).map(|_| UnixStream::connect(&path)).collect::<io::Result<_>>()?;
    fs::remove_file(&path)?;
    Ok((listener, streams))
}

/// A folder that only we can enter, removed when dropped.
struct PrivateFolder(PathBuf);

impl PrivateFolder {
    fn new() -> io::Result<Self> {
        let name = format!("sealblk-{}", uuid::Uuid::new_v4().simple());
        let path = env::temp_dir().join(name);
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for PrivateFolder {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.0.join("nbd"));
        let _ = fs::remove_dir(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(description: Value) -> Option<String> {
        check_alone(&description).err().map(|error| error.to_string())
    }

    #[test]
    fn an_image_that_names_other_files_is_found_out() {
        let own = "/proc/self/fd/0";
        assert_eq!(refused(json!({"filename": own, "children": [{"name": "file"}]})), None);
        let extents = |name: &str| json!({"filename": own, "format-specific": {"data": {"extents": [{"filename": name}]}}});
        assert_eq!(refused(extents(own)), None);
        for description in [
            json!({"backing-filename": "/etc/passwd"}),
            json!({"full-backing-filename": "/etc/passwd"}),
            json!({"format-specific": {"data": {"data-file": "/etc/passwd"}}}),
            extents("/etc/passwd"),
        ] {
            assert!(refused(description).unwrap().contains("/etc/passwd"));
        }
        let children = json!({"children": [{"name": "file"}, {"name": "extents.0"}]});
        assert!(refused(children).unwrap().contains("extents.0"));
        assert!(refused(json!({"encrypted": true})).unwrap().contains("encrypted"));
    }

    #[test]
    fn the_block_layer_is_told_the_format_and_no_backing_file() {
        let source = ImageSource { format: ImageFormat::Qcow2, linked_files: false };
        let node = block_node(Path::new("/x,y\"z"), source, false).unwrap();
        let node: Value = serde_json::from_str(node.strip_prefix("json:").unwrap()).unwrap();
        assert_eq!(node["driver"], "qcow2");
        assert_eq!(node.get("backing"), Some(&Value::Null));
        assert_eq!(node["file"], json!({"driver": "file", "filename": "/proc/self/fd/0"}));
    }

    #[test]
    fn waiting_connections_leave_no_name_behind() {
        let (listener, streams) = connected(3).unwrap();
        let path = listener.local_addr().unwrap().as_pathname().unwrap().to_owned();
        assert!(!path.exists() && !path.parent().unwrap().exists());
        for _ in &streams {
            listener.accept().unwrap();
        }
    }
}
