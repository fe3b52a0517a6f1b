//! A worker, its guest and its disk: whatever the guest does, every request is answered once, with the data and
//! the status that a model allows, and nothing is touched that the guest did not offer.
#![no_main]

mod device;
mod driver;
mod model;
mod script;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|script: script::Script| device::Device::new(&script.setup).run(&script.steps));
