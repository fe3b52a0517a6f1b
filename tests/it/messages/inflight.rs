//! In-flight regions that are not what the front end says, or not what a predecessor has left.

use super::*;

use crate::harness::frontend::Inflight;

/// The body of GET_INFLIGHT_FD and SET_INFLIGHT_FD.
fn description(len: u64, offset: u64, queues: u16, queue_size: u16) -> Vec<u8> {
    [&words(&[len, offset])[..], &queues.to_le_bytes(), &queue_size.to_le_bytes(), &[0; 4]].concat()
}

fn keeper(queues: usize) -> Setup {
    Setup { keeps_inflight: true, ..Setup::queues(queues) }
}

/// A front end that has set its region, and started nothing.
fn idle(backend: &Backend) -> Frontend {
    let ram = GuestRam::new(MIB);
    let rings = (0..2).map(|index| Ring::new(&ram, index, 64)).collect();
    Frontend::begin(dial(backend.socket()), keeper(2), ram, rings)
}

fn region(frontend: &Frontend) -> &Inflight {
    frontend.inflight.as_ref().expect("it is kept")
}

#[test]
fn the_region_that_is_handed_out() {
    let backend = Serve::encrypted().queues(2).start();
    let frontend = idle(&backend);
    let Inflight { description, file } = region(&frontend);
    assert_eq!(description.mmap_size, 2 * (16 + 64 * 16 + 48) + 64);
    assert_eq!((description.mmap_offset, description.num_queues, description.queue_size), (0, 2, 64));
    let seals = rustix::fs::fcntl_get_seals(file).expect("a memory file");
    assert!(seals.contains(rustix::fs::SealFlags::SHRINK | rustix::fs::SealFlags::GROW));
}

#[test]
fn a_region_that_does_not_fit_its_file() {
    let mut backend = Serve::encrypted().queues(2).start();
    let mut frontend = idle(&backend);
    let file = region(&frontend).file.try_clone().expect("a descriptor");
    let len = region(&frontend).description.mmap_size;
    let sealed = [file.as_fd()];
    for body in [
        description(len - 65, 0, 2, 64),
        description(len, 0, 2, 1024),
        description(u64::MAX, 0, 2, 1024),
        description(u64::MAX, 0, 2, u16::MAX),
        description(u64::MAX, 0, u16::MAX, u16::MAX),
        description(len, 4096, 2, 64),
        description(len, 1, 2, 64),
        description(len, u64::MAX, 2, 64),
        description(len, !0xfff, 2, 64),
        // More queues than there are.
        description(len, 0, 3, 1),
    ] {
        nack(&frontend, SET_INFLIGHT_FD, &body, &sealed);
    }
    // One that could be cut off under us.
    let unsealed = memfd(len);
    nack(&frontend, SET_INFLIGHT_FD, &description(len, 0, 2, 64), &[unsealed.as_fd()]);
    for body in [description(len, 0, 0, 64), description(len, 0, 2, 0)] {
        let refused = refused(frontend, &backend, SET_INFLIGHT_FD, &body, &sealed);
        drop(refused);
        frontend = idle(&backend);
    }
    frontend.share_memory();
    (0..2).for_each(|index| frontend.start_ring(index, 0));
    frontend.assert_serves(1, 0, 1);
    backend.assert_alive();
}

#[test]
fn a_region_for_more_queues_than_there_are_is_not_made() {
    let mut backend = Serve::encrypted().queues(2).start();
    for (queues, queue_size) in [(3, 64), (u16::MAX, u16::MAX), (2, u16::MAX), (2, 0)] {
        let mut wire = idle(&backend).wire();
        wire.send(GET_INFLIGHT_FD, 0, &description(0, 0, queues, queue_size), &[]);
        assert_eq!(wire.reply(), Reply::Closed, "{queues} queues of {queue_size}");
    }
    idle(&backend);
    backend.assert_alive();
}

#[test]
fn a_region_cannot_change_under_a_running_ring() {
    let backend = Serve::encrypted().queues(2).start();
    let frontend = Frontend::with(backend.socket(), keeper(2));
    let Inflight { description: d, file } = region(&frontend);
    let body = description(d.mmap_size, d.mmap_offset, d.num_queues, d.queue_size);
    nack(&frontend, SET_INFLIGHT_FD, &body, &[file.as_fd()]);
    frontend.assert_serves(0, 0, 1);
}

#[test]
fn a_ring_that_the_region_has_no_room_for_does_not_start() {
    let backend = Serve::encrypted().queues(2).start();
    for (queues, queue_size) in [(2, 32), (1, 64)] {
        let mut frontend = idle(&backend);
        let wanted = vhost::vhost_user::message::VhostUserInflight::new(0, 0, queues, queue_size);
        let (small, file) = frontend.messages.get_inflight_fd(&wanted).expect("GET_INFLIGHT_FD");
        let raw = std::os::fd::AsRawFd::as_raw_fd(&file);
        frontend.messages.set_inflight_fd(&small, raw).expect("SET_INFLIGHT_FD");
        frontend.share_memory();
        frontend.configure_ring(1, 0);
        let kick = frontend.rings[1].kick.borrow();
        assert!(frontend.messages.set_vring_kick(1, &kick).is_err(), "{queues} queues of {queue_size}");
    }
}

/// The front end writes anything into the region, while rings run and before they start.
#[test]
fn a_forged_region_harms_nobody_else() {
    let mut backend = Serve::encrypted().queues(2).start();
    let mut random = Random::new(77);
    for round in 0..25_u64 {
        let mut frontend = Frontend::with(backend.socket(), keeper(2));
        frontend.assert_serves(0, 8, round);
        for life in 0..3 {
            let Inflight { description, file } = region(&frontend);
            let mut bytes = pattern(random.next(), description.mmap_size as usize);
            if random.below(2) == 0 {
                // Nearly plausible: few bits set, of our version, the used index right.
                bytes.iter_mut().for_each(|byte| *byte &= (random.below(256) & random.below(256)) as u8 & 1);
                for (ring, part) in frontend.rings.iter().zip(bytes.chunks_mut(1088)) {
                    part[8..10].copy_from_slice(&1_u16.to_le_bytes());
                    part[14..16].copy_from_slice(&ring.used_idx().to_le_bytes());
                }
            }
            std::os::unix::fs::FileExt::write_all_at(file, &bytes, 0).expect("forge the region");
            // Requests that nobody waits for, so that there is something to claim.
            for ring in &frontend.rings {
                ring.publish(&[0, 1, 2, 3][..random.below(5) as usize]);
                ring.kick();
            }
            if life < 2 {
                frontend = frontend.resume(backend.socket());
            }
        }
        drop(frontend);
        backend.assert_alive();
    }
    Frontend::with(backend.socket(), keeper(2)).assert_serves(1, 0, 5);
    backend.terminate();
}

/// A guest that is paused and goes on, and one whose front end comes back, find every request where it was.
#[test]
fn stops_and_reconnections_leave_the_region_empty() {
    let backend = Serve::encrypted().payload_bytes(16 << 20).start();
    let setup = Setup { keeps_inflight: true, queue_size: 256, ..Setup::data(24 * MIB) };
    let mut frontend = Frontend::with(backend.socket(), setup);
    let data = pattern(9, 1 << 20);
    let writes: Vec<Prepared> =
        (0..16).map(|i| frontend.prepare(0, &Request::write(i * 2048, &data))).collect();
    for round in 0..6 {
        writes.iter().for_each(Prepared::forget);
        frontend.rings[0].publish(&writes.iter().map(|write| write.head).collect::<Vec<_>>());
        frontend.rings[0].kick();
        if round % 2 == 0 {
            let base = frontend.stop_ring(0);
            assert_eq!(frontend.inflight.as_ref().expect("it is kept").count(), 0);
            frontend.start_ring(0, base);
        } else {
            frontend = frontend.resume(backend.socket());
        }
        frontend.rings[0].kick();
        let answered = frontend.rings[0].collect_by_polling(16);
        assert!(writes.iter().all(|write| write.status() == S_OK));
        assert_eq!(answered.len(), 16);
    }
}
