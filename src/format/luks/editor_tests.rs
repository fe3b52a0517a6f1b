//! Headers made, changed, and cut off in the middle of it.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use tempfile::NamedTempFile;
use uuid::Uuid;

use super::super::backup;
use super::super::on_disk::Version;
use super::super::transfer::Write;
use super::super::{Extent, Luks2Identity, NewHeader, identify};
use super::*;
use crate::cipher::{EqualHalves, IvMode};
use crate::format::plain::KeySize;
use crate::geometry::SectorSize;

const PAYLOAD_BYTES: u64 = 1 << 20;
const OLD: &[u8] = b"the key that was there";
const NEW: &[u8] = b"the key that comes";
const THIRD: &[u8] = b"another key";

fn secret(bytes: &[u8]) -> Secret {
    Secret::read_from(bytes).unwrap()
}

fn new_header(version: Version) -> NewHeader {
    NewHeader {
        version,
        iv_mode: IvMode::Plain64,
        key_size: KeySize::Bits512,
        sector_size: SectorSize::BYTES_512,
        label: None,
        subsystem: None,
        uuid: None,
        kdf: SlotKdf::RANDOM_KEY,
        extent: Extent::Payload(PAYLOAD_BYTES),
    }
}

/// A volume whose only key is [`OLD`].
fn volume(version: Version) -> NamedTempFile {
    let made = new_header(version).make(&secret(OLD)).unwrap();
    let volume = NamedTempFile::new().unwrap();
    volume.as_file().set_len(made.payload_offset_bytes + PAYLOAD_BYTES).unwrap();
    backup::put(volume.as_file(), &made.header, made.payload_offset_bytes).unwrap();
    volume
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

fn placement(device: &File) -> Placement {
    Placement { volume_bytes: device.metadata().unwrap().len(), detached: false }
}

fn editor(volume: &NamedTempFile) -> HeaderEditor {
    let device = open(volume.path());
    let placement = placement(&device);
    HeaderEditor::open(device, &Policy::default(), placement).unwrap()
}

/// Whether `key` opens the volume as `serve` would open it.
fn is_opened_by(device: &File, key: &[u8]) -> bool {
    let Ok(header) = read(device) else { return false };
    header.unlock(&Policy::default(), placement(device), &secret(key), EqualHalves::Refuse).is_ok()
}

#[test]
fn keys_are_added_changed_and_removed() {
    for version in [Version::Luks1, Version::Luks2] {
        let volume = volume(version);
        let mut editor = editor(&volume);
        assert_eq!(editor.slots_opened_by(&secret(OLD)).unwrap(), [0]);
        assert_eq!(editor.slots_opened_by(&secret(NEW)).unwrap(), [0; 0]);
        let add = |editor: &mut HeaderEditor, present, new, wanted| {
            editor.add(&secret(present), &secret(new), wanted, SlotKdf::RANDOM_KEY)
        };
        assert_eq!(add(&mut editor, OLD, NEW, None).unwrap(), 1);
        assert_eq!(add(&mut editor, NEW, THIRD, Some(5)).unwrap(), 5);
        for key in [OLD, NEW, THIRD] {
            assert!(is_opened_by(volume.as_file(), key));
        }
        let error = add(&mut editor, b"no key", THIRD, None).unwrap_err();
        assert!(matches!(error, EditError::Luks(LuksError::WrongKey(_))), "{error}");
        assert!(matches!(add(&mut editor, OLD, THIRD, Some(5)), Err(EditError::SlotInUse(5))));
        assert!(matches!(editor.remove(&[3]), Err(EditError::NoSuchSlot(3))));
        assert!(matches!(editor.remove(&[5, 0, 1]), Err(EditError::LastSlot(5))));
        editor.remove(&[0, 5]).unwrap();
        assert!(matches!(editor.remove(&[1]), Err(EditError::LastSlot(1))));
        assert!(is_opened_by(volume.as_file(), NEW));
        assert!(!is_opened_by(volume.as_file(), OLD) && !is_opened_by(volume.as_file(), THIRD));
        assert_eq!(editor.description().slots.len(), 1);
    }
}

#[test]
fn all_slots_can_be_used_and_no_more() {
    let volume = volume(Version::Luks1);
    let mut editor = editor(&volume);
    for slot in 1..8 {
        let key = format!("key {slot}");
        assert_eq!(
            editor.add(&secret(OLD), &secret(key.as_bytes()), None, SlotKdf::RANDOM_KEY).unwrap(),
            slot
        );
    }
    let error = editor.add(&secret(OLD), &secret(NEW), None, SlotKdf::RANDOM_KEY).unwrap_err();
    assert!(matches!(error, EditError::NoFreeSlot), "{error}");
    let error = editor.add(&secret(OLD), &secret(NEW), Some(8), SlotKdf::RANDOM_KEY).unwrap_err();
    assert!(matches!(error, EditError::Library { .. }), "{error}");
}

/// Pieces of the key material of `slot` that are the same in both volumes.
fn material_left(slot: &Slot, before: &[u8], after: &[u8]) -> usize {
    let start = usize::try_from(slot.area_offset_bytes).unwrap();
    let material = start..start + usize::try_from(slot.key_bits / 8 * 4000).unwrap();
    let pieces = before[material.clone()].chunks(512).zip(after[material].chunks(512));
    pieces.filter(|(before, after)| before == after).count()
}

#[test]
fn a_removed_slot_leaves_no_key_material() {
    for version in [Version::Luks1, Version::Luks2] {
        let volume = volume(version);
        let mut editor = editor(&volume);
        editor.add(&secret(OLD), &secret(NEW), None, SlotKdf::RANDOM_KEY).unwrap();
        let slot = editor.description().slots[0].clone();
        let before = std::fs::read(volume.path()).unwrap();
        editor.remove(&[0]).unwrap();
        assert_eq!(material_left(&slot, &before, &std::fs::read(volume.path()).unwrap()), 0, "{version}");
    }
}

/// What a crash may leave of `transfer` on a volume with `before`: all of the stages up to one, and of that one the
/// blocks before a cut, those behind it, or every other block. The storage promises no order within a stage.
fn crashes(before: &[u8], transfer: &Transfer, image: &HeaderImage, each: &mut impl FnMut(&str, &[u8])) {
    let mut durable = before.to_vec();
    let put = |onto: &mut [u8], at: u64| {
        let bytes = image.read(at..at + 4096).unwrap();
        onto[usize::try_from(at).unwrap()..][..4096].copy_from_slice(&bytes);
    };
    for (index, stage) in transfer.stages.iter().enumerate() {
        let blocks: Vec<u64> = stage
            .iter()
            .flat_map(|write| match write {
                Write::Image(range) => range.clone().step_by(4096),
                Write::Zero(_) => panic!("an update zeroes nothing"),
            })
            .collect();
        let mut without = |what: &str, is_lost: &dyn Fn(usize) -> bool| {
            let mut state = durable.clone();
            let kept = blocks.iter().enumerate().filter(|(at, _)| !is_lost(*at));
            kept.for_each(|(_, block)| put(&mut state, *block));
            each(&format!("stage {index} of {} blocks without {what}", blocks.len()), &state);
        };
        // Of a slot's area, no part opens anything: a few cuts stand for all.
        for cut in (0..blocks.len()).step_by((blocks.len() / 4).max(1)) {
            without(&format!("block {cut} and the rest"), &|at| at >= cut);
            without(&format!("the first {}", cut + 1), &|at| at <= cut);
        }
        without("even ones", &|at| at % 2 == 0);
        without("odd ones", &|at| at % 2 == 1);
        blocks.iter().for_each(|block| put(&mut durable, *block));
    }
    each("the end", &durable);
}

#[test]
fn whenever_a_change_is_cut_off_a_key_opens_the_volume() {
    for version in [Version::Luks1, Version::Luks2] {
        let volume = volume(version);
        let mut editor = editor(&volume);
        let scratch = tempfile::tempfile().unwrap();
        let contents = || std::fs::read(volume.path()).unwrap();
        let opened = |key: &[u8]| is_opened_by(&scratch, key);
        let lists = |slot: u32| read(&scratch).unwrap().description().slots.iter().any(|s| s.id == slot);
        let mut states = 0;

        let (image, slot) = editor.with_slot(&secret(OLD), &secret(NEW), None, SlotKdf::RANDOM_KEY).unwrap();
        let transfer = Transfer::updating(&editor.image().unwrap(), &image).unwrap();
        crashes(&contents(), &transfer, &image, &mut |when, state| {
            states += 1;
            scratch.write_all_at(state, 0).unwrap();
            assert!(opened(OLD), "{version}: while a key is added, {when}");
            assert!(!lists(slot) || opened(NEW), "{version}: a slot is named before it is whole, {when}");
        });
        editor.commit(&image).unwrap();
        assert!(is_opened_by(volume.as_file(), NEW));

        let before = contents();
        let removed = editor.description().slots[0].clone();
        let image = editor.without_slots(&[removed.id]).unwrap();
        let transfer = Transfer::updating(&editor.image().unwrap(), &image).unwrap();
        crashes(&before, &transfer, &image, &mut |when, state| {
            states += 1;
            scratch.write_all_at(state, 0).unwrap();
            assert!(opened(NEW), "{version}: while a key is removed, {when}");
            let left = material_left(&removed, &before, state);
            assert!(lists(removed.id) || left == 0, "{version}: {left} pieces of a forgotten key, {when}");
        });
        editor.commit(&image).unwrap();
        assert_eq!(editor.slots_opened_by(&secret(NEW)).unwrap(), [slot]);
        assert!(states > 20, "{states} states were tried");
    }
}

#[test]
fn a_removal_that_was_cut_off_is_neither_a_key_nor_forgotten() {
    for version in [Version::Luks1, Version::Luks2] {
        let volume = volume(version);
        let mut editor = editor(&volume);
        editor.add(&secret(OLD), &secret(NEW), None, SlotKdf::RANDOM_KEY).unwrap();
        let image = editor.without_slots(&[0]).unwrap();
        let mut transfer = Transfer::updating(&editor.image().unwrap(), &image).unwrap();
        transfer.stages.truncate(1);
        transfer.apply(&image, volume.as_file()).unwrap();
        drop(editor);

        let mut editor = self::editor(&volume);
        assert_eq!(editor.description().slots.len(), 2);
        assert!(matches!(editor.remove(&[1]), Err(EditError::LastSlot(1))), "slot 0 opens nothing any more");
        let replacement = editor.replace_key(&secret(OLD), &secret(NEW), SlotKdf::RANDOM_KEY).unwrap();
        assert_eq!(replacement, Replacement { slot: 1, added: false, removed: vec![0] });
        assert_eq!(editor.description().slots.len(), 1);
        assert!(is_opened_by(volume.as_file(), NEW));
    }
}

#[test]
fn whenever_a_replacement_is_cut_off_nothing_half_written_is_recognised() {
    for version in [Version::Luks1, Version::Luks2] {
        for other in [Version::Luks1, Version::Luks2] {
            let volume = volume(other);
            let made = new_header(version).make(&secret(NEW)).unwrap();
            let device = volume.as_file();
            device.set_len(20 << 20).unwrap();
            let image = HeaderImage::copy_of(made.header.snapshot()).unwrap();
            let transfer = Transfer::replacing(device, &image, made.payload_offset_bytes).unwrap();
            let last = transfer.stages.len();
            for stage in 0..last {
                let one = Transfer { stages: vec![transfer.stages[stage].clone()] };
                one.apply(&image, device).unwrap();
                let (old, new) = (is_opened_by(device, OLD), is_opened_by(device, NEW));
                assert!(!old, "{version} over {other}: the old header was to be gone first");
                let recognised = read(device).is_ok();
                // LUKS2's second copy alone is a whole header.
                assert_eq!(recognised, new, "{version} over {other}, after stage {stage}");
                let marks = if version == Version::Luks2 { 2 } else { 1 };
                assert_eq!(recognised, stage + marks >= last, "{version} over {other}, after stage {stage}");
            }
        }
    }
}

#[test]
fn a_header_that_another_program_changed_is_left_alone() {
    let volume = volume(Version::Luks2);
    let mut first = editor(&volume);
    let bytes = std::fs::read(volume.path()).unwrap();
    // As a program would that knows nothing of the claim: another valid header.
    let made = new_header(Version::Luks2).make(&secret(OLD)).unwrap();
    backup::put(volume.as_file(), &made.header, 0).unwrap();
    let error = first.add(&secret(OLD), &secret(NEW), None, SlotKdf::RANDOM_KEY).unwrap_err();
    assert!(matches!(error, EditError::ChangedMeanwhile), "{error}");
    assert_ne!(std::fs::read(volume.path()).unwrap(), bytes);
    assert!(is_opened_by(volume.as_file(), OLD) && !is_opened_by(volume.as_file(), NEW));
}

#[test]
fn keys_are_changed_while_the_volume_is_served() {
    for version in [Version::Luks1, Version::Luks2] {
        let volume = volume(version);
        let server = open(volume.path());
        server.lock().unwrap();
        header_lock::mark_served(&server).unwrap();
        let mut editor = editor(&volume);
        let slot = editor.add(&secret(OLD), &secret(NEW), None, SlotKdf::RANDOM_KEY).unwrap();
        editor.remove(&[0]).unwrap();
        assert_eq!(editor.slots_opened_by(&secret(NEW)).unwrap(), [slot]);
        assert!(is_opened_by(volume.as_file(), NEW));
    }
}

#[test]
fn a_backup_fits_its_own_volume_only() {
    for version in [Version::Luks1, Version::Luks2] {
        let volume = volume(version);
        let device = volume.as_file();
        let file = NamedTempFile::new().unwrap();
        let original = read(device).unwrap();
        backup::save(&original, file.as_file()).unwrap();
        let saved = backup::load(file.path()).unwrap();
        assert_eq!(saved.snapshot().digest(), original.snapshot().digest());

        editor(&volume).add(&secret(OLD), &secret(NEW), None, SlotKdf::RANDOM_KEY).unwrap();
        backup::check_fit(saved.description(), read(device).unwrap().description()).unwrap();
        device.write_all_at(&[0; 1 << 16], 0).unwrap();
        backup::restore(device, &saved).unwrap();
        assert!(is_opened_by(device, OLD) && !is_opened_by(device, NEW));

        let other_volume = self::volume(version);
        let other = read(other_volume.as_file()).unwrap();
        let error = backup::check_fit(saved.description(), other.description()).unwrap_err().to_string();
        assert!(error.contains("UUID") && !error.contains("payload"), "{error}");
        let mut moved = original.description().clone();
        moved.segments[0].offset_bytes += 512;
        let error = backup::check_fit(&moved, original.description()).unwrap_err().to_string();
        assert!(error.contains("payload") && !error.contains("UUID"), "{error}");
        file.as_file().set_len(4096).unwrap();
        assert!(matches!(backup::load(file.path()), Err(EditError::NoBackup { .. })));
    }
}

#[test]
fn every_kind_of_header_is_made_and_opens() {
    let sizes = [512, 1024, 2048, 4096].map(|bytes| SectorSize::new(bytes).unwrap());
    for version in [Version::Luks1, Version::Luks2] {
        for key_size in [KeySize::Bits256, KeySize::Bits512] {
            for sector_size in sizes.into_iter().take(if version == Version::Luks1 { 1 } else { 4 }) {
                for (extent, volume_bytes) in [
                    (Extent::Payload(PAYLOAD_BYTES), None),
                    (Extent::Volume(32 << 20), Some(32 << 20)),
                    (Extent::Detached(PAYLOAD_BYTES), Some(PAYLOAD_BYTES)),
                ] {
                    let header = NewHeader { key_size, sector_size, extent, ..new_header(version) };
                    let made = header.make(&secret(OLD)).unwrap();
                    let file = tempfile::tempfile().unwrap();
                    file.set_len(made.header.snapshot().area_bytes()).unwrap();
                    backup::put(&file, &made.header, 0).unwrap();
                    let detached = matches!(extent, Extent::Detached(_));
                    let volume_bytes = volume_bytes.unwrap_or(made.payload_offset_bytes + PAYLOAD_BYTES);
                    let placement = Placement { volume_bytes, detached };
                    let policy = Policy::default();
                    let header = read(&file).unwrap();
                    let (key, approved) =
                        header.unlock(&policy, placement, &secret(OLD), EqualHalves::Refuse).unwrap();
                    assert_eq!(key.key_bits(), key_size.bytes() * 8);
                    assert_eq!(approved.geometry.sector_size, sector_size);
                    let offset = if detached {
                        0
                    } else if version == Version::Luks1 {
                        2 << 20
                    } else {
                        16 << 20
                    };
                    assert_eq!(made.payload_offset_bytes, offset);
                    assert_eq!(approved.geometry.payload_offset_bytes, offset);
                }
            }
        }
    }
}

#[test]
fn a_volume_too_small_for_its_header_is_refused() {
    for version in [Version::Luks1, Version::Luks2] {
        let header = NewHeader { extent: Extent::Volume(64 << 10), ..new_header(version) };
        let error = header.make(&secret(OLD)).unwrap_err();
        assert!(matches!(error, EditError::Library { .. } | EditError::TooSmall { .. }), "{error}");
    }
}

#[test]
fn a_slot_that_would_not_be_served_is_not_written() {
    let volume = volume(Version::Luks2);
    let before = std::fs::read(volume.path()).unwrap();
    let mut editor = editor(&volume);
    let dear = SlotKdf::Pbkdf2 { iterations: 2_000_000 };
    editor.policy.kdf.iterations = 1_000_000;
    let error = editor.add(&secret(OLD), &secret(NEW), None, dear).unwrap_err();
    assert!(matches!(error, EditError::Luks(LuksError::Refused(_))), "{error}");
    assert!(std::fs::read(volume.path()).unwrap() == before);
}

#[test]
fn argon2_slots_have_the_costs_that_were_asked_for() {
    let kdf = SlotKdf::Argon2id { passes: 4, memory_kib: 64, threads: 1 };
    let made = NewHeader { kdf, ..new_header(Version::Luks2) }.make(&secret(OLD)).unwrap();
    let volume = NamedTempFile::new().unwrap();
    volume.as_file().set_len(made.payload_offset_bytes + PAYLOAD_BYTES).unwrap();
    backup::put(volume.as_file(), &made.header, 0).unwrap();
    let mut editor = editor(&volume);
    editor.add(&secret(OLD), &secret(NEW), None, SlotKdf::RANDOM_KEY).unwrap();
    let kdfs: Vec<Kdf> = editor.description().slots.iter().map(|slot| slot.kdf.clone().unwrap()).collect();
    let costs = super::super::Argon2 { passes: 4, memory_kib: 64, threads: 1 };
    assert_eq!(kdfs, [Kdf::Argon2id(costs), Kdf::Pbkdf2 { hash: "sha256".to_owned(), iterations: 1000 }]);
}

#[test]
fn a_volume_is_recognised_by_its_first_block() {
    let (uuid, subsystem) = (Uuid::new_v4(), "a-subsystem".to_owned());
    let wanted = NewHeader {
        uuid: Some(uuid),
        subsystem: Some(subsystem.clone()),
        label: Some("a label".to_owned()),
        ..new_header(Version::Luks2)
    };
    let made = wanted.make(&secret(OLD)).unwrap();
    let area = made.header.snapshot();
    let identified = identify(area.memory(), area.area_bytes()).unwrap();
    assert_eq!(identified, Some(Luks2Identity { uuid, subsystem }));
    assert_eq!(made.header.description().subsystem.as_deref(), Some("a-subsystem"));

    let of_luks1 = volume(Version::Luks1);
    assert_eq!(identify(of_luks1.as_file(), 1 << 20).unwrap(), None);
    assert_eq!(identify(tempfile::tempfile().as_ref().unwrap(), 0).unwrap(), None);
}
