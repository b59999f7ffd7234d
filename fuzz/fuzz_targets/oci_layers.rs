//! Layers of OCI images, as archives that may be compressed: whatever they are, what comes out can be read
//! as an archive again, and makes the same tree.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oci::{Limits, Tree};

const LIMITS: Limits = Limits { bytes: 1 << 20, entries: 1000 };

fuzz_target!(|layers: Vec<Vec<u8>>| {
    let directory = std::env::temp_dir();
    let new = || Tree::new(&directory, LIMITS).unwrap();
    let mut tree = new();
    for layer in &layers {
        if let Err(error) = tree.add_layer(&layer[..], "a layer", &|| false) {
            let _ = error.to_string();
            return;
        }
    }
    let mut archive = Vec::new();
    tree.write(&mut archive, true).unwrap();
    let mut again = new();
    again.add_layer(&archive[..], "what came out", &|| false).unwrap();
    let (before, after) = (tree.usage(), again.usage());
    assert_eq!((before.names, before.devices), (after.names, after.devices));
});
