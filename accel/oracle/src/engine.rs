//! The engine's side: a guest that is nothing but a few pages, with handlers that halt.

use accel_soft::native::NativeUnit;
use iced_x86::Instruction;
use x86::cpuid::{CpuidResult, CpuidTable, Model};
use x86::state::{
    Activity, Cr0, Cr4, DescriptorTable, Efer, SegReg, Segment, SegmentAttributes, gpr,
};
use x86::{Cpu, CpuState, Env, Exception, NativeOperand, Stop, Word};

use crate::case::{Case, Outcome};
use crate::layout::{ALIAS, CODE, CODE_SIZE, DATA, DATA_SIZE, FILL, PAGE, selector};

/// Where things lie in guest physical memory.
pub(crate) mod frame {
    use super::PAGE;
    pub const PML4: usize = 0;
    pub const PDPT_LOW: usize = PAGE;
    pub const PD_LOW: usize = 2 * PAGE;
    pub const PT_CODE: usize = 3 * PAGE;
    pub const PT_DATA: usize = 4 * PAGE;
    pub const PDPT_ALIAS: usize = 5 * PAGE;
    pub const PD_ALIAS: usize = 6 * PAGE;
    pub const PDPT_KERNEL: usize = 7 * PAGE;
    pub const PD_KERNEL: usize = 8 * PAGE;
    pub const PT_KERNEL: usize = 9 * PAGE;
    pub const TABLES: usize = 10 * PAGE;
    pub const HANDLERS: usize = 11 * PAGE;
    pub const STACK: usize = 12 * PAGE;
    pub const CODE: usize = 13 * PAGE;
    pub const DATA: usize = 15 * PAGE;
    pub const END: usize = DATA + super::DATA_SIZE;
}
const GDT: usize = frame::TABLES;
const IDT: usize = frame::TABLES + 0x400;
const TSS: usize = frame::TABLES + 0x800;
/// Linear address of guest physical address 0, for the supervisor.
pub(crate) const KERNEL: u64 = 0xffff_8000_0000_0000;
const VECTORS: usize = 32;
pub(crate) const HANDLER_SIZE: u64 = 16;
/// How a handler here ends a case: HLT, JMP $-1.
const HALT: [u8; 4] = [0xf4, 0xeb, 0xfd, 0x90];
const KERNEL_CODE: u16 = 0x10;

/// A case never needs more blocks than this.
const MOST_BLOCKS: u32 = 100_000;

/// What surrounds the processor: RAM, CPUID, and the unit that runs vector instructions.
struct Surroundings {
    ram: *mut [u8],
    cpuid: CpuidTable,
    native: NativeUnit,
    blocks: std::cell::Cell<u32>,
}

impl Surroundings {
    fn bytes(&self, at: usize, len: usize) -> *mut u8 {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.ram.len()), "not RAM");
        // SAFETY: `at` lies in the allocation.
        unsafe { self.ram.cast::<u8>().add(at) }
    }
}

impl Env for Surroundings {
    type Page = usize;

    fn ram_page(&self, gpa: u64) -> Option<usize> {
        (gpa < frame::END as u64).then_some(gpa as usize & !(PAGE - 1))
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
        assert!(offset + data.len() <= PAGE, "access leaves its page");
        // SAFETY: `bytes` checks the range; nothing holds a reference into RAM.
        unsafe {
            let from = self.bytes(page + offset, data.len());
            std::ptr::copy_nonoverlapping(from, data.as_mut_ptr(), data.len());
        }
    }

    fn matches(&self, page: usize, offset: usize, bytes: &[u8]) -> bool {
        let mut now = [0; PAGE];
        self.load_bytes(page, offset, &mut now[..bytes.len()]);
        now[..bytes.len()] == *bytes
    }

    fn store_bytes(&self, page: usize, offset: usize, data: &[u8]) {
        assert!(offset + data.len() <= PAGE, "access leaves its page");
        // SAFETY: as in `load_bytes`.
        unsafe {
            let to = self.bytes(page + offset, data.len());
            std::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len());
        }
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
    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        self.cpuid.get(leaf, subleaf).unwrap_or_default()
    }
    fn read_cr8(&mut self) -> u64 {
        0
    }
    fn write_cr8(&mut self, _: u64) {}
    fn random(&mut self) -> u64 {
        0
    }
    fn attention(&self, _: bool, _: bool) -> bool {
        self.blocks.set(self.blocks.get() + 1);
        self.blocks.get() > MOST_BLOCKS
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

/// The guest.
pub struct Engine {
    cpu: Cpu<Surroundings>,
    base: CpuState,
    ram: Box<[u8]>,
}

/// The host's CPUID.
pub fn host_cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    let r = std::arch::x86_64::__cpuid_count(leaf, subleaf);
    CpuidResult { eax: r.eax, ebx: r.ebx, ecx: r.ecx, edx: r.edx }
}

impl Engine {
    /// Makes the guest. Its processor is the one that guests get on this host.
    pub fn new() -> std::io::Result<Self> {
        let mut ram = vec![0; frame::END].into_boxed_slice();
        build_tables(&mut ram, HALT);
        let cpuid = x86::cpuid::build(Model::Host, host_cpuid, 1_000_000_000)
            .map_err(|_| std::io::Error::other("this host lacks what every guest gets"))?
            .for_processor(0, 1);
        let base = base_state(&cpuid);
        let surroundings = Surroundings {
            ram: &raw mut *ram,
            cpuid,
            native: NativeUnit::new()?,
            blocks: std::cell::Cell::new(0),
        };
        Ok(Self { cpu: Cpu::new(base.clone(), surroundings), base, ram })
    }

    /// Whether CPUID tells the guest that it has not got an instruction.
    pub fn denies(&self, code: iced_x86::Code) -> bool {
        let cpuid = &self.cpu.env.cpuid;
        x86::features::denies_instruction(code, |leaf, subleaf| {
            cpuid.get(leaf, subleaf).unwrap_or_default()
        })
    }

    /// Components that XCR0 enables.
    pub fn xcr0(&self) -> u64 {
        self.base.xcr0
    }

    /// Runs `case`, whose data pages start as `image`, patched.
    pub fn run(&mut self, case: &Case, image: &[u8; DATA_SIZE], outcome: &mut Outcome) {
        self.load_memory(case, image);
        let mut state = self.base.clone();
        load_case(&mut state, case);
        self.cpu.state = state;
        self.cpu.env.blocks.set(0);
        self.cpu.state_changed();
        let stop = self.cpu.run();
        self.collect(stop, outcome);
    }

    fn load_memory(&mut self, case: &Case, image: &[u8; DATA_SIZE]) {
        // The processor holds a pointer to the same memory, and is not running.
        self.ram[frame::CODE..frame::CODE + CODE_SIZE].fill(FILL);
        let at = frame::CODE + (case.start - CODE) as usize;
        let room = (frame::DATA - at).min(case.code.len());
        self.ram[at..at + room].copy_from_slice(&case.code[..room]);
        let data = self.ram[frame::DATA..].first_chunk_mut::<DATA_SIZE>();
        if let Some(data) = data {
            *data = *image;
            case.patches.iter().for_each(|patch| patch.apply(data));
        }
        self.cpu.env.ram = &raw mut *self.ram;
    }

    fn collect(&mut self, stop: Stop, outcome: &mut Outcome) {
        let data = &self.ram[frame::DATA..];
        outcome.data.copy_from_slice(&data[..DATA_SIZE]);
        let state = &self.cpu.state;
        let has_ended = state.activity == Activity::Halted && state.cpl() == 0;
        collect(state, has_ended, &self.ram[frame::STACK..frame::STACK + PAGE], outcome);
        if stop == Stop::Attention {
            outcome.trap = Outcome::ENDLESS;
        }
    }
}

/// Puts the registers of `case` into `state`, which is the base state.
pub(crate) fn load_case(state: &mut CpuState, case: &Case) {
    state.gpr = case.gpr;
    state.rip = case.start;
    state.rflags = case.rflags | 1 << 9;
    state.seg[SegReg::Fs as usize].base = case.fs_base;
    state.seg[SegReg::Gs as usize].base = case.gs_base;
    if case.is_32bit != 0 {
        state.seg[SegReg::Cs as usize] = segment(selector::USER_CODE32, 0xc0fb);
    }
    let mask = state.vector.x87.mxcsr_mask;
    state.vector = case.vector.clone();
    state.vector.x87.mxcsr_mask = mask;
}

/// Fills in all of an outcome but for the data, from the state in an exception's handler and the
/// page of its stack. If the processor does not stand there, it has shut down.
pub(crate) fn collect(state: &CpuState, has_ended: bool, stack: &[u8], outcome: &mut Outcome) {
    outcome.gpr = state.gpr;
    outcome.fs_base = state.segment(SegReg::Fs).base;
    outcome.gs_base = state.segment(SegReg::Gs).base;
    outcome.vector = state.vector.clone();
    outcome.error = 0;
    outcome.cr2 = 0;
    outcome.rip = state.rip;
    outcome.rflags = state.rflags;
    if !has_ended {
        outcome.trap = Outcome::SHUTDOWN;
        return;
    }
    let handlers = KERNEL + frame::HANDLERS as u64;
    outcome.trap = (state.rip.wrapping_sub(handlers) / HANDLER_SIZE) as u32;
    // The frame: error code if any, RIP, CS, RFLAGS, RSP, SS.
    let mut at = state.gpr[gpr::RSP].wrapping_sub(KERNEL + frame::STACK as u64) as usize;
    let mut pop = || {
        let bytes = at.checked_add(8).and_then(|end| stack.get(at..end));
        at = at.wrapping_add(8);
        bytes.map_or(0, |b| u64::from_le_bytes(b.try_into().unwrap_or_default()))
    };
    if matches!(outcome.trap, 8 | 10..=14 | 17) {
        outcome.error = pop() as u32;
    }
    outcome.rip = pop();
    pop();
    outcome.rflags = pop();
    outcome.gpr[gpr::RSP] = pop();
    if outcome.trap == 14 {
        outcome.cr2 = state.cr2;
    }
}

/// The writable bits of the host's MXCSR.
fn mxcsr_mask() -> u32 {
    #[repr(align(16))]
    struct Area([u8; 512]);
    let mut area = Area([0; 512]);
    // SAFETY: stores 512 bytes to a variable of that size.
    unsafe { std::arch::asm!("fxsave [{}]", in(reg) &mut area, options(nostack)) };
    u32::from_le_bytes([area.0[28], area.0[29], area.0[30], area.0[31]])
}

fn segment(selector: u16, attributes: u32) -> Segment {
    Segment { selector, base: 0, limit: u32::MAX, attributes: SegmentAttributes(attributes) }
}

/// The state that a case is put into: user mode, as under Linux.
pub(crate) fn base_state(cpuid: &CpuidTable) -> CpuState {
    let mut state = CpuState::reset(0);
    // MXCSR.MM, which no guest is offered, would differ in every FXSAVE area.
    state.vector.x87.mxcsr_mask = mxcsr_mask();
    state.cr0 = Cr0::PE | Cr0::MP | Cr0::ET | Cr0::NE | Cr0::WP | Cr0::AM | Cr0::PG;
    state.cr3 = frame::PML4 as u64;
    // As Linux sets it.
    state.cr4 = Cr4::DE
        | Cr4::PSE
        | Cr4::PAE
        | Cr4::MCE
        | Cr4::PGE
        | Cr4::OSFXSR
        | Cr4::OSXMMEXCPT
        | Cr4::UMIP
        | Cr4::FSGSBASE
        | Cr4::OSXSAVE
        | Cr4::SMEP
        | Cr4::SMAP;
    state.efer = Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE;
    state.xcr0 = cpuid.get(0xd, 0).unwrap_or_default().eax.into();
    state.seg = [segment(selector::USER_DATA, 0xc0f3); 6];
    state.seg[SegReg::Cs as usize] = segment(selector::USER_CODE64, 0xa0fb);
    state.gdtr = DescriptorTable { base: KERNEL + GDT as u64, limit: 0x7f };
    state.idtr = DescriptorTable { base: KERNEL + IDT as u64, limit: (VECTORS * 16 - 1) as u16 };
    state.tr = Segment {
        selector: 0x40,
        base: KERNEL + TSS as u64,
        limit: 0x67,
        attributes: SegmentAttributes::TSS_BUSY,
    };
    state
}

/// Fills in page tables and descriptor tables; each exception's handler is `handler`.
pub(crate) fn build_tables(ram: &mut [u8], handler: [u8; 4]) {
    let mut put = |at: usize, value: u64| ram[at..at + 8].copy_from_slice(&value.to_le_bytes());
    const P: u64 = 1;
    const RW: u64 = 2;
    const US: u64 = 4;
    const XD: u64 = 1 << 63;
    const USER: u64 = P | RW | US;
    let index = |linear: u64, level: u32| (linear >> (12 + 9 * level) & 511) as usize * 8;

    put(frame::PML4 + index(CODE, 3), frame::PDPT_LOW as u64 | USER);
    put(frame::PDPT_LOW + index(CODE, 2), frame::PD_LOW as u64 | USER);
    put(frame::PD_LOW + index(CODE, 1), frame::PT_CODE as u64 | USER);
    for i in 0..CODE_SIZE / PAGE {
        let linear = CODE + (i * PAGE) as u64;
        put(frame::PT_CODE + index(linear, 0), (frame::CODE + i * PAGE) as u64 | P | US);
    }
    let first = DATA[0].linear;
    put(frame::PD_LOW + index(first, 1), frame::PT_DATA as u64 | USER);
    put(frame::PML4 + index(ALIAS + first, 3), frame::PDPT_ALIAS as u64 | USER);
    put(frame::PDPT_ALIAS + index(ALIAS + first, 2), frame::PD_ALIAS as u64 | USER);
    put(frame::PD_ALIAS + index(ALIAS + first, 1), frame::PT_DATA as u64 | USER);
    for (i, page) in DATA.iter().enumerate() {
        let rights = if page.is_writable { USER } else { P | US };
        let entry = (frame::DATA + i * PAGE) as u64 | rights | XD;
        put(frame::PT_DATA + index(page.linear, 0), entry);
    }
    put(frame::PML4 + index(KERNEL, 3), frame::PDPT_KERNEL as u64 | P | RW);
    put(frame::PDPT_KERNEL + index(KERNEL, 2), frame::PD_KERNEL as u64 | P | RW);
    put(frame::PD_KERNEL + index(KERNEL, 1), frame::PT_KERNEL as u64 | P | RW);
    for at in [frame::TABLES, frame::HANDLERS, frame::STACK] {
        put(frame::PT_KERNEL + index(at as u64, 0), at as u64 | P | RW);
    }

    for (i, descriptor) in [
        (2, 0x00af_9b00_0000_ffff_u64), // kernel code
        (3, 0x00cf_9300_0000_ffff),     // kernel data
        (4, 0x00cf_fb00_0000_ffff),     // user code, 32 bit
        (5, 0x00cf_f300_0000_ffff),     // user data
        (6, 0x00af_fb00_0000_ffff),     // user code, 64 bit
    ] {
        put(GDT + i * 8, descriptor);
    }
    for vector in 0..VECTORS {
        let handler = KERNEL + frame::HANDLERS as u64 + vector as u64 * HANDLER_SIZE;
        let kind = if vector == 3 || vector == 4 { 0xee } else { 0x8e };
        let low = handler & 0xffff
            | u64::from(KERNEL_CODE) << 16
            | kind << 40
            | (handler >> 16 & 0xffff) << 48;
        put(IDT + vector * 16, low);
        put(IDT + vector * 16 + 8, handler >> 32);
    }
    let stack = KERNEL + (frame::STACK + PAGE) as u64;
    put(TSS + 4, stack);
    for code in ram[frame::HANDLERS..frame::STACK].chunks_exact_mut(HANDLER_SIZE as usize) {
        code[..4].copy_from_slice(&handler);
    }
}
