//! Killed with `kill -9` at every change that is made to a file or folder, and cleaned up after.

use std::collections::BTreeSet;

use super::super::managed::killing::{Run, kill_before_change};
use super::*;

/// The same in memory, where nothing waits for a disk a thousand times.
fn bench() -> Bench {
    Bench::with_disk_keys_in(tempfile::tempdir_in("/dev/shm").unwrap())
}

/// Kills the command before its change number `nth`, in the folder or in the log of the keystore, in which each of its
/// transactions ends. (Its other pages are killed in its own tests.)
fn kill(bench: &Bench, arguments: &str, nth: usize) -> Run {
    let folder = fs::canonicalize(&bench.folder).unwrap();
    let mut command = bench.keystore_command(arguments);
    let counts = |file: &Path| {
        file.starts_with(&folder)
            && (!file.starts_with(folder.join("store")) || file.ends_with("keystore-wal"))
    };
    kill_before_change(command.stdout(Stdio::null()), counts, nth)
}

/// Everything in the bench's folder, but what is in folders.
fn files(bench: &Bench) -> Vec<String> {
    let entries = fs::read_dir(&bench.folder).unwrap().map(Result::unwrap);
    let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
    let mut names: Vec<String> = files.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Kills `ephemeral create` at every moment. Returns all that `list` ever says of what is left.
fn kill_create(bench: &Bench, place: &str) -> BTreeSet<Vec<String>> {
    let before = files(bench);
    let mut seen = BTreeSet::new();
    let arguments = format!("ephemeral create --size 1M {place} --json");
    for moment in 0.. {
        let ended = kill(bench, &arguments, moment);
        let standings = bench.standings();
        assert!(standings.len() <= 1, "{standings:?}");
        if ended != Run::Killed {
            assert!(ended == Run::Exited(0) && standings[0].state == "whole", "{ended:?} {standings:?}");
        }
        seen.insert(standings.iter().map(|standing| standing.state.clone()).collect());
        for Standing { uuid, state, .. } in standings {
            if state == "whole" {
                let disk = &bench.ok("ephemeral list")["disks"][0];
                let inspected = bench.run(&format!("inspect {}", disk["path"].as_str().unwrap()));
                assert!(inspected.stdout.contains("servable      yes"), "{}", inspected.stdout);
            }
            bench.ok(&format!("ephemeral destroy --uuid {uuid} --yes"));
        }
        assert_eq!(bench.standings(), [], "after moment {moment}");
        assert_eq!(files(bench), before, "after moment {moment}");
        assert!(bench.ok("key list")["keys"].as_array().unwrap().is_empty(), "after moment {moment}");
        if ended != Run::Killed {
            assert!(moment > 30, "only {moment} moments");
            break;
        }
    }
    seen
}

/// Kills `ephemeral destroy` at every moment.
fn kill_destroy(bench: &Bench, place: &str) -> BTreeSet<Vec<String>> {
    let before = files(bench);
    let mut seen = BTreeSet::new();
    let destroy = format!("ephemeral destroy {place} --yes --json");
    for moment in 0.. {
        bench.ok(&format!("ephemeral create --size 1M {place}"));
        let ended = kill(bench, &destroy, moment);
        seen.insert(bench.states());
        bench.ok(destroy.trim_end_matches(" --json"));
        assert_eq!(bench.standings(), [], "after moment {moment}");
        assert_eq!(files(bench), before, "after moment {moment}");
        assert!(bench.ok("key list")["keys"].as_array().unwrap().is_empty(), "after moment {moment}");
        if ended == Run::Exited(0) {
            assert!(moment > 5, "only {moment} moments");
            break;
        }
    }
    seen
}

fn all(states: &[&[&str]]) -> BTreeSet<Vec<String>> {
    states.iter().map(|states| states.iter().map(|state| (*state).to_owned()).collect()).collect()
}

#[test]
fn a_file_whose_making_is_killed_leaves_a_key_without_a_disk_at_most() {
    let bench = bench();
    assert_eq!(kill_create(&bench, "--file disk"), all(&[&[], &["no-disk"], &["whole"]]));
}

#[test]
fn a_logical_volume_whose_making_is_killed_is_known_for_what_it_is() {
    let bench = bench();
    bench.install_stand_in();
    // Between the key and the volume it changes nothing itself: see `killed_while_lvm_is_at_work`.
    assert_eq!(kill_create(&bench, "--lvm vg0/vm1"), all(&[&[], &["unfinished"], &["whole"]]));
}

#[test]
fn no_disk_goes_before_its_key() {
    for (place, lvm) in [("--file disk", false), ("--lvm vg0/vm1", true)] {
        let bench = bench();
        if lvm {
            bench.install_stand_in();
        }
        assert_eq!(kill_destroy(&bench, place), all(&[&[], &["key-destroyed"], &["whole"]]), "{place}");
    }
}
