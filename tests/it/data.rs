//! Bytes in, bytes out, and what lies on the volume in between.

use std::os::unix::fs::MetadataExt;

use crate::harness::memory::{MIB, NEAR_BASE};
use crate::harness::request::*;
use crate::harness::*;

/// Puts `data` at `sector` of the model.
fn store(model: &mut [u8], sector: u64, data: &[u8]) {
    model[sector as usize * 512..][..data.len()].copy_from_slice(data);
}

#[test]
fn reads_what_the_volume_held_before() {
    for (key_bytes, sector_bytes) in [(64, 512), (32, 512), (64, 1024), (32, 2048), (64, 4096)] {
        let key: Vec<u8> = (0..key_bytes).map(|i: u8| i.wrapping_mul(73) ^ 0x1f).collect();
        let layout = Layout { key: Some(key), sector_bytes, ..Layout::encrypted(1 << 20) };
        let backend = Serve::volume(layout).start();
        let frontend = Frontend::connect(backend.socket());
        let data = frontend.run(&Request::read(0, 1 << 18)).ok();
        assert!(
            data == backend.volume.original[..1 << 18],
            "{key_bytes}-byte key, {sector_bytes}-byte sectors"
        );
        let end = frontend.run(&Request::read(2048 - 64, 32 << 10)).ok();
        assert!(end == backend.volume.original[(1 << 20) - (32 << 10)..], "the end of the disk");
    }
}

#[test]
fn every_way_to_lay_out_a_plain_volume() {
    for (offset_sectors, skip_sectors, iv_large_sectors) in
        [(0, 8, false), (16, 0, false), (2048, 4096, true), (8, 1 << 33, true)]
    {
        let layout = Layout {
            offset_sectors,
            skip_sectors,
            iv_large_sectors,
            sector_bytes: 4096,
            ..Layout::encrypted(1 << 20)
        };
        let mut backend = Serve::volume(layout).start();
        let frontend = Frontend::connect(backend.socket());
        let mut model = backend.volume.original.clone();
        assert!(
            frontend.run(&Request::read(0, 65536)).ok() == model[..65536],
            "offset {offset_sectors} skip {skip_sectors}"
        );
        let data = pattern(9, 12288);
        frontend.run(&Request::write(40, &data)).ok();
        store(&mut model, 40, &data);
        backend.terminate();
        backend.volume.assert_holds(&model);
    }
}

#[test]
fn an_unencrypted_volume_passes_through() {
    let mut backend = Serve::volume(Layout { key: None, ..Layout::encrypted(1 << 20) }).start();
    let frontend = Frontend::connect(backend.socket());
    let mut model = backend.volume.original.clone();
    let data = pattern(4, 4096);
    frontend.run(&Request::write(3, &data)).ok();
    store(&mut model, 3, &data);
    assert!(frontend.run(&Request::read(0, 8192)).ok() == model[..8192]);
    backend.terminate();
    assert!(backend.volume.raw() == model);
}

#[test]
fn sizes_from_one_sector_to_eight_mebibytes() {
    let mut backend = Serve::encrypted().payload_bytes(24 << 20).start();
    let setup = Setup { queue_size: 256, ..Setup::data(40 * MIB) };
    let frontend = Frontend::with(backend.socket(), setup);
    let mut model = backend.volume.original.clone();
    for (seed, len) in
        [512, 1024, 4096, 8192, 65536, 65536 + 512, 131_072, 1 << 20, (1 << 20) + 1536, 3 << 20, 8 << 20]
            .into_iter()
            .enumerate()
    {
        let (sector, data) = (7 * seed as u64, pattern(100 + seed as u64, len));
        let write = Request::write(sector, &data).readable(Cut::At(cuts(16, len))).indirect();
        frontend.run(&write).ok();
        store(&mut model, sector, &data);
        let read = Request::read(sector, len).writable(Cut::At(cuts(0, len))).indirect();
        assert!(frontend.run(&read).ok() == data, "{len} bytes read back");
    }
    drop(frontend);
    backend.terminate();
    backend.volume.assert_holds(&model);
}

/// A header, if there is one, then pieces of 64 KiB; whatever remains goes last.
fn cuts(header: usize, len: usize) -> Vec<usize> {
    let pieces = vec![65536; len / 65536];
    if header == 0 { pieces } else { [vec![header], pieces].concat() }
}

#[test]
fn every_framing_means_the_same() {
    let mut backend = Serve::encrypted().start();
    let frontend = Frontend::with(backend.socket(), Setup { queue_size: 1024, ..Setup::data(2 * MIB) });
    let mut model = backend.volume.original.clone();
    for (i, (len, readable, writable)) in framings().into_iter().enumerate() {
        for indirect in [false, true] {
            let (sector, data) = (64 * i as u64 + 1, pattern(2 * i as u64 + u64::from(indirect), len));
            let frame = |request: Request| if indirect { request.indirect() } else { request };
            frontend.run(&frame(Request::write(sector, &data).readable(readable.clone()))).ok();
            store(&mut model, sector, &data);
            let back = frontend.run(&frame(Request::read(sector, len).writable(writable.clone()))).ok();
            assert!(back == data, "{len} bytes, write {readable:?}, read {writable:?}, indirect: {indirect}");
        }
    }
    drop(frontend);
    backend.terminate();
    backend.volume.assert_holds(&model);
}

fn framings() -> Vec<(usize, Cut, Cut)> {
    vec![
        // The header alone, the header with the data; the status alone, the status behind the data.
        (4096, Cut::Usual, Cut::Usual),
        (4096, Cut::One, Cut::One),
        // The header over three descriptors.
        (4096, Cut::At(vec![4, 4, 8]), Cut::Usual),
        (4096, Cut::At(vec![1, 14, 1]), Cut::At(vec![1])),
        // The header's end and the data's beginning in one descriptor.
        (4096, Cut::At(vec![10, 100]), Cut::At(vec![100, 3000])),
        // Cuts in the middle of sectors, and of cipher blocks.
        (4096, Cut::At(vec![16, 500, 1, 700, 2000]), Cut::At(vec![500, 1, 700, 2000])),
        (8192, Cut::At(vec![16, 8]), Cut::At(vec![8, 16, 24, 4000])),
        (8192, Cut::Every(513), Cut::Every(513)),
        (16384, Cut::Every(1000), Cut::Every(1000)),
        (16384, Cut::Every(17), Cut::Every(19)),
        // One byte each.
        (512, Cut::Every(1), Cut::Every(1)),
        (512, Cut::At(vec![16, 511]), Cut::At(vec![511])),
    ]
}

#[test]
fn buffers_across_memory_regions() {
    let mut backend = Serve::encrypted().start();
    let frontend = Frontend::with(backend.socket(), Setup::default());
    let mut model = backend.volume.original.clone();
    for (i, before) in [1u64, 16, 100, 511, 512, 700, 4095].into_iter().enumerate() {
        let (sector, data) = (10 * i as u64, pattern(i as u64, 4096));
        frontend.run(&Request::write(sector, &data).data_at(NEAR_BASE - before)).ok();
        store(&mut model, sector, &data);
        let back = frontend.run(&Request::read(sector, 4096).data_at(NEAR_BASE - before)).ok();
        assert!(back == data, "{before} bytes in the first region");
    }
    drop(frontend);
    backend.terminate();
    backend.volume.assert_holds(&model);
}

#[test]
fn write_zeroes_reads_back_zero_and_stores_ciphertext() {
    for sector_bytes in [512, 4096] {
        let mut backend = Serve::encrypted().sector_bytes(sector_bytes).payload_bytes(8 << 20).start();
        let frontend = Frontend::with(backend.socket(), Setup::data(4 * MIB));
        let mut model = backend.volume.original.clone();
        for (sector, count, flags) in [(8u64, 8u32, 0), (64, 8, 1), (128, 4096, 0), (8192, 1024, 1)] {
            let request = Request::new(T_WRITE_ZEROES, 0, segment(sector, count, flags), 0);
            frontend.run(&request).ok();
            store(&mut model, sector, &vec![0; count as usize * 512]);
            let back = frontend.run(&Request::read(sector, 4096)).ok();
            assert_eq!(back, vec![0; 4096], "sector {sector}, flags {flags}");
        }
        assert!(
            frontend.run(&Request::read(0, 1 << 20)).ok() == model[..1 << 20],
            "neighbours are as they were"
        );
        drop(frontend);
        backend.terminate();
        backend.volume.assert_holds(&model);
        let stored = &backend.volume.ciphertext()[8 * 512..16 * 512];
        assert!(stored.chunks(16).all(|block| block.iter().any(|byte| *byte != 0)), "zeroes are encrypted");
    }
}

#[test]
fn write_zeroes_takes_as_many_segments_as_it_says() {
    let mut backend = Serve::encrypted().start();
    let mut frontend = Frontend::connect(backend.socket());
    let config = frontend.config(48, 8).expect("GET_CONFIG");
    let segments = u32::from_le_bytes(config[4..8].try_into().expect("4 bytes")).min(64);
    let mut model = backend.volume.original.clone();
    let mut payload = Vec::new();
    for i in 0..u64::from(segments) {
        payload.extend(segment(i * 24, 8, 0));
        store(&mut model, i * 24, &[0; 4096]);
    }
    frontend.run(&Request::new(T_WRITE_ZEROES, 0, payload, 0)).ok();
    drop(frontend);
    backend.terminate();
    backend.volume.assert_holds(&model);
}

#[test]
fn discard_gives_space_back_and_leaves_the_rest() {
    let mut backend = Serve::encrypted().args(&["--discard", "pass"]).start();
    let frontend = Frontend::connect(backend.socket());
    let blocks = || std::fs::metadata(&backend.volume.image).expect("stat the image").blocks();
    let before = blocks();
    frontend.run(&Request::discard(2048, 1024)).ok();
    frontend.run(&Request::flush()).ok();
    assert!(blocks() <= before - 1000, "{} of {before} blocks are left after discarding 1024", blocks());
    assert_eq!(frontend.run(&Request::read(2048, 4096)).status, S_OK, "discarded sectors stay readable");
    let around = frontend.run(&Request::read(2048 - 8, 4096)).ok();
    assert!(around == backend.volume.original[(2048 - 8) * 512..2048 * 512]);
    frontend.assert_serves(0, 2048, 5);
    drop(frontend);
    backend.terminate();
    let now = backend.volume.plaintext();
    assert!(now[..2048 * 512] == backend.volume.original[..2048 * 512], "before the discarded range");
    assert!(now[3072 * 512..] == backend.volume.original[3072 * 512..], "behind the discarded range");
}

#[test]
fn requests_off_the_grid_fail() {
    let mut backend = Serve::encrypted().sector_bytes(4096).args(&["--discard", "pass"]).start();
    let frontend = Frontend::connect(backend.socket());
    for (sector, len) in [(1, 4096), (7, 4096), (0, 512), (8, 4608), (0, 1), (8, 4095), (4, 2048)] {
        frontend.run(&Request::read(sector, len)).failed(S_IOERR);
        frontend.run(&Request::write(sector, &pattern(1, len))).failed(S_IOERR);
    }
    for (sector, count) in [(1, 8), (0, 7), (4, 4), (8, 12)] {
        frontend.run(&Request::write_zeroes(sector, count)).failed(S_IOERR);
        frontend.run(&Request::discard(sector, count)).failed(S_IOERR);
    }
    assert!(frontend.run(&Request::read(8, 4096)).ok() == backend.volume.original[4096..8192]);
    backend.terminate();
    backend.volume.assert_holds(&backend.volume.original);
}

#[test]
fn requests_out_of_range_fail_as_a_whole() {
    let mut backend = Serve::encrypted().args(&["--discard", "pass"]).start();
    let frontend = Frontend::connect(backend.socket());
    let capacity = (4 << 20) / 512u64;
    for sector in [
        capacity,
        capacity - 7,
        capacity + 1,
        1 << 55,
        u64::MAX / 512,
        u64::MAX / 512 + 1,
        u64::MAX - 7,
        u64::MAX,
    ] {
        let read = frontend.run(&Request::read(sector, 4096));
        assert_eq!(read.data, vec![S_UNTOUCHED; 4096], "a failed read at {sector} leaves the buffer alone");
        read.failed(S_IOERR);
        frontend.run(&Request::write(sector, &pattern(1, 4096))).failed(S_IOERR);
        frontend.run(&Request::write_zeroes(sector, 8)).failed(S_IOERR);
        frontend.run(&Request::discard(sector, 8)).failed(S_IOERR);
    }
    frontend.run(&Request::write_zeroes(0, u32::MAX)).failed(S_IOERR);
    frontend.run(&Request::discard(8, u32::MAX)).failed(S_IOERR);
    backend.terminate();
    backend.volume.assert_holds(&backend.volume.original);
}

#[test]
fn failures_hand_out_nothing() {
    let backend = Serve::encrypted().start();
    let frontend = Frontend::connect(backend.socket());
    let secret = pattern(77, 4096);
    frontend.run(&Request::write(0, &secret)).ok();
    frontend.run(&Request::read(0, 4096)).ok();
    // The same buffers have just held data: a failed read must not show it again.
    let failed = frontend.run(&Request::read(1 << 40, 4096));
    assert_eq!(failed.data, vec![S_UNTOUCHED; 4096]);
    failed.failed(S_IOERR);
}

#[test]
fn a_truncated_volume_gives_errors_not_data() {
    let backend = Serve::encrypted().start();
    let frontend = Frontend::connect(backend.socket());
    let file = std::fs::OpenOptions::new().write(true).open(&backend.volume.image).expect("open the image");
    file.set_len(1 << 20).expect("cut the image");
    for sector in [2048, 2048 - 4, 4000] {
        let read = frontend.run(&Request::read(sector, 4096));
        assert_eq!((read.status, read.used_len), (S_IOERR, 1), "sector {sector}");
        assert_eq!(read.data, vec![S_UNTOUCHED; 4096], "sector {sector}");
    }
    assert!(frontend.run(&Request::read(0, 4096)).ok() == backend.volume.original[..4096]);
}
