//! The balloon's queues: pages that are given away, statistics.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use lodge_fuzz::virtio::Driver;
use lodge_fuzz::wiring;
use virtio::Balloon;

fuzz_target!(|driver: Driver<'_>| {
    let memory = wiring::ram();
    let host = Arc::new(Balloon::new(true).unwrap());
    driver.drive(virtio::balloon(host, memory.clone()).unwrap(), &memory);
});
