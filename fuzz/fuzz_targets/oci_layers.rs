//! Layers of OCI images, as archives that may be compressed: whatever they are, what comes out can be read
//! as an archive again, and makes the same tree.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oci::{Limits, Tree};

const LIMITS: Limits = Limits { bytes: 1 << 20, entries: 1000 };

fuzz_target!(|layers: Vec<Vec<u8>>| {
    let directory = std::env::temp_dir();
    let mut tree = Tree::new(&directory, LIMITS).unwrap();
    for layer in &layers {
        if let Err(error) = tree.add_layer(&layer[..], "a layer", &|| false) {
            let _ = error.to_string();
            return;
        }
    }
    let mut archive = Vec::new();
    tree.write(&mut archive, true).unwrap();
    // Long names and attributes are entries of their own.
    let limits = Limits { entries: 10 * LIMITS.entries, ..LIMITS };
    let mut again = Tree::new(&directory, limits).unwrap();
    if let Err(error) = again.add_layer(&archive[..], "what came out", &|| false) {
        // Links can lead so deep that a path is longer than an archive's may be.
        assert!(error.to_string().contains("more than 4096 bytes"), "{error}");
        return;
    }
    let (before, after) = (tree.usage(), again.usage());
    assert_eq!((before.names, before.devices), (after.names, after.devices));
});
