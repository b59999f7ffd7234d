//! System instructions that are light enough to be emitted.

use super::*;

impl Translator {
    /// STI. An interrupt that waits already is for the interpreter, which knows of the shadow.
    pub(super) fn set_interrupt(&mut self, insn: &Instruction) {
        self.destroy_flags();
        let at = insn.ip() as u16;
        let deferred = self.cold_exit(Exit::Interpret { at, next: 0, resume: 0 });
        // `attention` and, behind it, `deferred`.
        self.asm.cmp_mem_zero(Mem::Context(offset::ATTENTION));
        self.asm.jump_if(Cond::NotEqual, deferred);
        self.asm.alu32_mem_imm(Alu::Or, Mem::Context(offset::RFLAGS), Rflags::IF.bits() as i32);
    }

    /// MOV from a segment register, which clears what lies above 16 bits.
    pub(super) fn selector(&mut self, insn: &Instruction) {
        let number_of_segment = insn.op1_register() as usize - Register::ES as usize;
        let from = Mem::Context(offset::selector(number_of_segment));
        match home(number(insn.op0_register())) {
            Home::Host(host) => self.asm.load32(host, from),
            Home::Memory(n) => {
                self.asm.load32(ADDRESS, from);
                self.asm.store(Mem::Context(offset::gpr(n)), ADDRESS);
            }
        }
    }

    /// A whole general-purpose register from a field of the context.
    pub(super) fn load_from_context(&mut self, to: Register, field: i32) {
        match home(number(to)) {
            Home::Host(host) => self.asm.load(host, Mem::Context(field)),
            Home::Memory(n) => {
                self.asm.load(ADDRESS, Mem::Context(field));
                self.asm.store(Mem::Context(offset::gpr(n)), ADDRESS);
            }
        }
    }

    /// RDTSC and RDTSCP, with nothing that changes flags.
    pub(super) fn time_stamp(&mut self, has_processor: bool) {
        self.free_status();
        if has_processor {
            // LFENCE: all that comes before is done.
            self.asm.bytes(&[0x0f, 0xae, 0xe8]);
            self.asm.load32(Reg::RCX, Mem::Context(offset::TSC_AUX));
        }
        self.asm.bytes(&[0x0f, 0x31]);
        self.asm.rorx(Reg::RDX, Reg::RDX, 32);
        self.asm.load(ADDRESS, Mem::Context(offset::TSC_OFFSET));
        self.asm.lea(STATUS, Mem::Sum { base: Some(STATUS), index: Some((Reg::RDX, 0)), disp: 0 });
        self.asm.lea(STATUS, Mem::Sum { base: Some(STATUS), index: Some((ADDRESS, 0)), disp: 0 });
        self.asm.mov32(GUEST_RAX, STATUS);
        self.asm.rorx(Reg::RDX, STATUS, 32);
        self.asm.mov32(Reg::RDX, Reg::RDX);
    }
}
