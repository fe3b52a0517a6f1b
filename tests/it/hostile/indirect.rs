//! Indirect tables that no driver would make.

use super::serve;
use crate::harness::case::*;
use crate::harness::frontend::F_INDIRECT;
use crate::harness::memory::*;
use crate::harness::request::*;
use crate::harness::ring::*;
use crate::harness::*;

/// A valid read of one sector as an indirect table, and its status.
fn read_table(case: &mut Case) -> (Vec<Desc>, Desc) {
    let (header, room, status) = (case.header(T_IN, TARGET_SECTOR), case.room(512), case.status());
    (chained(&[header, room, status], 0), status)
}

#[test]
fn indirect_without_feature() {
    let mut case = Case::with(serve(), Setup { queues: 2, ..Setup::without(F_INDIRECT) });
    let (table, _) = read_table(&mut case);
    let head = case.fire_chain(&[case.table(&table)]);
    let len = case.answered(head);
    assert!([0, 513].contains(&len), "served or refused, used length {len}");
    case.finish();
}

#[test]
fn indirect_nested() {
    let mut case = Case::start(serve());
    let (inner, status) = read_table(&mut case);
    let inner = case.table(&inner);
    case.expect_returned(&[case.table(&[inner])]);
    let header = case.header(T_IN, TARGET_SECTOR);
    case.expect_returned(&[case.table(&chained(&[header, inner, status], 0))]);
    case.finish();
}

#[test]
fn indirect_write_and_indirect_flags() {
    let mut case = Case::start(serve());
    let (inner, _) = read_table(&mut case);
    let inner = case.table(&inner).with_flags(WRITE);
    case.expect_returned(&[case.table(&[inner])]);
    case.finish();
}

#[test]
fn indirect_and_next() {
    let mut case = Case::start(serve());
    let (table, status) = read_table(&mut case);
    case.expect_returned(&[case.table(&table), status]);
    case.finish();
}

#[test]
fn two_indirects_via_next() {
    let mut case = Case::start(serve());
    let (table, _) = read_table(&mut case);
    let table = case.table(&table);
    case.expect_returned(&[table, table]);
    case.finish();
}

#[test]
fn indirect_chained_via_next() {
    // The specification asks for this one: ordinary descriptors, then one indirect table.
    let mut case = Case::start(serve());
    let (header, room, status) = (case.header(T_IN, TARGET_SECTOR), case.room(512), case.status());
    let head = case.fire_chain(&[header, case.table(&chained(&[room, status], 0))]);
    assert_eq!(case.answered(head), 513);
    assert_eq!(case.frontend.ram.read(status.addr, 1), [S_OK]);
    case.finish();
}

#[test]
fn desc_write_and_indirect() {
    // The specification: the write flag of a descriptor that refers to a table is ignored.
    let mut case = Case::start(serve());
    let (table, status) = read_table(&mut case);
    let head = case.fire_chain(&[case.table(&table).with_flags(WRITE)]);
    assert_eq!(case.answered(head), 513);
    assert_eq!(case.frontend.ram.read(status.addr, 1), [S_OK]);
    case.finish();
}

#[test]
fn indirect_len_not_multiple() {
    let mut case = Case::start(serve());
    let (table, _) = read_table(&mut case);
    let table = case.table(&table);
    for len in [1, 15, 17, 47, 49] {
        case.expect_returned(&[Desc { len, ..table }]);
    }
    case.finish();
}

#[test]
fn indirect_len_zero() {
    let mut case = Case::start(serve());
    let (table, _) = read_table(&mut case);
    case.expect_returned(&[Desc { len: 0, ..case.table(&table) }]);
    case.finish();
}

#[test]
fn indirect_zero_entries() {
    let case = Case::start(serve());
    case.expect_returned(&[Desc::indirect(0, 0)]);
    case.finish();
}

#[test]
fn indirect_len_huge() {
    let mut case = Case::start(serve());
    let (table, _) = read_table(&mut case);
    for len in [u32::MAX, 0xffff_fff0, 1 << 31] {
        case.expect_returned(&[Desc { len, ..case.table(&table) }]);
    }
    case.finish();
}

#[test]
fn indirect_addr_oob() {
    let case = Case::start(serve());
    for at in [0, HOLE_BASE, DATA_BASE + (1 << 20), u64::MAX, u64::MAX - 47] {
        case.expect_returned(&[Desc::indirect(at, 48)]);
    }
    case.finish();
}

#[test]
fn indirect_cross_page_unmapped() {
    let mut case = Case::start(serve());
    let (table, _) = read_table(&mut case);
    let bytes: Vec<u8> = table.iter().flat_map(|desc| desc.to_bytes()).collect();
    case.frontend.ram.write(HOLE_BASE - 32, &bytes[..32]);
    case.expect_returned(&[Desc::indirect(HOLE_BASE - 32, 48)]);
    case.finish();
}

#[test]
fn indirect_cross_page_split() {
    let mut case = Case::start(serve());
    let (table, status) = read_table(&mut case);
    let bytes: Vec<u8> = table.iter().flat_map(|desc| desc.to_bytes()).collect();
    for before in [16, 32, 24] {
        // The table begins in one region and ends in the next one, whose addresses follow without a gap.
        case.frontend.ram.write(NEAR_BASE - before, &bytes);
        case.frontend.ram.write(status.addr, &[S_UNTOUCHED]);
        let head = case.fire_chain(&[Desc::indirect(NEAR_BASE - before, 48)]);
        assert_eq!(case.answered(head), 513, "{before} bytes in the first region");
        assert_eq!(case.frontend.ram.read(status.addr, 1), [S_OK]);
    }
    case.finish();
}

#[test]
fn indirect_chain_loop() {
    let mut case = Case::start(serve());
    let (table, status) = read_table(&mut case);
    for back_to in [0, 1, 2] {
        let looped = [table[0], table[1], status.then(back_to)];
        case.expect_returned(&[case.table(&looped)]);
    }
    case.finish();
}

#[test]
fn indirect_next_oob() {
    let mut case = Case::start(serve());
    let (table, _) = read_table(&mut case);
    for next in [3, 4, 0xffff] {
        case.expect_returned(&[case.table(&[table[0].then(next), table[1], table[2]])]);
    }
    case.finish();
}

/// A read of `count - 2` sixteenths of a sector, one descriptor each.
fn long_table(case: &mut Case, count: usize) -> (Desc, Desc) {
    let (header, room, status) = (case.header(T_IN, TARGET_SECTOR), case.room(32), case.status());
    let mut descs = vec![header];
    descs.extend(vec![room; count - 2]);
    descs.push(status);
    (case.table(&chained(&descs, 0)), status)
}

#[test]
fn indirect_too_many_entries() {
    let mut case = Case::with(serve(), Setup { data_bytes: 4 * MIB, ..Setup::queues(2) });
    for count in [1025, 1026, 4096, 65535] {
        let (table, _) = long_table(&mut case, count);
        case.expect_returned(&[table]);
    }
    case.finish();
}

#[test]
fn indirect_of_the_largest_size() {
    let mut case = Case::start(serve());
    // 992 pieces of 32 bytes are 62 sectors.
    let (table, status) = long_table(&mut case, 994);
    let head = case.fire_chain(&[table]);
    assert_eq!(case.answered(head), 992 * 32 + 1);
    assert_eq!(case.frontend.ram.read(status.addr, 1), [S_OK]);
    // The table may be longer than the chain in it.
    let (table, status) = read_table(&mut case);
    let longer: Vec<Desc> = table.into_iter().chain(vec![Desc::default(); 1021]).collect();
    let head = case.fire_chain(&[case.table(&longer)]);
    assert_eq!(case.answered(head), 513);
    assert_eq!(case.frontend.ram.read(status.addr, 1), [S_OK]);
    case.finish();
}
