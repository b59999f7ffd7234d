//! The entropy device's queue.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lodge_fuzz::virtio::Driver;
use lodge_fuzz::wiring;

fuzz_target!(|driver: Driver<'_>| {
    let memory = wiring::ram();
    driver.drive(virtio::rng(memory.clone()).unwrap(), &memory);
});
