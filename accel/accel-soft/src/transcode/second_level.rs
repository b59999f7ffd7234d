//! The second levels of the soft TLB and the jump cache: common code that blocks come to when
//! the first has no answer.
//!
//! They are larger than the first and distinguish address spaces, so that most misses need not
//! leave translated code, which would cost the vector registers their place in the host's.

use std::mem::offset_of;

use x86::View;

use super::assembler::{Alu, Assembler, Cond, Label, Mem, Reg};
use super::context::{
    JUMP_ENTRIES, MIRRORED_JUMPS, SECOND_ENTRIES, SECOND_JUMPS, SecondEntry, SecondJump, offset,
};
use super::journal::{self, has_global};

/// In the number of an exit: the check that failed was for several accesses.
pub const MERGED: u32 = 1 << 31;

const ADDRESS: Reg = Reg::RBX;
const OTHER: Reg = Reg::RBP;
const ENTRY: Reg = Reg::RAX;

/// For loads and stores, the number of the exit and the return address lie below the context.
const PUSHED: i32 = 16;

fn context(offset: i32) -> Mem {
    Mem::Context(offset + PUSHED)
}

/// Emits the code for loads or stores of a view, which is called with the number of an exit on the
/// stack. RBP holds twice the number of the first level's entry, and RBX the linear address with that
/// entry's tag added. If the second level has the page, the code fills the first and returns,
/// with the number taken off the stack; RAX is as before, RBX and RBP are lost. Else it leaves by
/// the exit; or, if the check was for several accesses ([`MERGED`] is in the number) that leave a page
/// together, it goes on behind the jump that follows the call, with the number in the context.
pub fn emit_access(asm: &mut Assembler, view: View, write: bool, leave: Label) {
    let missed = asm.label();
    let first = Mem::ContextIndexed(OTHER, offset::tlb_tag(view, write) + PUSHED);
    asm.alu_mem(Alu::Sub, ADDRESS, first);
    asm.store(context(offset::MISSED), OTHER);
    asm.store(context(offset::STATUS), ENTRY);

    asm.mov32(ENTRY, ADDRESS);
    asm.shr32(ENTRY, 12);
    asm.alu32_imm(Alu::And, ENTRY, SECOND_ENTRIES[view as usize] as i32 - 1);
    asm.shl32(ENTRY, size_of::<SecondEntry>().trailing_zeros() as u8);
    asm.alu_mem(Alu::Add, ENTRY, context(offset::second(view)));
    asm.mov(OTHER, ADDRESS);
    asm.alu_imm(Alu::And, OTHER, -4096);
    asm.alu_mem(Alu::Or, OTHER, context(offset::space(view)));
    let tag = if write { offset_of!(SecondEntry, write) } else { offset_of!(SecondEntry, read) };
    let tag = Mem::Base(ENTRY, tag as i32);
    asm.alu_mem(Alu::Cmp, OTHER, tag);
    let crosses = asm.label();
    if has_global(view) {
        let local = asm.label();
        asm.jump_if(Cond::Equal, local);
        const { assert!(journal::GLOBAL == 0) };
        asm.alu_imm(Alu::And, OTHER, -4096);
        asm.alu_mem(Alu::Cmp, OTHER, tag);
        asm.jump_if(Cond::NotEqual, missed);
        emit_found(asm, view, write, true, missed, crosses);
        asm.bind(local);
    } else {
        asm.jump_if(Cond::NotEqual, missed);
    }
    emit_found(asm, view, write, false, missed, crosses);

    // Where the check was for several accesses, each has one of its own behind the next jump.
    asm.bind(crosses);
    let leaves = asm.label();
    asm.load(ENTRY, context(offset::STATUS));
    asm.load(ADDRESS, context(offset::SCRATCH));
    asm.load32(OTHER, Mem::Base(Reg::RSP, 8));
    asm.alu32_imm(Alu::Cmp, OTHER, MERGED as i32);
    asm.jump_if(Cond::Below, leaves);
    asm.alu32_imm(Alu::And, OTHER, !MERGED as i32);
    asm.store32(context(offset::EXIT), OTHER);
    asm.load(OTHER, Mem::Base(Reg::RSP, 0));
    asm.lea(Reg::RSP, Mem::Base(Reg::RSP, PUSHED));
    asm.lea(OTHER, Mem::Base(OTHER, 5));
    asm.jmp_reg(OTHER);

    asm.bind(missed);
    asm.load(ENTRY, context(offset::STATUS));
    asm.load32(OTHER, Mem::Base(Reg::RSP, 8));
    asm.alu32_imm(Alu::And, OTHER, !MERGED as i32);
    asm.bind(leaves);
    asm.lea(Reg::RSP, Mem::Base(Reg::RSP, PUSHED));
    asm.jmp(leave);
}

/// The part of [`emit_access`] for when RAX points at the entry of the second level that the page is in.
fn emit_found(
    asm: &mut Assembler,
    view: View,
    write: bool,
    global: bool,
    missed: Label,
    crosses: Label,
) {
    let first = Mem::ContextIndexed(OTHER, offset::tlb_tag(view, write) + PUSHED);
    if write {
        asm.load(OTHER, Mem::Base(ENTRY, offset_of!(SecondEntry, epoch) as i32));
        asm.alu_mem(Alu::Cmp, OTHER, context(offset::WRITE_EPOCH));
        asm.jump_if(Cond::NotEqual, missed);
    }
    asm.load(ENTRY, Mem::Base(ENTRY, offset_of!(SecondEntry, host) as i32));

    // The negated page is the tag of the first level. If that is there already, the access
    // leaves its page, which is for others to handle.
    asm.load(OTHER, context(offset::MISSED));
    asm.store(context(offset::SCRATCH), ADDRESS);
    asm.alu_imm(Alu::And, ADDRESS, -4096);
    asm.neg(ADDRESS);
    asm.alu_mem(Alu::Cmp, ADDRESS, first);
    asm.jump_if(Cond::Equal, crosses);
    asm.store(first, ADDRESS);
    asm.store(Mem::ContextIndexed(OTHER, offset::tlb_host(view, write) + PUSHED), ENTRY);
    if !global {
        journal::emit_note(asm, offset::tlb_journal(view) + PUSHED, OTHER, ENTRY);
    }
    asm.load(ENTRY, context(offset::STATUS));
    // RET 8
    asm.bytes(&[0xc2, 8, 0]);
}

/// Emits the code for branches that look in jump cache `cache`, to the address in RBX, with the number
/// of an exit in EBP. If the second level has the block there, the code fills the first, unless that
/// is out of its reach ([`MIRRORED_JUMPS`]), and goes to it. Else it leaves by the exit.
pub fn emit_branch(asm: &mut Assembler, cache: usize, leave: Label) {
    const TARGET: Reg = Reg::RBX;
    let missed = asm.label();
    asm.store(Mem::Context(offset::STATUS), ENTRY);
    asm.store32(Mem::Context(offset::EXIT), OTHER);
    let hash = |asm: &mut Assembler, to: Reg, entries: usize| {
        asm.mov32(to, TARGET);
        asm.shr32(to, 12);
        asm.alu32(Alu::Xor, to, TARGET);
        asm.alu32_imm(Alu::And, to, 2 * entries as i32 - 2);
    };
    hash(asm, ENTRY, SECOND_JUMPS[cache]);
    const { assert!(size_of::<SecondJump>() == 2 << 4) };
    asm.shl32(ENTRY, 4);
    asm.alu_mem(Alu::Add, ENTRY, Mem::Context(offset::second_jumps(cache)));
    let has_global = cache != MIRRORED_JUMPS && cache != View::User as usize;
    let (local, global, other_way) = (asm.label(), asm.label(), asm.label());
    for way in [other_way, missed] {
        let space = Mem::Base(ENTRY, offset_of!(SecondJump, space) as i32);
        asm.alu_mem(Alu::Cmp, TARGET, Mem::Base(ENTRY, offset_of!(SecondJump, guest) as i32));
        asm.jump_if(Cond::NotEqual, way);
        asm.load(OTHER, space);
        asm.alu_mem(Alu::Cmp, OTHER, Mem::Context(offset::jump_space(cache)));
        asm.jump_if(Cond::Equal, local);
        if has_global {
            asm.alu_mem(Alu::Cmp, OTHER, Mem::Context(offset::global_jump_space(cache)));
            asm.jump_if(Cond::Equal, global);
        }
        if way == other_way {
            asm.bind(other_way);
            // The tables are aligned to two entries.
            asm.alu_imm(Alu::Xor, ENTRY, size_of::<SecondJump>() as i32);
        }
    }
    asm.jmp(missed);
    for (found, is_local) in [(local, true), (global, false)] {
        if !is_local && !has_global {
            continue;
        }
        asm.bind(found);
        if cache == MIRRORED_JUMPS {
            asm.load(OTHER, Mem::Base(ENTRY, offset_of!(SecondJump, host) as i32));
            asm.load(ENTRY, Mem::Context(offset::STATUS));
            asm.jmp_reg(OTHER);
            continue;
        }
        asm.load(ENTRY, Mem::Base(ENTRY, offset_of!(SecondJump, host) as i32));
        hash(asm, OTHER, JUMP_ENTRIES[cache]);
        asm.store(Mem::ContextIndexed(OTHER, offset::jump_guest(cache)), TARGET);
        asm.store(Mem::ContextIndexed(OTHER, offset::jump_host(cache)), ENTRY);
        asm.store(Mem::Context(offset::TARGET), ENTRY);
        if is_local {
            journal::emit_note(asm, offset::jump_journal(cache), OTHER, ENTRY);
        }
        asm.load(ENTRY, Mem::Context(offset::STATUS));
        asm.jmp_mem(Mem::Context(offset::TARGET));
    }

    asm.bind(missed);
    asm.load(ENTRY, Mem::Context(offset::STATUS));
    asm.load32(OTHER, Mem::Context(offset::EXIT));
    asm.jmp(leave);
}
