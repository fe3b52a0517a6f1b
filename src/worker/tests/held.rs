//! Requests that storage fails are held, and tried again when the operator says so.

use super::*;

const HOLDING: OnError = OnError::Stop { page_cached: false };

impl Rig {
    fn held(&self) -> u32 {
        self.worker.monitor().view().held
    }

    /// Turns until nothing more happens.
    fn run_to_rest(&mut self) {
        while self.worker.turn().unwrap() || self.worker.pieces.count() > 0 {
            self.worker.submit(Wait::No).unwrap();
        }
    }

    fn offer_write(&mut self, sector: u64, bytes: &[u8]) -> u64 {
        self.put(BUFFERS, bytes);
        self.offer(1, sector, (BUFFERS, bytes.len() as u32), false)
    }
}

fn broken() -> Faults {
    Faults { bad_ranges: std::iter::once(0..CAPACITY_BYTES as u64).collect(), ..Faults::default() }
}

#[test]
fn held_until_storage_works_again() {
    let mut rig = Rig::with(broken(), HOLDING);
    let data = vec![7; 3 << 20];
    let status = rig.offer_write(8, &data);
    rig.run_to_rest();
    assert_eq!((rig.held(), rig.status(status)), (1, 0xff));
    let second = rig.offer(4, 0, (BUFFERS, 0), true);
    rig.run_to_rest();
    assert_eq!(
        (rig.driver.used_index(), rig.status(second)),
        (0, 0xff),
        "a queue that holds takes no others"
    );
    for _ in 0..3 {
        rig.worker.monitor().ask_retry();
        rig.run_to_rest();
        assert_eq!(rig.held(), 1, "in vain");
    }
    rig.disk.set_faults(Faults::default());
    rig.worker.monitor().ask_retry();
    rig.run();
    assert_eq!((rig.held(), rig.status(status), rig.status(second)), (0, 0, 0));
    assert!(rig.read(8, data.len()) == (0, data), "all of it was written");
    assert_eq!(rig.worker.monitor().view().state, QueueState::Running);
}

#[test]
fn a_flush_that_fails_is_told_and_fails_those_that_follow() {
    let mut rig = Rig::with(Faults { sync_failure_one_in: 1, ..Faults::default() }, HOLDING);
    assert_eq!(rig.flush(), 1);
    rig.disk.set_faults(Faults::default());
    assert_eq!((rig.flush(), rig.held()), (1, 0));
}

#[test]
fn a_durable_write_is_held_unless_it_may_tell_of_anothers_loss() {
    for (page_cached, held) in [(false, 1), (true, 0)] {
        let mut rig = Rig::with(broken(), OnError::Stop { page_cached });
        rig.volume.set_writeback(false);
        rig.offer_write(8, &[7; 512]);
        rig.run_to_rest();
        assert_eq!(
            (rig.held(), rig.volume.has_sync_failed()),
            (held, held == 0),
            "page cache: {page_cached}"
        );
        rig.worker.abandon_queue().unwrap();
    }
}

#[test]
fn a_ring_that_stops_answers_what_it_holds() {
    for writeback in [true, false] {
        let mut rig = Rig::with(broken(), HOLDING);
        rig.volume.set_writeback(writeback);
        let status = rig.offer_write(8, &[7; 512]);
        rig.run_to_rest();
        assert_eq!(rig.held(), 1);
        // Without an in-flight region there is no successor to leave it to.
        rig.worker.abandon_queue().unwrap();
        assert_eq!((rig.held(), rig.status(status)), (0, 1));
        assert_eq!(rig.driver.used_index(), 1);
        assert_eq!(
            rig.volume.has_sync_failed(),
            !writeback,
            "a durable write that is given up counts as failed"
        );
    }
}

#[test]
fn an_order_to_retry_is_not_kept_for_later() {
    let mut rig = Rig::with(Faults::default(), HOLDING);
    rig.worker.monitor().ask_retry();
    assert_eq!(rig.write(8, &[1; 512]), 0);
    rig.disk.set_faults(broken());
    rig.offer_write(8, &[7; 512]);
    rig.run_to_rest();
    assert_eq!(rig.held(), 1);
    rig.disk.set_faults(Faults::default());
    rig.run_to_rest();
    assert_eq!(rig.held(), 1, "it waits for an order of its own");
    rig.worker.abandon_queue().unwrap();
}
