//! What surrounds the processor: RAM from 0, and nothing else but noise.

use std::cell::Cell;

use accel_soft::native::NativeUnit;
use iced_x86::Instruction;
use x86::cpuid::{CpuidResult, CpuidTable};
use x86::{CpuState, Env, Exception, NativeOperand, Word};

use super::layout::RAM_SIZE;
use crate::files::next;

const PAGE: usize = 4096;

/// RAM, devices that answer with noise, and the unit that runs vector instructions.
pub struct Surroundings {
    ram: Box<[Cell<u8>]>,
    /// CPUID.
    pub cpuid: CpuidTable,
    native: NativeUnit,
    /// How often the processor may still ask for attention before it gets it.
    pub polls_left: Cell<u32>,
    noise: u64,
}

impl Surroundings {
    /// RAM full of zeroes.
    pub fn new(cpuid: CpuidTable) -> Self {
        Self {
            ram: vec![Cell::new(0); RAM_SIZE].into(),
            cpuid,
            native: NativeUnit::new().unwrap(),
            polls_left: Cell::new(0),
            noise: 1,
        }
    }

    /// Begins anew, with `ram`.
    pub fn reset(&mut self, ram: &[u8]) {
        self.ram.iter().zip(ram).for_each(|(cell, byte)| cell.set(*byte));
        self.noise = 1;
    }

    /// What is in RAM.
    pub fn ram(&self) -> Vec<u8> {
        self.ram.iter().map(Cell::get).collect()
    }

    fn bytes(&self, page: usize, offset: usize, len: usize) -> &[Cell<u8>] {
        assert!(offset + len <= PAGE, "an access leaves its page");
        &self.ram[page + offset..page + offset + len]
    }
}

impl Env for Surroundings {
    type Page = usize;

    fn ram_page(&self, gpa: u64) -> Option<usize> {
        (gpa < RAM_SIZE as u64).then_some(gpa as usize & !(PAGE - 1))
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

    fn compare_exchange_128(
        &self,
        page: usize,
        at: usize,
        old: u128,
        new: u128,
    ) -> Result<u128, u128> {
        assert_eq!(at % 16, 0, "an unaligned 16-byte exchange");
        let mut bytes = [0; 16];
        self.load_bytes(page, at, &mut bytes);
        let now = u128::from_le_bytes(bytes);
        if now != old {
            return Err(now);
        }
        self.store_bytes(page, at, &new.to_le_bytes());
        Ok(now)
    }

    fn load_bytes(&self, page: usize, offset: usize, data: &mut [u8]) {
        let bytes = self.bytes(page, offset, data.len());
        data.iter_mut().zip(bytes).for_each(|(to, from)| *to = from.get());
    }

    fn matches(&self, page: usize, offset: usize, bytes: &[u8]) -> bool {
        self.bytes(page, offset, bytes.len()).iter().map(Cell::get).eq(bytes.iter().copied())
    }

    fn store_bytes(&self, page: usize, offset: usize, data: &[u8]) {
        let bytes = self.bytes(page, offset, data.len());
        bytes.iter().zip(data).for_each(|(to, from)| to.set(*from));
    }

    fn mmio_read(&mut self, gpa: u64, data: &mut [u8]) {
        assert!(matches!(data.len(), 1..=8), "{} bytes of MMIO", data.len());
        assert!(gpa >= RAM_SIZE as u64, "MMIO where RAM is");
        data.copy_from_slice(&next(&mut self.noise).to_le_bytes()[..data.len()]);
    }

    fn mmio_write(&mut self, gpa: u64, data: &[u8]) {
        assert!(matches!(data.len(), 1..=8), "{} bytes of MMIO", data.len());
        assert!(gpa >= RAM_SIZE as u64, "MMIO where RAM is");
    }

    fn port_read(&mut self, _: u16, data: &mut [u8]) {
        assert!(matches!(data.len(), 1 | 2 | 4), "IN of {} bytes", data.len());
        data.copy_from_slice(&next(&mut self.noise).to_le_bytes()[..data.len()]);
    }

    fn port_write(&mut self, _: u16, data: &[u8]) {
        assert!(matches!(data.len(), 1 | 2 | 4), "OUT of {} bytes", data.len());
    }

    fn read_msr(&mut self, index: u32) -> Option<u64> {
        (index & 1 == 0).then_some(index.into())
    }

    fn write_msr(&mut self, index: u32, _: u64) -> Option<()> {
        (index & 1 == 0).then_some(())
    }

    fn host_tsc(&self) -> u64 {
        0x1234_5678_9abc_def0
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        self.cpuid.get(leaf, subleaf).unwrap_or_default()
    }

    fn read_cr8(&mut self) -> u64 {
        next(&mut self.noise) & 15
    }

    fn write_cr8(&mut self, value: u64) {
        assert!(value < 16, "CR8 = {value:#x}");
    }

    fn random(&mut self) -> u64 {
        next(&mut self.noise)
    }

    fn attention(&self, _: bool, _: bool) -> bool {
        let left = self.polls_left.get();
        self.polls_left.set(left.saturating_sub(1));
        left == 0
    }

    fn tsc_offset_changed(&mut self, _: u64) {}

    fn execute_native(
        &mut self,
        insn: &Instruction,
        state: &mut CpuState,
        memory: &mut NativeOperand,
    ) -> Result<(), Exception> {
        self.native.execute(insn, state, memory)
    }
}
