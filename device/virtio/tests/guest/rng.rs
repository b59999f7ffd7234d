//! The entropy device.

use crate::driver::*;

#[test]
fn gives_different_bytes_each_time() {
    let memory = ram();
    let g = Guest::new(virtio::rng(memory.clone()).unwrap(), memory);
    assert_eq!(g.get16(g.cfg(2)), 0x1044);
    assert_eq!(g.config, 0); // it has no configuration
    let mut q = g.start().remove(0);
    let pieces = [(DATA, 20, true), (DATA + 0x100, 44, true)];
    assert_eq!(q.request(&g, &pieces), 64);
    let first = [g.read(DATA, 20), g.read(DATA + 0x100, 44)].concat();
    assert_eq!(q.request(&g, &pieces), 64);
    let second = [g.read(DATA, 20), g.read(DATA + 0x100, 44)].concat();
    assert_ne!(first, second);
    assert_ne!(first, [0; 64]);
}

#[test]
fn large_requests_are_cut_and_senseless_ones_are_empty() {
    let memory = ram();
    let g = Guest::new(virtio::rng(memory.clone()).unwrap(), memory);
    let mut q = g.start().remove(0);
    assert_eq!(q.request(&g, &[(DATA, 0x10_0000, true)]), 0x1_0000);
    assert_eq!(g.read(DATA + 0x1_0000, 64), [0; 64]);
    assert_ne!(g.read(DATA + 0xffc0, 64), [0; 64]);
    assert_eq!(q.request(&g, &[(DATA, 16, false)]), 0);
}
