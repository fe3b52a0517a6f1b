//! What a power failure would lose, as the kernel counts it: the volume's pages that are not on storage.
//!
//! The volume is served through the page cache here (`--direct off`), where a write that nobody makes durable
//! stays in memory for seconds. Before Linux 6.5 the kernel does not tell, and these tests cannot look.

use std::io::ErrorKind;

use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

use crate::harness::frontend::*;
use crate::harness::log::Log;
use crate::harness::page_cache::unwritten_pages;
use crate::harness::*;

/// A disk served through the page cache, everything of it on storage; `None` where the kernel keeps silent.
fn clean_disk(args: &[&str]) -> Option<Backend> {
    let backend = Serve::encrypted().args(&["--direct", "off"]).args(args).start();
    let image = std::fs::File::open(&backend.volume.image).expect("open the image");
    image.sync_all().expect("sync the image");
    match unwritten_pages(&backend.volume.image) {
        Ok(pages) => {
            assert_eq!(pages, 0, "a synced image is clean");
            Some(backend)
        }
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            eprintln!("this kernel has no cachestat(2), which came with Linux 6.5: nothing was looked at");
            None
        }
        Err(error) => panic!("cachestat: {error}"),
    }
}

fn unwritten(backend: &Backend) -> u64 {
    unwritten_pages(&backend.volume.image).expect("it has worked before")
}

#[test]
fn a_flush_makes_completed_writes_durable() {
    let Some(backend) = clean_disk(&[]) else { return };
    let frontend = Frontend::connect(backend.socket());
    for round in 0..10 {
        frontend.run(&Request::write(round * 128, &pattern(round, 65536))).ok();
        assert!(unwritten(&backend) > 0, "with the cache on, a write may wait");
        frontend.run(&Request::flush()).ok();
        assert_eq!(unwritten(&backend), 0, "after a flush nothing waits");
    }
}

#[test]
fn a_guest_that_is_handed_over_leaves_nothing_behind_in_memory() {
    let Some(backend) = clean_disk(&[]) else { return };
    let mut frontend = Frontend::connect(backend.socket());
    Log::up_to(128 << 20).begin(&frontend);
    frontend.run(&Request::write(0, &pattern(1, 65536))).ok();
    assert!(unwritten(&backend) > 0, "with the cache on, a write may wait");
    frontend.stop_ring(0);
    assert_eq!(unwritten(&backend), 0, "another host would not see it");
}

#[test]
fn without_cache_every_completed_write_is_durable() {
    let Some(backend) = clean_disk(&["--cache", "writethrough"]) else { return };
    assert_each_write_durable(&Frontend::connect(backend.socket()), &backend);
}

#[test]
fn a_driver_that_cannot_flush_needs_not() {
    let Some(backend) = clean_disk(&[]) else { return };
    assert_each_write_durable(&Frontend::with(backend.socket(), Setup::without(F_FLUSH)), &backend);
}

fn assert_each_write_durable(frontend: &Frontend, backend: &Backend) {
    for round in 0..10 {
        for len in [512, 4096, 65536] {
            frontend.run(&Request::write(round * 128, &pattern(round, len))).ok();
            assert_eq!(unwritten(backend), 0, "a completed write of {len} bytes");
        }
        frontend.run(&Request::write_zeroes(round * 128, 64)).ok();
        assert_eq!(unwritten(backend), 0, "completed zeroes");
    }
}

#[test]
fn turning_the_cache_off_writes_back_what_it_held() {
    let Some(backend) = clean_disk(&[]) else { return };
    let mut frontend = Frontend::connect(backend.socket());
    for round in 0..5 {
        frontend.run(&Request::write(round * 128, &pattern(round, 65536))).ok();
        assert!(unwritten(&backend) > 0, "with the cache on, a write may wait");
        frontend.set_config(32, &[0]).expect("turn the cache off");
        assert_eq!(unwritten(&backend), 0, "turned off, it holds nothing");
        frontend.run(&Request::write(round * 128, &pattern(round + 9, 65536))).ok();
        assert_eq!(unwritten(&backend), 0, "and takes nothing");
        frontend.set_config(32, &[1]).expect("turn the cache on");
    }
}

#[test]
fn sigterm_leaves_nothing_behind() {
    let Some(mut backend) = clean_disk(&[]) else { return };
    let frontend = Frontend::connect(backend.socket());
    frontend.run(&Request::write(0, &pattern(1, 65536))).ok();
    assert!(unwritten(&backend) > 0, "with the cache on, a write may wait");
    backend.terminate();
    assert_eq!(unwritten(&backend), 0, "a clean end is a durable one");
}

#[test]
fn the_end_of_a_connection_loses_nothing() {
    let Some(mut backend) = clean_disk(&[]) else { return };
    let frontend = Frontend::connect(backend.socket());
    frontend.run(&Request::write(0, &pattern(1, 65536))).ok();
    drop(frontend);
    Frontend::connect(backend.socket()).run(&Request::flush()).ok();
    assert_eq!(unwritten(&backend), 0, "a flush covers the writes of the front end before");
    backend.terminate();
}

#[test]
fn who_was_never_told_of_a_cache_gets_none() {
    // It may come from the time of a predecessor, with a driver that has turned the cache off and never flushes.
    let Some(backend) = clean_disk(&[]) else { return };
    let setup = || Setup { reads_config: false, ..Setup::default() };
    let mut frontend = Frontend::with(backend.socket(), setup());
    frontend.run(&Request::write(0, &pattern(1, 65536))).ok();
    assert_eq!(unwritten(&backend), 0, "each write is durable");
    frontend.config(32, 1).expect("GET_CONFIG");
    frontend.run(&Request::write(0, &pattern(2, 65536))).ok();
    assert!(unwritten(&backend) > 0, "with the cache on, a write may wait");
    drop(frontend);
    let frontend = Frontend::with(backend.socket(), setup());
    frontend.run(&Request::write(0, &pattern(3, 65536))).ok();
    assert!(unwritten(&backend) > 0, "the same process has told it before");
}

#[test]
fn a_cache_that_was_turned_off_stays_off_through_a_reset() {
    let Some(backend) = clean_disk(&[]) else { return };
    let mut frontend = Frontend::connect(backend.socket());
    frontend.set_config(32, &[0]).expect("turn the cache off");
    frontend.messages.reset_device().expect("RESET_DEVICE");
    frontend.messages.set_features(frontend.features).expect("SET_FEATURES");
    frontend.rings[0].reset_indices();
    frontend.start_ring(0, 0);
    frontend.run(&Request::write(0, &pattern(1, 65536))).ok();
    assert_eq!(unwritten(&backend), 0, "the front end does not tell again what it remembers");
}

#[test]
fn a_successor_knows_whether_the_driver_flushes() {
    // Front ends that come back to a back end neither ask nor tell again.
    let Some(mut backend) = clean_disk(&[]) else { return };
    let setup = Setup { keeps_inflight: true, ..Setup::default() };
    let mut frontend = Frontend::with(backend.socket(), setup);
    frontend.setup.reads_config = false;
    for (round, writeback) in [1, 0, 0, 1].into_iter().enumerate() {
        frontend.set_config(32, &[writeback]).expect("SET_CONFIG");
        for life in 0..2 {
            backend.kill();
            backend.start_again();
            frontend = frontend.resume(backend.socket());
            frontend.run(&Request::write(0, &pattern(10 * round as u64 + life, 65536))).ok();
            assert_eq!(unwritten(&backend) > 0, writeback == 1, "cache {writeback}, life {life}");
            frontend.run(&Request::flush()).ok();
        }
    }
}
