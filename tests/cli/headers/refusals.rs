//! Headers that are valid and not served: what whoever writes to the storage might put there.

use base64ct::{Base64, Encoding};
use sealblk::format::luks::{Expectations, KdfLimits, Policy, Version};
use serde_json::{Value, json};

use super::image::{COPY_BYTES, luks1, luks2, luks2_with, metadata, put_metadata, seal, unlock, unlock_with};

#[track_caller]
fn refused(image: &[u8], part: &str) {
    match unlock(image) {
        Ok(found) => panic!("served as {found:?}, not refused because of {part:?}"),
        Err(error) => {
            let mut message = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(error) = cause {
                message += &format!(": {error}");
                cause = error.source();
            }
            assert!(message.contains(part), "{part:?} is not in: {message}");
        }
    }
}

#[track_caller]
fn refused_with(change: impl FnOnce(&mut Value), part: &str) {
    refused(&luks2_with(change), part);
}

#[test]
fn ciphers_that_are_not_listed() {
    for (cipher, part) in [
        ("cipher_null-ecb", "`cipher_null-ecb`, which does not encrypt at all"),
        ("null", "`null`, which does not encrypt at all"),
        ("aes-cbc-essiv:sha256", "supported are aes-xts-plain64 and aes-xts-plain,"),
        ("serpent-xts-plain64", "supported are aes-xts-plain64"),
        ("aes-xts-plain64be", "supported are aes-xts-plain64"),
        ("capi:xts(aes)-plain64", "supported are aes-xts-plain64"),
        ("xchacha12,aes-adiantum-plain64", "supported are aes-xts-plain64"),
    ] {
        refused_with(|json| json["segments"]["0"]["encryption"] = cipher.into(), part);
    }
    let image = luks2_with(|json| json["segments"]["0"]["encryption"] = "aes-xts-plain".into());
    unlock(&image).unwrap();
    let mut image = luks1();
    image[8..40].fill(0);
    image[8..19].copy_from_slice(b"cipher_null");
    refused(&image, "does not encrypt at all");
    let mut image = luks1();
    image[40..72].fill(0);
    image[40..56].copy_from_slice(b"cbc-essiv:sha256");
    refused(&image, "its cipher is `aes-cbc-essiv:sha256`");
}

#[test]
fn key_slots_that_hide_nothing() {
    for (cipher, part) in [
        ("cipher_null-ecb", "key slot 0 hides its key with `cipher_null-ecb`, which does not encrypt at all"),
        ("null", "does not encrypt at all"),
        (
            "twofish-xts-plain64",
            "key slot 0 hides its key with `twofish-xts-plain64`, which is not supported",
        ),
    ] {
        refused_with(|json| json["keyslots"]["0"]["area"]["encryption"] = cipher.into(), part);
    }
    // A slot that would not even be tried.
    let with_second = |change: fn(&mut Value)| {
        luks2_with(|json| {
            let mut slot = json["keyslots"]["0"].clone();
            slot["area"]["offset"] = (2 * COPY_BYTES + 262_144).to_string().into();
            slot["priority"] = 0.into();
            change(&mut slot);
            json["keyslots"]["1"] = slot;
            json["digests"]["0"]["keyslots"] = json!(["0", "1"]);
        })
    };
    unlock(&with_second(|_| {})).unwrap();
    refused(&with_second(|slot| slot["area"]["encryption"] = "cipher_null-ecb".into()), "key slot 1 hides");
}

#[test]
fn authenticated_several_and_foreign_segments() {
    let integrity =
        json!({"type": "hmac(sha256)", "journal_encryption": "none", "journal_integrity": "none"});
    refused_with(|json| json["segments"]["0"]["integrity"] = integrity, "authenticated (hmac(sha256))");
    refused_with(
        |json| {
            json["segments"]["0"]["size"] = "4096".into();
            let mut second = json["segments"]["0"].clone();
            second["offset"] = ((2 << 20) + 4096).to_string().into();
            second["size"] = "dynamic".into();
            json["segments"]["1"] = second;
            json["digests"]["0"]["segments"] = json!(["0", "1"]);
        },
        "it has 2 segments",
    );
    refused_with(
        |json| {
            let offset = json["segments"]["0"]["offset"].clone();
            json["segments"]["0"] = json!({"type": "linear", "offset": offset, "size": "dynamic"});
            json["digests"]["0"]["segments"] = json!([]);
        },
        "type `linear`, not `crypt`",
    );
}

#[test]
fn volumes_under_change_and_unknown_requirements() {
    refused_with(
        |json| json["config"]["requirements"] = json!({"mandatory": ["offline-reencrypt"]}),
        "re-encrypted (requirement offline-reencrypt)",
    );
    // The library misses the slot that goes with it.
    refused_with(|json| json["config"]["requirements"] = json!({"mandatory": ["online-reencrypt-v2"]}), "");
    refused_with(
        |json| json["config"]["requirements"] = json!({"mandatory": ["moon-phase"]}),
        "requires `moon-phase`",
    );
    refused_with(
        |json| json["segments"]["0"]["flags"] = json!(["in-reencryption"]),
        "re-encrypted (segment flag in-reencryption)",
    );
}

#[test]
fn costs_beyond_the_limits() {
    let kdf = |field: &'static str, value: u32| {
        luks2_with(move |json| json["keyslots"]["0"]["kdf"][field] = value.into())
    };
    refused(&kdf("memory", 1_048_577), "1048577 KiB of memory: 1024 MiB are allowed (--kdf-memory-max)");
    refused(&kdf("memory", 4 << 20), "--kdf-memory-max");
    refused(&kdf("memory", i32::MAX as u32), "--kdf-memory-max");
    refused(&kdf("time", i32::MAX as u32), "through 131072 GiB of memory for key slot(s) 0");
    refused(&kdf("cpus", 5), "5 threads: 4 are allowed (--kdf-threads-max)");
    let pbkdf2 = |iterations: u32| {
        luks2_with(move |json| {
            let salt = json["keyslots"]["0"]["kdf"]["salt"].clone();
            json["keyslots"]["0"]["kdf"] =
                json!({"type": "pbkdf2", "hash": "sha256", "iterations": iterations, "salt": salt});
        })
    };
    refused(&pbkdf2(i32::MAX as u32), "PBKDF2 would need 2147");
    refused_with(|json| json["digests"]["0"]["iterations"] = i32::MAX.into(), "--kdf-iterations-max");
    for at in [164, 208 + 4] {
        let mut image = luks1();
        image[at..at + 4].fill(0xff);
        refused(&image, "--kdf-iterations-max");
    }
}

#[test]
fn costs_beyond_limits_of_ones_own() {
    let with = |kdf| unlock_with(Policy { kdf, ..Policy::default() }, &luks2());
    with(KdfLimits::default()).unwrap();
    for (kdf, part) in [
        (KdfLimits { memory_mib: 0, ..KdfLimits::default() }, "64 KiB of memory: 0 MiB"),
        (KdfLimits { work_gib: 0, ..KdfLimits::default() }, "through 1 GiB"),
        (KdfLimits { threads: 0, ..KdfLimits::default() }, "1 threads: 0"),
        (KdfLimits { iterations: 1, ..KdfLimits::default() }, "iterations for key slot(s) 0: 1 are allowed"),
    ] {
        let message = with(kdf).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
}

/// Work is summed: a wrong passphrase is tried on every slot.
#[test]
fn costs_of_many_slots_together() {
    let image = luks2_with(|json| {
        let slot = json["keyslots"]["0"].clone();
        let mut names = vec!["0".to_owned()];
        for index in 1..4 {
            let mut slot = slot.clone();
            slot["area"]["offset"] = (2 * COPY_BYTES + index * 262_144).to_string().into();
            slot["kdf"]["memory"] = (1 << 20).into();
            slot["kdf"]["time"] = 50.into();
            json["keyslots"][index.to_string()] = slot;
            names.push(index.to_string());
        }
        json["digests"]["0"]["keyslots"] = json!(names);
    });
    refused(&image, "through 151 GiB");
    refused(&image, "key slot(s) 0, 1, 2, 3");
    unlock_with(Policy { slot: Some(0), ..Policy::default() }, &image).unwrap();
    let other = unlock_with(Policy { slot: Some(7), ..Policy::default() }, &image).unwrap_err();
    assert!(other.to_string().contains("no key slot 7"), "{other}");
}

#[test]
fn payloads_that_are_not_behind_the_header_and_on_the_volume() {
    let segment = |field: &'static str, value: &'static str| {
        luks2_with(move |json| json["segments"]["0"][field] = value.into())
    };
    refused(&segment("offset", "0"), "inside the header");
    refused(&segment("offset", "0"), "--header");
    refused(&segment("offset", "4096"), "not valid");
    refused(&segment("offset", "1077248"), "not valid");
    refused(&segment("offset", "16777216"), "payload ends at byte 16777216, but the volume at 16777216");
    refused(&segment("offset", "18446744073709551104"), "payload");
    refused(&segment("size", "16777216"), "payload ends at byte 18874368, but the volume at 16777216");
    refused(&segment("size", "18446744073709547520"), "payload ends");
    refused(&segment("iv_tweak", "1"), "IVs begin at 1, inside a sector of 4096 bytes");
    let (geometry, iv) = unlock(&segment("iv_tweak", "16")).unwrap();
    assert_eq!((geometry.payload_offset_bytes, iv.offset_sectors), (2 << 20, 16));
    let mut image = luks1();
    for (sectors, part) in [(0_u32, "--header"), (8, "not valid"), (3000, "not valid")] {
        image[104..108].copy_from_slice(&sectors.to_be_bytes());
        refused(&image, part);
    }
    image[104..108].copy_from_slice(&u32::MAX.to_be_bytes());
    refused(&image, "payload");
    // QEMU's: not a multiple of a MiB.
    image[104..108].copy_from_slice(&4040_u32.to_be_bytes());
    assert_eq!(unlock(&image).unwrap().0.payload_offset_bytes, 4040 * 512);
}

#[test]
fn numbers_that_no_slot_can_have() {
    let slot = |change: fn(&mut Value)| luks2_with(|json| change(&mut json["keyslots"]["0"]));
    let images = [
        slot(|slot| slot["key_size"] = 1_000_000.into()),
        slot(|slot| slot["key_size"] = 16.into()),
        slot(|slot| slot["area"]["key_size"] = 1_000_000.into()),
        slot(|slot| slot["af"]["stripes"] = 4001.into()),
        slot(|slot| slot["af"]["stripes"] = i32::MAX.into()),
        slot(|slot| slot["area"]["size"] = "4096".into()),
        slot(|slot| slot["area"]["offset"] = "0".into()),
        slot(|slot| slot["area"]["offset"] = "18446744073709547520".into()),
        slot(|slot| slot["kdf"]["type"] = "scrypt".into()),
        slot(|slot| slot["type"] = "luks3".into()),
        luks2_with(|json| json["keyslots"] = json!({})),
        luks2_with(|json| json["digests"]["0"]["keyslots"] = json!([])),
        luks2_with(|json| json["digests"] = json!({})),
        luks2_with(|json| json["keyslots"]["0"]["priority"] = 0.into()),
        luks2_with(|json| json["segments"] = json!({})),
        luks2_with(|json| json["segments"]["0"]["sector_size"] = 8192.into()),
        luks2_with(|json| json["segments"]["0"]["sector_size"] = 0.into()),
    ];
    for (index, image) in images.iter().enumerate() {
        assert!(unlock(image).is_err(), "number {index} is served");
    }
}

/// libcryptsetup 2.6.1 takes any key for the right one then, and with it any passphrase.
#[test]
fn digests_that_every_key_matches() {
    let digest = |digest: Value| luks2_with(|json| json["digests"]["0"]["digest"] = digest);
    for bytes in [0, 1, 16, 19, 21, 31, 33, 63, 64, 65, 300] {
        let image = digest(Base64::encode_string(&vec![0; bytes]).into());
        refused(&image, &format!("digest 0 of the volume key has {bytes} bytes"));
    }
    refused(&digest("not Base64!".into()), "has 0 bytes");
    refused(&digest(5.into()), "not valid");
    refused_with(|json| drop(json["digests"]["0"].as_object_mut().unwrap().remove("digest")), "has 0 bytes");
    refused_with(
        |json| json["digests"]["0"]["hash"] = "sha512".into(),
        "which its hash `sha512` does not make",
    );
    for bytes in [20, 32] {
        refused(&digest(Base64::encode_string(&vec![0; bytes]).into()), "opens no key slot");
    }
}

/// Of such salts as well.
#[test]
fn digests_whose_salts_make_every_key_match() {
    let salt = |salt: Value| luks2_with(|json| json["digests"]["0"]["salt"] = salt);
    for bytes in [0, 1, 16, 31, 33, 64] {
        let image = salt(Base64::encode_string(&vec![0; bytes]).into());
        refused(&image, &format!("the salt of the volume key's digest 0 has {bytes} bytes"));
    }
    refused(&salt("not Base64!".into()), "has 0 bytes");
    for value in [json!({}), json!([]), json!(5)] {
        refused(&salt(value), "not valid");
    }
    refused_with(|json| drop(json["digests"]["0"].as_object_mut().unwrap().remove("salt")), "has 0 bytes");
    refused(&salt(Base64::encode_string(&[0; 32]).into()), "opens no key slot");
}

#[test]
fn areas_that_overlap() {
    let image = luks2_with(|json| {
        json["keyslots"]["1"] = json["keyslots"]["0"].clone();
        json["digests"]["0"]["keyslots"] = json!(["0", "1"]);
    });
    refused(&image, "not valid");
    let mut image = luks1();
    // Slot 1 where slot 0 is.
    image.copy_within(208 + 40..208 + 44, 208 + 48 + 40);
    let _ = unlock(&image);
    // Slot 1 in the header itself, and far beyond everything.
    for offset_sectors in [0_u32, u32::MAX] {
        image[208 + 48 + 40..][..4].copy_from_slice(&offset_sectors.to_be_bytes());
        refused(&image, "");
    }
}

#[test]
fn metadata_larger_than_its_area_or_deeper_than_any() {
    for keyslots_size in ["0", "4096", "137438953472", "18446744073709551615"] {
        refused_with(|json| json["config"]["keyslots_size"] = keyslots_size.into(), "not valid");
    }
    for json_size in ["0", "4096", "18446744073709551615"] {
        refused_with(|json| json["config"]["json_size"] = json_size.into(), "not valid");
    }
    let mut image = luks2();
    let text = metadata(&image).to_string();
    let padding = "x".repeat(COPY_BYTES);
    for json in [
        text.replace("{\"config\"", &format!("{{\"padding\":\"{padding}\",\"config\"")),
        "[".repeat(COPY_BYTES),
        "{\"a\":".repeat(COPY_BYTES / 5),
        format!("{}{}", text.trim_end_matches('}'), ",".repeat(12_288)),
        String::new(),
        "null".to_owned(),
    ] {
        put_metadata(&mut image, json.as_bytes());
        refused(&image, "");
    }
    let nested = format!("{}{}", "[".repeat(2000), "]".repeat(2000));
    let deep = text.replacen('{', &format!("{{\"deep\":{nested},"), 1);
    put_metadata(&mut image, deep.as_bytes());
    refused(&image, "not valid");
}

#[test]
fn header_sizes_that_there_are_not() {
    for header_bytes in [0_u64, 1, 4096, 16385, 8 << 20, 1 << 40, u64::MAX] {
        let mut image = luks2();
        for copy in 0..2 {
            image[copy * COPY_BYTES + 8..][..8].copy_from_slice(&header_bytes.to_be_bytes());
            seal(&mut image, copy, usize::try_from(header_bytes).unwrap_or(0).clamp(512, 8 << 20));
        }
        refused(&image, "");
    }
}

#[test]
fn volumes_other_than_the_expected_one() {
    let judge = |expect| unlock_with(Policy { expect, ..Policy::default() }, &luks2());
    let expected = |change: fn(&mut Expectations)| {
        let mut expect = Expectations::default();
        change(&mut expect);
        judge(expect)
    };
    expected(|expect| expect.version = Some(Version::Luks2)).unwrap();
    expected(|expect| expect.cipher = Some("aes-xts-plain64".parse().unwrap())).unwrap();
    expected(|expect| expect.cipher = Some("aes-xts-plain64:512".parse().unwrap())).unwrap();
    let message = |answer: Result<_, sealblk::format::FormatError>| answer.unwrap_err().to_string();
    let error = message(expected(|expect| expect.version = Some(Version::Luks1)));
    assert!(error.contains("it is LUKS2, but --format says LUKS1"), "{error}");
    let error = message(expected(|expect| expect.cipher = Some("aes-xts-plain64:256".parse().unwrap())));
    assert!(error.contains("its cipher is aes-xts-plain64:512, not aes-xts-plain64:256"), "{error}");
    let error = message(expected(|expect| expect.uuid = Some(uuid::Uuid::nil())));
    assert!(error.contains("not 00000000-0000-0000-0000-000000000000 (--expect-uuid)"), "{error}");
    let error = message(expected(|expect| expect.header_digest = Some([0; 32])));
    assert!(error.contains("was the header changed?"), "{error}");
}
