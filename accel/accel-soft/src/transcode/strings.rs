//! REP STOS and REP MOVS: common code that has the host's processor execute them.
//!
//! Kernels clear and copy small structures with these, so that the way to the interpreter would cost more
//! than all the rest. Bytes that lie in one page are done here; the interpreter does the others, many
//! at a time.

use iced_x86::{Code, Instruction, OpKind, Register};
use x86::View;
use x86::state::Rflags;

use super::assembler::{Alu, Assembler, Cond, Label, Mem, Reg};
use super::context::{TLB_ENTRIES, offset};
use super::registers::GUEST_RAX;

/// How many kinds of [`StringOp`] there are.
pub const STRING_OPS: usize = 6;

/// What is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StringOp {
    /// MOVS, not STOS.
    pub moves: bool,
    /// The binary logarithm of an element's bytes: 0, 2 or 3.
    pub scale: u8,
}

impl StringOp {
    /// All of them, by number.
    pub const ALL: [Self; STRING_OPS] = {
        let mut all = [Self { moves: false, scale: 0 }; STRING_OPS];
        let mut i = 0;
        while i < STRING_OPS {
            all[i] = Self { moves: i >= 3, scale: [0, 2, 3][i % 3] };
            i += 1;
        }
        all
    };

    /// What a repeated instruction of 64-bit code does, without segments.
    pub fn of(insn: &Instruction) -> Option<Self> {
        let (moves, scale) = match insn.code() {
            Code::Stosb_m8_AL => (false, 0),
            Code::Stosd_m32_EAX => (false, 2),
            Code::Stosq_m64_RAX => (false, 3),
            Code::Movsb_m8_m8 => (true, 0),
            Code::Movsd_m32_m32 => (true, 2),
            Code::Movsq_m64_m64 => (true, 3),
            _ => return None,
        };
        // REPNE means the same here.
        let is_repeated = insn.has_rep_prefix() || insn.has_repne_prefix();
        let is_wide = insn.op0_kind() == OpKind::MemoryESRDI
            && (!moves || insn.op1_kind() == OpKind::MemorySegRSI);
        let is_plain = !matches!(insn.segment_prefix(), Register::FS | Register::GS);
        (is_repeated && is_wide && is_plain).then_some(Self { moves, scale })
    }

    /// Its place in [`ALL`](Self::ALL).
    pub fn number(self) -> usize {
        usize::from(self.moves) * 3 + [0, 0, 1, 2][usize::from(self.scale & 3)]
    }
}

const ADDRESS: Reg = Reg::RBX;
const OTHER: Reg = Reg::RBP;
const STATUS: Reg = Reg::RAX;
const COUNT: Reg = Reg::RCX;
const SOURCE: Reg = Reg::RSI;
const DESTINATION: Reg = Reg::RDI;

/// The return address lies below the context.
const PUSHED: i32 = 8;

fn context(offset: i32) -> Mem {
    Mem::Context(offset + PUSHED)
}

/// Emits the code for one of these in a view, which is called with the number of an exit in EBP. If all bytes
/// lie in one page, and the first level of the soft TLB has it, it does as the instruction does and
/// returns; RAX is as before, RBX, RBP and the host's flags are lost. Else it leaves by the exit, with
/// nothing done.
pub fn emit(asm: &mut Assembler, view: View, StringOp { moves, scale }: StringOp, leave: Label) {
    let undone = asm.label();
    asm.store32(context(offset::EXIT), OTHER);
    asm.store(context(offset::STATUS), STATUS);
    asm.load32(OTHER, context(offset::RFLAGS));
    asm.alu32_imm(Alu::And, OTHER, Rflags::DF.bits() as i32);
    asm.jump_if(Cond::NotEqual, undone);
    // Neither 0 nor more than a page.
    asm.lea(OTHER, Mem::Base(COUNT, -1));
    asm.alu_imm(Alu::Cmp, OTHER, (4096 >> scale) - 1);
    asm.jump_if(Cond::Above, undone);

    find(asm, view, true, DESTINATION, scale, undone);
    if moves {
        asm.store(context(offset::SPILL), ADDRESS);
        find(asm, view, false, SOURCE, scale, undone);
        asm.mov(STATUS, SOURCE);
        asm.mov(OTHER, DESTINATION);
        asm.mov(SOURCE, ADDRESS);
        asm.load(DESTINATION, context(offset::SPILL));
    } else {
        asm.mov(STATUS, GUEST_RAX);
        asm.mov(OTHER, DESTINATION);
        asm.mov(DESTINATION, ADDRESS);
    }
    asm.repeat(moves, scale);
    // Both have moved by as much in the guest's memory.
    if moves {
        asm.alu(Alu::Sub, SOURCE, ADDRESS);
        asm.alu(Alu::Add, SOURCE, STATUS);
        asm.alu_mem(Alu::Sub, DESTINATION, context(offset::SPILL));
    } else {
        asm.alu(Alu::Sub, DESTINATION, ADDRESS);
    }
    asm.alu(Alu::Add, DESTINATION, OTHER);
    asm.load(STATUS, context(offset::STATUS));
    asm.ret();

    asm.bind(undone);
    asm.load32(OTHER, context(offset::EXIT));
    asm.load(STATUS, context(offset::STATUS));
    asm.lea(Reg::RSP, Mem::Base(Reg::RSP, PUSHED));
    asm.jmp(leave);
}

/// The host's address of the page at `pointer`, with the offset in it, into RBX. Goes to `undone` if that is not
/// known, or if not all bytes lie in it. Uses RAX and RBP.
fn find(asm: &mut Assembler, view: View, write: bool, pointer: Reg, scale: u8, undone: Label) {
    let tag = Mem::ContextIndexed(OTHER, offset::tlb_tag(view, write) + PUSHED);
    let host = Mem::ContextIndexed(OTHER, offset::tlb_host(view, write) + PUSHED);
    // As blocks do it (`translate/address.rs`).
    asm.mov(ADDRESS, pointer);
    asm.rorx(OTHER, ADDRESS, 11);
    asm.alu32_imm(Alu::And, OTHER, 2 * TLB_ENTRIES as i32 - 2);
    asm.alu_mem(Alu::Add, ADDRESS, tag);
    asm.alu_imm(Alu::Cmp, ADDRESS, 4095);
    asm.jump_if(Cond::Above, undone);
    asm.mov(STATUS, COUNT);
    asm.shl(STATUS, scale);
    asm.alu(Alu::Add, STATUS, ADDRESS);
    asm.alu_imm(Alu::Cmp, STATUS, 4096);
    asm.jump_if(Cond::Above, undone);
    asm.alu_mem(Alu::Add, ADDRESS, host);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_numbered() {
        for (i, op) in StringOp::ALL.iter().enumerate() {
            assert_eq!(op.number(), i);
        }
    }
}
