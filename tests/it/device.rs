//! What a guest learns about the disk: features, config space, serial number.

use crate::harness::frontend::*;
use crate::harness::request::*;
use crate::harness::*;

fn le(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// The virtio-blk config space, by the specification's offsets.
struct Config(Vec<u8>);

impl Config {
    fn of(frontend: &mut Frontend) -> Self {
        Self(frontend.config(0, 60).expect("GET_CONFIG"))
    }
    fn capacity(&self) -> u64 {
        le(&self.0[0..8])
    }
    fn size_max(&self) -> u64 {
        le(&self.0[8..12])
    }
    fn seg_max(&self) -> u64 {
        le(&self.0[12..16])
    }
    fn blk_size(&self) -> u64 {
        le(&self.0[20..24])
    }
    fn physical_block_exp(&self) -> u8 {
        self.0[24]
    }
    fn alignment_offset(&self) -> u8 {
        self.0[25]
    }
    fn writeback(&self) -> u8 {
        self.0[32]
    }
    fn num_queues(&self) -> u64 {
        le(&self.0[34..36])
    }
    fn max_discard_sectors(&self) -> u64 {
        le(&self.0[36..40])
    }
    fn max_discard_segments(&self) -> u64 {
        le(&self.0[40..44])
    }
    fn discard_alignment(&self) -> u64 {
        le(&self.0[44..48])
    }
    fn max_zeroes_sectors(&self) -> u64 {
        le(&self.0[48..52])
    }
    fn max_zeroes_segments(&self) -> u64 {
        le(&self.0[52..56])
    }
    fn zeroes_may_unmap(&self) -> u8 {
        self.0[56]
    }
}

#[test]
fn config_describes_the_volume() {
    for (sector_bytes, payload_bytes) in [(512, 1 << 20), (4096, 3 << 20)] {
        let backend = Serve::encrypted().sector_bytes(sector_bytes).payload_bytes(payload_bytes).queues(3);
        let backend = backend.args(&["--discard", "pass"]).start();
        let mut frontend = Frontend::connect(backend.socket());
        let config = Config::of(&mut frontend);
        assert_eq!(config.capacity(), payload_bytes as u64 / 512);
        assert_eq!(config.blk_size(), sector_bytes as u64);
        assert_eq!(config.num_queues(), 3);
        assert_eq!(config.writeback(), 1, "a disk begins with its cache on");
        assert!((1..=1022).contains(&config.seg_max()), "seg_max {}", config.seg_max());
        if frontend.offered & F_SIZE_MAX != 0 {
            assert!(config.size_max() >= 4096, "size_max {}", config.size_max());
        }
        assert_eq!(config.alignment_offset(), 0);
        assert!(config.physical_block_exp() <= 3, "physical blocks beyond 4096 bytes of a 512-byte disk");
        let units = sector_bytes as u64 / 512;
        assert!(config.max_discard_sectors() >= units && config.max_discard_segments() >= 1);
        assert_eq!(config.discard_alignment(), units);
        assert!(config.max_zeroes_sectors() >= units && config.max_zeroes_segments() >= 1);
        assert_eq!(config.zeroes_may_unmap(), 0, "zeroes are written, never unmapped");
    }
}

#[test]
fn capacity_leaves_out_what_lies_before_the_payload() {
    let layout = Layout { offset_sectors: 2048, ..Layout::encrypted(1 << 20) };
    let backend = Serve::volume(layout).start();
    let mut frontend = Frontend::connect(backend.socket());
    assert_eq!(Config::of(&mut frontend).capacity(), 2048);
}

#[test]
fn config_is_read_in_any_piece() {
    let backend = Serve::encrypted().queues(2).start();
    let mut frontend = Frontend::connect(backend.socket());
    let whole = frontend.config(0, 256).expect("256 bytes from 0");
    for len in [1, 8, 57, 60, 72] {
        assert_eq!(frontend.config(0, len).expect("from 0"), whole[..len], "{len} bytes");
    }
    for (offset, len) in [(8, 4), (20, 4), (32, 1), (33, 3), (34, 2), (56, 4), (3, 11), (59, 2)] {
        let piece = frontend.config(offset, len).expect("a piece");
        assert_eq!(piece, whole[offset as usize..offset as usize + len], "{len} bytes at {offset}");
    }
    assert!(whole[96..].iter().all(|byte| *byte == 0), "zeroes behind the end");
    for (offset, len) in [(96, 8), (0x100, 60), (0xff0, 16)] {
        assert_eq!(frontend.config(offset, len).expect("behind the end"), vec![0; len]);
    }
    frontend.assert_serves(0, 0, 7);
}

#[test]
fn offers_what_it_can_do() {
    let backend = Serve::encrypted().queues(2).start();
    let frontend = Frontend::connect(backend.socket());
    let always = F_VERSION_1
        | F_PROTOCOL
        | F_INDIRECT
        | F_EVENT_IDX
        | F_SEG_MAX
        | F_BLK_SIZE
        | F_TOPOLOGY
        | F_FLUSH
        | F_CONFIG_WCE
        | F_MQ
        | F_WRITE_ZEROES;
    assert_eq!(frontend.offered & always, always, "missing: {:#x}", always & !frontend.offered);
    let never = F_RO | F_DISCARD | F_SECURE_ERASE | F_PACKED;
    assert_eq!(frontend.offered & never, 0, "not wanted: {:#x}", never & frontend.offered);
}

#[test]
fn offers_discard_only_where_the_operator_allows_it() {
    for (choice, offered) in [("pass", F_DISCARD), ("ignore", 0)] {
        let backend = Serve::encrypted().args(&["--discard", choice]).start();
        assert_eq!(Frontend::connect(backend.socket()).offered & F_DISCARD, offered, "--discard {choice}");
    }
}

#[test]
fn a_read_only_disk_says_so_and_keeps_its_word() {
    let mut backend = Serve::encrypted().args(&["--read-only", "--discard", "pass"]).start();
    let frontend = Frontend::connect(backend.socket());
    assert_ne!(frontend.offered & F_RO, 0);
    let data = frontend.run(&Request::read(8, 4096)).ok();
    assert!(data == backend.volume.original[8 * 512..8 * 512 + 4096]);
    frontend.run(&Request::write(8, &pattern(3, 4096))).failed(S_IOERR);
    let zeroes = frontend.run(&Request::write_zeroes(8, 8));
    assert!([S_IOERR, S_UNSUPP].contains(&zeroes.status), "{zeroes:?}");
    let discard = frontend.run(&Request::discard(8, 8));
    assert!([S_IOERR, S_UNSUPP].contains(&discard.status), "{discard:?}");
    frontend.run(&Request::flush()).ok();
    assert!(frontend.run(&Request::read(8, 4096)).ok() == data);
    backend.terminate();
    backend.volume.assert_holds(&backend.volume.original);
}

#[test]
fn serial_number() {
    let backend = Serve::encrypted().args(&["--serial", "disk-0042"]).start();
    let frontend = Frontend::connect(backend.socket());
    let mut expected = b"disk-0042".to_vec();
    expected.resize(20, 0);
    assert_eq!(frontend.run(&Request::get_id(20)).ok(), expected);
    for len in [1, 5, 19] {
        assert_eq!(frontend.run(&Request::get_id(len)).ok(), expected[..len], "room for {len} bytes");
    }
    let scattered = Request::get_id(20).writable(Cut::Every(1));
    assert_eq!(frontend.run(&scattered).ok(), expected, "21 descriptors of one byte");
    let shared = Request::get_id(20).writable(Cut::One);
    assert_eq!(frontend.run(&shared).ok(), expected, "status behind the serial in one descriptor");
    let bare = frontend.run(&Request::get_id(0));
    assert_eq!((bare.status, bare.used_len), (S_OK, 1), "no room: nothing to say, nothing wrong");
}

#[test]
fn serial_number_of_full_length_and_with_too_much_room() {
    let serial = "abcdefghijklmnopqrst";
    let backend = Serve::encrypted().args(&["--serial", serial]).start();
    let frontend = Frontend::connect(backend.socket());
    assert_eq!(frontend.run(&Request::get_id(20)).ok(), serial.as_bytes());
    let roomy = frontend.run(&Request::get_id(64));
    assert_eq!(roomy.status, S_OK);
    assert_eq!(roomy.data[..20], *serial.as_bytes());
    let filler = if roomy.used_len == 65 { 0 } else { S_UNTOUCHED };
    assert!(roomy.used_len == 65 || roomy.used_len == 21, "used length {}", roomy.used_len);
    assert!(roomy.data[20..].iter().all(|byte| *byte == filler), "what is not counted is not touched");
}

#[test]
fn unknown_request_types_are_unsupported() {
    let backend = Serve::encrypted().start();
    let frontend = Frontend::connect(backend.socket());
    for kind in [
        2,
        3,
        5,
        6,
        7,
        9,
        T_GET_LIFETIME,
        12,
        T_SECURE_ERASE,
        15,
        16,
        17,
        25,
        0x7fff_ffff,
        0x8000_0000,
        u32::MAX,
    ] {
        frontend.run(&Request::new(kind, 0, Vec::new(), 0)).failed(S_UNSUPP);
        frontend.run(&Request::new(kind, 0, vec![0; 16], 512)).failed(S_UNSUPP);
    }
    frontend.assert_serves(0, 0, 1);
}
