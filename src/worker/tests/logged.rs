//! What the dirty log says of requests, at every moment that matters.

use super::*;
use crate::guest::DirtyLog;
use crate::guest::dirty::LOG_PAGE_BYTES;
use crate::guest::dirty::tests::{self, take_pages};
use crate::guest::inflight::crash;

const LOG_BYTES: u64 = 1 << 12;

fn log() -> Arc<DirtyLog> {
    Arc::new(tests::log(LOG_BYTES))
}

fn pages(start: u64, len_bytes: u64) -> Vec<u64> {
    (start / LOG_PAGE_BYTES..(start + len_bytes).div_ceil(LOG_PAGE_BYTES)).collect()
}

#[track_caller]
fn assert_has(marked: &[u64], pages: &[u64]) {
    assert!(pages.iter().all(|page| marked.contains(page)), "{pages:x?} are not all among {marked:x?}");
}

#[test]
fn a_request_under_way_when_the_log_begins_is_in_it() {
    let mut rig = Rig::new(Faults { delay_turns: 3, ..Faults::default() });
    let status = rig.offer(0, 0, (BUFFERS, 5 * 4096), true);
    rig.worker.turn().unwrap();
    assert_eq!(rig.status(status), 0xff, "it is under way");
    let log = log();
    rig.worker.queue_mut().unwrap().set_log(Some(Arc::clone(&log)));
    take_pages(&log);
    rig.run();
    let marked = take_pages(&log);
    assert_has(&marked, &pages(BUFFERS, 5 * 4096));
    assert_has(&marked, &pages(status, 1));
}

#[test]
fn a_read_that_fails_in_part_is_in_the_log() {
    let mut rig = Rig::new(Faults::default());
    let log = log();
    rig.worker.queue_mut().unwrap().set_log(Some(Arc::clone(&log)));
    let bad = 3 << 20..(3 << 20) + 512;
    rig.disk.set_faults(Faults { bad_ranges: vec![bad], ..Faults::default() });
    let len = 4 << 20;
    take_pages(&log);
    let (status, data) = rig.read(0, len);
    assert_eq!(status, 1);
    assert!(data.iter().any(|byte| *byte != 0xa5), "a part of it arrived");
    assert_has(&take_pages(&log), &pages(BUFFERS, len as u64));
}

/// Dead right before it publishes: the successor would repeat the request. Dead right after: it would not.
#[test]
fn data_is_in_the_log_before_its_answer_can_be_seen() {
    let mut rig = Rig::new(Faults::default());
    let log = log();
    rig.worker.queue_mut().unwrap().set_log(Some(Arc::clone(&log)));
    let status = rig.offer(0, 0, (BUFFERS, 2 * 4096), true);
    take_pages(&log);
    let ended = crash::after_stores(0, || {
        while rig.status(status) == 0xff {
            rig.worker.turn().unwrap();
        }
    });
    assert!(!ended && rig.driver.used_index() == 0, "it died before it published");
    let marked = take_pages(&log);
    assert_has(&marked, &pages(BUFFERS, 2 * 4096));
    assert_has(&marked, &pages(status, 1));
    std::mem::forget(rig);
}
