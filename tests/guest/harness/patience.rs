//! Waiting for what a guest or a back end does, with a limit.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::Volume;

/// How long QEMU may take to come back to a back end that listens again, or the guest to write something.
const LIMIT: Duration = Duration::from_secs(60);

/// Waits until `holds`; the test fails with `what` if that takes too long.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        sleep(Duration::from_millis(2));
    }
}

/// Waits until something is written to the image.
pub(crate) fn wait_for_write(volume: &Volume) {
    let last_write =
        || fs::metadata(&volume.image).and_then(|image| image.modified()).expect("the image is there");
    let before = last_write();
    wait_until("the guest does not go on", || last_write() > before);
}
