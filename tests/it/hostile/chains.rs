//! Descriptor chains that no driver would make.

use super::serve;
use crate::harness::case::*;
use crate::harness::memory::*;
use crate::harness::request::*;
use crate::harness::ring::*;
use crate::harness::*;

#[test]
fn desc_chain_loop() {
    let mut case = Case::start(serve());
    let (header, data, status) = (case.header(T_OUT, TARGET_SECTOR), case.data(512), case.status());
    for back_to in [0, 1, 2] {
        let ring = case.ring();
        ring.set_desc(0, header.then(1));
        ring.set_desc(1, data.then(2));
        ring.set_desc(2, status.then(back_to));
        case.fire(&[0]);
        assert_eq!(case.answered(0), 0, "loop back to descriptor {back_to}");
    }
    case.ring().set_desc(5, data.then(5));
    case.fire(&[5]);
    assert_eq!(case.answered(5), 0, "a descriptor that is its own successor");
    case.finish();
}

#[test]
fn desc_chain_too_long() {
    let mut case = Case::start(serve());
    let header = case.header(T_OUT, TARGET_SECTOR);
    let mut chain = vec![header];
    chain.extend(vec![case.data(8); 62]);
    chain.push(case.status());
    case.expect_status(&chain, S_IOERR);
    case.finish();
}

#[test]
fn chain_qsize_plus_one() {
    let case = Case::start(serve());
    let mut chain = vec![case.header(T_OUT, TARGET_SECTOR)];
    chain.extend(vec![case.data(512); 63]);
    case.ring().set_chain(0, &chain);
    case.ring().set_desc(63, chain[63].then(1));
    case.fire(&[0]);
    assert_eq!(case.answered(0), 0);
    case.finish();
}

#[test]
fn desc_next_oob() {
    let case = Case::start(serve());
    for next in [64, 65, 0x7fff, 0xffff] {
        let header = case.header(T_FLUSH, 0);
        case.ring().set_desc(0, header.then(next));
        case.fire(&[0]);
        assert_eq!(case.answered(0), 0, "next {next}");
    }
    case.finish();
}

/// Reads into, and writes from, an address that is not all RAM.
fn unreachable_data(address: u64, len: u32) {
    let mut case = Case::start(serve());
    let (read, write, status) =
        (case.header(T_IN, TARGET_SECTOR), case.header(T_OUT, TARGET_SECTOR), case.status());
    case.expect_status(&[read, Desc::writable(address, len), status], S_IOERR);
    case.expect_status(&[write, Desc::readable(address, len), status], S_IOERR);
    let good = case.room(512);
    case.expect_status(&[read, good, Desc::writable(address, len), status], S_IOERR);
    case.finish();
}

#[test]
fn desc_addr_zero() {
    unreachable_data(0, 512);
}

#[test]
fn desc_addr_beyond_ram() {
    unreachable_data(DATA_BASE + (1 << 20), 512);
}

#[test]
fn desc_addr_pci_bar() {
    unreachable_data(0xfebf_0000, 4096);
}

#[test]
fn desc_len_huge() {
    unreachable_data(DATA_BASE, u32::MAX);
    unreachable_data(DATA_BASE, 0xffff_fe00);
}

#[test]
fn desc_len_overflow() {
    unreachable_data(u64::MAX - 511, 512);
    unreachable_data(u64::MAX - 10, 4096);
    unreachable_data(u64::MAX, 1 << 31);
}

#[test]
fn desc_len_span_end_ram() {
    unreachable_data(HOLE_BASE - 512, 4096);
    unreachable_data(DATA_BASE + (1 << 20) - 511, 512);
}

#[test]
fn desc_spanning_memory_hole() {
    unreachable_data(HOLE_BASE - 512, (DATA_BASE - HOLE_BASE) as u32 + 1024);
}

#[test]
fn header_and_status_out_of_reach() {
    let mut case = Case::start(serve());
    let status = case.status();
    case.expect_status(&[Desc::readable(HOLE_BASE, 16), status], S_IOERR);
    case.expect_status(&[Desc::readable(HOLE_BASE - 8, 16), status], S_IOERR);
    let (flush, data) = (case.header(T_FLUSH, 0), case.data(512));
    for at in [0, HOLE_BASE, u64::MAX, DATA_BASE + (1 << 20)] {
        case.expect_returned(&[flush, Desc::writable(at, 1)]);
        case.expect_returned(&[case.header(T_OUT, TARGET_SECTOR), data, Desc::writable(at, 1)]);
    }
    case.finish();
}

#[test]
fn desc_len_zero() {
    let mut case = Case::start(serve());
    let (header, nothing, room, status) =
        (case.header(T_IN, TARGET_SECTOR), case.data(0), case.room(512), case.status());
    for chain in
        [vec![nothing, header, room, status], vec![header, room, Desc::writable(room.addr, 0), status]]
    {
        let head = case.fire_chain(&chain);
        let len = case.answered(head);
        let answer = case.frontend.ram.read(status.addr, 1)[0];
        assert!(matches!((answer, len), (S_OK, 513) | (S_IOERR, 1)), "status {answer}, used length {len}");
    }
    case.finish();
}

#[test]
fn desc_addr_and_len_zero() {
    let mut case = Case::start(serve());
    let (header, status) = (case.header(T_IN, TARGET_SECTOR), case.status());
    let head = case.fire_chain(&[header, Desc::writable(0, 0), status]);
    assert_eq!(case.answered(head), 1);
    assert!([S_OK, S_IOERR].contains(&case.frontend.ram.read(status.addr, 1)[0]));
    case.finish();
}

#[test]
fn desc_write_flag_wrong() {
    let mut case = Case::start(serve());
    let (room, status) = (case.room(512), case.status());
    let mut header = case.header(T_IN, TARGET_SECTOR);
    header.flags = WRITE;
    case.expect_status(&[header, room, status], S_IOERR);
    case.finish();
}

#[test]
fn desc_write_flag_wrong_out() {
    let mut case = Case::start(serve());
    let (header, room, status) = (case.header(T_OUT, TARGET_SECTOR), case.room(512), case.status());
    case.expect_status(&[header, room, status], S_IOERR);
    case.finish();
}

#[test]
fn desc_read_flag_wrong_in() {
    let mut case = Case::start(serve());
    let (header, data, status) = (case.header(T_IN, TARGET_SECTOR), case.data(512), case.status());
    case.expect_status(&[header, data, status], S_IOERR);
    case.finish();
}

#[test]
fn desc_status_not_writable() {
    let mut case = Case::start(serve());
    let (write, data) = (case.header(T_OUT, TARGET_SECTOR), case.data(512));
    case.expect_returned(&[write, data, case.data(1)]);
    case.expect_returned(&[case.header(T_FLUSH, 0), case.data(1)]);
    // A read's last writable byte is then the last of its data, which leaves room for 511.
    let (read, room) = (case.header(T_IN, TARGET_SECTOR), case.room(512));
    let head = case.fire_chain(&[read, room, case.data(1)]);
    assert!(case.answered(head) <= 1);
    case.finish();
}

#[test]
fn desc_no_status() {
    let mut case = Case::start(serve());
    let (write, data) = (case.header(T_OUT, TARGET_SECTOR), case.data(512));
    case.expect_returned(&[write, data]);
    let (read, room) = (case.header(T_IN, TARGET_SECTOR), case.room(512));
    case.expect_status(&[read, room], S_IOERR);
    case.finish();
}

#[test]
fn desc_only_header() {
    let case = Case::start(serve());
    for kind in [T_IN, T_OUT, T_FLUSH, T_GET_ID, T_DISCARD, T_WRITE_ZEROES, 99] {
        case.expect_returned(&[case.header(kind, TARGET_SECTOR)]);
    }
    case.finish();
}

#[test]
fn interleave_rw_descs() {
    let mut case = Case::start(serve());
    let (header, room, data, status) =
        (case.header(T_IN, TARGET_SECTOR), case.room(512), case.data(16), case.status());
    let head = case.fire_chain(&[header, room, data, status]);
    let len = case.answered(head);
    let answer = case.frontend.ram.read(status.addr, 1)[0];
    assert!(
        matches!((answer, len), (S_OK, 513) | (S_IOERR, 1) | (S_UNTOUCHED, 0)),
        "status {answer}, used length {len}"
    );
    case.finish();
}

#[test]
fn desc_all_max_values() {
    let case = Case::start(serve());
    let max = Desc { addr: u64::MAX, len: u32::MAX, flags: u16::MAX, next: u16::MAX };
    case.ring().set_desc(0, max);
    case.fire(&[0]);
    assert_eq!(case.answered(0), 0);
    let header = case.header(T_FLUSH, 0);
    case.ring().set_desc(1, header.then(0));
    case.fire(&[1]);
    assert_eq!(case.answered(1), 0);
    case.finish();
}

#[test]
fn desc_total_len_overflow() {
    let mut case = Case::with(serve(), Setup { data_bytes: 8 * MIB, ..Setup::queues(2) });
    // 512 buffers of 8 MiB are 2^32 bytes: a 32-bit sum would see the last 512 alone.
    let (read, write) = (case.header(T_IN, TARGET_SECTOR), case.header(T_OUT, TARGET_SECTOR));
    let (room, data, status) = (case.room(512), case.data(512), case.status());
    let mut into = vec![read];
    into.extend(vec![Desc::writable(DATA_BASE, 8 << 20); 512]);
    into.extend([room, status]);
    let mut from = vec![write];
    from.extend(vec![Desc::readable(DATA_BASE, 8 << 20); 512]);
    from.extend([data, status]);
    for chain in [into, from] {
        let table = case.table(&chained(&chain, 0));
        let head = case.fire_chain(&[table]);
        assert_eq!(case.answered(head), 1);
        assert_eq!(case.frontend.ram.read(status.addr, 1), [S_IOERR]);
    }
    case.finish();
}

#[test]
fn desc_addr_self_vring() {
    let mut case = Case::start(serve());
    let ring = case.ring();
    let areas = [(ring.desc_table, 1024u32), (ring.avail & !1, 128), (ring.used, 512)];
    let everything = ring.desc_table..ring.used + 6 + 8 * 64;
    case.grant_memory(everything);
    for (at, len) in areas {
        let (header, padding, status) =
            (case.header(T_IN, TARGET_SECTOR), 1024 - len as usize, case.status());
        let padding = case.room(padding.max(1));
        let mut chain = vec![header, Desc::writable(at, len)];
        chain.extend((len < 1024).then_some(padding));
        case.fire_chain(&[chain, vec![status]].concat());
        // What the ring says now is its own data: nothing to wait for but the data itself.
        std::thread::sleep(SILENCE);
        case.backend.assert_alive();
        case.frontend.assert_serves(1, PROOF_SECTOR, 5);
        case.frontend.stop_ring(0);
        case.ring().reset();
        case.ring().drain_calls();
        case.frontend.start_ring(0, 0);
        case.frontend.assert_serves(0, PROOF_SECTOR, 6);
    }
    case.grant_memory(case.frontend.rings[1].used_area());
    // The proofs above read into buffers of their own, beside the act.
    case.grant_memory(RINGS_BASE..NEAR_BASE);
    case.finish();
}

#[test]
fn modify_inflight_desc() {
    let mut case = Case::start(serve());
    let (header, room, status) = (case.header(T_IN, TARGET_SECTOR), case.room(4096), case.status());
    for round in 0..300 {
        case.fire_chain(&[header, room, status]);
        // Too late, too early or in between: the device reads each descriptor once or not at all.
        let poison =
            [Desc::writable(0, 4096), Desc::writable(room.addr, u32::MAX), Desc::indirect(room.addr, 4096)];
        case.ring().set_desc(1, poison[round % 3].with_flags(NEXT));
        case.ring().set_desc(0, Desc::writable(HOLE_BASE, 16).then(0));
        assert!([0, 1, 4097].contains(&case.answered(0)), "round {round}");
    }
    case.finish();
}

#[test]
fn modify_desc_after_avail() {
    let mut case = Case::start(serve());
    let (write, data, status) = (case.header(T_OUT, TARGET_SECTOR), case.data(512), case.status());
    case.grant_sectors(TARGET_SECTOR..TARGET_SECTOR + 1);
    for round in 0..300u64 {
        case.fire_chain(&[write, data, status]);
        // The header's sector jumps about; only the target is written or the request fails.
        let wild = if round % 2 == 0 { u64::MAX } else { 1 << 40 };
        case.frontend.ram.write(write.addr + 8, &wild.to_le_bytes());
        assert_eq!(case.answered(0), 1);
        case.frontend.ram.write(write.addr + 8, &TARGET_SECTOR.to_le_bytes());
    }
    case.finish();
}

#[test]
fn free_exposed_buffer() {
    let mut case = Case::start(serve());
    let (write, data, status) = (case.header(T_OUT, TARGET_SECTOR), case.data(4096), case.status());
    case.grant_sectors(TARGET_SECTOR..TARGET_SECTOR + 8);
    for round in 0..200u8 {
        case.fire_chain(&[write, data, status]);
        case.frontend.ram.write(data.addr, &[round; 4096]);
        assert_eq!(case.answered(0), 1);
        assert_eq!(case.frontend.ram.read(status.addr, 1), [S_OK]);
    }
    case.finish();
}

#[test]
fn status_overlaps_data() {
    let mut case = Case::start(serve());
    let (header, room) = (case.header(T_IN, TARGET_SECTOR), case.room(512));
    let head = case.fire_chain(&[header, room, Desc::writable(room.addr + 100, 1)]);
    assert_eq!(case.answered(head), 513);
    assert_eq!(case.frontend.ram.read(room.addr + 100, 1), [S_OK], "data first, status last");
    case.finish();
}

#[test]
fn cross_queue_same_desc() {
    let mut case = Case::start(serve());
    let (header, room, status) = (case.header(T_IN, TARGET_SECTOR), case.room(4096), case.status());
    for _ in 0..50 {
        for ring in &case.frontend.rings {
            ring.set_chain(0, &[header, room, status]);
            ring.publish(&[0]);
        }
        for ring in &case.frontend.rings {
            ring.kick();
        }
        for ring in &case.frontend.rings {
            assert_eq!(ring.collect(1), [Used { head: 0, len: 4097 }]);
        }
    }
    case.finish();
}

#[test]
fn desc_unmap_after_submit() {
    let mut case = Case::start(serve());
    let base = DATA_BASE + (256 << 20);
    let region = Region::new(base, MIB);
    let guest = case.frontend.ram.clone();
    guest.plug(region);
    case.frontend.setup.memory = frontend::MemoryMessages::Slots;
    for round in 0..20 {
        let info = guest.region(base).info();
        case.frontend.add_region(&info);
        let (header, status) = (case.header(T_IN, TARGET_SECTOR), case.status());
        case.fire_chain(&[header, Desc::writable(base, 1 << 20), status]);
        use vhost::vhost_user::VhostUserFrontend;
        case.frontend.messages.remove_mem_region(&info).expect("REM_MEM_REG");
        let len = case.answered(0);
        let answer = case.frontend.ram.read(status.addr, 1)[0];
        assert!(matches!((answer, len), (S_OK, 0x10_0001) | (S_IOERR, 1)), "round {round}: {answer}, {len}");
    }
    guest.unplug(base);
    case.finish();
}
