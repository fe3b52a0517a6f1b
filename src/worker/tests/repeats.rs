//! A worker dies with requests under way, and another takes over.

use super::*;
use crate::guest::InflightRegion;
use crate::guest::inflight::tests::region;
use crate::virtio::Tracking;

/// A rig whose worker notes what is under way.
fn tracked(faults: Faults) -> (Rig, Arc<InflightRegion>) {
    let mut rig = Rig::new(faults);
    let region = region(1, RING_SIZE);
    rig.worker.stop_queue().unwrap();
    start(&mut rig.worker, &rig.driver, &region, true);
    (rig, region)
}

fn start(worker: &mut Worker<Sim>, driver: &Driver, region: &Arc<InflightRegion>, enabled: bool) {
    let tracking = Some(Tracking { region: region.queue(0).unwrap(), recover: true });
    worker.start_queue(QueueSetup { tracking, enabled, ..setup(driver) }).unwrap();
}

/// Replaces the worker by one of another process, wherever it is. What it has not yet done it never will.
fn die(rig: &mut Rig, region: &Arc<InflightRegion>, enabled: bool) {
    rig.volume = Arc::new(Volume::new(*rig.volume.geometry(), Some(xts())));
    let mut successor = worker(&rig.volume, &rig.disk);
    start(&mut successor, &rig.driver, region, enabled);
    std::mem::forget(std::mem::replace(&mut rig.worker, successor));
}

/// Takes everything that is offered, and lets nothing finish.
fn take(rig: &mut Rig) {
    let before = rig.driver.used_index();
    rig.worker.turn().unwrap();
    assert_eq!(rig.driver.used_index(), before);
}

#[test]
fn repeats_end_before_anything_new_begins_and_flushes_are_last() {
    let (mut rig, region) = tracked(Faults { delay_turns: 5, ..Faults::default() });
    let data = pattern(512, 3);
    rig.put(BUFFERS, &data);
    let first = rig.offer(1, 0, (BUFFERS, 512), false);
    let flush = rig.offer(4, 0, (BUFFERS, 0), true);
    let second = rig.offer(1, 9, (BUFFERS, 512), false);
    take(&mut rig);
    let new = rig.offer(0, 0, (BUFFERS + 512, 512), true);
    die(&mut rig, &region, true);
    let order = [first, second, flush, new];
    while rig.driver.used_index() < 4 {
        rig.step();
        let answered = order.map(|status| rig.status(status) == 0);
        let [writes @ .., flush, new] = answered;
        assert!(!flush || writes == [true; 2], "a flush came before the writes: {answered:?}");
        assert!(!new || flush, "a new request came before a repeated one: {answered:?}");
    }
    assert_eq!(order.map(|status| rig.status(status)), [0; 4]);
    assert_eq!(rig.get(BUFFERS + 512, 512), data);
    assert_eq!(rig.driver.used_index(), 4);
}

#[test]
fn a_stop_answers_what_a_predecessor_took_whatever_the_limit() {
    let (mut rig, region) = tracked(Faults { delay_turns: 3, ..Faults::default() });
    rig.put(BUFFERS, &pattern(512, 1));
    let statuses: Vec<u64> = (0..8).map(|n| rig.offer(1, n, (BUFFERS, 512), false)).collect();
    take(&mut rig);
    die(&mut rig, &region, true);
    rig.volume.limits().set(limited::one_a_second(1));
    rig.worker.stop_queue().unwrap().unwrap();
    assert!(statuses.iter().all(|&status| rig.status(status) == 0));
}

#[test]
fn a_stop_answers_what_a_predecessor_took_even_while_the_queue_is_disabled() {
    let (mut rig, region) = tracked(Faults { delay_turns: 3, ..Faults::default() });
    rig.put(BUFFERS, &pattern(512, 1));
    let statuses = [rig.offer(4, 0, (BUFFERS, 0), true), rig.offer(1, 5, (BUFFERS, 512), false)];
    take(&mut rig);
    let late = rig.offer(4, 0, (BUFFERS, 0), true);
    die(&mut rig, &region, false);
    let state = rig.worker.stop_queue().unwrap().unwrap();
    assert_eq!(state, crate::virtio::RingState { next_available: 2 });
    assert_eq!(statuses.map(|status| rig.status(status)), [0; 2]);
    assert_eq!(rig.status(late), 0xff);
    start(&mut rig.worker, &rig.driver, &region, true);
    rig.run();
    assert_eq!(rig.status(late), 0);
}

/// More flushes than the table of requests holds, before a write that they cannot wait for.
#[test]
fn a_table_full_of_flushes_does_not_stop_the_repeats() {
    const FLUSHES: u16 = MAX_REQUESTS as u16 + 10;
    let mut driver = Driver::new(1024);
    let region = region(1, 1024);
    let disk = SimDisk::new(vec![0; CAPACITY_BYTES], Faults::default());
    let geometry = Geometry {
        sector_size: SectorSize::BYTES_512,
        payload_offset_bytes: 0,
        capacity_bytes: CAPACITY_BYTES as u64,
    };
    let volume = Arc::new(Volume::new(geometry, Some(xts())));
    let at = vm_memory::GuestAddress;
    driver.memory.write_obj(4_u32.to_le(), at(DATA)).unwrap();
    for flush in 0..FLUSHES {
        driver.offer_chain(2 * flush, &[(DATA, 16, false), (DATA + 16, 1, true)]);
    }
    // A predecessor with more room than we have.
    let queue = region.queue(0).unwrap();
    queue.set_version(1);
    (0..FLUSHES).for_each(|flush| {
        queue.set_counter(2 * flush, u64::from(flush));
        queue.set_in_flight(2 * flush, true);
    });
    let mut successor = worker(&volume, &disk);
    start(&mut successor, &driver, &region, true);
    for _ in 0..10_000 {
        if !successor.turn().unwrap() && driver.used_index() < FLUSHES {
            successor.wait().unwrap();
        }
    }
    assert_eq!(driver.used_index(), FLUSHES);
}
