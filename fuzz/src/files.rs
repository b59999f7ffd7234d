//! Inputs as files.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, memfd_create};

/// A file in memory that has a path as long as it is kept.
pub struct MemoryFile {
    /// Where it can be opened.
    pub path: PathBuf,
    _file: File,
}

impl MemoryFile {
    /// A file that holds `bytes`.
    pub fn new(bytes: &[u8]) -> Self {
        let mut file = File::from(memfd_create("fuzz-input", MemfdFlags::CLOEXEC).unwrap());
        file.write_all(bytes).unwrap();
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        Self { path, _file: file }
    }
}

/// A number made from `bytes`, never 0, from which more follow by [`next`].
pub fn seed(bytes: &[u8]) -> u64 {
    // FNV-1a.
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash | 1
}

/// The next pseudo-random number (xorshift).
pub fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}
