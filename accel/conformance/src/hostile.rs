//! A guest that means harm: it writes nonsense to every port, to devices' addresses and to every
//! range of MSRs, for a bounded time, and minds no exception. Nothing that it does may harm the
//! VMM; the guest itself may perish.

use iced_x86::code_asm::*;
use iced_x86::{BlockEncoderOptions, IcedError};

/// Where the image is loaded and entered.
pub const LOAD: u32 = 0x10_0000;
/// Its page tables and stack lie from [`LOAD`] to here, so this much RAM is needed.
pub const END: u32 = 0x40_0000;

/// What to do, and what to leave alone.
#[derive(Clone, Debug)]
pub struct Hostile {
    /// Of the pseudo-random numbers, not zero. Equal seeds do equal things.
    pub seed: u64,
    /// How many random accesses follow the sweeps over all ports and MSRs.
    pub rounds: u32,
    /// Ports that are read only, since a store ends or resets the machine.
    pub spared_ports: Vec<u16>,
    /// Device addresses to play with: start and length of each, a multiple of 4096, below 64 GiB.
    pub windows: Vec<(u64, u64)>,
    /// Where a byte is written at the end.
    pub exit_port: u16,
}

impl Default for Hostile {
    /// The local APIC, the I/O APIC, and a PC's holes below 4 GiB; exit by port F4H, reset ports
    /// spared.
    fn default() -> Self {
        Self {
            seed: 0x9e37_79b9_7f4a_7c15,
            rounds: 200_000,
            spared_ports: vec![0x64, 0x92, 0xcf9, 0xf4, 0xf5, 0xf6, 0xf7],
            windows: vec![
                (0xa_0000, 0x6_0000),
                (0xc000_0000, 0x3000_0000),
                (0xfec0_0000, 0x1000),
                (0xfee0_0000, 0x1000),
            ],
            exit_port: 0xf4,
        }
    }
}

/// Ranges of MSRs that the sweep covers: first and number.
const MSRS: [(u32, u32); 7] = [
    (0, 0x2000),
    (0x4000_0000, 0x200),
    (0x4b56_4d00, 0x10),
    (0x8000_0000, 0x10),
    (0xc000_0000, 0x2000),
    (0xc001_0000, 0x2000),
    (0xffff_ff00, 0x100),
];

/// 64 page directories for 64 GiB, and the two tables above them.
const PML4: u32 = 0x20_0000;
const PDPT: u32 = 0x20_1000;
const DIRECTORIES: u32 = 0x20_2000;
const GIBIBYTES: u32 = 64;
const IDT: u32 = 0x30_0000;
const STACK: u32 = 0x3f_0000;
/// The guest counts its sweeps here: 2 at the end of the last one.
pub const PROGRESS: u32 = 0x3f_8000;
/// What is loaded into DS and so on.
const CODE64: u16 = 8;

/// A flat multiboot kernel (Multiboot Specification 0.6.96) that does what `plan` says.
pub fn image(plan: &Hostile) -> Vec<u8> {
    const HEADER: usize = 32;
    /// The address fields are valid.
    const FLAGS: u32 = 1 << 16;
    const MAGIC: u32 = 0x1bad_b002;
    let entry = LOAD + HEADER as u32;
    let code = program(plan, entry).expect("the program can be assembled");
    let load_end = LOAD + HEADER as u32 + code.len() as u32;
    let checksum = 0u32.wrapping_sub(MAGIC).wrapping_sub(FLAGS);
    let mut image: Vec<u8> = [MAGIC, FLAGS, checksum, LOAD, LOAD, load_end, END, entry]
        .into_iter()
        .flat_map(u32::to_le_bytes)
        .collect();
    image.extend(code);
    image
}

/// 32-bit code that enters 64-bit mode, the GDT, and the 64-bit code.
fn program(plan: &Hostile, entry: u32) -> Result<Vec<u8>, IcedError> {
    /// The first part's length, and the tables behind it.
    const FIRST: u32 = 0x100;
    const TABLES: u32 = 0x40;
    let gdt = entry + FIRST;
    let rest = gdt + TABLES;
    let mut bytes = enter_long_mode(gdt, rest)?.assemble(entry.into())?;
    assert!(bytes.len() <= FIRST as usize, "the first part has its place");
    bytes.resize(FIRST as usize, 0x90);
    for descriptor in [0u64, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff] {
        bytes.extend(descriptor.to_le_bytes());
    }
    // GDTR and IDTR.
    bytes.extend(23u16.to_le_bytes());
    bytes.extend(u64::from(gdt).to_le_bytes());
    bytes.extend(0xfffu16.to_le_bytes());
    bytes.extend(u64::from(IDT).to_le_bytes());
    bytes.resize((FIRST + TABLES) as usize, 0);
    bytes.extend(assault(plan, rest)?);
    Ok(bytes)
}

fn enter_long_mode(gdt: u32, rest: u32) -> Result<CodeAssembler, IcedError> {
    let mut a = CodeAssembler::new(32)?;
    a.cli()?;
    a.mov(esp, STACK)?;
    // 64 GiB in pages of 2 MiB, all to themselves.
    a.mov(dword_ptr(PML4), (PDPT | 3) as i32)?;
    a.mov(ecx, GIBIBYTES)?;
    a.mov(edi, PDPT)?;
    a.mov(eax, DIRECTORIES | 3)?;
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.mov(dword_ptr(edi), eax)?;
    a.add(eax, 0x1000)?;
    a.add(edi, 8)?;
    a.dec(ecx)?;
    a.jne(again)?;
    a.mov(edi, DIRECTORIES)?;
    a.xor(edx, edx)?;
    a.mov(eax, 0x83)?;
    a.mov(ecx, GIBIBYTES * 512)?;
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.mov(dword_ptr(edi), eax)?;
    a.mov(dword_ptr(edi + 4), edx)?;
    a.add(eax, 0x20_0000)?;
    a.adc(edx, 0)?;
    a.add(edi, 8)?;
    a.dec(ecx)?;
    a.jne(again)?;
    a.mov(eax, cr4)?;
    a.or(eax, 0x20)?;
    a.mov(cr4, eax)?;
    a.mov(eax, PML4)?;
    a.mov(cr3, eax)?;
    a.mov(ecx, 0xc000_0080u32)?;
    a.rdmsr()?;
    a.or(eax, 0x100)?;
    a.wrmsr()?;
    a.mov(eax, cr0)?;
    a.or(eax, 0x8000_0001u32 as i32)?;
    a.mov(cr0, eax)?;
    a.lgdt(ptr(gdt + 24))?;
    a.jmp_far(CODE64, rest)?;
    Ok(a)
}

/// Registers that the 64-bit code keeps: RBP is the random number, R15 where exceptions go on.
struct Assault<'a> {
    a: CodeAssembler,
    plan: &'a Hostile,
}

fn assault(plan: &Hostile, base: u32) -> Result<Vec<u8>, IcedError> {
    let mut this = Assault { a: CodeAssembler::new(64)?, plan };
    // The GDT's pointers lie before this code.
    let idtr = base - 0x40 + 24 + 10;
    let (plain, coded) = (this.a.create_label(), this.a.create_label());
    this.install_handlers(idtr, plain, coded)?;
    this.a.mov(rbp, plan.seed | 1)?;
    this.sweep_ports()?;
    this.sweep_msrs()?;
    this.random_rounds()?;
    this.finish(plain, coded)?;
    let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    Ok(this.a.assemble_options(base.into(), options)?.inner.code_buffer)
}

type Step = Result<(), IcedError>;

impl Assault<'_> {
    /// All vectors lead to handlers that go on at R15.
    fn install_handlers(&mut self, idtr: u32, plain: CodeLabel, coded: CodeLabel) -> Step {
        /// Vectors below 32 that push an error code.
        const CODED: u32 = 1 << 8 | 0x1f << 10 | 1 << 17 | 1 << 21 | 1 << 29 | 1 << 30;
        let a = &mut self.a;
        a.mov(eax, 0x10)?;
        a.mov(ss, eax)?;
        a.mov(ds, eax)?;
        a.mov(es, eax)?;
        a.mov(esp, STACK)?;
        a.mov(ebx, CODED)?;
        a.xor(ecx, ecx)?;
        a.mov(edi, IDT)?;
        let (mut again, mut has_code, mut ready) =
            (a.create_label(), a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.cmp(ecx, 32)?;
        a.lea(rax, ptr(plain))?;
        a.jae(ready)?;
        a.bt(ebx, ecx)?;
        a.jb(has_code)?;
        a.jmp(ready)?;
        a.set_label(&mut has_code)?;
        a.lea(rax, ptr(coded))?;
        a.set_label(&mut ready)?;
        // Offset, selector, present interrupt gate.
        a.mov(word_ptr(rdi), ax)?;
        a.mov(word_ptr(rdi + 2), i32::from(CODE64))?;
        a.mov(word_ptr(rdi + 4), 0x8e00)?;
        a.shr(eax, 16)?;
        a.mov(word_ptr(rdi + 6), ax)?;
        a.mov(qword_ptr(rdi + 8), 0)?;
        a.add(edi, 16)?;
        a.inc(ecx)?;
        a.cmp(ecx, 256)?;
        a.jb(again)?;
        a.mov(eax, idtr)?;
        a.lidt(ptr(rax))
    }

    /// The next random number, in RBP (xorshift64). Clobbers RAX.
    fn random(&mut self) -> Step {
        let a = &mut self.a;
        a.mov(rax, rbp)?;
        a.shl(rax, 13)?;
        a.xor(rbp, rax)?;
        a.mov(rax, rbp)?;
        a.shr(rax, 7)?;
        a.xor(rbp, rax)?;
        a.mov(rax, rbp)?;
        a.shl(rax, 17)?;
        a.xor(rbp, rax)
    }

    /// An instruction that may fault: what follows is where it goes on.
    fn risk(&mut self, insn: impl FnOnce(&mut CodeAssembler) -> Step) -> Step {
        let mut after = self.a.create_label();
        self.a.lea(r15, ptr(after))?;
        insn(&mut self.a)?;
        self.a.set_label(&mut after)?;
        self.a.zero_bytes()
    }

    /// Reads and writes the port in DX in all widths, unless it is spared.
    fn attack_port(&mut self) -> Step {
        self.risk(|a| a.in_(al, dx))?;
        self.risk(|a| a.in_(ax, dx))?;
        self.risk(|a| a.in_(eax, dx))?;
        let mut spared = self.a.create_label();
        for &port in &self.plan.spared_ports {
            // An access of four bytes reaches it from below.
            self.a.mov(eax, u32::from(port))?;
            self.a.sub(eax, edx)?;
            self.a.cmp(eax, 4)?;
            self.a.jb(spared)?;
        }
        self.random()?;
        self.a.mov(rax, rbp)?;
        self.risk(|a| a.out(dx, al))?;
        self.risk(|a| a.out(dx, ax))?;
        self.risk(|a| a.out(dx, eax))?;
        self.a.set_label(&mut spared)?;
        self.a.zero_bytes()
    }

    fn sweep_ports(&mut self) -> Step {
        let mut again = self.a.create_label();
        self.a.xor(edx, edx)?;
        self.a.set_label(&mut again)?;
        self.attack_port()?;
        self.a.inc(edx)?;
        self.a.cmp(edx, 0x1_0000)?;
        self.a.jb(again)?;
        self.a.mov(dword_ptr(PROGRESS), 1)
    }

    /// Reads the MSR in ECX, and writes back what was read, and nonsense. INIT to itself, by the
    /// x2APIC's ICR, would end the guest too soon.
    fn attack_msr(&mut self) -> Step {
        let mut spared = self.a.create_label();
        self.a.cmp(ecx, 0x830)?;
        self.a.je(spared)?;
        self.risk(|a| a.rdmsr())?;
        self.risk(|a| a.wrmsr())?;
        self.random()?;
        self.a.mov(rax, rbp)?;
        self.a.mov(rdx, rbp)?;
        self.a.shr(rdx, 32)?;
        self.risk(|a| a.wrmsr())?;
        self.a.set_label(&mut spared)?;
        self.a.zero_bytes()
    }

    fn sweep_msrs(&mut self) -> Step {
        for (first, count) in MSRS {
            let mut again = self.a.create_label();
            self.a.mov(ebx, first)?;
            self.a.mov(edi, count)?;
            self.a.set_label(&mut again)?;
            self.a.mov(ecx, ebx)?;
            self.attack_msr()?;
            self.a.inc(ebx)?;
            self.a.dec(edi)?;
            self.a.jne(again)?;
        }
        self.a.mov(dword_ptr(PROGRESS), 2)
    }

    /// Loads and stores in all widths at RBX.
    fn attack_memory(&mut self) -> Step {
        // The local APIC's ICR: see attack_msr.
        let mut spared = self.a.create_label();
        self.a.mov(eax, 0xfee0_0300u32)?;
        self.a.sub(rax, rbx)?;
        self.a.cmp(rax, 8)?;
        self.a.jbe(spared)?;
        self.risk(|a| a.mov(al, byte_ptr(rbx)))?;
        self.risk(|a| a.mov(ax, word_ptr(rbx)))?;
        self.risk(|a| a.mov(eax, dword_ptr(rbx)))?;
        self.risk(|a| a.mov(rax, qword_ptr(rbx)))?;
        self.random()?;
        self.risk(|a| a.mov(byte_ptr(rbx), bpl))?;
        self.risk(|a| a.mov(word_ptr(rbx), bp))?;
        self.risk(|a| a.mov(dword_ptr(rbx), ebp))?;
        self.risk(|a| a.mov(qword_ptr(rbx), rbp))?;
        self.risk(|a| a.lock().add(dword_ptr(rbx), ebp))?;
        self.a.mov(edi, ebx)?;
        self.a.mov(ecx, 3)?;
        self.risk(|a| a.rep().stosd())?;
        self.a.set_label(&mut spared)?;
        self.a.zero_bytes()
    }

    /// Random ports, MSRs and addresses.
    fn random_rounds(&mut self) -> Step {
        let mut again = self.a.create_label();
        self.a.mov(r14d, self.plan.rounds)?;
        self.a.set_label(&mut again)?;
        self.random()?;
        self.a.movzx(edx, bp)?;
        self.attack_port()?;
        for &(start, len) in &self.plan.windows {
            self.random()?;
            // An offset in the window, mostly aligned.
            self.a.mov(rax, rbp)?;
            self.a.shr(rax, 8)?;
            self.a.xor(edx, edx)?;
            self.a.mov(rcx, len.max(1))?;
            self.a.div(rcx)?;
            self.a.mov(rbx, start)?;
            self.a.add(rbx, rdx)?;
            let mut odd = self.a.create_label();
            self.a.test(bpl, 7)?;
            self.a.je(odd)?;
            self.a.and(rbx, !0xf)?;
            self.a.set_label(&mut odd)?;
            self.a.zero_bytes()?;
            self.attack_memory()?;
        }
        for (first, count) in MSRS {
            self.random()?;
            self.a.mov(eax, ebp)?;
            self.a.xor(edx, edx)?;
            self.a.mov(ecx, count)?;
            self.a.div(ecx)?;
            self.a.lea(ecx, ptr(rdx + i64::from(first as i32)))?;
            self.attack_msr()?;
        }
        self.a.dec(r14d)?;
        self.a.jne(again)
    }

    fn finish(&mut self, mut plain: CodeLabel, mut coded: CodeLabel) -> Step {
        let a = &mut self.a;
        let mut end = a.create_label();
        a.mov(edx, u32::from(self.plan.exit_port))?;
        a.out(dx, al)?;
        a.set_label(&mut end)?;
        a.hlt()?;
        a.jmp(end)?;
        a.set_label(&mut coded)?;
        a.add(rsp, 8)?;
        a.set_label(&mut plain)?;
        a.mov(qword_ptr(rsp), r15)?;
        a.iretq()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_a_multiboot_kernel() {
        let image = image(&Hostile::default());
        let word = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap());
        assert_eq!(word(0), 0x1bad_b002);
        assert_eq!(word(0).wrapping_add(word(4)).wrapping_add(word(8)), 0);
        assert_eq!(word(20), LOAD + image.len() as u32);
        assert_eq!(word(28), LOAD + 32);
        assert!(LOAD as usize + image.len() < PML4 as usize);
    }
}
