//! The block device's queues, over a disk in memory that must see only requests that fit it.
#![no_main]

use std::io;
use std::sync::{Arc, Mutex};

use block::Disk;
use libfuzzer_sys::fuzz_target;
use lodge_fuzz::virtio::Driver;
use lodge_fuzz::wiring;
use virtio::BlockOptions;

const SIZE: u64 = 0x8000;

struct MemoryDisk(Mutex<Vec<u8>>);

impl MemoryDisk {
    fn with(&self, offset: u64, len: u64, act: impl FnOnce(&mut [u8])) -> io::Result<()> {
        let end = offset.checked_add(len).filter(|end| *end <= SIZE).expect("a request that fits");
        act(&mut self.0.lock().unwrap()[offset as usize..end as usize]);
        Ok(())
    }
}

impl Disk for MemoryDisk {
    fn size(&self) -> u64 {
        SIZE
    }
    fn is_readonly(&self) -> bool {
        false
    }
    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.with(offset, data.len() as u64, |bytes| data.copy_from_slice(bytes))
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with(offset, data.len() as u64, |bytes| bytes.copy_from_slice(data))
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.with(offset, len, |_| {})
    }
    fn write_zeroes(&self, offset: u64, len: u64, _: bool) -> io::Result<()> {
        self.with(offset, len, |bytes| bytes.fill(0))
    }
}

fuzz_target!(|driver: Driver<'_>| {
    let memory = wiring::ram();
    let disk = Arc::new(MemoryDisk(Mutex::new(vec![7; SIZE as usize])));
    let options = BlockOptions { queues: 2, ..BlockOptions::default() };
    driver.drive(virtio::block(disk, options, memory.clone()).unwrap(), &memory);
});
