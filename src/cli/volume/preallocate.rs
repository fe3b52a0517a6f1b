//! Storage for a whole file in advance.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use indicatif::{ProgressBar, ProgressStyle};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

const WRITE_BYTES: usize = 1 << 20;

/// Allocates the first `bytes` of `file`, whose content is of no worth. Where the file system cannot, zeroes are
/// written, with a progress bar on a terminal.
pub(super) fn preallocate(file: &File, bytes: u64) -> io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), 0, bytes) {
        Err(Errno::OPNOTSUPP) => write_zeroes(file, bytes),
        done => done.map_err(io::Error::from),
    }
}

fn write_zeroes(file: &File, bytes: u64) -> io::Result<()> {
    let progress = bar(bytes);
    let zeroes = vec![0; WRITE_BYTES];
    let mut at = 0;
    while at < bytes {
        let wanted = zeroes.len().min(usize::try_from(bytes - at).unwrap_or(usize::MAX));
        file.write_all_at(&zeroes[..wanted], at)?;
        at += wanted as u64;
        progress.set_position(at);
    }
    progress.finish_and_clear();
    Ok(())
}

/// A bar on standard error; indicatif hides it where that is no terminal.
fn bar(bytes: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes}, {eta} left")
        .expect("the template is well formed");
    ProgressBar::new(bytes).with_style(style)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn both_ways_allocate_everything_and_leave_zeroes() {
        for allocate in [preallocate, write_zeroes] {
            let file = tempfile::tempfile().unwrap();
            let bytes = 3 * WRITE_BYTES as u64 + 5;
            allocate(&file, bytes).unwrap();
            let metadata = file.metadata().unwrap();
            assert_eq!(metadata.len(), bytes);
            assert!(metadata.blocks() * 512 >= bytes);
            let mut content = vec![1; usize::try_from(bytes).unwrap()];
            file.read_exact_at(&mut content, 0).unwrap();
            assert!(content.iter().all(|byte| *byte == 0));
        }
    }
}
