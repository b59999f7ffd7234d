//! What the tests of this crate share.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::Path;
use std::process::{Command, Output};

/// Whether qemu-img is there; says loudly that a test is skipped if not.
pub fn have_qemu_img(test: &str) -> bool {
    let found = Command::new("qemu-img").arg("--version").output().is_ok();
    if !found {
        eprintln!("SKIPPED: {test}: qemu-img is not installed (Debian: qemu-utils)");
    }
    found
}

/// Runs qemu-img, whatever comes of it.
pub fn try_qemu_img(args: &[&str]) -> Output {
    Command::new("qemu-img").args(args).output().expect("qemu-img runs")
}

/// Runs qemu-img, which must succeed.
pub fn qemu_img(args: &[&str]) {
    /// It times itself to choose how hard a key is to derive, which fails now and then.
    const NO_TIME: &str = "Unable to get accurate CPU usage";
    let failed = |output: &Output| String::from_utf8_lossy(&output.stderr).contains(NO_TIME);
    let mut tries = (0..20).map(|_| try_qemu_img(args));
    let output = tries.find(|output| !failed(output)).expect("qemu-img finds the time");
    assert!(output.status.success(), "qemu-img {args:?}: {output:?}");
}

/// Requires that `qemu-img check` finds no errors, and no leaks unless they are allowed.
pub fn check(image: &Path, leaks_allowed: bool) {
    let output = try_qemu_img(&["check", "-f", "qcow2", text(image)]);
    // qemu-img(1): 0 is clean, 3 is leaked clusters only.
    match output.status.code() {
        Some(0) => {}
        Some(3) if leaks_allowed => {}
        _ => panic!(
            "qemu-img check {}: {}{}",
            image.display(),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ),
    }
}

/// What qemu-img reads from an image.
pub fn contents(image: &Path, format: &str) -> Vec<u8> {
    let raw = image.with_extension("converted");
    qemu_img(&["convert", "-f", format, "-O", "raw", text(image), text(&raw)]);
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(&raw).unwrap();
    bytes
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

/// A small generator of pseudorandom numbers (splitmix64).
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn fill(&mut self, data: &mut [u8]) {
        for chunk in data.chunks_mut(8) {
            let bytes = self.next().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}
