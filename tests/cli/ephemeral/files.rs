//! Disks in files.

use std::os::unix::fs::symlink;

use super::*;

#[test]
fn a_disk_is_made_served_as_told_listed_and_destroyed() {
    for (format, header_bytes, shown, key_bits) in
        [("luks2", 16 * MIB, "luks2", 256), ("plain --sector-size 4096", 0, "plain-4096", 512)]
    {
        let bench = Bench::with_disk_keys();
        let made = bench.ok(&format!("ephemeral create --size 3M --file disk --format {format}"));
        let path = fs::canonicalize(&bench.folder).unwrap().join("disk");
        assert_eq!((made["format"].as_str(), made["file"].as_str()), (Some(shown), path.to_str()));
        assert_eq!((&made["path"], &made["lvm"]), (&made["file"], &Value::Null));
        assert_eq!(made["payload_bytes"], 3 * MIB);
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.len(), header_bytes + 3 * MIB);
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        let key = made["key"].as_str().unwrap().trim_start_matches("keystore:");
        let shown = bench.ok(&format!("key show {key}"));
        assert_eq!((&shown["bits"], &shown["kind"]), (&key_bits.into(), &"symmetric".into()));

        let listing = bench.ok("ephemeral list");
        let [disk] = &listing["disks"].as_array().unwrap()[..] else { panic!("one disk: {listing}") };
        for field in ["uuid", "file", "lvm", "path", "format", "key", "serve"] {
            assert_eq!(disk[field], made[field], "{field}");
        }
        assert_eq!((&disk["state"], &listing["lvm_problem"]), (&"whole".into(), &Value::Null));
        assert!(bench.served_as_told(disk).is_none(), "it is served");

        bench.keystore_run("ephemeral destroy --file disk").refused(REFUSED, &["data", "copy", key, "--yes"]);
        assert_eq!(bench.states(), ["whole"]);
        fs::copy(&path, bench.path("copy")).unwrap();
        // The mark of a plain disk is beside its content.
        let copies = if format == "luks2" { 2 } else { 1 };
        assert_eq!(bench.states(), ["whole"].repeat(copies));
        let destroyed = bench.ok("ephemeral destroy --file disk --yes");
        assert_eq!(destroyed["keys_destroyed"], serde_json::json!([made["key"]]));
        assert_eq!((&destroyed["data_gone"], &destroyed["removed"]["file"]), (&true.into(), &made["file"]));
        assert!(!path.exists());
        assert_eq!(bench.ok("ephemeral list")["disks"], serde_json::json!([]));
        assert_eq!(bench.states(), ["key-destroyed"].repeat(copies - 1));
        // Wherever a copy was kept: nothing opens it any more.
        fs::rename(bench.path("copy"), &path).unwrap();
        let ended = bench.served_as_told(disk).expect("it is not served");
        assert_eq!(ended.code, KEY, "{}", ended.stderr);
        assert!(ended.stderr.contains("destroyed, for good"), "{}", ended.stderr);
    }
}

#[test]
fn each_disk_has_a_key_of_its_own() {
    let bench = Bench::with_disk_keys();
    let [one, other] =
        ["one", "other"].map(|file| bench.ok(&format!("ephemeral create --size 1M --file {file}")));
    assert_ne!(one["key"], other["key"]);
    bench.ok("ephemeral destroy --file one --yes");
    assert!(bench.served_as_told(&other).is_none());
    let rotated = other["key"].as_str().unwrap().to_owned();
    bench.ok(&format!("key rotate --volume other --key {rotated} --destroy-old --yes"));
    assert_eq!(bench.states(), ["whole"]);
    assert!(bench.served_as_told(&other).is_none(), "a key can be rotated");
}

#[test]
fn people_are_told_what_to_run() {
    let bench = Bench::with_disk_keys();
    let made = bench.keystore_run("ephemeral create --size 1M --file disk");
    assert_eq!((made.code, made.stderr.as_str()), (0, ""));
    for part in [
        "/disk: ephemeral disk",
        "1 MiB",
        "sealblk serve --socket-path SOCKET --blk-file ",
        "--key keystore:",
    ] {
        assert!(made.stdout.contains(part), "no `{part}` in: {}", made.stdout);
    }
    let listing = bench.keystore_run("ephemeral list").stdout;
    for part in ["UUID", "STATE", "whole", "luks2", "/disk", "keystore:"] {
        assert!(listing.contains(part), "no `{part}` in: {listing}");
    }
    let destroyed = bench.keystore_run("ephemeral destroy --file disk --yes").stdout;
    for part in ["destroyed the key keystore:", "gone for good", "removed /"] {
        assert!(destroyed.contains(part), "no `{part}` in: {destroyed}");
    }
    let again = bench.keystore_run("ephemeral destroy --file disk").stdout;
    assert!(again.contains("was destroyed before") && again.contains("no disk was removed"), "{again}");
    bench.keystore_run("ephemeral").refused(USAGE, &["sealblk ephemeral --help"]);
}

#[test]
fn a_disk_in_use_is_left_alone_but_its_key_can_be_destroyed() {
    let bench = Bench::with_disk_keys();
    let made = bench.ok("ephemeral create --size 1M --file disk");
    let config = made["serve"]["config"].as_str().unwrap();
    fs::write(bench.path("serve.toml"), format!("socket-path = 's'\n{config}")).unwrap();
    let Ok(served) = Served::start(&bench, &["--config", "serve.toml"]) else { panic!("it is served") };
    bench
        .keystore_run("ephemeral destroy --file disk --yes")
        .refused(VOLUME_LOCKED, &["in use by another process"]);
    assert_eq!(bench.states(), ["whole"]);
    let destroyed = bench.ok("ephemeral destroy --file disk --key-only --yes");
    assert_eq!((&destroyed["data_gone"], &destroyed["removed"]), (&true.into(), &Value::Null));
    assert_eq!(bench.states(), ["key-destroyed"]);
    drop(served);
    let uuid = made["uuid"].as_str().unwrap();
    bench.keystore_run(&format!("ephemeral destroy --uuid {uuid}")).refused(REFUSED, &["no key", "--yes"]);
    let destroyed = bench.ok(&format!("ephemeral destroy --uuid {uuid} --yes"));
    assert_eq!(
        (&destroyed["keys_gone_before"], &destroyed["removed"]["file"]),
        (&serde_json::json!([made["key"]]), &made["file"])
    );
    assert_eq!(bench.standings(), []);
}

#[test]
fn what_has_lost_its_other_half_is_named_and_destroyed() {
    let bench = Bench::with_disk_keys();
    let [moved, lost, replaced, keyless] = ["moved", "lost", "replaced", "keyless"]
        .map(|file| bench.ok(&format!("ephemeral create --size 1M --file {file} --format plain")));
    fs::rename(bench.path("moved"), bench.path("elsewhere")).unwrap();
    fs::remove_file(bench.path("lost")).unwrap();
    fs::write(bench.path("replaced"), "a letter").unwrap();
    fs::rename(bench.path("replaced"), bench.path("letter")).unwrap();
    fs::write(bench.path("replaced"), "another letter").unwrap();
    let _ = (&moved, &keyless);
    // A manager that remembers nothing of the last one: another keystore, here.
    fs::write(
        bench.path("other.toml"),
        fs::read_to_string(bench.path("keys.toml")).unwrap().replace("store/keystore", "other/keystore"),
    )
    .unwrap();
    bench.set_mode("other.toml", 0o600);
    fs::create_dir(bench.path("other")).unwrap();
    bench.set_mode("other", 0o700);
    let in_other = |arguments: &str| bench.run(&format!("{arguments} --key-config other.toml"));
    assert_eq!(in_other("keystore init").code, 0);

    let state_of = |made: &Value| {
        let standings = bench.standings();
        let uuid = made["uuid"].as_str().unwrap();
        let standing = standings.into_iter().find(|standing| standing.uuid == uuid).expect("it is listed");
        (standing.state, Path::new(&standing.place).file_name().unwrap().to_str().unwrap().to_owned())
    };
    let stands = |state: &str, file: &str| (state.to_owned(), file.to_owned());
    assert_eq!(state_of(&moved), stands("whole", "elsewhere"));
    assert_eq!(state_of(&lost), stands("no-disk", "lost"));
    assert_eq!(state_of(&keyless), stands("whole", "keyless"));
    // Its own file, marked, was overwritten in place and renamed: the mark says that it is still that disk.
    assert_eq!(state_of(&replaced), stands("whole", "letter"));
    fs::remove_file(bench.path("letter")).unwrap();
    assert_eq!(state_of(&replaced), stands("no-disk", "replaced"));

    // What took a disk's place is not the disk.
    let destroyed = bench.ok("ephemeral destroy --file replaced --yes");
    assert_eq!((&destroyed["removed"], &destroyed["data_gone"]), (&Value::Null, &true.into()));
    assert_eq!(destroyed["note"], "what lies there is something else");
    assert_eq!(fs::read(bench.path("replaced")).unwrap(), b"another letter");
    bench.ok("ephemeral destroy --file lost --yes");
    assert_eq!(bench.ok("ephemeral destroy --file elsewhere --yes")["keys_destroyed"][0], moved["key"]);

    let listing: Value = serde_json::from_str(&in_other("ephemeral list --folder . --json").stdout).unwrap();
    assert_eq!(
        (&listing["disks"][0]["state"], &listing["disks"][0]["uuid"]),
        (&"no-key".into(), &keyless["uuid"])
    );
    let removed = in_other("ephemeral destroy --file keyless --yes").stdout;
    assert!(
        removed.contains("no key of the disk in this key manager") && !removed.contains("gone for good"),
        "{removed}"
    );
    assert_eq!(state_of(&keyless), stands("no-disk", "keyless"));
    bench.ok(&format!("ephemeral destroy --uuid {} --yes", keyless["uuid"].as_str().unwrap()));
    assert_eq!(bench.standings(), []);
}

#[test]
fn a_key_is_never_guessed() {
    let bench = Bench::with_disk_keys();
    let make = || bench.ok("ephemeral create --size 1M --file disk");
    let [first, second] = [make(), {
        fs::rename(bench.path("disk"), bench.path("first")).unwrap();
        make()
    }];
    let uuid = |made: &Value| made["uuid"].as_str().unwrap().to_owned();
    // Each is found by what lies there, not by where it was made.
    let destroyed = bench.ok("ephemeral destroy --file disk --yes");
    assert_eq!(destroyed["keys_destroyed"], serde_json::json!([second["key"]]));
    let third = make();
    fs::remove_file(bench.path("disk")).unwrap();
    bench
        .keystore_run("ephemeral destroy --file disk --yes")
        .refused(USAGE, &["2 keys are for disks at", &uuid(&first), &uuid(&third), "--uuid"]);
    bench.ok(&format!("ephemeral destroy --uuid {} --yes", uuid(&third)));
    assert_eq!(bench.states(), ["whole"]);
    assert_eq!(bench.ok("ephemeral destroy --file first --yes")["keys_destroyed"][0], first["key"]);
}

#[test]
fn a_forged_mark_chooses_no_key() {
    let bench = Bench::with_disk_keys();
    let [one, other] =
        ["one", "other"].map(|file| bench.ok(&format!("ephemeral create --size 1M --file {file}")));
    let mark = fs::read(bench.path("other")).unwrap()[..4096].to_vec();
    let storage = OpenOptions::new().write(true).open(bench.path("one")).unwrap();
    storage.write_all_at(&mark, 0).unwrap();
    let uuid = |made: &Value| made["uuid"].as_str().unwrap().to_owned();
    bench
        .keystore_run("ephemeral destroy --file one --yes")
        .refused(REFUSED, &["/one says that it is disk", &uuid(&one), &uuid(&other), "--uuid"]);
    let destroyed = bench.ok(&format!("ephemeral destroy --uuid {} --yes", uuid(&one)));
    assert_eq!((&destroyed["keys_destroyed"][0], &destroyed["removed"]), (&one["key"], &Value::Null));
    assert!(bench.served_as_told(&other).is_none(), "the other disk is unharmed");
}

#[test]
fn what_cannot_be_is_refused_and_leaves_nothing() {
    let bench = Bench::with_disk_keys();
    fs::write(bench.path("letter"), "x").unwrap();
    symlink("nowhere", bench.path("link")).unwrap();
    let long = format!("--file {}", "x".repeat(230));
    for (arguments, code, parts) in [
        ("create --size 1M", USAGE, &["--file", "--lvm"][..]),
        ("create --file disk", USAGE, &["--size"]),
        ("create --size 1M --file disk --lvm vg/lv", USAGE, &["--file", "--lvm"]),
        ("create --size 0 --file disk", USAGE, &["--size 0"]),
        ("create --size 5000P --file disk", USAGE, &["--size"]),
        ("create --size 1000 --file disk", USAGE, &["--size 1000", "512 bytes"]),
        ("create --size 1536 --file disk --sector-size 1024", USAGE, &["--size 1536", "1024 bytes"]),
        ("create --size 1M --file disk --sector-size 8192", USAGE, &["--sector-size 8192", "auto"]),
        ("create --size 1M --file disk --format luks1", USAGE, &["luks1", "plain"]),
        ("create --size 1M --file disk --key-manager file", USAGE, &["file", "keystore"]),
        ("create --size 1M --file disk --key-manager keystore@other", USAGE, &["[keystore.other]"]),
        ("create --size 1M --file letter", REFUSED, &["letter exists"]),
        ("create --size 1M --file link", REFUSED, &["link exists"]),
        ("create --size 1M --file nowhere/disk", FAILURE, &["nowhere/disk", "No such file"]),
        ("create --size 1M --file ..", USAGE, &["does not end in a name"]),
        ("create --size 1M --lvm vg", USAGE, &["VG/NAME"]),
        ("create --size 1M --lvm=-vg/x", USAGE, &["VG/NAME", "hyphen"]),
        ("create --size 1M --lvm vg/x", FAILURE, &["no `lvs` on PATH", "lvm2", "--file"]),
        ("list --folder nowhere", FAILURE, &["nowhere", "No such file"]),
        ("destroy --yes", USAGE, &["--file", "--lvm", "--uuid"]),
        ("destroy --file disk --yes", VOLUME, &["disk is not there", "keystore has no key"]),
        ("destroy --file letter --yes", VOLUME, &["letter is no ephemeral disk", "keystore has no key"]),
        ("destroy --file . --yes", USAGE, &["does not end in a name"]),
        ("destroy --uuid 1234 --yes", USAGE, &["--uuid", "1234"]),
        ("destroy --lvm vg/x --yes", FAILURE, &["no `lvs` on PATH"]),
        ("destroy --lvm vg/x --key-only --yes", VOLUME, &["vg/x is not there"]),
        (
            "destroy --uuid 8e5b1a4e-2f0c-4f0e-9d54-3a0d1f6a7b11 --yes",
            KEY,
            &["no key of an ephemeral disk 8e5b1a4e-2f0c-4f0e-9d54-3a0d1f6a7b11"],
        ),
        (&format!("create --size 1M {long}"), USAGE, &["bytes too long for the record of its key"]),
    ] {
        bench.keystore_run(&format!("ephemeral {arguments}")).refused(code, parts);
    }
    assert_eq!(bench.ok("key list --all")["keys"], serde_json::json!([]));
    assert_eq!(bench.standings(), []);
    assert!(!Path::new(&bench.path("disk")).exists());
}

#[test]
fn a_disk_that_does_not_fit_its_file_system_takes_its_key_along() {
    let bench = Bench::with_disk_keys();
    // Beyond the limit of this process for files, as beyond the space that there is.
    let script = "ulimit -f 2000; trap '' XFSZ; exec $S ephemeral create --size 3M --format plain --file disk \
                  --key-config keys.toml";
    let ended = bench.finish(Command::new("sh").args(["-c", script]).env("S", PROGRAM));
    ended.refused(FAILURE, &["disk", "File too large"]);
    assert!(!Path::new(&bench.path("disk")).exists());
    let keys = bench.ok("key list --all")["keys"].as_array().unwrap().clone();
    assert_eq!(keys.len(), 1, "a key was made");
    assert_eq!(keys[0]["state"], "destroyed");
    assert_eq!(bench.standings(), []);
}

#[test]
fn a_version_that_is_left_is_a_key_that_is_left() {
    let bench = Bench::with_disk_keys();
    let made = bench.ok("ephemeral create --size 1M --file disk --format plain");
    let key = made["key"].as_str().unwrap();
    bench.ok(&format!("key rotate {key}"));
    bench.ok(&format!("key destroy {key}#2 --yes"));
    assert_eq!(bench.states(), ["whole"]);
    bench.keystore_run("ephemeral destroy --file disk").refused(REFUSED, &[key, "--yes"]);
    bench.ok("ephemeral destroy --file disk --yes");
    assert_eq!(bench.ok(&format!("key show {key}#1"))["state"], "destroyed");
}
