//! The second levels of the soft TLB and the jump cache: common code that blocks come to when
//! the first has no answer.
//!
//! They are larger than the first and distinguish address spaces, so that most misses need not
//! leave translated code, which would cost the vector registers their place in the host's.

use std::mem::offset_of;

use x86::View;
use x86::state::gpr;

use super::assembler::{Alu, Assembler, Cond, Label, Mem, Reg};
use super::context::{
    JUMP_ENTRIES, MIRRORED_CAPACITY, MIRRORED_JUMPS, SECOND_ENTRIES, SecondEntry, offset,
};
use super::journal::{self, CAPACITY, has_global};
use super::placed_jumps::{CODE_TLB_ENTRIES, PLACED_JUMPS};

/// In the number of an exit: the check that failed was for several accesses.
pub const MERGED: u32 = 1 << 31;

const ADDRESS: Reg = Reg::RBX;
/// Where a branch goes.
const TARGET: Reg = Reg::RBX;
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
        let journal = offset::tlb_journal(view) + PUSHED;
        journal::emit_note::<CAPACITY>(asm, journal, OTHER, ENTRY);
    }
    asm.load(ENTRY, context(offset::STATUS));
    // RET 8
    asm.bytes(&[0xc2, 8, 0]);
}

/// Emits the code for branches that look in jump cache `cache`, to the address in RBX, with the number
/// of an exit in EBP. If the second level has the block there, the code fills the first and goes to it.
/// Else it leaves by the exit.
pub fn emit_branch(asm: &mut Assembler, cache: usize, leave: Label) {
    let has_global = cache != MIRRORED_JUMPS && cache != View::User as usize;
    let missed = asm.label();
    asm.store(Mem::Context(offset::STATUS), ENTRY);
    asm.store32(Mem::Context(offset::EXIT), OTHER);

    // Twice the number of the code TLB's entry, which has 16 bytes.
    asm.mov32(ENTRY, TARGET);
    asm.shr32(ENTRY, 11);
    asm.alu32_imm(Alu::And, ENTRY, 2 * CODE_TLB_ENTRIES as i32 - 2);
    let tag = Mem::ContextIndexed(ENTRY, offset::code_tag(cache));
    asm.mov(OTHER, TARGET);
    asm.alu_imm(Alu::And, OTHER, -4096);
    if has_global {
        const { assert!(journal::GLOBAL == 0) };
        let local = asm.label();
        asm.alu_mem(Alu::Cmp, OTHER, tag);
        asm.jump_if(Cond::NotEqual, local);
        emit_placed(asm, cache, false, missed);
        asm.bind(local);
    }
    asm.alu_mem(Alu::Or, OTHER, Mem::Context(offset::space(View::User)));
    asm.alu_mem(Alu::Cmp, OTHER, tag);
    asm.jump_if(Cond::NotEqual, missed);
    emit_placed(asm, cache, true, missed);

    asm.bind(missed);
    asm.load(ENTRY, Mem::Context(offset::STATUS));
    asm.load32(OTHER, Mem::Context(offset::EXIT));
    asm.jmp(leave);
}

/// The part of [`emit_branch`] for when RAX holds twice the number of the entry of the code TLB that has
/// the page, of this address space only or of all.
fn emit_placed(asm: &mut Assembler, cache: usize, is_local: bool, missed: Label) {
    let found = asm.label();
    // The block's key.
    asm.load(ENTRY, Mem::ContextIndexed(ENTRY, offset::code_gpa(cache)));
    asm.mov32(OTHER, TARGET);
    asm.alu32_imm(Alu::And, OTHER, 0xfff);
    asm.alu(Alu::Or, ENTRY, OTHER);
    asm.alu_mem(Alu::Or, ENTRY, Mem::Context(offset::jump_setting(cache)));
    emit_hash(asm, OTHER, ENTRY, PLACED_JUMPS);
    let key = Mem::ContextIndexed(OTHER, offset::PLACED_KEY);
    asm.alu_mem(Alu::Cmp, ENTRY, key);
    asm.jump_if(Cond::Equal, found);
    asm.alu32_imm(Alu::Xor, OTHER, 2);
    asm.alu_mem(Alu::Cmp, ENTRY, key);
    asm.jump_if(Cond::NotEqual, missed);

    asm.bind(found);
    asm.load(OTHER, Mem::ContextIndexed(OTHER, offset::PLACED_HOST));
    if cache == MIRRORED_JUMPS {
        return emit_fill_mirrored(asm);
    }
    asm.mov(ENTRY, OTHER);
    emit_hash(asm, OTHER, TARGET, JUMP_ENTRIES[cache]);
    asm.store(Mem::ContextIndexed(OTHER, offset::jump_guest(cache)), TARGET);
    asm.store(Mem::ContextIndexed(OTHER, offset::jump_host(cache)), ENTRY);
    asm.store(Mem::Context(offset::TARGET), ENTRY);
    if is_local {
        journal::emit_note::<CAPACITY>(asm, offset::jump_journal(cache), OTHER, ENTRY);
    }
    asm.load(ENTRY, Mem::Context(offset::STATUS));
    asm.jmp_mem(Mem::Context(offset::TARGET));
}

/// The last part for [`MIRRORED_JUMPS`], whose entries lie under a key that is locked, to the block at
/// RBP.
fn emit_fill_mirrored(asm: &mut Assembler) {
    const HOST: Reg = OTHER;
    const INDEX: Reg = Reg::RCX;
    /// It wants zero in ECX and EDX.
    const WRPKRU: [u8; 3] = [0x0f, 0x01, 0xef];
    let saved = [(Reg::RCX, gpr::RCX), (Reg::RDX, gpr::RDX)];
    for (register, number) in saved {
        asm.store(Mem::Context(offset::gpr(number)), register);
        asm.alu32(Alu::Xor, register, register);
    }
    asm.load32(ENTRY, Mem::Context(offset::HOST_PKRU));
    asm.load(Reg::RSP, Mem::Context(offset::PLAIN_SP));
    asm.bytes(&WRPKRU);
    emit_hash(asm, INDEX, TARGET, JUMP_ENTRIES[MIRRORED_JUMPS]);
    asm.store(Mem::ContextIndexed(INDEX, offset::jump_guest(MIRRORED_JUMPS)), TARGET);
    asm.store(Mem::ContextIndexed(INDEX, offset::jump_host(MIRRORED_JUMPS)), HOST);
    journal::emit_note::<MIRRORED_CAPACITY>(asm, offset::MIRRORED_JOURNAL, INDEX, ENTRY);
    asm.alu32(Alu::Xor, INDEX, INDEX);
    asm.load32(ENTRY, Mem::Context(offset::MIRRORED_PKRU));
    asm.load(Reg::RSP, Mem::Context(offset::MIRRORED_SP));
    asm.bytes(&WRPKRU);
    for (register, number) in saved {
        asm.load(register, Mem::Context(offset::gpr(number)));
    }
    asm.load(ENTRY, Mem::Context(offset::STATUS));
    asm.jmp_reg(HOST);
}

/// Emits the code for direct jumps between pages that are not linked ([`far_links`](super::far_links)), to
/// the address in RBX, with the number of an exit in EBP and the status flags in the host's. If the first level has no block there, it goes on
/// behind itself, where [`emit_branch`]'s code is.
pub fn emit_far(asm: &mut Assembler) {
    let missed = asm.label();
    asm.save_status();
    asm.store(Mem::Context(offset::STATUS), ENTRY);
    asm.store32(Mem::Context(offset::EXIT), OTHER);
    emit_hash(asm, ENTRY, TARGET, JUMP_ENTRIES[MIRRORED_JUMPS]);
    let guest = Mem::ContextIndexed(ENTRY, offset::jump_guest(MIRRORED_JUMPS));
    asm.alu_mem(Alu::Cmp, TARGET, guest);
    asm.jump_if(Cond::NotEqual, missed);
    asm.load(OTHER, Mem::ContextIndexed(ENTRY, offset::jump_host(MIRRORED_JUMPS)));
    asm.load(ENTRY, Mem::Context(offset::STATUS));
    asm.jmp_reg(OTHER);
    asm.bind(missed);
    asm.load(ENTRY, Mem::Context(offset::STATUS));
}

/// Emits twice the number of the entry that a table of `entries`, of 16 bytes each, has for `of`: see
/// [`jump_hash`](super::context::jump_hash).
fn emit_hash(asm: &mut Assembler, to: Reg, of: Reg, entries: usize) {
    asm.mov32(to, of);
    asm.shr32(to, 12);
    asm.alu32(Alu::Xor, to, of);
    asm.alu32_imm(Alu::And, to, 2 * entries as i32 - 2);
}
