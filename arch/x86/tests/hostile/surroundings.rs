//! RAM from address 0, and nothing else.

use std::cell::Cell;

use iced_x86::Instruction;
use x86::cpuid::CpuidResult;
use x86::{CpuState, Env, Exception, NativeOperand, Word};

pub const PAGE: usize = 4096;

/// What surrounds the processor of these tests.
pub struct Surroundings {
    pub ram: Vec<Cell<u8>>,
    /// How often the processor may ask for attention before it gets it.
    pub polls_left: Cell<u32>,
}

impl Surroundings {
    pub fn new(size: usize) -> Self {
        Self { ram: vec![Cell::new(0); size], polls_left: Cell::new(0) }
    }

    pub fn write(&self, at: usize, bytes: &[u8]) {
        self.ram[at..].iter().zip(bytes).for_each(|(cell, byte)| cell.set(*byte));
    }
}

impl Env for Surroundings {
    type Page = usize;

    fn ram_page(&self, gpa: u64) -> Option<usize> {
        (gpa < self.ram.len() as u64).then_some(gpa as usize & !(PAGE - 1))
    }

    fn load<W: Word>(&self, page: usize, offset: usize) -> W {
        let mut bytes = [0; 8];
        self.load_bytes(page, offset, &mut bytes[..W::SIZE]);
        W::truncate(u64::from_le_bytes(bytes))
    }

    fn store<W: Word>(&self, page: usize, offset: usize, value: W) {
        let value: u64 = value.into();
        self.store_bytes(page, offset, &value.to_le_bytes()[..W::SIZE]);
    }

    fn compare_exchange<W: Word>(&self, page: usize, at: usize, old: W, new: W) -> Result<W, W> {
        let now = self.load(page, at);
        if now != old {
            return Err(now);
        }
        self.store(page, at, new);
        Ok(now)
    }

    fn compare_exchange_128(&self, _: usize, _: usize, _: u128, _: u128) -> Result<u128, u128> {
        Ok(0)
    }

    fn load_bytes(&self, page: usize, offset: usize, data: &mut [u8]) {
        assert!(offset + data.len() <= PAGE);
        data.iter_mut().zip(&self.ram[page + offset..]).for_each(|(to, from)| *to = from.get());
    }

    fn matches(&self, page: usize, offset: usize, bytes: &[u8]) -> bool {
        bytes.iter().zip(&self.ram[page + offset..]).all(|(want, cell)| cell.get() == *want)
    }

    fn store_bytes(&self, page: usize, offset: usize, data: &[u8]) {
        assert!(offset + data.len() <= PAGE);
        self.write(page + offset, data);
    }

    fn mmio_read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&mut self, _: u64, _: &[u8]) {}
    fn port_read(&mut self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn port_write(&mut self, _: u16, _: &[u8]) {}
    fn read_msr(&mut self, _: u32) -> Option<u64> {
        None
    }
    fn write_msr(&mut self, _: u32, _: u64) -> Option<()> {
        None
    }
    fn host_tsc(&self) -> u64 {
        0
    }
    fn cpuid(&self, _: u32, _: u32) -> CpuidResult {
        CpuidResult::default()
    }
    fn read_cr8(&mut self) -> u64 {
        0
    }
    fn write_cr8(&mut self, _: u64) {}
    fn random(&mut self) -> u64 {
        0
    }
    fn attention(&self, _: bool, _: bool) -> bool {
        let left = self.polls_left.get();
        self.polls_left.set(left.saturating_sub(1));
        left == 0
    }
    fn tsc_offset_changed(&mut self, _: u64) {}
    fn execute_native(
        &mut self,
        _: &Instruction,
        _: &mut CpuState,
        _: &mut NativeOperand,
    ) -> Result<(), Exception> {
        Err(Exception::UD)
    }
}
