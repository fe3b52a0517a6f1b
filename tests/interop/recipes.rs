//! The recipes of docs/keys.md, run as they are written.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

const PAGE: &str = include_str!("../../docs/keys.md");

/// Stands for `sealblk` in a recipe. Of `serve` it waits until its socket is there, and ends it well.
const STAND_IN: &str = r#"#!/bin/sh
test ! -e "$ROOT/etc/sealblk/keys.toml" || set -- "$@" --key-config "$ROOT/etc/sealblk/keys.toml"
test "$1" = serve || exec "$PROGRAM" "$@"
rm -f "$ROOT/run/vm1.sock"
set -- "$@" --num-queues 1
"$PROGRAM" "$@" &
while test ! -S "$ROOT/run/vm1.sock"; do
    kill -0 $! 2>/dev/null || { wait $!; exit; }
    sleep 0.01
done
kill $! && wait $!
"#;

/// The shell recipes of a page, in order: what stands between its fences that say so.
fn recipes(page: &str) -> Vec<&str> {
    page.split("\n```sh\n").skip(1).map(|rest| rest.split("\n```\n").next().unwrap()).collect()
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

#[test]
fn each_recipe_serves_a_volume() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let program = root.join("bin/sealblk");
    write(&program, STAND_IN);
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    write(&root.join("vm1.img"), &"\0".repeat(1 << 20));
    let fixed_key = ["0123456789abcdef".repeat(2), "fedcba9876543210".repeat(2)].concat();
    write(&root.join("etc/nova/nova.conf"), &format!("[key_manager]\nfixed_key = {fixed_key}\n"));
    fs::create_dir_all(root.join("etc/sealblk")).unwrap();

    let found = recipes(PAGE);
    assert_eq!(found.iter().filter(|recipe| recipe.contains("sealblk serve")).count(), found.len());
    assert!(found.len() >= 6, "these are not all recipes: {found:#?}");
    for recipe in found {
        // The same folders, out of the way of this machine's own.
        let moved = ["/run/", "/etc/", "/var/"].iter().fold(recipe.to_owned(), |text, place| {
            text.replace(place, &format!("{}{place}", root.display()))
        });
        let output = Command::new("sh")
            .args(["-e", "-c", &moved])
            .current_dir(root)
            .env("ROOT", root)
            .env("PROGRAM", env!("CARGO_BIN_EXE_sealblk"))
            .env("PATH", format!("{}:{}", root.join("bin").display(), std::env::var("PATH").unwrap()))
            .output()
            .unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{recipe}\n{log}");
        assert!(log.contains("disk is ready") && log.contains("all writes are durable"), "{recipe}\n{log}");
    }
}
