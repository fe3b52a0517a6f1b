//! The embedded keystore with ten thousand keys in it: opening, listing, fetching, rotating a key, rotating the KEK.
//!
//! Each fetch and each rotation is a durable transaction: what is timed is mostly the disk that the keystore is on. It is put
//! into memory where there is some, for figures that are the program's own; `SEALBLK_BENCH_DIR` names another folder.
//!
//! `cargo bench --bench keystore`

use std::env;
use std::fs::Permissions;
use std::hint::black_box;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use sealblk::keys::keystore::Keystore;
use sealblk::keys::{KeyKind, KeyMetadata, KeySpec, Secret};
use tempfile::{Builder, TempDir};

const KEYS: usize = 10_000;

fn kek(number: u64) -> Secret {
    let bytes = [number.to_le_bytes(); 4].concat();
    Secret::read_from(&bytes[..]).expect("a KEK fits")
}

fn folder() -> TempDir {
    let place = env::var("SEALBLK_BENCH_DIR").unwrap_or_else(|_| "/dev/shm".to_owned());
    let private = Permissions::from_mode(0o700);
    Builder::new().permissions(private).tempdir_in(Path::new(&place)).expect("a folder for the keystore")
}

fn filled(path: &Path) -> (Keystore, Vec<KeyMetadata>) {
    Keystore::initialise(path, kek(0)).expect("a new keystore");
    let keystore = Keystore::open(path, vec![kek(0)]).expect("it opens");
    let keys = (0..KEYS)
        .map(|number| {
            let name = Some(format!("volume-{number}"));
            let spec = KeySpec { volume: name.clone(), name, kind: KeyKind::Symmetric, bits: 512 };
            keystore.create_key(&spec).expect("a new key")
        })
        .collect();
    (keystore, keys)
}

fn ten_thousand_keys(criterion: &mut Criterion) {
    let folder = folder();
    let path = folder.path().join("keystore");
    let (keystore, keys) = filled(&path);
    let mut group = criterion.benchmark_group("ten thousand keys");
    group.bench_function("open", |b| {
        b.iter(|| Keystore::open(&path, vec![kek(0)]).expect("it opens"));
    });
    group.bench_function("list", |b| {
        b.iter(|| assert_eq!(black_box(keystore.list_keys()).expect("it can be listed").len(), KEYS));
    });
    let mut next = (0..KEYS).cycle().step_by(7919);
    let mut any = || &keys[next.next().expect("it goes on for ever")].id;
    group.bench_function("fetch", |b| {
        b.iter(|| black_box(keystore.fetch_key(any())).expect("it is there"));
    });
    group.bench_function("rotate", |b| {
        b.iter(|| keystore.rotate_key(any()).expect("it is there"));
    });
    group.bench_function("create", |b| {
        let spec = KeySpec { name: None, kind: KeyKind::Symmetric, bits: 512, volume: None };
        b.iter(|| keystore.create_key(&spec).expect("a new key"));
    });
    group.bench_function("verify", |b| {
        b.iter(|| keystore.verify(None).expect("it is in order"));
    });
    let mut generation = 0;
    group.bench_function("rotate the KEK", |b| {
        b.iter(|| {
            generation += 1;
            keystore.rotate_kek(kek(generation), |_| ()).expect("a new KEK")
        });
    });
    group.finish();
}

fn short() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_secs(1))
        .sample_size(10)
        .configure_from_args()
}

criterion_group! { name = benches; config = short(); targets = ten_thousand_keys }
criterion_main!(benches);
