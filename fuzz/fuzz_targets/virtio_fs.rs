//! The file system device's queues, over a folder that can only be read.
#![no_main]

use std::sync::Arc;

use folder::{Folder, Options, Root};
use libfuzzer_sys::fuzz_target;
use lodge_fuzz::virtio::Driver;
use lodge_fuzz::wiring;

fuzz_target!(|driver: Driver<'_>| {
    let memory = wiring::ram();
    let root = Root::open(env!("CARGO_MANIFEST_DIR").as_ref()).unwrap();
    let options = Options { readonly: true, ..Options::default() };
    let folder = Folder::new(root, options).unwrap();
    driver.drive(virtio::fs("fuzz", folder, Arc::default(), memory.clone()).unwrap(), &memory);
});
