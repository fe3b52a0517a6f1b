//! Configuration files, of `serve` and of key managers, and references to keys: text that whoever edits them might have
//! written. Each is understood or refused with a message that has an end.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sealblk::cli::fuzzing::serve_options;
use sealblk::keys::{KeyConfig, KeyReference};

fuzz_target!(|text: &str| {
    if let Err(message) = serve_options(text) {
        assert!(!message.is_empty());
    }
    // Whatever the parser says of it; the file's own reader cuts out what it quotes.
    let _ = toml::from_str::<KeyConfig>(text);
    for line in text.lines().take(16) {
        if let Ok(reference) = line.parse::<KeyReference>() {
            let again: KeyReference = reference.to_string().parse().expect("what is written can be read");
            assert_eq!(again, reference);
        }
    }
});
