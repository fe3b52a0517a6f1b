//! Checks of what ends a wait.

use super::*;

/// A signal from another thread ends a sleep, and neither the counter nor the flags of the eventfd change.
pub fn is_woken_while_it_sleeps<E: Engine>(make: &impl Fn(&[u8], &SlotPool, u32) -> Subject<E>) {
    for wake in [Wake::Kick, Wake::Control] {
        let mut rig = Rig::new(make, &[0; 4096], PoolShape::default(), 1);
        let signal = Signal::new(0);
        let flags = rustix::fs::fcntl_getfl(&signal.fd).expect("flags of an eventfd");
        rig.watch(wake, Some(&signal));
        rig.settle();
        let returns = rig.sleep_until_raised(&signal, || thread::sleep(Duration::from_millis(30)));
        assert!(returns <= EARLY_RETURNS, "it does not sleep: {returns} returns");
        assert_eq!(rustix::fs::fcntl_getfl(&signal.fd).expect("flags of an eventfd"), flags);
        assert_eq!(signal.read(), 1, "the counter is not consumed");
    }
}

/// Signals that come one after the other each end a wait, although nobody reads the counter.
pub fn is_woken_by_each_of_many_signals<E: Engine>(make: &impl Fn(&[u8], &SlotPool, u32) -> Subject<E>) {
    let mut rig = Rig::new(make, &[0; 4096], PoolShape::default(), 1);
    let signal = Signal::new(0);
    rig.watch(Wake::Kick, Some(&signal));
    for _ in 0..200 {
        rig.sleep_until_raised(&signal, || {});
    }
    assert_eq!(signal.read(), 200);
}

/// A signal from before the wait, and one from before the watch, end the wait at once.
pub fn is_woken_by_a_signal_from_before<E: Engine>(make: &impl Fn(&[u8], &SlotPool, u32) -> Subject<E>) {
    let mut rig = Rig::new(make, &[0; 4096], PoolShape::default(), 1);
    let (kick, control) = (Signal::new(0), Signal::new(1));
    rig.watch(Wake::Kick, Some(&kick));
    rig.settle();
    kick.raise();
    rig.engine.submit(Wait::ForEvent).expect("a wait");
    rig.settle();
    rig.watch(Wake::Control, Some(&control));
    rig.engine.submit(Wait::ForEvent).expect("a wait");
}

/// After a watch was replaced the old descriptor wakes nobody and the new one does; likewise when cleared.
pub fn changes_what_it_watches<E: Engine>(make: &impl Fn(&[u8], &SlotPool, u32) -> Subject<E>) {
    let mut rig = Rig::new(make, &[0; 4096], PoolShape::default(), 1);
    let (old, new, control) = (Signal::new(0), Signal::new(0), Signal::new(0));
    rig.watch(Wake::Control, Some(&control));
    rig.watch(Wake::Kick, Some(&old));
    rig.sleep_until_raised(&old, || {});
    for (watched, dead, alive) in [(Some(&new), &old, &new), (None, &new, &control), (Some(&old), &new, &old)]
    {
        // Replaced while a signal of the old descriptor is on its way, and twice in a row.
        dead.raise();
        rig.watch(Wake::Kick, Some(dead));
        rig.watch(Wake::Kick, watched);
        rig.settle();
        let returns = rig.sleep_until_raised(alive, || {
            for _ in 0..50 {
                dead.raise();
                thread::sleep(Duration::from_millis(1));
            }
        });
        assert!(returns <= EARLY_RETURNS, "the old descriptor still wakes: {returns} returns");
    }
}

/// A file of bytes is no eventfd: it would end every wait. The engine says so, and goes on without.
pub fn refuses_to_watch_what_is_never_signalled<E: Engine>(
    make: &impl Fn(&[u8], &SlotPool, u32) -> Subject<E>,
) {
    let mut rig = Rig::new(make, &[0; 4096], PoolShape::default(), 1);
    let control = Signal::new(0);
    rig.watch(Wake::Control, Some(&control));
    let file = memfd_create("not an eventfd", MemfdFlags::CLOEXEC).expect("a file");
    assert!(rig.engine.watch(Wake::Kick, Some(file)).is_err());
    rig.settle();
    let returns = rig.sleep_until_raised(&control, || thread::sleep(Duration::from_millis(5)));
    assert!(returns <= EARLY_RETURNS, "it does not sleep: {returns} returns");
}

/// Operations and signals both end waits while the other kind is outstanding, and neither gets lost.
pub fn waits_for_operations_and_signals_together<E: Engine>(
    make: &impl Fn(&[u8], &SlotPool, u32) -> Subject<E>,
) {
    let content = noise(64 * 4096, 7);
    let mut rig = Rig::new(make, &content, PoolShape::default(), 64);
    let signal = Signal::new(0);
    rig.watch(Wake::Kick, Some(&signal));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Acquire) {
                signal.raise();
                thread::yield_now();
            }
        });
        for round in 0..200 {
            for tag in 0..16 {
                rig.start_read(tag, (round + tag as usize) % 64 * 4096, 4096);
            }
            for completion in rig.all(16) {
                let start = (round + completion.tag.0 as usize) % 64 * 4096;
                let slot = whole(completion).slot.expect("a read brings its slot back");
                assert!(slot.bytes(4096) == &content[start..start + 4096]);
                rig.pool.put(slot);
            }
        }
        stop.store(true, Ordering::Release);
    });
}
