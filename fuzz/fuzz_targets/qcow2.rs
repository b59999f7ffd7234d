//! Opening an image, and reading and writing what was accepted. The input is the image.
#![no_main]

use block::{Format, OpenOptions, open};
use libfuzzer_sys::fuzz_target;
use lodge_fuzz::files::{MemoryFile, next, seed};

fuzz_target!(|image: &[u8]| {
    let file = MemoryFile::new(image);
    let mut random = seed(image);
    let options =
        OpenOptions::new(&file.path).format(Format::Qcow2).readonly(next(&mut random) % 4 == 0);
    let Ok(disk) = open(&options) else { return };
    let size = disk.size();
    let mut data = vec![5; 0x4000];
    for _ in 0..12 {
        let offset = match next(&mut random) % 4 {
            0 => size.saturating_sub(next(&mut random) % 0x4000),
            1 => next(&mut random) % size.max(1),
            _ => next(&mut random) % 0x1_0000,
        };
        let len = (next(&mut random) % data.len() as u64).min(size.saturating_sub(offset));
        let part = &mut data[..len as usize];
        let _ = match next(&mut random) % 6 {
            0 => disk.write_at(offset, part),
            1 => disk.discard(offset, len),
            2 => disk.write_zeroes(offset, len, len & 1 == 0),
            3 => disk.flush(),
            _ => disk.read_at(offset, part),
        };
    }
});
