//! Requests whose sectors do not exist, and the segments of DISCARD and WRITE_ZEROES.

use super::serve;
use crate::harness::case::*;
use crate::harness::frontend::*;
use crate::harness::request::*;

/// Sectors of the volume under attack.
const CAPACITY: u64 = (4 << 20) / 512;

fn ranged(kind: u32, payload: Vec<u8>) -> Request {
    Request::new(kind, 0, payload, 0)
}

/// Both kinds of range requests fail with `status` and change nothing.
fn both_fail(case: &mut Case, payload: &[u8], status: u8) {
    for kind in [T_DISCARD, T_WRITE_ZEROES] {
        case.expect_failure(&ranged(kind, payload.to_vec()), status);
    }
}

#[test]
fn sector_beyond_capacity() {
    let mut case = Case::start(serve());
    for sector in [CAPACITY, CAPACITY + 1, 2 * CAPACITY, 1 << 40] {
        case.expect_failure(&Request::read(sector, 512), S_IOERR);
        case.expect_failure(&Request::write(sector, &[1; 512]), S_IOERR);
    }
    case.finish();
}

#[test]
fn sector_plus_len_overflow() {
    let mut case = Case::start(serve());
    for sector in [u64::MAX, u64::MAX - 1, u64::MAX >> 9, (u64::MAX >> 9) + 1, 1 << 55, 1 << 63] {
        case.expect_failure(&Request::read(sector, 1024), S_IOERR);
        case.expect_failure(&Request::write(sector, &[1; 1024]), S_IOERR);
    }
    case.finish();
}

#[test]
fn read_and_write_partial_oob() {
    let mut case = Case::start(serve());
    for (sector, sectors) in [(CAPACITY - 1, 2), (CAPACITY - 7, 8), (CAPACITY - 127, 128)] {
        case.expect_failure(&Request::read(sector, sectors * 512), S_IOERR);
        case.expect_failure(&Request::write(sector, &vec![1; sectors * 512]), S_IOERR);
    }
    case.finish();
}

#[test]
fn read_and_write_last_sector() {
    let mut case = Case::start(serve());
    case.grant_sectors(CAPACITY - 1..CAPACITY);
    let last = case.backend.volume.original[(CAPACITY as usize - 1) * 512..].to_vec();
    let read = case.run(&Request::read(CAPACITY - 1, 512)).ok();
    assert!(case.backend.volume.is_luks() || read == last);
    case.run(&Request::write(CAPACITY - 1, &[9; 512])).ok();
    assert_eq!(case.run(&Request::read(CAPACITY - 1, 512)).ok(), [9; 512]);
    case.finish();
}

#[test]
fn write_sector_zero() {
    let mut case = Case::start(serve());
    case.grant_sectors(0..1);
    case.run(&Request::write(0, &[3; 512])).ok();
    assert_eq!(case.run(&Request::read(0, 512)).ok(), [3; 512]);
    case.finish();
}

#[test]
fn discard_and_write_zeroes_out_of_range() {
    let mut case = Case::start(serve());
    for (sector, count) in [
        (CAPACITY, 8),
        (CAPACITY - 1, 2),
        (CAPACITY - 8, 16),
        (0, CAPACITY as u32 + 1),
        (u64::MAX, 1),
        (u64::MAX - 7, 8),
        (u64::MAX - 7, 16),
        (u64::MAX >> 9, 8),
        (1 << 55, 8),
        (8, u32::MAX),
    ] {
        both_fail(&mut case, &segment(sector, count, 0), S_IOERR);
    }
    case.finish();
}

#[test]
fn one_bad_segment_spoils_the_request() {
    let mut case = Case::start(serve());
    let good = segment(TARGET_SECTOR, 8, 0);
    let bad = segment(CAPACITY - 1, 8, 0);
    let max = case.frontend.config(40, 4).expect("GET_CONFIG");
    if u32::from_le_bytes(max.try_into().expect("4 bytes")) >= 2 {
        both_fail(&mut case, &[good, bad].concat(), S_IOERR);
    }
    case.finish();
}

#[test]
fn segment_data_not_16() {
    let mut case = Case::start(serve());
    for len in [0, 1, 8, 15, 17, 24, 31] {
        let mut payload = [segment(TARGET_SECTOR, 8, 0), segment(TARGET_SECTOR, 8, 0)].concat();
        payload.truncate(len);
        both_fail(&mut case, &payload, S_IOERR);
    }
    case.finish();
}

#[test]
fn too_many_segments() {
    let mut case = Case::start(serve());
    for (kind, offset) in [(T_DISCARD, 40), (T_WRITE_ZEROES, 52)] {
        let max = case.frontend.config(offset, 4).expect("GET_CONFIG");
        let max = u32::from_le_bytes(max.try_into().expect("4 bytes")) as usize;
        assert!(max < 2000, "a limit that a test can pass, not {max}");
        let payload = segment(TARGET_SECTOR, 1, 0).repeat(max + 1);
        case.expect_failure(&ranged(kind, payload), S_IOERR);
    }
    case.expect_failure(&ranged(T_DISCARD, segment(TARGET_SECTOR, 1, 0).repeat(4095)), S_IOERR);
    case.finish();
}

#[test]
fn discard_unmap_set() {
    let mut case = Case::start(serve());
    case.expect_failure(&ranged(T_DISCARD, segment(TARGET_SECTOR, 8, 1)), S_UNSUPP);
    case.finish();
}

#[test]
fn unknown_segment_flags() {
    let mut case = Case::start(serve());
    for flags in [2, 3, 4, 1 << 31, u32::MAX] {
        both_fail(&mut case, &segment(TARGET_SECTOR, 8, flags), S_UNSUPP);
    }
    case.finish();
}

#[test]
fn wz_unmap_no_discard() {
    let mut case = Case::with(serve(), Setup { queues: 2, ..Setup::without(F_DISCARD) });
    case.grant_sectors(TARGET_SECTOR..TARGET_SECTOR + 8);
    case.run(&ranged(T_WRITE_ZEROES, segment(TARGET_SECTOR, 8, 1))).ok();
    assert_eq!(case.run(&Request::read(TARGET_SECTOR, 4096)).ok(), [0; 4096]);
    case.finish();
}

#[test]
fn discard_without_feature() {
    // A device that does not offer DISCARD does not know it.
    let ignoring = serve().queues(2).args(&["--discard", "ignore"]);
    let mut case = Case::over(ignoring, Setup::queues(2));
    case.expect_failure(&Request::discard(TARGET_SECTOR, 8), S_UNSUPP);
    case.finish();
    // One that offers it may carry out what the driver did not ask for, or refuse it: never corrupt.
    let mut case = Case::with(serve(), Setup { queues: 2, ..Setup::without(F_DISCARD) });
    let answer = case.run(&Request::discard(TARGET_SECTOR, 8));
    assert!([S_OK, S_UNSUPP].contains(&answer.status), "{answer:?}");
    case.grant_sectors(TARGET_SECTOR..TARGET_SECTOR + 8);
    case.finish();
}

#[test]
fn wz_without_feature() {
    let mut case = Case::with(serve(), Setup { queues: 2, ..Setup::without(F_WRITE_ZEROES) });
    let answer = case.run(&Request::write_zeroes(TARGET_SECTOR, 8));
    assert!([S_OK, S_UNSUPP].contains(&answer.status), "{answer:?}");
    case.grant_sectors(TARGET_SECTOR..TARGET_SECTOR + 8);
    case.finish();
}

#[test]
fn empty_segments() {
    let mut case = Case::start(serve());
    for kind in [T_DISCARD, T_WRITE_ZEROES] {
        let answer = case.run(&ranged(kind, segment(TARGET_SECTOR, 0, 0)));
        assert!([S_OK, S_IOERR].contains(&answer.status), "{answer:?}");
        assert_eq!(answer.used_len, 1);
    }
    case.finish();
}

#[test]
fn overlapping_segments() {
    let mut case = Case::start(serve());
    case.grant_sectors(TARGET_SECTOR..TARGET_SECTOR + 16);
    let max = case.frontend.config(52, 4).expect("GET_CONFIG");
    if u32::from_le_bytes(max.try_into().expect("4 bytes")) >= 2 {
        let payload = [segment(TARGET_SECTOR, 12, 0), segment(TARGET_SECTOR + 4, 12, 0)].concat();
        case.run(&ranged(T_WRITE_ZEROES, payload)).ok();
        assert_eq!(case.run(&Request::read(TARGET_SECTOR, 8192)).ok(), [0; 8192]);
    }
    case.finish();
}

#[test]
fn discard_whole_disk() {
    let mut case = Case::start(serve());
    case.grant_sectors(0..CAPACITY);
    let max = case.frontend.config(36, 4).expect("GET_CONFIG");
    let max = u64::from(u32::from_le_bytes(max.try_into().expect("4 bytes"))).min(CAPACITY);
    for start in (0..CAPACITY).step_by(max as usize) {
        case.run(&Request::discard(start, max.min(CAPACITY - start) as u32)).ok();
    }
    case.finish();
}

#[test]
fn discard_and_write_overlap() {
    let mut case = Case::start(serve());
    case.grant_sectors(TARGET_SECTOR..TARGET_SECTOR + 8);
    let requests = [Request::discard(TARGET_SECTOR, 8), Request::write(TARGET_SECTOR, &[5; 4096])];
    let prepared: Vec<Prepared> = requests.iter().map(|request| case.frontend.prepare(0, request)).collect();
    prepared.iter().for_each(|p| case.grant_memory(p.granted()[0].clone()));
    for _ in 0..50 {
        case.fire(&[prepared[0].head, prepared[1].head]);
        assert_eq!(case.ring().collect(2).len(), 2);
        assert_eq!([prepared[0].status(), prepared[1].status()], [S_OK, S_OK]);
    }
    case.finish();
}

#[test]
fn segments_with_writable_payload() {
    let mut case = Case::start(serve());
    for kind in [T_DISCARD, T_WRITE_ZEROES] {
        case.expect_failure(&Request::new(kind, 0, Vec::new(), 16), S_IOERR);
    }
    case.finish();
}

#[test]
fn segments_cut_anywhere() {
    let mut case = Case::start(serve());
    case.grant_sectors(TARGET_SECTOR..TARGET_SECTOR + 8);
    for cut in [Cut::One, Cut::Every(5), Cut::At(vec![20])] {
        case.run(&Request::write(TARGET_SECTOR, &[5; 4096])).ok();
        case.run(&Request::write_zeroes(TARGET_SECTOR, 8).readable(cut)).ok();
        assert_eq!(case.run(&Request::read(TARGET_SECTOR, 4096)).ok(), [0; 4096]);
    }
    case.finish();
}
