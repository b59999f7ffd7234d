//! A raw disk: requests in and outside of it, and what its bytes may be guessed to be.
#![no_main]

use arbitrary::Arbitrary;
use block::{Format, OpenOptions, open};
use libfuzzer_sys::fuzz_target;
use lodge_fuzz::files::MemoryFile;

#[derive(Arbitrary, Debug)]
enum Request<'a> {
    Read(u64, u16),
    Write(u64, &'a [u8]),
    Near(u16, u16),
    Discard(u64, u64),
    Zeroes(u32, u16, bool),
    Flush,
}

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    first_sector: &'a [u8],
    sectors: u8,
    guess: bool,
    readonly: bool,
    requests: Vec<Request<'a>>,
}

fuzz_target!(|input: Input<'_>| {
    let mut bytes = input.first_sector.to_vec();
    bytes.resize(bytes.len().max(usize::from(input.sectors) * 512), 0);
    let file = MemoryFile::new(&bytes);
    let format = if input.guess { Format::Auto } else { Format::Raw };
    let options = OpenOptions::new(&file.path).format(format).readonly(input.readonly);
    let Ok(disk) = open(&options) else { return };
    let mut data = vec![0; 0x1_0000];
    for request in &input.requests {
        let _ = match request {
            Request::Read(offset, len) => disk.read_at(*offset, &mut data[..usize::from(*len)]),
            Request::Write(offset, data) => disk.write_at(*offset, data),
            Request::Near(offset, len) => {
                disk.write_at(u64::from(*offset), &data[..usize::from(*len)])
            }
            Request::Discard(offset, len) => disk.discard(*offset, *len),
            Request::Zeroes(offset, len, unmap) => {
                disk.write_zeroes(u64::from(*offset), u64::from(*len), *unmap)
            }
            Request::Flush => disk.flush(),
        };
    }
});
