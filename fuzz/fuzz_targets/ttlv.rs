//! A KMIP server that answers with anything: no answer may do more than be refused.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|answer: &[u8]| sealblk::keys::kmip::read_any_answer(answer));
