//! Rings of every size over their whole life, and notifications no more often than asked for.

use crate::harness::frontend::*;
use crate::harness::request::*;
use crate::harness::ring::*;
use crate::harness::*;

#[test]
fn rings_of_every_size() {
    let backend = Serve::encrypted().start();
    for (size, refuse) in
        [2u16, 4, 8, 16, 32, 64, 128, 256, 512, 1024].into_iter().flat_map(|s| [(s, F_EVENT_IDX), (s, 0)])
    {
        let frontend =
            Frontend::with(backend.socket(), Setup { queue_size: size, refuse, ..Setup::default() });
        // One descriptor each: as many requests at once as the ring has entries.
        let count = usize::from(size).min(128);
        let reads: Vec<Request> = (0..count).map(|i| Request::read(i as u64, 512).indirect()).collect();
        for _ in 0..3 {
            for (i, answer) in frontend.run_all(0, &reads).into_iter().enumerate() {
                assert!(
                    answer.ok() == backend.volume.original[i * 512..(i + 1) * 512],
                    "ring of {size}, read {i}"
                );
            }
        }
    }
}

/// More requests than 16 bits can count, several at a time.
fn wrap_the_indices(refuse: u64) {
    let backend = Serve::encrypted().start();
    let frontend = Frontend::with(backend.socket(), Setup { queue_size: 16, refuse, ..Setup::default() });
    let reads: Vec<Prepared> =
        (0..16).map(|i| frontend.prepare(0, &Request::read(i * 8, 512).indirect())).collect();
    let heads: Vec<u16> = reads.iter().map(|read| read.head).collect();
    let ring = &frontend.rings[0];
    let mut answered = 0u32;
    while answered < 70_000 {
        let batch = 1 + answered as usize % 16;
        ring.publish(&heads[..batch]);
        ring.kick();
        for used in ring.collect(batch) {
            assert_eq!(used.len, 513, "answer {answered}");
            answered += 1;
        }
        assert_eq!(ring.pending(), 0);
    }
    for (i, read) in reads.iter().enumerate() {
        assert!(read.written()[..512] == backend.volume.original[i * 8 * 512..][..512]);
    }
}

#[test]
fn indices_wrap_without_event_idx() {
    wrap_the_indices(F_EVENT_IDX);
}

#[test]
fn indices_wrap_with_event_idx() {
    wrap_the_indices(0);
}

#[test]
fn a_driver_that_kicks_only_when_asked_is_served() {
    let backend = Serve::encrypted().start();
    let frontend = Frontend::with(backend.socket(), Setup { refuse: 0, ..Setup::default() });
    let read = frontend.prepare(0, &Request::read(0, 512));
    let ring = &frontend.rings[0];
    let mut kicks = 0;
    for _ in 0..2000 {
        let old = ring.avail_idx();
        ring.publish(&[read.head]);
        let new = ring.avail_idx();
        if new.wrapping_sub(ring.avail_event()).wrapping_sub(1) < new.wrapping_sub(old) {
            ring.kick();
            kicks += 1;
        }
        read.answer(ring.collect(1)[0]).ok();
    }
    assert!(kicks > 0, "the device never asked for a kick");
}

#[test]
fn one_notification_for_a_batch_when_the_driver_asks_for_one() {
    let backend = Serve::encrypted().start();
    let frontend = Frontend::with(backend.socket(), Setup { refuse: 0, ..Setup::default() });
    let ring = &frontend.rings[0];
    let reads: Vec<Prepared> = (0..16).map(|i| frontend.prepare(0, &Request::read(i * 8, 4096))).collect();
    let heads: Vec<u16> = reads.iter().map(|read| read.head).collect();
    for round in 0..50 {
        ring.set_used_event(ring.used_seen().wrapping_add(15));
        ring.publish(&heads);
        ring.kick();
        ring.collect_by_polling(16);
        assert!(ring.wait_call(PATIENCE), "round {round}: the notification for the sixteenth");
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert_eq!(ring.drain_calls(), 0, "round {round}: and no other");
    }
}

#[test]
fn a_driver_that_wants_no_notification_gets_none() {
    for refuse in [F_EVENT_IDX, 0] {
        let backend = Serve::encrypted().start();
        let frontend = Frontend::with(backend.socket(), Setup { refuse, ..Setup::default() });
        let ring = &frontend.rings[0];
        let read = frontend.prepare(0, &Request::read(0, 4096));
        ring.suppress_interrupts(true);
        for _ in 0..100 {
            ring.set_used_event(ring.used_seen().wrapping_sub(1));
            ring.publish(&[read.head]);
            ring.kick();
            read.answer(ring.collect_by_polling(1)[0]).ok();
        }
        std::thread::sleep(SILENCE);
        assert_eq!(ring.drain_calls(), 0, "EVENT_IDX refused: {}", refuse != 0);
    }
}
