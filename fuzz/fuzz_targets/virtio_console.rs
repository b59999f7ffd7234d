//! The console's queues, with some input.
#![no_main]

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use chardev::{Backend, Chardev};
use libfuzzer_sys::fuzz_target;
use lodge_fuzz::virtio::Driver;
use lodge_fuzz::wiring;

fuzz_target!(|driver: Driver<'_>| {
    let memory = wiring::ram();
    let (near, mut far) = UnixStream::pair().unwrap();
    far.write_all(b"some input").unwrap();
    let console = Arc::new(Chardev::open(Backend::Stream(near.into())).unwrap());
    driver.drive(virtio::console(console, memory.clone()).unwrap(), &memory);
});
