//! Requests that are no requests: types, headers, status bytes, directions and lengths.

use super::serve;
use crate::harness::case::*;
use crate::harness::frontend::*;
use crate::harness::memory::*;
use crate::harness::request::*;
use crate::harness::ring::*;
use crate::harness::*;

#[test]
fn type_unknown() {
    let mut case = Case::start(serve());
    for kind in [3, 9, 15, 100, 0xffff_ffff] {
        case.expect_failure(&Request::new(kind, 0, Vec::new(), 0), S_UNSUPP);
        case.expect_failure(&Request::new(kind, 0, vec![1; 512], 512), S_UNSUPP);
    }
    case.finish();
}

#[test]
fn type_scsi() {
    let mut case = Case::start(serve());
    case.expect_failure(&Request::new(2, 0, vec![0; 32], 96), S_UNSUPP);
    case.expect_failure(&Request::new(3, 0, vec![0; 32], 96), S_UNSUPP);
    case.finish();
}

#[test]
fn type_barrier() {
    let mut case = Case::start(serve());
    case.expect_failure(&Request::new(0x8000_0000, TARGET_SECTOR, Vec::new(), 512), S_UNSUPP);
    case.expect_failure(&Request::new(0x8000_0001, TARGET_SECTOR, vec![1; 512], 0), S_UNSUPP);
    case.finish();
}

#[test]
fn type_high_bit() {
    let mut case = Case::start(serve());
    for bit in 8..32 {
        case.expect_failure(&Request::new(1 << bit | T_OUT, TARGET_SECTOR, vec![1; 512], 0), S_UNSUPP);
    }
    case.finish();
}

#[test]
fn get_lifetime() {
    let mut case = Case::start(serve());
    case.expect_failure(&Request::new(T_GET_LIFETIME, 0, Vec::new(), 40), S_UNSUPP);
    case.finish();
}

#[test]
fn data_not_512_multiple() {
    let mut case = Case::start(serve());
    for len in [1, 511, 513, 1000, 4095] {
        case.expect_failure(&Request::read(TARGET_SECTOR, len), S_IOERR);
        case.expect_failure(&Request::write(TARGET_SECTOR, &vec![1; len]), S_IOERR);
    }
    case.finish();
}

#[test]
fn flush_with_data() {
    let mut case = Case::start(serve());
    for (payload, room) in [(512, 0), (0, 512), (16, 16)] {
        let answer = case.run(&Request::new(T_FLUSH, 0, vec![1; payload], room));
        assert!([S_OK, S_IOERR].contains(&answer.status), "{answer:?}");
        assert_eq!((answer.used_len, answer.data), (1, vec![S_UNTOUCHED; room]));
    }
    case.finish();
}

#[test]
fn flush_nonzero_sector_and_ioprio() {
    let mut case = Case::start(serve());
    for (ioprio, sector) in [(0, 1), (0, u64::MAX), (u32::MAX, 0)] {
        let answer = case.run(&Request::flush().header(header(T_FLUSH, ioprio, sector)));
        assert!([S_OK, S_IOERR].contains(&answer.status), "{answer:?}");
        assert_eq!(answer.used_len, 1);
    }
    case.finish();
}

#[test]
fn write_ioprio_max() {
    let mut case = Case::start(serve());
    case.grant_sectors(TARGET_SECTOR..TARGET_SECTOR + 1);
    case.run(&Request::write(TARGET_SECTOR, &[7; 512]).header(header(T_OUT, u32::MAX, TARGET_SECTOR))).ok();
    case.finish();
}

#[test]
fn get_id_direction() {
    let mut case = Case::start(serve());
    // The serial number's buffer is readable: there is nowhere to put it.
    let (header, data, status) = (case.header(T_GET_ID, 0), case.data(20), case.status());
    let head = case.fire_chain(&[header, data, status]);
    assert_eq!(case.answered(head), 1);
    assert!([S_OK, S_IOERR].contains(&case.frontend.ram.read(status.addr, 1)[0]));
    case.finish();
}

#[test]
fn get_id_no_status() {
    let mut case = Case::start(serve());
    case.expect_returned(&[case.header(T_GET_ID, 0)]);
    let (header, room) = (case.header(T_GET_ID, 0), case.room(20));
    // The last writable byte is the status: 19 are left.
    let head = case.fire_chain(&[header, room]);
    assert_eq!(case.answered(head), 20);
    assert_eq!(case.frontend.ram.read(room.addr + 19, 1), [S_OK]);
    case.finish();
}

#[test]
fn get_id_on_any_queue_with_any_sector() {
    let case = Case::start(serve());
    let first = case.frontend.run_on(0, &Request::get_id(20)).ok();
    let odd = Request::get_id(20).header(header(T_GET_ID, 9, u64::MAX));
    assert_eq!(case.frontend.run_on(1, &odd).ok(), first);
    // Both ran in buffers of the front end's own.
    let mut case = case;
    case.grant_memory(RINGS_BASE..NEAR_BASE);
    case.finish();
}

#[test]
fn header_too_short() {
    let mut case = Case::start(serve());
    for len in [1, 4, 8, 15] {
        let (short, room, status) = (case.data(len), case.room(512), case.status());
        case.frontend.ram.write(short.addr, &vec![0; len]);
        case.expect_status(&[short, room, status], S_IOERR);
        case.expect_status(&[short, status], S_IOERR);
    }
    case.finish();
}

#[test]
fn header_missing() {
    let mut case = Case::start(serve());
    let (room, status) = (case.room(512), case.status());
    case.expect_status(&[status], S_IOERR);
    case.expect_status(&[room, status], S_IOERR);
    case.finish();
}

#[test]
fn header_oversized() {
    // What follows the sixteenth byte is data: too much of it for a read, 16 bytes of it for a write.
    let mut case = Case::start(serve());
    for kind in [T_IN, T_OUT] {
        let mut bytes = header(kind, 0, TARGET_SECTOR);
        bytes.extend([0; 16]);
        let (long, status) = (Desc::readable(case.place(&bytes), 32), case.status());
        case.expect_status(&[long, status], S_IOERR);
    }
    case.finish();
}

#[test]
fn status_len_zero() {
    let mut case = Case::start(serve());
    let (read, room) = (case.header(T_IN, TARGET_SECTOR), case.room(512));
    let head = case.fire_chain(&[read, room, Desc::writable(room.addr, 0)]);
    assert!(case.answered(head) <= 1, "a sector has no room beside its status");
    case.expect_returned(&[case.header(T_OUT, TARGET_SECTOR), case.data(512), Desc::writable(room.addr, 0)]);
    case.finish();
}

#[test]
fn oversized_status_desc() {
    // Status is the last byte; what lies before it in the descriptor is data.
    let mut case = Case::start(serve());
    let (flush, wide) = (case.header(T_FLUSH, 0), case.room(8));
    let head = case.fire_chain(&[flush, wide]);
    assert_eq!(case.answered(head), 1);
    let bytes = case.frontend.ram.read(wide.addr, 8);
    assert!([S_OK, S_IOERR].contains(&bytes[7]));
    assert_eq!(bytes[..7], [S_UNTOUCHED; 7]);
    case.finish();
}

#[test]
fn status_byte_written() {
    let mut case = Case::start(serve());
    for before in [0, 1, 0x55, 0xff] {
        let (flush, status) = (case.header(T_FLUSH, 0), case.status());
        case.frontend.ram.write(status.addr, &[before]);
        case.expect_status(&[flush, status], S_OK);
    }
    case.finish();
}

#[test]
fn read_and_write_zero_length_data() {
    let mut case = Case::start(serve());
    for sector in [0, TARGET_SECTOR, 8191, 8192] {
        for kind in [T_IN, T_OUT] {
            let answer = case.run(&Request::new(kind, sector, Vec::new(), 0));
            assert!([S_OK, S_IOERR].contains(&answer.status), "{answer:?}");
            assert_eq!(answer.used_len, 1);
        }
    }
    case.finish();
}

#[test]
fn write_data_wrong_direction() {
    let mut case = Case::start(serve());
    case.expect_failure(&Request::new(T_OUT, TARGET_SECTOR, Vec::new(), 512), S_IOERR);
    case.expect_failure(&Request::new(T_IN, TARGET_SECTOR, vec![1; 512], 0), S_IOERR);
    case.finish();
}

#[test]
fn data_in_both_directions() {
    let mut case = Case::start(serve());
    for kind in [T_IN, T_OUT] {
        let answer = case.run(&Request::new(kind, TARGET_SECTOR, vec![0x44; 512], 512));
        assert!([S_OK, S_IOERR].contains(&answer.status), "{answer:?}");
        if answer.status == S_OK && kind == T_OUT {
            case.grant_sectors(TARGET_SECTOR..TARGET_SECTOR + 1);
        }
    }
    case.finish();
}

#[test]
fn read_one_byte() {
    let mut case = Case::start(serve());
    case.expect_failure(&Request::read(0, 1), S_IOERR);
    case.finish();
}

#[test]
fn get_id_short() {
    let mut case = Case::start(serve());
    for len in 1..20 {
        assert_eq!(case.run(&Request::get_id(len)).ok().len(), len);
    }
    case.finish();
}

#[test]
fn two_flushes_in_flight() {
    let mut case = Case::start(serve());
    let flushes: Vec<Prepared> = (0..2).map(|_| case.frontend.prepare(0, &Request::flush())).collect();
    flushes.iter().for_each(|flush| case.grant_memory(flush.granted()[0].clone()));
    for _ in 0..50 {
        case.fire(&[flushes[0].head, flushes[1].head]);
        let mut heads: Vec<u32> = case.ring().collect(2).iter().map(|used| used.head).collect();
        heads.sort_unstable();
        let mut expected = [u32::from(flushes[0].head), u32::from(flushes[1].head)];
        expected.sort_unstable();
        assert_eq!(heads, expected);
    }
    case.finish();
}

#[test]
fn secure_erase() {
    let mut case = Case::start(serve());
    for payload in
        [segment(TARGET_SECTOR, 8, 0), segment(0, u32::MAX, 7), vec![0; 15], Vec::new(), vec![0; 4096]]
    {
        case.expect_failure(&Request::new(T_SECURE_ERASE, 0, payload, 0), S_UNSUPP);
    }
    case.finish();
}

#[test]
fn write_readonly_device() {
    let serve = Serve::encrypted().queues(2).args(&["--read-only", "--discard", "pass"]);
    let backend = serve.start();
    let frontend = Frontend::connect(backend.socket());
    frontend.run(&Request::write(TARGET_SECTOR, &[7; 512])).failed(S_IOERR);
    frontend.run(&Request::write(TARGET_SECTOR, &[7; 4096]).readable(Cut::One).indirect()).failed(S_IOERR);
    assert!(
        frontend.run(&Request::read(TARGET_SECTOR, 512)).ok() == backend.volume.original[64 * 512..65 * 512]
    );
    backend.volume.assert_holds(&backend.volume.original);
}

#[test]
fn concurrent_write_conflict() {
    // Two queues write the same sectors at once: each sector ends as one of the two, whole.
    let mut case = Case::with(serve(), Setup { data_bytes: 4 * MIB, ..Setup::queues(2) });
    let (ones, twos) = (vec![0x11; 65536], vec![0x22; 65536]);
    let data = [&ones, &twos].map(|data| Request::write(TARGET_SECTOR, data));
    let writes: Vec<Prepared> = (0..2).map(|i| case.frontend.prepare(i, &data[i])).collect();
    writes.iter().for_each(|write| case.grant_memory(write.granted()[0].clone()));
    case.grant_sectors(TARGET_SECTOR..TARGET_SECTOR + 128);
    for _ in 0..50 {
        for (ring, write) in case.frontend.rings.iter().zip(&writes) {
            ring.publish(&[write.head]);
        }
        case.frontend.rings.iter().for_each(Ring::kick);
        for (ring, write) in case.frontend.rings.iter().zip(&writes) {
            write.answer(ring.collect(1)[0]).ok();
        }
        let now = case.run(&Request::read(TARGET_SECTOR, 65536)).ok();
        let whole =
            |sector: &[u8]| sector.iter().all(|byte| *byte == sector[0] && (0x11..=0x22).contains(byte));
        assert!(now.chunks(512).all(whole), "a sector mixes two writes");
    }
    case.finish();
}

#[test]
fn max_chain() {
    let mut case = Case::start(serve());
    case.grant_sectors(TARGET_SECTOR..TARGET_SECTOR + 62);
    let mut chain = vec![case.header(T_OUT, TARGET_SECTOR)];
    chain.extend(vec![case.data(512); 62]);
    chain.push(case.status());
    case.expect_status(&chain, S_OK);
    case.finish();
}

#[test]
fn flush_after_reset() {
    let mut case = Case::start(serve());
    case.frontend.stop_ring(0);
    case.ring().reset();
    case.frontend.start_ring(0, 0);
    case.run(&Request::flush()).ok();
    case.finish();
}

#[test]
fn only_head_descriptor_of_every_kind() {
    let mut case = Case::start(serve());
    let readable = case.data(16);
    case.expect_returned(&[readable]);
    let writable = case.room(16);
    case.expect_status(&[writable], S_IOERR);
    let status = case.status();
    case.expect_status(&[status], S_IOERR);
    case.finish();
}
