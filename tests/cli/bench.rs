//! `sealblk bench`, run so briefly that its figures mean nothing.

use serde_json::Value;

use super::*;

const SHORT: &str = "bench --seconds 0 --buffer-size 4096 --buffer-size 65536";

fn json(arguments: &str) -> Value {
    let ended = Bench::new().run(arguments);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    serde_json::from_str(&ended.stdout).unwrap()
}

#[test]
fn bench_prints_json_for_programs() {
    let report = json(&format!("{SHORT} --json"));
    let results = report["results"].as_array().unwrap();
    let kernels: Vec<&str> = {
        let mut names: Vec<_> = results.iter().map(|result| result["kernel"].as_str().unwrap()).collect();
        names.sort_unstable();
        names.dedup();
        names
    };
    assert!(kernels.contains(&"portable") && kernels.contains(&"memcpy"), "{kernels:?}");
    assert_eq!(kernels.contains(&"openssl"), report["openssl"].is_string());
    let auto = report["auto_kernel"].as_str().unwrap();
    assert!(kernels.contains(&auto), "{kernels:?} have {auto}");
    assert_eq!(results.len(), kernels.len() * 2 * 2 * 2);
    for result in results {
        assert!(matches!(result["key_bits"].as_u64().unwrap(), 256 | 512), "{result}");
        assert!(matches!(result["sector_size"].as_u64().unwrap(), 512 | 4096), "{result}");
        assert!(matches!(result["buffer_bytes"].as_u64().unwrap(), 4096 | 65536), "{result}");
        assert!(result["encrypt_gb_per_s"].as_f64().unwrap() > 0.0, "{result}");
        assert!(result["decrypt_gb_per_s"].as_f64().unwrap() > 0.0, "{result}");
    }
    let bound_known = report["bound"].is_object();
    assert_eq!(report["bound_gb_per_s"].is_f64(), bound_known);
    assert_eq!(bound_known, kernels.contains(&"aesni"), "the AES units are known where they can be used");
}

#[test]
fn bench_measures_what_it_is_told_to() {
    let report = json(
        "bench --seconds 0 --kernel portable --kernel auto --key-size 256 --sector-size 1024 --buffer-size 2048 --json",
    );
    let mut expected = vec!["portable", report["auto_kernel"].as_str().unwrap()];
    expected.dedup();
    let results = report["results"].as_array().unwrap();
    let kernels: Vec<_> = results.iter().map(|result| result["kernel"].as_str().unwrap()).collect();
    assert_eq!(kernels, expected);
    for result in results {
        let case = (&result["key_bits"], &result["sector_size"], &result["buffer_bytes"]);
        assert_eq!(case, (&256.into(), &1024.into(), &2048.into()));
    }
}

#[test]
fn bench_prints_a_table_and_a_chart_for_people() {
    let ended = Bench::new().run(&format!("{SHORT} --kernel portable --kernel memcpy"));
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    for part in ["Bound: ", "AES-128", "AES-256", "4 KiB", "64 KiB", "portable █", "A request of 4 KiB takes"]
    {
        assert!(ended.stdout.contains(part), "no `{part}` in {}", ended.stdout);
    }
}

#[test]
fn bench_says_what_it_cannot_measure() {
    for (arguments, message) in [
        ("--kernel gcrypt", "unknown kernel `gcrypt`"),
        ("--key-size 128", "it is 256 or 512"),
        ("--sector-size 8192", "it is 512, 1024, 2048 or 4096"),
        ("--seconds -1", "see `sealblk bench --help`"),
        ("--seconds 1e9", "it is a number from 0 to 60"),
        (
            "--buffer-size 1000",
            "the buffer size of 1000 bytes is not a multiple of the sector size (512 bytes)",
        ),
        ("--buffer-size 0", "0 is not in 512..="),
    ] {
        let ended = Bench::new().run(&format!("bench {arguments}"));
        assert_eq!(ended.code, USAGE, "{arguments}: {}", ended.stderr);
        assert!(ended.stderr.contains(message), "{arguments}: {}", ended.stderr);
        assert!(ended.stderr.ends_with("see `sealblk bench --help`\n"), "{arguments}: {}", ended.stderr);
    }
}
