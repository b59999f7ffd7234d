//! A guest of a few pages, in which one instruction after the other is executed.

use std::cell::RefCell;
use std::collections::HashMap;

use iced_x86::Instruction;
use x86::cpuid::CpuidResult;
use x86::state::{Cr0, Cr4, DescriptorTable, Efer, SegReg, Segment, SegmentAttributes, gpr};
use x86::{Cpu, CpuState, Env, Exception, NativeOperand, Word};

use crate::native::NativeUnit;

const RAM: usize = 0x20_0000;
const PAGE_TABLE: u64 = 0x4000;
const GDT: u64 = 0x5000;
const IDT: u64 = 0x6000;
const CODE: u64 = 0x1_0000;
/// Where the handler of vector 0 lies; the next ones follow at distances of 16.
const HANDLERS: u64 = 0x1_1000;
const STACK: u64 = 0x1_8000;
/// Two pages for data. The page after them is not present.
pub const DATA: u64 = 0x2_0000;
pub const HOLE: u64 = DATA + 0x2000;

pub struct TestEnv {
    pub ram: RefCell<Vec<u8>>,
    pub unit: NativeUnit,
    /// Answers to CPUID that differ from the host's.
    pub cpuid: HashMap<(u32, u32), CpuidResult>,
    host_cpuid: RefCell<HashMap<(u32, u32), CpuidResult>>,
}

impl Env for TestEnv {
    type Page = usize;

    fn ram_page(&self, gpa: u64) -> Option<usize> {
        (gpa < RAM as u64).then_some(gpa as usize & !0xfff)
    }

    fn load<W: Word>(&self, page: usize, offset: usize) -> W {
        let mut data = [0; 8];
        self.load_bytes(page, offset, &mut data[..W::SIZE]);
        W::truncate(u64::from_le_bytes(data))
    }

    fn store<W: Word>(&self, page: usize, offset: usize, value: W) {
        let value: u64 = value.into();
        self.store_bytes(page, offset, &value.to_le_bytes()[..W::SIZE]);
    }

    fn compare_exchange<W: Word>(
        &self,
        page: usize,
        offset: usize,
        current: W,
        new: W,
    ) -> Result<W, W> {
        let old: W = self.load(page, offset);
        if old != current {
            return Err(old);
        }
        self.store(page, offset, new);
        Ok(old)
    }

    fn compare_exchange_128(&self, _: usize, _: usize, _: u128, _: u128) -> Result<u128, u128> {
        unreachable!("no test has CMPXCHG16B")
    }

    fn load_bytes(&self, page: usize, offset: usize, data: &mut [u8]) {
        assert!(offset + data.len() <= 0x1000);
        data.copy_from_slice(&self.ram.borrow()[page + offset..][..data.len()]);
    }

    fn matches(&self, page: usize, offset: usize, bytes: &[u8]) -> bool {
        self.ram.borrow()[page + offset..][..bytes.len()] == *bytes
    }

    fn store_bytes(&self, page: usize, offset: usize, data: &[u8]) {
        assert!(offset + data.len() <= 0x1000);
        self.ram.borrow_mut()[page + offset..][..data.len()].copy_from_slice(data);
    }

    fn mmio_read(&mut self, gpa: u64, _: &mut [u8]) {
        panic!("a read from {gpa:#x}");
    }
    fn mmio_write(&mut self, gpa: u64, _: &[u8]) {
        panic!("a write to {gpa:#x}");
    }
    fn port_read(&mut self, _: u16, _: &mut [u8]) {}
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

    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        if let Some(answer) = self.cpuid.get(&(leaf, subleaf)) {
            return *answer;
        }
        *self.host_cpuid.borrow_mut().entry((leaf, subleaf)).or_insert_with(|| {
            let r = std::arch::x86_64::__cpuid_count(leaf, subleaf);
            CpuidResult { eax: r.eax, ebx: r.ebx, ecx: r.ecx, edx: r.edx }
        })
    }

    fn read_cr8(&mut self) -> u64 {
        0
    }
    fn write_cr8(&mut self, _: u64) {}
    fn random(&mut self) -> u64 {
        0
    }
    fn attention(&self, _: bool, _: bool) -> bool {
        true
    }
    fn tsc_offset_changed(&mut self, _: u64) {}

    fn execute_native(
        &mut self,
        insn: &Instruction,
        state: &mut CpuState,
        memory: &mut NativeOperand,
    ) -> Result<(), Exception> {
        self.unit.execute(insn, state, memory)
    }
}

/// What an exception told its handler.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    pub vector: u8,
    /// CR2 of a page fault.
    pub address: u64,
}

impl Fault {
    /// Any but a page fault.
    pub fn of(vector: u8) -> Self {
        Self { vector, address: 0 }
    }
}

pub struct Guest {
    pub cpu: Cpu<TestEnv>,
}

impl Guest {
    /// 64-bit mode, privilege level 0, everything enabled that the host has.
    pub fn new() -> Self {
        let env = TestEnv {
            ram: RefCell::new(vec![0; RAM]),
            unit: NativeUnit::new().expect("executable memory"),
            cpuid: HashMap::new(),
            host_cpuid: RefCell::default(),
        };
        let mut state = CpuState::reset(0);
        state.cr0 = Cr0::PE | Cr0::PG | Cr0::ET | Cr0::NE | Cr0::MP | Cr0::WP;
        state.cr4 = Cr4::PAE | Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE;
        state.efer = Efer::LME | Efer::LMA;
        state.cr3 = 0x1000;
        state.xcr0 = match env.cpuid(0xd, 0).eax & 0xe7 {
            has if has & 0xe0 == 0xe0 => 0xe7,
            has if has & 4 != 0 => 7,
            _ => 3,
        };
        let segment = |selector, attributes| Segment { selector, base: 0, limit: !0, attributes };
        state.seg = [segment(0x10, SegmentAttributes::DATA32); 6];
        state.seg[SegReg::Cs as usize] = segment(8, SegmentAttributes::CODE64);
        state.gdtr = DescriptorTable { base: GDT, limit: 0x17 };
        state.idtr = DescriptorTable { base: IDT, limit: 0x1ff };
        state.vector.x87.fcw = 0x037f;
        state.vector.x87.ftw = 0;
        let mut guest = Self { cpu: Cpu::new(state, env) };
        for (table, next) in [(0x1000, 0x2000), (0x2000, 0x3000), (0x3000, PAGE_TABLE)] {
            guest.write_u64(table, next | 7);
        }
        for page in 0..512 {
            guest.write_u64(PAGE_TABLE + page * 8, page << 12 | 7);
        }
        guest.write_u64(PAGE_TABLE + (HOLE >> 12) * 8, 0);
        guest.write_u64(GDT + 8, 0x00af_9b00_0000_ffff);
        guest.write_u64(GDT + 16, 0x00cf_9300_0000_ffff);
        for vector in 0..32 {
            let handler = HANDLERS + vector * 16;
            let gate = handler & 0xffff | 8 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
            guest.write_u64(IDT + vector * 16, gate);
        }
        guest
    }

    pub fn state(&mut self) -> &mut CpuState {
        &mut self.cpu.state
    }

    pub fn write(&self, at: u64, data: &[u8]) {
        self.cpu.env.ram.borrow_mut()[at as usize..][..data.len()].copy_from_slice(data);
    }

    fn write_u64(&mut self, at: u64, value: u64) {
        self.write(at, &value.to_le_bytes());
    }

    pub fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        self.cpu.env.ram.borrow()[at as usize..][..N].try_into().expect("N bytes")
    }

    /// Makes the page at `HOLE` present or not.
    pub fn set_hole(&mut self, present: bool) {
        self.write_u64(PAGE_TABLE + (HOLE >> 12) * 8, if present { HOLE | 7 } else { 0 });
        self.cpu.state_changed();
    }

    /// Makes the page at `HOLE` present and read-only.
    pub fn set_hole_read_only(&mut self) {
        self.write_u64(PAGE_TABLE + (HOLE >> 12) * 8, HOLE | 5);
        self.cpu.state_changed();
    }

    /// Leaves 64-bit mode for 32-bit protected mode without paging.
    pub fn leave_long_mode(&mut self) {
        let state = &mut self.cpu.state;
        state.cr0 &= !Cr0::PG;
        state.efer = Efer::empty();
        state.seg[SegReg::Cs as usize].attributes = SegmentAttributes::CODE32;
        for vector in 0..32 {
            let handler = HANDLERS + vector * 16;
            let gate = handler & 0xffff | 8 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
            self.write_u64(IDT + vector * 8, gate);
        }
        self.write_u64(GDT + 8, 0x00cf_9b00_0000_ffff);
        self.cpu.state_changed();
    }

    /// Executes one instruction. After a fault, RIP is back at the instruction.
    pub fn try_run(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.write(CODE, bytes);
        self.cpu.state.rip = CODE;
        let rsp = self.cpu.state.gpr[gpr::RSP];
        self.cpu.state.gpr[gpr::RSP] = STACK;
        self.cpu.step();
        let rip = self.cpu.state.rip;
        if rip == CODE + bytes.len() as u64 {
            if self.cpu.state.gpr[gpr::RSP] == STACK {
                self.cpu.state.gpr[gpr::RSP] = rsp;
            }
            return Ok(());
        }
        assert!((HANDLERS..HANDLERS + 0x200).contains(&rip), "went to {rip:#x}");
        self.cpu.state.gpr[gpr::RSP] = rsp;
        self.cpu.state.rip = CODE;
        let vector = ((rip - HANDLERS) / 16) as u8;
        let address = if vector == x86::vector::PF { self.cpu.state.cr2 } else { 0 };
        Err(Fault { vector, address })
    }

    /// Executes one instruction that raises nothing.
    pub fn run(&mut self, bytes: &[u8]) {
        self.try_run(bytes).unwrap_or_else(|fault| panic!("{bytes:02x?}: {fault:?}"));
    }
}
